"""Slides other than plain TIFF: MIRAX, DICOM and Hamamatsu VMS and VMU, read with OpenSlide, which is an extra."""

from __future__ import annotations

import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, install
from ..geometry import PixelSize, ceil_div
from ..samples import check_size
from ..source import Source

DEFAULT_CHUNK = 512
"""Side of a chunk in level pixels if the slide does not state its tiles."""

LEAST_CHUNK = 128
"""Least side of a chunk in level pixels: smaller tiles, such as Hamamatsu's strips of 8 rows, are read together."""

_DICOM = b"DICM"
_DICOM_OFFSET = 128
_HAMAMATSU = (b"[Virtual Microscope Specimen]", b"[Uncompressed Virtual Microscope Specimen]")
_JPEG = b"\xff\xd8\xff"
_INDEX = "Slidedat.ini"


def is_slide(path: Path, head: bytes) -> bool:
    """Whether a file is the main file of a slide that OpenSlide has to read.

    Content decides, except for MIRAX, whose main file is an ordinary JPEG preview and is recognised by its name.

    Parameters
    ----------
    path : Path
    head : bytes
        Its first bytes, 256 or more.
    """
    if head[_DICOM_OFFSET:].startswith(_DICOM):
        return True
    if head.startswith(_JPEG):
        return path.suffix.lower() == ".mrxs"
    return any(line.strip() in _HAMAMATSU for line in head.splitlines())


def open_slide(path: Path) -> Source:
    """Open a slide with OpenSlide.

    Pixels outside the scanned area are transparent. OpenSlide positions reads in whole full-resolution pixels: in a
    level whose downsample is not an integer, a chunk is shifted by up to half of one (at the far edges by up to one)
    and interpolated. Levels of integer downsamples are read as stored.

    Parameters
    ----------
    path : Path
        Main file of the slide, beside its other files.

    Returns
    -------
    Source
        `format` is OpenSlide's name of the vendor, such as "mirax", "dicom" or "hamamatsu".

    Raises
    ------
    ImageError
        If OpenSlide is not installed, does not know the file, or finds it damaged.
    """
    library = _library(path)
    if path.suffix.lower() == ".mrxs" and not (path.with_suffix("") / _INDEX).is_file():
        raise ImageError(f"{path}: expected {_INDEX} in the folder {path.stem} beside it; copy that folder too")
    _check_files(path)
    try:
        slide = _Slide(path, library)
        levels, chunks = _levels(slide)
        properties = dict(slide.handle.properties)
    except library.OpenSlideUnsupportedFormatError as error:
        raise ImageError(
            f"{path}: expected a whole slide in MRXS, DICOM, VMS or VMU, but OpenSlide does not know it; "
            "copy it again with all files that belong to it, or convert it to tiled TIFF"
        ) from error
    except library.OpenSlideError as error:
        raise ImageError(
            f"{path}: OpenSlide cannot open it ({error}); copy it again with all files that belong to it"
        ) from error
    for level, chunk in zip(levels, chunks, strict=True):
        check_size(str(path), level.height, level.width, chunk)
    return Source(
        arrays=levels,
        chunks=chunks,
        axes="yxc",
        format=properties["openslide.vendor"],
        alpha="straight",
        pixel_size=_pixel_size(properties),
        close=slide.close,
    )


def _library(path: Path) -> ModuleType:
    try:
        import openslide  # noqa: PLC0415 (an extra)
    except (ImportError, OSError) as error:
        raise ImageError(f"{path}: OpenSlide is needed to read it ({error}); {install('openslide')}") from error
    return openslide


def _check_files(path: Path) -> None:
    """Refuse pipes and devices among the files that OpenSlide may open: it would wait forever for a pipe's writer."""
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path.parent
    for each in (path, *folder.iterdir()):
        try:
            mode = each.stat().st_mode
        except OSError:  # such as a broken link; OpenSlide raises if it needs the file
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ImageError(f"{path}: {each} is a pipe or device, expected the files of a slide; move it elsewhere")


class _Slide:
    """A slide that is reopened after errors: after one, OpenSlide refuses all further reads by the same handle."""

    def __init__(self, path: Path, library: ModuleType) -> None:
        self._path = path
        self._library = library
        self.handle = library.OpenSlide(path)

    def read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `OpenSlide.read_region`; (h, w, 4) with straight opacity."""
        handle = self.handle
        if handle is None:
            raise ValueError("the slide is closed")
        try:
            return np.asarray(handle.read_region(location, level, size))
        except self._library.OpenSlideError:
            # Another thread's read may have caused the error; a fresh handle shows whether this read fails, too.
            fresh = self._library.OpenSlide(self._path)
            pixels: NDArray[np.uint8] = np.asarray(fresh.read_region(location, level, size))
            if self.handle is handle:
                self.handle = fresh
            return pixels

    def close(self) -> None:
        """Release the handle, which is closed when the last read that uses it has ended."""
        self.handle = None


@dataclass(frozen=True)
class _SlideLevel:
    """One level as an array (y, x, c) of red, green, blue and opacity."""

    slide: _Slide
    index: int
    height: int
    width: int
    downsample: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.height, self.width, 4

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[np.uint8]:
        y0, y1, _ = key[0].indices(self.height)
        x0, x1, _ = key[1].indices(self.width)
        full_y, full_x = self._full(y0, y1, self.height), self._full(x0, x1, self.width)
        return self.slide.read((full_x, full_y), self.index, (x1 - x0, y1 - y0))[..., key[2]]

    def _full(self, begin: int, end: int, length: int) -> int:
        """Full-resolution position of a level pixel, such that no read reaches beyond the level's far edge."""
        place = begin * self.downsample
        return math.floor(place) if end == length else round(place)


def _levels(slide: _Slide) -> tuple[tuple[_SlideLevel, ...], tuple[tuple[int, int], ...]]:
    """Levels, and the height and width of their chunks."""
    handle = slide.handle
    levels = tuple(
        _SlideLevel(slide, index, height, width, downsample)
        for index, ((width, height), downsample) in enumerate(
            zip(handle.level_dimensions, handle.level_downsamples, strict=True)
        )
    )
    properties = handle.properties
    chunks = tuple(
        (
            _chunk_side(properties.get(f"openslide.level[{level.index}].tile-height")),
            _chunk_side(properties.get(f"openslide.level[{level.index}].tile-width")),
        )
        for level in levels
    )
    return levels, chunks


def _chunk_side(tile: str | None) -> int:
    if tile is None:
        return DEFAULT_CHUNK
    side = int(tile)
    return side * ceil_div(LEAST_CHUNK, side)


def _pixel_size(properties: Mapping[str, str]) -> PixelSize | None:
    try:
        return PixelSize(float(properties["openslide.mpp-y"]), float(properties["openslide.mpp-x"]), "micrometer")
    except (KeyError, ValueError):
        return None
