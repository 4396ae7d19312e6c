"""What a format module hands over: stored levels, and how their samples become 8-bit grey or RGB."""

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
    choose_range,
    interleaved,
    on_white,
    sample_range,
    sparse,
    to_uint8,
    ycbcr_to_rgb,
)

_NEAR = 8
"""Channels that lie within so many are read at once, the others between them too."""


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
        Height and width of the unit that is decoded, a level each.
    axes : str
        One letter an axis: y, x, c (samples of a pixel), or 0 (the first index is taken).
    format : str
        Short name of the file format.
    value_range : tuple of float
        Stored values that map to 0 and 255; reversed where low values are white.
    range_notes : tuple of str
        Where that range comes from, if it is not plain.
    alpha : str
        Whether the last sample (of 2 or 4) is opacity, and how colour relates to it.
    palette : (n, 3) uint8 array, optional
        Colours of indexed pixels.
    ycbcr : bool
        Whether the three samples are full-range YCbCr.
    nodata : float, optional
        Stored value of pixels that were not measured. In real samples, what is not finite was not either.
    picked : tuple of int, optional
        The samples, one or three, that are read as grey or colour; by default the first.
    pixel_size : PixelSize, optional
        As the file has it, plausible or not.
    geo : GeoReference, optional
        Where on a planet the image lies.
    notes : tuple of str
        What else the reader of results should know.
    in_memory : bool
        Whether slicing costs no decoding.
    close : callable
        Releases the file.
    """

    arrays: tuple[PixelArray, ...]
    chunks: tuple[tuple[int, int], ...]
    axes: str
    format: str
    value_range: tuple[float, float]
    range_notes: tuple[str, ...] = ()
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
        """Say which samples of a pixel are used, where not all are."""
        white = ("alpha composited on white",) if self.alpha != "none" else ()
        if self.picked is not None:
            return (f"channels {', '.join(map(str, self.picked))} of {self.samples} used", *white)
        if white or self.samples in (1, 3):
            return white
        return (f"first {'' if self.samples == 2 else '3 '}of {self.samples} channels used",)

    def pick(self, channels: tuple[int, ...], label: str) -> Source:
        """Read other samples of a pixel than the first, as grey (one) or colour (three).

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
            raise ImageError(f"{label}: its samples are no channels to choose from; leave 'channels' out")
        chosen = dataclasses.replace(self, picked=channels)
        if self.arrays[0].dtype.kind != "f":
            return chosen
        value_range, notes = choose_range(self.arrays, self.axes, self.chunks[-1], self.nodata, channels)
        return dataclasses.replace(chosen, value_range=value_range, range_notes=notes)

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

        They may be read-only, or (of a source in memory) the stored pixels themselves. What is not stored is white,
        unless it is to have the file's no-data value.
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
        """Where a box inside a level has data, (h, w): stored, not transparent, not no-data in every sample."""
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
        """Where the file stores nothing in a box inside a level, (h, w); None where it stores everything."""
        array = sparse(self.arrays[level])
        return None if array is None or not (absent := array.absent(box)).any() else absent

    def is_blank(self, level: int, box: Box) -> bool:
        """Whether the file stores nothing at all in a box inside a level."""
        array = sparse(self.arrays[level])
        return array is not None and array.is_blank(box)

    def _raw(self, level: int, box: Box) -> NDArray[Any]:
        """Stored samples (h, w, c): those that are read, opacity last."""
        wanted = self.picked if self.picked is not None else tuple(range(self.colours))
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
        return to_uint8(raw, self.value_range)

    @cached_property
    def _table(self) -> NDArray[np.uint8] | None:
        """Outcome for every value of a 16-bit sample: looking up is several times faster than arithmetic."""
        dtype = self.arrays[0].dtype
        if dtype.kind not in "ui" or dtype.itemsize != 2 or not dtype.isnative:
            return None
        return to_uint8(np.arange(2**16, dtype=np.uint16).view(dtype), self.value_range)
