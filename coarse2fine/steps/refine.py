"""Refinement: the refiner on the chosen windows at full resolution, best first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import as_channels, fill_value, normalised
from coarse2fine.progress import Tick
from coarse2fine.refiners.protocol import ImageContext, RunningRefiner
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.scan_groups import ScanGroups
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import WindowReader
from coarse2fine.tiling.window_table import Windows

ROUND_PIXELS = 2**28
HURRIED_PIXELS = 2**20
"""Pixels of the first round if there is a deadline: within a round windows are read by chunk, not best first."""
_BATCH_PIXELS = 600_000


@dataclass(frozen=True)
class Refinement:
    """Result of a refinement.

    Parameters
    ----------
    candidates : Candidates
        Fine cells in which something was found, each once, in raster order.
    done : ndarray, int64, (m,)
        Windows of the plan that were refined.
    macs : int
        Multiply-adds spent, halos and specialists included.
    failures : tuple of str
        Why windows, or parts of them, could not be read; such parts were filled with grey.
    interrupted : bool
        Whether Ctrl-C ended it early.
    late : bool
        Whether the deadline ended it early.
    notes : tuple of str
        Notes of the refiner on how windows were refined.
    refused : int
        Windows that were read, but which the refiner could not refine.
    """

    candidates: Candidates
    done: NDArray[np.intp]
    macs: int
    failures: tuple[str, ...]
    interrupted: bool = False
    late: bool = False
    notes: tuple[str, ...] = ()
    refused: int = 0

    @classmethod
    def none(cls, *, interrupted: bool = False, late: bool = False) -> Refinement:
        """Nothing was refined."""
        return cls(Candidates.empty(), np.zeros(0, np.intp), 0, (), interrupted, late)

    @property
    def cut(self) -> bool:
        """Whether it ended early, so that windows may be left."""
        return self.interrupted or self.late


def refine(
    image: Image,
    plan: Plan,
    model: Model,
    runtime: Runtime,
    tick: Tick | None = None,
    *,
    floor: float,
    learned: Any = None,
    deadline: float | None = None,
    batch_size: int | None = None,
    capped: bool = False,
) -> Refinement:
    """Run the refiner on every window of the plan, best first.

    Ctrl-C ends it early, and what was refined until then is returned.

    Parameters
    ----------
    image : Image
    plan : Plan
    model : Model
    runtime : Runtime
    tick : callable, optional
        Called with windows done and windows in all; windows longer than the refiner takes count by their parts.
    floor : float
        Least score of a candidate.
    learned : object, optional
        What the scan learned from the image, for refiners that learn; for specialists that the scan chooses,
        `Scan.groups`.
    deadline : float, optional
        Time of `time.perf_counter` at which to end with the batch at hand.
    batch_size : int, optional
        Windows that are refined at once; by default by their size.
    capped : bool
        Whether the plan may cost no more multiply-adds than expected, see `RunningRefiner.rations`.
    """
    found: list[Candidates] = []
    done: list[NDArray[np.intp]] = []
    count = refused = 0
    interrupted = late = False
    cell = model.geometry.fine_cell
    fine_shape = (ceil_div(image.height, cell), ceil_div(image.width, cell))
    chosen = None
    if (own := model.scan_groups) is not None:
        chosen = ScanGroups(image, model, own, runtime, learned)
        learned = None
    running = model.refiner.start(context_of(model, runtime, fine_shape, floor, learned, chosen))
    parts, owner = plan.divided(model.longest_window)
    rations = running.rations(parts.sides * model.geometry.fine) if capped else None
    with WindowReader(image, downsample=model.geometry.refine_downsample, fill=fill_value(model)) as reader:
        try:
            first = HURRIED_PIXELS if deadline is not None else ROUND_PIXELS
            for candidates, rows, tried, bad in _answers(reader, parts, model, running, rations, first, batch_size):
                found.append(candidates)
                done.append(rows)
                count += tried
                refused += bad
                if tick:
                    tick(count, len(parts))
                late = deadline is not None and time.perf_counter() >= deadline and count < len(parts)
                if late:
                    break
            found.append(running.flush())
        except KeyboardInterrupt:
            interrupted = True
            found.append(running.abandon())
    finished = _whole(np.concatenate(done), owner) if done else np.zeros(0, np.intp)
    candidates = _distinct(Candidates.concatenate(found), model, image)
    if interrupted or late or len(finished) < len(plan):
        # The refiner may hold candidates of windows that were not refined completely and do not count as refined.
        covered = plan.take(finished).covered()
        candidates = candidates.take(covered[tuple(candidates.cells.T // model.geometry.fine)])
    unread = () if chosen is None else chosen.failures
    failures = tuple(dict.fromkeys((*reader.failures, *unread, *running.failures())))
    macs = running.macs_spent + (0 if chosen is None else chosen.macs_spent)
    return Refinement(candidates, finished, macs, failures, interrupted, late, running.notes(), refused)


def _whole(done: NDArray[np.intp], owner: NDArray[np.intp]) -> NDArray[np.intp]:
    """Windows of which all parts are done, in order of their last part.

    Parameters
    ----------
    done : ndarray, int64, (m,)
        Parts that were refined, in order.
    owner : ndarray, int64, (p,)
        The window of each part.
    """
    if len(owner) and owner[-1] == len(owner) - 1:  # every window is one part
        return done
    parts = np.bincount(owner)
    mine = owner[done]
    windows, first = np.unique(mine[::-1], return_index=True)
    order = np.argsort(-first, kind="stable")
    windows = windows[order]
    whole: NDArray[np.intp] = windows[np.bincount(mine, minlength=len(parts))[windows] == parts[windows]]
    return whole


def context_of(
    model: Model,
    runtime: Runtime,
    fine_shape: tuple[int, int],
    floor: float,
    learned: Any = None,
    fires: ScanGroups | None = None,
) -> ImageContext:
    """The `ImageContext` of a model's refiner; parameters as there."""
    return ImageContext(runtime, partial(normalised, model=model, runtime=runtime), fine_shape, floor, learned, fires)


