"""Tiles of a level against plain geometry, and their merging into rectangles."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.geometry import Box, Level
from coarse2fine.tiling.grid import Tile, TileGrid, even

quick = settings(max_examples=60, deadline=None, derandomize=True)
sides = st.integers(1, 60)


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    shape = draw(sides), draw(sides)
    return TileGrid(draw(sides), draw(sides), shape, draw(st.integers(0, 9)))


def cover(height: int, width: int, boxes: list[Box]) -> NDArray[np.int64]:
    """How many boxes hold each pixel."""
    count = np.zeros((height, width), dtype=np.int64)
    for box in boxes:
        assert min(box.y0, box.x0) >= 0
        assert box.y1 <= height
        assert box.x1 <= width
        count[box.y0 : box.y1, box.x0 : box.x1] += 1
    return count


def level(height: int, width: int, chunk: tuple[int, int]) -> Level:
    return Level(1, height, width, 4.0, 4.0, chunk)


@quick
@given(grids())
def test_tiles_cover_the_plane_once_row_by_row(grid: TileGrid) -> None:
    tiles = list(grid)
    assert (cover(grid.height, grid.width, [tile.box for tile in tiles]) == 1).all()
    assert len(grid) == len(tiles) == grid.rows * grid.columns
    assert [(tile.row, tile.column) for tile in tiles] == sorted((tile.row, tile.column) for tile in tiles)
    for tile in tiles:
        assert grid.tile(tile.row, tile.column) == tile
        assert tile.box.y0 == tile.row * grid.tile_shape[0]
        assert tile.box.x0 == tile.column * grid.tile_shape[1]
        assert tile.padded == tile.box.expand(grid.halo)


@quick
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400), st.data())
def test_a_side_is_the_whole_number_of_chunks_nearest_to_the_size(
    height: int, width: int, size: int, data: st.DataObject
) -> None:
    chunk = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    grid = TileGrid.of(level(height, width, chunk), size, halo=3)
    assert (grid.height, grid.width, grid.halo, grid.downsample) == (height, width, 3, (4.0, 4.0))
    for side, length, step in zip(grid.tile_shape, (height, width), chunk, strict=True):
        if side < length:
            assert side % step == 0
            assert abs(side - size) == min(abs(n * step - size) for n in range(1, size // step + 2))
        else:
            assert side == length


@pytest.mark.parametrize(
    ("chunk", "size", "expected"),
    [
        ((256, 256), 512, (512, 512)),
        ((240, 240), 512, (480, 480)),
        ((1024, 1024), 512, (1024, 1024)),
        ((3000, 4000), 512, (3000, 4000)),  # stored as one chunk
        ((16, 4000), 512, (512, 4000)),  # strips
        ((512, 512), 256, (512, 512)),
        ((256, 256), 384, (512, 512)),  # of two equally near, the larger
        ((256, 256), 2**20, (3000, 4000)),
    ],
)
def test_sides_of_usual_files(chunk: tuple[int, int], size: int, expected: tuple[int, int]) -> None:
    assert TileGrid.of(level(3000, 4000, chunk), size).tile_shape == expected


@quick
@given(grids(), st.tuples(*[st.integers(-70, 130)] * 2), sides, sides)
def test_over_is_every_tile_that_the_box_meets(
    grid: TileGrid, corner: tuple[int, int], height: int, width: int
) -> None:
    box = Box(*corner, corner[0] + height, corner[1] + width)
    assert grid.over(box) == [tile for tile in grid if tile.box.intersect(box)]


@quick
@given(grids(), st.data())
def test_neighbours_are_the_tiles_that_touch(grid: TileGrid, data: st.DataObject) -> None:
    tile = data.draw(st.sampled_from(list(grid)))
    near = tile.box.expand(1)
    assert grid.neighbours(tile) == [other for other in grid if other != tile and other.box.intersect(near)]


def test_the_eight_neighbours() -> None:
    grid = TileGrid(50, 50, (10, 10))
    around = [(tile.row, tile.column) for tile in grid.neighbours(grid.tile(2, 2))]
    assert around == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2), (3, 3)]
    assert len(grid.neighbours(grid.tile(0, 4))) == 3


def test_children_of_aligned_tiles_are_four() -> None:
    coarse = TileGrid(1024, 768, (128, 128), halo=8, downsample=(8.0, 8.0))
    fine = TileGrid(2048, 1536, (128, 128), halo=8, downsample=(4.0, 4.0))
    for tile in coarse:
        rows, columns = (2 * tile.row, 2 * tile.row + 1), (2 * tile.column, 2 * tile.column + 1)
        expected = [fine.tile(row, column) for row in rows for column in columns]
        assert coarse.children(tile, fine) == expected


def test_children_on_the_same_level_with_other_tiles() -> None:
    coarse, fine = TileGrid(100, 100, (50, 50)), TileGrid(100, 100, (25, 10))
    assert coarse.children(coarse.tile(0, 1), fine) == fine.over(Box(0, 50, 50, 100))


@quick
@given(st.data())
def test_children_at_any_ratio_equal_exact_arithmetic(data: st.DataObject) -> None:
    """Sizes whose downsamples are no whole numbers, so that floats round them."""
    axes = []
    for _ in range(2):
        full = data.draw(st.integers(1, 200_000))
        fine = data.draw(st.integers(1, full))
        coarse = data.draw(st.integers(1, fine))
        # At most a few tiles an axis.
        sizes = [(n, data.draw(st.integers(-(-n // 5), n))) for n in (coarse, fine)]
        axes.append((sizes, (full / coarse, full / fine)))
    (y, downsample_y), (x, downsample_x) = axes
    grids = [TileGrid(y[n][0], x[n][0], (y[n][1], x[n][1]), 0, (downsample_y[n], downsample_x[n])) for n in range(2)]
    coarse_grid, fine_grid = grids
    ratio_y, ratio_x = Fraction(y[1][0], y[0][0]), Fraction(x[1][0], x[0][0])

    def meets(tile: Tile, finer: Tile) -> bool:
        a, b = tile.box, finer.box
        return a.y0 * ratio_y < b.y1 and b.y0 < a.y1 * ratio_y and a.x0 * ratio_x < b.x1 and b.x0 < a.x1 * ratio_x

    for tile in coarse_grid:
        assert coarse_grid.children(tile, fine_grid) == [finer for finer in fine_grid if meets(tile, finer)]


@quick
@given(st.integers(1, 400), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3, 4]), st.booleans(), sides, sides)
def test_children_are_all_finer_tiles_where_levels_lost_pixels(
    full: int, fine: int, more: int, up: bool, coarse_side: int, fine_side: int
) -> None:
    """Levels rounded up or down claim a whole downsample, and their edges do not meet."""
    lengths = [max(1, math.ceil(full / d) if up else full // d) for d in (fine, fine * more)]
    fine_grid = TileGrid(lengths[0], 5, (fine_side, 5), 0, (float(fine), 1.0))
    coarse_grid = TileGrid(lengths[1], 5, (coarse_side, 5), 0, (float(fine * more), 1.0))
    children = [coarse_grid.children(tile, fine_grid) for tile in coarse_grid]
    assert all(children)
    assert {tile for some in children for tile in some} == set(fine_grid)


@st.composite
def choices(draw: st.DrawFn) -> tuple[TileGrid, list[Tile], int]:
    """A grid, some of its tiles in any order, and a bound on the pixels of a rectangle."""
    grid = TileGrid(draw(sides), draw(sides), (draw(st.integers(1, 20)), draw(st.integers(1, 20))), draw(sides) // 8)
    share = draw(st.floats(0.05, 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chosen = [tile for tile in grid if rng.random() <= share]
    return grid, [chosen[i] for i in rng.permutation(len(chosen))], draw(st.integers(1, 5000))


@settings(quick, max_examples=150)
@given(choices())
def test_rectangles_cover_the_same_tiles_once_with_no_more_halo(choice: tuple[TileGrid, list[Tile], int]) -> None:
    grid, tiles, most = choice
    boxes = grid.coalesce(tiles, max_pixels=most)
    wanted = cover(grid.height, grid.width, [tile.box for tile in tiles])
    np.testing.assert_array_equal(cover(grid.height, grid.width, boxes), wanted)
    assert sum(box.expand(grid.halo).area for box in boxes) <= sum(tile.padded.area for tile in tiles)
    for box in boxes:
        assert box.expand(grid.halo).area <= most or len(grid.over(box)) == 1
    assert grid.coalesce(sorted(tiles, key=lambda tile: tile.box) * 2, max_pixels=most) == boxes


def test_a_whole_grid_becomes_one_rectangle() -> None:
    grid = TileGrid(1000, 1500, (256, 256), halo=32)
    assert grid.coalesce(grid) == [Box(0, 0, 1000, 1500)]
    assert grid.coalesce([]) == []


def test_squares_are_preferred_to_strips() -> None:
    """Four tiles in a square have less halo than four in a row."""
    grid = TileGrid(64, 64, (16, 16), halo=4)
    boxes = grid.coalesce(grid, max_pixels=40 * 40)
    assert boxes == [Box(y, x, y + 32, x + 32) for y in (0, 32) for x in (0, 32)]


def test_a_tile_beyond_the_bound_stays_alone() -> None:
    grid = TileGrid(32, 32, (16, 16), halo=4)
    assert grid.coalesce(grid, max_pixels=1) == [tile.box for tile in grid]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, (1, 1)), "at least 1 x 1 pixels, got 0 x 5"),
        ((5, 5, (1, 0)), r"tiles of at least 1 x 1 pixels .*got \(1, 0\)"),
        ((5, 5, (1, 1), -1), "halo of at least 0 pixels, got -1"),
        ((5, 5, (1, 1), 0, (1.0, 0.0)), "positive downsample"),
        ((5, 5, (1, 1), 0, (math.nan, 1.0)), "positive downsample"),
    ],
)
def test_grids_that_cannot_be(arguments: tuple[int, int, tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TileGrid(*arguments)


def test_requests_that_cannot_be() -> None:
    grid, other = TileGrid(20, 20, (10, 10)), TileGrid(20, 20, (5, 5))
    with pytest.raises(ValueError, match="tile size of at least 1 pixel, got 0"):
        TileGrid.of(level(8, 8, (4, 4)), 0)
    for row, column in ((-1, 0), (2, 0), (0, 2)):
        with pytest.raises(IndexError, match="a row below 2 and a column below 2"):
            grid.tile(row, column)
    for stranger in (other.tile(0, 0), other.tile(3, 3)):
        with pytest.raises(ValueError, match="take it from this grid"):
            grid.neighbours(stranger)
        with pytest.raises(ValueError, match="take it from this grid"):
            grid.children(stranger, other)
        with pytest.raises(ValueError, match="take it from this grid"):
            grid.coalesce([stranger])
    with pytest.raises(ValueError, match="finer than downsample"):
        grid.children(grid.tile(0, 0), TileGrid(10, 10, (5, 5), 0, (2.0, 2.0)))
    with pytest.raises(ValueError, match="max_pixels of at least 1, got 0"):
        grid.coalesce(grid, max_pixels=0)


@quick
@given(st.integers(1, 5000), st.integers(1, 500))
def test_even_pieces_are_few_and_waste_little(length: int, most: int) -> None:
    size = even(length, most)
    count = math.ceil(length / most)
    assert size <= most
    assert (count * size) - length < count
    assert math.ceil(length / size) <= count
