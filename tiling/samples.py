"""Stored samples: checks of types and sizes, and conversion to 8-bit grey or RGB."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import Box

Alpha = Literal["none", "straight", "premultiplied"]

MAX_CHUNK_PIXELS = 2**31
"""Most pixels that the header of a stored chunk (or of a whole image without chunks) may state."""


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
    """A stored level that knows which of its parts the file leaves out; slicing gives fill values for them."""

    def absent(self, box: Box) -> NDArray[np.bool_]:
        """Pixels (h, w) of a box inside the level that are not stored."""

    def is_blank(self, box: Box) -> bool:
        """Whether nothing is stored under a box inside the level."""


def sparse(array: PixelArray) -> SparseArray | None:
    """The array if it leaves parts out, else None."""
    return cast("SparseArray", array) if getattr(array, "leaves_out", False) else None


def interleaved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Contiguous (h, w, c) pixels; the same array if it is contiguous already."""
    if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.strides[1] == 1:  # planes, one after the other
        return cv2.merge([pixels[..., 0], pixels[..., 1], pixels[..., 2]]).astype(np.uint8, copy=False)
    return np.ascontiguousarray(pixels)


def to_uint8(raw: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Map `value_range` linearly to 0..255, rounded and clipped; NaN becomes 0."""
    if raw.dtype == np.uint8 and value_range == (0.0, 255.0):
        return interleaved(raw)
    if raw.dtype == np.bool_ and value_range == (0.0, 1.0):
        return np.array(raw, order="C", dtype=np.uint8) * np.uint8(255)
    low, high = value_range
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and huge values are legal samples
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
    """Black and white if the file states no range: an integer type's full range, or 0..1."""
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        return float(limits.min), float(limits.max)
    return 0.0, 1.0


def number_in(text: Any) -> float | None:
    """Number in a text, with a decimal point or comma; None if it is not a number."""
    try:
        return float(text.replace(",", ".")) if isinstance(text, str) else None
    except ValueError:
        return None


def check_samples(what: str, dtype: np.dtype[Any]) -> None:
    """Refuse sample types that are not intensities.

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
    """Refuse planes without pixels, and chunks too large to decode.

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
