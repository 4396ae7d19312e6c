"""What the machinery of specialists costs: training on workers, dispatch, and running only where something fires."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coarse2fine.batch.cluster import connected
from coarse2fine.bench.io_report import Section
from coarse2fine.bench.specialists_data import SIDE, tiles_of_digits
from coarse2fine.bench.specialists_nets import TOP, stack
from coarse2fine.bench.specialists_runs import Trial
from coarse2fine.models.activity import Activity, dense, tune
from coarse2fine.models.column import Column
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.dispatch import Dispatch, Done
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.twin import ColumnSpec, Layout, Twins
from coarse2fine.specialists.growth import grow
from coarse2fine.specialists.items import ItemStore
from coarse2fine.specialists.training import TrainingOptions

_COLUMNS, _BATCH, _WINDOW = 12, 128, 384
_TOPS = {"small": TOP // 2, "full-size": TOP}
_DENSITY, _BLOB = 0.05, 8


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
        overhead, activity = dispatch_overhead(rounds, top), activity_figures(rounds, cells, top)
        figures |= {f"costs/{name}/dispatch_overhead": overhead}
        figures |= {f"costs/{name}/{key}": value for key, value in activity.items()}
        lines += [
            f"dispatch over {_COLUMNS} {name} columns in batches of {_BATCH}: {overhead:+.1%} over one column for all, "
            "in batches as large",
            f"activity of {name} columns at {_DENSITY:.0%} density, in blobs of {_BLOB} x {_BLOB} cells: "
            f"{activity['activity_speedup']:.1f} times as fast as dense, {activity['activity_of_ideal']:.0%} of the "
            f"ideal; {activity['activity_fewer_macs']:.1f} times fewer multiply-adds, halos counted",
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


def dispatch_overhead(rounds: int, top: int) -> float:
    """Time of sending tiles to columns of their own, over that of one column for all in batches as large, less 1."""
    base, layout, runtime = _net(top)
    rng = np.random.default_rng(0)
    count = _COLUMNS * _WINDOW
    columns = [_filled(layout, runtime) for _ in range(_COLUMNS)]
    maps = _maps(base, layout, runtime, rng.integers(0, 256, (count, SIDE, SIDE, 1), np.uint8))
    which = rng.integers(0, _COLUMNS, count)

    def run(column: int, held: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (columns[column](held)[0],)

    def dispatched() -> None:
        queue = Dispatch(run, _ignore, lambda column, _: columns[column].macs(1, 1), batch=_BATCH)
        for start in range(0, count, _WINDOW):
            rows = torch.arange(start, start + _WINDOW)
            queue.put(which[start : start + _WINDOW], rows.numpy(), maps, [rows] * len(maps))
        queue.flush()

    def whole() -> None:
        with torch.inference_mode():
            for start in range(0, count, _BATCH):
                columns[0]([m[start : start + _BATCH] for m in maps])

    return statistics.median(_ratios(dispatched, whole, rounds)) - 1


def _ignore(done: Done) -> None:
    """Takes a batch and forgets it."""


def activity_figures(rounds: int, cells: int, top: int) -> dict[str, float]:
    """The speed-up of running columns only where something fires, as it is and of the ideal; and what it saves."""
    base, layout, runtime = _net(top)
    rng = np.random.default_rng(0)
    columns = [_filled(layout, runtime) for _ in range(4)]
    side = base.spec.input_size(cells + 2 * layout.border)
    blobs = rng.random((1, len(columns), cells // _BLOB, cells // _BLOB)) < _DENSITY
    fires = torch.from_numpy(blobs.repeat(_BLOB, 2).repeat(_BLOB, 3))
    maps = _maps(base, layout, runtime, rng.integers(0, 256, (1, side, side, 1), np.uint8))
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


def _net(top: int) -> tuple[ConvStack, Layout, Runtime]:
    """A base in the number format of analyses, and what columns of a size read of it."""
    base = ConvStack(stack(tiles_of_digits(), 1.0)).eval()
    runtime = Runtime.choose("cpu")
    twins = Twins.of(base)
    return runtime.place(base), Layout.of(ColumnSpec.design(twins, top), twins), runtime


def _maps(base: ConvStack, layout: Layout, runtime: Runtime, pixels: NDArray[np.uint8]) -> list[Tensor]:
    x = runtime.pixels(pixels, np.array([0.5], np.float32), np.array([0.25], np.float32))
    with torch.inference_mode():
        return layout.read(x, base.features(x))


def _filled(layout: Layout, runtime: Runtime) -> Column:
    """A column that adds something."""
    column = Column(layout.spec, layout.twins, 10)
    nn.init.normal_(column.reader.weight)
    return runtime.place(column)
