"""Planes cut into boxes."""

from __future__ import annotations

from collections.abc import Iterator

from .geometry import Box, ceil_div


def even(length: int, most: int) -> int:
    """Size of the fewest equal pieces of at most `most` that cover `length`: blocks that waste little at the edge."""
    return ceil_div(length, ceil_div(length, most))


def blocks(height: int, width: int, size: int | tuple[int, int]) -> Iterator[Box]:
    """Cut a plane into boxes, row by row; those at the far edges are clipped to the plane.

    Parameters
    ----------
    height, width : int
        Size of the plane in its pixels.
    size : int or tuple of int
        Side of a square box, or height and width of a box, in the same pixels.

    Yields
    ------
    Box
        Boxes that cover each pixel of the plane once.

    Raises
    ------
    ValueError
        If `size` is not positive.
    """
    step_y, step_x = (size, size) if isinstance(size, int) else size
    if min(step_y, step_x) < 1:
        raise ValueError(f"expected a block size of at least 1 pixel, got {size}")
    for y in range(0, height, step_y):
        for x in range(0, width, step_x):
            yield Box(y, x, min(y + step_y, height), min(x + step_x, width))
