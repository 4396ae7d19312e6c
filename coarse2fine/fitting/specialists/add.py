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

from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.forecast import SPECIALISTS
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.specialists.earnings import KEY, as_record
from coarse2fine.fitting.specialists.first_stage import candidates, choose_first
from coarse2fine.fitting.specialists.grow_tree import Grown, TreeGrower
from coarse2fine.fitting.specialists.items import Items
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
from coarse2fine.specialists.tree import SpecialistTree

Mode = Literal["heads", "tree", "activity", "auto"]
MODES: tuple[str, ...] = get_args(Mode)
REMEDY = "annotate more scenes, or train for longer (steps)"
DEEPEST = 4
"""Most steps down a tree, unless a fit says otherwise; a step is added only if it helps significantly."""
_NARROWER = 0.5
_TILES = 8


def tests_of(mode: Mode, firsts: int) -> int:
    """Number of tests of a mode, which share the significance level.

    Parameters
    ----------
    mode : {"heads", "tree", "activity", "auto"}
    firsts : int
        Stages at which columns of a tree could begin.
    """
    each = {"heads": 1, "tree": max(1, firsts), "activity": 1}
    return sum(each.values()) if mode == "auto" else each[mode]


def add_specialists(
    draft: Model,
    recipe: Recipe,
    scenes: Sequence[Scene],
    runtime: Runtime,
    mode: Mode | None,
    cache: str | os.PathLike[str] | None,
    bars: Progress,
    depth: int = DEEPEST,
) -> Model:
    """Add heads or a tree if they help significantly on held-out parts; specialists that the scan chooses come later.

    If a mode requested by name does not help significantly, it is left out with a warning.

    Parameters
    ----------
    draft : Model
        With a trained refine net.
    recipe : Recipe
    scenes : sequence of Scene
    runtime : Runtime
    mode : {"heads", "tree", "activity", "auto"} or None
        None trains no specialists.
    cache : path, optional
        Folder of the item store; by default a temporary one.
    bars : Progress
    depth : int
        Most steps down the tree.
    """
    refiner = draft.refiner
    if mode is None or not isinstance(refiner, DetectionRefiner):
        return draft
    twins = FeatureMaps.of(refiner.net)
    options = TrainingOptions(seed=recipe.seed)
    tick = bars.task(SPECIALISTS)
    record: dict[str, Any] = {"asked": mode, "chosen": None, "held_back": {}, "first_stage": {}}
    wanted = {"auto": ("heads", "tree"), "activity": ()}.get(mode, (mode,))
    tree: SpecialistTree | None = None
    earned: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(cache or stack.enter_context(tempfile.TemporaryDirectory()))
        if not cache:
            # Workers of a cluster may not see a temporary folder of this machine.
            stack.enter_context(dask.config.set(scheduler="synchronous"))
        spec = candidates(twins)[0]
        if "tree" in wanted:
            spec, record["first_stage"] = choose_first(draft, recipe, scenes, runtime, options, folder)
        layout = ColumnInputs.of(spec, twins)
        draws = Draws().limited(layout, recipe.steps)
        cells = UnsureCells.collect(draft, recipe, scenes, runtime, layout, folder, draws) if wanted else None
        if cells is not None:
            names = tuple(label.name for label in draft.labels)
            learn = _Learning(cells, twins, spec, names, options, depth)
            tried = tests_of(mode, len(record["first_stage"]))
            found = {}
            for done, name in enumerate(wanted):
                found[name] = learn(name, tried)
                tick(done + 1, len(wanted))
            record["held_back"] = {name: verdict.reported(tried) for name, (verdict, _) in found.items() if verdict}
            record["chosen"] = best_way({name: verdict for name, (verdict, _) in found.items() if verdict}, tried)
            if record["chosen"]:
                verdict, tree = found[record["chosen"]]
                earned = {} if verdict is None else as_record(verdict.earned, "loss")
    if mode in ("heads", "tree") and tree is None:
        gained = record["held_back"].get(mode) or "there is nothing for them to learn from"
        warnings.warn(
            f"no specialists {mode!r} helped significantly on held-out parts of scenes: {gained}; {REMEDY}",
            stacklevel=3,
        )
    provenance = {**draft.provenance, "specialists": record, **({KEY: earned} if earned else {})}
    return replace(draft, refiner=replace(refiner, tree=tree), provenance=provenance)


@dataclass(frozen=True)
class _Learning:
    """Trains specialists of each mode on the same cells."""

    cells: UnsureCells
    twins: FeatureMaps
    spec: ColumnSpec
    names: tuple[str, ...]
    options: TrainingOptions
    depth: int

    def __call__(self, name: str, tried: int) -> tuple[Verdict | None, SpecialistTree | None]:
        """Verdict on a mode, if there was anything to learn from, and its tree if it pays."""
        return self._tree((ColumnSpec.head(self.twins),) if name == "heads" else self._specs, tried)

    @property
    def _specs(self) -> tuple[ColumnSpec, ...]:
        """Shapes of columns at each depth: fewer channels with each step down the tree."""
        return tuple(self.spec.narrowed(_NARROWER**depth) for depth in range(self.depth))

    def _tree(self, specs: tuple[ColumnSpec, ...], tried: int) -> tuple[Verdict | None, SpecialistTree | None]:
        """A tree that grows as long as its next depth helps significantly on held-out cells.

        Depths are tested in order, each given those above, until one fails (fixed-sequence testing): the level then
        holds for all of them without a further correction.
        """
        maps = len(self.twins.maps) - specs[0].first + 1
        grower = TreeGrower(self.cells.store, self.twins, self.options, maps=maps)
        grown, verdict = grower.grown, None
        for spec in specs:
            if not grower.deepen(spec):
                break
            last = judge_last(grower.grown, grower.items, exclusive=False)
            verdict = verdict or last
            if not last.pays(tried):
                break
            grown = grower.grown
        if not grown.columns:
            return verdict, None
        grown, gate, verdict = judge_tree(grown, grower.items, exclusive=False)
        if not verdict.pays(tried):
            return verdict, None
        deep = specs[: grown.nodes.shape[1]]
        return verdict, _as_tree(grown, gate, deep, grower.items, self.cells.held_cells, self.names)


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
