"""Batches of windows, decoded in threads ahead of the consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import Box
from .image import Image
from .scaling import virtual_chunk

LEAST_SALVAGED = 64
"""Side in pixels of the parts in which a damaged box is read; smaller ones are given up."""


@dataclass(frozen=True)
class Batch:
    """Some windows of a request.

    Parameters
    ----------
    index : (n,) intp array
        Positions of the windows in the boxes that were asked for.
    pixels : (n, h, w, channels) uint8 array
        Their pixels, zeros where reading failed.
    failed : (n,) bool array
        Windows that need a chunk that cannot be decoded.
    """

    index: NDArray[np.intp]
    pixels: NDArray[np.uint8]
    failed: NDArray[np.bool_]


@dataclass(frozen=True)
class _Pending:
    """A batch whose windows are being read; each future gives the reason of a failure, or None."""

    index: NDArray[np.intp]
    pixels: NDArray[np.uint8]
    reads: list[Future[str | None]]


class WindowReader:
    """Read equally large windows of an image in batches; a context manager.

    Windows come in the order of the chunks that hold their corners, so that each chunk is decoded once.
    Threads read ahead by a bounded number of batches; they end when the batches are used up, their iterator
    is closed, or the context is left, whatever the reason.

    Parameters
    ----------
    image : Image
        Stays open when the reader closes.
    downsample : int
        Full-resolution pixels per pixel of the plane in which boxes lie.
    workers : int
        Threads that decode.
    prefetch : int
        Batches read ahead of the consumer, the one it waits for included.

    Attributes
    ----------
    failures : list of str
        Why windows failed, each reason once, in order of occurrence.

    Raises
    ------
    ValueError
        If a number is below 1.
    """

    def __init__(self, image: Image, *, downsample: int = 1, workers: int = 2, prefetch: int = 4) -> None:
        if min(downsample, workers, prefetch) < 1:
            raise ValueError(
                f"expected downsample, workers and prefetch of at least 1, got {downsample}, {workers} and {prefetch}"
            )
        self.failures: list[str] = []
        self._image = image
        self._downsample = downsample
        self._workers = workers
        self._prefetch = prefetch
        self._running: list[Generator[Batch, None, None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._running:
            self._running.pop().close()

    def batches(self, boxes: Sequence[Box], batch_size: int) -> Iterator[Batch]:
        """Read boxes of one shape, sorted by the chunk that holds their corner (row, column), then position.

        Parameters
        ----------
        boxes : sequence of Box
            In the plane of `downsample`; may reach outside the image, whose edge pixels are then repeated.
        batch_size : int
            Windows in a batch; the last may have fewer.

        Returns
        -------
        iterator of Batch
            The same batches in the same order whatever the number of workers.

        Raises
        ------
        ValueError
            If the boxes differ in shape or `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        shapes = {(box.height, box.width) for box in boxes}
        if len(shapes) > 1:
            raise ValueError(f"expected boxes of one shape, got {len(shapes)} shapes: {sorted(shapes)[:4]}")
        running = self._run(boxes, batch_size)
        self._running.append(running)
        return running

    def _run(self, boxes: Sequence[Box], batch_size: int) -> Generator[Batch, None, None]:
        order = self._order(boxes)
        parts = iter([order[i : i + batch_size] for i in range(0, len(order), batch_size)])
        pending: deque[_Pending] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="window-reader")
        try:
            while True:
                while len(pending) < self._prefetch and (index := next(parts, None)) is not None:
                    pending.append(self._submit(pool, boxes, index))
                if not pending:
                    return
                yield self._finish(pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, boxes: Sequence[Box]) -> NDArray[np.intp]:
        corners = np.array([(box.y0, box.x0) for box in boxes], dtype=np.int64).reshape(-1, 2)
        chunks = np.floor(corners / virtual_chunk(self._image.levels, self._downsample))
        return np.lexsort((corners[:, 1], corners[:, 0], chunks[:, 1], chunks[:, 0]))

    def _submit(self, pool: ThreadPoolExecutor, boxes: Sequence[Box], index: NDArray[np.intp]) -> _Pending:
        first = boxes[index[0]]
        pixels = np.zeros((len(index), first.height, first.width, self._image.channels), dtype=np.uint8)
        reads = [pool.submit(self._read, boxes[i], pixels[n]) for n, i in enumerate(index)]
        return _Pending(index, pixels, reads)

    def _read(self, box: Box, into: NDArray[np.uint8]) -> str | None:
        try:
            if self._downsample == 1:
                into[:] = self._image.read(box)
            else:
                into[:] = self._image.read_scaled(box, self._downsample)
        except ImageError as error:
            return str(error)
        return None

    def _finish(self, pending: _Pending) -> Batch:
        reasons = [read.result() for read in pending.reads]
        for reason in reasons:
            if reason is not None and reason not in self.failures:
                self.failures.append(reason)
        failed = np.array([reason is not None for reason in reasons], dtype=np.bool_)
        return Batch(pending.index, pending.pixels, failed)


def salvage(read: Callable[[Box], NDArray[np.uint8]], box: Box, *, fill: int = 0) -> NDArray[np.uint8]:
    """Read a box of which parts may be damaged.

    Parameters
    ----------
    read : callable
        Gives the (h, w, channels) pixels of a box, such as `Image.read`.
    box : Box
    fill : int
        Value of the pixels that cannot be read.

    Returns
    -------
    (h, w, channels) uint8 array

    Raises
    ------
    ImageError
        If no part can be read.
    """
    try:
        return read(box)
    except ImageError:
        if max(box.height, box.width) <= LEAST_SALVAGED:
            raise
        halves = _halves(box)
        parts = [_salvaged(read, half, fill) for half in halves]
        good = next((part for part in parts if part is not None), None)
        if good is None:
            raise
        shapes = [(half.height, half.width, good.shape[2]) for half in halves]
        whole = [np.full(n, fill, np.uint8) if p is None else p for n, p in zip(shapes, parts, strict=True)]
        return np.concatenate(whole, axis=0 if box.height >= box.width else 1)


def _salvaged(read: Callable[[Box], NDArray[np.uint8]], box: Box, fill: int) -> NDArray[np.uint8] | None:
    try:
        return salvage(read, box, fill=fill)
    except ImageError:
        return None


def _halves(box: Box) -> tuple[Box, Box]:
    """Cut across the longer side."""
    y, x = (box.y0 + box.y1) // 2, (box.x0 + box.x1) // 2
    if box.height >= box.width:
        return Box(box.y0, box.x0, y, box.x1), Box(y, box.x0, box.y1, box.x1)
    return Box(box.y0, box.x0, box.y1, x), Box(box.y0, x, box.y1, box.x1)
