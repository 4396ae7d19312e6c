"""TIFF and its variants: BigTIFF, Aperio SVS, NDPI, SCN, QPTIFF, OME-TIFF, GeoTIFF and COG."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import threading
from typing import Any, Self

import tifffile
import zarr

from ..errors import ImageError
from ..geometry import ceil_div
from ..orientation import Turn, UprightArray, upright_geo
from ..samples import PixelArray
from ..source import Source
from ..storage.byte_files import ByteFile, FileStream
from .tiff_check import check_level, is_raw
from .tiff_page import PageArray, RawArray, StackArray
from .tiff_range import stated_by
from .tiff_size import pixel_size_of
from .tiff_tags import colours_of, geo_reference_of, nodata_of

GROUP_PIXELS = 2**14
"""Pixels of a strip or tile below which several are decoded together."""
GROUP_ROWS = 64
GROUP_LIMIT = 2**22
"""Small strips are grouped to `GROUP_ROWS` rows, or fewer that have at most this many pixels."""

_FIRST_PRIVATE_TAG = 32768
_BEYOND_THE_END = re.compile(r"(TiffTag (\d+)).* invalid value offset \d+")
_EXTRA_NAMES = re.compile("label|macro|thumbnail|overview", re.IGNORECASE)
_DIALECTS = ("svs", "ndpi", "scn", "qpi", "ome")
_FORMATS = {"qpi": "qptiff", "ome": "ome-tiff"}


def open_tiff(file: ByteFile, label: str) -> Source:
    """Open the largest image of a TIFF with all its levels.

    Parameters
    ----------
    file : ByteFile
        Closed with the source, or if opening fails.
    label : str
        Path or address, for messages.

    Raises
    ------
    ImageError
        If the file is damaged or cut off, or its content is not an image.
    """
    try:
        with _Complaints() as complaints:
            source = _open(_parse(file, label), file, label)
        if complaints.cut:
            raise ImageError(
                f"{label}: the file is cut off or damaged, its header points beyond its end ({complaints.cut}); "
                "copy or export it again"
            )
        return dataclasses.replace(source, notes=source.notes + complaints.notes)
    except BaseException as error:
        file.close()
        if isinstance(error, ImageError | OSError) or not isinstance(error, Exception):
            raise
        raise ImageError(
            f"{label}: the TIFF directory is damaged or of an unknown kind ({type(error).__name__}: {error}); "
            "copy or export it again"
        ) from error


def _parse(file: ByteFile, label: str) -> Any:
    """Parse the directory; if a series spans several files, only the pages of this one are used."""
    # NDPI has 64-bit offsets. tifffile decides by the suffix, but any TIFF may have that suffix, and NDPI another.
    stream = FileStream(file, label)
    stream.seek(4)
    first = int.from_bytes(stream.read(8) or b"", "little")
    stream.seek(0)
    options = {"is_ndpi": False} if first >= file.size else {}
    tiff = tifffile.TiffFile(stream, _multifile=False, **options)
    if first < file.size and len(tiff.pages) and tiff.pages.first.is_ndpi and not tiff.tiff.is_ndpi:
        stream.seek(0)
        return tifffile.TiffFile(stream, _multifile=False, is_ndpi=True)
    return tiff


def _open(tiff: Any, file: ByteFile, label: str) -> Source:
    if not len(tiff.pages) or not tiff.series:
        raise ImageError(f"{label}: the TIFF has no image in it; copy or export it again")
    base = max(tiff.series, key=_area)
    page = base.keyframe
    levels, notes = _levels(tiff, base)
    for level in levels:
        check_level(label, level, file.size)
    arrays, chunks = zip(*(_array(level, file) for level in levels), strict=True)
    axes, plane_notes = _axes(tiff, base)
    colours = colours_of(page, base.shape[axes.index("c")] if "c" in axes else 1)
    pixel_size, size_notes = pixel_size_of(tiff, page)
    nodata = nodata_of(page)
    source = Source(
        arrays=arrays,
        chunks=tuple(_grouped(chunk, level) for chunk, level in zip(chunks, levels, strict=True)),
        axes=axes,
        format=next((_FORMATS.get(name, name) for name in _DIALECTS if getattr(tiff, f"is_{name}")), "tiff"),
        stated=stated_by(tiff, page, nodata),
        inverted=page.photometric == 0,
        alpha=colours.alpha,
        palette=colours.palette,
        ycbcr=colours.ycbcr,
        nodata=nodata,
        pixel_size=pixel_size,
        geo=geo_reference_of(page),
        notes=notes + plane_notes + colours.notes + size_notes + _missing_notes(arrays, nodata),
        close=file.close,
    )
    return _upright(source, int(page.tags.valueof(274, default=1)))


def _upright(source: Source, orientation: int) -> Source:
    if not 2 <= orientation <= 8:
        return source
    y, x = source.axes.index("y"), source.axes.index("x")
    turn = Turn.of(orientation)
    size = source.pixel_size
    if turn.transpose and size is not None:
        size = dataclasses.replace(size, y=size.x, x=size.y)
    upright = dataclasses.replace(
        source,
        arrays=tuple(UprightArray(array, turn, y, x) for array in source.arrays),
        chunks=tuple(chunk[::-1] if turn.transpose else chunk for chunk in source.chunks),
        pixel_size=size,
    )
    return dataclasses.replace(
        upright,
        geo=None if source.geo is None else upright_geo(source.geo, turn, *upright.size(0)),
        notes=(*source.notes, f"turned upright from orientation {orientation}"),
    )


def _size(series: Any) -> tuple[int, int]:
    return series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]


def _area(series: Any) -> int:
    return math.prod(_size(series)) if "Y" in series.axes and "X" in series.axes else 0


def _levels(file: Any, base: Any) -> tuple[list[Any], tuple[str, ...]]:
    """Levels of the base series: those tifffile finds, and pages that are evidently smaller copies of it."""
    known = list(base.levels)
    found = known[:1] + [level for level in known[1:] if _is_smaller(known[0], level)]
    notes = (f"{len(known) - len(found)} level(s) of another shape or kind ignored",) if len(found) < len(known) else ()
    if len(known) == 1 and not file.is_svs and not file.is_ome:
        found += [other for other in file.series if other is not base and _is_reduction(base, other)]
    found.sort(key=_area, reverse=True)
    sizes = [_size(level) for level in found]
    return [level for i, level in enumerate(found) if sizes[i] not in sizes[:i]], notes


def _is_smaller(base: Any, level: Any) -> bool:
    """Whether a level has the same type of pixels, reduced by one factor, allowing for a pixel lost to rounding."""
    if (level.axes, level.dtype) != (base.axes, base.dtype):
        return False
    (full_height, full_width), (height, width) = _size(base), _size(level)
    if not (0 < height <= full_height and 0 < width <= full_width):
        return False
    slack = 0.01 + 1.0 / min(height, width)
    return abs(full_height / height / (full_width / width) - 1.0) <= slack


def _is_reduction(base: Any, other: Any) -> bool:
    """Whether another series is a reduced copy: its tags say so, or it is tiled and smaller by an integer."""
    page, first = other.keyframe, base.keyframe
    if page.is_mask or _EXTRA_NAMES.search(page.description or ""):
        return False
    if other.shape == base.shape or not _is_smaller(base, other):
        return False
    if page.is_reduced or not (page.is_tiled and first.is_tiled):
        return bool(page.is_reduced)
    factor = round(base.shape[base.axes.index("Y")] / other.shape[base.axes.index("Y")])
    return factor >= 2 and all(
        level in (full // factor, ceil_div(full, factor)) for full, level in zip(_size(base), _size(other), strict=True)
    )


def _array(level: Any, file: ByteFile) -> tuple[PixelArray, tuple[int, int]]:
    """Pixels of a level and the size of a stored chunk."""
    if is_raw(level):
        raw = RawArray(level, file)
        return raw, raw.chunk
    page = level.keyframe
    leading = tuple(level.shape)[: -len(page.shape)]
    # Other series, such as mosaics, are read with tifffile.
    plain = level.transform is None and tuple(level.shape) == leading + tuple(page.shape)
    if plain and page.axes in ("YX", "YXS", "SYX") and len(level.pages) == math.prod(leading):
        if not leading:
            one = PageArray(level.pages[0], file)
            return one, one.chunk
        if all(page is not None for page in level.pages):
            stack = StackArray(level, leading, file)
            return stack, stack.chunk
    # With more than one worker the store decodes outside zarr's event loop.
    array = zarr.open_array(store=level.aszarr(level=0, maxworkers=2), mode="r")
    return array, (array.chunks[level.axes.index("Y")], array.chunks[level.axes.index("X")])


def _missing_notes(arrays: tuple[PixelArray, ...], nodata: float | None) -> tuple[str, ...]:
    """Notes on strips or tiles that are not stored; with a no-data value this is normal and needs none."""
    if nodata is not None:
        return ()
    counts = [array.count_missing() if isinstance(array, PageArray | StackArray) else (0, 1) for array in arrays]
    if counts[0][0]:
        return (f"{counts[0][0]} of {counts[0][1]} strips or tiles are not stored: they have no data, and are white",)
    reduced = sum(missing for missing, _ in counts)
    return (f"{reduced} strips or tiles of reduced levels are not stored: read from finer levels",) if reduced else ()


def _grouped(chunk: tuple[int, int], level: Any) -> tuple[int, int]:
    """Size of a unit of several stored chunks, if they are so small that overhead would exceed decoding."""
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


def _axes(tiff: Any, series: Any) -> tuple[str, tuple[str, ...]]:
    """Axes of a series in the letters of `Source`, and notes on planes that are not used or missing."""
    samples = "S" if "S" in series.axes else "C"
    letters = {"Y": "y", "X": "x", samples: "c"}
    axes = "".join(letters.get(axis, "0") for axis in series.axes)
    notes = tuple(
        f"first of {size} planes along axis {axis} used"
        for axis, size in zip(series.axes, series.shape, strict=True)
        if axis not in letters and size > 1
    )
    if tiff.is_ome and series.kind != "ome":
        notes += ("its OME-XML is damaged or describes further files; only the pages of this file are read",)
    missing = 0 if is_raw(series) else sum(page is None for page in series.pages)
    if missing:
        notes += (f"{missing} of {len(series.pages)} planes are missing and read as no data",)
    return axes, notes


class _Complaints(logging.Handler):
    """Handler that collects what tifffile logs while one file is opened, instead of the terminal.

    Attributes
    ----------
    notes : tuple of str
        Notes on pages that are lost.
    cut : str
        Name of a standard tag whose value lies beyond the file's end, or empty. Vendors' private tags are often wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: tuple[str, ...] = ()
        self.cut = ""
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.thread != self._thread:
            return
        tag = _BEYOND_THE_END.search(text)
        if tag is not None and int(tag[2]) < _FIRST_PRIVATE_TAG:
            self.cut = tag[1]
        if text.startswith("<tifffile.TiffPages"):
            self.notes = (f"the list of pages is damaged, some are lost ({text.partition('> ')[2]})",)

    def __enter__(self) -> Self:
        logging.getLogger("tifffile").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("tifffile").removeHandler(self)
