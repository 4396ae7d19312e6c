"""The costly look at a little: the refine net on the chosen windows at full resolution, best first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import fill_value, normalised
from coarse2fine.progress import Tick
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine_net import Read, RefineNet
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import WindowReader

ROUND_PIXELS = 2**28
HURRIED_PIXELS = 2**20
"""Pixels of the first round where time may end the work: what is read in the order of chunks is not best first."""
_BATCH_PIXELS = 600_000


@dataclass(frozen=True)
class Refinement:
    """What the refinement found.

    Parameters
    ----------
    candidates : Candidates
        Fine cells in which something was found, each once, in raster order.
    done : ndarray, int64, (m,)
        Windows of the plan that were refined.
    macs : int
        Multiply-adds spent, halos and specialists included.
    failures : tuple of str
        Why windows, or parts of them, could not be read; such parts were seen as grey.
    interrupted : bool
        Whether Ctrl-C ended it early.
    late : bool
        Whether the deadline did.
    """

    candidates: Candidates
    done: NDArray[np.intp]
    macs: int
    failures: tuple[str, ...]
    interrupted: bool = False
    late: bool = False

    @property
    def cut(self) -> bool:
        """Whether windows were left out that could have been read."""
        return self.interrupted or self.late


def refine(
    image: Image,
    plan: Plan,
    model: Model,
    read: Read,
    runtime: Runtime,
    tick: Tick | None = None,
    *,
    deadline: float | None = None,
    batch_size: int | None = None,
    capped: bool = False,
) -> Refinement:
    """Run the refine net on every window of the plan, best first, and its specialists where it is unsure.

    Ctrl-C ends it early: what was refined up to then is the best that could be had for its cost, and is returned.

    Parameters
    ----------
    image : Image
    plan : Plan
    model : Model
    read : callable
        Turns the refine net's output into candidates.
    runtime : Runtime
    tick : callable, optional
        Called with windows done and windows in all.
    deadline : float, optional
        Time of `time.perf_counter` at which to end with the batch at hand.
    batch_size : int, optional
        Windows that are refined at once; by default by their size.
    capped : bool
        Specialists take no more multiply-adds than the model sets aside for each window, see `RefineNet.rations`.
    """
    found: list[Candidates] = []
    done: list[NDArray[np.intp]] = []
    macs, count = 0, 0
    interrupted = late = False
    cell = model.geometry.fine_cell
    net = RefineNet(model, runtime, read, (ceil_div(image.height, cell), ceil_div(image.width, cell)))
    rations = net.rations(plan, model) if capped else None
    with WindowReader(image, downsample=model.geometry.refine_downsample, fill=fill_value(model)) as reader:
        try:
            first = HURRIED_PIXELS if deadline is not None else ROUND_PIXELS
            for candidates, rows, shape, tried in _answers(
                reader, plan, model, net, rations, runtime, first, batch_size
            ):
                found.append(candidates)
                done.append(rows)
                macs += len(rows) * model.refiner_macs(*shape)
                count += tried
                if tick:
                    tick(count, len(plan))
                late = deadline is not None and time.perf_counter() >= deadline and count < len(plan)
                if late:
                    break
            found.append(net.flush())
        except KeyboardInterrupt:
            interrupted = True
            found.append(net.abandon())
    finished = np.concatenate(done) if done else np.zeros(0, np.intp)
    candidates = _distinct(Candidates.concatenate(found), model, image)
    if interrupted:
        # Cells of the batch at hand may have waited, but their windows do not count as refined.
        covered = plan.take(finished).covered()
        candidates = candidates.take(covered[tuple(candidates.cells.T // model.geometry.fine)])
    return Refinement(candidates, finished, macs + net.specialist_macs, tuple(reader.failures), interrupted, late)


def _answers(
    reader: WindowReader,
    plan: Plan,
    model: Model,
    net: RefineNet,
    rations: NDArray[np.int64] | None,
    runtime: Runtime,
    first: int,
    batch_size: int | None,
) -> Iterator[tuple[Candidates, NDArray[np.intp], tuple[int, int], int]]:
    """What is settled, the rows of the plan that were refined, their shape, and how many were tried, by batch."""
    for shape, rows in _rounds(plan, model, first):
        corners, most = plan.cell_corners[rows], None if rations is None else rations[rows]
        for candidates, index, tried in _windows(reader, net, model, corners, shape, most, runtime, batch_size):
            yield candidates, rows[index], shape, tried


def _rounds(plan: Plan, model: Model, first: int) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
    """Windows of one shape at a time, and the shape; the best of the plan in the first rounds.

    Within a round windows are read in the order of the stored chunks.
    """
    for rows in rounds(plan, model, first):
        for shape, index in plan.take(rows).by_shape():
            yield shape, rows[index]


def rounds(plan: Plan, model: Model, first: int) -> Iterator[NDArray[np.intp]]:
    """Rows of the plan, best first, in rounds that double in pixels.

    So few chunks are decoded again in a later round, and stopping early loses little of what is best.

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
    """Pixels of each window of a plan, halo included, as the refine net reads it."""
    spec, fine = model.refiner.spec, model.geometry.fine
    sizes: NDArray[np.int64] = plan.sides * fine * spec.stride + 2 * spec.margin
    return sizes[:, 0] * sizes[:, 1]


def _windows(
    reader: WindowReader,
    net: RefineNet,
    model: Model,
    cell_corners: NDArray[np.int64],
    shape: tuple[int, int],
    rations: NDArray[np.int64] | None,
    runtime: Runtime,
    batch_size: int | None,
) -> Iterator[tuple[Candidates, NDArray[np.intp], int]]:
    """What is settled, the windows that were refined, and how many were tried, batch by batch, of one shape."""
    spec, fine = model.refiner.spec, model.geometry.fine
    height, width = (spec.input_size(n * fine) for n in shape)
    corners = cell_corners * (fine * spec.stride) - spec.margin
    boxes = [Box(y, x, y + height, x + width) for y, x in corners.tolist()]
    usual = max(1, _BATCH_PIXELS // boxes[0].area)
    for batch in reader.batches(boxes, batch_size or usual):
        good, index = ~batch.failed, batch.index[~batch.failed]
        candidates = Candidates.empty()
        if len(index):
            most = None if rations is None else rations[index]
            candidates = net(normalised(batch.pixels[good], model, runtime), cell_corners[index] * fine, most)
        yield candidates, index, len(batch.index)


def _distinct(candidates: Candidates, model: Model, image: Image) -> Candidates:
    """Each fine cell once, in raster order, without those beyond the image's far edges."""
    cell = model.geometry.fine_cell
    height, width = ceil_div(image.height, cell), ceil_div(image.width, cell)
    y, x = candidates.cells.T
    return candidates.take((y < height) & (x < width)).distinct(width)
