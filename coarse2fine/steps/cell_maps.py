"""Maps of an image's cells: in memory, or in a temporary file if they are large."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

LARGE = 2**23
"""Cells from which a map is kept in a file: an image of 23,000 x 23,000 px with cells of 8 px."""
_BLOCK = 2**22
# Many small blocks are written into a map at once.
_FEW_BLOCKS = 32

Item = TypeVar("Item", bound=np.generic)


def new_map(shape: tuple[int, ...], dtype: type[Item], fill: int = 0) -> NDArray[Item]:
    """A map filled with one value; a large one lies in a file, which goes with the map.

    Parameters
    ----------
    shape : tuple of int
        Cell height, cell width, and perhaps values of a cell.
    dtype : type
    fill : int
    """
    if shape[0] * shape[1] < LARGE:
        return np.full(shape, fill, dtype) if fill else np.zeros(shape, dtype)
    try:
        return _in_file(shape, dtype, fill)
    except OSError:  # no folder for temporary files, or no space in it
        return np.full(shape, fill, dtype)


def _in_file(shape: tuple[int, ...], dtype: DTypeLike, fill: int) -> NDArray[Any]:
    count, item = math.prod(shape), np.dtype(dtype).itemsize
    with tempfile.TemporaryFile(prefix="coarse2fine-") as file:
        # Its space is taken now: a file that finds none later would end the process.
        if not fill and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, count * item)
        else:
            block = memoryview(np.full(min(count, _BLOCK), fill, dtype).tobytes())
            for start in range(0, count, _BLOCK):
                file.write(block[: (count - start) * item])
            file.flush()
        return np.memmap(file, dtype, "r+", shape=shape)


def release(*maps: NDArray[Any]) -> None:
    """Give back the memory of the maps that lie in files; their content stays, and is read again when it is used."""
    for each in maps:
        mapped = getattr(each, "_mmap", None)
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def write_blocks(into: NDArray[Any], cell_corners: NDArray[np.int64], blocks_of_cells: NDArray[Any]) -> None:
    """Write blocks (n, h, w) into a map at their corners, without what lies beyond it."""
    height, width = blocks_of_cells.shape[1:]
    if len(blocks_of_cells) < _FEW_BLOCKS:
        for (y, x), block in zip(cell_corners.tolist(), blocks_of_cells, strict=True):
            view = into[y : y + height, x : x + width]
            view[:] = block[: view.shape[0], : view.shape[1]]
        return
    y, x = cell_corners.T[:, :, None]
    y, x = np.broadcast_arrays((y + np.arange(height))[:, :, None], (x + np.arange(width))[:, None])
    inside = (y < into.shape[0]) & (x < into.shape[1])
    into[y[inside], x[inside]] = blocks_of_cells[inside]


def any_of(cells: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Whether any cell of each rectangle of `height` x `width` cells is true."""
    rows = np.logical_or.reduceat(cells, np.arange(0, cells.shape[0], height), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, cells.shape[1], width), axis=1)
