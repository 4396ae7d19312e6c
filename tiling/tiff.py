"""TIFF, BigTIFF, Aperio SVS, OME-TIFF and GeoTIFF."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import ceil_div
from .source import (
    Alpha,
    PixelArray,
    Source,
    channel_notes,
    check_samples,
    check_size,
    choose_range,
    sample_range,
)
from .tiff_page import PageArray

GROUP_PIXELS = 2**14
"""Strips and tiles smaller than this are decoded in groups."""
GROUP_ROWS = 64
GROUP_LIMIT = 2**22
"""Strips of wide images are grouped to so many rows, if that is no more than so many pixels."""

_APERIO_YCBCR = 33003
# tifffile returns these as RGB whatever the photometric tag says.
_RGB_CODECS = {6, 7, 22610, 33007, 34892, 34934, 50001, 50002, 52546}
_EXTRA_NAMES = re.compile("label|macro|thumbnail|overview", re.IGNORECASE)
_MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_PRINTER_DPI = {72, 96, 100, 150, 200, 300, 600, 1200}
"""Dots per inch that programs write when they know nothing of the specimen."""


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_tiff(path: Path) -> Source:
    """Open the largest image of a TIFF with all its levels.

    Raises
    ------
    ImageError
        If the file is damaged, cut off, or holds what is no picture.
    """
    try:
        file = tifffile.TiffFile(path)
    except Exception as error:
        raise ImageError(f"{path}: the TIFF header is damaged ({error}); copy or export it again") from error
    try:
        return _open(file, path)
    except ImageError:
        file.close()
        raise
    except Exception as error:
        file.close()
        raise ImageError(
            f"{path}: the TIFF directory is damaged or of an unknown kind ({type(error).__name__}: {error}); "
            "copy or export it again"
        ) from error


def _open(file: Any, path: Path) -> Source:
    if not len(file.pages) or not file.series:
        raise ImageError(f"{path}: the TIFF has no image in it; copy or export it again")
    base = max(file.series, key=_area)
    page = base.keyframe
    check_samples(str(path), np.dtype(base.dtype))
    levels, notes = _levels(file, base)
    for level in levels:
        _check(path, level)
    arrays, chunks = zip(*(_array(level) for level in levels), strict=True)
    axes, first_notes = _axes(base)
    colours = _colours(path, page, base.shape[axes.index("c")] if "c" in axes else 1)
    group = chunks[-1]
    value_range, range_notes = _value_range(arrays, axes, group, page)
    if colours.palette is not None:
        value_range, range_notes = (0.0, 255.0), ()
    mpp, mpp_notes = _mpp(file, page)
    if page.photometric == 0 and colours.palette is None:
        value_range, range_notes = value_range[::-1], (*range_notes, "low values are white, as the file says")
    return Source(
        arrays=arrays,
        chunks=tuple(_grouped(chunk, level) for chunk, level in zip(chunks, levels, strict=True)),
        axes=axes,
        format="svs" if file.is_svs else "ome-tiff" if file.is_ome else "tiff",
        value_range=value_range,
        alpha=colours.alpha,
        palette=colours.palette,
        ycbcr=colours.ycbcr,
        mpp=mpp,
        notes=notes + first_notes + colours.notes + range_notes + mpp_notes,
        close=file.close,
    )


def _size(series: Any) -> tuple[int, int]:
    return series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]


def _area(series: Any) -> int:
    return math.prod(_size(series)) if "Y" in series.axes and "X" in series.axes else 0


def _levels(file: Any, base: Any) -> tuple[list[Any], tuple[str, ...]]:
    """Levels of the base series: those tifffile knows, and pages that are plainly smaller copies of it."""
    known = list(base.levels)
    found = known[:1] + [level for level in known[1:] if _same_aspect(known[0], level)]
    notes = (f"{len(known) - len(found)} level(s) of another shape ignored",) if len(found) < len(known) else ()
    if len(known) == 1 and not file.is_svs and not file.is_ome:
        found += [other for other in file.series if other is not base and _is_reduction(base, other)]
    found.sort(key=_area, reverse=True)
    sizes = [_size(level) for level in found]
    return [level for i, level in enumerate(found) if sizes[i] not in sizes[:i]], notes


def _same_aspect(base: Any, level: Any) -> bool:
    """Whether a level is smaller by one factor, allowing for a pixel lost to rounding."""
    (full_height, full_width), (height, width) = _size(base), _size(level)
    if height > full_height or width > full_width or len(base.shape) != len(level.shape):
        return False
    slack = 0.01 + 1.0 / min(height, width)
    return abs(full_height / height / (full_width / width) - 1.0) <= slack


def _is_reduction(base: Any, other: Any) -> bool:
    """Whether another series is the same picture, smaller: it says so, or is tiled at a whole factor."""
    page, first = other.keyframe, base.keyframe
    if other.axes != base.axes or other.dtype != base.dtype or _EXTRA_NAMES.search(page.description or ""):
        return False
    if other.shape == base.shape or not _same_aspect(base, other):
        return False
    if page.is_reduced or not (page.is_tiled and first.is_tiled):
        return bool(page.is_reduced)
    factor = round(base.shape[base.axes.index("Y")] / other.shape[base.axes.index("Y")])
    return factor >= 2 and all(
        level in (full // factor, ceil_div(full, factor)) for full, level in zip(_size(base), _size(other), strict=True)
    )


def _check(path: Path, level: Any) -> None:
    """Refuse absurd sizes and files that end before their pixels do."""
    page, what = level.keyframe, str(path)
    height, width = _size(level)
    check_size(what, height, width, _page_chunk(page))
    segments = math.prod(page.chunked)
    if len(page.dataoffsets) < segments:
        raise ImageError(
            f"{path}: the header promises {height} x {width} pixels in {segments} segments but lists "
            f"{len(page.dataoffsets)}; the header is damaged, copy or export the file again"
        )
    size = page.parent.filehandle.size
    end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    if end > size:
        raise ImageError(
            f"{path}: the file is cut off, it ends at byte {size} but its pixels at {end}; copy or export it again"
        )


def _page_chunk(page: Any) -> tuple[int, int]:
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _array(level: Any) -> tuple[PixelArray, tuple[int, int]]:
    """Pixels of a level and the size of a stored chunk."""
    page = level.keyframe
    alone = len(level.pages) == 1 and level.transform is None and tuple(level.shape) == tuple(page.shape)
    if alone and page.axes in ("YX", "YXS", "SYX"):
        view = PageArray(page)
        return view, view.chunk
    # With more than one worker the store decodes outside zarr's event loop.
    array = zarr.open_array(store=level.aszarr(level=0, maxworkers=2), mode="r")
    return array, (array.chunks[level.axes.index("Y")], array.chunks[level.axes.index("X")])


def _grouped(chunk: tuple[int, int], level: Any) -> tuple[int, int]:
    """Several stored chunks as one where they are so small that handling would cost more than decoding."""
    height, width = _size(level)
    step_y, step_x = min(chunk[0], height), min(chunk[1], width)
    while step_y * step_x < GROUP_PIXELS and (step_y < height or step_x < width):
        if step_x >= width or (step_y < height and step_y <= step_x):
            step_y *= 2
        else:
            step_x *= 2
    while step_y < min(GROUP_ROWS, height) and 2 * step_y * step_x <= GROUP_LIMIT:
        step_y *= 2
    return step_y, step_x


def _axes(series: Any) -> tuple[str, tuple[str, ...]]:
    """Axes of a series in the letters of `Source`, and notes on planes that are left out."""
    samples = "S" if "S" in series.axes else "C"
    letters = {"Y": "y", "X": "x", samples: "c"}
    axes = "".join(letters.get(axis, "0") for axis in series.axes)
    notes = tuple(
        f"first of {size} planes along axis {axis} used"
        for axis, size in zip(series.axes, series.shape, strict=True)
        if axis not in letters and size > 1
    )
    return axes, notes


@dataclass(frozen=True)
class _Colours:
    alpha: Alpha = "none"
    palette: NDArray[np.uint8] | None = None
    ycbcr: bool = False
    notes: tuple[str, ...] = ()


def _colours(path: Path, page: Any, samples: int) -> _Colours:
    """Find what the samples of a pixel mean."""
    photometric = int(page.photometric)
    if photometric == 3 and page.colormap is not None:
        colours = np.asarray(page.colormap).T
        scale = 257 if colours.max() > 255 else 1
        return _Colours(palette=(colours // scale).astype(np.uint8), notes=("palette applied",))
    if photometric in (5, 8, 9, 10):
        raise ImageError(
            f"{path}: expected grey, RGB, palette or YCbCr pixels, got {page.photometric.name}; convert it to RGB"
        )
    last = int(page.extrasamples[-1]) if page.extrasamples else 0
    alpha: Alpha = "none"
    if last in (1, 2) and samples in (2, 4) and samples == page.samplesperpixel:
        alpha = "premultiplied" if last == 1 else "straight"
    # Aperio's first JPEG 2000 kind holds YCbCr even where the photometric tag says RGB.
    codec = int(page.compression)
    ycbcr = samples == 3 and (codec == _APERIO_YCBCR or (photometric == 6 and codec not in _RGB_CODECS))
    orientation = page.tags.valueof(274, default=1)
    turned = (f"orientation tag {orientation} not applied",) if orientation not in (0, 1) else ()
    return _Colours(alpha, None, ycbcr, channel_notes(samples, alpha) + turned)


def _value_range(
    arrays: tuple[PixelArray, ...], axes: str, chunk: tuple[int, int], page: Any
) -> tuple[tuple[float, float], tuple[str, ...]]:
    """As `choose_range`, unless the file says how many bits or which values are used."""
    dtype = arrays[0].dtype
    bits = page.bitspersample
    if isinstance(bits, int) and dtype.kind == "u" and bits < 8 * dtype.itemsize:
        return (0.0, 2.0**bits - 1), (f"range 0..{2**bits - 1} scaled to 0..255",)
    if dtype.kind == "u" and dtype.itemsize > 1:
        high = np.max(page.tags.valueof(281, default=0))
        low = np.min(page.tags.valueof(280, default=0))
        if 0 <= low < high < sample_range(dtype)[1]:
            return (float(low), float(high)), (f"range {low}..{high} scaled to 0..255, as the file says",)
    tag = page.tags.valueof(42113, default=None)
    return choose_range(arrays, axes, chunk, page.nodata if tag is not None else None)


class _Resolution(NamedTuple):
    mpp: tuple[float, float] | None
    notes: tuple[str, ...] = ()


def _mpp(file: Any, page: Any) -> _Resolution:
    """Microns per pixel (y, x) from the vendor's text, OME-XML, or the resolution tags."""
    found = re.search(r"\bMPP\s*=\s*([0-9.eE+-]+)", page.description or "") if file.is_svs else None
    if found:
        return _Resolution((float(found[1]), float(found[1])))
    if file.is_ome:
        return _Resolution(_ome_mpp(file.ome_metadata or ""))
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof(296, default=1)))
    x, y = (_ratio(page.tags.valueof(tag, default=None)) for tag in (282, 283))
    if unit is None or not x or not y:
        return _Resolution(None)
    if unit == 25400.0 and x == y and x in _PRINTER_DPI:
        return _Resolution(None, (f"resolution of {x:g} dots per inch ignored: it is a printer's",))
    return _Resolution((unit / y, unit / x))


def _ratio(value: Any) -> float:
    """Return a rational tag as a number; 0 when it is missing or broken."""
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return 0.0
    return float(value[0]) / float(value[1])


def _ome_mpp(xml: str) -> tuple[float, float] | None:
    """Physical pixel size of the first image in OME-XML."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    if pixels is None:
        return None
    sizes = []
    for axis in "YX":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', pixels[0])
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', pixels[0])
        factor = _MICRONS.get(unit[1]) if unit else 1.0
        if size is None or factor is None:
            return None
        sizes.append(float(size[1]) * factor)
    return sizes[0], sizes[1]
