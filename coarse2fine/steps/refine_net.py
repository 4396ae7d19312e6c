"""What the refine net and its specialists answer to windows, batch by batch.

Every cell is a case of its own: whether specialists are asked, which, and what they say depends on what the cell sees
alone, never on the window that it lies in. Unsure cells wait until a batch of them is full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import Model
from coarse2fine.models.batch_queue import weakly
from coarse2fine.models.box_head import BOX_CHANNELS
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.routing import Answered
from coarse2fine.models.runtime import Runtime
from coarse2fine.specialists.kinds import KindReader
from coarse2fine.steps.plan import Plan

# From the refine net's output and the fine-grid corner of each window to what was found.
Read = Callable[[Tensor, NDArray[np.int64]], Candidates]


class RefineNet:
    """The refine net with its specialists, ready to run.

    Parameters
    ----------
    model : Model
    runtime : Runtime
    read : callable
        Turns answers into candidates.
    fine_shape : tuple of int
        Fine cells of the image; no specialist is asked for what lies beyond.
    """

    def __init__(
        self,
        model: Model,
        runtime: Runtime,
        read: Read,
        fine_shape: tuple[int, int],
    ) -> None:
        self._net = runtime.place(model.refiner)
        self._read, self._fine_shape = read, fine_shape
        self._tree = model.tree
        self._kinds = kind_reader(model, runtime)
        self._groups = self._queue = None
        if self._kinds is None:
            self._groups = None if model.groups is None else model.groups.runner(runtime)
            self._queue = None if model.tree is None else model.tree.runner(runtime, weakly(self._settle))
        # By key: the cell, and the net's own answer to it.
        self._waiting: dict[int, tuple[tuple[int, int], Tensor]] = {}
        self._settled: list[Candidates] = []
        self._returned = Candidates.empty()
        self._keys = 0

    @property
    def specialist_macs(self) -> int:
        """Multiply-adds of specialists and routing up to now."""
        return sum(each.macs_spent for each in (self._groups, self._queue, self._kinds) if each is not None)

    @torch.inference_mode()
    def __call__(self, x: Tensor, corners: NDArray[np.int64], rations: NDArray[np.int64] | None = None) -> Candidates:
        """Refine windows of one shape.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
        corners : ndarray, int64, (n, 2)
            Fine-grid index of each window's first cell.
        rations : ndarray, int64, (n, 2), optional
            Cells of each window that groups and the tree may be asked about, see `rations`; the others keep the
            net's own answer. By default all may.

        Returns
        -------
        Candidates
            Of these windows and those before, as far as they are settled.
        """
        if self._kinds is None and self._groups is None and self._queue is None:
            return self._read(self._net(x), corners)
        features = self._net.features(x)
        out = self._net.head(features[-1])
        if self._kinds is not None:
            self._settled.append(self._routed(self._read(self._kinds(x, features, out), corners)))
            return self._taken()
        classes, inside = out[:, :-BOX_CHANNELS], self._inside(out, corners)
        if self._groups is not None:
            fires = _within(self._groups.fires(features, classes, inside), rations, 0)
            classes += self._groups.added(x, features, fires)
        if self._queue is not None:
            assert self._tree is not None
            unsure = self._tree.gate.unsure(classes) & inside
            self._ask(x, features, out, corners, _within(unsure, rations, 1))
        self._settled.append(self._read(out, corners))
        return self._taken()

    def flush(self) -> Candidates:
        """Ask the specialists for all that waits."""
        if self._queue is not None:
            self._queue.flush()
        return self._taken()

    def abandon(self) -> Candidates:
        """What waits, by the net's own answer, and what was returned last: an interruption may have lost both."""
        if self._waiting:
            cells, outs = zip(*self._waiting.values(), strict=True)
            self._waiting = {}
            self._settled.append(self._read(torch.stack(outs)[:, :, None, None], np.array(cells, np.int64)))
        return Candidates.concatenate([self._returned, self._taken()])

    def _routed(self, found: Candidates) -> Candidates:
        """Candidates whose labels are kinds, with their nodes where those are leaves of a tree."""
        if self._tree is None:
            return found
        return replace(found, nodes=self._tree.clusters.leaves[found.labels].astype(np.int32))

    def _inside(self, out: Tensor, corners: NDArray[np.int64]) -> Tensor:
        """Cells that lie in the image, (n, h, w)."""
        inside = [
            torch.from_numpy(corners[:, axis, None] + np.arange(out.shape[2 + axis]) < self._fine_shape[axis])
            for axis in (0, 1)
        ]
        return (inside[0][:, :, None] & inside[1][:, None]).to(out.device)

    def rations(self, plan: Plan, model: Model) -> NDArray[np.int64]:
        """Cells of each window of a plan that groups and the tree may be asked about, (n, 2), for what is set aside.

        Each window has its own part, and what a part leaves of a whole cell goes to the next of the plan: the answer
        is then the same in whatever order the windows are read.
        """
        cells = plan.sides.prod(axis=1)
        dearest = (
            (model.groups, None if self._groups is None else self._groups.macs_most),
            (model.tree, None if self._queue is None else self._queue.most_macs(1, 1)),
        )
        found = np.zeros((len(plan), 2), np.int64)
        for column, (own, macs) in enumerate(dearest):
            if own is not None and macs is not None:
                whole = np.floor(cells.cumsum() * (model.set_aside(own) / macs)).astype(np.int64)
                found[:, column] = np.diff(whole, prepend=0)
        return found

    def _ask(self, x: Tensor, features: list[Tensor], out: Tensor, corners: NDArray[np.int64], wanted: Tensor) -> None:
        """Send cells on their way, and take them out of the answer."""
        assert self._tree is not None
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
        layout = self._tree.layout
        sources, rows = layout.items(layout.read(x, features), (1, 1), (n, top, left))
        self._queue.put(keys, sources, rows, own[:, :-BOX_CHANNELS])

    def _settle(self, done: Answered) -> None:
        """Read cells that come back."""
        keys = done.keys.tolist()
        cells, outs = zip(*(self._waiting[key] for key in keys), strict=True)
        whole = torch.cat([done.answers, torch.stack(outs)[:, -BOX_CHANNELS:]], dim=1)
        found = self._read(whole[:, :, None, None], np.array(cells, np.int64))
        node = dict(zip(cells, done.nodes.tolist(), strict=True))
        nodes = np.array([node[y, x] for y, x in found.cells.tolist()], np.int32)
        self._settled.append(replace(found, nodes=nodes))
        # Only now: Ctrl-C may come at any time.
        for key in keys:
            del self._waiting[key]

    def _taken(self) -> Candidates:
        self._returned = Candidates.concatenate(self._settled)
        self._settled = []
        return self._returned


def _within(wanted: Tensor, rations: NDArray[np.int64] | None, column: int) -> Tensor:
    """The first of those wanted in each window, as many as its ration has."""
    if rations is None:
        return wanted
    most = torch.from_numpy(rations[:, column, None]).to(wanted.device)
    return wanted & (wanted.flatten(1).cumsum(1) <= most).view_as(wanted)


def kind_reader(model: Model, runtime: Runtime) -> KindReader | None:
    """What paints the kinds of an "explore" model, at work, if it has any."""
    columns = model.groups if model.tree is None else model.tree
    if columns is None or model.decoder is None:
        return None
    return KindReader(columns, model.decoder, model.refiner.spec, runtime)
