"""Lazy images: any box of any level as 8-bit pixels, whatever the format."""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import Box, ceil_div, plausible_mpp
from .lazy_array import chunk_array
from .mending import Damage, chunk_by_chunk, mended, read_error
from .scaling import clamp, mask_from_finer, read_from_finer, read_scaled, repeat_edges
from .source import Source
from .stats import ReadStats
from .storage.chunk_cache import ChunkCache
from .storage.remote import is_url, name_of
from .value_range import ValueRange

T = TypeVar("T", bound=np.generic)

CACHE_BYTES = 256 * 2**20
_CACHE = ChunkCache(CACHE_BYTES)
_OWNERS = itertools.count()
if hasattr(os, "register_at_fork"):  # else a child would wait for chunks that its parent's threads were loading
    os.register_at_fork(after_in_child=_CACHE.clear)


class Image:
    """A lazy, multi-resolution image; made by `open_image`, safe to read from several threads.

    Decoded chunks are kept in one cache that all images of a process share.

    Parameters
    ----------
    source : Source
        Stored pixels.
    location : str, optional
        Path or address, if there is one.
    mpp : tuple of float, optional
        Microns per pixel (y, x) that replace the file's own.
    stats : ReadStats, optional
        Counters to which the source's storage adds its reads.
    reopen : callable, optional
        Opens the same image in another process.

    Attributes
    ----------
    name : str
        File name without its last suffix, or "array".
    path : Path or None
        The file, if it is on this machine.
    location : str or None
        Path, or address without passwords and signatures (see `redact`).
    format : str
        Short name of the format, such as "svs", "tiff", "ome-zarr" or "array".
    levels : tuple of Level
        Stored resolutions, full resolution first.
    channels : int
        1 (grey) or 3 (RGB), after conversion.
    mpp : tuple of float or None
        Microns per full-resolution pixel (y, x); None when missing or implausible.
    pixel_size : PixelSize or None
        Size of a full-resolution pixel in the file's own unit, plausible or not.
    geo : GeoReference or None
        Georeference stated by the file.
    picked : tuple of int or None
        Stored channels chosen on opening; None for the default.
    used : tuple of int
        Stored channels that are read; for an image that `convert` wrote, those of the original.
    masked : bool
        Whether some pixels may be without data (not stored, transparent, or no-data): see `read_mask`.
    stats : ReadStats
        Cost of reading so far.
    damage : Damage
        Unreadable chunks of reduced levels, computed from finer levels so far.
    """

    def __init__(
        self,
        source: Source,
        location: str | None = None,
        mpp: tuple[float, float] | None = None,
        *,
        stats: ReadStats | None = None,
        reopen: Callable[[], Image] | None = None,
    ) -> None:
        self.location = location
        self.path = None if location is None or is_url(location) else Path(location)
        self.name = "array" if location is None else name_of(location)
        self.format = source.format
        self.levels = source.levels
        self.channels = source.channels
        self.picked, self.used = source.picked, source.original_channels
        self.masked = source.masked
        self.pixel_size, self.geo = source.pixel_size, source.geo
        self.mpp, self._mpp_notes = (mpp, ()) if mpp is not None else plausible_mpp(source.pixel_size)
        self.stats, self.damage = ReadStats() if stats is None else stats, Damage()
        self._source = source
        self._reopen = reopen
        self._cache = _CACHE
        self._owner = next(_OWNERS)
        self._closed = False
        weakref.finalize(self, _CACHE.forget, self._owner)

    @property
    def height(self) -> int:
        """Height at full resolution, in pixels."""
        return self.levels[0].height

    @property
    def width(self) -> int:
        """Width at full resolution, in pixels."""
        return self.levels[0].width

    @property
    def scale(self) -> ValueRange:
        """Stored values that map to 0 and 255, and their origin; for an image that `convert` wrote, the original's.

        If neither the file nor the caller states them, some pixels are read on first use to measure them.

        Raises
        ------
        ImageError
            If the file can no longer be read, or the image was closed before the first use.
        """
        if self._closed and "scale" not in vars(self._source):
            raise self._closed_error()
        try:
            return self._source.scale if self._source.origin is None else self._source.origin.scale
        except OSError as error:
            why = error.strerror or error
            raise ImageError(f"{self._label}: cannot be read ({why}); check the disk or the network") from error

    @property
    def value_range(self) -> tuple[float, float]:
        """Stored values that map to 0 and 255; see `scale`."""
        return self.scale.ends

    @property
    def notes(self) -> tuple[str, ...]:
        """Choices made on opening that change what the pixels mean, including `scale`."""
        _ = self.scale  # raises if it cannot be measured
        return self._source.notes + self._source.channel_notes + self._source.range_notes + self._mpp_notes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels at full resolution."""
        return self.height, self.width, self.channels

    def __repr__(self) -> str:
        return f"<Image {self.name!r} {self.format} {self.shape}, {len(self.levels)} level(s)>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the cache; reading afterwards is an error. May be called again."""
        if not self._closed:
            self._closed = True
            self._cache.forget(self._owner)
            self._source.close()

    def __reduce__(self) -> tuple[Callable[[], Image], tuple[()]]:
        if self._reopen is None:
            raise TypeError(f"{self._label}: this image cannot be sent to another process; open it there")
        return self._reopen, ()

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
            A new array.

        Raises
        ------
        ImageError
            If a chunk cannot be decoded (nor, in a reduced level, computed from finer ones), or the image is closed.
        """
        inner = clamp(box, *self._size(level))
        if self._source.in_memory:
            return repeat_edges(self._decode(level, inner).copy(), inner, box)
        return repeat_edges(self._assemble(level, inner), inner, box)

    def read_mask(self, box: Box, level: int = 0) -> NDArray[np.bool_]:
        """Read which pixels of a box of one level have data.

        Parameters
        ----------
        box : Box
            In pixels of the level; may reach outside the image, where there is no data.
        level : int
            Index into `levels`.

        Returns
        -------
        (h, w) bool array
            False for pixels that are not stored, are fully transparent, or in every channel have the file's no-data
            value or are not finite.

        Raises
        ------
        ImageError
            If a chunk cannot be decoded, or the image is closed.
        """
        height, width = self._size(level)
        mask = np.zeros((box.height, box.width), dtype=np.bool_)
        inner = box.intersect(Box(0, 0, height, width))
        if inner is None:
            return mask
        place = inner.shift(-box.y0, -box.x0).slices
        mask[place] = True
        if self.masked:
            mask[place] = self._mask(level, inner)
        return mask

    def array(self, level: int = 0) -> zarr.Array[Any]:
        """Wrap a level as a lazy `zarr.Array`, for Dask and other libraries that slice.

        Parameters
        ----------
        level : int
            Index into `levels`.

        Returns
        -------
        (h, w, channels) uint8 zarr.Array
            The pixels that `read` gives, in the level's own chunks; read-only, for as long as the image is open.

        Raises
        ------
        ImageError
            If there is no such level, or the image is closed.
        """
        height, width = self._size(level)
        step_y, step_x = self.levels[level].chunk

        def chunk(position: tuple[int, ...]) -> bytes:
            y, x = position[0] * step_y, position[1] * step_x
            return self.read(Box(y, x, y + step_y, x + step_x), level).tobytes()

        return chunk_array((height, width, self.channels), (step_y, step_x, self.channels), "yxc", chunk)

    def read_scaled(self, box: Box, downsample: int) -> NDArray[np.uint8]:
        """Read a box of the image reduced `downsample` times by exact area averaging.

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
        return self.location if self.location is not None else self.name

    def _size(self, level: int) -> tuple[int, int]:
        """Height and width of a level that can be read."""
        if not 0 <= level < len(self.levels):
            raise ImageError(f"{self._label}: there is no level {level}; it has levels 0 to {len(self.levels) - 1}")
        if self._closed:
            raise self._closed_error()
        return self.levels[level].height, self.levels[level].width

    def _assemble(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Copy a box that lies inside the level from whole decoded chunks into a new array."""
        step_y, step_x = self.levels[level].chunk
        rows = range(box.y0 // step_y, ceil_div(box.y1, step_y))
        columns = range(box.x0 // step_x, ceil_div(box.x1, step_x))
        keep = self._worth_keeping(level, box)
        if not keep and len(rows) == len(columns) == 1:
            pixels = self._chunk(level, rows[0], columns[0], keep=False)
            return pixels if pixels.flags.writeable else pixels.copy()
        out = np.empty((box.height, box.width, self.channels), dtype=np.uint8)
        # Integers take half the time of `Box`, which matters for thousands of small windows.
        for row, column in itertools.product(rows, columns):
            y, x = row * step_y, column * step_x
            top, bottom = max(y, box.y0), min(y + step_y, box.y1)
            left, right = max(x, box.x0), min(x + step_x, box.x1)
            part = self._chunk(level, row, column, keep=keep)[top - y : bottom - y, left - x : right - x]
            out[top - box.y0 : bottom - box.y0, left - box.x0 : right - box.x0] = part
        return out

    def _worth_keeping(self, level: int, box: Box) -> bool:
        """Whether to cache the chunks under a box: they are used in part, or the level is small.

        Chunks of a large level that are used whole are seldom needed again, and caching them costs new memory.
        """
        this = self.levels[level]
        step_y, step_x = this.chunk
        return (
            this.height * this.width * self.channels <= CACHE_BYTES // 4
            or box.y0 % step_y != 0
            or box.x0 % step_x != 0
            or (box.y1 % step_y != 0 and box.y1 != this.height)
            or (box.x1 % step_x != 0 and box.x1 != this.width)
        )

    def _chunk(self, level: int, row: int, column: int, *, keep: bool) -> NDArray[np.uint8]:
        """One chunk, clipped to its level, from the cache if it is there."""
        key = (self._owner, level, row, column)
        if keep:
            return self._cache.get(key, lambda: self._decode(level, self._chunk_box(level, row, column)))
        kept = self._cache.peek(key)
        return self._decode(level, self._chunk_box(level, row, column)) if kept is None else kept

    def _chunk_box(self, level: int, row: int, column: int) -> Box:
        this = self.levels[level]
        y, x = row * this.chunk[0], column * this.chunk[1]
        return Box(y, x, min(y + this.chunk[0], this.height), min(x + this.chunk[1], this.width))

    def _decode(self, level: int, box: Box) -> NDArray[np.uint8]:
        begin = time.perf_counter()
        pixels = self._mended(level, box, self._source.read, read_from_finer)
        if not self._source.in_memory and isinstance(pixels.base, np.ndarray) and pixels.base.nbytes > pixels.nbytes:
            pixels = pixels.copy()  # a view would keep the whole decoded chunk, such as other planes, in memory
        self.stats.add(pixels.nbytes, begin)
        return pixels

    def _mask(self, level: int, box: Box) -> NDArray[np.bool_]:
        """Mask of a box that lies inside the level; chunk by chunk if one may have to be mended."""
        if level == 0:
            return self._reading(level, box, self._source.read_mask)
        return chunk_by_chunk(
            self.levels[level], box, lambda part: self._mended(level, part, self._source.read_mask, mask_from_finer)
        )

    def _mended(
        self,
        level: int,
        box: Box,
        read: Callable[[int, Box], NDArray[T]],
        from_finer: Callable[[Image, int, Box], NDArray[T]],
    ) -> NDArray[T]:
        """Read a box; parts that a reduced level lacks are computed from the next finer level."""
        return mended(
            self._source,
            self.levels,
            level,
            box,
            lambda part: self._reading(level, part, read),
            lambda part: from_finer(self, level, part),
            remote=self.path is None,
            damage=self.damage,
        )

    def _reading(self, level: int, box: Box, read: Callable[[int, Box], NDArray[T]]) -> NDArray[T]:
        """Turn errors of decoders into an `ImageError` that names the chunk."""
        try:
            return read(level, box)
        except MemoryError:
            raise
        except Exception as error:
            if self._closed:  # meanwhile, by another thread
                raise self._closed_error() from None
            raise read_error(f"{self._label}: level {level}", box, error) from error

    def _closed_error(self) -> ImageError:
        return ImageError(f"{self._label}: the image is closed; open it again to read")
