"""Run (item, specialist) pairs in full batches, whatever order they come in.

Pairs are queued across windows and images, a batch for each specialist and shape of item. A batch is run when it is
full; when too many are open, the fullest is run as it is. So memory is bounded, and what a pair gives does not depend
on the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shapes = tuple[tuple[int, ...], ...]


# From a specialist's number and its items' maps, batched, to what it makes of them.
Run = Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Done:
    """A batch that has been run.

    Parameters
    ----------
    column : int
        The specialist.
    keys : ndarray, int64, (n,)
        The items' names, in the order of the rows.
    inputs, outputs : tuple of Tensor, (n, ...)
        What went in and what came out; the inputs are good for the length of the call only.
    """

    column: int
    keys: NDArray[np.int64]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(slots=True)
class _Open:
    keys: NDArray[np.int64]
    maps: tuple[Tensor, ...]
    filled: int = 0


class Dispatch:
    """A queue of (item, specialist) pairs.

    Parameters
    ----------
    run : callable
        From a specialist's number and its items' maps, batched, to the batch's outputs.
    deliver : callable
        Takes each batch that was run; it may put new pairs.
    macs : callable
        Multiply-adds of one item: from the specialist's number and the shapes of the item's maps.
    batch : int
        Pairs that are run at a time.
    most_open : int
        Batches that are held at a time; memory is bounded by so many full batches.

    Attributes
    ----------
    items : Counter of int
        Pairs that were run, by specialist.
    batches : int
        Batches that were run.
    macs_spent : int
        Multiply-adds of all that was run.
    """

    def __init__(
        self,
        run: Run,
        deliver: Callable[[Done], None],
        macs: Callable[[int, Shapes], int],
        *,
        batch: int = 128,
        most_open: int = 64,
    ) -> None:
        self._run, self._deliver, self._macs = run, deliver, macs
        self._batch, self._most_open = batch, most_open
        self._open: dict[tuple[int, Shapes], _Open] = {}
        self._free: dict[Shapes, list[_Open]] = {}
        self.items: Counter[int] = Counter()
        self.batches = 0
        self.macs_spent = 0

    def __len__(self) -> int:
        """Pairs that wait."""
        return sum(each.filled for each in self._open.values())

    @torch.inference_mode()
    def put(
        self,
        columns: NDArray[np.integer],
        keys: NDArray[np.int64],
        sources: Sequence[Tensor],
        rows: Sequence[Tensor],
    ) -> None:
        """Queue pairs, and run all batches that become full.

        Parameters
        ----------
        columns : ndarray, int, (m,)
            The specialist of each pair.
        keys : ndarray, int64, (m,)
            Names under which the items are delivered.
        sources : sequence of Tensor, (r, ...)
            For each map that the specialists read, a tensor or strided view with an item in every row.
        rows : sequence of Tensor, int64, (m,)
            For each of them, the row of each pair's item.
        """
        shapes: Shapes = tuple(tuple(source.shape[1:]) for source in sources)
        order = np.argsort(columns, kind="stable")
        columns, keys = columns[order], keys[order]
        index = [each[torch.from_numpy(order).to(each.device)] for each in rows]
        starts = np.flatnonzero(np.diff(columns, prepend=columns[:1] - 1))
        for at, end in pairwise([*starts.tolist(), len(columns)]):
            self._fill(int(columns[at]), shapes, keys, sources, index, (at, end))

    def _fill(
        self,
        column: int,
        shapes: Shapes,
        keys: NDArray[np.int64],
        sources: Sequence[Tensor],
        rows: Sequence[Tensor],
        part: tuple[int, int],
    ) -> None:
        """Queue one specialist's pairs, those from one place to another."""
        at, end = part
        while at < end:
            held = self._held(column, shapes, sources)
            count = min(end - at, self._batch - held.filled)
            into = slice(held.filled, held.filled + count)
            held.keys[into] = keys[at : at + count]
            for source, each, buffer in zip(sources, rows, held.maps, strict=True):
                torch.index_select(source, 0, each[at : at + count], out=buffer[into])
            held.filled += count
            at += count
            if held.filled == self._batch:
                self._work((column, shapes))

    @torch.inference_mode()
    def flush(self) -> None:
        """Run all that waits, and all that comes of it."""
        while self._open:
            self._work(min(self._open))

    def _held(self, column: int, shapes: Shapes, sources: Sequence[Tensor]) -> _Open:
        """The open batch of a specialist; room is made for it if need be."""
        while (column, shapes) not in self._open:
            if len(self._open) < self._most_open:
                free = self._free.get(shapes)
                self._open[column, shapes] = free.pop() if free else self._new(sources)
            else:
                self._work(max(self._open, key=lambda each: (self._open[each].filled, each)))
        return self._open[column, shapes]

    def _new(self, sources: Sequence[Tensor]) -> _Open:
        maps = tuple(
            torch.empty((self._batch, *s.shape[1:]), dtype=s.dtype, device=s.device, memory_format=_format(s))
            for s in sources
        )
        return _Open(np.empty(self._batch, np.int64), maps)

    def _work(self, key: tuple[int, Shapes]) -> None:
        column, shapes = key
        held = self._open.pop(key)
        count = held.filled
        inputs = tuple(m[:count] for m in held.maps)
        outputs = self._run(column, inputs)
        self.items[column] += count
        self.batches += 1
        self.macs_spent += count * self._macs(column, shapes)
        self._deliver(Done(column, held.keys[:count].copy(), inputs, outputs))
        held.filled = 0
        self._free.setdefault(shapes, []).append(held)


def _format(source: Tensor) -> torch.memory_format:
    """Channels last if the source's items are."""
    last = source.dim() == 4 and source.stride(1) == 1
    return torch.channels_last if last else torch.contiguous_format
