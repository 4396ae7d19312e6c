"""Division of planes into boxes: plain blocks, and the tiles of a level, which follow its stored chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Self

from .geometry import Box, Level, ceil_div

COALESCED_PIXELS = 4096 * 4096
"""Most pixels, halo included, of a rectangle that tiles are merged into."""

_RATIO_PRECISION = 2**20


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
        The tile's own pixels, clipped to the plane; the boxes of a grid cover each pixel once.
    padded : Box
        `box` with the halo on every side; may reach outside the plane.
    """

    row: int
    column: int
    box: Box
    padded: Box


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles of one level, row by row; has a length and is iterable.

    Parameters
    ----------
    height, width : int
        Size of the level in its pixels.
    tile_shape : tuple of int
        Height and width of a tile in the same pixels; those at the far edges are clipped to the level.
    halo : int
        Pixels of context around a tile.
    downsample : tuple of float
        Full-resolution pixels per pixel of the level (y, x); relates the grids of two levels.

    Raises
    ------
    ValueError
        If a size or `downsample` is not positive, or `halo` is negative.
    """

    height: int
    width: int
    tile_shape: tuple[int, int]
    halo: int = 0
    downsample: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"expected a plane of at least 1 x 1 pixels, got {self.height} x {self.width}")
        if min(self.tile_shape) < 1:
            raise ValueError(f"expected tiles of at least 1 x 1 pixels (height, width), got {self.tile_shape}")
        if self.halo < 0:
            raise ValueError(f"expected a halo of at least 0 pixels, got {self.halo}")
        if not all(math.isfinite(value) and value > 0 for value in self.downsample):
            raise ValueError(f"expected a positive downsample (y, x), got {self.downsample}")

    @classmethod
    def of(cls, level: Level, size: int = 512, halo: int = 0) -> Self:
        """Cut a level into tiles that follow its stored chunks.

        Parameters
        ----------
        level : Level
        size : int
            Desired side, in pixels of the level. A tile's side is the nearest whole number of chunks (the larger of
            two equally near), at least one chunk and at most the level.
        halo : int
            Pixels of context around a tile.

        Raises
        ------
        ValueError
            If `size` is not positive or `halo` is negative.
        """
        if size < 1:
            raise ValueError(f"expected a tile size of at least 1 pixel, got {size}")
        side_y, side_x = (max(1, (2 * size + chunk) // (2 * chunk)) * chunk for chunk in level.chunk)
        shape = min(side_y, level.height), min(side_x, level.width)
        return cls(level.height, level.width, shape, halo, (level.downsample_y, level.downsample_x))

    @property
    def rows(self) -> int:
        return ceil_div(self.height, self.tile_shape[0])

    @property
    def columns(self) -> int:
        return ceil_div(self.width, self.tile_shape[1])

    def __len__(self) -> int:
        return self.rows * self.columns

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(*place) for place in product(range(self.rows), range(self.columns)))

    def tile(self, row: int, column: int) -> Tile:
        """The tile at a place of the grid.

        Raises
        ------
        IndexError
            If there is no such place.
        """
        if not (0 <= row < self.rows and 0 <= column < self.columns):
            raise IndexError(
                f"expected a row below {self.rows} and a column below {self.columns}, got {row} and {column}"
            )
        box = self._span(row, column, 1, 1)
        return Tile(row, column, box, box.expand(self.halo))

    def over(self, box: Box) -> list[Tile]:
        """Tiles that a box of the level overlaps, halos aside, row by row; none if it lies outside."""
        inner = box.intersect(Box(0, 0, self.height, self.width))
        if inner is None:
            return []
        step_y, step_x = self.tile_shape
        rows = range(inner.y0 // step_y, ceil_div(inner.y1, step_y))
        columns = range(inner.x0 // step_x, ceil_div(inner.x1, step_x))
        return [self.tile(row, column) for row, column in product(rows, columns)]

    def neighbours(self, tile: Tile) -> list[Tile]:
        """Up to eight tiles around a tile of this grid, row by row.

        Raises
        ------
        ValueError
            If the tile is not of this grid.
        """
        self._check_own(tile)
        rows = range(max(0, tile.row - 1), min(self.rows, tile.row + 2))
        columns = range(max(0, tile.column - 1), min(self.columns, tile.column + 2))
        around = product(rows, columns)
        return [self.tile(*place) for place in around if place != (tile.row, tile.column)]

    def children(self, tile: Tile, finer: TileGrid) -> list[Tile]:
        """Tiles of a finer level of the same image that overlap a tile of this grid.

        The children of all tiles are all tiles of the finer level, even if the sizes of the two levels are not
        integer multiples of each other: tiles at the far edges reach to the far edges of the finer level.

        Parameters
        ----------
        tile : Tile
            Tile of this grid.
        finer : TileGrid
            Grid whose `downsample` is at most this grid's.

        Returns
        -------
        list of Tile
            Row by row; at least one.

        Raises
        ------
        ValueError
            If the tile is not of this grid, or the other grid's level is coarser.
        """
        self._check_own(tile)
        if any(own < other for own, other in zip(self.downsample, finer.downsample, strict=True)):
            raise ValueError(
                f"expected a grid of a level finer than downsample {self.downsample}, got {finer.downsample}"
            )
        box = tile.box
        ratio_y, ratio_x = (_ratio(*pair) for pair in zip(self.downsample, finer.downsample, strict=True))
        y0, y1 = _scaled(box.y0, box.y1, ratio_y, self.height, finer.height)
        x0, x1 = _scaled(box.x0, box.x1, ratio_x, self.width, finer.width)
        return finer.over(Box(y0, x0, y1, x1))

    def coalesce(self, tiles: Iterable[Tile], *, max_pixels: int = COALESCED_PIXELS) -> list[Box]:
        """Merge neighbouring tiles into larger rectangles, so that fewer halos are read.

        Greedy: at the first remaining tile in row order, the rectangle that saves the most halo pixels is taken. Time
        grows about linearly with the number of tiles.

        Parameters
        ----------
        tiles : iterable of Tile
            Tiles of this grid, in any order; duplicates count once.
        max_pixels : int
            Most pixels of a rectangle with its halo. A larger tile stays alone.

        Returns
        -------
        list of Box
            Disjoint boxes without halo that cover exactly the tiles' boxes; the order depends only on the tiles.
            `over` gives the tiles of each, ``expand(grid.halo)`` the box to read.

        Raises
        ------
        ValueError
            If `max_pixels` is not positive, or a tile is not of this grid.
        """
        if max_pixels < 1:
            raise ValueError(f"expected max_pixels of at least 1, got {max_pixels}")
        free: set[tuple[int, int]] = set()
        for tile in tiles:
            self._check_own(tile)
            free.add((tile.row, tile.column))
        merged = []
        for row, column in sorted(free):
            if (row, column) in free:
                rows, columns = self._best_span(free, row, column, max_pixels)
                free.difference_update(product(range(row, row + rows), range(column, column + columns)))
                merged.append(self._span(row, column, rows, columns))
        return merged

    def _check_own(self, tile: Tile) -> None:
        inside = 0 <= tile.row < self.rows and 0 <= tile.column < self.columns
        if not inside or tile != self.tile(tile.row, tile.column):
            raise ValueError(f"expected a tile of {self}, got {tile}; take it from this grid")

    def _span(self, row: int, column: int, rows: int, columns: int) -> Box:
        """The box of a rectangle of tiles, clipped to the plane."""
        step_y, step_x = self.tile_shape
        y1, x1 = min((row + rows) * step_y, self.height), min((column + columns) * step_x, self.width)
        return Box(row * step_y, column * step_x, y1, x1)

    def _best_span(self, free: set[tuple[int, int]], row: int, column: int, max_pixels: int) -> tuple[int, int]:
        """Rows and columns of the rectangle of free tiles at a corner that saves the most halo pixels.

        Each row examined is no wider than the rectangle that it would complete, so the search costs little more
        than the tiles that are taken.
        """
        best, most = (1, 1), (0, 1)
        columns = self.columns - column
        for rows in range(1, self.rows - row + 1):
            columns = min(columns, self._columns_within(row, column, rows, max_pixels))
            columns = next((n for n in range(columns) if (row + rows - 1, column + n) not in free), columns)
            if columns < 1:
                break
            # Ties go to more tiles: without a halo nothing is saved.
            gain = self._saved_pixels(self._span(row, column, rows, columns), rows, columns), rows * columns
            if gain > most:
                best, most = (rows, columns), gain
        return best

    def _columns_within(self, row: int, column: int, rows: int, max_pixels: int) -> int:
        """Number of columns from `column` on that `max_pixels` allows for `rows` rows with halo; may be negative."""
        height = self._span(row, column, rows, 1).height + 2 * self.halo
        x1 = column * self.tile_shape[1] + max_pixels // height - 2 * self.halo
        return (self.columns if x1 >= self.width else x1 // self.tile_shape[1]) - column

    def _saved_pixels(self, box: Box, rows: int, columns: int) -> int:
        """Pixels saved by reading a rectangle of tiles with one halo instead of each tile with its own."""
        halos = 2 * self.halo
        return (box.height + rows * halos) * (box.width + columns * halos) - box.expand(self.halo).area


def _ratio(coarse: float, fine: float) -> Fraction:
    """Exact ratio of two downsamples, each the float of a ratio of integer sizes."""
    return (Fraction(coarse) / Fraction(fine)).limit_denominator(_RATIO_PRECISION)


def _scaled(start: int, stop: int, ratio: Fraction, length: int, finer_length: int) -> tuple[int, int]:
    """Whole pixels of a finer level that cover an interval of a level."""
    finer_start = start * ratio.numerator // ratio.denominator
    finer_stop = finer_length if stop == length else ceil_div(stop * ratio.numerator, ratio.denominator)
    return min(finer_start, finer_length - 1), min(finer_stop, finer_length)
