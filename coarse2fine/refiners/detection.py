"""Detection: the built-in refine net and its specialists, trained on annotations.

Routing depends only on the cell's features, so any tiling gives the same result. Unsure cells wait in a queue until a
batch is full.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    Specialists correct its answer: the tree in unsure cells, groups where their features fire. Groups that the scan
    chooses run beside the tree; those of older models before it, and the tree corrects their answer.
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
        # By key: the cell, the net's own answer, and what groups that the scan chose add to it.
        self._waiting: dict[int, tuple[tuple[int, int], Tensor, Tensor]] = {}
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

        Rations, (n, 2), are the most tiles and cells of each window that groups and the tree may run on; other cells
        keep the net's own answer.
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
        added, scanned = self._added(x, features, classes, corners, inside, rations)
        if not scanned:
            classes += added
        if self._queue is not None:
            assert self._refiner.tree is not None
            unsure = self._refiner.tree.gate.unsure(classes) & inside
            self._enqueue(x, features, out, added if scanned else 0 * added, corners, _within(unsure, rations, 1))
        if scanned:
            classes += added
        self._settled.append(self._read(out, corners))
        return self._taken()

    def _added(
        self,
        x: Tensor,
        features: list[Tensor],
        classes: Tensor,
        corners: NDArray[np.int64],
        inside: Tensor,
        rations: NDArray[np.int64] | None,
    ) -> tuple[Tensor, bool]:
        """Output of the groups, (n, classes, h, w), and whether the scan chose them."""
        groups, own = self._groups, self._refiner.groups
        if groups is None or own is None:
            return torch.zeros_like(classes), False
        if own.block:
            if self._context.fires is None:
                return torch.zeros_like(classes), True
            chosen = self._context.fires(corners, (classes.shape[2], classes.shape[3]))
            fires = torch.from_numpy(chosen).to(classes.device)
        else:
            fires = groups.fires(features, classes)
        fires = groups.within(fires & inside[:, None], None if rations is None else rations[:, 0])
        return groups.added(x, features, fires), bool(own.block)

    def flush(self) -> Candidates:
        """Run the specialists on all waiting cells."""
        if self._queue is not None:
            self._queue.flush()
        return self._taken()

    def abandon(self) -> Candidates:
        """Waiting cells with the net's own answer, and what was returned last: an interruption may have lost both."""
        if self._waiting:
            cells, outs, added = zip(*self._waiting.values(), strict=True)
            self._waiting = {}
            whole = torch.stack(outs)
            whole[:, :-BOX_CHANNELS] += torch.stack(added)
            self._settled.append(self._read(whole[:, :, None, None], np.array(cells, np.int64)))
        return Candidates.concatenate([self._returned, self._taken()])

    def rations(self, fine_sides: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Most tiles of groups and most cells of the tree in each window, (n, 2), within the multiply-adds set aside.

        Each window has its own share, and what is left of it carries over to the next window of the plan, so the answer
        does not depend on the order in which windows are read.
        """
        found = np.zeros((len(fine_sides), 2), np.int64)
        cells, refiner = fine_sides.prod(axis=1), self._refiner
        if self._groups is not None and refiner.groups is not None:
            each = [self._groups.tile_macs(*sides) for sides in fine_sides.tolist()]
            found[:, 0] = _affordable(cells * refiner.aside * refiner.groups.macs_per_cell, each)
        if self._queue is not None and refiner.tree is not None:
            most = self._queue.most_macs(1, 1)
            found[:, 1] = _affordable(cells * refiner.aside * refiner.tree.macs_per_cell, [most] * len(cells))
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
        self,
        x: Tensor,
        features: list[Tensor],
        out: Tensor,
        added: Tensor,
        corners: NDArray[np.int64],
        wanted: Tensor,
    ) -> None:
        """Put cells in the tree's queue, with what groups add later, and take them out of the net's answer."""
        assert self._refiner.tree is not None
        assert self._queue is not None
        n, top, left = torch.nonzero(wanted, as_tuple=True)
        if not len(n):
            return
        cells = corners[n.cpu().numpy()] + torch.stack([top, left], dim=1).cpu().numpy()
        own, later = out[n, :, top, left], added[n, :, top, left]
        keys = np.arange(self._keys, self._keys + len(cells))
        self._keys += len(cells)
        places = map(tuple, cells.tolist())
        self._waiting.update(zip(keys.tolist(), zip(places, own, later, strict=True), strict=True))
        out[n, :-BOX_CHANNELS, top, left] = -torch.inf
        layout = self._refiner.tree.layout
        sources, rows = layout.items(layout.read(x, features), (1, 1), (n, top, left))
        self._queue.put(keys, sources, rows, own[:, :-BOX_CHANNELS])

    def _settle(self, done: Answered) -> None:
        """Read the tree's answers to cells."""
        keys = done.keys.tolist()
        cells, outs, added = zip(*(self._waiting[key] for key in keys), strict=True)
        whole = torch.cat([done.answers + torch.stack(added), torch.stack(outs)[:, -BOX_CHANNELS:]], dim=1)
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


def _affordable(macs: NDArray[np.float64], each: Sequence[int]) -> NDArray[np.int64]:
    """Pieces that each window can afford: of `each` multiply-adds, from its own `macs` and what others left over."""
    found, left = np.zeros(len(macs), np.int64), 0.0
    for row, (share, piece) in enumerate(zip(macs.tolist(), each, strict=True)):
        found[row] = (left + share) // piece
        left += share - piece * int(found[row])
    return found


def _within(wanted: Tensor, rations: NDArray[np.int64] | None, column: int) -> Tensor:
    """The first wanted cells of each window, in raster order, within its ration."""
    if rations is None:
        return wanted
    most = torch.from_numpy(rations[:, column, None]).to(wanted.device)
    return wanted & (wanted.flatten(1).cumsum(1) <= most).view_as(wanted)
