"""Specialists for groups of high-level features, on stored items: what they learn, and which are worth it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.models.activity import NO_GROUP, Groups
from coarse2fine.models.column import Column
from coarse2fine.models.gate import Gate
from coarse2fine.models.twin import ColumnSpec, Twins
from coarse2fine.specialists.items import Items, ItemStore
from coarse2fine.specialists.training import Cohort, ColumnTrainer, Shape, TrainingOptions, load_column, through
from coarse2fine.specialists.validation import Verdict, best_share, choose_gate, crossed, doubt, losses, weighed

_COUNT = (4, 8)
_ITEMS_EACH = 400
_DENSITY = 0.25


@dataclass(frozen=True)
class GrownGroups:
    """Groups of features with their columns, and what they make of items.

    Parameters
    ----------
    groups : Groups
    columns : tuple of Column
        One for each group.
    fires : Tensor, bool, (n, groups, h, w)
        Where each fires.
    added : tuple of Tensor, float16, (n, classes, h, w)
        What each column adds.
    """

    groups: Groups
    columns: tuple[Column, ...]
    fires: Tensor
    added: tuple[Tensor, ...]

    @classmethod
    def of(cls, groups: Groups, columns: tuple[Column, ...], items: Items) -> GrownGroups:
        """What the columns make of any items."""
        added = tuple(through(items, [column])[2] for column in columns)
        return cls(groups, columns, groups.fires(items.maps[-1].float()), added)

    def shrunk(self, share: float) -> GrownGroups:
        """The same with a share of what every column adds."""
        if share == 1:
            return self
        columns = tuple(column.shrunk(share) for column in self.columns)
        return replace(self, columns=columns, added=tuple(share * a for a in self.added))

    def take(self, rows: NDArray[np.intp]) -> GrownGroups:
        """The same groups, and some of the items."""
        at = torch.from_numpy(rows)
        return replace(self, fires=self.fires[at], added=tuple(a[at] for a in self.added))

    def answered(self, answers: Tensor, kept: NDArray[np.bool_], gate: Gate) -> tuple[Tensor, NDArray[np.int64]]:
        """Answers, and how many columns were asked of each item, by a gate and by which groups are kept."""
        fires = self.fires & torch.from_numpy(kept)[:, None, None] & gate.unsure(answers)[:, None, None, None]
        count = fires.sum(dim=1, keepdim=True).clamp(min=1)
        total = torch.zeros_like(self.added[0], dtype=torch.float32)
        for g, added in enumerate(self.added):
            total += fires[:, g, None] * added
        return answers + (total / count).mean(dim=(2, 3)), fires.any(dim=(2, 3)).sum(dim=1).numpy()


def grow_groups(
    store: ItemStore, twins: Twins, spec: ColumnSpec, options: TrainingOptions, *, count: int | None = None
) -> GrownGroups:
    """Group the high-level features that fire together, and train a column for each group.

    Parameters
    ----------
    store : ItemStore
    twins : Twins
        The maps of the base.
    spec : ColumnSpec
        Of each column.
    options : TrainingOptions
    count : int, optional
        Most groups; by default 4 to 8, by how many items there are.

    Returns
    -------
    GrownGroups
        With what they make of the items held back.

    Raises
    ------
    ValueError
        If no feature fires anywhere.
    """
    items = store.read(last=len(twins.maps) - spec.first + 1)
    learning = np.flatnonzero(~items.held)
    high = items.maps[-1][torch.from_numpy(learning)].float()
    count = count or min(max(len(learning) // _ITEMS_EACH, _COUNT[0]), _COUNT[1])
    groups = Groups.fit(high.permute(0, 2, 3, 1).reshape(-1, high.shape[1]).numpy(), count, _DENSITY)
    fires = groups.fires(high)
    classes = []
    for g in range(len(groups)):
        rows = torch.nonzero(fires[:, g].any(dim=(1, 2)))[:, 0]
        classes.append(Cohort(learning[rows.numpy()], weights=fires[rows, g, None].float()))
    shape = Shape(spec, twins, items.answers.shape[1])
    somewhere = [Cohort(learning, weights=fires.any(dim=1, keepdim=True).float())]
    paths = ColumnTrainer(store, options).train(shape, classes, somewhere)
    columns = tuple(load_column(shape, path) for path in paths)
    held = items.take(np.flatnonzero(items.held))
    return GrownGroups.of(groups, columns, held)


def judge_groups(
    grown: GrownGroups, items: Items, *, exclusive: bool
) -> tuple[float, NDArray[np.bool_], Gate, Verdict]:
    """Which groups are worth their columns, the gate, and what that gains.

    Parameters
    ----------
    grown : GrownGroups
    items : Items
        With those held back, which alone count.
    exclusive : bool
        Whether an item has one class.

    Returns
    -------
    float
        By which all columns are to be shrunk.
    ndarray, bool, (groups,)
        Which are worth it.
    Gate
    Verdict
    """
    held = items.take(np.flatnonzero(items.held))
    everywhere = Gate.open(exclusive=exclusive)
    grown = replace(grown, columns=())  # what they add decides

    def decide(rows: NDArray[np.intp]) -> tuple[float, NDArray[np.bool_], Gate]:
        part = held.take(rows)

        def tried(share: float) -> tuple[float, NDArray[np.bool_], GrownGroups]:
            mine = grown.take(rows).shrunk(share)
            kept = _kept(mine, part, exclusive=exclusive)
            answers, _ = mine.answered(part.answers, kept, everywhere)
            return float(losses(answers, part, exclusive=exclusive).sum()), kept, mine

        share, kept, mine = best_share(tried)
        gate = choose_gate(lambda gate: mine.answered(part.answers, kept, gate), part, exclusive=exclusive)
        return share, kept, gate

    def apply(
        rows: NDArray[np.intp], decided: tuple[float, NDArray[np.bool_], Gate]
    ) -> tuple[Tensor, NDArray[np.int64]]:
        share, kept, gate = decided
        return grown.take(rows).shrunk(share).answered(held.take(rows).answers, kept, gate)

    verdict = crossed(held, decide, apply, exclusive=exclusive)
    return *decide(np.arange(len(held))), verdict


def _kept(grown: GrownGroups, part: Items, *, exclusive: bool) -> NDArray[np.bool_]:
    """Groups whose columns are worth it, each tried alone."""
    everywhere = Gate.open(exclusive=exclusive)
    before = losses(part.answers, part, exclusive=exclusive)
    kept = np.ones(len(grown.added), bool)
    together, _ = grown.answered(part.answers, kept, everywhere)
    errors = doubt(before, losses(together, part, exclusive=exclusive), part.group)
    for g in range(len(kept)):
        alone, _ = grown.answered(part.answers, np.arange(len(kept)) == g, everywhere)
        after = losses(alone, part, exclusive=exclusive)
        asked = np.flatnonzero(grown.fires[:, g].any(dim=(1, 2)).numpy())
        kept[g] = weighed(before[asked], after[asked], part.group[asked], errors) <= before[asked].sum()
    return kept


def kept_groups(groups: Groups, kept: NDArray[np.bool_]) -> Groups:
    """Only some of the groups; the features of the others fire for none."""
    number = np.where(kept, np.cumsum(kept) - 1, NO_GROUP)
    return Groups(np.where(groups.group == NO_GROUP, NO_GROUP, number[groups.group]).astype(np.int64), groups.threshold)
