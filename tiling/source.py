"""What a format module hands over: stored levels, and how their samples become 8-bit grey or RGB."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import Box

Alpha = Literal["none", "straight", "premultiplied"]

MAX_CHUNK_PIXELS = 2**31
"""A stored chunk (or a whole image of a format without chunks) may not promise more pixels than this."""


class PixelArray(Protocol):
    """A stored level: sliceable with numpy slices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a sample."""

    def __getitem__(self, key: Any, /) -> Any: ...


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
    alpha : str
        Whether the last sample (of 2 or 4) is opacity, and how colour relates to it.
    palette : (n, 3) uint8 array, optional
        Colours of indexed pixels.
    ycbcr : bool
        Whether the three samples are full-range YCbCr.
    mpp : tuple of float, optional
        Microns per pixel (y, x) as the file has it, plausible or not.
    notes : tuple of str
        What the reader of results should know.
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
    alpha: Alpha = "none"
    palette: NDArray[np.uint8] | None = None
    ycbcr: bool = False
    mpp: tuple[float, float] | None = None
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
        samples = self.samples - (self.alpha != "none")
        return 3 if samples >= 3 else 1

    @property
    def channels(self) -> int:
        """Channels after conversion: 1 or 3."""
        return 3 if self.palette is not None else self.colours

    def size(self, level: int) -> tuple[int, int]:
        """Height and width of a level in pixels."""
        shape = self.arrays[level].shape
        return shape[self.axes.index("y")], shape[self.axes.index("x")]

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Decode a box that lies inside a level, as (h, w, channels) 8-bit pixels in fresh memory."""
        wanted = slice(None) if self.alpha != "none" else slice(0, self.colours)
        parts = {"y": slice(box.y0, box.y1), "x": slice(box.x0, box.x1), "c": wanted, "0": 0}
        raw = np.asarray(self.arrays[level][tuple(parts[axis] for axis in self.axes)])
        order = self.axes.replace("0", "")
        raw = raw.transpose([order.index(axis) for axis in "yxc" if axis in order])
        return self._convert(raw if raw.ndim == 3 else raw[..., None])

    def _convert(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        if self.palette is not None:
            coloured: NDArray[np.uint8] = self.palette[np.minimum(raw[..., 0], len(self.palette) - 1)]
            return coloured
        if self.alpha == "none":
            pixels = self._to_uint8(raw)
            return ycbcr_to_rgb(pixels) if self.ycbcr else pixels
        colour = self._to_uint8(raw[..., : self.colours])
        opacity = to_uint8(raw[..., -1:], sample_range(raw.dtype))
        return on_white(colour, opacity, premultiplied=self.alpha == "premultiplied")

    def _to_uint8(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        if self._table is not None:
            return np.ascontiguousarray(self._table[raw.view(f"u{raw.dtype.itemsize}")])
        return to_uint8(raw, self.value_range)

    @cached_property
    def _table(self) -> NDArray[np.uint8] | None:
        """Outcome for every value of a 16-bit sample: looking up is several times faster than arithmetic."""
        dtype = self.arrays[0].dtype
        if dtype.kind not in "ui" or dtype.itemsize != 2 or not dtype.isnative:
            return None
        return to_uint8(np.arange(2**16, dtype=np.uint16).view(dtype), self.value_range)


def to_uint8(raw: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Map `value_range` linearly to 0..255, rounded and clipped; what is not a number becomes 0."""
    if raw.dtype == np.uint8 and value_range == (0.0, 255.0):
        return np.array(raw, order="C")
    if raw.dtype == np.bool_ and value_range == (0.0, 1.0):
        return np.array(raw, order="C", dtype=np.uint8) * np.uint8(255)
    low, high = value_range
    values = raw.astype(np.float64)
    values -= low
    values *= 255.0 / (high - low)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(values, 0.0, 255.0, out=values), out=values).astype(np.uint8, order="C")


def on_white(colour: NDArray[np.uint8], opacity: NDArray[np.uint8], *, premultiplied: bool) -> NDArray[np.uint8]:
    """Lay colour (h, w, c) over white by opacity (h, w, 1), rounded to the nearest integer."""
    rest = np.uint32(255) * (np.uint32(255) - opacity)
    weight = np.uint32(255) if premultiplied else opacity.astype(np.uint32)
    mixed: NDArray[np.uint32] = np.minimum((colour * weight + rest + 127) // 255, 255)
    return mixed.astype(np.uint8)


def ycbcr_to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert full-range YCbCr (h, w, 3) to RGB."""
    converted = cv2.cvtColor(np.ascontiguousarray(pixels[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    return converted.astype(np.uint8, copy=False)


def sample_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return what is black and white when the file does not say: all of an integer's range, or 0..1."""
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        return float(limits.min), float(limits.max)
    return 0.0, 1.0


def check_samples(what: str, dtype: np.dtype[Any]) -> None:
    """Refuse sample types that are no intensities.

    Raises
    ------
    ImageError
        If the dtype is not bool, an integer or a real number.
    """
    if dtype.kind not in "buif":
        raise ImageError(
            f"{what}: expected boolean, integer or real samples, got {dtype}; convert to uint8, uint16 or float32"
        )


def check_size(what: str, height: int, width: int, chunk: tuple[int, int]) -> None:
    """Refuse planes without pixels, and chunks no machine should try to decode.

    Raises
    ------
    ImageError
        If a side is not positive or a chunk exceeds `MAX_CHUNK_PIXELS`.
    """
    if height < 1 or width < 1:
        raise ImageError(f"{what}: the image has no pixels (size {height} x {width}); write the file again")
    if math.prod(chunk) > MAX_CHUNK_PIXELS:
        raise ImageError(
            f"{what}: one stored chunk is {chunk[0]} x {chunk[1]} pixels, more than the limit of "
            f"{MAX_CHUNK_PIXELS}; the header is damaged, or the file should be written again in tiles"
        )


def channel_notes(samples: int, alpha: Alpha) -> tuple[str, ...]:
    """Say which samples of a pixel are used, where not all are."""
    if alpha != "none":
        return ("alpha composited on white",)
    if samples == 2:
        return ("first of 2 channels used",)
    return (f"first 3 of {samples} channels used",) if samples > 3 else ()


def choose_range(
    arrays: tuple[PixelArray, ...], axes: str, chunk: tuple[int, int], nodata: float | None = None
) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Choose the stored values that map to 0 and 255, with a note where it matters.

    Integers use their full range. Reals use 0..1 when the coarsest level lies within, else its 0.1 and 99.9
    percentiles; of a large coarsest level some 64 evenly spaced chunks are looked at.
    """
    array = arrays[-1]
    if array.dtype.kind != "f":
        limits = sample_range(array.dtype)
        wide = array.dtype.itemsize > 1
        return limits, (f"range {limits[0]:g}..{limits[1]:g} scaled to 0..255",) if wide else ()
    values = _sample(array, axes, chunk)
    values = values[np.isfinite(values)]
    if nodata is not None:
        values = values[values != nodata]
    if values.size == 0 or (values.min() >= 0.0 and values.max() <= 1.0):
        return (0.0, 1.0), ("range 0..1 scaled to 0..255",)
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    return (low, high), (f"range {low:g}..{high:g} (0.1 to 99.9 percentile) scaled to 0..255",)


def _sample(array: PixelArray, axes: str, chunk: tuple[int, int]) -> NDArray[np.float64]:
    """Values of the whole array, or of up to 64 chunks spread evenly over a large one."""
    height, width = array.shape[axes.index("y")], array.shape[axes.index("x")]
    if height * width <= 2**22:
        rows, columns, step_y, step_x = [0], [0], height, width
    else:
        step_y, step_x = min(chunk[0], 1024), min(chunk[1], 1024)
        rows, columns = _spread(height, step_y), _spread(width, step_x)
    parts = []
    for y in rows:
        for x in columns:
            key = {"y": slice(y, y + step_y), "x": slice(x, x + step_x), "c": slice(0, 3), "0": 0}
            parts.append(np.asarray(array[tuple(key[axis] for axis in axes)], dtype=np.float64).ravel())
    return np.concatenate(parts)


def _spread(length: int, step: int) -> list[int]:
    """Up to eight starts of steps, spread evenly."""
    count = -(-length // step)
    return [int(i) * step for i in np.unique(np.linspace(0, count - 1, 8).round())]
