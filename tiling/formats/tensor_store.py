"""Chunks of a local Zarr read with tensorstore, an extra."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, install
from ..geometry import ceil_div
from ..storage.byte_files import check_value
from .zarr_array import ChunkPlan


class TensorStoreArray:
    """A Zarr array that tensorstore slices, without tensorstore's cache, as `ChunkCache` holds the chunks.

    Parameters
    ----------
    path : str
        Folder of the array.
    metadata : mapping
        Content of `zarr.json` or `.zarray`.
    plan : ChunkPlan, optional
        Layout of its chunks. Files under a slice are checked before tensorstore opens them: it would wait for pipes
        and read files of any size.

    Raises
    ------
    ImageError
        If tensorstore is not installed, or there is no plan.
    """

    def __init__(self, path: str, metadata: Mapping[str, Any], plan: ChunkPlan | None) -> None:
        try:
            import tensorstore  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise ImageError(f"{path}: tensorstore is not installed ({error}); {install('tensorstore')}") from error
        if plan is None:
            raise ImageError(f"{path}: its codecs or keys are not read by tensorstore here; leave 'reader' out")
        self._path, self._plan = path, plan
        driver = "zarr3" if metadata["zarr_format"] == 3 else "zarr"
        self._store = tensorstore.open(
            {"driver": driver, "kvstore": {"driver": "file", "path": path}}, read=True
        ).result()
        self.shape: tuple[int, ...] = tuple(self._store.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._store.dtype.numpy_dtype)
        self.chunks: tuple[int, ...] = tuple(size or 1 for size in self._store.chunk_layout.read_chunk.shape or ())

    def __getitem__(self, key: tuple[Any, ...], /) -> NDArray[Any]:
        """Read the part under slices or indices."""
        for position in itertools.product(*self._under(key)):
            _check_file(self._path + self._plan.key(position), self._plan.stored_bytes)
        pixels: NDArray[Any] = self._store[key].read().result()
        return pixels

    def _under(self, key: tuple[Any, ...]) -> list[range]:
        """Positions of the chunks or shards under a slice, one range per axis."""
        parts = [range(n)[k] if isinstance(k, slice) else range(k, k + 1) for n, k in zip(self.shape, key, strict=True)]
        steps = zip(parts, self._plan.shard, strict=True)
        return [range(part.start // step, ceil_div(part.stop, step)) for part, step in steps]


def _check_file(path: str, most: int) -> None:
    """Refuse pipes, devices, folders and files of more than `most` bytes; a missing file is legal."""
    try:
        found = os.stat(path)  # noqa: PTH116 (one for every chunk)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is a pipe, a device or a folder, not a file")
    check_value(path, found.st_size, most)
