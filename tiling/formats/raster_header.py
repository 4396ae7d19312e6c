"""Headers of PNG, JPEG, WebP, BMP and JPEG 2000, read before pixels are decoded.

Sizes are needed before memory is taken, completeness because decoders fill missing parts with grey, and the
orientation because decoders drop it if asked for unchanged pixels.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..geometry import PixelSize, ceil_div
from .bmp import read_bmp_header

_DEFLATE_RATIO = 1032
"""Most bytes that deflate can expand a byte to."""
_TILE_BYTES, _TILE_COMPONENT_BYTES, _PRECINCT_BYTES = 6000, 1200, 500
"""Bytes that OpenJPEG takes for each tile, each component of a tile, and each precinct, rounded up."""
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"BM", "bmp"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
)


@dataclass(frozen=True)
class RasterHeader:
    """Content of a header.

    Parameters
    ----------
    height, width : int
        Stored size in pixels, before turning.
    samples : int
        Decoded samples of a pixel, opacity included; an upper bound if the header leaves the number open.
    sample_bytes : int
        Bytes of a decoded sample.
    complete : bool
        Whether the file is not cut off.
    orientation : int
        EXIF orientation, 1 to 8; 1 is upright.
    scratch : int
        Bytes that a decoder takes while it works, beyond the pixels it returns.
    pixel_size : PixelSize, optional
        Size stated by the file, a printer's or not.
    """

    height: int
    width: int
    samples: int
    sample_bytes: int
    complete: bool
    orientation: int = 1
    scratch: int = 0
    pixel_size: PixelSize | None = None

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the pixels that a decoder returns."""
        return self.height * self.width * self.samples * self.sample_bytes


def kind_of(head: bytes) -> str | None:
    """Format of a file by its first bytes; None if it is none of these."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def read_header(data: bytes, kind: str) -> RasterHeader:
    """Read the header from a file's first bytes.

    Raises
    ------
    ValueError
        If it is damaged, or does not end within the bytes.
    """
    try:
        return _READERS[kind](data)
    except (struct.error, LookupError) as error:
        raise ValueError("it is cut off") from error


def _png(data: bytes) -> RasterHeader:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    stored = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if stored is None:
        raise ValueError(f"colours of kind {colour} are unknown")
    complete, orientation, size = False, 1, None
    samples = 3 if colour == 3 else stored
    for name, begin, end in _png_chunks(data):
        if name == b"eXIf":
            orientation = exif_orientation(data[begin:end])
        elif name == b"tRNS":
            samples = {0: 2, 2: 4, 3: 4}.get(colour, samples)
        elif name == b"pHYs" and end - begin == 9:
            across, down, unit = struct.unpack_from(">IIB", data, begin)
            size = _density(across, down, unit, {1: "meter"})
        elif name == b"IEND":
            complete = height * width * stored * depth // 8 <= _DEFLATE_RATIO * len(data)
    return RasterHeader(height, width, samples, 2 if depth == 16 else 1, complete, orientation, pixel_size=size)


def _density(x: int, y: int, unit: int, units: dict[int, str]) -> PixelSize | None:
    """Size of a pixel from the number of pixels per unit."""
    return PixelSize(1 / y, 1 / x, units[unit]) if x > 0 and y > 0 and unit in units else None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk, up to the first that is cut off or damaged."""
    view, position = memoryview(data), 8
    while position + 12 <= len(data):
        length = struct.unpack_from(">I", data, position)[0]
        begin, end = position + 8, position + 8 + length
        if end + 4 > len(data) or zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return
        yield data[position + 4 : begin], begin, end
        position = end + 4


