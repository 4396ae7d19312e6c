"""Regions painted chunk by chunk, against one painting of the whole by scikit-image and by loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.draw import polygon

from coarse2fine.region import Region
from coarse2fine.results.rasterize import fill_outline, region_chunks
from coarse2fine.tiling.geometry import Box

SHAPE = (70, 90)


def painted(regions: list[Region], chunk: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint32]:
    whole = np.zeros(shape, np.uint32)
    for box, numbers in region_chunks(regions, shape, chunk):
        assert whole[box.y0 : box.y1, box.x0 : box.x1].shape == numbers.shape
        assert not whole[box.y0 : box.y1, box.x0 : box.x1].any()  # each chunk once
        whole[box.y0 : box.y1, box.x0 : box.x1] = numbers
    return whole


def outlined(corners: NDArray[np.float64]) -> Region:
    (y0, x0), (y1, x1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    outline = tuple((float(y), float(x)) for y, x in corners)
    return Region("a", 0.5, (y0, x0, y1, x1), outline)


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([1, 7, 16, 64, 128]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_boxes_are_painted_as_by_a_loop(seed: int, count: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 1, (count, 2)) * (np.array(SHAPE) - 2)
    high = np.minimum(low + rng.choice([0.3, 2.0, 30.0], (count, 1)) * rng.uniform(0.1, 1, (count, 2)), SHAPE)
    regions = [Region("a", 0.5, (y0, x0, y1, x1)) for (y0, x0), (y1, x1) in zip(low, high, strict=True)]
    expected = np.zeros(SHAPE, np.uint32)
    y, x = np.indices(SHAPE) + 0.5
    for number, region in reversed(list(enumerate(regions, 1))):
        y0, x0, y1, x1 = region.full_box
        cy, cx = region.full_centre
        rows, columns = (y >= y0) & (y < y1), (x >= x0) & (x < x1)
        rows = rows if rows.any() else y == int(cy) + 0.5
        columns = columns if columns.any() else x == int(cx) + 0.5
        expected[rows & columns] = number
    np.testing.assert_array_equal(painted(regions, chunk), expected)


@given(st.integers(0, 10**6), st.integers(3, 12), st.sampled_from([9, 32, 128]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_outlines_are_painted_as_by_scikit_image(seed: int, corners: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(5, 34, corners)
    points = np.stack([35 + radius * np.sin(angle), 45 + radius * np.cos(angle)], axis=1)
    expected = np.zeros(SHAPE, np.uint32)
    expected[polygon(points[:, 0] - 0.5, points[:, 1] - 0.5, SHAPE)] = 1
    np.testing.assert_array_equal(painted([outlined(points)], chunk), expected)


def test_an_outline_of_cells_fills_whole_cells() -> None:
    corners = np.array([(8, 8), (8, 24), (16, 24), (16, 16), (40, 16), (40, 8)], np.float64)
    expected = np.zeros(SHAPE, np.uint32)
    expected[8:16, 8:24] = expected[8:40, 8:16] = 1
    np.testing.assert_array_equal(painted([outlined(corners)], 16), expected)
    np.testing.assert_array_equal(fill_outline(corners, Box(10, 12, 20, 20)), expected[10:20, 12:20] > 0)


def test_only_chunks_that_a_region_meets_are_made() -> None:
    regions = [Region("a", 0.5, (3.0, 3.0, 9.0, 9.0)), Region("b", 0.5, (90_000.0, 95_000.0, 90_300.0, 95_010.0))]
    boxes = [box for box, _ in region_chunks(regions, (100_000, 100_000), 1024)]
    assert boxes == [Box(0, 0, 1024, 1024), *(Box(y, 94208, y + 1024, 95232) for y in (89088, 90112))]
    assert not list(region_chunks([], (10, 10), 4))


@pytest.mark.parametrize("chunk", [16, 1024])
def test_the_surest_is_on_top(chunk: int) -> None:
    first, second = Region("a", 0.9, (0, 0, 20, 20)), Region("b", 0.5, (10, 10, 30, 30))
    whole = painted([first, second], chunk)
    assert whole[15, 15] == 1
    assert whole[25, 25] == 2
