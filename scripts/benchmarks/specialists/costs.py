"""What the machinery of specialists costs: training on workers, dispatch, and running only where something fires."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.report import Section
from benchmarks.specialists.data import tiles_of_digits
from benchmarks.specialists.nets import TOP
from benchmarks.specialists.runs import Trial
from coarse2fine.batch.dask_cluster import connected
from coarse2fine.fitting.geometry import WIDE_REFINER
from coarse2fine.fitting.specialists.add import column_spec
from coarse2fine.fitting.specialists.grow_tree import grow
from coarse2fine.fitting.specialists.items import ItemStore
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.models.batch_queue import BatchQueue, Done
from coarse2fine.models.column import Column
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.feature_maps import ColumnInputs, FeatureMaps
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.sparse_columns import Activity, dense, tune
from coarse2fine.models.threads import ThreadPool

_COLUMNS, _CLASSES = 12, 10
_DENSITY, _BLOB, _GROUPS = 0.05, 8, 4
# Pairs that come at a time, and how often they come.
_PUT, _PUTS = 384, 48


@dataclass(frozen=True)
class _Place:
    """Where columns are timed: over the refine net that `fit` makes of photographs, as an analysis has it."""

    base: ConvStack
    layout: ColumnInputs
    runtime: Runtime

    @classmethod
    def of(cls, top: int | None) -> _Place:
        """With columns as `fit` makes them, or such with as many channels in their last stage."""
        net = ConvStack(StackSpec.parse(3, WIDE_REFINER.format(out=_CLASSES))).eval()
        twins, runtime = FeatureMaps.of(net), Runtime.choose("cpu")
        spec = column_spec(twins) if top is None else column_spec(twins, top)
        return cls(runtime.place(net), ColumnInputs.of(spec, twins), runtime)

    def columns(self, count: int) -> list[Column]:
        """Columns that add something."""
        columns = [Column(self.layout.spec, self.layout.twins, _CLASSES) for _ in range(count)]
        for column in columns:
            nn.init.normal_(column.reader.weight)
        return [self.runtime.place(column) for column in columns]

    def maps(self, count: int, cells: int, rng: np.random.Generator) -> list[Tensor]:
        """What columns read of so many blocks of so many cells along a side."""
        side = self.base.spec.input_size(cells + 2 * self.layout.border)
        pixels = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        x = self.runtime.pixels(pixels, np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))
        with torch.inference_mode():
            return [m.clone() for m in self.layout.read(x, self.base.features(x))]


# Columns by the channels of their last stage: as `fit` makes them, and as many as the refine net has.
_TOPS = {"narrow": None, "full-size": 128}


def measure_costs(folder: Path, *, rounds: int, epochs: int, cells: int, workers: tuple[int, ...] = (1, 2)) -> Section:
    """Measure all three on this machine.

    Parameters
    ----------
    folder : Path
        Existing; what is made in it is removed again.
    rounds : int
        Of each measurement of seconds.
    epochs : int
        Of each column's own training.
    cells : int
        Side of the block in which something fires here and there, in cells.
    workers : tuple of int
        Processes that train.
    """
    trained = training_seconds(folder, epochs, workers)
    first, last = min(trained), max(trained)
    faster = trained[first] / trained[last]
    figures = {f"costs/training_seconds_{n}": seconds for n, seconds in trained.items()}
    figures["costs/training_speedup"] = faster
    lines = [
        f"training {_COLUMNS} columns: {trained[first]:.1f} s with {first} worker, {trained[last]:.1f} s with "
        f"{last}: {faster:.2f} times as fast (what they share is trained first, by one)"
    ]
    for name, top in _TOPS.items():
        place = _Place.of(top)
        found = dispatch_overheads(place, rounds) | activity_figures(place, rounds, cells)
        figures |= {f"costs/{name}/{key}": value for key, value in found.items()}
        dispatch, queue = found["dispatch_overhead"], found["dispatch_overhead_side_by_side"]
        lines += [
            f"dispatch over {_COLUMNS} {name} columns ({place.layout.spec}): {dispatch:+.1%} over one column for all "
            f"in dense batches of {_PUT}, {queue:+.1%} where these are run side by side too",
            f"activity of {_GROUPS} such columns at {_DENSITY:.0%} density, in blobs of {_BLOB} x {_BLOB} of "
            f"{cells} x {cells} cells: {found['activity_speedup']:.1f} times as fast as dense, "
            f"{found['activity_of_ideal']:.0%} of the ideal; {found['activity_fewer_macs']:.1f} times fewer "
            "multiply-adds, halos counted",
        ]
    return Section("what the machinery costs", tuple(lines), figures)


def training_seconds(folder: Path, epochs: int, workers: tuple[int, ...]) -> dict[int, float]:
    """Seconds in which so many processes train the columns of a tree, each from nothing."""
    seconds = {}
    options = TrainingOptions(epochs=1, own_epochs=epochs)
    for count in workers:
        own = folder / f"workers-{count}"
        own.mkdir()
        try:
            trial = Trial(tiles_of_digits(), 0, own, 60, options)
            store, twins, spec = trial.store(), trial.twins(), trial.design(TOP // 2)
            with connected(None, count) as client:
                # Imports are paid for before the clock runs.
                client.run(_warm, str(store.folder))
                start = time.perf_counter()
                grow(store, twins, [spec], options, clusters=_COLUMNS)
                seconds[count] = time.perf_counter() - start
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return seconds


def _warm(folder: str) -> None:
    ItemStore(folder)
    # The first step of all takes seconds.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()


def dispatch_overheads(place: _Place, rounds: int) -> dict[str, float]:
    """Time of sending cells to columns of their own, over that of one column for all in dense batches, less 1.

    All read maps that the base has just computed. Dense batches are run one after the other, on all threads; and, to
    see what the queue alone costs, side by side as the queue does.
    """
    rng = np.random.default_rng(0)
    columns = place.columns(_COLUMNS)
    maps = place.maps(_PUT, place.layout.twins.align, rng)
    which, rows, keys = rng.integers(0, _COLUMNS, (_PUTS, _PUT)), torch.arange(_PUT), np.arange(_PUT)
    lanes = ThreadPool.beside(maps[0])

    def run(column: int, held: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (columns[column](held)[0],)

    def dispatched() -> None:
        queue = BatchQueue(run, _ignore, lambda column, _: columns[column].macs(1, 1))
        for each in which:
            queue.put(each, keys, maps, [rows] * len(maps))
        queue.flush()

    def whole() -> None:
        with torch.inference_mode():
            for _ in which:
                columns[0](maps)

    def side_by_side() -> None:
        for batch in [lanes.start(lambda: columns[0](maps)) for _ in which]:
            batch.result()

    return {
        "dispatch_overhead": statistics.median(_ratios(dispatched, whole, rounds)) - 1,
        "dispatch_overhead_side_by_side": statistics.median(_ratios(dispatched, side_by_side, rounds)) - 1,
    }


def _ignore(done: Done) -> None:
    """Takes a batch and forgets it."""


def activity_figures(place: _Place, rounds: int, cells: int) -> dict[str, float]:
    """The speed-up of running columns only where something fires, as it is and of the ideal; and what it saves."""
    rng = np.random.default_rng(0)
    columns = place.columns(_GROUPS)
    blobs = rng.random((1, _GROUPS, cells // _BLOB, cells // _BLOB)) < _DENSITY
    fires = torch.from_numpy(blobs.repeat(_BLOB, 2).repeat(_BLOB, 3))
    maps = place.maps(1, cells, rng)
    with torch.inference_mode():
        activity = Activity(columns, tune(columns, maps, fires))
        speedup = statistics.median(_ratios(lambda: dense(columns, maps, fires), lambda: activity(maps, fires), rounds))
    spent = activity.macs_spent / (rounds + 1)
    return {
        "activity_speedup": speedup,
        "activity_of_ideal": speedup * float(fires.float().mean()),
        "activity_fewer_macs": sum(column.macs(cells, cells) for column in columns) / spent,
    }


def _ratios(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of one over seconds of the other, in turn; the first round warms up."""
    found = []
    for _ in range(rounds + 1):
        times = []
        for call in (first, second):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        found.append(times[0] / times[1])
    return found[1:]
