"""Checks of a TIFF before a pixel is read: known types and codecs, plausible sizes, a complete file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tifffile

from ..errors import ImageError
from ..limits import check_unit
from ..samples import MAX_CHUNK_PIXELS, check_samples, check_size
from .tiff_limits import may_hold
from .tiff_page import page_chunk, raw_chunk

_RGB, _PALETTE = 2, 3
_COLOURS = {0, 1, _RGB, _PALETTE, 4, 6, 34892}
"""Photometric tags: greys and masks, RGB, palette, YCbCr, and linear raw."""
_JPEG = {6, 7, 33007, 34892}


def _check_kind(label: str, page: Any) -> None:
    """Refuse samples and compressions that no decoder here supports."""
    if page.dtype is None:
        raise ImageError(
            f"{label}: samples of {page.bitspersample} bits and format {page.sampleformat} are of no known kind; "
            "convert it to 8, 16 or 32 bits"
        )
    check_samples(label, np.dtype(page.dtype))
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise ImageError(
            f"{label}: its compression ({page.compression}) is of no known kind; write it again with a common one, "
            "such as deflate or JPEG"
        )
    if page.predictor not in tifffile.TIFF.UNPREDICTORS and page.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS:
        raise ImageError(f"{label}: its predictor ({page.predictor}) is of no known kind; write it again without one")


def _check_colours(label: str, page: Any) -> None:
    """Refuse pixels whose colours or sample order are ambiguous."""
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    if photometric not in _COLOURS:
        name = getattr(page.photometric, "name", photometric)
        raise ImageError(f"{label}: expected grey, RGB, palette or YCbCr pixels, got {name}; convert it to RGB")
    if photometric == _RGB and samples < 3:
        raise ImageError(f"{label}: it states RGB of {samples} samples a pixel; the header is damaged")
    if photometric == _PALETTE and (page.colormap is None or samples > 1):
        raise ImageError(
            f"{label}: it states colours of a palette, but has {samples} samples a pixel"
            f"{' and no palette' if page.colormap is None else ''}; the header is damaged"
        )
    if samples > 1 and int(page.planarconfig) not in (1, 2):
        raise ImageError(f"{label}: its order of samples ({page.planarconfig}) is of no known kind; write it again")
    jpeg = int(page.compression) in _JPEG and int(page.planarconfig) == 1
    if page.is_subsampled and not jpeg and int(page.compression) not in tifffile.TIFF.IMAGE_COMPRESSIONS:
        raise ImageError(f"{label}: its colours are stored at half the resolution and without JPEG; convert it to RGB")


def _check_chunk(label: str, page: Any) -> None:
    """Refuse strips and tiles without pixels, and those too large to decode."""
    sides = " x ".join(map(str, page.chunks))
    if not all(isinstance(side, int) and side > 0 for side in page.chunks):
        raise ImageError(f"{label}: the header states strips or tiles of {sides} samples; it is damaged")
    samples, stored = math.prod(page.chunks), max(page.databytecounts, default=0)
    if samples > MAX_CHUNK_PIXELS:
        raise ImageError(
            f"{label}: one strip or tile is {sides} samples, more than the limit of {MAX_CHUNK_PIXELS}; "
            "the header is damaged, or the file should be written again in tiles"
        )
    check_unit(2 * samples * np.dtype(page.dtype).itemsize + stored, f"{label}: one strip or tile of {sides} samples")
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8 * np.dtype(page.dtype).itemsize
    if stored and not may_hold(stored, int(page.compression), samples * bits // 8):
        raise ImageError(
            f"{label}: the header states strips or tiles of {sides} samples, but the largest has {stored} encoded "
            "bytes, which cannot hold them; the header is damaged, copy or export the file again"
        )


def check_level(label: str, level: Any, size: int) -> None:
    """Refuse implausible sizes and files that end before their pixels do."""
    page = level.keyframe
    _check_kind(label, page)
    _check_colours(label, page)
    if not is_raw(level):
        _check_chunk(label, page)
    height, width = level.shape[level.axes.index("Y")], level.shape[level.axes.index("X")]
    check_size(label, height, width, raw_chunk(level) if is_raw(level) else page_chunk(page))
    segments = math.prod(page.chunked)
    if len(page.dataoffsets) < segments:
        raise ImageError(
            f"{label}: the header states {height} x {width} pixels in {segments} segments but lists "
            f"{len(page.dataoffsets)}; the header is damaged, copy or export the file again"
        )
    end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    if is_raw(level):
        end = level.dataoffset + level.nbytes
    if end > size:
        raise ImageError(
            f"{label}: the file is cut off, it ends at byte {size} but its pixels at {end}; copy or export it again"
        )


def is_raw(level: Any) -> bool:
    """Whether samples are stored uncompressed, one after the other."""
    return level.transform is None and level.dataoffset is not None
