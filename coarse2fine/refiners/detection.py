"""Detection: the built-in refine net and its specialists, trained on annotations.

Routing depends only on the cell's features, so any tiling gives the same result. Unsure cells wait in a queue until a
batch is full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.models.batch_queue import weakly
from coarse2fine.models.box_head import BOX_CHANNELS, read_detections
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.routing import Answered
from coarse2fine.refiners.net import NetRefiner
from coarse2fine.refiners.protocol import ImageContext, RunningRefiner


@dataclass(frozen=True)
class DetectionRefiner(NetRefiner):
    """A net that gives a class and a box for each fine cell, see `coarse2fine.models.box_head`.

    Specialists correct its answer in unsure cells: first groups, if their features fire, then the tree.
    """

    kind: ClassVar[str] = "detect"
    # Chosen windows hold more unsure cells than the average window.
    aside: ClassVar[float] = 3

    def start(self, context: ImageContext) -> RunningDetection:
        return RunningDetection(self, context)


class RunningDetection(RunningRefiner):
    """The refine net with its specialists, ready to run.

    Parameters
    ----------
    refiner : DetectionRefiner
    context : ImageContext
    """

    def __init__(self, refiner: DetectionRefiner, context: ImageContext) -> None:
        self._refiner, self._context = refiner, context
        self._net = context.runtime.place(refiner.net)
        self._groups = None if refiner.groups is None else refiner.groups.runner(context.runtime)
        self._queue = None if refiner.tree is None else refiner.tree.runner(context.runtime, weakly(self._settle))
        # By key: the cell, and the net's own answer.
        self._waiting: dict[int, tuple[tuple[int, int], Tensor]] = {}
        self._settled: list[Candidates] = []
        self._returned = Candidates.empty()
        self._keys = 0
        self._macs = 0

    @property
    def macs_spent(self) -> int:
        """Multiply-adds of net, specialists and routing up to now."""
        return self._macs + sum(each.macs_spent for each in (self._groups, self._queue) if each is not None)

    @torch.inference_mode()
    def __call__(
        self, pixels: NDArray[np.uint8], corners: NDArray[np.int64], rations: NDArray[np.int64] | None = None
    ) -> Candidates:
        """Refine windows of one shape; see `RunningRefiner`.

        Rations, (n, 2), are the most cells of each window that groups and the tree may run on; other cells keep the
        net's own answer.
        """
        x = self._context.normalise(pixels)
        if self._groups is None and self._queue is None:
            out = self._net(x)
            self._count(out)
            return self._read(out, corners)
        features = self._net.features(x)
        out = self._net.head(features[-1])
        self._count(out)
        classes, inside = out[:, :-BOX_CHANNELS], self._inside(out, corners)
        if self._groups is not None:
            fires = _within(self._groups.fires(features, classes, inside), rations, 0)
            classes += self._groups.added(x, features, fires)
        if self._queue is not None:
            assert self._refiner.tree is not None
            unsure = self._refiner.tree.gate.unsure(classes) & inside
            self._enqueue(x, features, out, corners, _within(unsure, rations, 1))
        self._settled.append(self._read(out, corners))
        return self._taken()

    def flush(self) -> Candidates:
        """Run the specialists on all waiting cells."""
        if self._queue is not None:
            self._queue.flush()
        return self._taken()

    def abandon(self) -> Candidates:
        """Waiting cells with the net's own answer, and what was returned last: an interruption may have lost both."""
        if self._waiting:
            cells, outs = zip(*self._waiting.values(), strict=True)
            self._waiting = {}
            self._settled.append(self._read(torch.stack(outs)[:, :, None, None], np.array(cells, np.int64)))
        return Candidates.concatenate([self._returned, self._taken()])

    def rations(self, fine_sides: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Most cells of each window, (n, 2), that groups and the tree may run on within the multiply-adds set aside.

        Each window has its own share, and fractions of a cell carry over to the next window of the plan, so the answer
        does not depend on the order in which windows are read.
        """
        cells = fine_sides.prod(axis=1)
        dearest = (
            (self._refiner.groups, None if self._groups is None else self._groups.macs_most),
            (self._refiner.tree, None if self._queue is None else self._queue.most_macs(1, 1)),
        )
        found = np.zeros((len(fine_sides), 2), np.int64)
        for column, (own, macs) in enumerate(dearest):
            if own is not None and macs is not None:
                share = self._refiner.aside * own.macs_per_cell / macs
                found[:, column] = np.diff(np.floor(cells.cumsum() * share).astype(np.int64), prepend=0)
        return found

    def _count(self, out: Tensor) -> None:
        self._macs += len(out) * self._refiner.macs(*out.shape[2:])

    def _read(self, out: Tensor, corners: NDArray[np.int64]) -> Candidates:
        return read_detections(out, corners, self._context.floor)

    def _inside(self, out: Tensor, corners: NDArray[np.int64]) -> Tensor:
        """Cells that lie in the image, (n, h, w)."""
        inside = [
            torch.from_numpy(corners[:, axis, None] + np.arange(out.shape[2 + axis]) < self._context.fine_shape[axis])
            for axis in (0, 1)
        ]
        return (inside[0][:, :, None] & inside[1][:, None]).to(out.device)

    def _enqueue(
        self, x: Tensor, features: list[Tensor], out: Tensor, corners: NDArray[np.int64], wanted: Tensor
    ) -> None:
        """Put cells in the tree's queue, and take them out of the net's answer."""
        assert self._refiner.tree is not None
        assert self._queue is not None
        n, top, left = torch.nonzero(wanted, as_tuple=True)
        if not len(n):
            return
        cells = corners[n.cpu().numpy()] + torch.stack([top, left], dim=1).cpu().numpy()
        own = out[n, :, top, left]
        keys = np.arange(self._keys, self._keys + len(cells))
        self._keys += len(cells)
        places = map(tuple, cells.tolist())
        self._waiting.update(zip(keys.tolist(), zip(places, own, strict=True), strict=True))
        out[n, :-BOX_CHANNELS, top, left] = -torch.inf
        layout = self._refiner.tree.layout
        sources, rows = layout.items(layout.read(x, features), (1, 1), (n, top, left))
        self._queue.put(keys, sources, rows, own[:, :-BOX_CHANNELS])

    def _settle(self, done: Answered) -> None:
        """Read the tree's answers to cells."""
        keys = done.keys.tolist()
        cells, outs = zip(*(self._waiting[key] for key in keys), strict=True)
        whole = torch.cat([done.answers, torch.stack(outs)[:, -BOX_CHANNELS:]], dim=1)
        found = self._read(whole[:, :, None, None], np.array(cells, np.int64))
        node = dict(zip(cells, done.nodes.tolist(), strict=True))
        nodes = np.array([node[y, x] for y, x in found.cells.tolist()], np.int32)
        self._settled.append(replace(found, nodes=nodes))
        # Removed last: Ctrl-C may come at any time.
        for key in keys:
            del self._waiting[key]

    def _taken(self) -> Candidates:
        self._returned = Candidates.concatenate(self._settled)
        self._settled = []
        return self._returned


def _within(wanted: Tensor, rations: NDArray[np.int64] | None, column: int) -> Tensor:
    """The first wanted cells of each window, in raster order, within its ration."""
    if rations is None:
        return wanted
    most = torch.from_numpy(rations[:, column, None]).to(wanted.device)
    return wanted & (wanted.flatten(1).cumsum(1) <= most).view_as(wanted)
