"""Sources: stored levels that a format module returns, and their conversion to 8-bit grey or RGB."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import Box, GeoReference, Level, PixelSize, downsamples
from .samples import (
    Alpha,
    PixelArray,
    check_samples,
    interleaved,
    on_white,
    sample_range,
    sparse,
    to_uint8,
    ycbcr_to_rgb,
)
from .value_range import Origin, ValueRange, is_plain, measured_range

MEMORY_CHUNK = 512
"""Side in pixels of the nominal chunks by which reads of arrays in memory are ordered."""

_NEAR = 8
"""Chosen channels that span at most this many are read at once, together with those between them."""


def _nothing() -> None:
    """Close a source that holds no file."""


@dataclass(frozen=True)
class Source:
    """Stored pixels and what is known about them.

    Parameters
    ----------
    arrays : tuple of PixelArray
        Levels, full resolution first, all with the same axes.
    chunks : tuple of (int, int)
        Height and width of the unit that is decoded, for each level.
    axes : str
        One letter per axis: y, x, c (samples of a pixel), or 0 (the first index is taken).
    format : str
        Short name of the file format.
    stated : tuple of (float, float) or None
        Stored values that map to 0 and 255 according to the file: for each sample, or one pair for all. If it states
        none, they are measured from pixels.
    inverted : bool
        Whether low values are white.
    fixed : ValueRange, optional
        Value range, if it is known before samples are picked.
    given : (float, float), optional
        Value range that the caller asked for; not used for 8 bits and fewer.
    origin : Origin, optional
        Original samples, if this package wrote the image's 8 bits from them.
    alpha : str
        Whether the last sample (of 2 or 4) is opacity, and whether colour is premultiplied by it.
    palette : (n, 3) uint8 array, optional
        Colours of indexed pixels.
    ycbcr : bool
        Whether the three samples are full-range YCbCr.
    nodata : float, optional
        Stored value of pixels without data. Real samples that are not finite have none either.
    picked : tuple of int, optional
        The samples, one or three, that are read as grey or colour; by default the first.
    pixel_size : PixelSize, optional
        Size stated by the file, plausible or not.
    geo : GeoReference, optional
        Georeference stated by the file.
    notes : tuple of str
        Further remarks for the reader of results.
    in_memory : bool
        Whether slicing costs no decoding.
    close : callable
        Releases the file.
    """

    arrays: tuple[PixelArray, ...]
    chunks: tuple[tuple[int, int], ...]
    axes: str
    format: str
    stated: tuple[tuple[float, float] | None, ...] = ()
    inverted: bool = False
    fixed: ValueRange | None = None
    given: tuple[float, float] | None = None
    origin: Origin | None = None
    alpha: Alpha = "none"
    palette: NDArray[np.uint8] | None = None
    ycbcr: bool = False
    nodata: float | None = None
    picked: tuple[int, ...] | None = None
    pixel_size: PixelSize | None = None
    geo: GeoReference | None = None
    notes: tuple[str, ...] = ()
    in_memory: bool = False
    close: Callable[[], None] = _nothing

    @property
    def samples(self) -> int:
        """Stored samples of a pixel."""
        return self.arrays[0].shape[self.axes.index("c")] if "c" in self.axes else 1

    @property
    def colours(self) -> int:
        """Samples of a pixel that are read as grey or colour: 1 or 3."""
        if self.picked is not None:
            return len(self.picked)
        return 3 if self.samples - (self.alpha != "none") >= 3 else 1

    @property
    def channels(self) -> int:
        """Channels after conversion: 1 or 3."""
        return 3 if self.palette is not None else self.colours

    @property
    def masked(self) -> bool:
        """Whether some pixels may be without data."""
        return (
            self.alpha != "none"
            or self.nodata is not None
            or self.arrays[0].dtype.kind == "f"
            or sparse(self.arrays[0]) is not None
        )

    @property
    def channel_notes(self) -> tuple[str, ...]:
        """Notes on the samples of a pixel that are used, if not all are."""
        white = ("alpha composited on white",) if self.alpha != "none" else ()
        if self.picked is not None:
            return (f"channels {', '.join(map(str, self.picked))} of {self.samples} used", *white)
        if white or self.samples in (1, 3):
            return white
        return (f"first {'' if self.samples == 2 else '3 '}of {self.samples} channels used",)

    def pick(self, channels: tuple[int, ...], label: str) -> Source:
        """Copy that reads the given samples of a pixel, as grey (one) or colour (three).

        Raises
        ------
        ImageError
            If there are no such samples, or samples have a fixed meaning.
        """
        count = self.samples - (self.alpha != "none")
        if len(channels) not in (1, 3) or not all(0 <= channel < count for channel in channels):
            raise ImageError(
                f"{label}: expected one or three of the channels 0 to {count - 1}, got {', '.join(map(str, channels))}"
            )
        if self.palette is not None or self.ycbcr:
            raise ImageError(f"{label}: its samples are indices or YCbCr, not channels to choose; leave 'channels' out")
        return dataclasses.replace(self, picked=channels)

    @cached_property
    def scale(self) -> ValueRange:
        """Stored values that map to 0 and 255. If they have to be measured, some pixels are read, once."""
        found = self._scale()
        return dataclasses.replace(found, low=found.high, high=found.low) if self.inverted else found

    def _scale(self) -> ValueRange:
        dtype = self.arrays[0].dtype
        if self.palette is not None:
            return ValueRange(0.0, 255.0, "type", "uint8")
        if self.given is not None and not (is_plain(dtype) or self.ycbcr):
            return ValueRange(*self.given, "given", dtype.name)
        if self.fixed is not None:
            return self.fixed
        if ranges := self._stated:
            return ValueRange(min(low for low, _ in ranges), max(high for _, high in ranges), "file", dtype.name)
        if is_plain(dtype) or self.ycbcr or self.alpha == "premultiplied":  # its range is that of its opacity
            return ValueRange(*sample_range(dtype), "type", dtype.name)
        sizes = [self.size(level) for level in range(len(self.arrays))]
        return measured_range(sizes, self.chunks, self._values, dtype)

    @property
    def _stated(self) -> set[tuple[float, float]]:
        """Ranges that the file states for the samples that are read; empty unless it states all."""
        used = self.stated if len(self.stated) < 2 else [self.stated[channel] for channel in self.used]
        ranges = {each for each in used if each is not None}
        return set() if None in used else ranges

    @property
    def range_notes(self) -> tuple[str, ...]:
        """Notes on the origin of the value range, unless it is the type's own."""
        scale = self.scale if self.origin is None else self.origin.scale
        notes = scale.notes
        if self.given is not None and scale.ends not in (self.given, self.given[::-1]):
            notes += (f"value_range {self.given[0]:g}..{self.given[1]:g} is not used: 8 bits are read as they are",)
        if scale.rule == "file" and len(self._stated) > 1:
            notes += ("the file has a range for each channel; one that holds them all is used",)
        return notes

    @property
    def levels(self) -> tuple[Level, ...]:
        """The stored resolutions, full resolution first."""
        full = self.size(0)
        levels = []
        for index, chunk in enumerate(self.chunks):
            height, width = self.size(index)
            factors = downsamples(full, (height, width))
            levels.append(Level(index, height, width, *factors, (min(chunk[0], height), min(chunk[1], width))))
        return tuple(levels)

    def size(self, level: int) -> tuple[int, int]:
        """Height and width of a level in pixels."""
        shape = self.arrays[level].shape
        return shape[self.axes.index("y")], shape[self.axes.index("x")]

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Decode a box that lies inside a level, as contiguous (h, w, channels) 8-bit pixels.

        They may be read-only, or (for a source in memory) the stored pixels themselves. Pixels that are not stored are
        white, or have the no-data value if there is one.
        """
        pixels = self._coloured(self._raw(level, box))
        if self.nodata is not None:
            return pixels
        absent = self.absent(level, box)
        return pixels if absent is None else np.where(absent[..., None], np.uint8(255), pixels)

    def _coloured(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        if self.palette is not None:
            coloured: NDArray[np.uint8] = self.palette[np.minimum(raw[..., 0], len(self.palette) - 1)]
            return coloured
        if self.alpha == "none":
            pixels = self._to_uint8(raw)
            return ycbcr_to_rgb(pixels) if self.ycbcr else pixels
        colour = self._to_uint8(raw[..., : self.colours])
        opacity = to_uint8(raw[..., -1:], sample_range(raw.dtype))
        return on_white(colour, opacity, premultiplied=self.alpha == "premultiplied")

    def read_mask(self, level: int, box: Box) -> NDArray[np.bool_]:
        """Mask (h, w) of a box inside a level: stored, not transparent, not no-data in every sample."""
        raw = self._raw(level, box)
        colour, mask = raw[..., : self.colours], np.ones(raw.shape[:2], dtype=np.bool_)
        if self.alpha != "none":
            mask &= raw[..., -1] > 0
        measured = np.isfinite(colour) if raw.dtype.kind == "f" else np.ones(colour.shape, dtype=np.bool_)
        if self.nodata is not None:
            measured &= colour != self.nodata
        mask &= measured.any(axis=2)
        absent = self.absent(level, box)
        return mask if absent is None else mask & ~absent

    def absent(self, level: int, box: Box) -> NDArray[np.bool_] | None:
        """Mask (h, w) of pixels in a box inside a level that the file does not store; None if it stores all."""
        array = sparse(self.arrays[level])
        return None if array is None or not (absent := array.absent(box)).any() else absent

    def is_blank(self, level: int, box: Box) -> bool:
        """Whether the file stores nothing in a box inside a level."""
        array = sparse(self.arrays[level])
        return array is not None and array.is_blank(box)

    def _values(self, level: int, boxes: list[Box]) -> NDArray[Any]:
        """Stored samples (n,) with data in boxes that lie near each other."""
        first, last = boxes[0], boxes[-1]  # boxes are in row order: the upper left and the lower right one
        span = Box(first.y0, first.x0, last.y1, last.x1)
        colour = self._raw(level, span)[..., : self.colours]
        mask = self.read_mask(level, span) if self.masked else None
        parts = []
        for box in boxes:
            place = slice(box.y0 - span.y0, box.y1 - span.y0), slice(box.x0 - span.x0, box.x1 - span.x0)
            parts.append(colour[place].ravel() if mask is None else colour[place][mask[place]].ravel())
        found = np.concatenate(parts)
        return found if self.nodata is None else found[found != self.nodata]

    @property
    def used(self) -> tuple[int, ...]:
        """Samples that are read as grey or colour."""
        return self.picked if self.picked is not None else tuple(range(self.colours))

    @property
    def original_channels(self) -> tuple[int, ...]:
        """Samples as in `used`; those of the original if this package wrote the image."""
        before = None if self.origin is None else self.origin.channels
        return self.used if before is None else tuple(before[channel] for channel in self.used)

    def _raw(self, level: int, box: Box) -> NDArray[Any]:
        """Stored samples (h, w, c): those that are read, opacity last."""
        wanted = self.used
        if self.alpha != "none":
            wanted = (*wanted, self.samples - 1)
        low, high = min(wanted), max(wanted) + 1
        if high - low >= _NEAR and self.axes.index("c") < self.axes.index("y"):
            return np.concatenate([self._span(level, box, channel, channel + 1) for channel in wanted], axis=2)
        span = self._span(level, box, low, high)
        return span if wanted == tuple(range(low, high)) else span[..., [channel - low for channel in wanted]]

    def _span(self, level: int, box: Box, low: int, high: int) -> NDArray[Any]:
        """Neighbouring stored samples (h, w, high - low)."""
        parts = {"y": slice(box.y0, box.y1), "x": slice(box.x0, box.x1), "c": slice(low, high), "0": 0}
        raw = np.asarray(self.arrays[level][tuple(parts[axis] for axis in self.axes)])
        order = self.axes.replace("0", "")
        raw = raw.transpose([order.index(axis) for axis in "yxc" if axis in order])
        return raw if raw.ndim == 3 else raw[..., None]

    def _to_uint8(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        if self._table is not None:
            return interleaved(self._table[raw.view(f"u{raw.dtype.itemsize}")])
        return to_uint8(raw, self.scale.ends)

    @cached_property
    def _table(self) -> NDArray[np.uint8] | None:
        """Look-up table of all 16-bit values: several times faster than arithmetic."""
        dtype = self.arrays[0].dtype
        if dtype.kind not in "ui" or dtype.itemsize != 2 or not dtype.isnative:
            return None
        return to_uint8(np.arange(2**16, dtype=np.uint16).view(dtype), self.scale.ends)


def array_source(array: NDArray[Any], format: str = "array") -> Source:  # noqa: A002
    """Wrap pixels in memory.

    Parameters
    ----------
    array : (h, w) or (h, w, c) array
        Boolean, integer or real. Four channels are red, green, blue and opacity.
    format : str
        Name of the format; decoded files may have two channels, grey and opacity.

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
