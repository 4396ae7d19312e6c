"""Limits of encoded strips and tiles of a TIFF, checked before a decoder takes memory for them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from ..limits import UNIT_BYTES
from .raster_header import read_header

_HARMLESS = 2**24
"""Bytes that any decoder may take, without further checks."""
_JPEG_XR = (22610, 34934)
_SCRATCH = 16
"""Bytes that decoders may take per decoded byte: some hold 32 bits per sample, or coefficients, or both."""
_EXPANSION = {5: 2**12, 8: 1032, 32773: 64, 32946: 1032, 34925: 2**14, 50000: 2**15, 50013: 1032}
"""Most decoded bytes per byte of LZW, deflate, PackBits, LZMA and Zstandard, whose decoders take memory for the stated
size at once."""


def may_hold(count: int, compression: int, size: int) -> bool:
    """Whether `count` encoded bytes can become `size` bytes, if a limit of the TIFF compression code is known."""
    return compression not in _EXPANSION or size <= _HARMLESS + _EXPANSION[compression] * count


class Claim(NamedTuple):
    """Size that the header of encoded data states.

    Parameters
    ----------
    height, width : int
        Pixels.
    taken : int
        Bytes that decoding takes, scratch included.
    """

    height: int
    width: int
    taken: int


def check_claim(data: bytes, compression: int, size: int) -> Claim | None:
    """Refuse encoded data whose own header claims far more than the `size` bytes that the page states.

    Returns
    -------
    Claim, or None if it cannot be read

    Raises
    ------
    ValueError
        If it claims far more.
    """
    claim = _CLAIMS[compression](data) if compression in _CLAIMS else None
    if claim is None and compression in _JPEG_XR and data.startswith(b"II\xbc"):
        # The decoder would write to the terminal about unknown tags.
        raise ValueError("the directory of its JPEG XR is damaged")
    if claim is not None and claim.taken > min(max(_HARMLESS, _SCRATCH * size), UNIT_BYTES):
        raise ValueError(
            f"it claims {claim.height} x {claim.width} pixels, which take {claim.taken:,} bytes to decode; "
            f"the page states {size:,}"
        )
    return claim


def _headed(kind: str) -> Callable[[bytes], Claim | None]:
    def claim(data: bytes) -> Claim | None:
        try:
            header = read_header(data, kind)
        except ValueError:
            return None
        return Claim(header.height, header.width, header.decoded_bytes + header.scratch)

    return claim


def _jpegxr(data: bytes) -> Claim | None:
    try:
        begin = struct.unpack_from("<I", data, 4)[0] + 2
        end = begin + 12 * struct.unpack_from("<H", data, begin - 2)[0]
        values = {tag: value for tag, _, _, value in struct.iter_unpack("<HHII", data[begin:end])}
        return None if list(values) != sorted(values) else _wide(values[0xBC81], values[0xBC80])
    except (struct.error, KeyError):
        return None


def _wide(height: int, width: int, layers: int = 1) -> Claim:
    """Claim for up to four samples of 32 bits, if nothing else is known."""
    return Claim(height, width, 16 * height * width * layers)


def _lerc(data: bytes) -> Claim | None:
    if data.startswith(b"CntZImage ") and len(data) >= 26:
        height, width = struct.unpack_from("<II", data, 18)
        return _wide(height, width, data.count(b"CntZImage "))
    if not data.startswith(b"Lerc2 ") or len(data) < 26:
        return None
    version = struct.unpack_from("<I", data, 6)[0]
    begin = 14 if version >= 3 else 10  # after a checksum
    height, width, depth = struct.unpack_from("<III", data, begin)
    # Bands follow each other, each with a header of its own; from version 4 on each has samples of its own.
    return Claim(height, width, 8 * height * width * (depth if version >= 4 else 1) * data.count(b"Lerc2 "))


def _jpegxl(data: bytes) -> Claim | None:
    start = max(data.find(b"jxlc") + 4, data.find(b"jxlp") + 8) if data[:4] == bytes((0, 0, 0, 12)) else 0
    if data[start : start + 2] != b"\xff\n":
        return None
    bits = int.from_bytes(data[start + 2 : start + 12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value: int = bits & (1 << count) - 1
        bits >>= count
        return value

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1) == 1
    height = side()
    ratio = take(3)
    if ratio == 0:
        return _wide(height, side())
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return _wide(height, height * over // under)


_CLAIMS: dict[int, Callable[[bytes], Claim | None]] = {
    **dict.fromkeys((6, 7, 33007, 34892), _headed("jpeg")),
    **dict.fromkeys((33003, 33004, 33005, 34712), _headed("jpeg2000")),
    34933: _headed("png"),
    **dict.fromkeys((34927, 50001), _headed("webp")),
    **dict.fromkeys(_JPEG_XR, _jpegxr),
    34887: _lerc,
    **dict.fromkeys((50002, 52546), _jpegxl),
}
