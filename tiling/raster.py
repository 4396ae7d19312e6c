"""Formats that are decoded whole: arrays in memory, and PNG, JPEG, WebP, BMP and JPEG 2000 files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# OpenCV's own limit is half of ours; it is read when the library loads.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**31))

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .header import RasterHeader, read_header
from .source import Alpha, Source, channel_notes, check_samples, check_size, choose_range

MEMORY_CHUNK = 512
"""Arrays have no chunks; reads are ordered as if they had these."""

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
    value_range, notes = choose_range((array,), axes, (MEMORY_CHUNK, MEMORY_CHUNK))
    return Source(
        arrays=(array,),
        chunks=((min(MEMORY_CHUNK, height), min(MEMORY_CHUNK, width)),),
        axes=axes,
        format=format,
        value_range=value_range,
        alpha=alpha,
        notes=channel_notes(samples, alpha) + notes,
        in_memory=True,
    )


def kind_of(head: bytes) -> str | None:
    """Format of a file by its first bytes; None when it is none of these."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def open_raster(path: Path, kind: str) -> Source:
    """Decode a file of format `kind` whole.

    Raises
    ------
    ImageError
        If it is damaged, cut off, too large, or not decodable.
    """
    data = np.fromfile(path, dtype=np.uint8)
    header = read_header(data.tobytes(), kind)
    if header is None:
        raise ImageError(f"{path}: its {kind} header is damaged; copy or export it again")
    check_size(str(path), header.height, header.width, (header.height, header.width))
    if not header.complete:
        raise ImageError(f"{path}: the {kind} file is cut off or damaged; copy or export it again")
    try:
        stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{path}: OpenCV cannot decode it ({error.err}); convert it to tiled TIFF") from error
    if stored is None:
        raise ImageError(f"{path}: the {kind} data is damaged or of an unknown kind; export it again")
    if stored.shape[:2] != (header.height, header.width):
        raise ImageError(
            f"{path}: the header says {header.height} x {header.width} pixels, but {stored.shape[0]} x "
            f"{stored.shape[1]} were decoded; export it again"
        )
    return array_source(_upright(_rgb(stored, header), header.orientation), format=kind)


def _rgb(stored: NDArray[Any], header: RasterHeader) -> NDArray[Any]:
    """Put OpenCV's blue, green, red in order; keep one of three equal channels."""
    if stored.ndim == 2 or stored.shape[2] == 1:
        return stored
    if stored.shape[2] == 4:
        return stored[..., [2, 3]] if header.grey else stored[..., [2, 1, 0, 3]]
    return stored[..., 0] if header.grey else stored[..., ::-1]


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror as EXIF says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
