"""Training of specialists from a store of items, as Dask tasks: first the weights that all share, then each column.

A task reads the store and writes one file; existing files are not trained again. Each task uses one thread and its own
seed, so the result does not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.bundle import packed
from coarse2fine.fitting.specialists.items import Items, ItemStore, Loss, loss_of, squared_of
from coarse2fine.model_file import read_model_file
from coarse2fine.models.column import Column
from coarse2fine.models.column_training import ColumnDifference, NormedColumn
from coarse2fine.models.feature_maps import ColumnSpec, FeatureMaps
from coarse2fine.models.threads import threads_here
from coarse2fine.tiling.writing.atomic import replace_file

_BLOCK = 1024
# Items by which the statistics of batch normalisation are measured.
_SETTLED = 4096
_SEEDED = threading.Lock()


@dataclass(frozen=True)
class TrainingOptions:
    """Hyperparameters of the training of specialists.

    Parameters
    ----------
    epochs, own_epochs : int
        Passes over all items for the weights that the columns of a depth share, and over a column's own items for its
        differences (if 0, all columns of a depth are the same).
    batch : int
        Items of a step.
    rate : float
        Highest learning rate of AdamW, after a warm-up and before a cosine decay.
    decay, own_decay : float
        Weight decay of shared weights, and of differences.
    seed : int
    """

    epochs: int = 4
    own_epochs: int = 2
    batch: int = 128
    rate: float = 3e-3
    decay: float = 1e-2
    own_decay: float = 0.3
    seed: int = 0


@dataclass(frozen=True)
class Shape:
    """Arguments of `Column`."""

    spec: ColumnSpec
    twins: FeatureMaps
    classes: int
    parent: ColumnSpec | None = None

    def empty(self) -> Column:
        """An untrained column."""
        return Column(self.spec, self.twins, self.classes, parent=self.parent)


@dataclass(frozen=True)
class Cohort:
    """Training items of one column, which have passed the same columns above it.

    Parameters
    ----------
    rows : ndarray, int, (n,)
        Rows in the store, increasing.
    above : tuple of (Shape, Path)
        Columns on the items' path, from the first below the root on, each with its file.
    weights : Tensor, float32, (n, 1, h, w), optional
        Factor on the column's output in each cell; by default 1.
    answers : Tensor, float32, (n, classes), optional
        Answers before any column; by default the base's.
    """

    rows: NDArray[np.intp]
    above: tuple[tuple[Shape, Path], ...] = ()
    weights: Tensor | None = None
    answers: Tensor | None = None


class ColumnTrainer:
    """Trains columns and stores them beside the items.

    Parameters
    ----------
    store : ItemStore
    options : TrainingOptions
    """

    def __init__(self, store: ItemStore, options: TrainingOptions) -> None:
        self.store, self.options = store, options

    def train(self, shape: Shape, classes: Sequence[Cohort], together: Sequence[Cohort] | None = None) -> list[Path]:
        """Train the shared weights, then a column for each cohort; existing files are reused.

        The tasks run on the current Dask scheduler (a `distributed.Client`, or the one set in `dask.config`), or one
        after another if none is set.

        Parameters
        ----------
        shape : Shape
            Shape of all columns.
        classes : sequence of Cohort
        together : sequence of Cohort, optional
            Items for the shared weights; by default those of `classes`.
        """
        folder, together = self.store.folder, tuple(together or classes)
        shared = folder / self._name("shared", shape, together)
        paths = [folder / self._name("own", shape, [each], shared.name) for each in classes]
        # Tasks only for missing columns, so that other cohorts are not sent to workers.
        missing = [(each, path) for each, path in zip(classes, paths, strict=True) if not path.is_file()]
        if missing:
            first = dask.delayed(_train_shared)(folder, self.options, shape, together, shared)
            tasks = [dask.delayed(_train_own)(folder, self.options, shape, each, first, path) for each, path in missing]
            dask.compute(*tasks, scheduler=dask.base.get_scheduler() or "synchronous")
        return paths

    def _name(self, kind: str, shape: Shape, classes: Sequence[Cohort], after: str = "") -> str:
        """File name with a digest of all that a column depends on."""
        known = [kind, self.store.name, str(shape), json.dumps(asdict(self.options)), after]
        digest = hashlib.sha256("\n".join(known).encode())
        for each in classes:
            digest.update(each.rows.tobytes())
            digest.update("".join(path.name for _, path in each.above).encode())
            for tensor in (each.weights, each.answers):
                digest.update(b"-" if tensor is None else tensor.numpy().tobytes())
        return f"{kind}-{digest.hexdigest()[:20]}.c2f"


def load_column(shape: Shape, path: Path) -> Column:
    """Load a trained column, in evaluation mode."""
    arrays, _ = read_model_file(path)
    column = shape.empty()
    column.load_state_dict({name: torch.from_numpy(array).float() for name, array in arrays.items()})
    return column.eval()


def through(items: Items, columns: Sequence[Column]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Run a chain of columns on items.

    Parameters
    ----------
    items : Items
    columns : sequence of Column

    Returns
    -------
    answers : Tensor, float32, (n, classes)
    stages : list of Tensor, float16
        Activations of the last column's stages.
    added : Tensor, float16, (n, classes, h, w)
        Output of the last column in each cell.
    """
    answers, made, adds = [], [], []
    for start in range(0, max(len(items), 1), _BLOCK):
        part = slice(start, start + _BLOCK)
        answer = items.answers[part]
        stages: list[Tensor] = []
        added = answer[:, :, None, None].half() * 0
        inputs = [m[part].float() for m in items.maps]
        for column in columns:
            with torch.inference_mode():
                added, stages = column(inputs[len(inputs) - len(column.layout.maps) :], stages)
                answer = answer + added.mean(dim=(2, 3))
        answers.append(answer)
        made.append([s.half() for s in stages])
        adds.append(added.half())
    return torch.cat(answers), [torch.cat(column) for column in zip(*made, strict=True)], torch.cat(adds)


