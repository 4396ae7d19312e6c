"""Shards of Zarr 3: many encoded chunks in one file, which ends with an index of their positions.

The index holds the offset and the length of each chunk, both as little-endian 64-bit integers, and ends with its
CRC-32C. https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray

from .atomic import replacing_stream

MISSING = 2**64 - 1
"""Offset and length of a chunk that the shard does not hold: all its samples have the fill value."""

_CHECKSUM_BYTES = 4


def index_bytes(grid: tuple[int, ...]) -> int:
    """Length of the index of a shard of `grid` chunks, with its checksum."""
    return 16 * math.prod(grid) + _CHECKSUM_BYTES


def read_index(data: bytes, grid: tuple[int, ...]) -> NDArray[np.uint64]:
    """Parse the index of a shard.

    Parameters
    ----------
    data : bytes
        The last `index_bytes(grid)` bytes of the shard.
    grid : tuple of int
        Number of chunks along each axis.

    Returns
    -------
    (n, ..., 2) uint64 array
        Offset and length of each chunk in bytes, shape ``(*grid, 2)``; `MISSING` twice for a chunk that is not stored.

    Raises
    ------
    ValueError
        If the length or the checksum is wrong.
    """
    expected = index_bytes(grid)
    if len(data) != expected:
        raise ValueError(f"expected a shard index of {expected} bytes for {grid} chunks, got {len(data)} bytes")
    places = data[:-_CHECKSUM_BYTES]
    if bytes(CRC32C().encode(places)) != data:
        raise ValueError("the checksum of the shard index is wrong: the shard is damaged; copy or write it again")
    return np.frombuffer(places, dtype="<u8").astype(np.uint64).reshape(*grid, 2)


def is_whole(path: Path, grid: tuple[int, ...]) -> bool:
    """Whether a file is a shard that ends with a valid index of its chunks."""
    size = index_bytes(grid)
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END) - size
            stream.seek(max(end, 0))
            places = read_index(stream.read(), grid).reshape(-1, 2)
    except (FileNotFoundError, ValueError):
        return False
    stored = places[places[:, 0] != MISSING]
    return int(stored[:, 1].sum()) == end


class ShardWriter:
    """Write one shard; a context manager.

    The file appears, whole, when the context is left; after an error, there is none.

    Parameters
    ----------
    path : Path
        Target file, replaced if it exists; its folder is created if needed.
    grid : tuple of int
        Number of chunks along each axis.
    """

    def __init__(self, path: Path, grid: tuple[int, ...]) -> None:
        self._places = np.full((*grid, 2), MISSING, dtype="<u8")
        self._offset = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        # Without `sync`, a power cut soon after may leave a file of the right length and wrong content.
        self._stream = self._stack.enter_context(replacing_stream(path, sync=True))

    def put(self, position: tuple[int, ...], data: bytes | bytearray) -> None:
        """Append an encoded chunk; those never put have the fill value."""
        self._stream.write(data)
        self._places[position] = self._offset, len(data)
        self._offset += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._stream.write(CRC32C().encode(self._places.tobytes()))
