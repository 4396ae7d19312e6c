"""Items on their way through the tree: each net's features say which specialist comes next, and all run in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .column import Column
from .dispatch import Dispatch, Done, Shapes
from .tree import NO_NODE, ROOT, FeatureTree, pooled, unsure


@dataclass(frozen=True, slots=True)
class Answered:
    """Items that have come to the end of their way.

    Parameters
    ----------
    keys : ndarray, int64, (n,)
        The items' names.
    answers : Tensor, float, (n, out_channels, cell height, cell width)
        The base's answer and what each column added.
    paths : ndarray, int32, (n, depth of the tree)
        The nodes that each item came to, -1 behind the last.
    asked : ndarray, int64, (n,)
        How many of them, from the first on, have run their column: the gate or pruning may have spared the last.
    """

    keys: NDArray[np.int64]
    answers: Tensor
    paths: NDArray[np.int32]
    asked: NDArray[np.int64]


class Specialists:
    """A tree of columns at work on items from any window of any image.

    Parameters
    ----------
    tree : FeatureTree
    columns : mapping of int to Column
        The column of each node that is kept, but the root, in evaluation mode.
    deliver : callable
        Takes items that are answered, in the order in which they are.
    gate : float, optional
        Confidence from which an answer stands and no further column is asked, see `unsure`; by default all are asked.
    exclusive : bool
        Whether a cell has one class; for the gate.
    batch, most_open : int
        See `Dispatch`.

    Attributes
    ----------
    dispatch : Dispatch
        Counts what was run, by node.
    """

    def __init__(
        self,
        tree: FeatureTree,
        columns: Mapping[int, Column],
        deliver: Callable[[Answered], None],
        *,
        gate: float | None = None,
        exclusive: bool = False,
        batch: int = 128,
        most_open: int = 64,
    ) -> None:
        self._tree, self._columns, self._answered = tree, columns, deliver
        self._gate, self._exclusive = gate, exclusive
        self._depth = int(tree.depths.max())
        self._depths = tree.depths
        self._ways: dict[int, list[int]] = {}
        self._reads = max((len(column.layout.maps) for column in columns.values()), default=0)
        self.dispatch = Dispatch(self._run, self._settle, self._macs, batch=batch, most_open=most_open)

    def put(self, keys: NDArray[np.int64], inputs: Sequence[Tensor], answer: Tensor) -> None:
        """Send items of one shape on their way.

        Parameters
        ----------
        keys : ndarray, int64, (n,)
            Names, none of which is on its way already.
        inputs : sequence of Tensor, float, (n, c, h, w)
            What the `Layout.read` of the tree's first columns gives.
        answer : Tensor, float, (n, out_channels, cell height, cell width)
            The base's answer there.
        """
        self._ways |= {key: [] for key in keys.tolist()}
        self._advance(ROOT, keys, inputs, (), answer)

    def flush(self) -> None:
        """Answer all that waits."""
        self.dispatch.flush()

    def _run(self, node: int, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        column = self._columns[node]
        inputs, parent, answer = maps[: self._reads], maps[self._reads : -1], maps[-1]
        added, stages = column(inputs[len(inputs) - len(column.layout.maps) :], parent)
        return (answer + added, *stages)

    def _macs(self, node: int, shapes: Shapes) -> int:
        return self._columns[node].macs(*shapes[-1][-2:])

    def _settle(self, done: Done) -> None:
        answer, *stages = done.outputs
        self._advance(done.column, done.keys, done.inputs[: self._reads], stages, answer)

    def _advance(
        self, node: int, keys: NDArray[np.int64], inputs: Sequence[Tensor], stages: Sequence[Tensor], answer: Tensor
    ) -> None:
        """Find what comes after a node: another column, or the end."""
        features = features_at(inputs[-1], stages)
        following = self._tree.step(node, features)
        on = (following != NO_NODE) & self._tree.kept[following]
        if self._gate is not None:
            on &= unsure(answer, self._gate, exclusive=self._exclusive).cpu().numpy()
        for key, child in zip(keys.tolist(), following.tolist(), strict=True):
            if child != NO_NODE:
                self._ways[key].append(child)
        self._end(keys[~on], answer[torch.from_numpy(~on).to(answer.device)], int(self._depths[node]))
        maps = [*inputs, *stages, answer]
        rows = torch.from_numpy(np.flatnonzero(on)).to(answer.device)
        self.dispatch.put(following[on], keys[on], maps, [rows] * len(maps))

    def _end(self, keys: NDArray[np.int64], answers: Tensor, asked: int) -> None:
        if not len(keys):
            return
        paths = np.full((len(keys), self._depth), NO_NODE, np.int32)
        for row, key in enumerate(keys.tolist()):
            way = self._ways.pop(key)
            paths[row, : len(way)] = way
        self._answered(Answered(keys, answers, paths, np.full(len(keys), asked)))


def features_at(high: Tensor, stages: Sequence[Tensor]) -> NDArray[np.float32]:
    """What items are clustered and routed by at a node: the base's high-level features, and those of its column.

    Parameters
    ----------
    high : Tensor, float, (n, c, h, w)
        The base's high-level map.
    stages : sequence of Tensor
        Of the node's column; none at the root.
    """
    return pooled(high, *stages[-1:])
