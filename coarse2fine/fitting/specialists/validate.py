"""Validation of specialists on held-out items: which columns stay, where they run, and the resulting gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.specialists.earnings import Earned, earned_by
from coarse2fine.fitting.specialists.evidence import LEVEL, Columns, Decision, chance, decide
from coarse2fine.fitting.specialists.grow_tree import Grown
from coarse2fine.fitting.specialists.items import Items, loss_of, squared_of, wrong
from coarse2fine.models.feature_tree import NO_NODE, ROOT
from coarse2fine.models.gate import Gate

# Shrinkage factors of columns: trained on the refine net's own training data, they are overconfident.
SHARES = (1.0, 0.5, 0.25)
# From answers and their items to the loss of each item, and whether its answer is wrong.
Measure = Callable[[Tensor, Items], tuple[NDArray[np.float64], NDArray[np.bool_]]]
# From rows and a decision to answers, and to the number of columns that ran on each item.
Apply = Callable[[NDArray[np.intp], Decision], tuple[Tensor, NDArray[np.int64]]]
# Share of wrong answers and mean loss below both of which there is nothing to gain.
_LEAST_WRONG, _LEAST_LOSS = 1e-4, 1e-3
_LOW, _HIGH = (0.05, 0.1, 0.2, 0.3), (0.7, 0.8, 0.9, 0.95, 0.98, 1.0)


@dataclass(frozen=True)
class Verdict:
    """Effect of specialists on held-out items.

    Losses and wrong answers are cross-validated: each half of the groups is measured with the decision of the other
    half. The p-value refers to the decision of all groups, which is the one that is kept.

    Parameters
    ----------
    items : int
    groups : int
        Number of independent groups of items.
    share_run : float
        Share of the items on which a specialist ran.
    loss_before, loss : float
        Mean over all items, without and with specialists.
    wrong_before, wrong : float
        Share of wrong answers, without and with specialists.
    chance : float
        p-value: probability that specialists that do not help gain as much; above 0.05 a lower bound.
    earned : mapping of int to Earned
        What each node of a tree gains on its own items.
    """

    items: int
    groups: int
    share_run: float
    loss_before: float
    loss: float
    wrong_before: float
    wrong: float
    chance: float
    earned: Mapping[int, Earned] = field(default_factory=dict)

    @property
    def worth(self) -> float:
        """The gain in loss."""
        return self.loss_before - self.loss

    def pays(self, tried: int = 1) -> bool:
        """Whether there was something to gain, the gain is significant, and no more answers are wrong.

        Parameters
        ----------
        tried : int
            Number of tests, which share the significance level.
        """
        perfect = self.wrong_before < _LEAST_WRONG and self.loss_before < _LEAST_LOSS
        helps = self.worth > 0 and self.wrong <= self.wrong_before and not perfect
        return helps and self.chance <= LEVEL / tried

    def reported(self, tried: int = 1) -> str:
        """The verdict in words, with the reason if no gain could be significant.

        Parameters
        ----------
        tried : int
            As in `pays`.
        """
        fewest = fewest_groups(tried)
        if self.groups < fewest:
            return f"{self}; nothing is significant with fewer than {fewest} groups: give more scenes"
        return f"{self}; significant up to p = {LEVEL / tried:.3f}"

    def __str__(self) -> str:
        luck = f"p = {self.chance:.3f}" if self.chance <= LEVEL else f"p > {LEVEL:g}"
        return (
            f"loss {self.loss_before:.4f} -> {self.loss:.4f}, wrong {self.wrong_before:.2%} -> {self.wrong:.2%} of "
            f"{self.items:,} items in {self.groups} groups, run on {self.share_run:.1%} of them, {luck}"
        )


def fewest_groups(tried: int) -> int:
    """Fewest groups with which one of so many tests can be significant."""
    return math.ceil(math.log2(tried / LEVEL))


def best_way(found: Mapping[str, Verdict], tried: int) -> str | None:
    """The mode that gains most of those with a significant gain; None if there is none.

    Parameters
    ----------
    found : mapping of str to Verdict
    tried : int
        Number of tests: they share the level equally (Bonferroni), so that the probability of keeping any mode although
        none helps stays below it.
    """
    sure = {name: verdict.worth for name, verdict in found.items() if verdict.pays(tried)}
    return max(sure, key=lambda name: sure[name], default=None)


def answers_measured(exclusive: bool) -> Measure:
    """Measure of answers that are logits: cross-entropy, and which are wrong."""

    def measure(answers: Tensor, items: Items) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        loss = loss_of(answers, items, exclusive=exclusive).double().numpy()
        return loss, wrong(answers, items, exclusive=exclusive).numpy()

    return measure


def reconstruction_measured(answers: Tensor, items: Items) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Measure of answers that are numbers: squared error; none counts as wrong."""
    return squared_of(answers, items).double().numpy(), np.zeros(len(items), bool)


