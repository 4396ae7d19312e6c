"""Training samples of the base: crops of the fitting scenes at many scales, with the refine net's output.

The refine net ran once on each scene and each rescaled copy (`coarse2fine.fitting.rescaled`); samples are cut from its
answers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.crops import Recipe, within
from coarse2fine.fitting.rescaled import Area
from coarse2fine.fitting.scene import PART, part_of, pooled
from coarse2fine.models.base import BaseSpec
from coarse2fine.preprocess import as_channels
from coarse2fine.progress import Tick
from coarse2fine.tiling.geometry import Box, ceil_div

_CROP, _CROP_PIXELS = 48, 192
_SAMPLES, _SAMPLES_A_STEP = 2000, 4
_HELD_SAMPLES = 64
# Streams of random numbers.
_LEARNING, _HELD = 1, 2
# Targets from which a cell counts as a find when crops are drawn.
_FOUND = 0.2


@dataclass(frozen=True, eq=False)
class Samples:
    """Crops with their targets.

    Parameters
    ----------
    pixels : ndarray, uint8, (n, h, w, channels)
        Pixels of the plane that the base scans, with its halo.
    target : ndarray, float32, (n, 1, cell height, cell width)
        Probability that the cell holds a find.
    valid : ndarray, bool, (n, 1, cell height, cell width)
        Cells that count in the loss.
    """

    pixels: NDArray[np.uint8]
    target: NDArray[np.float32]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pixels)


def make_samples(recipe: Recipe, spec: BaseSpec, areas: Sequence[Area], tick: Tick | None = None) -> Samples:
    """Cut crops to learn from, the scenes and each third of the scales equally often, half of them around a find.

    Parameters
    ----------
    recipe : Recipe
        With the geometry of the base.
    spec : BaseSpec
        Shape of the base.
    areas : sequence of Area
    tick : callable, optional
        Called with the numbers of samples done and of all samples.
    """
    count = min(_SAMPLES, _SAMPLES_A_STEP * recipe.steps)
    return _cut(recipe, spec, areas, [area.known for area in areas], count, _LEARNING, tick)


def held_samples(recipe: Recipe, spec: BaseSpec, areas: Sequence[Area]) -> Samples:
    """Cut crops of held-out cells, to see how well a base does; of all cells if none is held out."""
    held = [area.held for area in areas]
    cells = held if any(each.any() for each in held) else [area.known for area in areas]
    return _cut(recipe, spec, areas, cells, min(_HELD_SAMPLES, _SAMPLES), _HELD, None)


def _cut(
    recipe: Recipe,
    spec: BaseSpec,
    areas: Sequence[Area],
    cells: Sequence[NDArray[np.bool_]],
    count: int,
    stream: int,
    tick: Tick | None,
) -> Samples:
    """Crops of which the given cells (a map of fine cells for each area) are valid.

    Those to learn from lie between the cells of their area: an object may then have any place within its cell.
    """
    g, side = recipe.geometry, crop_side(spec)
    places = _Places(areas, cells, g.fine, side)
    rng = np.random.default_rng((recipe.seed, stream))
    # In the order of their places, so that chunks that are read for one crop serve the next.
    most = spec.stride if stream == _LEARNING else 1
    drawn = sorted((*places.draw(rng), *rng.integers(most, size=2).tolist()) for _ in range(count))
    pixels = np.empty((count, *(spec.input_size(side),) * 2, recipe.channels), np.uint8)
    target, valid = np.empty((count, 1, side, side), np.float32), np.empty((count, 1, side, side), bool)
    for number, (a, y, x, *moved) in enumerate(drawn):
        area, box = areas[a], Box(y, x, y + side, x + side)
        by = tuple(n * area.moves for n in moved)
        seen = box.scale(spec.stride).expand(spec.margin).shift(*by)
        pixels[number] = as_channels(area.read(seen, g.scan_downsample), recipe.channels)
        target[number, 0], valid[number, 0] = _targets(area, cells[a], box, g.fine, np.array(by) / spec.stride)
        if tick:
            tick(number + 1, count)
    return Samples(pixels, target, valid)


def _targets(
    area: Area, cells: NDArray[np.bool_], box: Box, ratio: int, by: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets (h, w) of a box of a grid that is moved by less than a cell, and where they are known."""
    fine, by = box.scale(ratio), by * ratio
    known = np.ones((fine.height, fine.width), bool)
    for corner in itertools.product(*({math.floor(n), math.ceil(n)} for n in by.tolist())):
        known &= np.nan_to_num(part_of(cells.astype(np.float32), fine.shift(*corner))) > 0
    return pooled(area.moved(fine, (by[0], by[1])), known, ratio)


def crop_side(spec: BaseSpec) -> int:
    """Cells along a side of a crop."""
    side = min(_CROP, _CROP_PIXELS // spec.stride)
    return ceil_div(side, spec.align) * spec.align


class _Places:
    """Draws places of crops: the scenes and each third of the scales equally often, half of them around a find.

    Parameters
    ----------
    areas : sequence of Area
    cells : sequence of ndarray, bool, (fine cell height, fine cell width)
        Fine cells of each area that may count.
    fine : int
        Fine cells along a side of a cell.
    side : int
        Cells along a side of a crop.
    """

    def __init__(self, areas: Sequence[Area], cells: Sequence[NDArray[np.bool_]], fine: int, side: int) -> None:
        self._fine, self._side = fine, side
        self._shapes = [tuple(ceil_div(n, fine) for n in area.target.shape) for area in areas]
        self._scales: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for stratum in sorted({area.stratum for area in areas}):
            rows = [a for a, area in enumerate(areas) if area.stratum == stratum and cells[a].any()]
            if stratum:  # a square of a large scene may be smaller than a crop of a coarse stage
                rows = [a for a in rows if min(self._shapes[a]) >= side or not areas[a].cut]
            if rows:
                found = [_numbered(a, np.nan_to_num(areas[a].target) * cells[a] > _FOUND) for a in rows]
                parts = [_numbered(a, _any_of_parts(cells[a])) for a in rows]
                self._scales.append((np.concatenate(found), np.concatenate(parts)))

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """An area and the first cell of a crop, which lies in the area as far as it fits."""
        found, parts = self._scales[rng.integers(len(self._scales))]
        side = self._side
        if len(found) and rng.random() < 0.5:
            a, *middle = found[rng.integers(len(found))].tolist()
            corner = np.array(middle) // self._fine - rng.integers(side // 12, side - side // 12, 2)
        else:
            a, *part = parts[rng.integers(len(parts))].tolist()
            corner = (np.array(part) * PART + rng.integers(0, PART, 2)) // self._fine - side // 2
        y, x = within(corner, side, self._shapes[a]).tolist()
        return a, y, x


def _numbered(number: int, cells: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows (number, y, x) of the cells that are true."""
    return np.insert(np.argwhere(cells), 0, number, axis=1)


def _any_of_parts(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any cell of each part is true."""
    rows = np.logical_or.reduceat(cells, np.arange(0, cells.shape[0], PART), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, cells.shape[1], PART), axis=1)
