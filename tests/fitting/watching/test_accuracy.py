"""Accuracy of an expert on annotated images, in scenes of which it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coarse2fine import AnnotationError, expert
from coarse2fine.annotations.annotated import Annotations
from coarse2fine.annotations.read import read_annotations
from coarse2fine.experts.expert import Expert
from coarse2fine.fitting.watching.accuracy import accuracy_of, check_labels
from coarse2fine.fitting.watching.tiles import WatchedScene
from coarse2fine.models.candidates import Candidates

TILE = 100


def annotated(*places: tuple[float, float, str], half: float = 5.0, region: list[float] | None = None) -> Annotations:
    """Squares, or points if `half` is 0, around places (y, x); annotated everywhere, or in a box x0, y0, x1, y1."""
    features: list[dict[str, Any]] = []
    for y, x, label in places:
        ring = [[x - half, y - half], [x + half, y - half], [x + half, y + half], [x - half, y + half]]
        shape = (
            {"type": "Polygon", "coordinates": [[*ring, ring[0]]]} if half else {"type": "Point", "coordinates": [x, y]}
        )
        features.append(feature(shape, label))
    if region:
        x0, y0, x1, y1 = region
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        features.append(feature({"type": "Polygon", "coordinates": [ring]}, "Region*"))
    return read_annotations({"type": "FeatureCollection", "features": features}, full_shape=(3 * TILE, 3 * TILE))


def feature(geometry: dict[str, Any], label: str) -> dict[str, Any]:
    properties = {"objectType": "annotation", "classification": {"name": label}}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def watched(*finds: tuple[float, float, int], half: float = 5.0) -> WatchedScene:
    """Three by three tiles: all watched but the last row, those of the first column drawn with a chance of a half."""
    places = np.array([find[:2] for find in finds], np.float64).reshape(-1, 2)
    cells = (places // TILE).astype(np.int32)
    found = Candidates(
        cells,
        np.full(len(finds), 0.9, np.float32),
        np.array([find[2] for find in finds], np.int16),
        (np.concatenate([places - half, places + half], axis=1) / TILE).astype(np.float32),
        np.zeros(len(finds), np.int32),
        np.arange(len(finds), dtype=np.int32),
    )
    tried, none = np.arange(9).reshape(3, 3) < 6, np.zeros((3, 3), np.int64)
    missed = np.where(np.arange(3) == 0, 0.5, 0.0) * np.ones((3, 1))
    return WatchedScene(None, none, none, tried, missed, found)  # type: ignore[arg-type]


def cells() -> Expert:
    return expert(lambda _: None, tile=TILE, labels=["cell", "dirt"])


@pytest.mark.parametrize("half", [5.0, 0.0])
def test_objects_are_counted_in_watched_tiles_by_their_weight(half: float) -> None:
    truth = annotated(
        (50, 50, "cell"),  # weight 2, found
        (20, 80, "cell"),  # weight 2, missed: the find there is dirt
        (50, 150, "cell"),  # weight 1, found once
        (150, 250, "dirt"),  # weight 1, found
        (170, 210, "cell"),  # weight 1, missed: the find is too far away
        (250, 50, "cell"),  # not watched
        (150, 150, "other"),  # none of the expert's classes
        half=half,
    )
    scene = watched((52, 51, 0), (20, 80, 1), (51, 150, 0), (47, 153, 0), (150, 250, 1), (170, 216, 0))
    count, recall, precision = accuracy_of([scene], [truth], cells())
    assert count == 5
    assert recall == pytest.approx((2 + 1 + 1) / (2 + 2 + 1 + 1 + 1))
    assert precision == pytest.approx((2 + 1 + 1) / (2 + 2 + 1 + 1 + 1 + 1))


def test_only_what_is_annotated_counts() -> None:
    truth = annotated((50, 50, "cell"), (50, 150, "cell"), region=[100, 0, 200, 100])
    count, recall, precision = accuracy_of([watched((50, 150, 0), (50, 250, 0))], [truth], cells())
    assert (count, recall, precision) == (1, 1, 1)


def test_cells_of_a_map_are_right_where_they_meet_an_object() -> None:
    mapped = expert(lambda _: None, kind="map", tile=TILE, cell=10, labels=["cell"])
    scene = watched((5, 5, 0), (15, 5, 0), (15, 155, 0))
    found = scene.found
    cells_found = np.array([[0, 0], [1, 0], [1, 15]], np.int32)
    boxes = np.concatenate([cells_found, cells_found + 1], axis=1).astype(np.float32)
    scene = WatchedScene(
        None,  # type: ignore[arg-type]
        scene.block,
        scene.fold,
        scene.tried,
        scene.missed,
        Candidates(cells_found, found.scores, found.labels, boxes, found.nodes),
    )
    truth = annotated((12, 5, "cell"), (50, 150, "cell"), half=4)
    count, recall, precision = accuracy_of([scene], [truth], mapped)
    assert count == 2
    assert recall == pytest.approx(2 / 3)
    assert precision == pytest.approx(4 / 5)


def test_classes_are_compared_by_name() -> None:
    one = expert(lambda _: None, tile=TILE)
    assert check_labels(one, [annotated((5, 5, "nucleus"))]) == {"nucleus": "find"}
    assert check_labels(cells(), [annotated((5, 5, "cell"), (9, 9, "x"))]) == {"cell": "cell"}
    with pytest.raises(AnnotationError, match="a, b are none of the expert's"):
        check_labels(cells(), [annotated((5, 5, "a")), annotated((5, 5, "b"))])
