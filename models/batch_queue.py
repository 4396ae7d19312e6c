"""Queue that runs (item, specialist) pairs in full batches, in whatever order they arrive.

Pairs are queued across windows and images, a batch for each specialist and shape of item; it is run when it is full.
Waiting pairs keep the maps that they were cut from in memory; if these take too much, the batches that need the oldest
are run before they are full. The result of a pair does not depend on the others. On CPUs batches are gathered and run
in parallel, each on a thread of its own, and delivered in the order in which they were started.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .threads import ThreadPool

Shapes = tuple[tuple[int, ...], ...]
# Small batches cost too much in calls; batches larger than the CPU's cache cost too much in copies.
_BATCH_BYTES, _LEAST_BATCH = 16 << 20, 64
# Waiting items are copied out of their maps if these are larger than the items by more than this factor.
_SPARE = 2

Given = ParamSpec("Given")
Result = TypeVar("Result")

# From a specialist's number and its items' maps, batched, to its outputs.
Run = Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Done:
    """A batch that has been run.

    Parameters
    ----------
    column : int
        The specialist.
    keys : ndarray, int64, (n,)
        Identifiers of the items, in the order of the rows.
    inputs, outputs : tuple of Tensor, (n, ...)
        Inputs and outputs of the batch.
    """

    column: int
    keys: NDArray[np.int64]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(slots=True)
class _Chunk:
    """Maps of one call of `put`, and how many of its pairs wait."""

    sources: tuple[Tensor, ...]
    waiting: int

    @property
    def size(self) -> int:
        """Memory in bytes."""
        storages = [source.untyped_storage() for source in self.sources]
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@dataclass(slots=True)
class _Part:
    """Pairs of a batch from one call of `put`."""

    chunk: _Chunk
    keys: NDArray[np.int64]
    rows: tuple[Tensor, ...]


# For each part of a batch its maps, and for each map the rows at which items begin.
_Cut = list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


@dataclass(frozen=True, slots=True)
class _Ready:
    column: int
    shapes: Shapes
    keys: NDArray[np.int64]
    cut: _Cut


@dataclass(frozen=True, slots=True)
class _Running:
    column: int
    keys: NDArray[np.int64]
    maps: Future[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


def weakly(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """A weak reference to a method, for a queue that its object owns: avoids a reference cycle."""
    held = weakref.WeakMethod(method)

    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        bound = held()
        assert bound is not None
        return bound(*args, **kwargs)

    return call


class BatchQueue:
    """A queue of (item, specialist) pairs.

    Parameters
    ----------
    run : callable
        From a specialist's number and its items' maps, batched, to the batch's outputs.
    deliver : callable
        Takes each finished batch, in the thread that calls `put` or `flush`; it may put new pairs.
    macs : callable
        Multiply-adds of one item: from the specialist's number and the shapes of the item's maps.
    batch : int
        Most pairs of a batch, which also takes no more than 16 MiB of maps unless that is fewer than 64 pairs.
    most_bytes : int
        Approximate limit on the memory of maps that waiting pairs keep.

    Attributes
    ----------
    items : Counter of int
        Pairs finished or running, by specialist.
    batches : int
        Batches finished or running.
    macs_spent : int
        Multiply-adds of all of them.
    """

    def __init__(
        self,
        run: Run,
        deliver: Callable[[Done], None],
        macs: Callable[[int, Shapes], int],
        *,
        batch: int = 1024,
        most_bytes: int = 128 << 20,
    ) -> None:
        self._run, self._deliver, self._macs = run, deliver, macs
        self._batch, self._most_bytes = batch, most_bytes
        self._open: dict[tuple[int, Shapes], list[_Part]] = {}
        self._chunks: deque[_Chunk] = deque()
        self._size = 0
        self._ready: deque[_Ready] = deque()
        self._running: deque[_Running] = deque()
        self._busy = False
        self.items: Counter[int] = Counter()
        self.batches = 0
        self.macs_spent = 0

    def __len__(self) -> int:
        """Number of pairs waiting or running."""
        return sum(map(_count, self._open.values())) + _count([*self._ready, *self._running])

    @torch.inference_mode()
    def put(
        self,
        columns: NDArray[np.integer],
        keys: NDArray[np.int64],
        sources: Sequence[Tensor],
        rows: Sequence[Tensor],
    ) -> None:
        """Queue pairs, and start all batches that become full.

        Parameters
        ----------
        columns : ndarray, int, (m,)
            The specialist of each pair.
        keys : ndarray, int64, (m,)
            Identifiers under which the items are delivered.
        sources : sequence of Tensor, (r, ...)
            For each map that the specialists read, a tensor or strided view with an item in every row; not to be
            changed until the pairs are delivered.
        rows : sequence of Tensor, int64, (m,)
            For each of them, the row of each pair's item.
        """
        if not len(columns):
            return
        shapes: Shapes = tuple(tuple(source.shape[1:]) for source in sources)
        order = np.argsort(columns, kind="stable")
        columns, keys = columns[order], keys[order]
        starts = np.flatnonzero(np.diff(columns, prepend=columns[:1] - 1))
        self._condense()
        index = [each[torch.from_numpy(order).to(each.device)] for each in rows]
        chunk = _Chunk(tuple(sources), len(keys))
        self._chunks.append(chunk)
        self._size += chunk.size
        most = min(self._batch, max(_LEAST_BATCH, _BATCH_BYTES // _item_bytes(sources)))
        for at, end in pairwise([*starts.tolist(), len(columns)]):
            whole = _Part(chunk, keys[at:end], tuple(each[at:end] for each in index))
            self._fill((int(columns[at]), shapes), whole, most)
        self._make_room()
        self._work()

    def _condense(self) -> None:
        """Copy the waiting items out of the last maps if these are much larger."""
        if not self._chunks or not self._chunks[-1].waiting:
            return
        last = self._chunks[-1]
        before = last.size
        if before <= _SPARE * last.waiting * _item_bytes(last.sources):
            return
        parts = [part for held in self._open.values() for part in held if part.chunk is last]
        cut = [(last.sources, part.rows) for part in parts]
        last.sources = ThreadPool.beside(cut[0][0][0]).start(partial(_gathered, cut)).result()
        self._size += last.size - before
        at = 0
        for part in parts:
            part.rows = (torch.arange(at, at + len(part.keys), device=part.rows[0].device),) * len(part.rows)
            at += len(part.keys)

    def _fill(self, key: tuple[int, Shapes], part: _Part, most: int) -> None:
        """Queue one specialist's pairs, and close each batch of `most` pairs."""
        at = 0
        while at < len(part.keys):
            parts = self._open.setdefault(key, [])
            end = at + most - _count(parts)
            rows = tuple(each[at:end] for each in part.rows)
            parts.append(_Part(part.chunk, part.keys[at:end], rows))
            if end <= len(part.keys):
                self._close(key)
            at = end

    def _make_room(self) -> None:
        """Close the batches that need the oldest maps, until the memory limit is met."""
        while self._chunks and (self._size > self._most_bytes or not self._chunks[0].waiting):
            oldest = self._chunks.popleft()
            for key in [k for k, parts in self._open.items() if any(part.chunk is oldest for part in parts)]:
                self._close(key)

    def _close(self, key: tuple[int, Shapes]) -> None:
        """Move a batch to those ready to run."""
        parts = self._open.pop(key)
        cut = [(part.chunk.sources, part.rows) for part in parts]
        self._ready.append(_Ready(*key, np.concatenate([part.keys for part in parts]), cut))
        for part in parts:
            part.chunk.waiting -= len(part.keys)
            if not part.chunk.waiting:
                self._size -= part.chunk.size
                part.chunk.sources = ()

    @torch.inference_mode()
    def flush(self) -> None:
        """Run all waiting pairs, and those that `deliver` puts meanwhile; `deliver` must not call it."""
        while self._open or self._ready or self._running:
            if self._open:
                self._close(min(self._open))
            self._work(to_the_end=not self._open)

    def _work(self, *, to_the_end: bool = False) -> None:
        """Start ready batches, delivering the oldest until a thread is free, or all; nested calls only queue."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._ready or (to_the_end and self._running):
                most = self._start(self._ready.popleft()) if self._ready else 0
                while len(self._running) > most:
                    self._settle()
        finally:
            self._busy = False

    def _start(self, batch: _Ready) -> int:
        """Run a batch as soon as a thread is free; returns how many may run at once."""

        def run() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            inputs = _gathered(batch.cut)
            return inputs, self._run(batch.column, inputs)

        lanes = ThreadPool.beside(batch.cut[0][0][0])
        self._running.append(_Running(batch.column, batch.keys, lanes.start(run)))
        self.items[batch.column] += len(batch.keys)
        self.batches += 1
        self.macs_spent += len(batch.keys) * self._macs(batch.column, batch.shapes)
        return lanes.count

    def _settle(self) -> None:
        """Deliver the oldest running batch."""
        first = self._running.popleft()
        self._deliver(Done(first.column, first.keys, *first.maps.result()))


def _count(held: Sequence[_Part | _Ready | _Running]) -> int:
    return sum(len(each.keys) for each in held)


def _item_bytes(sources: Sequence[Tensor]) -> int:
    return sum(prod(source.shape[1:]) * source.element_size() for source in sources)


def _gathered(parts: _Cut) -> tuple[Tensor, ...]:
    """Gather rows of every map, one part after the other."""
    each_map = zip(*(zip(sources, rows, strict=True) for sources, rows in parts), strict=True)
    return tuple(map(_selected, each_map))


def _selected(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Gather rows of one map."""
    first, count = parts[0][0], sum(len(rows) for _, rows in parts)
    last = first.dim() == 4 and first.stride(1) == 1
    laid_out = torch.channels_last if last else torch.contiguous_format
    out = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=first.device, memory_format=laid_out)
    at = 0
    for source, rows in parts:
        torch.index_select(source, 0, rows, out=out[at : at + len(rows)])
        at += len(rows)
    return out
