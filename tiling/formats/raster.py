"""Raster formats, whose files are decoded whole: PNG, JPEG, WebP, BMP and JPEG 2000."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..geometry import PixelSize, ceil_div, ignored_dots, printer_dots
from ..limits import UNIT_BYTES, check_unit
from ..orientation import Turn
from ..quiet import quiet
from ..samples import check_size
from ..source import Source, array_source
from ..stats import ReadStats
from ..storage.byte_files import ByteFile, LocalFile
from .bmp import decode_bmp
from .decoded_cache import CacheEntry
from .raster_header import RasterHeader, read_header

CACHED_BYTES = 256 * 2**20
"""Most bytes of decoded pixels that are kept in memory; more go to disk."""

_HEAD_BYTES = (2**16, 2**20, 2**26)
"""Bytes of a file that are read for its header: the next number if the header does not end within one."""

_PIECE_BYTES = 2**30
_HARMLESS = 2**28
_DENSE = {"jpeg": 1032, "bmp": 1032, "jpeg2000": 1032}
"""Most decoded bytes per stored byte; a header that states more, and over `_HARMLESS` bytes, is refused. PNG is checked
by `read_header`, and WebP is never large."""

_SCREEN = 100
"""Most dots per inch of a screen."""

_MOST_SAMPLES, _INKS = 4, 4
_STRIP_PIXELS = 2**20


def open_raster_file(path: Path, kind: str, stats: ReadStats, given: tuple[float, float] | None = None) -> Source:
    """Open a file of format `kind`: from the cache on disk if it was decoded before, else by decoding it whole.

    It is decoded only if the size that its header states is within the limits. Decoded pixels of more than
    `CACHED_BYTES` go to the cache, and their memory is released.

    Parameters
    ----------
    path : Path
    kind : str
        Result of `kind_of`.
    stats : ReadStats
        Counts reads.
    given : (float, float), optional
        Values that map to 0 and 255.

    Raises
    ------
    ImageError
        See `open_raster`.
    OSError
        If the file cannot be read. A cache that cannot be used gives a note of the source, not an error.
    """
    entry = CacheEntry.of(path, given)
    kept = entry.open(stats)
    if kept is not None:
        return kept
    with contextlib.closing(LocalFile(path, stats)) as file:
        _check_promise(_first_header(file, kind, str(path)), file.size, kind, str(path))
        data = _whole(file)
    decoded = dataclasses.replace(open_raster(data, kind, str(path)), given=given)
    array = decoded.arrays[0]
    large = math.prod(array.shape) * array.dtype.itemsize > CACHED_BYTES
    return entry.keep(decoded, stats) if large else decoded


def open_raster(data: bytes, kind: str, label: str) -> Source:
    """Decode a file of format `kind` whole.

    Parameters
    ----------
    data : bytes
        The file.
    kind : str
        Result of `kind_of`.
    label : str
        Path or address, for messages.

    Raises
    ------
    ImageError
        If it is damaged, cut off, too large, or not decodable.
    """
    try:
        header = read_header(data, kind)
    except ValueError as error:
        raise _header_error(label, kind, error) from error
    _check_promise(header, len(data), kind, label)
    if not header.complete:
        raise ImageError(f"{label}: the {kind} file is cut off or damaged; copy or export it again")
    try:
        with quiet():
            stored = _DECODERS[kind](data)
    except MemoryError:
        raise
    except Exception as error:  # each decoder has errors of its own
        raise ImageError(
            f"{label}: the {kind} data is damaged or of an unknown kind ({type(error).__name__}: {error}); "
            "export it again, or convert it to tiled TIFF"
        ) from error
    if stored.shape[:2] != (header.height, header.width):
        raise ImageError(
            f"{label}: the header says {header.height} x {header.width} pixels, but {stored.shape[0]} x "
            f"{stored.shape[1]} were decoded; export it again"
        )
    source = array_source(Turn.of(header.orientation).apply(stored), format=kind)
    size, notes = _upright_size(header)
    # The range is fixed for the whole picture, whichever channels are read.
    return dataclasses.replace(source, fixed=source.scale, pixel_size=size, notes=source.notes + notes)


def _first_header(file: ByteFile, kind: str, label: str) -> RasterHeader:
    """Header, from as few bytes of the file as hold it."""
    reason: ValueError | None = None
    for count in _HEAD_BYTES:
        try:
            return read_header(file.read_at(0, min(count, file.size)), kind)
        except ValueError as error:
            reason = error
        if count >= file.size:
            break
    raise _header_error(label, kind, reason)


def _header_error(label: str, kind: str, reason: ValueError | None) -> ImageError:
    return ImageError(f"{label}: its {kind} header is damaged ({reason}); copy or export it again")


def _whole(file: ByteFile) -> bytes:
    """All bytes of a file, in several reads: one call reads less than 2 GiB."""
    pieces = [file.read_at(begin, min(_PIECE_BYTES, file.size - begin)) for begin in range(0, file.size, _PIECE_BYTES)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _check_promise(header: RasterHeader, size: int, kind: str, label: str) -> None:
    """Refuse a header that states more than memory allows or a file of `size` bytes can hold."""
    check_size(label, header.height, header.width, (header.height, header.width))
    what = f"{label}: a {kind} picture of {header.height} x {header.width} pixels and {header.samples} samples"
    if kind == "jpeg2000" and header.samples > _MOST_SAMPLES:
        raise ImageError(f"{what} each: expected at most {_MOST_SAMPLES} samples; convert it to tiled TIFF")
    decoded = header.decoded_bytes
    if kind in _DENSE and decoded > max(_HARMLESS, _DENSE[kind] * size):
        raise ImageError(
            f"{what} takes {decoded:,} bytes, which a file of {size:,} bytes cannot hold; "
            "the header is damaged, copy or export it again"
        )
    check_unit(decoded + header.scratch, what)
    if size > UNIT_BYTES + 4 * decoded:
        raise ImageError(
            f"{what} takes {decoded:,} bytes, but the file has {size:,}; it is damaged, copy or export it again"
        )


def _upright_size(header: RasterHeader) -> tuple[PixelSize | None, tuple[str, ...]]:
    """Size of an upright pixel, unless it is a screen's or a printer's; a note on a printer's."""
    size = header.pixel_size
    if size is None:
        return None, ()
    if (dots := printer_dots(size)) is not None:
        # No note on screen resolutions: nearly every picture has one.
        return None, (ignored_dots(dots),) if dots > _SCREEN else ()
    return PixelSize(size.x, size.y, size.unit) if Turn.of(header.orientation).transpose else size, ()


def _jpeg(data: bytes) -> NDArray[Any]:
    """Decode a JPEG to grey or RGB; CMYK, inverted as Adobe stores it, becomes RGB."""
    if read_header(data, "jpeg").samples != _INKS:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    inks = np.asarray(imagecodecs.jpeg8_decode(data, outcolorspace="CMYK"))
    colours = np.empty((*inks.shape[:2], 3), dtype=np.uint8)
    for into, strip in zip(_strips(colours), _strips(inks), strict=True):
        into[:] = strip[..., :3].astype(np.uint16) * strip[..., 3:] // 255
    return colours


def _strips(pixels: NDArray[Any]) -> list[NDArray[Any]]:
    """Groups of rows, so that intermediates of their conversion stay small."""
    return np.array_split(pixels, ceil_div(pixels.shape[0] * pixels.shape[1], _STRIP_PIXELS))


_DECODERS: dict[str, Callable[[bytes], NDArray[Any]]] = {
    "png": imagecodecs.png_decode,
    "jpeg": _jpeg,
    "webp": imagecodecs.webp_decode,
    "bmp": decode_bmp,
    "jpeg2000": imagecodecs.jpeg2k_decode,
}
"""Decoders that write nothing to the terminal about damaged files, unlike OpenCV's."""
