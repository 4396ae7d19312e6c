"""Formats that are decoded whole: arrays in memory, and PNG, JPEG, WebP, BMP and JPEG 2000 files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .disk_cache import CacheEntry
from .errors import ImageError
from .geometry import ceil_div
from .header import RasterHeader, read_header
from .orientation import upright
from .samples import Alpha, check_samples, check_size
from .source import Source
from .stats import ReadStats

CACHED_BYTES = 256 * 2**20
"""Decoded pixels that take more are kept on disk, not in memory."""

MEMORY_CHUNK = 512
"""Arrays have no chunks; reads are ordered as if they had these."""

_SWAPPED_BYTES = 2**22

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"BM", "bmp"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
)


def array_source(array: NDArray[Any], format: str = "array") -> Source:  # noqa: A002
    """Wrap pixels in memory.

    Parameters
    ----------
    array : (h, w) or (h, w, c) array
        Boolean, integer or real. Four channels are red, green, blue and opacity.
    format : str
        What to call the format; decoded files may have two channels, grey and opacity.

    Raises
    ------
    ImageError
        If the array is empty, or its axes or samples cannot be an image.
    """
    what = format
    if array.ndim not in (2, 3):
        raise ImageError(
            f"{what}: expected an array (height, width) or (height, width, channels), got shape {array.shape}"
        )
    if array.ndim == 3 and array.shape[2] > 4 and array.shape[0] <= 4:
        raise ImageError(f"{what}: expected channels last, got shape {array.shape}; use numpy.moveaxis(array, 0, -1)")
    if array.size == 0:
        raise ImageError(f"{what}: the array is empty (shape {array.shape}); pass one with pixels")
    check_samples(what, array.dtype)
    samples = array.shape[2] if array.ndim == 3 else 1
    opacity = samples == 4 or (samples == 2 and format != "array")
    alpha: Alpha = "straight" if opacity else "none"
    height, width = array.shape[:2]
    axes = "yxc" if array.ndim == 3 else "yx"
    return Source(
        arrays=(array,),
        chunks=((min(MEMORY_CHUNK, height), min(MEMORY_CHUNK, width)),),
        axes=axes,
        format=format,
        alpha=alpha,
        in_memory=True,
    )


def kind_of(head: bytes) -> str | None:
    """Format of a file by its first bytes; None when it is none of these."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def open_raster_file(path: Path, kind: str, stats: ReadStats, given: tuple[float, float] | None = None) -> Source:
    """Open a file of format `kind`: from the cache on disk if it was decoded before, else by decoding it whole.

    Pixels that take more than `CACHED_BYTES` when decoded go to the cache, and memory is given back.

    Parameters
    ----------
    path : Path
    kind : str
        As `kind_of` gives it.
    stats : ReadStats
        Told of reads.
    given : (float, float), optional
        Values that map to 0 and 255.

    Raises
    ------
    ImageError
        See `open_raster`.
    OSError
        If the file cannot be read. A cache that cannot be used is no error, but a note of the source.
    """
    entry = CacheEntry.of(path, given)
    kept = entry.open(stats)
    if kept is not None:
        return kept
    data = path.read_bytes()
    stats.fetch(len(data))
    decoded = dataclasses.replace(open_raster(data, kind, str(path)), given=given)
    array = decoded.arrays[0]
    large = math.prod(array.shape) * array.dtype.itemsize > CACHED_BYTES
    return entry.keep(decoded, stats) if large else decoded


def open_raster(data: bytes, kind: str, label: str) -> Source:
    """Decode a file of format `kind` whole.

    Memory holds the file and, while OpenCV decodes, its samples of 8 or 16 bits twice; of JPEG 2000 some six times.

    Parameters
    ----------
    data : bytes
        The file.
    kind : str
        As `kind_of` gives it.
    label : str
        Path or address, for messages.

    Raises
    ------
    ImageError
        If it is damaged, cut off, too large, or not decodable.
    """
    header = read_header(data, kind)
    if header is None:
        raise ImageError(f"{label}: its {kind} header is damaged; copy or export it again")
    check_size(label, header.height, header.width, (header.height, header.width))
    if not header.complete:
        raise ImageError(f"{label}: the {kind} file is cut off or damaged; copy or export it again")
    try:
        stored = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{label}: OpenCV cannot decode it ({error.err}); convert it to tiled TIFF") from error
    if stored is None:
        raise ImageError(f"{label}: the {kind} data is damaged or of an unknown kind; export it again")
    if stored.shape[:2] != (header.height, header.width):
        raise ImageError(
            f"{label}: the header says {header.height} x {header.width} pixels, but {stored.shape[0]} x "
            f"{stored.shape[1]} were decoded; export it again"
        )
    decoded = array_source(upright(_rgb(stored, header), header.orientation), format=kind)
    return dataclasses.replace(decoded, fixed=decoded.scale)  # a picture's, whichever of its colours are read


def _rgb(stored: NDArray[Any], header: RasterHeader) -> NDArray[Any]:
    """Put OpenCV's blue, green, red in order, in place; keep one of three equal channels."""
    if stored.ndim == 2 or stored.shape[2] == 1:
        if header.clear is None:
            return stored
        opacity = (stored != header.clear) * stored.dtype.type(np.iinfo(stored.dtype).max)
        return np.dstack((stored, opacity))
    if header.grey:
        return np.ascontiguousarray(stored[..., [2, 3]] if stored.shape[2] == 4 else stored[..., 0])
    swap = cv2.COLOR_BGRA2RGBA if stored.shape[2] == 4 else cv2.COLOR_BGR2RGB
    for strip in np.array_split(stored, ceil_div(stored.nbytes, _SWAPPED_BYTES)):
        strip[:] = cv2.cvtColor(strip, swap)
    return stored
