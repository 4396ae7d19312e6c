"""Training samples of the scan: watched tiles with the places of the expert's finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.watching.tiles import WatchedScene
from coarse2fine.model import Model
from coarse2fine.models.pooled import PooledSpec
from coarse2fine.preprocess import as_channels
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.window_reader import WindowReader
from coarse2fine.tiling.window_table import Windows

# Tiles without finds for each with finds, and tiles in all, that are kept in memory.
_NEGATIVES, _MOST_PIXELS = 50, 600_000_000
REACH = 1.25
"""Side of a sample over what the net reads: as much is needed to show it smaller or shifted."""
# Small cells whose centre lies in this share of a find's box, around its centre, are positive.
_CORE = 0.5


@dataclass(frozen=True, eq=False)
class TileSamples:
    """Tiles to train the scan on.

    Parameters
    ----------
    pixels : ndarray, uint8, (n, side, side, channels)
        In the plane that is scanned, with the tile in the middle and `REACH` times what the net reads around it.
    boxes : tuple of (ndarray, float64, (k, 4))
        Finds of each tile: y0, x0, y1, x1 in pixels of the plane, from the tile's middle.
    located : bool
        Whether the expert says where in a tile its finds lie.
    """

    pixels: NDArray[np.uint8]
    boxes: tuple[NDArray[np.float64], ...]
    located: bool

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Tiles with a find, (n,)."""
        return np.array([len(each) > 0 for each in self.boxes], bool)


def tile_samples(
    scenes: Sequence[WatchedScene],
    model: Model,
    spec: PooledSpec,
    downsample: int,
    rng: np.random.Generator,
    *,
    without: int | None = None,
) -> TileSamples:
    """The watched tiles: all with finds, and some of the others.

    Parameters
    ----------
    scenes : sequence of WatchedScene
    model : Model
        With the expert.
    spec : PooledSpec
        Net that is to be trained.
    downsample : int
        Full-resolution pixels per pixel of the plane that it scans.
    rng : Generator
    without : int, optional
        Fold that is left out.
    """
    fine = model.geometry.fine
    counts = [scene.counts(fine) for scene in scenes]
    usable = [np.argwhere(scene.tried & (scene.fold != without)) for scene in scenes]
    rows = np.concatenate([np.insert(tiles, 0, s, axis=1) for s, tiles in enumerate(usable)])
    held = np.array([counts[s][y, x] > 0 for s, y, x in rows.tolist()], bool)
    side = padded_side(spec)
    most = max(16, _MOST_PIXELS // (side * side * model.channels))
    yes = rng.permutation(np.flatnonzero(held))[: most // 2]
    no = rng.permutation(np.flatnonzero(~held))[: min(most // 2, max(_NEGATIVES * len(yes), 256))]
    kept = rows[np.sort(np.concatenate([yes, no]))]
    pixels = np.zeros((len(kept), side, side, model.channels), np.uint8)
    boxes: list[NDArray[np.float64]] = [np.zeros((0, 4))] * len(kept)
    expert = model.expert
    assert expert is not None
    located = expert.kind in ("boxes", "map")
    for s, scene in enumerate(scenes):
        mine = np.flatnonzero(kept[:, 0] == s)
        _read(scene, kept[mine, 1:], spec, downsample, model.channels, pixels, mine)
        for row, tile in zip(mine.tolist(), kept[mine, 1:], strict=True):
            own = scene.found.boxes[(scene.found.cells // fine == tile).all(axis=1)].astype(np.float64)
            boxes[row] = (own / fine - np.tile(tile, 2) - 0.5) * spec.stride
    return TileSamples(pixels, tuple(boxes), located)


def padded_side(spec: PooledSpec) -> int:
    """Side of a sample in pixels of the plane, of the parity of what the net reads."""
    side = spec.input_size(1)
    return side + 2 * ceil_div(round((REACH - 1) * side), 2)


def _read(
    scene: WatchedScene,
    tiles: NDArray[np.int64],
    spec: PooledSpec,
    downsample: int,
    channels: int,
    into: NDArray[np.uint8],
    rows: NDArray[np.intp],
) -> None:
    """Read tiles with the net's halo; unreadable ones stay black."""
    more = (into.shape[1] - spec.stride) // 2
    windows = Windows.of_cells(tiles, (1, 1), spec.stride, more)
    with WindowReader(scene.image, downsample=downsample, fill=0) as reader:
        for batch in reader.batches(windows, 16):
            into[rows[batch.index]] = as_channels(batch.pixels, channels)


def places(boxes: NDArray[np.float64], stride: int, pool: int) -> NDArray[np.bool_]:
    """Small cells (pool, pool) of a tile that hold a find.

    Parameters
    ----------
    boxes : ndarray, float64, (k, 4)
        y0, x0, y1, x1 in pixels of the plane, from the tile's middle; those whose centre lies outside are left out.
    stride : int
        Pixels of a small cell.
    pool : int
        Small cells along a side of the tile.
    """
    cells = np.zeros((pool, pool), bool)
    rows = boxes / stride + pool / 2
    middle, half = (rows[:, :2] + rows[:, 2:]) / 2, (rows[:, 2:] - rows[:, :2]) / 2 * _CORE
    inside = ((middle >= 0) & (middle < pool)).all(axis=1)
    middle, half = middle[inside], half[inside]
    low = np.floor(np.minimum(middle - half + 0.5, middle)).astype(int).clip(0, pool - 1)
    high = np.ceil(np.maximum(middle + half - 0.5, middle + 1e-6)).astype(int).clip(1, pool)
    for (y0, x0), (y1, x1) in zip(low.tolist(), high.tolist(), strict=True):
        cells[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return cells
