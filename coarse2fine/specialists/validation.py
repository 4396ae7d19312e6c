"""What specialists are worth, by items held back: which columns stay, where they are asked, and what that gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.models.gate import Gate
from coarse2fine.models.tree import FeatureTree
from coarse2fine.specialists.growth import Grown
from coarse2fine.specialists.items import Items, loss_of, wrong

# What is sure: more than so many standard errors.
_MARGIN = 1.0
_FEW = 8
# The gate is the band in which fewest items lie, of those that keep this share of the gain.
_GAIN_KEPT = 0.9
# Columns learn from items that the net knows too well, and say more than is so: what they add may be shrunk.
SHARES = (1.0, 0.5, 0.25)
Decided = TypeVar("Decided")
Kept = TypeVar("Kept")
Shrunk = TypeVar("Shrunk")
_LOW, _HIGH = (0.05, 0.1, 0.2, 0.3), (0.7, 0.8, 0.9, 0.95, 0.98, 1.0)


@dataclass(frozen=True)
class Verdict:
    """What specialists change on items that decided nothing about them.

    Parameters
    ----------
    items : int
    asked : float
        Share of them that was sent to a specialist.
    loss_before, loss : float
        Mean over all items, without and with specialists.
    wrong_before, wrong : float
        Share of wrong answers.
    sureness : float
        The gain in loss, in standard errors.
    """

    items: int
    asked: float
    loss_before: float
    loss: float
    wrong_before: float
    wrong: float
    sureness: float

    @property
    def worth(self) -> float:
        """The gain in loss that is sure, with its uncertainty counted against it."""
        gained = self.loss_before - self.loss
        return gained - _MARGIN * gained / self.sureness if self.sureness else 0.0

    @property
    def pays(self) -> bool:
        """Whether the gain is larger than its uncertainty, and no more answers are wrong."""
        return self.sureness > _MARGIN and self.wrong <= self.wrong_before

    def __str__(self) -> str:
        return (
            f"loss {self.loss_before:.4f} -> {self.loss:.4f} ({self.sureness:+.1f} standard errors), wrong "
            f"{self.wrong_before:.2%} -> {self.wrong:.2%} of {self.items:,} items, {self.asked:.1%} asked"
        )


def gain(before: NDArray[np.float64], after: NDArray[np.float64], group: NDArray[np.int64]) -> tuple[float, float]:
    """How much less is lost in all, and the standard error of that; items of one group count as one.

    Parameters
    ----------
    before, after : ndarray, float64, (n,)
        Losses of the items.
    group : ndarray, int64, (n,)
    """
    _, index = np.unique(group, return_inverse=True)
    sums = np.bincount(index, before - after)
    if len(sums) < 2:
        return float(sums.sum()), np.inf
    return float(sums.sum()), float(sums.std(ddof=1) * np.sqrt(len(sums)))


def judge_tree(grown: Grown, items: Items, *, exclusive: bool) -> tuple[Grown, Gate, Verdict]:
    """What stays of a tree, the gate, and what that gains.

    Parameters
    ----------
    grown : Grown
        Its items are `items`.
    items : Items
        With those held back, which alone count.
    exclusive : bool
        Whether an item has one class.

    Returns
    -------
    Grown
        With all columns shrunk by one factor, and those kept that are worth it.
    Gate
    Verdict
    """
    rows = np.flatnonzero(items.held)
    # Answers decide; the columns themselves are shrunk once, at the end.
    held, own = items.take(rows), replace(grown.take(rows), columns={})

    def decide(part: NDArray[np.intp]) -> tuple[float, FeatureTree, Gate]:
        mine = held.take(part)

        def tried(share: float) -> tuple[float, FeatureTree, Grown]:
            shrunk = own.take(part).shrunk(share)
            tree = _pruned(shrunk, mine, exclusive=exclusive)
            answers, _ = shrunk.answered(Gate.open(exclusive=exclusive), tree)
            return float(losses(answers, mine, exclusive=exclusive).sum()), tree, shrunk

        share, tree, shrunk = best_share(tried)
        return share, tree, choose_gate(lambda gate: shrunk.answered(gate, tree), mine, exclusive=exclusive)

    def apply(part: NDArray[np.intp], decided: tuple[float, FeatureTree, Gate]) -> tuple[Tensor, NDArray[np.int64]]:
        share, tree, gate = decided
        return own.take(part).shrunk(share).answered(gate, tree)

    verdict = crossed(held, decide, apply, exclusive=exclusive)
    share, tree, gate = decide(np.arange(len(rows)))
    return replace(grown.shrunk(share), tree=tree), gate, verdict


def best_share(tried: Callable[[float], tuple[float, Kept, Shrunk]]) -> tuple[float, Kept, Shrunk]:
    """The share of what columns add with which least is lost, and what else was found with it.

    Parameters
    ----------
    tried : callable
        From a share to what is lost in all, what is kept, and the shrunk columns.
    """
    found = ((share, *tried(share)) for share in SHARES)
    share, _, kept, shrunk = min(found, key=lambda each: each[1])
    return share, kept, shrunk


def crossed(
    held: Items,
    decide: Callable[[NDArray[np.intp]], Decided],
    apply: Callable[[NDArray[np.intp], Decided], tuple[Tensor, NDArray[np.int64]]],
    *,
    exclusive: bool,
) -> Verdict:
    """What is decided on one half of the items, judged by the other, and the other way round.

    Parameters
    ----------
    held : Items
    decide : callable
        From rows to what is decided by them.
    apply : callable
        From rows and what was decided to answers, and to how many columns were asked of each.
    exclusive : bool
    """
    halves = _halves(held.group)
    answers, asked = held.answers.clone(), np.zeros(len(held), np.int64)
    for mine, other in ((halves, ~halves), (~halves, halves)):
        rows = np.flatnonzero(other)
        if mine.any() and len(rows):
            answers[torch.from_numpy(rows)], asked[rows] = apply(rows, decide(np.flatnonzero(mine)))
    before, after = (losses(a, held, exclusive=exclusive) for a in (held.answers, answers))
    total, error = gain(before, after, held.group)
    return Verdict(
        items=len(held),
        asked=float((asked > 0).mean()) if len(held) else 0.0,
        loss_before=float(before.mean()) if len(held) else 0.0,
        loss=float(after.mean()) if len(held) else 0.0,
        wrong_before=float(wrong(held.answers, held, exclusive=exclusive).float().mean()) if len(held) else 0.0,
        wrong=float(wrong(answers, held, exclusive=exclusive).float().mean()) if len(held) else 0.0,
        sureness=total / error if error > 0 else 0.0,
    )


def losses(answers: Tensor, items: Items, *, exclusive: bool) -> NDArray[np.float64]:
    """Loss of each item's answer."""
    return loss_of(answers, items, exclusive=exclusive).double().numpy()


