"""Composites: what is annotated stays where it is seen, however a tile is laid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine import open_image
from coarse2fine.annotations.read import AnnotatedArea, read_annotations
from coarse2fine.bench.composite import Composition, Tile, compose
from coarse2fine.bench.data import BenchScene
from coarse2fine.bench.ground import EmptyGround, find_patches
from coarse2fine.tiling.geometry import Box

GREY = 90


def feature(label: str, geometry: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": label}}}


def rectangle(label: str, y0: float, x0: float, y1: float, x1: float) -> dict[str, Any]:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return feature(label, {"type": "Polygon", "coordinates": [ring]})


def scene(seed: int, *more: dict[str, Any], side: int = 320, objects: int = 12) -> BenchScene:
    """Grey ground with bright rectangles, each annotated, and each of a brightness of its own."""
    rng = np.random.default_rng(seed)
    pixels = np.full((side, side + 40, 1), GREY, np.uint8)
    features = list(more)
    for value in range(objects):
        y, x = int(rng.integers(side - 30)), int(rng.integers(side // 2 - 30))
        h, w = rng.integers(4, 30, 2).tolist()
        pixels[y : y + h, x : x + w] = 150 + 5 * value
        features.append(rectangle(f"{150 + 5 * value}", y, x, y + h, x + w))
    annotations = {"type": "FeatureCollection", "features": features}
    truth = read_annotations(annotations, full_shape=pixels.shape[:2])
    return BenchScene(f"scene-{seed}", pixels, annotations, truth)


def made(folder: Path, scenes: Sequence[BenchScene], composition: Composition, **options: Any) -> BenchScene:
    return compose(scenes, composition, folder / "made.zarr", **{"rotate": True, "seed": 0, **options})


def read(made: BenchScene) -> NDArray[np.uint8]:
    with open_image(made.image) as image:
        return image.read(Box(0, 0, image.height, image.width))[..., 0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.integers(0, 50), st.integers(0, 60), st.integers(1, 70), st.integers(0, 10**6))
def test_a_tile_moves_points_as_it_moves_pixels(orientation: int, y: int, x: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (120, 131, 3), np.uint8)
    tile = Tile(0, Box(y, x, y + side, x + side), orientation, Box(7, 11, 7 + side, 11 + side))
    rows, columns = rng.integers(0, side, (2, 20))
    moved = tile.points(np.stack([x + columns + 0.5, y + rows + 0.5], axis=1))
    j, i = (np.floor(moved) - (11, 7)).astype(int).T
    np.testing.assert_array_equal(tile.pixels(pixels)[i, j], pixels[y + rows, x + columns])


@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize("rotate", [True, False])
def test_annotations_lie_on_the_pixels_they_are_of(tmp_path: Path, density: float, rotate: bool) -> None:
    result = made(tmp_path, [scene(1), scene(2)], Composition(1.0, density), rotate=rotate)
    pixels = read(result)
    assert pixels.size >= 1e6
    assert len(result.truth.objects) > 30
    known = AnnotatedArea(result.truth).contains
    for o in result.truth.objects:
        y0, x0, y1, x1 = (round(v) for v in o.full_bounds)
        inside = pixels[y0:y1, x0:x1]
        rows, columns = np.indices(inside.shape).reshape(2, -1) + 0.5
        counted = known(rows + y0, columns + x0).reshape(inside.shape)
        # Later objects may lie over earlier ones, and are brighter; where a tile fades nothing counts.
        assert (inside[counted] >= int(o.label)).all()
    bright = pixels > 140
    for o in result.truth.objects:
        y0, x0, y1, x1 = (round(v) for v in o.full_bounds)
        bright[y0:y1, x0:x1] = False
    y, x = np.argwhere(bright).astype(np.float64).T + 0.5
    assert not known(y, x).any()


def test_the_way_up_is_kept_where_it_matters(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8)[:, None, None] * np.ones((1, 64, 1), np.uint8)
    annotations = {"type": "FeatureCollection", "features": [rectangle("a", 4, 4, 20, 20)]}
    ramp = BenchScene("ramp", pixels, annotations, read_annotations(annotations))
    found = read(made(tmp_path, [ramp], Composition(0.03), rotate=False))
    np.testing.assert_array_equal(found, np.tile(pixels[..., 0], (found.shape[0] // 64, found.shape[1] // 64)))


def test_every_scene_is_used_and_a_seed_gives_the_same(tmp_path: Path) -> None:
    scenes = [scene(i) for i in range(3)]
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        results.append(read(made(tmp_path / name, scenes, Composition(1.0, 0.5), seed=seed)))
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_density_makes_objects_rare_and_ground_holds_none(tmp_path: Path) -> None:
    scenes = [scene(1), scene(2)]
    dense, rare = (
        made(tmp_path / name, scenes, Composition(2.0, density)) for name, density in (("dense", 1.0), ("rare", 0.1))
    )
    assert 0 < len(rare.truth.objects) < 0.3 * len(dense.truth.objects)
    pixels = read(rare)
    assert (pixels > 140).mean() < 0.3 * (read(dense) > 140).mean()
    assert (pixels == GREY).mean() > 0.9
    with open_image(rare.image) as image:
        assert image.format == "ome-zarr"
        assert image.levels[0].chunk == (256, 256)


def test_points_and_areas_move_along_and_cut_objects_are_ignored(tmp_path: Path) -> None:
    more = (
        feature("point", {"type": "Point", "coordinates": [200.5, 100.5]}),
        rectangle("Ignore*", 10, 200, 40, 240),
        rectangle("cut", 0, 250, 320, 360),  # a crop of 320 x 320 leaves 320 x 70 to 320 x 110 of it
    )
    result = made(tmp_path, [scene(1, *more, objects=0)], Composition(0.4))
    tiles = result.truth
    assert {o.label for o in tiles.objects} == {"point", "cut"}
    count = sum(o.label == "cut" for o in tiles.objects)
    assert sum(o.is_point for o in tiles.objects) == len(tiles.ignored) == count == 4


def test_where_scenes_were_annotated_in_part_the_rest_stays_unknown(tmp_path: Path) -> None:
    limited = scene(1, rectangle("Region*", 0, 0, 320, 180))
    result = made(tmp_path, [limited, scene(2)], Composition(0.5, 0.5))
    known = AnnotatedArea(result.truth).contains
    height, width = read(result).shape
    rng = np.random.default_rng(0)
    y, x = rng.uniform(0, height, 2000), rng.uniform(0, width, 2000)
    assert 0.5 < known(y, x).mean() < 0.95


def test_patches_of_ground_hold_nothing_that_is_known(tmp_path: Path) -> None:
    one = scene(1)
    pixels = np.asarray(one.image).copy()
    pixels[200:260, 250:300] = 20  # found by a net, annotated by nobody
    pixels[0:60, 300:360] = 30  # where nobody has looked
    assert isinstance(one.annotations, dict)
    features = [*one.annotations["features"], rectangle("Ignore*", 0, 300, 60, 360)]
    truth = read_annotations({"type": "FeatureCollection", "features": features})
    found = np.array([[200.0, 250, 260, 300]])
    patches = find_patches([pixels], [truth], [found], np.random.default_rng(0))
    assert len(patches) > 4
    assert (patches == GREY).all()
    with pytest.raises(ValueError, match="hold no place of 32 x 32 px without objects"):
        find_patches([pixels], [truth], [np.array([[0.0, 0, 320, 360]])], np.random.default_rng(0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 150), st.integers(1, 150), st.sampled_from([32, 48]))
def test_ground_is_the_same_whichever_box_is_painted(y: int, x: int, height: int, width: int, side: int) -> None:
    rng = np.random.default_rng(side)
    ground = EmptyGround(rng.integers(0, 256, (5, side, side, 3), np.uint8), range(1, 9), 3)
    whole = ground.paint(Box(0, 0, 560, 560))
    np.testing.assert_array_equal(ground.paint(Box(y, x, y + height, x + width)), whole[y : y + height, x : x + width])
    flat = EmptyGround(np.full((2, side, side, 1), 77, np.uint8), range(1, 9), 3)
    assert (flat.paint(Box(y, x, y + height, x + width)) == 77).all()


@pytest.mark.parametrize(("megapixels", "density"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_compositions_that_cannot_be(megapixels: float, density: float) -> None:
    with pytest.raises(ValueError, match=r"a composite needs a size|density is the share of tiles"):
        Composition(megapixels, density)
