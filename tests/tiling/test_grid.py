"""Tiles of a plane against plain geometry."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import TileGrid, even

quick = settings(max_examples=60, deadline=None, derandomize=True)
sides = st.integers(1, 60)


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    shape = draw(sides), draw(sides)
    return TileGrid(draw(sides), draw(sides), shape)


def cover(height: int, width: int, boxes: list[Box]) -> NDArray[np.int64]:
    """How many boxes hold each pixel."""
    count = np.zeros((height, width), dtype=np.int64)
    for box in boxes:
        assert min(box.y0, box.x0) >= 0
        assert box.y1 <= height
        assert box.x1 <= width
        count[box.y0 : box.y1, box.x0 : box.x1] += 1
    return count


@quick
@given(grids())
def test_tiles_cover_the_plane_once_row_by_row(grid: TileGrid) -> None:
    tiles = list(grid)
    assert (cover(grid.height, grid.width, [tile.box for tile in tiles]) == 1).all()
    assert len(grid) == len(tiles) == grid.rows * grid.columns
    assert [(tile.row, tile.column) for tile in tiles] == sorted((tile.row, tile.column) for tile in tiles)
    for tile in tiles:
        assert tile.box.y0 == tile.row * grid.tile_shape[0]
        assert tile.box.x0 == tile.column * grid.tile_shape[1]


@quick
@given(grids(), st.tuples(*[st.integers(-70, 130)] * 2), sides, sides)
def test_over_is_every_tile_that_the_box_meets(
    grid: TileGrid, corner: tuple[int, int], height: int, width: int
) -> None:
    box = Box(*corner, corner[0] + height, corner[1] + width)
    assert grid.over(box) == [tile for tile in grid if tile.box.intersect(box)]


@quick
@given(st.integers(1, 5000), st.integers(1, 500))
def test_even_pieces_are_few_and_waste_little(length: int, most: int) -> None:
    size = even(length, most)
    count = math.ceil(length / most)
    assert size <= most
    assert (count * size) - length < count
    assert math.ceil(length / size) <= count
