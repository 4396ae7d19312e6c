"""Writing of an OME-Zarr image with its pyramid in one pass over blocks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from ..geometry import Box, ceil_div
from ..grid import blocks
from .atomic import check_absent, new_folder

COARSEST_SIDE = 1024
"""Side in pixels: levels are added until the smaller side is below this."""

ZSTD_LEVEL = 2
"""On slides at most a fifth slower than 1 and no larger than 3; grey stored as RGB takes a third of the bytes of 1."""

_WORKERS = 2
"""Threads; about twice as many blocks are held in memory."""

BlockFunction = Callable[[Box], NDArray[np.uint8]]


@dataclass
class _Chunk:
    """A chunk of a coarse level that several blocks fill."""

    pixels: NDArray[np.uint8]
    missing: int


@dataclass
class _LevelWriter:
    """One level of the target; writes each chunk once, whole, whichever threads supply its parts."""

    array: Any
    height: int
    width: int
    channels: int
    chunk: int
    _parts: dict[tuple[int, int], _Chunk] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, box: Box, pixels: NDArray[np.uint8]) -> None:
        """Take the pixels (h, w, c) of a box; write them, or keep them until their chunk is complete."""
        if self._aligned(box.y0, box.y1, self.height) and self._aligned(box.x0, box.x1, self.width):
            self._write(box, pixels)
            return
        # Blocks are powers of two and aligned: a box smaller than a chunk lies in one chunk.
        row, column = box.y0 // self.chunk, box.x0 // self.chunk
        whole = Box(row, column, row + 1, column + 1).scale(self.chunk)
        whole = Box(whole.y0, whole.x0, min(whole.y1, self.height), min(whole.x1, self.width))
        with self._lock:
            part = self._parts.get((row, column))
            if part is None:
                empty = np.empty((whole.height, whole.width, self.channels), dtype=np.uint8)
                part = self._parts[row, column] = _Chunk(empty, whole.area)
            inside = box.shift(-whole.y0, -whole.x0)
            part.pixels[inside.slices] = pixels
            part.missing -= box.area
            if part.missing:
                return
            del self._parts[row, column]
        self._write(whole, part.pixels)

    def _aligned(self, begin: int, end: int, length: int) -> bool:
        return begin % self.chunk == 0 and (end % self.chunk == 0 or end == length)

    def _write(self, box: Box, pixels: NDArray[np.uint8]) -> None:
        if self.channels == 1:
            self.array[box.slices] = pixels[..., 0]
        else:
            self.array[:, *box.slices] = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def write_pyramid(
    path: str | PathLike[str],
    shape: tuple[int, int, int],
    block: BlockFunction,
    *,
    chunk: int = 512,
    block_size: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write an OME-Zarr 0.5 image with levels 1, 2, 4, ... until the smaller side is below 1024 pixels.

    Every block is requested once and contributes to all levels: each level is the rounded mean of 2 x 2
    pixels of the one before. The image is written beside its target and renamed when it is complete.

    Parameters
    ----------
    path : path
        Target directory; must not exist.
    shape : (int, int, int)
        Height, width and channels (1 or 3) at full resolution.
    block : callable
        Returns the (h, w, channels) uint8 pixels of a box of full-resolution pixels. Called from two threads at once.
    chunk : int
        Side of a stored chunk.
    block_size : int
        Side of the requested boxes: `chunk` times a power of two.
    progress : callable, optional
        Called in this thread with the number of blocks done and of all blocks.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    FileExistsError
        If the target exists.
    ValueError
        If a number is out of range, or `block` returns pixels of another shape or type. Nothing is left of the target
        after this or any other error.
    """
    target = Path(path)
    _check(target, shape, chunk, block_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as scratch:
        group = zarr.open_group(scratch, mode="w", zarr_format=3)
        arrays = create_levels(group, shape, chunk)
        writers = [_LevelWriter(array, array.shape[-2], array.shape[-1], shape[2], chunk) for array in arrays]
        group.attrs["ome"] = multiscales(len(writers), shape[2], None, target.stem)
        _fill(writers, block, block_size, progress)
    return target


def _check(target: Path, shape: tuple[int, int, int], chunk: int, block_size: int) -> None:
    check_absent(target)
    if shape[0] < 1 or shape[1] < 1 or shape[2] not in (1, 3):
        raise ValueError(f"expected a shape (height, width, 1 or 3), got {shape}")
    ratio = block_size // chunk if chunk > 0 else 0
    if chunk < 1 or chunk & (chunk - 1) or ratio < 1 or ratio & (ratio - 1) or ratio * chunk != block_size:
        raise ValueError(f"expected powers of two, chunk <= block_size, got {chunk} and {block_size}")
    if ceil_div(min(shape[:2]), block_size) > COARSEST_SIDE:
        # A block would have less than one pixel in the coarsest level.
        raise ValueError(f"expected a larger block size than {block_size} for an image of {shape}")


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of each level of a pyramid: each half of the one before, rounded up."""
    sizes = [(height, width)]
    while min(sizes[-1]) >= COARSEST_SIDE:
        sizes.append((ceil_div(sizes[-1][0], 2), ceil_div(sizes[-1][1], 2)))
    return sizes


def create_levels(
    group: zarr.Group, shape: tuple[int, int, int], chunk: int, shard: int | None = None
) -> list[zarr.Array[Any]]:
    """Create the empty arrays of a pyramid, named 0, 1, ...

    Parameters
    ----------
    group : zarr.Group
    shape : (int, int, int)
        Height, width and channels (1 or 3) at full resolution.
    chunk : int
        Side of a chunk.
    shard : int, optional
        Side of a shard, which is a file of chunks; by default each chunk is a file.

    Returns
    -------
    list of zarr.Array
        uint8 of shape (h, w), or (3, h, w).
    """
    lead, names = ((3,), ("c",)) if shape[2] == 3 else ((), ())
    return [
        group.create_array(
            str(level),
            shape=(*lead, height, width),
            chunks=(*lead, chunk, chunk),
            shards=None if shard is None else (*lead, shard, shard),
            dtype="uint8",
            compressors=ZstdCodec(level=ZSTD_LEVEL),
            dimension_names=(*names, "y", "x"),
        )
        for level, (height, width) in enumerate(level_sizes(shape[0], shape[1]))
    ]


def multiscales(count: int, channels: int, mpp: tuple[float, float] | None, name: str, side: int = 1) -> dict[str, Any]:
    """Describe `count` levels as OME-Zarr 0.5; scales are micrometers, or full-resolution pixels without a unit.

    A pixel of the first level is `side` full-resolution pixels wide and high.
    """
    axes: list[dict[str, str]] = [{"name": axis, "type": "space"} for axis in "yx"]
    if mpp is not None:
        axes = [{**axis, "unit": "micrometer"} for axis in axes]
    size_y, size_x = mpp or (1.0, 1.0)
    leading = [1.0] if channels == 3 else []
    datasets = []
    for level in range(count):
        factor = side * 2.0**level
        shift = (factor - 1) / 2  # centre of the averaged pixels, from the first pixel's centre
        scale = [*leading, size_y * factor, size_x * factor]
        translation = [*(0.0 for _ in leading), size_y * shift, size_x * shift]
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    if channels == 3:
        axes = [{"name": "c", "type": "channel"}, *axes]
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}


def _fill(
    writers: list[_LevelWriter],
    block: BlockFunction,
    block_size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write all blocks to all levels, a bounded number at a time."""
    height, width = writers[0].height, writers[0].width
    total = ceil_div(height, block_size) * ceil_div(width, block_size)
    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="pyramid")
    pending: deque[Future[None]] = deque()
    done = 0
    try:
        for box in blocks(height, width, block_size):
            pending.append(pool.submit(_write_block, writers, box, block))
            while len(pending) >= 2 * _WORKERS or (pending and len(pending) + done == total):
                pending.popleft().result()
                done += 1
                if progress is not None:
                    progress(done, total)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_block(writers: list[_LevelWriter], full_box: Box, block: BlockFunction) -> None:
    pixels = np.asarray(block(full_box))
    expected = (full_box.height, full_box.width, writers[0].channels)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise ValueError(
            f"expected block({full_box}) to be uint8 of shape {expected}, got {pixels.dtype} of {pixels.shape}"
        )
    for level, writer in enumerate(writers):
        if level:
            pixels = halve(pixels)
        y, x = full_box.y0 >> level, full_box.x0 >> level
        writer.put(Box(y, x, y + pixels.shape[0], x + pixels.shape[1]), pixels)


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average 2 x 2 pixels, rounded (halves up); an odd last row or column is averaged with itself.

    Parameters
    ----------
    pixels : (h, w, c) uint8 array

    Returns
    -------
    (ceil(h / 2), ceil(w / 2), c) uint8 array
    """
    height, width, channels = pixels.shape
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = ceil_div(width, 2), ceil_div(height, 2)
    half = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    return half.reshape(size[1], size[0], channels).astype(np.uint8, copy=False)
