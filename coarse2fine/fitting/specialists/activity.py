"""Specialists that the scan chooses: columns for groups of its features, trained on the blocks in which they fire."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.calibrate import Calibrated, CalibrationSet, calibrate
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.forecast import FINDING, SCAN_SPECIALISTS, THRESHOLDS
from coarse2fine.fitting.rescaled import reanswered
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.specialists.add import REMEDY, Mode, tests_of
from coarse2fine.fitting.specialists.blocks import (
    SIDE,
    Blocks,
    batched,
    block_side,
    most_blocks,
    read_blocks,
    see,
)
from coarse2fine.fitting.specialists.first_stage import TOP, candidates
from coarse2fine.fitting.specialists.grow_groups import GrownGroups, judge_groups, kept_groups
from coarse2fine.fitting.specialists.items import Items
from coarse2fine.fitting.teacher import exhaustive_answer
from coarse2fine.model import Model
from coarse2fine.models.column import Column
from coarse2fine.models.column_training import ColumnDifference, NormedColumn
from coarse2fine.models.feature_groups import Groups
from coarse2fine.models.feature_maps import ColumnSpec, FeatureMaps, cell_rows
from coarse2fine.models.gate import Gate
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import normalised
from coarse2fine.progress import Progress, Tick
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.net import net_of
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.tiling.geometry import ceil_div

# Most groups, and the largest share of the blocks in which one fires.
_GROUPS, _DENSITY = 6, 0.1
# Steps for the weights that all columns share, and for each column's own, as shares of the refine net's.
_SHARED, _OWN = 0.12, 0.03
_RATE, _DECAY, _OWN_DECAY = 3e-3, 1e-2, 0.3


def add_activity(
    provenance: Mapping[str, Any],
    fitted: Calibrated,
    recipe: Recipe,
    setting: CalibrationSet,
    mode: Mode | None,
    bars: Progress,
) -> tuple[dict[str, Any], Calibrated, CalibrationSet]:
    """Add specialists that the scan chooses if they help significantly on held-out parts, and calibrate again.

    Parameters
    ----------
    provenance : mapping
        Provenance with the record of the modes that were tried.
    fitted : Calibrated
        Model with all nets trained.
    recipe : Recipe
    setting : CalibrationSet
    mode : {"heads", "tree", "activity", "auto"} or None
        They are tried in "activity" and "auto"; a warning says if they do not help and were requested by name.
    bars : Progress

    Returns
    -------
    dict of str to object
        Provenance with their gain.
    Calibrated
        Unchanged if they do not help.
    CalibrationSet
        With the answers of the refine net and its specialists.
    """
    model, refiner = fitted.model, fitted.model.refiner
    if mode not in ("activity", "auto") or not isinstance(refiner, DetectionRefiner):
        return dict(provenance), fitted, setting
    record: dict[str, Any] = {**provenance["specialists"]}
    tried = tests_of(mode, len(record["first_stage"]))
    learn = _Learning(model, recipe, setting.scenes, setting.runtime)
    groups, told = _tried(learn, tried, bars.task(SCAN_SPECIALISTS))
    record["held_back"] = record["held_back"] | ({"activity": told} if told else {})
    if groups is not None:
        record["chosen"] = " and ".join(filter(None, (record["chosen"], "activity")))
        model = replace(model, refiner=replace(refiner, groups=groups))
        answers = exhaustive_answer(model, setting.scenes, setting.runtime, recipe.seed, bars.task(FINDING))
        setting = replace(setting, answers=answers, areas=reanswered(setting.areas, answers))
        fitted = calibrate(replace(model, threshold=answers.threshold), setting, bars.task(THRESHOLDS))
    elif mode == "activity":
        gained = told or "there is nothing for them to learn from"
        warnings.warn(
            f"no specialists {mode!r} helped significantly on held-out parts of scenes: {gained}; {REMEDY}",
            stacklevel=3,
        )
    return {**provenance, "specialists": record}, fitted, setting


@dataclass(frozen=True)
class _Learning:
    """What columns are trained with."""

    model: Model
    recipe: Recipe
    scenes: Sequence[Scene]
    runtime: Runtime

    def read(self, places: NDArray[np.int64], *, held: bool) -> tuple[Blocks, NDArray[np.intp]]:
        """A random choice of blocks, as many as there is time for, and their rows."""
        rng = np.random.default_rng((self.recipe.seed, 5, held))
        rows = np.sort(rng.permutation(len(places))[: most_blocks(self.recipe, held=held)])
        return read_blocks(self.model, self.recipe, self.scenes, self.runtime, places[rows], held=held), rows

    def inputs(self, column: Column, blocks: Blocks, rows: NDArray[np.intp]) -> list[Tensor]:
        """Maps that a column reads for blocks."""
        net = self.runtime.place(net_of(self.model.refiner))
        with torch.no_grad():
            x = normalised(blocks.pixels[rows], self.model, self.runtime)
            return [m.float().cpu() for m in column.layout.read(x, net.features(x))]


def _tried(learn: _Learning, tried: int, tick: Tick | None) -> tuple[SpecialistGroups | None, str]:
    """The specialists, or None if they do not pay, and how much they gained."""
    model, seed = learn.model, learn.recipe.seed
    seen = see(model, learn.scenes, learn.runtime, seed)
    if seen.held.all() or not seen.held.any():
        return None, ""
    try:
        groups = Groups.fit(seen.high[~seen.held], _GROUPS, _DENSITY)
    except ValueError:  # no feature fires
        return None, ""
    fires = groups.fires(torch.from_numpy(seen.high.T.copy())[None, :, :, None])[0, :, :, 0].T.numpy()
    anywhere = fires.any(axis=1)
    learning, held = (np.flatnonzero(anywhere & (seen.held == back)) for back in (False, True))
    if not len(learning) or not len(held):
        return None, ""
    twins = FeatureMaps.of(net_of(model.refiner))
    spec = candidates(twins, TOP)[-1]
    blocks, rows = learn.read(seen.places[learning], held=False)
    columns = _trained(learn, spec, blocks, fires[learning[rows]], tick)
    blocks, rows = learn.read(seen.places[held], held=True)
    grown, items = _outputs(learn, groups, columns, blocks, fires[held[rows]], seen.places[held[rows], 3])
    share, kept, _, verdict = judge_groups(grown, items, exclusive=False, gates=(Gate.always(),))
    told = verdict.reported(tried)
    if not verdict.pays(tried):
        return None, told
    kept_columns = tuple(column.shrunk(share) for column, keep in zip(columns, kept, strict=True) if keep)
    often = float(fires[seen.held][:, kept].sum()) / int(seen.held.sum())
    macs = often * kept_columns[0].macs(SIDE, SIDE) / SIDE**2
    block = block_side(model)
    found = kept_groups(groups, kept)
    return SpecialistGroups(found, spec, kept_columns, Gate.always(), macs, len(model.labels), block), told


def _trained(
    learn: _Learning, spec: ColumnSpec, blocks: Blocks, fires: NDArray[np.bool_], tick: Tick | None
) -> tuple[Column, ...]:
    """A column for each group: weights that all share, then differences learned where the group fires."""
    steps, seed, classes = learn.recipe.steps, learn.recipe.seed, blocks.answers.shape[1]
    twins, groups = FeatureMaps.of(net_of(learn.model.refiner)), fires.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        normed = NormedColumn(spec, twins, classes)
    everything = np.arange(len(blocks))
    _descend(learn, normed.train(), list(normed.parameters()), blocks, everything, round(_SHARED * steps), _DECAY)
    normed.settle(learn.inputs(normed, blocks, next(batched(len(blocks), 1, seed))))
    shared = normed.folded()
    found = []
    for g in range(groups):
        column = Column(spec, twins, classes)
        column.load_state_dict(shared)
        own = ColumnDifference(column)
        rows = np.flatnonzero(fires[:, g])
        if len(rows):
            _descend(learn, own, list(own.differences), blocks, rows, round(_OWN * steps), _OWN_DECAY)
        last = Column(spec, twins, classes)
        # Half precision as in model files, so that saving and loading does not change a model.
        last.load_state_dict({name: w.detach().half().float() for name, w in own.weights().items()})
        found.append(last.eval())
        if tick:
            tick(g + 1, groups)
    return tuple(found)


def _descend(
    learn: _Learning,
    column: NormedColumn | ColumnDifference,
    weights: list[Tensor],
    blocks: Blocks,
    rows: NDArray[np.intp],
    steps: int,
    decay: float,
) -> None:
    """Fit a column to the remaining error in blocks."""
    steps = max(2, steps)
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.15)
    reader = column if isinstance(column, Column) else column.shared
    for batch in batched(len(rows), steps, learn.recipe.seed):
        mine = rows[batch]
        at = torch.from_numpy(mine)
        added, _ = column(learn.inputs(reader, blocks, mine))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            blocks.answers[at] + added, blocks.targets[at], reduction="none"
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward((loss * blocks.valid[at]).sum() / max(float(blocks.valid[at].amax(dim=1).sum()), 1.0))
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        schedule.step()


def _outputs(
    learn: _Learning,
    groups: Groups,
    columns: tuple[Column, ...],
    blocks: Blocks,
    fires: NDArray[np.bool_],
    group: NDArray[np.int64],
) -> tuple[GrownGroups, Items]:
    """Outputs of all columns in the cells of held-out blocks, each cell an item."""
    added: list[list[Tensor]] = [[] for _ in columns]
    for rows in np.array_split(np.arange(len(blocks)), ceil_div(len(blocks), 16)):
        inputs = learn.inputs(columns[0], blocks, rows)
        with torch.no_grad():
            for each, column in zip(added, columns, strict=True):
                each.append(cell_rows(column(inputs)[0]).half())
    cells = SIDE * SIDE
    items = Items(
        (),
        cell_rows(blocks.answers),
        cell_rows(blocks.targets),
        cell_rows(blocks.valid),
        np.ones(len(blocks) * cells, bool),
        np.repeat(group, cells),
        np.zeros((len(blocks) * cells, 1, 1, 1), np.uint8),
    )
    known = np.flatnonzero(items.valid.amax(dim=1).numpy() > 0)
    each_cell = torch.from_numpy(np.repeat(fires, cells, axis=0)[:, :, None, None])
    outputs = tuple(torch.cat(each)[:, :, None, None] for each in added)
    return GrownGroups(groups, columns, each_cell, outputs).take(known), items.take(known)