def doubt(before: NDArray[np.float64], after: NDArray[np.float64], group: NDArray[np.int64]) -> float:
    """Standard errors that are counted against each column of what is tried as a whole.

    Where the whole surely helps, only columns that surely hurt are cut (the number is negative): most of them help, and
    few items tell too little of each. Where it does not, only columns that surely help are kept.

    Parameters
    ----------
    before, after : ndarray, float64, (n,)
        Losses of the items without and with all columns.
    group : ndarray, int64, (n,)
    """
    total, error = gain(before, after, group)
    return -_MARGIN if total > _MARGIN * error else _MARGIN


def weighed(before: NDArray[np.float64], after: NDArray[np.float64], group: NDArray[np.int64], errors: float) -> float:
    """The loss of what one column makes of its items, with some standard errors of the gain counted against it.

    Parameters
    ----------
    before, after : ndarray, float64, (n,)
    group : ndarray, int64, (n,)
    errors : float
        See `doubt`.
    """
    if len(before) < _FEW:
        return float(np.copysign(np.inf, errors))
    total, error = gain(before, after, group)
    return float(before.sum()) - total + errors * error


def _pruned(grown: Grown, held: Items, *, exclusive: bool) -> FeatureTree:
    """The tree without the columns that are not worth it."""
    table = [losses(a, held, exclusive=exclusive) for a in grown.answers]
    errors = doubt(table[0], table[-1], held.group)
    own, parent = np.zeros(len(grown.tree)), np.zeros(len(grown.tree))
    for node in range(1, len(grown.tree)):
        depth = int(grown.tree.depths[node]) - 1
        rows = np.flatnonzero(grown.nodes[:, depth] == node)
        before, after = (table[d][rows] for d in (depth, depth + 1))
        parent[node] = before.sum()
        own[node] = weighed(before, after, held.group[rows], errors)
    return grown.tree.pruned(own, parent)


def choose_gate(answered: Callable[[Gate], tuple[Tensor, NDArray[np.int64]]], held: Items, *, exclusive: bool) -> Gate:
    """The band of probabilities in which columns are asked.

    Parameters
    ----------
    answered : callable
        From a gate to answers, and to how many columns were asked of each item.
    held : Items
    exclusive : bool
    """
    before = losses(held.answers, held, exclusive=exclusive).sum()
    tried = []
    for low, high in product((0.0,) if exclusive else _LOW, _HIGH):
        gate = Gate(low, high, exclusive)
        answers, asked = answered(gate)
        tried.append((before - losses(answers, held, exclusive=exclusive).sum(), int(asked.sum()), gate))
    best = max(gained for gained, *_ in tried)
    enough = [each for each in tried if each[0] >= best - (1 - _GAIN_KEPT) * abs(best)]
    return min(enough, key=lambda each: (each[1], -each[0]))[2]


def _halves(group: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Every other group; every other item where all are of one."""
    known, index = np.unique(group, return_inverse=True)
    return np.asarray((index if len(known) > 1 else np.arange(len(group))) % 2 == 0)
