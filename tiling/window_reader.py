"""Batches of windows, decoded in threads ahead of the consumer."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import Box
from .image import Image
from .scaling import pixels_read, virtual_chunk
from .window_table import Windows

MOST_WORKERS = 8

_SPREAD = (
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)
"""Shifts and masks that insert a zero between any two of 32 bits."""

_PIXELS_A_READ = 2**13

LEAST_SALVAGED = 64
"""Smallest side in pixels of the parts into which a damaged box is divided."""


@dataclass(frozen=True)
class WindowBatch:
    """One batch of windows.

    Parameters
    ----------
    index : (n,) intp array
        Positions of the windows in the requested boxes.
    pixels : (n, h, w, channels) uint8 array
        Pixels of the windows; zeros if reading failed.
    failed : (n,) bool array
        Windows that need a chunk that cannot be decoded; with `fill`, only those of which no part can be read.
    """

    index: NDArray[np.intp]
    pixels: NDArray[np.uint8]
    failed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Read:
    """Outcome of reading a window: why parts could not be read, if any, and whether no part could."""

    reason: str | None = None
    failed: bool = False


_WELL = _Read()


@dataclass(frozen=True)
class _Pending:
    """A batch whose windows are being read; each future gives a `_Read` for each window."""

    index: NDArray[np.intp]
    pixels: NDArray[np.uint8]
    reads: list[Future[list[_Read]]]


class WindowReader:
    """Read equally large windows of an image in batches; a context manager.

    Windows come in the order of the chunks that hold their corners, along a Z-order curve: neighbours follow each
    other, so that each chunk is decoded once while the cache holds the few around it, however wide the image is.
    Threads read ahead by a bounded number of batches; they end when the batches are used up, their iterator
    is closed, or the context is left, whatever the reason.

    Parameters
    ----------
    image : Image
        Stays open when the reader closes.
    downsample : int
        Full-resolution pixels per pixel of the plane in which boxes lie.
    workers : int, optional
        Decoding threads; by default one per core, at most 8, and 8 for images on the network, where most time is
        waiting.
    prefetch : int
        Batches read ahead of the consumer, the one it waits for included.
    fill : int, optional
        Value of the parts of a window that cannot be read, see `salvage`; by default the whole window fails.

    Attributes
    ----------
    failures : list of str
        Reasons why windows failed, each once, in order of occurrence.

    Raises
    ------
    ValueError
        If a number is below 1.
    """

    def __init__(
        self,
        image: Image,
        *,
        downsample: int = 1,
        workers: int | None = None,
        prefetch: int = 4,
        fill: int | None = None,
    ) -> None:
        if workers is None:
            near = image.path is not None or image.location is None
            workers = min(MOST_WORKERS, os.cpu_count() or 1) if near else MOST_WORKERS
        if min(downsample, workers, prefetch) < 1:
            raise ValueError(
                f"expected downsample, workers and prefetch of at least 1, got {downsample}, {workers} and {prefetch}"
            )
        self.failures: list[str] = []
        self._image = image
        self._downsample = downsample
        self._workers = workers
        self._prefetch = prefetch
        self._fill = fill
        self._running: list[Generator[WindowBatch, None, None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            self._running.pop().close()

    def batches(self, boxes: Sequence[Box] | Windows, batch_size: int) -> Iterator[WindowBatch]:
        """Read boxes of one shape, in Z-order of the chunk that holds their corner, then by position.

        Parameters
        ----------
        boxes : sequence of Box, or Windows
            In the plane of `downsample`; may reach outside the image, whose edge pixels are then repeated.
        batch_size : int
            Windows in a batch; the last may have fewer.

        Returns
        -------
        iterator of WindowBatch
            The same batches in the same order whatever the number of workers.

        Raises
        ------
        ValueError
            If the boxes differ in shape or `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        if not len(boxes):
            return iter(())
        running = self._run(boxes if isinstance(boxes, Windows) else Windows.of(boxes), batch_size)
        self._running.append(running)
        return running

    def _run(self, windows: Windows, batch_size: int) -> Generator[WindowBatch, None, None]:
        order = self._order(windows.corners)
        parts = iter([order[i : i + batch_size] for i in range(0, len(order), batch_size)])
        pending: deque[_Pending] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="window-reader")
        try:
            while True:
                while len(pending) < self._prefetch and (index := next(parts, None)) is not None:
                    pending.append(self._submit(pool, windows, index))
                if not pending:
                    return
                yield self._finish(pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, corners: NDArray[np.int64]) -> NDArray[np.intp]:
        chunks = np.floor(corners / virtual_chunk(self._image.levels, self._downsample)).astype(np.int64)
        return np.lexsort((corners[:, 1], corners[:, 0], _z_order(chunks)))

    def _submit(self, pool: ThreadPoolExecutor, windows: Windows, index: NDArray[np.intp]) -> _Pending:
        pixels = np.zeros((len(index), windows.height, windows.width, self._image.channels), dtype=np.uint8)
        # Several small windows share a task: submitting one costs more than reading it.
        runs = np.array_split(np.arange(len(index)), min(len(index), 2 * self._workers))
        reads = [pool.submit(self._read_run, windows.take(index[run]), pixels[run[0] :]) for run in runs]
        return _Pending(index, pixels, reads)

    def _read_run(self, windows: Windows, into: NDArray[np.uint8]) -> list[_Read]:
        whole = self._read_together(windows, into)
        return [_WELL if n in whole else self._read(windows[n], into[n]) for n in range(len(windows))]

    def _read_together(self, windows: Windows, into: NDArray[np.uint8]) -> set[int]:
        """Read crowded windows that touch the same chunks by one read around them; which of them were read.

        Reading a small window takes about as long as reading `_PIXELS_A_READ` stored pixels more. No further chunk is
        touched.
        """
        chunk = virtual_chunk(self._image.levels, self._downsample)
        corners, height, width = windows.corners, windows.height, windows.width
        if len(windows) < 2 or 2 * max(height, width) > min(chunk):
            return set()
        first, last = (np.floor((corners + by) / chunk).astype(np.int64) for by in (0, (height - 1, width - 1)))
        found = set()
        starts = np.flatnonzero((np.diff(first, axis=0) != 0).any(axis=1)) + 1
        for rows in np.split(np.arange(len(windows)), starts):
            # A window lies in one chunk, or over the border to the next below, beside, or both.
            across = (last[rows] - first[rows]) @ (2, 1)
            for kind in np.unique(across):
                alike = rows[across == kind]
                if len(alike) > 1 and self._gather(corners[alike], alike, into):
                    found |= set(alike.tolist())
        return found

    def _gather(self, corners: NDArray[np.int64], rows: NDArray[np.intp], into: NDArray[np.uint8]) -> bool:
        """Cut windows from one read around all of them, unless that is large for their number or fails."""
        height, width = into.shape[1:3]
        (y0, x0), (y1, x1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        around = Box(y0, x0, y1 + height, x1 + width)
        if around.area * pixels_read(self._image.levels, self._downsample) > _PIXELS_A_READ * len(rows):
            return False
        try:
            pixels = self._pixels(around)
        except ImageError:
            return False  # one by one, some may be readable
        y, x = (corners - (y0, x0)).T
        into[rows] = sliding_window_view(pixels, (height, width), (0, 1))[y, x].transpose(0, 2, 3, 1)
        return True

    def _read(self, box: Box, into: NDArray[np.uint8]) -> _Read:
        try:
            into[:] = self._pixels(box)
        except ImageError as error:
            saved = None if self._fill is None else _salvaged(self._pixels, box, self._fill)
            if saved is not None:
                into[:] = saved
            return _Read(str(error), failed=saved is None)
        return _WELL

    def _pixels(self, box: Box) -> NDArray[np.uint8]:
        return self._image.read(box) if self._downsample == 1 else self._image.read_scaled(box, self._downsample)

    def _finish(self, pending: _Pending) -> WindowBatch:
        start = time.perf_counter()
        reads = [each for read in pending.reads for each in read.result()]
        self._image.stats.wait(start)
        for each in reads:
            if each.reason is not None and each.reason not in self.failures:
                self.failures.append(each.reason)
        failed = np.array([each.failed for each in reads], dtype=np.bool_)
        return WindowBatch(pending.index, pending.pixels, failed)


def _z_order(positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Places (n,) of grid positions (n, 2) along a Z-order curve (Morton, 1966)."""
    if not len(positions):
        return np.zeros(0, dtype=np.uint64)
    # Windows may begin outside the image.
    spread = (positions - positions.min(axis=0)).astype(np.uint64)
    for shift, mask in _SPREAD:
        spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
    woven: NDArray[np.uint64] = (spread[:, 0] << np.uint64(1)) | spread[:, 1]
    return woven


def salvage(read: Callable[[Box], NDArray[np.uint8]], box: Box, *, fill: int = 0) -> NDArray[np.uint8]:
    """Read a box, parts of which may be damaged.

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