def _gathered(store: ItemStore, shape: Shape, classes: Sequence[Cohort]) -> tuple[Items, list[Tensor], Tensor | None]:
    """Items of all cohorts with their initial answers, the stages of their parent columns, and weights."""
    parts, stages, weights = [], [], []
    reads = _reads([shape, *(s for each in classes for s, _ in each.above)])
    for each in classes:
        items = store.read(each.rows, last=reads)
        items = items if each.answers is None else items.answered(each.answers)
        answers, own, _ = through(items, [load_column(*above) for above in each.above])
        parts.append(items.answered(answers))
        stages.append(own)
        weights.append(each.weights)
    joined = Items.joined(parts)
    joined = replace(joined, maps=joined.maps[-_reads([shape]) :])
    known = [w for w in weights if w is not None]
    return (
        joined,
        [torch.cat(column) for column in zip(*stages, strict=True)],
        torch.cat(known) if known else None,
    )


def _reads(shapes: Sequence[Shape]) -> int:
    return max(len(s.twins.maps) - s.spec.first + 1 for s in shapes)


def _train_shared(folder: Path, options: TrainingOptions, shape: Shape, classes: Sequence[Cohort], path: Path) -> Path:
    """Train the weights that all columns of a depth share, as one column on all items."""
    if path.is_file():
        return path
    store = ItemStore(folder)
    # One thread: the order of sums, and so their rounding, does not depend on the machine.
    with threads_here(1):
        # Torch's generator is global to the process: tasks in threads take turns.
        with _SEEDED, torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            column = NormedColumn(shape.spec, shape.twins, shape.classes, parent=shape.parent)
        items, stages, weights = _gathered(store, shape, classes)
        groups = [{"params": list(column.parameters()), "weight_decay": options.decay}]
        _descend(column.train(), groups, items, stages, weights, options, options.epochs, store.loss)
        if len(items) > 1:
            some = torch.from_numpy(np.random.default_rng(options.seed).permutation(len(items))[:_SETTLED])
            column.settle([m[some].float() for m in items.maps], [s[some].float() for s in stages])
        replace_file(path, packed(_half(column.folded()), {}))
    return path


def _train_own(folder: Path, options: TrainingOptions, shape: Shape, mine: Cohort, shared: Path, path: Path) -> Path:
    """Train one column's differences from the shared weights, on its own items."""
    store = ItemStore(folder)
    with threads_here(1):
        column = ColumnDifference(load_column(shape, shared))
        items, stages, weights = _gathered(store, shape, [mine])
        groups = [{"params": list(column.differences), "weight_decay": options.own_decay}]
        _descend(column, groups, items, stages, weights, options, options.own_epochs, store.loss)
        replace_file(path, packed(_half(column.weights()), {}))
    return path


def _descend(
    column: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, list[Tensor]]],
    groups: list[dict[str, Any]],
    items: Items,
    stages: Sequence[Tensor],
    weights: Tensor | None,
    options: TrainingOptions,
    epochs: int,
    loss: Loss,
) -> None:
    """Fit a column to the remaining error of its parent."""
    count, batch = len(items), min(options.batch, len(items))
    if count < 2 or not epochs:
        return
    steps = max(2, epochs * count // batch)
    optimizer = torch.optim.AdamW(groups, lr=options.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps, pct_start=0.15)
    rng = np.random.default_rng(options.seed)
    for _ in range(steps):
        rows = rng.permutation(count)[:batch]
        part, at = items.take(rows), torch.from_numpy(rows)
        added, _ = column([m.float() for m in part.maps], [s[at].float() for s in stages])
        if weights is not None:
            added = added * weights[at]
        answers = part.answers + added.mean(dim=(2, 3))
        each = squared_of(answers, part) if loss == "squared" else loss_of(answers, part, exclusive=loss == "softmax")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(each.mean())
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 5.0)
        optimizer.step()
        schedule.step()


def _half(weights: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    # Half precision as in model files, so that saving and loading does not change a model.
    return {name: t.detach().half().numpy() for name, t in weights.items()}
