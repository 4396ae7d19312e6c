"""Maps of an image's cells: in memory, or in a temporary file if they are large."""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from typing import IO, Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

LARGE = 2**23
"""Cells from which a map is kept in a file: an image of 23,000 x 23,000 px with cells of 8 px."""
_BLOCK = 2**22
# Cells that are entered before the memory of maps in files is given back.
_RELEASED = 2**23

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
    if shape[0] * shape[1] >= LARGE:
        try:
            return _in_file(shape, dtype, fill)
        except OSError:
            pass  # no folder for temporary files, or no space in it
    return np.full(shape, fill, dtype) if fill else np.zeros(shape, dtype)


def _in_file(shape: tuple[int, ...], dtype: DTypeLike, fill: int) -> NDArray[Any]:
    count, item = math.prod(shape), np.dtype(dtype).itemsize
    with tempfile.TemporaryFile(prefix="coarse2fine-") as file:
        _take_space(file, count, dtype, fill)
        # Not `numpy.memmap`: joblib would hand on the name of the file, which has none.
        return np.frombuffer(mmap.mmap(file.fileno(), count * item), dtype).reshape(shape)


def _take_space(file: IO[bytes], count: int, dtype: DTypeLike, fill: int) -> None:
    """Fill a file now: one that finds no space later would end the process."""
    if not fill and _reserved(file, count * np.dtype(dtype).itemsize):
        return
    block = memoryview(np.full(min(count, _BLOCK), fill, dtype).tobytes())
    for start in range(0, count, _BLOCK):
        file.write(block[: (count - start) * np.dtype(dtype).itemsize])
    file.flush()


def _reserved(file: IO[bytes], size: int) -> bool:
    """Make a file of zeros, if the system can without writing them."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return True


def mapped(each: NDArray[Any]) -> mmap.mmap | None:
    """The mapping of a file in which a map lies; None if it is in memory."""
    at: Any = each
    while isinstance(at, np.ndarray | memoryview):
        at = at.base if isinstance(at, np.ndarray) else at.obj
    return at if isinstance(at, mmap.mmap) else None


def release(*maps: NDArray[Any]) -> None:
    """Give back the memory of the maps that lie in files; their content stays, and is read again when it is used."""
    for each in maps:
        if (found := mapped(each)) is not None and hasattr(mmap, "MADV_DONTNEED"):
            found.madvise(mmap.MADV_DONTNEED)


class Releasing:
    """Gives back the memory of maps in files, now and then while they are filled.

    Parameters
    ----------
    *maps : ndarray
    """

    def __init__(self, *maps: NDArray[Any]) -> None:
        self._maps, self._entered = maps, 0

    def after(self, cells: int) -> None:
        """After so many cells more were entered."""
        self._entered += cells
        if self._entered > _RELEASED:
            release(*self._maps)
            self._entered = 0


def write_blocks(into: NDArray[Any], cell_corners: NDArray[np.int64], blocks_of_cells: NDArray[Any]) -> None:
    """Write blocks (n, h, w), which do not overlap, into a map at their corners, without what lies beyond it."""
    height, width = blocks_of_cells.shape[1:]
    whole = (cell_corners + np.array((height, width)) <= into.shape).all(axis=1)
    if whole.any():
        places = sliding_window_view(into, (height, width), writeable=True)
        places[*cell_corners[whole].T] = blocks_of_cells[whole]
    for (y, x), block in zip(cell_corners[~whole].tolist(), blocks_of_cells[~whole], strict=True):
        view = into[y : y + height, x : x + width]
        view[:] = block[: view.shape[0], : view.shape[1]]


def any_of(cells: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Whether any cell of each rectangle of `height` x `width` cells is true."""
    rows = np.logical_or.reduceat(cells, np.arange(0, cells.shape[0], height), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, cells.shape[1], width), axis=1)
