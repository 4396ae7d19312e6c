"""The files of an analysis open elsewhere, whatever the image and the names in it."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from coarse2fine import analyze
from coarse2fine.annotations.read import read_annotations
from coarse2fine.model import Model
from coarse2fine.refiners.protocol import Label
from coarse2fine.results.cost import Cost
from coarse2fine.tiling.opening import open_image
from tests.refining import relabelled

MakeImage = Callable[..., NDArray[np.uint8]]


def test_saved_files_open_elsewhere(make_image: MakeImage, detector: Model, tmp_path: Path) -> None:
    analysis = analyze(make_image(300, 400), detector, budget=0.5, precision="fp32")
    folder = analysis.save(tmp_path / "new" / "folder")
    names = ["analysis.json", "maps.ome.zarr", "overview.png", "regions.geojson"]
    tables = ["thumbnail.jpg", "tiles.csv", "tiles.parquet"]
    assert sorted(p.name for p in folder.iterdir()) == [*names, *tables, "timing.json"]
    picture = cv2.imread(str(folder / "overview.png"))
    assert picture is not None
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 10
    features = json.loads((folder / "regions.geojson").read_text())["features"]
    assert len(features) == len(analysis.regions) > 5
    for shown, region in zip(features, analysis.regions, strict=True):
        y0, x0, y1, x1 = region.full_box
        assert shapely.geometry.shape(shown["geometry"]).bounds == (x0, y0, x1, y1)
    assert len(read_annotations(folder / "regions.geojson").objects) == len(features)
    record = json.loads((folder / "analysis.json").read_text())
    assert record["regions"] == len(features)
    assert record["image"]["shape"] == [300, 400, 3]
    assert record["cost"]["share"] == analysis.cost.share
    assert record["cost"]["macs"] == analysis.cost.scan_macs + analysis.cost.refine_macs
    assert record["parameters"]["budget"] == 0.5


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 900), (900, 5), (100, 1600), (1600, 100), (60, 60)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_any_shape_of_image_makes_a_picture(
    make_image: MakeImage, detector: Model, tmp_path: Path, shape: tuple[int, int]
) -> None:
    for name, budget in (("some", None), ("all", 1.0)):
        analysis = analyze(make_image(*shape, 1), detector, budget=budget)
        assert cv2.imread(str(analysis.plot(tmp_path / f"{name}.png"))) is not None


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_pictures_of_other_kinds(make_image: MakeImage, detector: Model, tmp_path: Path, ending: str) -> None:
    path = analyze(make_image(80, 90), detector).plot(tmp_path / f"picture.{ending}")
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert path.read_bytes().startswith(starts[ending])


def test_pictures_do_not_wait_for_the_garbage_collector(make_image: MakeImage, detector: Model, tmp_path: Path) -> None:
    analysis = analyze(make_image(400, 400), detector, budget=0.4)
    analysis.plot(tmp_path / "picture.png")  # what is loaded once
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        analysis.plot(tmp_path / "picture.png")
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < 2e6  # with the pixels of its panels it would be five million


def test_a_picture_of_no_known_kind_is_refused(make_image: MakeImage, detector: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.png, \.pdf or \.svg, got \.jpg"):
        analyze(make_image(80, 90), detector).plot(tmp_path / "picture.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["$a$ and $", "_hidden", "$\\frac{$", "$^^$", "a_b^c {x} \\frac", "mer\n20 %", "空白", "<b>&amp;</b>"]
)
def test_names_are_drawn_as_they_are(make_image: MakeImage, detector: Model, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name.replace(chr(92), '').replace('/', '')}.png"
    cv2.imwrite(str(path), make_image(90, 100))
    model = relabelled(detector, Label(name), Label(f"{name}2"))
    with analyze(path, model, budget=1.0) as analysis:
        assert analysis.regions
        folder = analysis.save(tmp_path / "out")
    features = json.loads((folder / "regions.geojson").read_text("utf-8"))["features"]
    assert {f["properties"]["classification"]["name"] for f in features} <= {name, f"{name}2"}
    assert name.split("\n", maxsplit=1)[0] in str(analysis)


def test_an_analysis_tells_its_story(make_image: MakeImage, detector: Model) -> None:
    with analyze(make_image(200, 240), detector, budget=0.5, precision="fp32") as analysis:
        text = str(analysis)
    for part in ("array: ", "px", f"found  {len(analysis.regions)}", "of the exhaustive pass", "cells refined"):
        assert part in text
    with open_image(make_image(20, 20)) as image:
        pass
    assert image.height == 20


def test_of_very_many_classes_the_commonest_are_printed(make_image: MakeImage, detector: Model) -> None:
    with analyze(make_image(200, 240), detector, budget=0.5, precision="fp32") as analysis:
        one = analysis.regions[0]
        many = replace(analysis, regions=tuple(replace(one, label=f"kind {i % 30:02}") for i in range(60 + 5)))
        text = str(many)
    assert "found  65: " in text
    assert all(f"3 kind {i:02}" in text for i in range(5))
    assert text.count(" kind ") == 16
    assert "and 14 classes more" in text


def test_the_account_adds_up() -> None:
    cost = Cost(10, 25, 5, 400, 100, 7, 1.0, 2.0, 2.5, 0.5, 4.0, 5, 6_000_000, 900_000)
    assert (cost.macs, cost.share, cost.saved, cost.speedup, cost.seconds) == (40, 0.1, 0.9, 10.0, 10.0)
    assert str(cost).startswith("0.0 GMAC, 10.0% of the exhaustive pass (10.0x less); 7 of 100 cells refined (7.00%)")
    dear = Cost(100, 600, 100, 400, 100, 100, 1.0, 1.0, 1.0, 1.0, 1.0, 0, 0, 0)
    assert dear.saved == -1.0
    assert dear.speedup == 0.5
