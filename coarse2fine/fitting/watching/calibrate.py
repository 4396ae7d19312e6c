"""Calibration on tried tiles, each by a net not trained on it: firing rule, thresholds by recall, forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.experts.forecast import Interval
from coarse2fine.fitting.watching.tiles import WatchedScene
from coarse2fine.model import CascadeStage, Model
from coarse2fine.models.firing import calibrate_firing
from coarse2fine.models.pooled import PooledStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.steps.scan import features

RECALLS = (0.9, 0.95, 0.99)
# Rows that represent the weighted tiles when a firing rule is calibrated.
_ROWS = 20_000
_RESAMPLES = 200
# Shares of the finds that the first stage may miss.
_LOSSES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05)
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TriedTiles:
    """The tiles on which the expert ran, in one row each.

    Parameters
    ----------
    block : ndarray, int64, (n,)
    weight : ndarray, float64, (n,)
        Inverse of the probability of being drawn.
    finds : ndarray, int64, (n,)
    place : tuple of ndarray, int64, (n, 2)
        For each scene, its tiles, in order.
    """

    block: NDArray[np.int64]
    weight: Floats
    finds: NDArray[np.int64]
    place: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, scenes: Sequence[WatchedScene], fine: int) -> TriedTiles:
        """The tried tiles of the scenes; `fine` fine cells along a side of a tile."""
        counts = [scene.counts(fine) for scene in scenes]
        return cls(
            np.concatenate([scene.block[scene.tried] for scene in scenes]),
            np.concatenate([scene.weight[scene.tried] for scene in scenes]),
            np.concatenate([count[scene.tried] for count, scene in zip(counts, scenes, strict=True)]),
            tuple(np.argwhere(scene.tried) for scene in scenes),
        )

    def __len__(self) -> int:
        return len(self.block)

    def resampled(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """Rows of a bootstrap sample of whole blocks."""
        blocks = np.unique(self.block)
        chosen = rng.choice(blocks, len(blocks))
        rows = {b: np.flatnonzero(self.block == b) for b in np.unique(chosen).tolist()}
        return np.concatenate([rows[b] for b in chosen.tolist()])


def calibrated_stage(
    scenes: Sequence[WatchedScene],
    tiles: TriedTiles,
    model: Model,
    stage: CascadeStage,
    nets: Sequence[PooledStack],
    runtime: Runtime,
    seed: int,
) -> tuple[CascadeStage, NDArray[np.float32]]:
    """A stage with its firing rule, and the probability of a find in each tried tile, (n,).

    The rule is calibrated on each tile's logit by the net that was not trained on its fold; the names of features come
    from the stage's own net.

    Parameters
    ----------
    scenes : sequence of WatchedScene
    tiles : TriedTiles
    model : Model
    stage : CascadeStage
        With the net trained on all tried tiles, whose cells are tiles.
    nets : sequence of PooledStack
        For each fold, a net that was not trained on it; without any, the stage's own net, which is fit to rank tiles
        that were not tried.
    runtime : Runtime
    seed : int
    """
    high, logit = activations(scenes, tiles, model, stage, runtime)
    folds = np.concatenate([scene.fold[scene.tried] for scene in scenes])
    for fold, net in enumerate(nets):
        _, own = activations(scenes, tiles, model, replace(stage, net=net), runtime, fold=fold)
        logit[folds == fold] = own[folds == fold]
    chance = tiles.weight / tiles.weight.sum()
    rows = np.random.default_rng(seed).choice(len(tiles), _ROWS, p=chance)
    held = (tiles.finds[rows] > 0).astype(np.float32)
    firing = calibrate_firing(high[rows], logit[rows], held)
    planes, lone = torch.from_numpy(high.T.copy())[None, :, :, None], torch.from_numpy(logit)[None, None, :, None]
    return replace(stage, firing=firing), firing.probability(planes, lone)[0, :, 0].numpy()


def activations(
    scenes: Sequence[WatchedScene],
    tiles: TriedTiles,
    model: Model,
    stage: CascadeStage,
    runtime: Runtime,
    *,
    fold: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """High-level activations (n, c) and logits (n,) of the tried tiles; those of one `fold` alone, if it is given."""
    all_high, all_logit = [], []
    for scene, places in zip(scenes, tiles.place, strict=True):
        high = np.zeros((*scene.shape, stage.net.high_channels), np.float32)
        logit = np.zeros(scene.shape, np.float32)
        inside = scene.tried if fold is None else scene.tried & (scene.fold == fold)
        for box, h, own, _ in features(scene.image, model, runtime, level=stage, inside=inside) if inside.any() else ():
            block = slice(box.y0, box.y1), slice(box.x0, box.x1)
            high[block] = h.float().cpu().numpy().transpose(1, 2, 0)
            logit[block] = own[0].float().cpu().numpy()
        all_high.append(high[tuple(places.T)])
        all_logit.append(logit[tuple(places.T)])
    return np.concatenate(all_high), np.concatenate(all_logit)


@dataclass(frozen=True, eq=False)
class Screen:
    """One way to choose tiles: the probabilities of one or two stages in the tried tiles, and what they cost.

    Parameters
    ----------
    tiles : TriedTiles
    first, last : ndarray, float32, (n,)
        Probability of a find by the first stage, and by the last; the same array if there is one stage.
    first_cost, last_cost : float
        Cost of each for a tile, as a share of the expert's; `last_cost` is 0 if there is one stage.
    given : ndarray, int64, (n,), optional
        Finds of the expert that are given in each tile by the alternative that answers for it; by default all.
    price : ndarray, float64, (n,), optional
        Cost of that alternative, as a share of the expert's; by default 1.
    """

    tiles: TriedTiles
    first: NDArray[np.float32]
    last: NDArray[np.float32]
    first_cost: float
    last_cost: float = 0.0
    given: NDArray[np.int64] | None = None
    price: Floats | None = None

    def thresholds(self, recall: float, rows: NDArray[np.intp] | None = None) -> tuple[float, float, float, float]:
        """Thresholds of the first and the last stage, share of the tiles chosen, and cost as a share of the expert's.

        If the recall is not reached in any way, they are those of the expert everywhere.

        Parameters
        ----------
        recall : float
        rows : ndarray, int64, optional
            Rows of the tiles to use; by default all.
        """
        at = np.arange(len(self.tiles)) if rows is None else rows
        weight = self.tiles.weight[at]
        value = weight * (self.tiles.finds if self.given is None else self.given)[at]
        spent = weight if self.price is None else weight * self.price[at]
        held, total = max(float((weight * self.tiles.finds[at]).sum()), 1e-300), max(float(weight.sum()), 1e-300)
        first, last = self.first[at], self.last[at]
        best = (0.0, 0.0, 1.0, self.first_cost + self.last_cost + 1.0)
        for loss in _LOSSES if self.last_cost else (0.0,):
            low = weighted_quantile(first, value, loss) if self.last_cost else 0.0
            passed = first > low
            kept = value[passed].sum() / held
            if kept < recall:
                continue
            tau = weighted_quantile(last[passed], value[passed], 1 - recall / kept)
            sent = passed & (last > tau)
            chosen = float(weight[sent].sum()) / total
            closer = float(weight[passed].sum()) / total * self.last_cost
            cost = self.first_cost + closer + float(spent[sent].sum()) / total
            if cost < best[3]:
                best = (low, tau, chosen, cost)
        return best

    @property
    def given_share(self) -> float:
        """Share of the expert's finds that are given if every tile is chosen."""
        weight, finds = self.tiles.weight, self.tiles.finds
        given = finds if self.given is None else self.given
        return float((weight * given).sum() / max(float((weight * finds).sum()), 1e-300))

    def cautious(self, recall: float, rows: NDArray[np.intp] | None = None) -> tuple[float, float, float, float]:
        """As `thresholds`, so that the recall of further finds is reached in the mean; see `aim`."""
        return self.thresholds(self.aim(recall, rows), rows)

    def aim(self, recall: float, rows: NDArray[np.intp] | None = None) -> float:
        """Recall of the tried tiles' finds at which that of further finds is reached in the mean.

        Of n finds as many may be missed that the next one, equally likely at each rank, is missed with a probability of
        at most 1 - recall (split conformal prediction, Vovk et al. 2005).
        """
        finds = self.tiles.finds if rows is None else self.tiles.finds[rows]
        count = max(int((finds > 0).sum()), 1)
        return 1 - max(0.0, ((count + 1) * (1 - recall) - 1) / count)

    def forecast(self, recall: float, seed: int) -> tuple[Interval, Interval]:
        """Share of the tiles chosen, and saving, each with its 90 % interval over blocks of tiles."""
        rng = np.random.default_rng(seed)
        _, _, chosen, cost = self.cautious(recall)
        drawn = np.array([self.cautious(recall, self.tiles.resampled(rng))[2:] for _ in range(_RESAMPLES)])
        shares, costs = (np.percentile(column, (5, 95)).tolist() for column in drawn.T)
        return (chosen, shares[0], shares[1]), (1 / cost, 1 / costs[1], 1 / costs[0])


def share_with_finds(tiles: TriedTiles, seed: int) -> Interval:
    """Share of the tiles that hold a find, with its 90 % interval over blocks of tiles."""
    rng = np.random.default_rng(seed)
    drawn = [_share(tiles, tiles.resampled(rng)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(drawn, (5, 95)).tolist()
    return _share(tiles, np.arange(len(tiles))), low, high


def _share(tiles: TriedTiles, rows: NDArray[np.intp]) -> float:
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
