"""The refined part of an image for other engines, read back as our own mask."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from coarse2fine.annotations.read import read_annotations
from coarse2fine.results.place import write_mask
from coarse2fine.steps.mask import cells_inside
from coarse2fine.tiling.opening import open_image


@pytest.mark.parametrize("suffix", ["png", "geojson"])
def test_it_is_read_back_as_these_cells(tmp_path: Path, suffix: str) -> None:
    cell = 16
    for seed in range(20):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(40, 130, 2).tolist()
        refined = rng.random((-(-height // cell), -(-width // cell))) < 0.4
        refined[0, 0] = True
        path = write_mask(tmp_path / f"place.{suffix}", refined, cell, (height, width))
        with open_image(np.zeros((height, width, 3), np.uint8)) as image:
            inside = cells_inside(path, image, cell)
        # A mask takes in all cells that it touches; a sliver of one at a far edge may lie within one pixel.
        whole = (slice(0, height // cell), slice(0, width // cell))
        near = cv2.dilate(refined.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert inside[whole][refined[whole]].all()
        assert not inside[~near].any()


def test_polygons_are_annotations_within_the_image(tmp_path: Path) -> None:
    refined = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], bool)
    path = write_mask(tmp_path / "place.geojson", refined, 10, (28, 25))
    regions = read_annotations(path, full_shape=(28, 25)).regions
    assert sum(region.area for region in regions) == 300 + 8 * 5
    assert shapely.union_all(list(regions)).bounds == (0, 0, 25, 28)


def test_pixels_keep_the_extent_of_the_image(tmp_path: Path) -> None:
    refined = np.zeros((3, 9), bool)
    refined[1, 4] = True
    mask = cv2.imread(str(write_mask(tmp_path / "place.png", refined, 100, (300, 850))), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    scaled = cv2.resize(mask, (850, 300), interpolation=cv2.INTER_NEAREST)
    wanted = np.zeros((300, 850), np.uint8)
    wanted[100:200, 400:500] = 255
    assert (scaled == wanted).mean() > 0.98
    with pytest.raises(ValueError, match=r"png or \.geojson"):
        write_mask(tmp_path / "place.tif", refined, 100, (300, 850))
