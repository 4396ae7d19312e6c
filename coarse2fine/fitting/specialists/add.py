"""Training of a refine net's specialists, and choice of those that help on held-out parts of the scenes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
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
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.specialists.first_stage import candidates, choose_first
from coarse2fine.fitting.specialists.grow_groups import GrownGroups, grow_groups, judge_groups, kept_groups
from coarse2fine.fitting.specialists.grow_tree import Grown, TreeGrower
from coarse2fine.fitting.specialists.items import Items, ItemStore
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.fitting.specialists.unsure_cells import Draws, UnsureCells
from coarse2fine.fitting.specialists.validate import Verdict, best_way, judge_last, judge_tree
from coarse2fine.model import Model
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.feature_tree import ROOT
from coarse2fine.models.gate import Gate
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.tree import SpecialistTree

Mode = Literal["heads", "tree", "activity", "both", "auto"]
MODES: tuple[str, ...] = get_args(Mode)
# Modes with several parts, each tested separately.
_PARTS = {"both": 2}
_REMEDY = "annotate more scenes, or train for longer (steps)"
# Deepest tree; a depth is added only if it helps significantly.
_DEPTHS = 4
_NARROWER = 0.5
_TILES = 8


@dataclass(frozen=True)
class _Found:
    """Result of one mode, with a verdict on each part that was tried; a part that does not pay is left out."""

    verdicts: tuple[Verdict, ...]
    tree: SpecialistTree | None = None
    groups: SpecialistGroups | None = None

    @property
    def parts(self) -> list[str]:
        """Names of the parts that are kept."""
        return [name for name, part in (("groups", self.groups), ("a tree", self.tree)) if part is not None]


def add_specialists(
    draft: Model,
    recipe: Recipe,
    scenes: Sequence[Scene],
    runtime: Runtime,
    mode: Mode | None,
    cache: str | os.PathLike[str] | None,
    bars: Progress,
) -> Model:
    """Add specialists that help significantly on held-out parts; the model is unchanged if none do.

    If a mode requested by name, or a part of it, does not help significantly, it is left out with a warning.

    Parameters
    ----------
    draft : Model
        With a trained refine net.
    recipe : Recipe
    scenes : sequence of Scene
    runtime : Runtime
    mode : {"heads", "tree", "activity", "both", "auto"} or None
        None trains no specialists.
    cache : path, optional
        Folder of the item store; by default a temporary one.
    bars : Progress
    """
    refiner = draft.refiner
    if mode is None or not isinstance(refiner, DetectionRefiner):
        return draft
    twins = FeatureMaps.of(refiner.net)
    options = TrainingOptions(seed=recipe.seed)
    tick = bars.task("specialists")
    record: dict[str, Any] = {"asked": mode, "chosen": None, "held_back": {}}
    chosen: _Found | None = None
    with contextlib.ExitStack() as stack:
        folder = Path(cache or stack.enter_context(tempfile.TemporaryDirectory()))
        if not cache:
            # Workers of a cluster may not see a temporary folder of this machine.
            stack.enter_context(dask.config.set(scheduler="synchronous"))
        spec, record["first_stage"] = candidates(twins)[0], {}
        if mode != "heads":
            spec, record["first_stage"] = choose_first(draft, recipe, scenes, runtime, options, folder)
        layout = ColumnInputs.of(spec, twins)
        draws = Draws().limited(layout, recipe.steps)
        cells = UnsureCells.collect(draft, recipe, scenes, runtime, layout, folder, draws)
        if cells is not None:
            names = tuple(label.name for label in draft.labels)
            learn = _Learning(cells, twins, spec, names, options)
            wanted = ("heads", "tree", "activity") if mode == "auto" else (mode,)
            ways = max(1, len(record["first_stage"]))
            tried = sum(_PARTS.get(name, 1) * (1 if name == "heads" else ways) for name in wanted)
            found = {}
            for done, name in enumerate(wanted):
                found[name] = learn(name, tried)
                tick(done + 1, len(wanted))
            record["held_back"] = {n: "; ".join(v.reported(tried) for v in each.verdicts) for n, each in found.items()}
            best = best_way({name: each.verdicts for name, each in found.items()}, tried)
            if best is not None:
                chosen, record["chosen"] = found[best], best
    if mode != "auto" and (chosen is None or len(chosen.parts) < _PARTS.get(mode, 1)):
        gained = record["held_back"].get(mode) or "there is nothing for them to learn from"
        kept = f"of specialists {mode!r} only {chosen.parts[0]}" if chosen else f"no specialists {mode!r}"
        warnings.warn(f"{kept} helped significantly on held-out parts of scenes: {gained}; {_REMEDY}", stacklevel=3)
    tree, groups = (None, None) if chosen is None else (chosen.tree, chosen.groups)
    provenance = {**draft.provenance, "specialists": record}
    return replace(draft, refiner=replace(refiner, tree=tree, groups=groups), provenance=provenance)


@dataclass(frozen=True)
class _Learning:
    """Trains specialists of each mode on the same cells."""

    cells: UnsureCells
    twins: FeatureMaps
    spec: ColumnSpec
    names: tuple[str, ...]
    options: TrainingOptions

    def __call__(self, name: str, tried: int) -> _Found:
        if name == "heads":
            return self._tree((ColumnSpec.head(self.twins),), tried)
        if name == "tree":
            return self._tree(self._specs, tried)
        active = self._groups(tried)
        if name == "activity":
            return active
        # The tree is trained on the remaining error of the groups.
        answers = None if active.groups is None else _answered(active.groups, self.cells.store)
        tree = self._tree(self._specs, tried, answers)
        return _Found((*active.verdicts, *tree.verdicts), tree.tree, active.groups)

    @property
    def _specs(self) -> tuple[ColumnSpec, ...]:
        """Shapes of columns at each depth: fewer channels with each step down the tree."""
        return tuple(self.spec.narrowed(_NARROWER**depth) for depth in range(_DEPTHS))

    def _tree(self, specs: tuple[ColumnSpec, ...], tried: int, answers: Tensor | None = None) -> _Found:
        """A tree that grows as long as its next depth helps significantly on held-out cells.

        Depths are tested in order, each given those above, until one fails (fixed-sequence testing): the level then
        holds for all of them without a further correction.
        """
        maps = len(self.twins.maps) - specs[0].first + 1
        grower = TreeGrower(self.cells.store, self.twins, self.options, maps=maps, answers=answers)
        grown, verdict = grower.grown, None
        for spec in specs:
            if not grower.deepen(spec):
                break
            last = judge_last(grower.grown, grower.items, exclusive=False)
            verdict = verdict or last
            if not last.pays(tried):
                break
            grown = grower.grown
        if verdict is None or not grown.columns:
            return _Found(() if verdict is None else (verdict,))
        items = grower.items
        grown, gate, verdict = judge_tree(grown, items, exclusive=False)
        if not verdict.pays(tried):
            return _Found((verdict,))
        deep = specs[: grown.nodes.shape[1]]
        return _Found((verdict,), tree=_as_tree(grown, gate, deep, items, self.cells.held_cells, self.names))

    def _groups(self, tried: int) -> _Found:
        store = self.cells.store
        try:
            grown = grow_groups(store, self.twins, self.spec, self.options)
        except ValueError:  # no feature fires
            return _Found(())
        items = store.read(last=1)
        share, kept, gate, verdict = judge_groups(grown, items, exclusive=False)
        if not verdict.pays(tried):
            return _Found((verdict,))
        return _Found(
            (verdict,), groups=_as_groups(grown.shrunk(share), gate, kept, self.spec, items, self.cells.held_cells)
        )


def _answered(groups: SpecialistGroups, store: ItemStore) -> Tensor:
    """Answers to all items, with what the groups add."""
    items = store.read(last=len(groups.columns[0].layout.maps))
    grown = GrownGroups.of(groups.groups, groups.columns, items)
    return grown.answered(items.answers, np.ones(len(groups.columns), bool), groups.gate)[0]


def _as_groups(
    grown: GrownGroups, gate: Gate, kept: NDArray[np.bool_], spec: ColumnSpec, items: Items, held_cells: int
) -> SpecialistGroups:
    """The kept groups as part of a model."""
    answers = items.answers[torch.from_numpy(items.held)]
    _, runs = grown.answered(answers, kept, gate)
    return SpecialistGroups(
        kept_groups(grown.groups, kept),
        spec,
        tuple(column for column, keep in zip(grown.columns, kept, strict=True) if keep),
        gate,
        float(runs.sum()) * grown.columns[0].macs(1, 1) / held_cells,
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
    """A tree with its kept columns as part of a model."""
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
    """Multiply-adds of columns and routing, for items of one cell."""
    _, runs = grown.answered(gate, grown.tree)
    total = int((gate.unsure(grown.answers[0])).sum()) * grown.tree.step_macs(ROOT)
    for depth, nodes in enumerate(grown.nodes.T):
        for node in nodes[runs > depth].tolist():
            total += grown.columns[node].macs(1, 1) + grown.tree.step_macs(node)
    return float(total)