def _jpeg(data: bytes) -> RasterHeader:
    frame, density, orientation, position = None, None, 1, 2
    progressive = False
    while True:
        while data[position + 1] == 0xFF:  # markers may be padded
            position += 1
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        if data[position] != 0xFF:
            raise ValueError("a marker is missing")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack_from(">BHHB", data, position + 4)
            progressive = marker & 3 == 2
        if marker == 0xE0 and data[position + 4 : position + 9] == b"JFIF\0":
            unit, across, down = struct.unpack_from(">BHH", data, position + 11)
            density = _density(across, down, unit, {1: "inch", 2: "centimeter"})
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
        if marker == 0xDA:
            break
    if frame is None:
        raise ValueError("no frame before the scan")
    precision, height, width, samples = frame
    sample_bytes = ceil_div(precision, 8)
    # Decoders hold the coefficients of a progressive image, two bytes each, until its last scan.
    scratch = 2 * height * width * samples if progressive else 0
    complete = data.rfind(b"\xff\xd9") >= position
    return RasterHeader(height, width, samples, sample_bytes, complete, orientation, scratch, density)


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
    return RasterHeader(size[0], size[1], 4, 1, riff + 8 <= len(data), orientation)


def _u24(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 3], "little")


def _bmp(data: bytes) -> RasterHeader:
    header = read_bmp_header(data)
    end = header.offset + (0 if header.runs else header.stride * header.height)
    size = _density(*header.per_meter, 1, {1: "meter"})
    return RasterHeader(header.height, header.width, header.samples, 1, end <= len(data), pixel_size=size)


def _jpeg2000(data: bytes) -> RasterHeader:
    begin, samples, orientation = 0, 0, 1
    if not data.startswith(b"\xff\x4f"):
        begin, samples = _codestream(data)
    width, height, left, top, tile_x, tile_y, from_x, from_y, count = struct.unpack_from(">8IH", data, begin + 8)
    if not (left < width and top < height and from_x <= left < from_x + tile_x and from_y <= top < from_y + tile_y):
        raise ValueError(f"tiles of {tile_y} x {tile_x} pixels do not cover {height} x {width}")
    if data[begin : begin + 4] != b"\xff\x4f\xff\x51" or len(data) < begin + 42 + 3 * count:
        raise ValueError("no size at the beginning of the codestream")
    depths = {data[begin + 42 + 3 * i] & 0x7F for i in range(count)}
    tiles = ceil_div(width - from_x, tile_x) * ceil_div(height - from_y, tile_y)
    height, width = height - top, width - left
    sample_bytes = ceil_div(max(depths) + 1, 8)
    # Decoders hold 32 bits per sample, tables for every tile, and tables for each precinct of the largest tile.
    precincts = min(tile_x, width) * min(tile_y, height) * count / _least_precinct(data, begin) * 4 / 3
    scratch = 4 * height * width * count + tiles * (_TILE_BYTES + count * _TILE_COMPONENT_BYTES)
    scratch += math.ceil(precincts * _PRECINCT_BYTES)
    complete = data.rfind(b"\xff\xd9") >= 0
    return RasterHeader(height, width, max(samples, count), sample_bytes, complete, orientation, scratch)


def _codestream(data: bytes) -> tuple[int, int]:
    """Byte at which the codestream of a JP2 file begins, and number of channels of its palette."""
    position, end, channels = 0, len(data), 0
    while True:
        length, name = struct.unpack_from(">I4s", data, position)
        body = position + 8
        if length == 1:
            length, body = struct.unpack_from(">Q", data, body)[0], body + 8
        if name == b"jp2c":
            return body, channels
        if name == b"cmap":
            channels = (length - 8) // 4
        if length < body - position:
            raise ValueError("a box without an end comes before the codestream")
        # The header box contains other boxes.
        position = body if name == b"jp2h" else min(position + length, end)


def _least_precinct(data: bytes, begin: int) -> int:
    """Samples of the smallest precinct, from the codestream's main header."""
    position = begin + 2
    while True:
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == 0xFF90:  # tiles begin
            return 1
        if marker == 0xFF52:
            if not data[position + 4] & 1:
                return 2**30
            sizes = data[position + 14 : position + 2 + length]
            return min(1 << (size & 15) + (size >> 4) for size in sizes)
        position += 2 + length


_READERS: dict[str, Callable[[bytes], RasterHeader]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "bmp": _bmp,
    "jpeg2000": _jpeg2000,
}
RASTERS = frozenset(_READERS)
"""Names of the formats that are decoded whole, as in `Image.format`."""


def exif_orientation(exif: bytes) -> int:
    """Orientation in an EXIF block that begins with its TIFF header; 1 if there is none."""
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
