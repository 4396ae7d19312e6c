"""Zarr 3 arrays that zarr-python reads, such as nested shards, with decoders whose memory is bounded."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.registry import register_codec

from ..storage.byte_files import VALUE_BYTES, Keys
from .zarr_codecs import UnsupportedError, decoder
from .zarr_store import FetchStore

_NAME = "coarse2fine.bounded"
_PLAIN = ("bytes", "transpose", "crc32c")
_COMPRESSED = ("zstd", "gzip", "blosc", "zlib", "lz4", "lzma", "bz2")
_WIDER = 24
"""Bytes allowed per byte of samples: filters widen samples up to eight times; a shard's index takes 16 per chunk."""
_SLACK = 2**20


@dataclass(frozen=True)
class BoundedCodec(BytesBytesCodec):
    """A compression codec of Zarr 3 that decodes to no more bytes than the chunk's shape states.

    Parameters
    ----------
    settings : str
        Settings of the numcodecs codec, as JSON.
    wider : bool
        Whether its decoded data may exceed the chunk's samples: a shard, or the result of a filter.
    """

    is_fixed_size = False

    settings: str
    wider: bool

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data["configuration"])

    def to_dict(self) -> dict[str, Any]:
        return {"name": _NAME, "configuration": {"settings": self.settings, "wider": self.wider}}

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        promised = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        room = np.empty(_WIDER * promised + _SLACK if self.wider else promised, dtype=np.uint8)
        decode = decoder(json.loads(self.settings)).decode
        data = await asyncio.to_thread(decode, chunk_bytes.to_bytes(), room)
        if memoryview(data).nbytes > room.nbytes:
            raise ValueError(f"the metadata state {room.nbytes} bytes at most, there are more")
        return chunk_spec.prototype.buffer.from_bytes(bytes(data))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError


register_codec(_NAME, BoundedCodec)


def open_bounded(keys: Keys, prefix: str, metadata: Mapping[str, Any]) -> tuple[zarr.Array[Any], int]:
    """Open an array that zarr-python has to read.

    Parameters
    ----------
    keys : Keys
    prefix : str
        Path of the array among them: empty, or ending with a slash.
    metadata : mapping
        Content of `zarr.json`.

    Returns
    -------
    zarr.Array
    int
        Most bytes held while a stored chunk is decoded.

    Raises
    ------
    UnsupportedError
        If it has a codec whose memory is not bounded.
    """
    if metadata["zarr_format"] != 3:
        raise UnsupportedError("structured samples or a codec of Zarr 2")
    codecs, wider = _bounded(metadata["codecs"])
    text = json.dumps({**metadata, "codecs": codecs}).encode()

    def fetch(key: str, start: int | None, stop: int | None) -> bytes | None:
        name = key.removeprefix(prefix)
        if name == "zarr.json":
            return text[start:stop]
        # zarr-python asks for metadata of other versions, too.
        return keys.get(key, start, stop, VALUE_BYTES if name.startswith(".z") else most)

    array = zarr.open_array(store=FetchStore(fetch), path=prefix.rstrip("/"), mode="r", zarr_format=3)
    # Inner chunks can be read singly, unless a further codec encodes the whole shard.
    inner = len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed"
    whole = array.chunks if inner or array.shards is None else array.shards
    promised = math.prod(whole) * array.dtype.itemsize
    most = (_WIDER if wider else 2) * promised + _SLACK
    return array, promised + 2 * most


def _bounded(codecs: Any) -> tuple[list[dict[str, Any]], bool]:
    """Codecs with bounded compressions in place of the given, and whether stored data may exceed the samples."""
    found: list[dict[str, Any]] = []
    wider = False
    for codec in codecs:
        name, settings = str(codec["name"]), dict(codec.get("configuration") or {})
        kind = name.removeprefix("numcodecs.")
        if name == "sharding_indexed":
            wider = True
            inner, _ = _bounded(settings["codecs"])
            index, _ = _bounded(settings.get("index_codecs") or [{"name": "bytes"}, {"name": "crc32c"}])
            found.append({**codec, "configuration": {**settings, "codecs": inner, "index_codecs": index}})
        elif kind in _COMPRESSED:
            made = {"settings": json.dumps({**settings, "id": kind}), "wider": wider}
            found.append({"name": _NAME, "configuration": made})
        elif name in _PLAIN:
            found.append(codec)
        elif name != kind:
            decoder({**settings, "id": kind})  # raises for those that are not bounded
            wider = True
            found.append(codec)
        else:
            raise UnsupportedError(f"the codec {name}")
    return found, wider