def gates_tried(*, exclusive: bool) -> tuple[Gate, ...]:
    """The open gate, with which columns are chosen, then the gates to choose from."""
    bands = product((0.0,) if exclusive else _LOW, _HIGH)
    return Gate.open(exclusive=exclusive), *(Gate(low, high, exclusive) for low, high in bands)


class TreeColumns:
    """Gains of a tree's columns: each has its own items, so gains add up.

    Parameters
    ----------
    grown : Grown
        With answers to the items.
    items : Items
    gates : tuple of Gate
        The open one first.
    shares : tuple of float
    measure : callable
    """

    def __init__(
        self, grown: Grown, items: Items, gates: tuple[Gate, ...], shares: tuple[float, ...], measure: Measure
    ) -> None:
        self._tree, self.depths, self.shares = grown.tree, grown.tree.depths, len(shares)
        _, group = np.unique(items.group, return_inverse=True)
        self._shape = (len(grown.tree), int(group.max(initial=-1)) + 1)
        tables = [self._tables(grown.shrunk(share), items, group, gates, measure) for share in shares]
        self._gains, self._runs = (np.array(each) for each in zip(*tables, strict=True))
        self.sizes: NDArray[np.float64] = self._runs[0, 0]

    def _tables(
        self, grown: Grown, items: Items, group: NDArray[np.intp], gates: tuple[Gate, ...], measure: Measure
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gains of each column and the number of items it runs on, (gates, columns, groups)."""
        gains, runs = np.zeros((len(gates), *self._shape)), np.zeros((len(gates), *self._shape))
        gained = -np.diff([measure(answers, items)[0] for answers in grown.answers], axis=0)
        for number, gate in enumerate(gates):
            going = np.ones(len(items), bool)
            for nodes, answers, each in zip(grown.nodes.T, grown.answers[:-1], gained, strict=True):
                going = going & gate.unsure(answers).numpy() & (nodes != NO_NODE)
                np.add.at(gains[number], (nodes[going], group[going]), each[going])
                np.add.at(runs[number], (nodes[going], group[going]), 1)
        return gains, runs

    def alone(self, share: int) -> NDArray[np.float64]:
        """See `Columns`."""
        return np.asarray(self._gains[share, 0])

    def stays(self, gains: NDArray[np.float64]) -> NDArray[np.bool_]:
        """See `Columns`."""
        return self._tree.pruned(-gains, np.zeros(len(gains))).kept

    def whole(self, share: int, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `Columns`."""
        return np.tensordot(kept, self._gains[share], (0, 1)), np.tensordot(kept, self._runs[share], (0, 1))


def judge_tree(grown: Grown, items: Items, *, exclusive: bool) -> tuple[Grown, Gate, Verdict]:
    """Choose the columns of a tree that help, their shrinkage and the gate, and measure the gain.

    Parameters
    ----------
    grown : Grown
        Grown on `items`.
    items : Items
        Only the held-out items count.
    exclusive : bool
        Whether an item has one class.

    Returns
    -------
    Grown
        With all columns shrunk by one factor; columns with a positive estimated gain are kept.
    Gate
    Verdict
    """
    return _judge_tree(grown, items, gates_tried(exclusive=exclusive), SHARES, answers_measured(exclusive))


def judge_last(grown: Grown, items: Items, *, exclusive: bool) -> Verdict:
    """The gain of the last depth of a tree over the depths above it.

    Parameters
    ----------
    grown : Grown
        Grown on `items`.
    items : Items
        Only the held-out items count.
    exclusive : bool
        Whether an item has one class.
    """
    tree = grown.tree
    flat = replace(tree, parent=np.where(tree.depths == tree.depths.max(), ROOT, tree.parent))
    last = Grown(flat, {}, grown.nodes[:, -1:], grown.answers[-2:])
    return judge_tree(last, items.answered(grown.answers[-2]), exclusive=exclusive)[2]


def judge_reconstruction(grown: Grown, items: Items) -> tuple[Grown, Verdict]:
    """Choose the columns that improve a reconstruction, and measure the gain.

    Parameters
    ----------
    grown : Grown
        Grown on `items`.
    items : Items
        Only the held-out items count.
    """
    # Answers are pixels, not probabilities: no gate, and no shrinkage.
    judged, _, verdict = _judge_tree(grown, items, (Gate.always(),), (1.0,), reconstruction_measured)
    return judged, verdict


def _judge_tree(
    grown: Grown, items: Items, gates: tuple[Gate, ...], shares: tuple[float, ...], measure: Measure
) -> tuple[Grown, Gate, Verdict]:
    rows = np.flatnonzero(items.held)
    # Decisions need only the answers; the columns are shrunk once, at the end.
    held, own = items.take(rows), replace(grown.take(rows), columns={})
    columns = TreeColumns(own, held, gates, shares, measure)

    def apply(part: NDArray[np.intp], decided: Decision) -> tuple[Tensor, NDArray[np.int64]]:
        tree = replace(grown.tree, kept=decided.kept)
        return own.take(part).shrunk(shares[decided.share]).answered(gates[decided.gate], tree)

    decided, verdict, losses = judged(columns, held, apply, measure)
    tree = replace(grown.tree, kept=decided.kept)
    verdict = replace(verdict, earned=earned_by(own.nodes, *losses))
    return replace(grown.shrunk(shares[decided.share]), tree=tree), gates[decided.gate], verdict


def judged(
    columns: Columns, held: Items, apply: Apply, measure: Measure
) -> tuple[Decision, Verdict, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The decision on all items, its cross-validated verdict, and each item's loss without and with specialists.

    Parameters
    ----------
    columns : Columns
        With gains on `held`.
    held : Items
    apply : callable
    measure : callable
    """
    _, index = np.unique(held.group, return_inverse=True)
    groups = columns.sizes.shape[1]
    half = np.arange(groups) % 2 == 0
    answers, runs = held.answers.clone(), np.zeros(len(held), np.int64)
    for mine in (half, ~half):
        rows = np.flatnonzero(~mine[index])
        if mine.any() and len(rows):
            answers[torch.from_numpy(rows)], runs[rows] = apply(rows, decide(columns, mine.astype(np.float64)))
    count = max(len(held), 1)
    (before, bad), (after, worse) = (measure(a, held) for a in (held.answers, answers))
    decided = decide(columns, np.ones(groups))
    verdict = Verdict(
        items=len(held),
        groups=groups,
        share_run=float((runs > 0).sum()) / count,
        loss_before=float(before.sum()) / count,
        loss=float(after.sum()) / count,
        wrong_before=float(bad.sum()) / count,
        wrong=float(worse.sum()) / count,
        chance=chance(columns, decided),
    )
    return decided, verdict, (before, after)
