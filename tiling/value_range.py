"""Value range: stored values that map to black and white, as given, stated by the file, or measured from pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from .geometry import Box
from .grid import blocks
from .samples import sample_range

Rule = Literal["type", "given", "file", "depth", "unit", "percentiles", "empty"]
"""Origin of a range: the sample type's own; given by the caller; stated by the file; a number of bits; 0..1;
percentiles; assumed, as no pixel with data could be read."""

Values: TypeAlias = Callable[[int, list[Box]], NDArray[Any]]

WHOLE_PIXELS = 2**22
"""Most pixels of a level that is measured whole."""

_SPARSE, _DENSE = 8, 16
"""Windows measured along each axis of a larger level, if a smaller level is measured whole too, and if none is."""
_SIDE = 64
_ENDS = 1e-4
"""Share of values ignored at each end: hot pixels do not tell the camera's bits."""
_PERCENTILES = (0.1, 99.9)
_LEAST_BITS = 8
_LEAST_FILL = 1 / 8
"""Share of their bits' range that values must fill: less, as from thermal cameras, would leave few grey levels."""
_WIDENED = 257
"""Factor from 8 bits to 16."""


@dataclass(frozen=True)
class ValueRange:
    """Stored values that become 0 and 255.

    Parameters
    ----------
    low, high : float
        Exchanged if low values are white.
    rule : str
        See `Rule`.
    dtype : str
        Type of the stored samples, such as "uint16".
    """

    low: float
    high: float
    rule: Rule
    dtype: str

    @property
    def ends(self) -> tuple[float, float]:
        """Values that become 0 and 255."""
        return self.low, self.high

    @property
    def notes(self) -> tuple[str, ...]:
        """Origin of the range; empty if it is that of 8-bit samples."""
        low, high = min(self.ends), max(self.ends)
        said = {"given": " (as asked for)", "file": " (as the file says)"}.get(self.rule, "")
        if self.rule == "depth":
            said = f" ({int(high).bit_length()} bits, by its pixels)"
        elif self.rule == "empty":
            said = " (assumed: no pixel with data could be read)"
        elif self.rule == "percentiles":
            said = f" ({_PERCENTILES[0]:g} to {_PERCENTILES[1]:g} percentile)"
        plain = self.rule == "type" and np.dtype(self.dtype).itemsize == 1
        range_notes = () if plain else (f"range {low:g}..{high:g}{said} scaled to 0..255",)
        return range_notes if self.low < self.high else (*range_notes, "low values are white, as the file says")


@dataclass(frozen=True)
class Origin:
    """Samples of the original of an image that this package wrote as 8 bits.

    Parameters
    ----------
    scale : ValueRange
    channels : tuple of int, optional
        Stored channels that were read, if the copy lacks the others.
    """

    scale: ValueRange
    channels: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, record: Any, samples: int) -> Origin | None:
        """Inverse of `to_json`, for pixels of `samples` samples; None if the record is invalid."""
        try:
            low, high = map(float, record["value_range"])
            dtype, rule, channels = str(np.dtype(record["samples"])), record["rule"], record.get("channels")
            if (
                np.dtype(dtype).kind not in "buif"
                or rule not in get_args(Rule)
                or not (math.isfinite(low) and math.isfinite(high))
                or low == high
            ):
                return None
            if channels is not None and len(channels) != samples:
                return None
            return cls(ValueRange(low, high, rule, dtype), None if channels is None else tuple(map(int, channels)))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return None

    def to_json(self) -> dict[str, Any]:
        """JSON values of the record."""
        channels = None if self.channels is None else list(self.channels)
        return {
            "value_range": list(self.scale.ends),
            "rule": self.scale.rule,
            "samples": self.scale.dtype,
            "channels": channels,
        }


def check_range(value_range: Sequence[float]) -> tuple[float, float]:
    """Checked range that a user asks for.

    Raises
    ------
    ValueError
        If it is not two numbers, the lower first.
    """
    given = tuple(float(value) for value in value_range)
    if len(given) != 2 or not all(map(math.isfinite, given)) or given[0] >= given[1]:
        raise ValueError(f"expected value_range as two numbers (low, high) with low < high, got {value_range}")
    return given[0], given[1]


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether samples have eight bits or one: these are used unchanged."""
    return dtype.kind == "b" or (dtype.kind == "u" and dtype.itemsize == 1)


def stated_range(low: float, high: float, dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Range that a file states; None if it is invalid or merely that of the sample type."""
    try:
        low, high = float(low), float(high)
    except OverflowError:
        return None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return None
    least, most = sample_range(dtype)
    if dtype.kind != "f" and (low < least or high > most or (high == most and low in (least, 0))):
        return None
    return low, high


