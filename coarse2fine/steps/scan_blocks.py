"""Blocks in which a cascade stage scans an image, and what they cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coarse2fine.cascade import CascadeStage
from coarse2fine.model import Model
from coarse2fine.steps.cell_maps import any_of
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.grid import blocks, even

BLOCK_PIXELS = 1024
# Sides of smaller blocks that are tried for a part of an image; reading a block counts as scanning 128**2 pixels more.
_PART_PIXELS, _READING_PIXELS = (512, 256, 128, 64), 128**2


def scan_macs(model: Model, full_shape: tuple[int, int], inside: NDArray[np.bool_] | None = None) -> int:
    """Multiply-adds of the first cascade stage on an image, halos included: the least of a scan."""
    level = model.levels[0]
    (height, width), grid = scan_blocks(model, level, full_shape, inside)
    return len(grid) * level.net.spec.macs(height, width)


def scan_blocks(
    model: Model, level: CascadeStage, full_shape: tuple[int, int], inside: NDArray[np.bool_] | None
) -> tuple[tuple[int, int], list[Box]]:
    """Shape of the blocks, and the blocks with cells inside, in cells of the stage.

    Smaller blocks cost less if the part to analyse is scattered; the price counts the separate reads too.
    """
    cell_shape, spec = level.cell_shape(full_shape), level.net.spec
    if inside is None or inside.all():
        shape = _block_shape(level, cell_shape, BLOCK_PIXELS)
        return shape, list(blocks(*cell_shape, shape))
    ratio = level.cell // model.geometry.cell
    own = any_of(inside, ratio, ratio)
    rows, columns = (np.flatnonzero(own.any(axis=axis)) for axis in (1, 0))
    y0, x0 = (int(first[0]) // spec.align * spec.align for first in (rows, columns))
    part = own[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    extent = (part.shape[0], part.shape[1])
    sides = (BLOCK_PIXELS, *(side for side in _PART_PIXELS if side < BLOCK_PIXELS))
    reading = spec.macs_per_cell * _READING_PIXELS / spec.stride**2

    def price(shape: tuple[int, int]) -> float:
        return int(any_of(part, *shape).sum()) * (spec.macs(*shape) + reading)

    shape = min((_block_shape(level, extent, side) for side in sides), key=price)
    grid = zip(blocks(*extent, shape), any_of(part, *shape).ravel().tolist(), strict=True)
    return shape, [box.shift(y0, x0) for box, holds in grid if holds]


def _block_shape(level: CascadeStage, cell_shape: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Cells (height, width) of a block of at most about `pixels` pixels a side."""
    spec = level.net.spec
    height, width = (ceil_div(even(n, max(8, pixels // spec.stride)), spec.align) * spec.align for n in cell_shape)
    return height, width
