"""Choice of the stage at which columns begin, by measured gain for each multiply-add.

A column that begins earlier reads finer maps, and its stages need a halo: for a single cell it costs several times as
much. One column for all unsure cells is trained for each candidate on a small sample, and the gain of each on held-out
cells decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.specialists.items import Items, ItemStore, loss_of
from coarse2fine.fitting.specialists.train_columns import (
    Cohort,
    ColumnTrainer,
    Shape,
    TrainingOptions,
    load_column,
    through,
)
from coarse2fine.fitting.specialists.unsure_cells import Draws, UnsureCells
from coarse2fine.fitting.specialists.validate import SHARES
from coarse2fine.model import Model
from coarse2fine.models.column import Column
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.runtime import Runtime

TOP = 48
"""Channels of a column's last stage."""
_FOLDER = "first-stage"
# Columns that begin at the first layer read 45 to 100 kB of maps for a cell: a sample is enough to compare candidates.
_DRAWS = Draws(batches=0.02, parts=64, cells=32)


def candidates(twins: FeatureMaps, top: int = TOP) -> list[ColumnSpec]:
    """Columns that begin at each coarsening of a net, its first layer included, the last coarsening first.

    Parameters
    ----------
    twins : FeatureMaps
        Maps of the net.
    top : int
        Channels of the last stage.
    """
    maps = twins.maps
    firsts = {1, *(n for n in range(1, len(maps)) if maps[n].jump > maps[n - 1].jump)}
    return [ColumnSpec.design(twins, top, first=first) for first in sorted(firsts, reverse=True)]


def choose_first(
    draft: Model,
    recipe: Recipe,
    scenes: Sequence[Scene],
    runtime: Runtime,
    options: TrainingOptions,
    folder: Path,
) -> tuple[ColumnSpec, dict[str, float]]:
    """The shape of column with the largest gain for each multiply-add, and that figure of each candidate.

    Gains are reduced by one standard error over groups of held-out cells. Without any gain it is the cheapest, which
    begins at the last coarsening.

    Parameters
    ----------
    draft : Model
        With a trained refine net.
    recipe : Recipe
    scenes : sequence of Scene
    runtime : Runtime
    options : TrainingOptions
    folder : Path
        Folder of the specialists' store; the sample is stored beside it.

    Returns
    -------
    ColumnSpec
    dict of str to float
        Gain in nats for a million multiply-adds, by shape.
    """
    twins = FeatureMaps.of(draft.refiner.net)  # type: ignore[attr-defined]
    specs = candidates(twins)
    layout = ColumnInputs.of(specs[-1], twins)
    cells = UnsureCells.collect(draft, recipe, scenes, runtime, layout, folder / _FOLDER, _DRAWS)
    if cells is None:
        return specs[0], {}
    items = cells.store.read()
    held = items.take(np.flatnonzero(items.held))
    if not len(held):
        return specs[0], {}
    trainer = ColumnTrainer(cells.store, replace(options, own_epochs=0))
    gains = {}
    for spec in specs:
        shape = Shape(spec, twins, items.answers.shape[1])
        column = _trained(trainer, cells.store, shape)
        gains[str(spec)] = 1e6 * _gain(held, column) / column.macs(1, 1)
    best = max(specs, key=lambda spec: max(gains[str(spec)], 0.0))
    return best, gains


def _trained(trainer: ColumnTrainer, store: ItemStore, shape: Shape) -> Column:
    """One column for all training items."""
    rows = np.flatnonzero(~store.table("held"))
    (path,) = trainer.train(shape, [Cohort(rows)])
    return load_column(shape, path)


def _gain(held: Items, column: Column) -> float:
    """Mean reduction of the loss of held-out items by the best shrinkage, less its standard error over groups."""
    added = through(held, [column])[0] - held.answers
    before = loss_of(held.answers, held, exclusive=False)
    _, group = np.unique(held.group, return_inverse=True)
    found = []
    for share in SHARES:
        gained = (before - loss_of(held.answers + share * added, held, exclusive=False)).double().numpy()
        mean = float(gained.mean())
        spread = np.bincount(group, gained - mean)
        groups = len(spread)
        error = float(np.sqrt((spread**2).sum() * groups / max(groups - 1, 1))) / len(held)
        found.append(mean - error)
    return max(found)
