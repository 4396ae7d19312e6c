"""Planes cut into boxes."""

from __future__ import annotations

from collections.abc import Iterator

from .geometry import Box


def blocks(height: int, width: int, size: int) -> Iterator[Box]:
    """Cut a plane into square boxes, row by row; those at the far edges are clipped to the plane.

    Parameters
    ----------
    height, width : int
        Size of the plane in its pixels.
    size : int
        Side of a box in the same pixels.

    Yields
    ------
    Box
        Boxes that cover each pixel of the plane once.

    Raises
    ------
    ValueError
        If `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"expected a block size of at least 1 pixel, got {size}")
    for y in range(0, height, size):
        for x in range(0, width, size):
            yield Box(y, x, min(y + size, height), min(x + size, width))
