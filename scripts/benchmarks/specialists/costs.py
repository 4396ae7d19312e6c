"""Cost of specialists beyond their arithmetic: training on workers, dispatch, and running only where features fire."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.specialists.data import tiles_of_digits
from benchmarks.specialists.experiment import Experiment
from benchmarks.specialists.nets import TOP
from coarse2fine.batch.dask_cluster import connected
from coarse2fine.bench.sections import Section
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
# Pairs per batch, and number of batches.
_PUT, _PUTS = 384, 48


class _Place:
    """Setting in which columns are timed: the refine net that `fit` makes for photographs.

    Columns are as `fit` makes them, or have `top` channels in their last stage.
    """

    def __init__(self, top: int | None) -> None:
        net = ConvStack(StackSpec.parse(3, WIDE_REFINER.format(out=_CLASSES))).eval()
        twins, self.runtime = FeatureMaps.of(net), Runtime.choose("cpu")
        spec = column_spec(twins) if top is None else column_spec(twins, top)
        self.base, self.layout = self.runtime.place(net), ColumnInputs.of(spec, twins)

    def columns(self, count: int) -> list[Column]:
        """Columns with random readers, whose output is not zero."""
        columns = [Column(self.layout.spec, self.layout.twins, _CLASSES) for _ in range(count)]
        for column in columns:
            nn.init.normal_(column.reader.weight)
        return [self.runtime.place(column) for column in columns]

    def maps(self, count: int, cells: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of columns for `count` random blocks of `cells` x `cells`."""
        side = self.base.spec.input_size(cells + 2 * self.layout.border)
        pixels = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        x = self.runtime.pixels(pixels, np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))
        with torch.inference_mode():
            return [m.clone() for m in self.layout.read(x, self.base.features(x))]


# Columns by the channels of their last stage: as `fit` makes them, and as many as the refine net has.
_TOPS = {"narrow": None, "full_size": 128}


def measure_costs(folder: Path, *, rounds: int, epochs: int, cells: int) -> Section:
    """Measure training of columns with `epochs` of their own, dispatch, and activity on cells x cells."""
    one, two = (training_seconds(folder, epochs, workers) for workers in (1, 2))
    figures = {"costs/training/seconds_1": one, "costs/training/seconds_2": two, "costs/training/speedup": one / two}
    for name, top in _TOPS.items():
        place = _Place(top)
        found = dispatch_overheads(place, rounds) | activity_figures(place, rounds, cells)
        figures |= {f"costs/{name}/{key}": value for key, value in found.items()}
    title = (
        f"costs: training {_COLUMNS} columns with 1 worker and 2 (what they share is trained first, by one); dispatch "
        f"over {_COLUMNS} columns, beyond one column for all in dense batches of {_PUT}, and where these are run side "
        f"by side too; activity of {_GROUPS} columns at {_DENSITY:.0%} density, in blobs of {_BLOB} x {_BLOB} of "
        f"{cells} x {cells} cells, over dense"
    )
    return Section(title, figures)


def training_seconds(folder: Path, epochs: int, workers: int) -> float:
    """Seconds in which a number of processes trains the columns of a tree from scratch."""
    options = TrainingOptions(epochs=1, own_epochs=epochs)
    with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own, connected(None, workers) as client:
        experiment = Experiment(tiles_of_digits(), 0, Path(own), 60, options)
        store, twins, spec = experiment.store(), experiment.twins(), experiment.design(TOP // 2)
        # Imports are not timed.
        client.run(_warm, str(store.folder))
        start = time.perf_counter()
        grow(store, twins, [spec], options, clusters=_COLUMNS)
        return time.perf_counter() - start


def _warm(folder: str) -> None:
    ItemStore(folder)
    # Warm-up: the very first step takes seconds.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()


def dispatch_overheads(place: _Place, rounds: int) -> dict[str, float]:
    """Time of sending cells to columns of their own, relative to one column for all in dense batches, minus 1.

    All read maps that the base has just computed. Dense batches are run one after the other, on all threads; and, to
    see what the queue alone costs, side by side as the queue does.
    """
    rng = np.random.default_rng(0)
    columns = place.columns(_COLUMNS)
    maps = place.maps(_PUT, place.layout.twins.align, rng)
    which, rows, keys = rng.integers(0, _COLUMNS, (_PUTS, _PUT)), torch.arange(_PUT), np.arange(_PUT)
    pool = ThreadPool.beside(maps[0])

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
        for batch in [pool.start(lambda: columns[0](maps)) for _ in which]:
            batch.result()

    return {
        "dispatch_overhead": statistics.median(_ratios(dispatched, whole, rounds)) - 1,
        "dispatch_overhead_side_by_side": statistics.median(_ratios(dispatched, side_by_side, rounds)) - 1,
    }


def _ignore(done: Done) -> None:
    """Takes a batch and forgets it."""


def activity_figures(place: _Place, rounds: int, cells: int) -> dict[str, float]:
    """Speed-up of running columns only where features fire, also as a share of the ideal, and the saving."""
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
    """Ratio of the times of two functions, run alternately; the first round warms up."""
    found = []
    for _ in range(rounds + 1):
        times = []
        for call in (first, second):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        found.append(times[0] / times[1])
    return found[1:]