def _answers(
    reader: WindowReader,
    plan: Plan,
    model: Model,
    running: RunningRefiner,
    rations: NDArray[np.int64] | None,
    first: int,
    batch_size: int | None,
) -> Iterator[tuple[Candidates, NDArray[np.intp], int, int]]:
    """Settled candidates, refined rows of the plan, and numbers of windows tried and refused, by batch."""
    for shape, rows in _rounds(plan, model, first):
        corners, most = plan.cell_corners[rows], None if rations is None else rations[rows]
        for candidates, index, *numbers in _windows(reader, running, model, corners, shape, most, batch_size):
            yield candidates, rows[index], numbers[0], numbers[1]


def _rounds(plan: Plan, model: Model, first: int) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
    """Windows by round and shape: the shape, and the rows of the plan.

    Within a round, windows are read in the order of the stored chunks.
    """
    for rows in rounds(plan, model, first):
        for shape, index in plan.take(rows).by_shape():
            yield shape, rows[index]


def rounds(plan: Plan, model: Model, first: int) -> Iterator[NDArray[np.intp]]:
    """Rows of the plan, best first, in rounds that double in pixels.

    Doubling keeps the chunks few that a later round decodes again, and an early stop still has the best windows.

    Parameters
    ----------
    plan : Plan
    model : Model
    first : int
        Pixels of the first round's windows, halos included; a round has one window at least.
    """
    ends = window_pixels(plan, model).cumsum()
    start, most = 0, first
    while start < len(plan):
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + most, side="right")))
        yield np.arange(start, stop)
        start, most = stop, 2 * most


def window_pixels(plan: Plan, model: Model) -> NDArray[np.int64]:
    """Pixels of each window of a plan, halo included, as the refiner reads it."""
    refiner = model.refiner
    sizes: NDArray[np.int64] = plan.sides * model.geometry.fine * refiner.stride + 2 * refiner.margin
    return sizes[:, 0] * sizes[:, 1]


def _windows(
    reader: WindowReader,
    running: RunningRefiner,
    model: Model,
    cell_corners: NDArray[np.int64],
    shape: tuple[int, int],
    rations: NDArray[np.int64] | None,
    batch_size: int | None,
) -> Iterator[tuple[Candidates, NDArray[np.intp], int, int]]:
    """Settled candidates, refined windows, and numbers of windows tried and refused, by batch, for one shape."""
    refiner, fine = model.refiner, model.geometry.fine
    windows = Windows.of_cells(cell_corners, shape, fine * refiner.stride, refiner.margin)
    usual = max(1, _BATCH_PIXELS // windows.area)
    for batch in reader.batches(windows, batch_size or refiner.batch_windows or usual):
        good, index = ~batch.failed, batch.index[~batch.failed]
        candidates, refused = Candidates.empty(), 0
        if len(index):
            most = None if rations is None else rations[index]
            pixels = as_channels(batch.pixels[good], refiner.channels)
            candidates = running(pixels, cell_corners[index] * fine, most)
            failed = running.failed(len(index))
            index, refused = index[~failed], int(failed.sum())
        yield candidates, index, len(batch.index), refused


def _distinct(candidates: Candidates, model: Model, image: Image) -> Candidates:
    """Each fine cell once, in raster order, without those beyond the image's far edges."""
    cell = model.geometry.fine_cell
    height, width = ceil_div(image.height, cell), ceil_div(image.width, cell)
    y, x = candidates.cells.T
    return candidates.take((y < height) & (x < width)).distinct(width)
