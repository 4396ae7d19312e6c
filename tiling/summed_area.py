"""Sums over rectangles of a map, each by four look-ups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def summed_area(cells: NDArray[np.bool_] | NDArray[np.int32]) -> NDArray[np.int32]:
    """Summed-area table of a map, exact below 2^31.

    Parameters
    ----------
    cells : ndarray, (h, w)

    Returns
    -------
    ndarray, int32, (h + 1, w + 1)
        Sum of the cells above and to the left of each corner.
    """
    # In place and in 32 bits, to save memory: a gigapixel image has 16 million cells of 8 pixels.
    table = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), np.int32)
    np.cumsum(cells, axis=0, dtype=np.int32, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    return table


def rectangle_sums(table: NDArray[np.int32], low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.int32]:
    """Sums of rectangles of cells by a summed-area table.

    Parameters
    ----------
    table : ndarray, int32, (h + 1, w + 1)
        See `summed_area`.
    low, high : ndarray, integer, (n, 2)
        First row and column of each rectangle, and those after its last.

    Returns
    -------
    ndarray, int32, (n,)
    """
    (y0, x0), (y1, x1) = low.T, high.T
    sums: NDArray[np.int32] = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return sums
