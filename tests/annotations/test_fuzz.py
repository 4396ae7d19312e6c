"""Files of annotations with odd values in odd places: read, or refused in words that name the file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coarse2fine.annotations.read import AnnotationError, read_annotations
from coarse2fine.tiling.geometry import GeoReference

GEO = GeoReference((10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0), "EPSG:32618", "meter")


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


ODD: list[Any] = [
    *(None, True, "", " ", "\ud800", "x" * 500, "{", "[1]", '{"name": "a"}', "EPSG::4326", "Polygon", "MultiPoint"),
    *(-1, 0, 0.5, 1e300, 3e38, 10**400, float("nan"), float("inf"), -5e-324),
    *([], {}, [[]], [None], [["a"]], ["1", "2"], [1, 2], [[1, 2]], [[[1, 2]]], {"a": [1]}, {"name": ["x"]}),
    *(deep(20), deep(900)),
]


def feature(kind: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def result(kind: str, **value: Any) -> dict[str, Any]:
    return {"id": "1", "type": kind, "original_width": 100, "original_height": 80, "value": value}


SQUARE = [[[1, 1], [9, 1], [9, 9], [1, 1]]]
QUPATH = {"name": "t", "names": ["a", "b"], "colorRGB": -3}
GEOJSON = {
    "type": "FeatureCollection",
    "crs": {"type": "name", "properties": {"name": "EPSG:32618"}},
    "features": [
        feature("Polygon", SQUARE, objectType="cell", classification=QUPATH, measurements=[{"name": "a", "value": 1}]),
        feature("MultiPoint", [[1, 1], [2, 2]], classification='{"name": "t"}', measurements={"a": 1.5}),
        feature("MultiPolygon", [SQUARE, [[[11, 1], [19, 1], [19, 9], [11, 1]]]], name="t"),
        feature("Point", [1, 1], objectType="annotation", isLocked=True),
    ],
}
COCO = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in range(2)],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0, "score": 0.5},
        {"id": 2, "image_id": 0, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5], [11, 1, 15, 1, 15, 5]]},
        {"id": 3, "image_id": 0, "category_id": 1, "segmentation": {"size": [80, 100], "counts": [10, 5, 75, 5]}},
        {"id": 4, "image_id": 0, "category_id": 1, "segmentation": {"size": [80, 100], "counts": ":5n0"}},
    ],
}
STUDIO = [
    {
        "data": {"image": "/data/upload/1/0123abcd-0.jpg"},
        "annotations": [
            {
                "result": [
                    result("rectanglelabels", x=1, y=2, width=5, height=5, rotation=10, rectanglelabels=["a"]),
                    result("polygonlabels", points=[[1, 1], [5, 5], [9, 1]], polygonlabels=["b"]),
                    result("ellipselabels", x=10, y=20, radiusX=2, radiusY=3, ellipselabels=["a"]),
                    result("keypointlabels", x=1, y=2, width=0.1, keypointlabels=["a"]),
                ]
            }
        ],
    },
    {"image": "1.jpg", "label": [{**result("", x=1)["value"], "y": 2, "original_width": 9, "original_height": 9}]},
]
LABELME = {
    "imagePath": "0.jpg",
    "imageHeight": 80,
    "imageWidth": 100,
    "shapes": [
        {"label": "a", "points": [[1, 1], [5, 5]], "shape_type": kind} for kind in ("rectangle", "circle", "point")
    ],
}


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


def changed(value: Any, rng: random.Random) -> Any:
    """A copy with something odd in one place, or without it."""
    *outer, last = rng.choice(list(places(value))[1:])
    inner = value = copy.deepcopy(value)
    for key in outer:
        inner = inner[key]
    if rng.random() < 0.15:
        del inner[last]
    else:
        inner[last] = rng.choice(ODD)
    return value


@pytest.mark.parametrize("seed", [GEOJSON, COCO, STUDIO, LABELME], ids=["geojson", "coco", "studio", "labelme"])
def test_odd_values_are_refused_by_name_or_left_out(tmp_path: Path, seed: Any) -> None:
    path = tmp_path / "odd.json"
    rng = random.Random(0)
    outcomes = set()
    for _ in range(250):
        payload = changed(seed, rng)
        path.write_text(json.dumps(payload))
        try:
            read_annotations(
                path,
                full_shape=rng.choice([(80, 100), None]),
                image=rng.choice(["in/0.jpg", None]),
                geo=rng.choice([None, GEO]),
            )
            outcomes.add("read")
        except AnnotationError as error:
            outcomes.add("refused")
            assert str(path) in str(error)  # noqa: PT017 (whether there is one is not known)
            assert len(str(error)) < 1000  # noqa: PT017
    assert outcomes == {"read", "refused"}
