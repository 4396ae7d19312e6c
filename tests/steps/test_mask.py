"""Analysing a part of an image alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine import analyze
from coarse2fine.batch.inputs import find_items, with_masks
from coarse2fine.batch.run import analyze_folder
from coarse2fine.model import Model
from coarse2fine.steps.mask import cells_inside
from coarse2fine.steps.plan import Plan
from coarse2fine.tiling.conversion.convert import convert
from coarse2fine.tiling.opening import open_image

MakeImage = Callable[..., NDArray[np.uint8]]


def ring_of_chance(corners: int) -> dict[str, Any]:
    places = np.random.default_rng(0).random((corners, 2)) * 100
    return {"type": "Polygon", "coordinates": [places.tolist()]}


def blank(height: int, width: int) -> Any:
    return open_image(np.zeros((height, width), np.uint8))


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4"])
def test_labels_of_any_type_are_inside(tmp_path: Path, dtype: str) -> None:
    labels = np.zeros((64, 96), dtype)
    labels[8:16, 24:40], labels[40:48, 80:96] = 1, 500
    tifffile.imwrite(tmp_path / "a.tif", labels)
    expected = labels[4::8, 4::8] > 0
    np.testing.assert_array_equal(cells_inside(tmp_path / "a.tif", blank(64, 96), 8), expected)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_mask_of_the_images_own_size_takes_every_cell_that_it_touches(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.02
    mask[seed % height, seed % width] = True
    expected = np.zeros((-(-height // 8), -(-width // 8)), bool)
    for y, x in np.argwhere(mask):
        expected[y // 8, x // 8] = True
    np.testing.assert_array_equal(cells_inside(mask, blank(height, width), 8), expected)


def test_masks_of_other_resolutions(tmp_path: Path) -> None:
    image = blank(400, 640)
    small = np.zeros((50, 80), np.uint8)
    small[10:20, 30:50] = 255
    expected = np.zeros((50, 80), bool)
    expected[10:20, 30:50] = True
    for number, mask in enumerate(
        (small, np.kron(small, np.ones((3, 3), np.uint8)), np.kron(small, np.ones((16, 16))))
    ):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), np.asarray(mask, np.uint8))
        np.testing.assert_array_equal(cells_inside(path, image, 8), expected)
    coarse = np.zeros((5, 8), bool)
    coarse[1, 3:5] = True
    np.testing.assert_array_equal(cells_inside(coarse, image, 8), np.kron(coarse, np.ones((10, 10), bool)))


def test_polygons_take_every_cell_that_they_touch_and_leave_holes(tmp_path: Path) -> None:
    ring = shapely.Point(300, 200).buffer(150).difference(shapely.Point(300, 200).buffer(80))
    far = shapely.box(600, 380, 610, 390)
    features = [
        {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(g))} for g in (ring, far)
    ]
    features.append({"type": "Feature", "properties": {}, "geometry": None})
    path = tmp_path / "mask.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    inside = cells_inside(path, blank(400, 640), 8)
    y, x = np.indices(inside.shape) * 8.0
    both = shapely.union_all([ring, far])
    np.testing.assert_array_equal(inside, shapely.intersects(both, shapely.box(x, y, x + 8, y + 8)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "is no GeoJSON"),
        ('{"type": "Point", "coordinates": [3, 4]}', "holds no polygon"),
        ("[" * 100_000, "is no GeoJSON"),
        ('{"type": "Polygon", "coordinates": ' + "[" * 900 + "]" * 900 + "}", "feature 1 is no outline"),
        ('{"type": "Polygon", "coordinates": [[[1, 1], [9, 1e999], [9, 9]]]}', "feature 1 is no outline"),
        (json.dumps(ring_of_chance(300)), "feature 1 is no outline .*crosses itself"),
        (
            '{"type": "Polygon", "coordinates": [[[9000, 9000], [9010, 9000], [9010, 9010], [9000, 9000]]]}',
            "leaves nothing",
        ),
    ],
)
def test_a_mask_that_cannot_be(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mask.geojson"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        cells_inside(path, blank(100, 100), 8)
    with pytest.raises(ValueError, match="which is not the shape of array, 100 x 100"):
        cells_inside(np.ones((100, 200), bool), blank(100, 100), 8)


def ring(far: float) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[[-far, -far], [far, -far], [far, 200], [-far, 200], [-far, -far]]]}


@pytest.mark.parametrize("far", [1e8, 1e9, 1e12, 3e38])
def test_polygons_that_reach_far_beyond_the_image(tmp_path: Path, far: float) -> None:
    path = tmp_path / "mask.geojson"
    path.write_text(json.dumps(ring(far)))
    inside = cells_inside(path, blank(400, 640), 8)
    y, _ = np.indices(inside.shape)
    np.testing.assert_array_equal(inside, y * 8 <= 200)


def test_a_mask_in_the_images_own_coordinates(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0)), (33922, "d", 6, (0.0, 0.0, 0.0, 500_000.0, 4_000_000.0, 0.0))]
    keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32618)
    tifffile.imwrite(path, np.zeros((400, 640), np.uint8), extratags=[*tags, (34735, "H", len(keys), keys)])
    corners = [
        [500_000 + 10 * x, 4_000_000 - 10 * y] for x, y in ((80, 40), (160, 40), (160, 120), (80, 120), (80, 40))
    ]
    crs = {"type": "name", "properties": {"name": "EPSG:32618"}}
    mask = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [corners]}}
    written = tmp_path / "mask.geojson"
    written.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [mask]}))
    y, x = np.indices((50, 80)) * 8.0
    met = shapely.intersects(shapely.box(80, 40, 160, 120), shapely.box(x, y, x + 8, y + 8))
    with open_image(path) as image:
        np.testing.assert_array_equal(cells_inside(written, image, 8), met)
        crs["properties"] = {"name": "EPSG:4326"}
        written.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [mask]}))
        with pytest.raises(ValueError, match="is in EPSG:4326, but its image is in EPSG:32618"):
            cells_inside(written, image, 8)


@given(st.integers(0, 1000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_windows_that_touch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.random((20, 30)) < 0.03
    plan = Plan(rng.integers(0, 20, (40, 2)), rng.choice([1, 2, 8], (40, 2)), np.ones(40, np.float32), (20, 30))
    expected = [i for i in range(40) if (plan.take(np.array([i])).covered() & cells).any()]
    assert plan.touching(cells).tolist() == expected


@pytest.mark.parametrize("options", [{"budget": 1.0}, {"threshold": 0.5}, {"budget": 0.8, "audit": 0.1}])
def test_only_what_is_inside_is_analysed(make_image: MakeImage, detector: Model, options: dict[str, Any]) -> None:
    pixels = make_image(200, 300, seed=2)
    mask = np.zeros((200, 300), bool)
    mask[40:120, 80:240] = True
    whole = analyze(pixels, detector, precision="fp32", **options)
    part = analyze(pixels, detector, precision="fp32", mask=mask, **options)
    assert not part.refined[:5].any()
    assert not part.refined[:, 30:].any()
    assert part.cost.cells == 200
    assert part.cost.exhaustive_macs == detector.refiner.macs(10, 20)
    if options == {"budget": 1.0}:
        assert part.refined.sum() == 200
        assert 0 < len(part.regions) < len(whole.regions)
        middle = [(int(y // 8), int(x // 8)) for y, x in (r.full_centre for r in part.regions)]
        assert np.mean([part.refined[min(y, 24), min(x, 37)] for y, x in middle]) > 0.7
    if part.audit is not None:
        assert part.audit.recall_interval[1] <= 1


@pytest.mark.usefixtures("plain_pictures")
def test_masks_of_a_batch(tmp_path: Path, make_image: MakeImage, detector: Model) -> None:
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), make_image(160, 160))
        mask = np.zeros((160, 160), np.uint8)
        mask[: 80 if name == "a" else 160] = 255
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    made = [
        analyze_folder(tmp_path / "in", tmp_path / "out", detector, workers=0, mask=tmp_path / "masks")
        for _ in range(2)
    ]
    assert made[0].ok
    assert made[1].before == 2
    assert [record.facts["cells"] for record in made[0].records] == [200, 400]
    items = with_masks(find_items(tmp_path / "in"), tmp_path / "masks" / "a.png")
    assert {item.mask for item in items} == {str(tmp_path / "masks" / "a.png")}
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no mask named as .*b.png; masks of 1 image\(s\) are missing"):
        with_masks(find_items(tmp_path / "in"), tmp_path / "masks")


def test_a_mask_that_is_a_zarr(tmp_path: Path, make_image: MakeImage, detector: Model) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), make_image(160, 160))
    mask = np.zeros((160, 160, 1), np.uint8)
    mask[:80] = 255
    convert(open_image(mask), tmp_path / "mask.zarr")
    batch = analyze_folder(tmp_path / "in", tmp_path / "out", detector, workers=0, mask=tmp_path / "mask.zarr")
    assert batch.records[0].facts["cells"] == 200


@pytest.mark.parametrize("fixture", ["detector", "zoom_detector"])
def test_nothing_is_scanned_where_nothing_is_inside(
    fixture: str, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("coarse2fine.steps.scan_blocks.BLOCK_PIXELS", 64)
    model: Model = request.getfixturevalue(fixture)
    image = make_image(640, 640)
    mask = np.zeros((640, 640), bool)
    mask[:100, 400:] = True
    whole, part = (analyze(image, model, mask=each, precision="fp32") for each in (None, mask))
    assert 0 < part.cost.scan_macs < 0.3 * whole.cost.scan_macs
    inside = cells_inside(mask, part.image, part.cell)
    np.testing.assert_allclose(part.interest[inside], whole.interest[inside], atol=1e-6)
    assert not part.interest[~inside].any()


def test_nothing_outside_is_looked_at_more_closely(make_image: MakeImage, zoom_detector: Model) -> None:
    image = make_image(1280, 1280)
    mask = np.zeros((1280, 1280), bool)
    mask[:100, 1100:] = True
    whole, part = (analyze(image, zoom_detector, mask=each, precision="fp32") for each in (None, mask))
    assert part.cost.scan_macs < 0.5 * whole.cost.scan_macs
    inside = cells_inside(mask, part.image, part.cell)
    np.testing.assert_allclose(part.interest[inside], whole.interest[inside], atol=1e-6)
