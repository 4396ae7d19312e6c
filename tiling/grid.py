"""Division of planes into boxes: plain blocks, and numbered tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from .geometry import Box, ceil_div


def even(length: int, most: int) -> int:
    """Size, at most `most`, of the fewest equal blocks that cover `length` with little waste at the edge."""
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


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a `TileGrid`.

    Parameters
    ----------
    row, column : int
        Place in the grid.
    box : Box
        The tile's pixels, clipped to the plane; the boxes of a grid cover each pixel once.
    """

    row: int
    column: int
    box: Box


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles of a plane, row by row; has a length and is iterable.

    Parameters
    ----------
    height, width : int
        Size of the plane in its pixels.
    tile_shape : tuple of int
        Height and width of a tile in the same pixels; those at the far edges are clipped to the plane.
    """

    height: int
    width: int
    tile_shape: tuple[int, int]

    @property
    def rows(self) -> int:
        return ceil_div(self.height, self.tile_shape[0])

    @property
    def columns(self) -> int:
        return ceil_div(self.width, self.tile_shape[1])

    def __len__(self) -> int:
        return self.rows * self.columns

    def __iter__(self) -> Iterator[Tile]:
        return (self._tile(*place) for place in product(range(self.rows), range(self.columns)))

    def over(self, box: Box) -> list[Tile]:
        """Tiles that a box of the plane overlaps, row by row; none if it lies outside."""
        inner = box.intersect(Box(0, 0, self.height, self.width))
        if inner is None:
            return []
        step_y, step_x = self.tile_shape
        rows = range(inner.y0 // step_y, ceil_div(inner.y1, step_y))
        columns = range(inner.x0 // step_x, ceil_div(inner.x1, step_x))
        return [self._tile(row, column) for row, column in product(rows, columns)]

    def _tile(self, row: int, column: int) -> Tile:
        y, x = row * self.tile_shape[0], column * self.tile_shape[1]
        y1, x1 = min(y + self.tile_shape[0], self.height), min(x + self.tile_shape[1], self.width)
        return Tile(row, column, Box(y, x, y1, x1))
