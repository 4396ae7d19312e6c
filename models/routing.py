"""Routing of items through the tree of specialists: features decide which column comes next; columns run in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batch_queue import BatchQueue, Done, Shapes, weakly
from .column import Column
from .feature_tree import ROOT, FeatureTree, pooled
from .gate import Gate


@dataclass(frozen=True, slots=True)
class Answered:
    """Items with their final answers.

    Parameters
    ----------
    keys : ndarray, int64, (n,)
        Identifiers of the items.
    answers : Tensor, float, (n, classes)
        The base's answer plus the outputs of the columns.
    nodes : ndarray, int32, (n,)
        Last node that each item reached; its column may have been pruned.
    """

    keys: NDArray[np.int64]
    answers: Tensor
    nodes: NDArray[np.int32]


class Specialists:
    """Runs a tree of columns on items from any window of any image.

    An item is a cell or a block of cells with one answer, to which each column adds its mean output over the cells.

    Parameters
    ----------
    tree : FeatureTree
    columns : mapping of int to Column
        Column of each kept node but the root, in evaluation mode.
    deliver : callable
        Takes finished items, in the order in which they finish.
    gate : Gate
        If an answer does not pass it, no further column is run.
    batch, most_bytes : int
        See `BatchQueue`.

    Attributes
    ----------
    dispatch : BatchQueue
        Queue of the columns; counts the items run, by node.
    routing_macs : int
        Multiply-adds of finding each item's next node.
    """

    def __init__(
        self,
        tree: FeatureTree,
        columns: Mapping[int, Column],
        deliver: Callable[[Answered], None],
        *,
        gate: Gate,
        batch: int = 1024,
        most_bytes: int = 128 << 20,
    ) -> None:
        self._tree, self._columns, self._answered, self._gate = tree, columns, deliver, gate
        # Only nodes with a column below them need routing.
        self._parents = {int(tree.parent[node]) for node in columns}
        self._reads = max((len(column.layout.maps) for column in columns.values()), default=1)
        self.routing_macs = 0
        self.dispatch = BatchQueue(
            weakly(self._run), weakly(self._settle), weakly(self._macs), batch=batch, most_bytes=most_bytes
        )

    def most_macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds of an item of the given size on its most expensive path."""
        most: dict[int, int] = {}
        for node in sorted(self._columns):
            parent = int(self._tree.parent[node])
            own = self._columns[node].macs(cell_height, cell_width) + self._tree.step_macs(node)
            most[node] = most.get(parent, 0) + own
        return self._tree.step_macs(ROOT) + max(most.values(), default=0)

    @property
    def macs_spent(self) -> int:
        """Multiply-adds of columns and routing."""
        return self.dispatch.macs_spent + self.routing_macs

    @torch.inference_mode()
    def put(self, keys: NDArray[np.int64], sources: Sequence[Tensor], rows: Sequence[Tensor], answers: Tensor) -> None:
        """Start items of one shape at the root.

        Parameters
        ----------
        keys : ndarray, int64, (n,)
            Identifiers, none of which is in progress already.
        sources : sequence of Tensor, float, (r, c, h, w)
            For each map that the tree's first columns read, a tensor or strided view with an item in every row.
        rows : sequence of Tensor, int64, (n,)
            For each of them, the row of each item.
        answers : Tensor, float, (n, classes)
            Answers of the base.
        """
        self._advance(ROOT, keys, sources[-self._reads :], rows[-self._reads :], (), answers)

    def flush(self) -> None:
        """Finish all waiting items."""
        self.dispatch.flush()

    def _run(self, node: int, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        column = self._columns[node]
        inputs, parent, answers = maps[: self._reads], maps[self._reads : -1], maps[-1]
        added, stages = column(inputs[self._reads - len(column.layout.maps) :], parent)
        return (answers + added.mean(dim=(2, 3)), *stages)

    def _macs(self, node: int, shapes: Shapes) -> int:
        return self._columns[node].macs(*shapes[self._reads - 1][-2:])

    def _settle(self, done: Done) -> None:
        answers, *stages = done.outputs
        inputs = done.inputs[: self._reads]
        rows = torch.arange(len(answers), device=answers.device)
        self._advance(done.column, done.keys, inputs, [rows] * len(inputs), stages, answers)

    def _advance(
        self,
        node: int,
        keys: NDArray[np.int64],
        sources: Sequence[Tensor],
        rows: Sequence[Tensor],
        stages: Sequence[Tensor],
        answers: Tensor,
    ) -> None:
        """Route items on from a node: to another column, or to the end."""
        nodes = np.full(len(keys), node, np.int32)
        on = np.zeros(len(keys), bool)
        if node in self._parents:
            unsure = torch.nonzero(self._gate.unsure(answers))[:, 0]
            high = torch.index_select(sources[-1], 0, rows[-1][unsure])
            index = unsure.cpu().numpy()
            nodes[index] = self._tree.step(node, features_at(high, [s[unsure] for s in stages[-1:]]))
            on[index] = self._tree.kept[nodes[index]]
            self.routing_macs += len(index) * self._tree.step_macs(node)
        if not on.all():
            ended = torch.from_numpy(np.flatnonzero(~on)).to(answers.device)
            self._answered(Answered(keys[~on], answers[ended], nodes[~on]))
        if on.any():
            going = torch.from_numpy(np.flatnonzero(on)).to(answers.device)
            own = [*stages, answers]
            self.dispatch.put(
                nodes[on], keys[on], [*sources, *own], [*(each[going] for each in rows), *[going] * len(own)]
            )


def features_at(high: Tensor, stages: Sequence[Tensor]) -> NDArray[np.float32]:
    """Features of items at a node: the base's high-level features, and those of the node's column.

    The scales of a `FeatureTree` say which of them are read: below the root those of the column alone.

    Parameters
    ----------
    high : Tensor, float, (n, c, h, w)
        High-level map of the base.
    stages : sequence of Tensor
        Stages of the node's column; none at the root.
    """
    return pooled(high, *stages[-1:])
