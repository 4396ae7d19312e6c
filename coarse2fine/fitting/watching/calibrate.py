"""Calibration on held-out tiles: firing rules, thresholds by recall, and the forecast of the cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.experts.forecast import Interval
from coarse2fine.fitting.watching.tiles import WatchedScene
from coarse2fine.model import CascadeStage, Model
from coarse2fine.models.firing import Firing, calibrate_firing
from coarse2fine.models.runtime import Runtime
from coarse2fine.steps.scan import features

RECALLS = (0.9, 0.95, 0.99)
# Rows that represent the weighted tiles when a firing rule is calibrated.
_ROWS = 20_000
_LEAST_FINDS = 8
_RESAMPLES = 200
# Shares of the finds that the first stage may miss.
_LOSSES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05)
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeldTiles:
    """The tiles that calibrate, in one row each.

    Parameters
    ----------
    block : ndarray, int64, (n,)
    weight : ndarray, float64, (n,)
        Inverse of the probability of being drawn; 0 for tiles that were not tried.
    finds : ndarray, int64, (n,)
    place : tuple of ndarray, int64, (n, 2)
        For each scene, its tiles, in order.
    on_training : bool
        Whether too few finds are held out, so that the trained tiles are among them.
    """

    block: NDArray[np.int64]
    weight: Floats
    finds: NDArray[np.int64]
    place: tuple[NDArray[np.int64], ...]
    on_training: bool

    @classmethod
    def of(cls, scenes: Sequence[WatchedScene], fine: int) -> HeldTiles:
        """The held-out tiles of the scenes; all of them if too few finds are held out.

        Parameters
        ----------
        scenes : sequence of WatchedScene
        fine : int
            Fine cells along a side of a tile.
        """
        counts = [scene.counts(fine) for scene in scenes]
        held = sum(int(count[scene.held].sum()) for count, scene in zip(counts, scenes, strict=True))
        everything = held < _LEAST_FINDS
        use = [np.ones(scene.shape, bool) if everything else scene.held for scene in scenes]
        return cls(
            np.concatenate([scene.block[mask] for scene, mask in zip(scenes, use, strict=True)]),
            np.concatenate([scene.weight[mask] for scene, mask in zip(scenes, use, strict=True)]),
            np.concatenate([count[mask] for count, mask in zip(counts, use, strict=True)]),
            tuple(np.argwhere(mask) for mask in use),
            everything,
        )

    def __len__(self) -> int:
        return len(self.block)

    @property
    def found(self) -> int:
        """Finds in these tiles."""
        return int(self.finds[self.weight > 0].sum())

    def resampled(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """Rows of a bootstrap sample of whole blocks."""
        blocks = np.unique(self.block)
        chosen = rng.choice(blocks, len(blocks))
        rows = {b: np.flatnonzero(self.block == b) for b in np.unique(chosen).tolist()}
        return np.concatenate([rows[b] for b in chosen.tolist()])


def calibrated_stage(
    scenes: Sequence[WatchedScene], tiles: HeldTiles, model: Model, stage: CascadeStage, runtime: Runtime, seed: int
) -> tuple[CascadeStage, NDArray[np.float32]]:
    """A stage with its firing rule, and the probability of a find in each held-out tile, (n,).

    Parameters
    ----------
    scenes : sequence of WatchedScene
    tiles : HeldTiles
    model : Model
    stage : CascadeStage
        With a trained net whose cells are tiles.
    runtime : Runtime
    seed : int
    """
    high, logit = _activations(scenes, tiles, model, stage, runtime)
    chance = tiles.weight / tiles.weight.sum()
    rows = np.random.default_rng(seed).choice(len(tiles), _ROWS, p=chance)
    firing, _ = calibrate_firing(high[rows], logit[rows], (tiles.finds[rows] > 0).astype(np.float32))
    return replace(stage, firing=firing), _probabilities(firing, high, logit)


def _probabilities(firing: Firing, high: NDArray[np.float32], logit: NDArray[np.float32]) -> NDArray[np.float32]:
    planes, own = torch.from_numpy(high.T.copy())[None, :, :, None], torch.from_numpy(logit)[None, None, :, None]
    found: NDArray[np.float32] = firing.probability(planes, own)[0, :, 0].numpy()
    return found


def _activations(
    scenes: Sequence[WatchedScene], tiles: HeldTiles, model: Model, stage: CascadeStage, runtime: Runtime
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """High-level activations (n, c) and logits (n,) of the held-out tiles."""
    all_high, all_logit = [], []
    for scene, places in zip(scenes, tiles.place, strict=True):
        if not len(places):
            continue
        inside = np.zeros(scene.shape, bool)
        inside[tuple(places.T)] = True
        width = stage.net.high_channels
        high, logit = np.zeros((*scene.shape, width), np.float32), np.zeros(scene.shape, np.float32)
        for box, h, own, _ in features(scene.image, model, runtime, level=stage, inside=inside):
            block = slice(box.y0, box.y1), slice(box.x0, box.x1)
            high[block] = h.float().cpu().numpy().transpose(1, 2, 0)
            logit[block] = own[0].float().cpu().numpy()
        all_high.append(high[tuple(places.T)])
        all_logit.append(logit[tuple(places.T)])
    return np.concatenate(all_high), np.concatenate(all_logit)


@dataclass(frozen=True, eq=False)
class Screen:
    """One way to choose tiles: the probabilities of one or two stages in the held-out tiles, and what they cost.

    Parameters
    ----------
    tiles : HeldTiles
    first, last : ndarray, float32, (n,)
        Probability of a find by the first stage, and by the last; the same array if there is one stage.
    first_cost, last_cost : float
        Cost of each for a tile, as a share of the expert's; `last_cost` is 0 if there is one stage.
    """

    tiles: HeldTiles
    first: NDArray[np.float32]
    last: NDArray[np.float32]
    first_cost: float
    last_cost: float = 0.0

    def thresholds(self, recall: float, rows: NDArray[np.intp] | None = None) -> tuple[float, float, float, float]:
        """Thresholds of the first and the last stage, share of the tiles chosen, and cost as a share of the expert's.

        Parameters
        ----------
        recall : float
        rows : ndarray, int64, optional
            Rows of the tiles to use; by default all.
        """
        at = np.arange(len(self.tiles)) if rows is None else rows
        value = self.tiles.weight[at] * self.tiles.finds[at]
        first, last = self.first[at], self.last[at]
        best = (0.0, 0.0, 1.0, self.first_cost + self.last_cost + 1.0)
        for loss in _LOSSES if self.last_cost else (0.0,):
            low = weighted_quantile(first, value, loss) if self.last_cost else 0.0
            passed = first > low
            kept = value[passed].sum() / max(value.sum(), 1e-300)
            if kept < recall:
                continue
            tau = weighted_quantile(last[passed], value[passed], 1 - recall / kept)
            chosen = float((passed & (last > tau)).mean())
            cost = self.first_cost + float(passed.mean()) * self.last_cost + chosen
            if cost < best[3]:
                best = (low, tau, chosen, cost)
        return best

    def forecast(self, recall: float, seed: int) -> tuple[Interval, Interval]:
        """Share of the tiles chosen, and saving, each with its 90 % interval over blocks of tiles."""
        rng = np.random.default_rng(seed)
        _, _, chosen, cost = self.thresholds(recall)
        drawn = np.array([self.thresholds(recall, self.tiles.resampled(rng))[2:] for _ in range(_RESAMPLES)])
        shares, costs = (np.percentile(column, (5, 95)).tolist() for column in drawn.T)
        return (chosen, shares[0], shares[1]), (1 / cost, 1 / costs[1], 1 / costs[0])


def share_with_finds(tiles: HeldTiles, seed: int) -> Interval:
    """Share of the tiles that hold a find, with its 90 % interval over blocks of tiles."""
    rng = np.random.default_rng(seed)
    drawn = [_share(tiles, tiles.resampled(rng)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(drawn, (5, 95)).tolist()
    return _share(tiles, np.arange(len(tiles))), low, high


def _share(tiles: HeldTiles, rows: NDArray[np.intp]) -> float:
    weight = tiles.weight[rows]
    return float((weight * (tiles.finds[rows] > 0)).sum() / max(weight.sum(), 1e-300))


def weighted_quantile(values: NDArray[np.float32], weights: Floats, share: float) -> float:
    """A threshold just below which at most `share` of the weight lies."""
    use = weights > 0
    if not use.any():
        return 0.0
    order = np.argsort(values[use], kind="stable")
    below = np.cumsum(weights[use][order]) / weights[use].sum()
    index = int(np.searchsorted(below, share + 1e-12, side="right"))
    # The next number below, so that the deciding value itself is included.
    return float(np.nextafter(values[use][order][min(index, len(order) - 1)], np.float32(-1)))
