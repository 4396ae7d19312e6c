"""Choice between an expert and its alternatives by clusters of the scan's features, judged on held-out parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.agreement import counts_in_tiles
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.routes import Routes
from coarse2fine.fitting.watching.calibrate import Floats, Screen, TriedTiles
from coarse2fine.fitting.watching.tiles import WatchedScene
from coarse2fine.models.feature_tree import FeatureTree

Vectors = NDArray[np.float32]

# Tiles for each cluster below the root and below its children; most clusters of a node; fewest tiles of a cluster.
_TILES_EACH, _MOST, _FEWEST = (24, 48), (6, 3), 12
# Of the finds that may be missed, the parts that alternatives may miss in each of their clusters; the rest is for tiles
# that are not chosen.
_PARTS = (0.25, 0.5, 0.75, 1.0)
# Recall of the tiles that are clustered: those that may be chosen.
_SENT = 0.99


@dataclass(frozen=True, eq=False)
class Given:
    """What the expert (row 0) and its alternatives give in the tried tiles.

    Parameters
    ----------
    names : tuple of str
    finds : ndarray, int64, (a, n)
        Finds of the expert that each of them gives too.
    extra : ndarray, int64, (a, n)
        Finds that the expert does not have.
    price : ndarray, float64, (a,)
        Cost of a tile as a share of the expert's.
    """

    names: tuple[str, ...]
    finds: NDArray[np.int64]
    extra: NDArray[np.int64]
    price: Floats

    @classmethod
    def of(cls, scenes: Sequence[WatchedScene], tiles: TriedTiles, expert: Expert, others: Sequence[Expert]) -> Given:
        """From the answers in the scenes."""
        cells, finds, extra = expert.tile // expert.cell, [tiles.finds], [np.zeros_like(tiles.finds)]
        for number in range(len(others)):
            both = [
                counts_in_tiles(s.found, s.others[number], objects=expert.finds_objects, cells=cells, shape=s.shape)
                for s in scenes
            ]
            for into, part in ((finds, 0), (extra, 1)):
                into.append(np.concatenate([each[part][s.tried] for each, s in zip(both, scenes, strict=True)]))
        price = np.array([each.tile_macs / expert.tile_macs for each in (expert, *others)])
        names = tuple(each.name for each in (expert, *others))
        return cls(names, np.stack(finds), np.stack(extra), price)

    def screen(self, plain: Screen, number: NDArray[np.int64]) -> Screen:
        """The screen if `number`, (n,), says who answers for each tile."""
        rows = np.arange(len(number))
        return replace(plain, given=self.finds[number, rows], price=self.price[number])


@dataclass(frozen=True, eq=False)
class Routed:
    """A choice between experts.

    Parameters
    ----------
    screen : Screen
        Of the tried tiles, each answered as a choice says that was made without its part.
    routes : Routes or None
        The choice made on all tiles; None if the expert answers for all.
    figures : mapping of str to (float, float)
        See `Forecast.alternatives`.
    """

    screen: Screen
    routes: Routes | None
    figures: dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of the tiles that may be chosen, and the cluster of every tile.

    Parameters
    ----------
    tree : FeatureTree
    leaf : ndarray, int32, (n,)
    """

    tree: FeatureTree
    leaf: NDArray[np.int32]

    @classmethod
    def grown(cls, vectors: Vectors, rows: NDArray[np.intp], seed: int) -> Clusters:
        """Cluster rows of the features (n, channels) of all tiles, and each cluster again."""
        tree = FeatureTree.root(len(rows))
        for each, most in zip(_TILES_EACH, _MOST, strict=True):
            for node in tree.leaves.tolist():
                mine = vectors[rows[tree.leaf(vectors[rows]) == node]]
                count = min(most, len(mine) // each)
                if count > 1:
                    tree, _ = tree.split(node, mine, count, smallest=_FEWEST, seed=seed, scaled=True)
        return cls(tree, tree.leaf(vectors))

    def dealt(self, rng: np.random.Generator) -> Clusters:
        """The same clusters with tiles dealt to them at random."""
        return replace(self, leaf=rng.permutation(self.leaf))


def choose_routes(
    plain: Screen,
    given: Given,
    vectors: tuple[Sequence[Vectors], Vectors],
    folds: NDArray[np.int64],
    others: Sequence[Expert],
    *,
    recall: float,
    gain: float,
    seed: int,
) -> Routed:
    """The cheapest expert for each cluster that gives what the first one gives there, if that lowers the cost.

    The choice is judged as it will be used: clusters and their experts are found without one part of the tiles, by the
    net that was trained without it, and answer for that part.

    Parameters
    ----------
    plain : Screen
        Of the first expert alone.
    given : Given
    vectors : tuple of (sequence of ndarray, ndarray), float32, (n, channels)
        High-level features of the tiles by the nets trained without each fold, and by the net of all.
    folds : ndarray, int64, (n,)
    others : sequence of Expert
        The alternatives.
    recall : float
    gain : float
        Factor by which the cost must fall.
    seed : int
    """
    rows = np.flatnonzero(plain.last > plain.cautious(max(_SENT, recall))[1])
    figures = {f"always {given.names[0]}": (1.0, 1 / plain.cautious(recall)[3])}
    for number in range(1, len(given.names)):
        same = given.screen(plain, np.full(len(folds), number))
        figures[f"always {given.names[number]}"] = _figures(same, recall)
    parts = [Clusters.grown(each, rows[folds[rows] != fold], seed) for fold, each in enumerate(vectors[0])]
    chosen, screen = _best(plain, given, parts, folds, rows, recall)
    rng = np.random.default_rng([seed, 3])
    dealt = _best(plain, given, [each.dealt(rng) for each in parts], folds, rows, recall)[1]
    figures |= {"by clusters": _figures(screen, recall), "by random clusters": _figures(dealt, recall)}
    whole = Clusters.grown(vectors[1], rows, seed)
    choice = choice_in(whole, given, plain.tiles, rows, chosen * (1 - recall), 1 - recall)
    if not choice.any() or screen.cautious(recall)[3] >= gain * plain.cautious(recall)[3]:
        return Routed(plain, None, figures)
    return Routed(screen, Routes(tuple(others), whole.tree, choice), figures)


def _figures(screen: Screen, recall: float) -> tuple[float, float]:
    """Share of the finds that are given, and saving; 0 if the recall is not reached."""
    share = screen.given_share
    return share, 1 / screen.cautious(recall)[3] if share >= screen.aim(recall) else 0.0


def _best(
    plain: Screen,
    given: Given,
    parts: Sequence[Clusters],
    folds: NDArray[np.int64],
    rows: NDArray[np.intp],
    recall: float,
) -> tuple[float, Screen]:
    """The part of the finds that alternatives may miss with which the cost is lowest, and the screen with it."""
    found = []
    for part in _PARTS:
        number = np.zeros(len(folds), np.int64)
        for fold, clusters in enumerate(parts):
            others = rows[folds[rows] != fold]
            choice = choice_in(clusters, given, plain.tiles, others, part * (1 - recall), 1 - recall)
            mine = folds == fold
            number[mine] = choice[clusters.leaf[mine]]
        found.append((part, given.screen(plain, number)))
    return min(found, key=lambda each: each[1].cautious(recall)[3])


def choice_in(
    clusters: Clusters,
    given: Given,
    tiles: TriedTiles,
    rows: NDArray[np.intp],
    most_missed: float,
    most_extra: float,
) -> NDArray[np.int64]:
    """For each leaf the cheapest expert that misses few of the first one's finds there, and adds few.

    With few finds it must miss fewer: as for thresholds, the tiles with finds in the cluster and one more, missed, have
    to keep within the share. Or it misses nothing, and one more tile that is missed is within the share of all finds:
    so an alternative may check the tiles of clusters that seem interesting, but in which nothing is found.

    Parameters
    ----------
    clusters : Clusters
    given : Given
    tiles : TriedTiles
    rows : ndarray, int64, (r,)
        Tiles to judge by.
    most_missed, most_extra : float
        Shares of the first expert's finds in a cluster.

    Returns
    -------
    ndarray, int64, (nodes,)
        0 for the first expert.
    """
    choice = np.zeros(len(clusters.tree), np.int64)
    every = max(float((tiles.weight * tiles.finds)[rows].sum()), 1e-300)
    usual = every / max(1, int((tiles.finds[rows] > 0).sum()))
    for leaf in np.unique(clusters.leaf[rows]).tolist():
        mine = rows[clusters.leaf[rows] == leaf]
        weight, finds = tiles.weight[mine], tiles.finds[mine]
        held = float((weight * finds).sum())
        # One more tile with finds.
        part = held / max(1, int((finds > 0).sum())) or usual
        for number in np.argsort(given.price, kind="stable").tolist():
            if given.price[number] >= 1:
                break
            missed, extra = (
                float((weight * n).sum()) for n in (finds - given.finds[number, mine], given.extra[number, mine])
            )
            enough = (missed + part) / (held + part) <= most_missed or (not missed and part / every <= most_missed)
            if enough and extra <= most_extra * held:
                choice[leaf] = number
                break
    return choice
