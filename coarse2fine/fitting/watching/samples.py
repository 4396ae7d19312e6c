"""Training samples of the scan: watched tiles with the places of the expert's finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.watching.tiles import WatchedScene
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.pooled import PooledSpec
from coarse2fine.preprocess import as_channels
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.window_reader import WindowReader

# Tiles without finds for each with finds, and tiles in all, that are kept in memory.
_NEGATIVES, _MOST_PIXELS = 8, 600_000_000
# Small cells whose centre lies in this share of a find's box, around its centre, are positive.
_CORE = 0.5


@dataclass(frozen=True, eq=False)
class TileSamples:
    """Tiles to train the scan on.

    Parameters
    ----------
    pixels : ndarray, uint8, (n, side, side, channels)
        In the plane that is scanned, with the net's halo.
    finds : ndarray, bool, (n, 1, pool, pool)
        Small cells that hold a find; all equal if the expert does not say where it lies.
    located : bool
        Whether the expert says where in a tile its finds lie.
    """

    pixels: NDArray[np.uint8]
    finds: NDArray[np.bool_]
    located: bool

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Tiles with a find, (n,)."""
        return np.asarray(self.finds.any(axis=(1, 2, 3)))


def tile_samples(
    scenes: Sequence[WatchedScene], model: Model, spec: PooledSpec, downsample: int, rng: np.random.Generator
) -> TileSamples:
    """The watched tiles that are not held out: all with finds, and some of the others.

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
    """
    fine = model.geometry.fine
    counts = [scene.counts(fine) for scene in scenes]
    usable = [np.argwhere(scene.tried & ~scene.held) for scene in scenes]
    rows = np.concatenate([np.insert(tiles, 0, s, axis=1) for s, tiles in enumerate(usable)])
    held = np.array([counts[s][y, x] > 0 for s, y, x in rows.tolist()], bool)
    side = spec.input_size(1)
    most = max(16, _MOST_PIXELS // (side * side * model.channels))
    yes = rng.permutation(np.flatnonzero(held))[: most // 2]
    no = rng.permutation(np.flatnonzero(~held))[: min(most // 2, max(_NEGATIVES * len(yes), 256))]
    kept = rows[np.sort(np.concatenate([yes, no]))]
    pixels = np.zeros((len(kept), side, side, model.channels), np.uint8)
    finds = np.zeros((len(kept), 1, spec.pool, spec.pool), bool)
    expert = model.expert
    assert expert is not None
    located = expert.kind in ("boxes", "map")
    for s, scene in enumerate(scenes):
        mine = np.flatnonzero(kept[:, 0] == s)
        _read(scene, kept[mine, 1:], spec, downsample, model.channels, pixels, mine)
        for row, tile in zip(mine.tolist(), kept[mine, 1:], strict=True):
            finds[row, 0] = _places(_in_tile(scene.found, tile, fine), tile * fine, fine, spec.pool, located=located)
    return TileSamples(pixels, finds, located)


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
    boxes = [Box(y, x, y + 1, x + 1).scale(spec.stride).expand(spec.margin) for y, x in tiles.tolist()]
    with WindowReader(scene.image, downsample=downsample, fill=0) as reader:
        for batch in reader.batches(boxes, 16):
            into[rows[batch.index]] = as_channels(batch.pixels, channels)


def _in_tile(found: Candidates, tile: NDArray[np.int64], fine: int) -> Candidates:
    return found.take(np.flatnonzero((found.cells // fine == tile).all(axis=1)))


def _places(found: Candidates, first: NDArray[np.int64], fine: int, pool: int, *, located: bool) -> NDArray[np.bool_]:
    """Small cells (pool, pool) of a tile that hold a find.

    Parameters
    ----------
    found : Candidates
        Finds of the tile.
    first : ndarray, int64, (2,)
        The tile's first fine cell.
    fine : int
        Fine cells along a side of the tile.
    pool : int
        Small cells along a side of the tile.
    located : bool
        Whether boxes say where finds lie; if not, all small cells hold one.
    """
    cells = np.zeros((pool, pool), bool)
    if not located:
        return np.full((pool, pool), len(found) > 0)
    boxes = (found.boxes.astype(np.float64) - np.tile(first, 2)) * pool / fine
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * _CORE
    low = np.floor(np.minimum(middle - half + 0.5, middle)).astype(int).clip(0, pool - 1)
    high = np.ceil(np.maximum(middle + half - 0.5, middle + 1e-6)).astype(int).clip(1, pool)
    for (y0, x0), (y1, x1) in zip(low.tolist(), high.tolist(), strict=True):
        cells[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return cells
