"""Stored samples: which are pictures, and how they become 8-bit grey or RGB."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, Protocol, cast

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


class SparseArray(Protocol):
    """A stored level that knows which of its parts the file leaves out, whatever slicing gives for them."""

    def absent(self, box: Box) -> NDArray[np.bool_]:
        """Pixels (h, w) of a box inside the level that are not stored."""

    def is_blank(self, box: Box) -> bool:
        """Whether nothing at all is stored under a box inside the level."""


def sparse(array: PixelArray) -> SparseArray | None:
    """The array, if it leaves parts out."""
    return cast("SparseArray", array) if getattr(array, "leaves_out", False) else None


def interleaved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Contiguous (h, w, c) pixels; the same array where it is contiguous already."""
    if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.strides[1] == 1:  # planes, one after the other
        return cv2.merge([pixels[..., 0], pixels[..., 1], pixels[..., 2]]).astype(np.uint8, copy=False)
    return np.ascontiguousarray(pixels)


def to_uint8(raw: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Map `value_range` linearly to 0..255, rounded and clipped; what is not a number becomes 0."""
    if raw.dtype == np.uint8 and value_range == (0.0, 255.0):
        return interleaved(raw)
    if raw.dtype == np.bool_ and value_range == (0.0, 1.0):
        return np.array(raw, order="C", dtype=np.uint8) * np.uint8(255)
    low, high = value_range
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond all measure is no fault of the code's
        values = raw.astype(np.float64)
        values -= low
        values *= 255.0 / (high - low)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(values, 0.0, 255.0, out=values), out=values).astype(np.uint8, order="C")


def on_white(colour: NDArray[np.uint8], opacity: NDArray[np.uint8], *, premultiplied: bool) -> NDArray[np.uint8]:
    """Lay colour (h, w, c) over white by opacity (h, w, 1), rounded to the nearest integer."""
    if opacity.min() == 255:
        return np.ascontiguousarray(colour)
    if premultiplied:
        clear = np.ascontiguousarray(np.broadcast_to(np.uint8(255) - opacity, colour.shape))
        return cv2.add(np.ascontiguousarray(colour), clear).reshape(colour.shape).astype(np.uint8, copy=False)
    mixed = colour * opacity.astype(np.uint16)
    mixed += np.uint16(255) * (np.uint16(255) - opacity) + np.uint16(127)  # at most 65152
    mixed += (mixed >> 8) + np.uint16(1)
    mixed >>= 8  # divides by 255 exactly
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


def number_in(text: Any) -> float | None:
    """Return what a text says, with a point or a comma; None when it is no number."""
    try:
        return float(text.replace(",", ".")) if isinstance(text, str) else None
    except ValueError:
        return None


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


def choose_range(
    arrays: tuple[PixelArray, ...],
    axes: str,
    chunk: tuple[int, int],
    nodata: float | None = None,
    channels: tuple[int, ...] = (0, 1, 2),
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
    values = _sample(array, axes, chunk, channels)
    values = values[np.isfinite(values)]
    if nodata is not None:
        values = values[values != nodata]
    if values.size == 0 or (values.min() >= 0.0 and values.max() <= 1.0):
        return (0.0, 1.0), ("range 0..1 scaled to 0..255",)
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    return (low, high), (f"range {low:g}..{high:g} (0.1 to 99.9 percentile) scaled to 0..255",)


def _sample(array: PixelArray, axes: str, chunk: tuple[int, int], channels: tuple[int, ...]) -> NDArray[np.float64]:
    """Values of the whole array, or of up to 64 chunks spread evenly over a large one; damaged chunks are left out."""
    stored = array.shape[axes.index("c")] if "c" in axes else 1
    wanted = [channel for channel in channels if channel < stored]
    height, width = array.shape[axes.index("y")], array.shape[axes.index("x")]
    step_y, step_x = min(chunk[0], 1024), min(chunk[1], 1024)
    rows, columns = _spread(height, step_y), _spread(width, step_x)
    if height * width <= 2**22:
        parts = _intact(array, axes, [Box(0, 0, height, width)], wanted)
        if len(parts) == len(wanted):
            return np.concatenate(parts)
        rows, columns = list(range(0, height, step_y)), list(range(0, width, step_x))
    boxes = [Box(y, x, min(y + step_y, height), min(x + step_x, width)) for y in rows for x in columns]
    return np.concatenate([np.zeros(0), *_intact(array, axes, boxes, wanted)])


def _intact(array: PixelArray, axes: str, boxes: list[Box], channels: list[int]) -> list[NDArray[np.float64]]:
    """Values of each box and channel that can be decoded; reading the others will say what is wrong."""
    parts = []
    for box, channel in itertools.product(boxes, channels):
        key = {"y": slice(box.y0, box.y1), "x": slice(box.x0, box.x1), "c": slice(channel, channel + 1), "0": 0}
        try:
            stored = array[tuple(key[axis] for axis in axes)]
            with np.errstate(invalid="ignore"):
                values = np.asarray(stored, dtype=np.float64).ravel()
            left_out = sparse(array)
            parts.append(values if left_out is None else values[~left_out.absent(box).ravel()])
        except (OSError, MemoryError):
            raise
        except Exception:  # noqa: BLE001, S112 (every decoder has errors of its own)
            continue
    return parts


def _spread(length: int, step: int) -> list[int]:
    """Up to eight starts of steps, spread evenly."""
    count = -(-length // step)
    return [int(i) * step for i in np.unique(np.linspace(0, count - 1, 8).round())]
