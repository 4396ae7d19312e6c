"""Estimate of the work, time and memory of a batch, without doing it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil

from coarse2fine.batch.job import Job, model_of
from coarse2fine.batch.request import BatchRequest
from coarse2fine.batch.store import done_before
from coarse2fine.config import Config
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.progress import duration
from coarse2fine.refiners.protocol import TIMED_SIDE
from coarse2fine.steps.plan import dense_plan
from coarse2fine.steps.refine import context_of
from coarse2fine.steps.scan_blocks import scan_macs
from coarse2fine.steps.strategy import strategy_of
from coarse2fine.terminal import printable
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats.raster_header import RASTERS
from coarse2fine.tiling.storage.redact import redact

# Maps of interest, features and windows, and the memory of choosing.
_BYTES_A_CELL = 40


@dataclass(frozen=True)
class Expected:
    """The estimate of one image.

    Parameters
    ----------
    name : str
        Name of its results' folder.
    source : str
    shape : tuple of int
        Height, width and channels; empty if it cannot be opened.
    least_macs, most_macs : int
        Multiply-adds of the scan alone, and the upper bound.
    memory : int
        Bytes beyond those of the process.
    problem : str
        Reason why it cannot be opened; empty if it can.
    done : bool
        Whether its results exist already.
    """

    name: str
    source: str
    shape: tuple[int, ...] = ()
    least_macs: int = 0
    most_macs: int = 0
    memory: int = 0
    problem: str = ""
    done: bool = False

    def __str__(self) -> str:
        if self.problem:
            return f"cannot be read: {self.problem}"
        if self.done:
            return f"done already: {self.source}"
        cost = f"{self.least_macs / 1e9:,.1f} to {self.most_macs / 1e9:,.1f} GMAC"
        return f"{self.source}: {self.shape[1]:,} x {self.shape[0]:,} px, {cost}, {self.memory / 1e9:.2f} GB"


@dataclass(frozen=True)
class Estimate:
    """The estimate of a batch.

    Parameters
    ----------
    images : tuple of Expected
    workers : int
        Processes at a time; 0 with a scheduler.
    macs_per_second : float
        Speed of one process with the refine net, or the experts, measured on this machine.
    base_memory : int
        Bytes of a process with libraries and model.
    """

    images: tuple[Expected, ...]
    workers: int
    macs_per_second: float
    base_memory: int

    @property
    def ok(self) -> bool:
        """Whether every image can be opened."""
        return not any(image.problem for image in self.images)

    def __str__(self) -> str:
        todo = [image for image in self.images if not (image.problem or image.done)]
        bad = sum(bool(image.problem) for image in self.images)
        done = sum(image.done for image in self.images)
        lines = [str(image) for image in self.images]
        lines.append(f"{len(todo):,} image(s) to do, {done:,} done already, {bad:,} unreadable")
        if todo:
            macs = [sum(i.least_macs for i in todo), sum(i.most_macs for i in todo)]
            hours = " to ".join(duration(m / self.macs_per_second / max(1, self.workers)) for m in macs)
            speed = f"{max(1, self.workers)} process(es) of {self.macs_per_second / 1e9:,.0f} GMAC/s, measured here"
            lines.append(f"cost   {macs[0] / 1e9:,.1f} (the scans alone) to {macs[1] / 1e9:,.1f} GMAC (upper bound)")
            lines.append(f"time   {hours} of arithmetic on {speed}; reading not included")
            each = self.base_memory + max(image.memory for image in todo)
            lines.append(f"memory up to {each / 1e9:.1f} GB per process")
        return "\n".join(map(printable, lines))


def estimate(request: BatchRequest) -> Estimate:
    """Open every image of a batch, and add up the estimates.

    Raises
    ------
    ModelError
        If a model cannot be loaded.
    """
    jobs, config, workers = request.jobs(), request.config, request.workers
    runtime = Runtime.choose(config.device, config.precision)
    speed = _speed(model_of(jobs[0]), runtime) if jobs else 1.0
    number = 0 if workers.scheduler is not None else workers.processes(len(jobs), config)
    memory = psutil.Process().memory_info().rss
    return Estimate(tuple(_expected(job) for job in jobs), number, speed, memory)


def _expected(job: Job) -> Expected:
    name, source = job.item.name, redact(job.item.source)
    if done_before(job) is not None:
        return Expected(name, source, done=True)
    config = job.config
    try:
        with job.open() as image:
            shape, kind, model = image.shape, image.format, at_pixel_size(model_of(job), image)
    except ImageError as error:
        return Expected(name, source, problem=str(error))
    cells = sum(math.prod(band.cell_shape(shape[:2])) for band in model.bands)
    each = [_least_and_most(band, config, (shape[0], shape[1])) for band in model.bands]
    scan, most = (sum(macs) for macs in zip(*each, strict=True))
    whole = shape[0] * shape[1] * shape[2] if kind in RASTERS else 0
    memory = 2 * whole + _BYTES_A_CELL * cells
    return Expected(name, source, shape, scan, most, memory)


def _least_and_most(model: Model, config: Config, full_shape: tuple[int, int]) -> tuple[int, int]:
    """Multiply-adds of a band's scan, and an upper bound for its analysis, both without the mask."""
    dense = dense_plan(model.cell_shape(full_shape), model.longest_window)
    strategy = strategy_of(model)
    scan = 0 if config.exhaustive and not strategy.needed else scan_macs(model, full_shape)
    whole = strategy.exhaustive_macs(full_shape, dense)
    before = 0 if strategy.needed else scan
    return scan, before + whole if config.budget is None else max(scan, round(min(config.budget, 1.0) * whole))


def _speed(model: Model, runtime: Runtime) -> float:
    """Multiply-adds per second of the refiners on windows, each in proportion to its part of the exhaustive pass."""
    macs = [band.refiner.macs_per_cell / band.geometry.fine_cell**2 for band in model.bands]
    sides = (TIMED_SIDE, TIMED_SIDE)
    speeds = [band.refiner.macs_per_second(context_of(band, runtime, sides, band.threshold)) for band in model.bands]
    return sum(macs) / sum(n / speed for n, speed in zip(macs, speeds, strict=True))
