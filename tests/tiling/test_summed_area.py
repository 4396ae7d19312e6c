"""Sums of rectangles equal those of the cells in them."""

from __future__ import annotations

import numpy as np

from coarse2fine.tiling.summed_area import rectangle_sums, summed_area


def test_sums_of_rectangles() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(-3, 9, (7, 5)).astype(np.int32)
    low = rng.integers(0, (8, 6), (50, 2))
    high = np.minimum(low + rng.integers(0, 5, (50, 2)), cells.shape)
    expected = [cells[y0:y1, x0:x1].sum() for (y0, x0), (y1, x1) in zip(low, high, strict=True)]
    np.testing.assert_array_equal(rectangle_sums(summed_area(cells), low, high), expected)
    there = summed_area(cells > 0)
    assert there.shape == (8, 6)
    assert there.dtype == np.int32
    assert there[-1, -1] == (cells > 0).sum()
    assert not summed_area(np.zeros((0, 4), np.bool_)).any()
