"""The costly look at a little: the refine net on the chosen windows at full resolution, best first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import Model
from coarse2fine.models.heads import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.scan import Tick, normalised
from coarse2fine.select import Plan
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.reader import WindowReader

ROUND_WINDOWS = 4096
HURRIED_WINDOWS = 256
"""Windows of the first round where time may end the work: what is read in the order of chunks is not best first."""
_BATCH_PIXELS = 600_000

# From the refine net's output and the fine-grid corner of each window to what was found.
Read = Callable[[Tensor, NDArray[np.int64]], Candidates]


@dataclass(frozen=True)
class Fine:
    """What the refinement found.

    Parameters
    ----------
    candidates : Candidates
        Fine cells in which something was found, each once, in raster order.
    done : ndarray, int64, (m,)
        Windows of the plan that were refined.
    macs : int
        Multiply-adds spent, halos included.
    failures : tuple of str
        Windows that could not be read, and why.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    candidates: Candidates
    done: NDArray[np.intp]
    macs: int
    failures: tuple[str, ...]
    interrupted: bool = False


def refine(
    image: Image,
    plan: Plan,
    model: Model,
    read: Read,
    runtime: Runtime,
    tick: Tick | None = None,
    *,
    deadline: float | None = None,
) -> Fine:
    """Run the refine net on every window of the plan, best first.

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
    """
    found: list[Candidates] = []
    done: list[NDArray[np.intp]] = []
    macs, count = 0, 0
    interrupted = False
    with WindowReader(image, downsample=model.geometry.refine_downsample) as reader:
        try:
            for candidates, rows, side, tried in _answers(
                reader, plan, model, read, runtime, hurried=deadline is not None
            ):
                found.append(candidates)
                done.append(rows)
                macs += len(rows) * model.window_macs(side)
                count += tried
                if tick:
                    tick(count, len(plan))
                if deadline is not None and time.perf_counter() >= deadline:
                    break
        except KeyboardInterrupt:
            interrupted = True
    finished = np.concatenate(done) if done else np.zeros(0, np.intp)
    candidates = _distinct(Candidates.concatenate(found), model, image)
    return Fine(candidates, finished, macs, tuple(reader.failures), interrupted)


def _answers(
    reader: WindowReader, plan: Plan, model: Model, read: Read, runtime: Runtime, *, hurried: bool
) -> Iterator[tuple[Candidates, NDArray[np.intp], int, int]]:
    """Candidates, the rows of the plan they come from, the windows' side, and how many were tried, batch by batch."""
    net = runtime.place(model.refiner)
    for rows in _rounds(plan, HURRIED_WINDOWS if hurried else ROUND_WINDOWS):
        side = int(plan.sides[rows[0]])
        for candidates, index, tried in _windows(reader, net, model, plan.cell_corners[rows], side, read, runtime):
            yield candidates, rows[index], side, tried


def _rounds(plan: Plan, first: int) -> Iterator[NDArray[np.intp]]:
    """Windows of one shape at a time, the best of the plan in the first rounds.

    Within a round windows are read in the order of the stored chunks. Rounds double, so that few chunks are decoded
    again in a later round, and stopping early loses little of what is best.
    """
    start, count = 0, first
    while start < len(plan):
        rows = np.arange(start, min(start + count, len(plan)))
        start, count = start + count, 2 * count
        for side in np.unique(plan.sides[rows]).tolist():
            yield rows[plan.sides[rows] == side]


def _windows(
    reader: WindowReader,
    net: torch.nn.Module,
    model: Model,
    cell_corners: NDArray[np.int64],
    side: int,
    read: Read,
    runtime: Runtime,
) -> Iterator[tuple[Candidates, NDArray[np.intp], int]]:
    """Candidates, the windows they come from, and how many were tried, batch by batch, of windows of one shape."""
    spec, fine = model.refiner.spec, model.geometry.fine
    cells = side * fine
    boxes = [
        Box(y * fine, x * fine, y * fine + cells, x * fine + cells).scale(spec.stride).expand(spec.margin)
        for y, x in cell_corners.tolist()
    ]
    batch_size = max(1, min(64, _BATCH_PIXELS // boxes[0].area))
    for batch in reader.batches(boxes, batch_size):
        good, index = ~batch.failed, batch.index[~batch.failed]
        candidates = Candidates.empty()
        if len(index):
            with torch.inference_mode():
                out = net(normalised(batch.pixels[good], model, runtime))
            candidates = read(out, cell_corners[index] * fine)
        yield candidates, index, len(batch.index)


def _distinct(candidates: Candidates, model: Model, image: Image) -> Candidates:
    """Each fine cell once, in raster order, without those beyond the image's far edges."""
    cell = model.geometry.fine_cell
    height, width = -(-image.height // cell), -(-image.width // cell)
    y, x = candidates.cells[:, 0].astype(np.int64), candidates.cells[:, 1].astype(np.int64)
    inside = np.flatnonzero((y < height) & (x < width))
    _, first = np.unique(y[inside] * width + x[inside], return_index=True)
    return candidates.take(inside[first])
