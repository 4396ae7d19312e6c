"""Specialists for a refine net, and which of them are worth it on what was held back."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import dask
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.targets import Scene
from coarse2fine.model import Model
from coarse2fine.models.gate import Gate
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.tree import ROOT
from coarse2fine.models.twin import ColumnSpec, Layout, Twins
from coarse2fine.progress import Progress
from coarse2fine.specialists.group_growth import GrownGroups, grow_groups, judge_groups, kept_groups
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.growth import Grown, grow
from coarse2fine.specialists.items import Items, ItemStore
from coarse2fine.specialists.training import TrainingOptions
from coarse2fine.specialists.tree import SpecialistTree
from coarse2fine.specialists.unsure_cells import UnsureCells
from coarse2fine.specialists.validation import Verdict, judge_tree

Mode = Literal["heads", "tree", "activity", "both", "auto"]
MODES: tuple[str, ...] = get_args(Mode)
_TOP = 48
_NARROWER = 0.5
_TILES = 8


@dataclass(frozen=True)
class _Found:
    """Specialists that were kept, and what they gain; neither where none is worth it."""

    verdicts: tuple[Verdict, ...]
    tree: SpecialistTree | None = None
    groups: SpecialistGroups | None = None

    @property
    def worth(self) -> float:
        return sum(verdict.worth for verdict in self.verdicts) if self.tree or self.groups else -np.inf

    @property
    def pays(self) -> bool:
        return bool(self.tree or self.groups) and all(verdict.pays for verdict in self.verdicts)

    def told(self) -> str:
        return "; ".join(map(str, self.verdicts))


def add_specialists(
    draft: Model,
    recipe: Recipe,
    scenes: Sequence[Scene],
    runtime: Runtime,
    mode: Mode | None,
    cache: str | os.PathLike[str] | None,
    bars: Progress,
) -> Model:
    """The model with specialists that help on what was held back, in "auto" surely; the model itself where none do.

    Parameters
    ----------
    draft : Model
        With a trained refine net.
    recipe : Recipe
    scenes : sequence of Scene
    runtime : Runtime
    mode : {"heads", "tree", "activity", "both", "auto"} or None
        None tries none.
    cache : path, optional
        Folder of the store; by default a temporary one.
    bars : Progress
    """
    if mode is None:
        return draft
    twins = Twins.of(draft.refiner)
    spec = column_spec(twins)
    tick = bars.task("specialists")
    told: dict[str, Any] = {"asked": mode, "chosen": None, "held_back": {}}
    chosen: _Found | None = None
    with contextlib.ExitStack() as stack:
        folder = Path(cache or stack.enter_context(tempfile.TemporaryDirectory()))
        if not cache:
            # Workers of a cluster may not see a temporary folder of this machine.
            stack.enter_context(dask.config.set(scheduler="synchronous"))
        cells = UnsureCells.collect(draft, recipe, scenes, runtime, Layout.of(spec, twins), folder)
        if cells is not None:
            names = tuple(label.name for label in draft.labels)
            learn = _Learning(cells, twins, spec, names, TrainingOptions(seed=recipe.seed))
            wanted = ("heads", "tree", "activity") if mode == "auto" else (mode,)
            found = {}
            for done, name in enumerate(wanted):
                found[name] = learn(name)
                tick(done + 1, len(wanted))
            told["held_back"] = {name: each.told() for name, each in found.items()}
            # What was asked for by its name need not pay.
            eligible = [
                name for name in wanted if found[name].pays or (mode != "auto" and np.isfinite(found[name].worth))
            ]
            if eligible:
                best = max(eligible, key=lambda name: found[name].worth)
                chosen, told["chosen"] = found[best], best
    tree, groups = (None, None) if chosen is None else (chosen.tree, chosen.groups)
    return replace(draft, tree=tree, groups=groups, provenance={**draft.provenance, "specialists": told})


def column_spec(twins: Twins, top: int = _TOP) -> ColumnSpec:
    """Columns that begin where the net last becomes coarser: what lies lower would need a large halo for each cell.

    Parameters
    ----------
    twins : Twins
        The maps of the net.
    top : int
        Channels of the last stage.
    """
    maps = twins.maps
    first = max((n for n in range(1, len(maps)) if maps[n].jump > maps[n - 1].jump), default=1)
    return ColumnSpec.design(twins, top, first=first)


@dataclass(frozen=True)
class _Learning:
    """One way after another to learn from the same cells."""

    cells: UnsureCells
    twins: Twins
    spec: ColumnSpec
    names: tuple[str, ...]
    options: TrainingOptions

    def __call__(self, name: str) -> _Found:
        if name == "heads":
            return self._tree((ColumnSpec.head(self.twins),))
        if name == "tree":
            return self._tree((self.spec, self.spec.narrowed(_NARROWER)))
        active = self._groups()
        if name == "activity":
            return active
        # The tree corrects what the groups leave.
        answers = None if active.groups is None else _answered(active.groups, self.cells.store)
        tree = self._tree((self.spec, self.spec.narrowed(_NARROWER)), answers)
        return _Found((*active.verdicts, *tree.verdicts), tree.tree, active.groups)

    def _tree(self, specs: tuple[ColumnSpec, ...], answers: Tensor | None = None) -> _Found:
        store = self.cells.store
        grown = grow(store, self.twins, specs, self.options, answers=answers)
        items = store.read(last=1)
        items = items if answers is None else items.answered(answers)
        grown, gate, verdict = judge_tree(grown, items, exclusive=False)
        if not grown.tree.kept[1:].any():
            return _Found((verdict,))
        return _Found((verdict,), tree=_as_tree(grown, gate, specs, items, self.cells.held_cells, self.names))

    def _groups(self) -> _Found:
        store = self.cells.store
        try:
            grown = grow_groups(store, self.twins, self.spec, self.options)
        except ValueError:  # no feature fires
            return _Found(())
        items = store.read(last=1)
        share, kept, gate, verdict = judge_groups(grown, items, exclusive=False)
        if not kept.any():
            return _Found((verdict,))
        return _Found(
            (verdict,), groups=_as_groups(grown.shrunk(share), gate, kept, self.spec, items, self.cells.held_cells)
        )


def _answered(groups: SpecialistGroups, store: ItemStore) -> Tensor:
    """Answers to all items with the groups at work."""
    items = store.read(last=len(groups.columns[0].layout.maps))
    grown = GrownGroups.of(groups.groups, groups.columns, items)
    return grown.answered(items.answers, np.ones(len(groups.columns), bool), groups.gate)[0]


def _as_groups(
    grown: GrownGroups, gate: Gate, kept: NDArray[np.bool_], spec: ColumnSpec, items: Items, held_cells: int
) -> SpecialistGroups:
    """The groups that are kept, as part of a model."""
    answers = items.answers[torch.from_numpy(items.held)]
    _, asked = grown.answered(answers, kept, gate)
    return SpecialistGroups(
        kept_groups(grown.groups, kept),
        spec,
        tuple(column for column, keep in zip(grown.columns, kept, strict=True) if keep),
        gate,
        float(asked.sum()) * grown.columns[0].macs(1, 1) / held_cells,
        answers.shape[1],
    )


def _as_tree(
    grown: Grown,
    gate: Gate,
    specs: tuple[ColumnSpec, ...],
    items: Items,
    held_cells: int,
    names: tuple[str, ...],
) -> SpecialistTree:
    """A tree with what is kept of its columns, as part of a model."""
    tree, learning = grown.tree, np.flatnonzero(~items.held)
    shares, tiles = np.zeros((len(tree), len(names)), np.float32), {}
    rng = np.random.default_rng(0)
    for node in range(1, len(tree)):
        rows = learning[(grown.nodes[learning] == node).any(axis=1)]
        shares[node] = items.targets[torch.from_numpy(rows)].mean(dim=0)
        if node in tree.leaves:
            tiles[node] = items.tiles[np.sort(rng.permutation(rows)[:_TILES])]
    return SpecialistTree(
        clusters=tree,
        specs=specs,
        columns={node: column for node, column in grown.columns.items() if tree.kept[node]},
        gate=gate,
        macs_per_cell=_macs(grown.take(np.flatnonzero(items.held)), gate) / held_cells,
        names=names,
        shares=shares,
        tiles=tiles,
    )


def _macs(grown: Grown, gate: Gate) -> float:
    """Multiply-adds of columns and routing, one cell an item."""
    _, asked = grown.answered(gate, grown.tree)
    total = int((gate.unsure(grown.answers[0])).sum()) * grown.tree.centres[ROOT].size
    for depth, nodes in enumerate(grown.nodes.T):
        for node in nodes[asked > depth].tolist():
            total += grown.columns[node].macs(1, 1) + grown.tree.centres[node].size
    return float(total)
