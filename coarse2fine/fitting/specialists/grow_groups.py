"""Choice of the groups of features whose columns help on held-out items."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.specialists.evidence import Decision
from coarse2fine.fitting.specialists.items import Items
from coarse2fine.fitting.specialists.validate import SHARES, Measure, Verdict, answers_measured, judged
from coarse2fine.models.column import Column
from coarse2fine.models.feature_groups import NO_GROUP, Groups
from coarse2fine.models.gate import Gate


@dataclass(frozen=True)
class GrownGroups:
    """Groups of features with their columns, and the columns' outputs on items.

    Parameters
    ----------
    groups : Groups
    columns : tuple of Column
        One for each group.
    fires : Tensor, bool, (n, groups, h, w)
        Cells where each group fires.
    added : tuple of Tensor, float16, (n, classes, h, w)
        Output of each column, which is added to the answer.
    """

    groups: Groups
    columns: tuple[Column, ...]
    fires: Tensor
    added: tuple[Tensor, ...]

    def shrunk(self, share: float) -> GrownGroups:
        """A copy with the output of every column multiplied by `share`."""
        if share == 1:
            return self
        columns = tuple(column.shrunk(share) for column in self.columns)
        return replace(self, columns=columns, added=tuple(share * a for a in self.added))

    def take(self, rows: NDArray[np.intp]) -> GrownGroups:
        """A copy with some of the items."""
        at = torch.from_numpy(rows)
        return replace(self, fires=self.fires[at], added=tuple(a[at] for a in self.added))

    def answered(self, answers: Tensor, kept: NDArray[np.bool_], gate: Gate) -> tuple[Tensor, NDArray[np.int64]]:
        """Answers, and how many columns ran on each item, for a gate and for the groups that are kept."""
        fires = self.fires & torch.from_numpy(kept)[:, None, None] & gate.unsure(answers)[:, None, None, None]
        count = fires.sum(dim=1, keepdim=True).clamp(min=1)
        total = torch.zeros_like(self.added[0], dtype=torch.float32)
        for g, added in enumerate(self.added):
            total += fires[:, g, None] * added
        return answers + (total / count).mean(dim=(2, 3)), fires.any(dim=(2, 3)).sum(dim=1).numpy()


class GroupColumns:
    """Gains of groups' columns: several may run in a cell, so each combination of columns is measured anew.

    Parameters
    ----------
    grown : GrownGroups
        With outputs on the items.
    items : Items
    gates : tuple of Gate
        The open one first.
    shares : tuple of float
    measure : callable
    """

    def __init__(
        self, grown: GrownGroups, items: Items, gates: tuple[Gate, ...], shares: tuple[float, ...], measure: Measure
    ) -> None:
        self._grown, self._items, self._gates, self._measure = [grown.shrunk(s) for s in shares], items, gates, measure
        count, self.shares = len(grown.added), len(shares)
        self.depths = np.zeros(count, np.int64)
        _, self._group = np.unique(items.group, return_inverse=True)
        self._groups = int(self._group.max(initial=-1)) + 1
        self._before = measure(items.answers, items)[0]
        self._open = [gate.unsure(items.answers).numpy() for gate in gates]
        self._known: dict[tuple[int, bytes], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        each = [[self.whole(share, np.arange(count) == g) for g in range(count)] for share in range(len(shares))]
        self._alone = np.array([[gains[0] for gains, _ in row] for row in each])
        self.sizes: NDArray[np.float64] = np.array([runs[0] for _, runs in each[0]])

    def alone(self, share: int) -> NDArray[np.float64]:
        """See `Columns`."""
        return np.asarray(self._alone[share])

    def stays(self, gains: NDArray[np.float64]) -> NDArray[np.bool_]:
        """See `Columns`."""
        return gains > 0

    def whole(self, share: int, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `Columns`."""
        name = share, kept.tobytes()
        if name not in self._known:
            answers, fired = self._grown[share].answered(self._items.answers, kept, self._gates[0])
            gained = self._before - self._measure(answers, self._items)[0]
            self._known[name] = self._by_group(gained), self._by_group(fired)
        return self._known[name]

    def _by_group(self, values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Sums over the items that pass each gate, (gates, groups)."""
        return np.array([np.bincount(self._group, values * passes, self._groups) for passes in self._open])


def judge_groups(
    grown: GrownGroups, items: Items, *, exclusive: bool, gates: tuple[Gate, ...]
) -> tuple[float, NDArray[np.bool_], Gate, Verdict]:
    """Choose the groups whose columns help, the shrinkage and the gate, and measure their gain.

    Parameters
    ----------
    grown : GrownGroups
    items : Items
        Only the held-out items count.
    exclusive : bool
        Whether an item has one class.
    gates : tuple of Gate
        Gates to choose from, the open one first.

    Returns
    -------
    float
        Shrinkage factor of all columns.
    ndarray, bool, (groups,)
        Groups that are kept.
    Gate
    Verdict
    """
    held = items.take(np.flatnonzero(items.held))
    grown = replace(grown, columns=())  # only their outputs are needed
    measure = answers_measured(exclusive)

    def apply(rows: NDArray[np.intp], decided: Decision) -> tuple[Tensor, NDArray[np.int64]]:
        mine = grown.take(rows).shrunk(SHARES[decided.share])
        return mine.answered(held.take(rows).answers, decided.kept, gates[decided.gate])

    decided, verdict, _ = judged(GroupColumns(grown, held, gates, SHARES, measure), held, apply, measure)
    return SHARES[decided.share], decided.kept, gates[decided.gate], verdict


def kept_groups(groups: Groups, kept: NDArray[np.bool_]) -> Groups:
    """Only the kept groups; the features of the others belong to none."""
    number = np.where(kept, np.cumsum(kept) - 1, NO_GROUP)
    return Groups(np.where(groups.group == NO_GROUP, NO_GROUP, number[groups.group]).astype(np.int64), groups.threshold)
