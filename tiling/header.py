"""Headers of PNG, JPEG, WebP, BMP and JPEG 2000: what must be known before pixels are decoded.

Size is checked before memory is taken, completeness because decoders fill what is missing with grey, and the
orientation because decoders drop it when asked for pixels as they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_DEFLATE_RATIO = 1032
"""Deflate cannot expand a byte to more than this."""


@dataclass(frozen=True)
class RasterHeader:
    """What a header says.

    Parameters
    ----------
    height, width : int
        Stored size in pixels, before turning.
    complete : bool
        Whether the file holds all it promises.
    grey : bool
        Whether colour is known to be grey though decoders widen it (PNG with grey and opacity).
    orientation : int
        EXIF orientation, 1 to 8; 1 is upright.
    clear : int, optional
        The grey that is transparent, on the scale of decoded samples (PNG); decoders leave that out.
    """

    height: int
    width: int
    complete: bool
    grey: bool = False
    orientation: int = 1
    clear: int | None = None


def read_header(data: bytes, kind: str) -> RasterHeader | None:
    """Read the header of a file held in memory; None if it is damaged."""
    try:
        return _READERS[kind](data)
    except (struct.error, LookupError, ValueError):
        return None


def _png(data: bytes) -> RasterHeader:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    complete, orientation, clear = False, 1, None
    for name, begin, end in _png_chunks(data):
        if name == b"eXIf":
            orientation = exif_orientation(data[begin:end])
        if name == b"tRNS" and colour == 0:
            value = struct.unpack_from(">H", data, begin)[0] & (1 << depth) - 1
            clear = value if depth >= 8 else value * 255 // ((1 << depth) - 1)
        if name == b"IEND":
            complete = height * width * samples * depth // 8 <= _DEFLATE_RATIO * len(data)
    return RasterHeader(height, width, complete, colour in (0, 4), orientation, clear)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of each chunk, up to the first that is cut off or damaged."""
    view, position = memoryview(data), 8
    while position + 12 <= len(data):
        length = struct.unpack_from(">I", data, position)[0]
        begin, end = position + 8, position + 8 + length
        if end + 4 > len(data) or zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return
        yield data[position + 4 : begin], begin, end
        position = end + 4


def _jpeg(data: bytes) -> RasterHeader:
    size, orientation, position = None, 1, 2
    while True:
        while data[position + 1] == 0xFF:  # markers may be padded
            position += 1
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        if data[position] != 0xFF:
            raise ValueError("a marker is missing")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = struct.unpack_from(">HH", data, position + 5)
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
        if marker == 0xDA:
            break
    if size is None:
        raise ValueError("no frame before the scan")
    return RasterHeader(size[0], size[1], data.rfind(b"\xff\xd9") >= position, orientation=orientation)


def _webp(data: bytes) -> RasterHeader:
    riff = struct.unpack_from("<I", data, 4)[0]
    size, orientation, position = None, 1, 12
    while position + 8 <= min(len(data), riff + 8):
        name, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if size is None and name == b"VP8X":
            size = _u24(data, body + 7) + 1, _u24(data, body + 4) + 1
        elif size is None and name == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = height & 0x3FFF, width & 0x3FFF
        elif size is None and name == b"VP8L":
            bits = struct.unpack_from("<I", data, body + 1)[0]
            size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        elif name == b"EXIF":
            orientation = exif_orientation(data[body : body + length].removeprefix(b"Exif\0\0"))
        position = body + length + length % 2
    if size is None:
        raise ValueError("no frame")
    return RasterHeader(size[0], size[1], riff + 8 <= len(data), orientation=orientation)


def _u24(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 3], "little")


def _bmp(data: bytes) -> RasterHeader:
    offset, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    height = abs(height)  # negative when stored from the top
    stride = (width * bits + 31) // 32 * 4
    return RasterHeader(height, width, compression in (1, 2) or offset + stride * height <= len(data))


def _jpeg2000(data: bytes) -> RasterHeader:
    if data.startswith(b"\xff\x4f"):
        width, height, left, top = struct.unpack_from(">IIII", data, 8)
        height, width = height - top, width - left
    else:
        box = data.index(b"ihdr", 0, 4096)
        height, width = struct.unpack_from(">II", data, box + 4)
    return RasterHeader(height, width, data.rfind(b"\xff\xd9") >= 0)


_READERS: dict[str, Callable[[bytes], RasterHeader]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "bmp": _bmp,
    "jpeg2000": _jpeg2000,
}


def exif_orientation(exif: bytes) -> int:
    """Orientation in an EXIF block that begins with its TIFF header; 1 when there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        directory = struct.unpack_from(order + "I", exif, 4)[0]
        for entry in range(struct.unpack_from(order + "H", exif, directory)[0]):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, directory + 2 + 12 * entry)
            if tag == 0x0112:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
