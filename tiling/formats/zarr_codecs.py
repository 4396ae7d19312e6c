"""Decoders of Zarr chunks, each with a bound on the bytes it reads and returns, whatever an untrusted file states."""

from __future__ import annotations

import functools
import lzma
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
from numpy.typing import NDArray

_SCRATCH = 2**27
"""Bytes that a decoder itself may hold: the dictionary of LZMA (2**26 by its highest preset), the blocks of Blosc."""
_SLACK = 2**16
_DIRECT: dict[str, Callable[..., Any]] = {
    "zstd": imagecodecs.zstd_decode,
    "gzip": imagecodecs.gzip_decode,
    "zlib": imagecodecs.zlib_decode,
    "blosc": imagecodecs.blosc_decode,
    "bz2": imagecodecs.bz2_decode,
    "lz4": functools.partial(imagecodecs.lz4_decode, header=True),
}
_BLOSC_HEADER = 16
_CHECKS = ("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3")
_FILTERS = {
    "delta": ("astype", "dtype"),
    "fixedscaleoffset": ("astype", "dtype"),
    "quantize": ("astype", "dtype"),
    "bitround": ("", ""),
    "shuffle": ("", ""),
    "astype": ("encode_dtype", "decode_dtype"),
}
"""Filters of numcodecs, and their settings that name the types of decoded and encoded samples."""


class UnsupportedError(Exception):
    """An array needs a feature that is not read here, but perhaps by zarr-python."""


class UnsafeError(Exception):
    """Reading an array would run programs that it holds."""


@dataclass(frozen=True)
class Decoder:
    """One step of decoding.

    Parameters
    ----------
    decode : callable
        Decodes bytes into the memory given, or into memory of its own of at most about that size.
    taken : callable
        Returns the most encoded bytes for a number of decoded bytes.
    """

    decode: Callable[[Any, NDArray[np.uint8]], Any]
    taken: Callable[[int], int]


def sizes(decoders: tuple[Decoder, ...], count: int) -> tuple[int, ...]:
    """Most bytes before each of the decoders, in order of application, and after the last, which are `count`."""
    most = [count]
    for decoder in reversed(decoders):
        most.append(decoder.taken(most[-1]))
    return tuple(reversed(most))


def scratch(decoders: tuple[Decoder, ...], count: int) -> int:
    """Most bytes held while `count` bytes are decoded, including the encoded ones and the result."""
    return sum(sizes(decoders, count)) + (_SCRATCH if decoders and count > _SCRATCH else 0)


def decoder(settings: Mapping[str, Any]) -> Decoder:
    """Decoder of a codec, given its numcodecs id and settings.

    Raises
    ------
    UnsupportedError
        If there is none whose memory is bounded.
    UnsafeError
        If decoding could run programs.
    ValueError
        If its settings are damaged.
    """
    kind = settings["id"]
    if kind == "pickle":
        raise UnsafeError("its chunks are pickled Python objects, which could run any program; convert it elsewhere")
    if kind == "blosc":
        return Decoder(_unblosc, _compressed)
    if kind == "bz2":  # it truncates silently if there is no room, unlike the others: a spare byte shows it
        return Decoder(lambda data, room: _DIRECT["bz2"](data, out=np.empty(len(room) + 1, np.uint8)), _compressed)
    if kind in _DIRECT:
        direct = _DIRECT[kind]
        return Decoder(lambda data, room: direct(data, out=room), _compressed)
    if kind == "lzma":
        return Decoder(_unlzma(settings), _compressed)
    if kind not in (*_CHECKS, *_FILTERS, "packbits", "base64"):
        raise UnsupportedError(f"the codec {kind}")
    try:
        decode = numcodecs.get_codec(dict(settings)).decode
    except (ValueError, TypeError) as error:
        raise UnsupportedError(str(error)) from error
    # Copied, as some of these return a view of their input, whose memory is reused.
    return Decoder(lambda data, room: decode(bytes(data)), _taken(settings))  # noqa: ARG005 (the signature)


def _compressed(count: int) -> int:
    """Most bytes of compressed data: incompressible data grow by an eighth at worst (deflate with little memory)."""
    return count + count // 4 + _SLACK


def _taken(settings: Mapping[str, Any]) -> Callable[[int], int]:
    kind = settings["id"]
    if kind == "packbits":
        return lambda count: count // 8 + 2
    if kind == "base64":
        return lambda count: count // 3 * 4 + 4
    if kind in _CHECKS:
        return lambda count: count + 16
    given = [settings.get(name) for name in _FILTERS[kind]]
    before, after = (_sample_bytes(given[0] or given[1]), _sample_bytes(given[1])) if given[1] is not None else (1, 1)
    return lambda count: count // after * before


def _sample_bytes(dtype: Any) -> int:
    """Bytes of a filter's samples; they must be numbers, as text could take a million letters a sample."""
    found = np.dtype(dtype)
    if found.kind not in "biuf":
        raise ValueError(f"expected a filter of numbers, got one of {dtype!r}")
    return int(found.itemsize)


def _unblosc(data: Any, room: NDArray[np.uint8]) -> Any:
    # The decoder trusts the lengths in the header, and would read beyond the end of truncated data.
    block, stated = (int.from_bytes(data[at : at + 4], "little") for at in (8, 12))
    if len(data) < max(stated, _BLOSC_HEADER):
        raise ValueError(f"the chunk is cut off after {len(data)} of {stated} bytes")
    if block > _SCRATCH // 2:
        raise ValueError(f"the chunk has a block of {block:,} bytes, expected at most {_SCRATCH // 2:,}")
    return _DIRECT["blosc"](data, out=room)


def _unlzma(settings: Mapping[str, Any]) -> Callable[[Any, NDArray[np.uint8]], Any]:
    container, filters = settings.get("format", lzma.FORMAT_XZ), settings.get("filters")
    raw = container == lzma.FORMAT_RAW
    if raw and sum(int(step.get("dict_size", 0)) for step in filters or ()) > _SCRATCH:
        raise ValueError(f"expected a dictionary of LZMA of at most {_SCRATCH:,} bytes")

    def decode(data: Any, room: NDArray[np.uint8]) -> bytes:
        if raw:
            return lzma.LZMADecompressor(container, filters=filters).decompress(data, len(room) + 1)
        return lzma.LZMADecompressor(container, memlimit=_SCRATCH).decompress(data, len(room) + 1)

    return decode