def measured_range(
    shapes: Sequence[tuple[int, int]],
    chunks: Sequence[tuple[int, int]],
    values: Values,
    dtype: np.dtype[Any],
) -> ValueRange:
    """Measure the range of pixels.

    Pixels are all of the coarsest level if it is small, and evenly spaced windows of the finest, which shows how
    bright small things are; the places do not depend on how the file is chunked. Integers from 0 on get the fewest
    bits that hold them, at least 8, and 16 if they are widened 8-bit values, however dark. Reals within 0..1 get
    that range. Without any pixel, the range is that of the type, or 0..1. Others, and integers that would fill
    little of their bits, get the 0.1 to 99.9 percentiles.

    Parameters
    ----------
    shapes, chunks : sequence of (int, int)
        Height and width of each level, and of its unit of decoding.
    values : callable
        Returns the samples (n,) with data in boxes of a level that lie near each other.
    dtype : dtype
        Type of the samples.
    """
    seen = _seen(shapes, chunks, values)
    if not seen:
        low, high = sample_range(dtype)
        return ValueRange(low, high, "empty", dtype.name)
    low = min(float(np.quantile(part, _ENDS, method="lower")) for part in seen)
    high = max(float(np.quantile(part, 1 - _ENDS, method="higher")) for part in seen)
    if dtype.kind == "f" and all(part.min() >= 0 and part.max() <= 1 for part in seen):
        return ValueRange(0.0, 1.0, "unit", dtype.name)
    if low >= 0 and (dtype.kind != "f" or all((part == np.rint(part)).all() for part in seen)):
        bits = max(_LEAST_BITS, int(high).bit_length())
        widened = dtype.kind == "u" and dtype.itemsize == 2 and high > 0 and not (seen[-1] % _WIDENED).any()
        if widened or low == high or high - low >= _LEAST_FILL * 2**bits:
            return ValueRange(0.0, 2.0 ** (16 if widened else bits) - 1, "depth", dtype.name)
    ends = np.array([np.percentile(part, _PERCENTILES) for part in seen], np.float64)
    narrow = float(ends[:, 0].min()), float(ends[:, 1].max())
    # If nearly all values are equal, fewer extremes are ignored.
    for begin, end in (narrow, (low, high), (float(min(p.min() for p in seen)), float(max(p.max() for p in seen)))):
        if begin < end:
            return ValueRange(begin, end, "percentiles", dtype.name)
    return ValueRange(low - 0.5, low + 0.5, "percentiles", dtype.name)


def _seen(shapes: Sequence[tuple[int, int]], chunks: Sequence[tuple[int, int]], values: Values) -> list[NDArray[Any]]:
    """Finite samples of the coarsest level and of the finest, which comes last; unreadable places are left out."""
    coarsest = len(shapes) - 1
    small = math.prod(shapes[coarsest]) <= WHOLE_PIXELS
    seen = []
    for level in sorted({0, coarsest}, reverse=True):
        size, chunk = shapes[level], chunks[level]
        if small and level == coarsest:
            parts = _intact(values, level, [[Box(0, 0, *size)]]) or _intact(
                values, level, ([box] for box in blocks(*size, chunk))
            )
        else:
            parts = _intact(values, level, _windows(size, chunk, _SPARSE if small else _DENSE))
        found = np.concatenate(parts) if parts else np.zeros(0)
        found = found[np.isfinite(found)] if found.dtype.kind == "f" else found
        if found.size:
            seen.append(found)
    return seen


def _intact(values: Values, level: int, groups: Iterable[list[Box]]) -> list[NDArray[Any]]:
    """Values of each group of boxes that can be decoded; errors of the others show when they are read."""
    found = []
    for boxes in groups:
        try:
            found.append(values(level, boxes))
        except (OSError, MemoryError):
            raise
        except Exception:  # noqa: BLE001, S112 (every decoder has errors of its own)
            continue
    return found


def _windows(size: tuple[int, int], chunk: tuple[int, int], count: int) -> Iterator[list[Box]]:
    """Small boxes, evenly spaced; grouped by the chunk in which they begin, so that it is decoded once."""
    axes = []
    for length, step in zip(size, chunk, strict=True):
        side = min(_SIDE, length)
        by_chunk: dict[int, list[tuple[int, int]]] = {}
        for start in np.unique(np.linspace(0, length - side, count).round()).astype(int).tolist():
            by_chunk.setdefault(start // step, []).append((start, start + side))
        axes.append(by_chunk.values())
    for rows, columns in itertools.product(*axes):
        yield [Box(y0, x0, y1, x1) for (y0, y1), (x0, x1) in itertools.product(rows, columns)]
