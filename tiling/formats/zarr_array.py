"""Zarr arrays read chunk by chunk, without the overhead of zarr-python.

Supported are, in Zarr 2, everything that numcodecs decodes; in Zarr 3, regular grids, the `bytes` and `transpose`
codecs, sharding, and compression by zstd, blosc, gzip or a numcodecs codec. `plan_of` raises for the rest, which
zarr-python reads. A chunk costs one read of its own bytes, also in a shard, whose index is read once.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import ceil_div
from ..storage.byte_files import Keys
from ..writing.shard import MISSING, index_bytes, read_index
from .zarr_codecs import Decoder, UnsupportedError, decoder, scratch, sizes

INDEX_BYTES = 2**24
"""Most bytes of shard indices held in memory; one of 8 x 8 chunks takes a kilobyte."""
MOST_INDEX_BYTES = 2**26
"""Most bytes of one index: a shard of four million chunks."""

_NAMED_ALIKE = ("zstd", "gzip", "blosc")
_TOO_LONG = 2**12
"""Bytes read beyond the limit, so that the error can state a chunk's size."""
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ChunkPlan:
    """Layout of the chunks of an array.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    chunk : tuple of int
        Shape of the unit of decoding: in shards, of the inner chunks.
    shard : tuple of int
        Shape of what is stored under one key; equals `chunk` without sharding, and may with it.
    dtype : dtype
        Type of stored samples, with their byte order.
    fill : number
        Value of chunks that are not stored.
    key : callable
        Returns the key of the stored chunk at a grid position.
    decoders : tuple of Decoder
        Applied in order to the bytes of a chunk.
    order : tuple of int, optional
        Axes of the array in the order in which they are stored; None is row-major.
    index : "start" or "end", optional
        Position of a shard's index; None without sharding.
    """

    shape: Shape
    chunk: Shape
    shard: Shape
    dtype: np.dtype[Any]
    fill: Any
    key: Callable[[Shape], str]
    decoders: tuple[Decoder, ...]
    order: Shape | None = None
    index: Literal["start", "end"] | None = None

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.chunk) == len(self.shard):
            raise ValueError(f"an array of shape {self.shape} cannot be stored in chunks of {self.chunk}")
        if 0 in self.chunk:
            raise ValueError(f"expected chunks of at least one sample, got {self.chunk}")
        if self.index is not None and index_bytes(self.grid) > MOST_INDEX_BYTES:
            raise ValueError(f"shards of {self.shard} in chunks of {self.chunk} are more chunks than an index may hold")

    @property
    def grid(self) -> Shape:
        """Chunks of a shard along each axis."""
        return tuple(shard // chunk for shard, chunk in zip(self.shard, self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a chunk."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """Most bytes stored under one key."""
        chunk = sizes(self.decoders, self.chunk_bytes)[0] + _TOO_LONG
        return chunk if self.index is None else math.prod(self.grid) * chunk + index_bytes(self.grid)

    @property
    def scratch(self) -> int:
        """Most bytes held while a chunk is decoded: encoded, between its decoders, decoded, reordered."""
        whole = self.chunk_bytes
        moved = self.order is not None or not self.dtype.isnative
        index = 2 * index_bytes(self.grid) if self.index is not None else 0
        return scratch(self.decoders, whole) + (whole if moved else 0) + index


def plan_of(metadata: Mapping[str, Any]) -> ChunkPlan:
    """Chunk layout from the metadata of an array: `zarr.json` or `.zarray`.

    Raises
    ------
    UnsupportedError
        If zarr-python has to read it.
    UnsafeError
        If reading it could run programs.
    KeyError, TypeError, ValueError
        If it is damaged.
    """
    return _plan_3(metadata) if metadata["zarr_format"] == 3 else _plan_2(metadata)


def _plan_2(metadata: Mapping[str, Any]) -> ChunkPlan:
    if isinstance(metadata["dtype"], list):
        raise UnsupportedError("structured samples")
    shape, chunk = _sizes(metadata["shape"]), _sizes(metadata["chunks"])
    steps = [*(metadata.get("filters") or ()), metadata["compressor"]]
    if metadata["order"] not in ("C", "F"):
        raise ValueError(f"expected samples in the order C or F, got {metadata['order']!r}")
    separator = _separator(metadata.get("dimension_separator", "."))
    fill = metadata["fill_value"]
    return ChunkPlan(
        shape=shape,
        chunk=chunk,
        shard=chunk,
        dtype=np.dtype(metadata["dtype"]),
        fill=0 if fill is None else _NUMBERS.get(fill, fill),
        key=lambda position: separator.join(map(str, position)),
        decoders=tuple(decoder(step) for step in reversed(steps) if step is not None),
        order=tuple(reversed(range(len(shape)))) if metadata["order"] == "F" else None,
    )


def _plan_3(metadata: Mapping[str, Any]) -> ChunkPlan:
    grid, encoding = metadata["chunk_grid"], metadata["chunk_key_encoding"]
    if grid["name"] != "regular" or encoding["name"] not in ("default", "v2") or metadata.get("storage_transformers"):
        raise UnsupportedError("its grid or its keys")
    shape = _sizes(metadata["shape"])
    shard = chunk = _sizes(grid["configuration"]["chunk_shape"])
    codecs: list[Any] = list(metadata["codecs"])
    index: Literal["start", "end"] | None = None
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        sharding = codecs[0]["configuration"]
        chunk, codecs = _sizes(sharding["chunk_shape"]), list(sharding["codecs"])
        if len(chunk) != len(shard) or any(a % b for a, b in zip(shard, chunk, strict=True)):
            raise ValueError(f"shards of {shard} are not made of whole chunks of {chunk}")
        names = [codec["name"] for codec in sharding["index_codecs"]]
        if names != ["bytes", "crc32c"] or _byteorder(sharding["index_codecs"][0]) != "<":
            raise UnsupportedError("the codecs of its shard index")
        index = "start" if sharding.get("index_location", "end") == "start" else "end"
    if not isinstance(metadata["data_type"], str):
        raise UnsupportedError("its samples")
    dtype, order, decoders = _codecs(codecs, np.dtype(metadata["data_type"]), len(shape))
    fill = metadata["fill_value"]
    prefix = encoding["name"] == "default"
    separator = _separator((encoding.get("configuration") or {}).get("separator", "/" if prefix else "."))

    def key(position: Shape) -> str:
        return separator.join(["c"] * prefix + [str(i) for i in position])

    plain = _NUMBERS.get(fill, fill) if isinstance(fill, str) else fill
    if plain is None or isinstance(plain, str | list):
        raise UnsupportedError("its fill value")
    return ChunkPlan(shape, chunk, shard, dtype, plain, key, decoders, order, index)


def _separator(found: Any) -> str:
    if found not in (".", "/"):  # another could lead out of the Zarr, or to missing files
        raise ValueError(f"expected numbers in keys to be separated by '.' or '/', got {found!r}")
    return str(found)


def _sizes(values: Any) -> Shape:
    sizes = tuple(int(value) for value in values)
    if any(size < 0 for size in sizes):
        raise ValueError(f"expected sizes of at least 0, got {sizes}")
    return sizes


def _codecs(
    codecs: list[Any], dtype: np.dtype[Any], axes: int
) -> tuple[np.dtype[Any], Shape | None, tuple[Decoder, ...]]:
    """Stored dtype, order of axes and decoders from Zarr 3 codecs, which are listed in the order of encoding."""
    order: Shape | None = None
    decoders: list[Decoder] = []
    for codec in codecs:
        name, settings = codec["name"], dict(codec.get("configuration") or {})
        if name == "transpose" and order is None and not decoders:
            order = _sizes(settings["order"])
            if sorted(order) != list(range(axes)):
                raise ValueError(f"expected an order of {axes} axes, got {order}")
        elif name == "bytes" and not decoders:
            dtype = dtype.newbyteorder(_byteorder(codec))
        elif name == "crc32c":
            decoders.append(decoder({"id": "crc32c"}))
        elif name in _NAMED_ALIKE:
            decoders.append(decoder({"id": name}))
        elif name.startswith("numcodecs.") and name.removeprefix("numcodecs.") in ("lz4", "lzma", "bz2", "zlib"):
            decoders.append(decoder({**settings, "id": name.removeprefix("numcodecs.")}))
        else:
            raise UnsupportedError(f"the codec {name}")
    return dtype, order, tuple(reversed(decoders))


def _byteorder(codec: Mapping[str, Any]) -> Literal["<", ">"]:
    return "<" if (codec.get("configuration") or {}).get("endian", "little") == "little" else ">"


class ChunkedArray:
    """A Zarr array that decodes the chunks under a slice; safe to share between threads.

    Parameters
    ----------
    keys : Keys
        Values that hold the chunks.
    prefix : str
        Path of the array among them: empty, or ending with a slash.
    plan : ChunkPlan
    """

    def __init__(self, keys: Keys, prefix: str, plan: ChunkPlan) -> None:
        self.shape, self.chunks = plan.shape, plan.chunk
        self.dtype: np.dtype[Any] = plan.dtype.newbyteorder("=")
        self._keys, self._prefix, self._plan = keys, prefix, plan
        self._grid = plan.grid
        self._bytes = plan.chunk_bytes
        self._most = sizes(plan.decoders, self._bytes)
        self._indices_kept = max(1, INDEX_BYTES // index_bytes(self._grid))
        self._indices: OrderedDict[Shape, NDArray[np.uint64] | None] = OrderedDict()
        self._lock = threading.Lock()
        # Colours stored as planes are returned interleaved in memory, as pixels are used.
        self._planes = plan.chunk[-3:-2] == (3,) and self.chunks[:-3] == (1,) * (len(plan.chunk) - 3)
        self._planes = self._planes and plan.dtype == np.uint8 and plan.order is None
        self._own = threading.local()

    def __getitem__(self, key: tuple[slice | int, ...], /) -> NDArray[Any]:
        """Decode the part under one index or plain slice per axis; a view if it lies in one chunk."""
        parts = [
            range(size)[k] if isinstance(k, slice) else range(k, k + 1) for size, k in zip(self.shape, key, strict=True)
        ]
        grid = [
            range(part.start // size, ceil_div(part.stop, size)) for part, size in zip(parts, self.chunks, strict=True)
        ]
        single = tuple(0 if isinstance(k, int) else slice(None) for k in key)
        if all(len(positions) == 1 for positions in grid):
            position = tuple(positions[0] for positions in grid)
            return self._chunk(position)[self._inside(position, parts)][single]
        out = np.empty([len(part) for part in parts], dtype=self.dtype)
        for position in itertools.product(*grid):
            low = [p * size for p, size in zip(position, self.chunks, strict=True)]
            into = tuple(
                slice(max(start, part.start) - part.start, min(start + size, part.stop) - part.start)
                for start, size, part in zip(low, self.chunks, parts, strict=True)
            )
            out[into] = self._chunk(position)[self._inside(position, parts)]
        return out[single]

    def _inside(self, position: Shape, parts: list[range]) -> tuple[slice, ...]:
        """Requested part of a chunk, relative to its corner."""
        return tuple(
            slice(max(part.start - p * size, 0), min(part.stop - p * size, size))
            for p, size, part in zip(position, self.chunks, parts, strict=True)
        )

    def _chunk(self, position: Shape) -> NDArray[Any]:
        """One whole chunk, including samples beyond the array's edge."""
        data: Any = self._stored(position)
        if data is None:
            return np.broadcast_to(np.full((), self._plan.fill, dtype=self.dtype), self.chunks)
        data = self._decoded(data) if self._plan.decoders else bytes(data)
        samples = data.view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
        if samples.size != self._bytes:
            raise ValueError(f"the metadata state {self._bytes} bytes a chunk, this one holds {samples.size}")
        stored = samples.reshape(-1).view(self._plan.dtype)
        if self._planes:
            planes = stored.reshape(self.chunks[-3:])
            pixels: NDArray[Any] = cv2.merge((planes[0], planes[1], planes[2]))
            return pixels.transpose(2, 0, 1).reshape(self.chunks)
        order = self._plan.order
        if order is not None:
            stored = stored.reshape([self.chunks[axis] for axis in order])
            return stored.transpose(np.argsort(order)).astype(self.dtype, copy=False)
        return stored.reshape(self.chunks).astype(self.dtype, copy=False)

    def _decoded(self, data: Any) -> Any:
        """Decode into memory of the stated size if the decoder can: no copy, and decompression bombs fail."""
        last = len(self._plan.decoders)
        for step, each in enumerate(self._plan.decoders):
            count = memoryview(data).nbytes
            if count > self._most[step]:
                raise ValueError(f"{count} bytes are to be decoded, the metadata state {self._most[step]} at most")
            room = self._room() if step + 1 == last else np.empty(self._most[step + 1], dtype=np.uint8)
            data = each.decode(data, room)
        return data

    def _room(self) -> NDArray[np.uint8]:
        """Memory for a decoded chunk; reused by each thread if samples are copied on, as new memory is slow."""
        if not self._planes:
            return np.empty(self._bytes, dtype=np.uint8)
        room: NDArray[np.uint8] | None = getattr(self._own, "room", None)
        if room is None:
            room = self._own.room = np.empty(self._bytes, dtype=np.uint8)
        return room

    def _stored(self, position: Shape) -> bytes | memoryview | None:
        """Bytes of a chunk, in memory that the next call may overwrite."""
        if self._plan.index is None:
            return self._keys.lend(self._prefix + self._plan.key(position), None, None, self._most[0] + _TOO_LONG)
        shard = tuple(p // n for p, n in zip(position, self._grid, strict=True))
        index = self._index(shard)
        if index is None:
            return None
        offset, count = (int(v) for v in index[tuple(p % n for p, n in zip(position, self._grid, strict=True))])
        if offset == count == MISSING:
            return None
        key = self._prefix + self._plan.key(shard)
        data = self._keys.lend(key, offset, offset + count, self._most[0] + _TOO_LONG)
        if data is None or len(data) != count:
            raise EOFError(f"the shard ends within the {count} bytes of a chunk at byte {offset}")
        return data

    def _index(self, shard: Shape) -> NDArray[np.uint64] | None:
        """Offsets and lengths of the chunks in a shard; None if the shard is not stored."""
        with self._lock:
            if shard in self._indices:
                self._indices.move_to_end(shard)
                return self._indices[shard]
        size = index_bytes(self._grid)
        start, stop = (0, size) if self._plan.index == "start" else (-size, None)
        data = self._keys.get(self._prefix + self._plan.key(shard), start, stop, size)
        index = None if data is None else read_index(data, self._grid)
        with self._lock:
            self._indices[shard] = index
            while len(self._indices) > self._indices_kept:
                self._indices.popitem(last=False)
        return index
