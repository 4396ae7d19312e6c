"""Open an image lazily and read boxes of it as 8-bit pixels, whatever the format."""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import ome_zarr, raster, tiff
from .cache import ChunkCache
from .errors import ImageError
from .geometry import Box, Level, ceil_div
from .scaling import clamp, read_scaled, repeat_edges
from .source import Source

Mpp: TypeAlias = float | tuple[float, float]

CACHE_BYTES = 256 * 2**20
MPP_RANGE = (0.01, 1000.0)
"""Microns per pixel outside this open interval are placeholders, not measurements."""


@dataclass
class ReadStats:
    """What reading has cost so far; safe to update from several threads.

    Parameters
    ----------
    chunks : int
        Units decoded, repeats included.
    bytes : int
        Decoded bytes, after conversion to 8 bits.
    seconds : float
        Time spent decoding, summed over threads.
    """

    chunks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, chunks: int, size: int, seconds: float) -> None:
        """Count one more read."""
        with self._lock:
            self.chunks += chunks
            self.bytes += size
            self.seconds += seconds

    def snapshot(self) -> ReadStats:
        """Copy the counters as they are now."""
        with self._lock:
            return ReadStats(self.chunks, self.bytes, self.seconds)


class Image:
    """A lazy, multi-resolution image; made by `open_image`, safe to read from several threads.

    Parameters
    ----------
    source : Source
        Stored pixels.
    path : Path, optional
        The file, if there is one.
    mpp : tuple of float, optional
        Microns per pixel (y, x) that replace the file's own.

    Attributes
    ----------
    name : str
        File name without its last suffix, or "array".
    path : Path or None
        The file.
    format : str
        Short name of the format, such as "svs", "tiff", "ome-zarr" or "array".
    levels : tuple of Level
        Stored resolutions, full resolution first.
    channels : int
        1 (grey) or 3 (RGB), after conversion.
    mpp : tuple of float or None
        Microns per full-resolution pixel (y, x); None when missing or implausible.
    value_range : tuple of float
        Stored values that map to 0 and 255.
    notes : tuple of str
        Choices made on opening that change what the pixels mean.
    stats : ReadStats
        Cost of reading so far.
    """

    def __init__(self, source: Source, path: Path | None = None, mpp: tuple[float, float] | None = None) -> None:
        self.path = path
        self.name = path.stem if path is not None else "array"
        self.format = source.format
        self.levels = _levels(source)
        self.channels = source.channels
        self.value_range = source.value_range
        self.mpp, notes = (mpp, ()) if mpp is not None else _plausible(source.mpp)
        self.notes = source.notes + notes
        self.stats = ReadStats()
        self._source = source
        self._cache = ChunkCache(CACHE_BYTES)
        self._closed = False

    @property
    def height(self) -> int:
        """Height at full resolution, in pixels."""
        return self.levels[0].height

    @property
    def width(self) -> int:
        """Width at full resolution, in pixels."""
        return self.levels[0].width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels at full resolution."""
        return self.height, self.width, self.channels

    def __repr__(self) -> str:
        return f"<Image {self.name!r} {self.format} {self.shape}, {len(self.levels)} level(s)>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the cache; reading afterwards is an error. May be called again."""
        if not self._closed:
            self._closed = True
            self._cache.clear()
            self._source.close()

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """Read a box of one level.

        Parameters
        ----------
        box : Box
            In pixels of the level; parts outside the image repeat its nearest edge pixel.
        level : int
            Index into `levels`.

        Returns
        -------
        (h, w, channels) uint8 array
            In memory of its own.

        Raises
        ------
        ImageError
            If a chunk cannot be decoded, or the image is closed.
        """
        if not 0 <= level < len(self.levels):
            raise ImageError(f"{self._label}: there is no level {level}; it has levels 0 to {len(self.levels) - 1}")
        if self._closed:
            raise ImageError(f"{self._label}: the image is closed; open it again to read")
        size = self.levels[level].height, self.levels[level].width
        inner = clamp(box, *size)
        pixels = self._decode(level, inner) if self._source.in_memory else self._assemble(level, inner)
        return repeat_edges(pixels, inner, box)

    def read_scaled(self, box: Box, downsample: int) -> NDArray[np.uint8]:
        """Read a box of the image made `downsample` times smaller by exact area averaging.

        Parameters
        ----------
        box : Box
            In the virtual plane of ``ceil(height / downsample)`` by ``ceil(width / downsample)`` pixels;
            parts outside repeat its nearest edge pixel.
        downsample : int
            Full-resolution pixels per pixel of the virtual plane, at least 1.

        Returns
        -------
        (h, w, channels) uint8 array

        Raises
        ------
        ImageError
            If a chunk cannot be decoded, or the image is closed.
        ValueError
            If `downsample` is below 1.
        """
        return read_scaled(self, box, downsample)

    @property
    def _label(self) -> str:
        return str(self.path) if self.path is not None else self.name

    def _assemble(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Copy a box that lies inside the level from whole decoded chunks."""
        step_y, step_x = self.levels[level].chunk
        out = np.empty((box.height, box.width, self.channels), dtype=np.uint8)
        for row in range(box.y0 // step_y, ceil_div(box.y1, step_y)):
            for column in range(box.x0 // step_x, ceil_div(box.x1, step_x)):
                chunk, pixels = self._chunk(level, row, column)
                part = chunk.intersect(box)
                assert part is not None
                into, of = part.shift(-box.y0, -box.x0), part.shift(-chunk.y0, -chunk.x0)
                out[into.y0 : into.y1, into.x0 : into.x1] = pixels[of.y0 : of.y1, of.x0 : of.x1]
        return out

    def _chunk(self, level: int, row: int, column: int) -> tuple[Box, NDArray[np.uint8]]:
        """One chunk, clipped to its level, from the cache."""
        this = self.levels[level]
        y, x = row * this.chunk[0], column * this.chunk[1]
        box = Box(y, x, min(y + this.chunk[0], this.height), min(x + this.chunk[1], this.width))
        return box, self._cache.get((level, row, column), lambda: self._decode(level, box))

    def _decode(self, level: int, box: Box) -> NDArray[np.uint8]:
        begin = time.perf_counter()
        try:
            pixels = self._source.read(level, box)
        except MemoryError:
            raise
        except Exception as error:
            raise ImageError(
                f"{self._label}: level {level}, chunk at y={box.y0}, x={box.x0} "
                f"({box.height} x {box.width} pixels) cannot be decoded ({type(error).__name__}: {error}); "
                "the file is damaged there, copy or export it again"
            ) from error
        self.stats.add(1, pixels.nbytes, time.perf_counter() - begin)
        return pixels


ImageSource: TypeAlias = str | os.PathLike[str] | NDArray[Any] | Image


def open_image(source: ImageSource, *, mpp: Mpp | None = None) -> Image:
    """Open an image; its content decides the format, not its name.

    Parameters
    ----------
    source : path, array or Image
        A TIFF (tiled or stripped, SVS, OME-TIFF, GeoTIFF), PNG, JPEG, WebP, BMP or JPEG 2000 file; an
        OME-Zarr or Zarr directory; an array (h, w) or (h, w, c), which is not copied; or an `Image`, which is
        returned unchanged.
    mpp : float or (float, float), optional
        Microns per pixel (y, x) to use instead of what the file says.

    Returns
    -------
    Image
        Nothing but its header has been read, except for formats that can only be decoded whole.

    Raises
    ------
    ImageError
        If the file is missing, unreadable, damaged, or of no known format; or the array has no usable pixels.
    TypeError
        If the source is none of these.
    ValueError
        If `mpp` is not positive, or is given for an `Image` that says otherwise.
    """
    given = _given_mpp(mpp)
    if isinstance(source, Image):
        if given is not None and given != source.mpp:
            raise ValueError(f"mpp {given} was given for an open image of mpp {source.mpp}; give it on opening")
        return source
    if isinstance(source, np.ndarray):
        return Image(raster.array_source(source), None, given)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a path, a NumPy array or an open image, got a {type(source).__name__}")
    path = Path(source)
    return Image(_open_path(path), path, given)


def _open_path(path: Path) -> Source:
    try:
        if path.is_dir():
            return ome_zarr.open_zarr(path)
        with path.open("rb") as stream:
            head = stream.read(64)
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file or directory; check the path") from None
    except PermissionError:
        raise ImageError(f"{path}: reading is not permitted; change the file's permissions") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the path and the disk") from error
    if not head:
        raise ImageError(f"{path}: the file is empty; copy or export it again")
    if tiff.is_tiff(head):
        return tiff.open_tiff(path)
    kind = raster.kind_of(head)
    if kind is None:
        raise ImageError(
            f"{path}: expected a TIFF, PNG, JPEG, WebP, BMP or JPEG 2000 file, or a Zarr directory, "
            f"but it begins with {head[:8]!r}; convert it to one of these"
        )
    return raster.open_raster(path, kind)


def _given_mpp(mpp: Mpp | None) -> tuple[float, float] | None:
    if mpp is None:
        return None
    pair = (float(mpp), float(mpp)) if isinstance(mpp, (int, float)) else (float(mpp[0]), float(mpp[1]))
    if not all(math.isfinite(v) and v > 0 for v in pair):
        raise ValueError(f"expected positive microns per pixel (y, x), got {mpp}")
    return pair


def _plausible(
    mpp: tuple[float, float] | None,
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    low, high = MPP_RANGE
    if mpp is None or all(low < value < high for value in mpp):
        return mpp, ()
    return None, (f"implausible microns per pixel ignored: {mpp[0]:g} x {mpp[1]:g}",)


def _levels(source: Source) -> tuple[Level, ...]:
    full_height, full_width = source.size(0)
    levels = []
    for index, chunk in enumerate(source.chunks):
        height, width = source.size(index)
        levels.append(
            Level(
                index,
                height,
                width,
                _downsample(full_height, height),
                _downsample(full_width, width),
                (min(chunk[0], height), min(chunk[1], width)),
            )
        )
    return tuple(levels)


def _downsample(full: int, level: int) -> float:
    """Ratio of sizes; a whole number where the level's size is that quotient rounded either way.

    A level of 8228 pixels made from 32914 by a factor of 4 lost two pixels at its far edge; its pixels still
    cover 4.
    """
    ratio = max(1, round(full / level))
    return float(ratio) if level in (full // ratio, ceil_div(full, ratio)) else full / level
