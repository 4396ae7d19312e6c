"""Exact area averages of any part of an image at an integer downsample.

Pixel i of the virtual plane at downsample d covers the full_ pixels [d*i, d*(i+1)), clipped to the image; its
value is their mean weighted by covered area, rounded. Every output pixel is computed independently from absolute
positions, so the result does not depend on how the plane is divided into boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .geometry import Box, Level, ceil_div

PIECE_BYTES = 64 * 2**20
"""Bytes of pixels held at once while averaging."""

MOST_SUMMED = 2**23
"""Most pixels that OpenCV can average: it sums in 32 bits, and an overflow gives black."""

LEVEL_TOLERANCE = 1e-3
"""Relative excess over the requested downsample that a stored level may have."""


class Readable(Protocol):
    """An image whose levels can be read."""

    levels: tuple[Level, ...]
    channels: int

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """Read a box of a level."""

    def read_mask(self, box: Box, level: int = 0) -> NDArray[np.bool_]:
        """Read which pixels of a box of a level have data."""


def clamp(box: Box, height: int, width: int) -> Box:
    """Clip a box to the plane, or to the plane's nearest pixel if it lies outside."""
    y0, x0 = min(max(box.y0, 0), height - 1), min(max(box.x0, 0), width - 1)
    return Box(y0, x0, max(min(box.y1, height), y0 + 1), max(min(box.x1, width), x0 + 1))


def repeat_edges(pixels: NDArray[np.uint8], inner: Box, box: Box) -> NDArray[np.uint8]:
    """Extend the pixels of `inner`, which `clamp` gave for `box`, to `box` by repeating edge pixels."""
    if inner == box:
        return pixels
    rows = np.clip(np.arange(box.y0, box.y1), inner.y0, inner.y1 - 1) - inner.y0
    columns = np.clip(np.arange(box.x0, box.x1), inner.x0, inner.x1 - 1) - inner.x0
    return pixels[rows[:, None], columns]


def read_scaled(image: Readable, box: Box, downsample: int) -> NDArray[np.uint8]:
    """See `Image.read_scaled`."""
    if downsample < 1:
        raise ValueError(f"expected a downsample of at least 1, got {downsample}")
    full = image.levels[0]
    virtual = ceil_div(full.height, downsample), ceil_div(full.width, downsample)
    level = _coarsest(image.levels, downsample)
    factor = (
        _factor(downsample / level.downsample_y, virtual[0]),
        _factor(downsample / level.downsample_x, virtual[1]),
    )
    inner = clamp(box, *virtual)
    return repeat_edges(_averaged(image, level, inner, factor), inner, box)


def _averaged(image: Readable, level: Level, inner: Box, factor: tuple[float, float]) -> NDArray[np.uint8]:
    """Average a level by a factor, in a box of the result."""
    out = np.empty((inner.height, inner.width, image.channels), dtype=np.uint8)
    for piece in _pieces(inner, level, factor, image.channels):
        rows = slice(piece.y0 - inner.y0, piece.y1 - inner.y0)
        columns = slice(piece.x0 - inner.x0, piece.x1 - inner.x0)
        out[rows, columns] = _average(image, level, piece, factor)
    return out


def read_from_finer(image: Readable, level: int, box: Box) -> NDArray[np.uint8]:
    """Pixels of a box inside a reduced level, averaged from the next finer level."""
    return _averaged(image, image.levels[level - 1], box, _between(image.levels, level))


def mask_from_finer(image: Readable, level: int, box: Box) -> NDArray[np.bool_]:
    """Mask of a box inside a reduced level: pixels with data in the next finer one, even in part."""
    finer, factor = image.levels[level - 1], _between(image.levels, level)
    out = np.zeros((box.height, box.width), dtype=np.bool_)
    for piece in _pieces(box, finer, factor, 1):
        spans = [
            [_span(position, each, length) for position in range(begin, end)]
            for begin, end, each, length in (
                (piece.y0, piece.y1, factor[0], finer.height),
                (piece.x0, piece.x1, factor[1], finer.width),
            )
        ]
        (top, bottom), (left, right) = ((math.floor(ends[0][0]), math.ceil(ends[-1][1])) for ends in spans)
        mask = image.read_mask(Box(top, left, bottom, right), finer.index)
        for axis, (ends, first) in enumerate(zip(spans, (top, left), strict=True)):
            edges = [[math.floor(low) - first, math.ceil(high) - first] for low, high in ends]
            # Groups of even index are the spans; the padding keeps the last end in range.
            padded = np.concatenate([mask, np.zeros_like(mask.take([0], axis))], axis)
            groups = np.logical_or.reduceat(padded, np.ravel(edges), axis)
            mask = groups.take(range(0, 2 * len(ends), 2), axis)
        out[piece.y0 - box.y0 : piece.y1 - box.y0, piece.x0 - box.x0 : piece.x1 - box.x0] = mask
    return out


def _between(levels: tuple[Level, ...], level: int) -> tuple[float, float]:
    """Factors from a level to the next finer one."""
    this, finer = levels[level], levels[level - 1]
    return (
        _factor(this.downsample_y / finer.downsample_y, this.height),
        _factor(this.downsample_x / finer.downsample_x, this.width),
    )


def virtual_chunk(levels: tuple[Level, ...], downsample: int) -> tuple[float, float]:
    """Height and width of a stored chunk, measured in pixels of the virtual plane at `downsample`."""
    level = _coarsest(levels, downsample)
    return level.chunk[0] * level.downsample_y / downsample, level.chunk[1] * level.downsample_x / downsample


def pixels_read(levels: tuple[Level, ...], downsample: int) -> float:
    """Stored pixels that are read for a pixel of the virtual plane at `downsample`."""
    level = _coarsest(levels, downsample)
    return downsample**2 / (level.downsample_y * level.downsample_x)


def _coarsest(levels: tuple[Level, ...], downsample: int) -> Level:
    limit = downsample * (1 + LEVEL_TOLERANCE)
    fitting = [level for level in levels if max(level.downsample_y, level.downsample_x) <= limit]
    return max(fitting, key=lambda level: level.downsample_y * level.downsample_x, default=levels[0])


def _factor(factor: float, length: int) -> float:
    """Round a factor to an integer if this moves every pixel by less than half a level pixel."""
    whole = float(max(1, round(factor)))
    return whole if abs(factor - whole) * length < 0.5 else factor


def _pieces(inner: Box, level: Level, factor: tuple[float, float], channels: int) -> Iterator[Box]:
    """Cut a box into pieces of bounded source size, aligned to rows of chunks so that few chunks are split."""
    whole = factor[0].is_integer() and factor[1].is_integer()
    limit = PIECE_BYTES / channels / (1 if whole else np.dtype(np.float64).itemsize)
    rows = _step(level.chunk[0], factor[0], limit / (inner.width * factor[1]))
    columns = _step(level.chunk[1], factor[1], limit / (rows * factor[0]))
    for y0 in range(inner.y0 // rows * rows, inner.y1, rows):
        for x0 in range(inner.x0 // columns * columns, inner.x1, columns):
            piece = Box(y0, x0, y0 + rows, x0 + columns).intersect(inner)
            if piece is not None:
                yield piece


def _step(chunk: int, factor: float, source_limit: float) -> int:
    """Output pixels of a piece along one axis: whole chunks up to the limit, one chunk at least."""
    source = max(1, int(source_limit // chunk)) * chunk
    return max(1, int(source / factor))


def _average(image: Readable, level: Level, piece: Box, factor: tuple[float, float]) -> NDArray[np.uint8]:
    """Average the source of one piece: complete blocks with OpenCV, the rest by weights."""
    fy, fx = factor
    if fy == fx == 1.0 and piece.y1 <= level.height and piece.x1 <= level.width:
        return image.read(piece, level.index)
    if fy * fx > MOST_SUMMED:
        return _gathered(image, level, piece, factor)
    wanted = Box(
        math.floor(piece.y0 * fy),
        math.floor(piece.x0 * fx),
        math.ceil(piece.y1 * fy),
        math.ceil(piece.x1 * fx),
    )
    source_box = clamp(wanted, level.height, level.width)
    source = image.read(source_box, level.index)
    out = np.empty((piece.height, piece.width, image.channels), dtype=np.uint8)
    ny, nx = _complete(piece, level, factor)
    if ny and nx:
        whole = source[: ny * int(fy), : nx * int(fx)]
        out[:ny, :nx] = cv2.resize(whole, (nx, ny), interpolation=cv2.INTER_AREA).reshape(ny, nx, -1)
    for part in _rest(piece, ny, nx):
        y, x = part.y0 - piece.y0, part.x0 - piece.x0
        out[y : y + part.height, x : x + part.width] = _weighted(source, source_box, part, factor, level)
    return out


def _gathered(image: Readable, level: Level, piece: Box, factor: tuple[float, float]) -> NDArray[np.uint8]:
    """Average output pixels whose source is too large to be held, or summed, at once."""
    out = np.empty((piece.height, piece.width, image.channels), dtype=np.uint8)
    for row, column in np.ndindex(piece.height, piece.width):
        y0, y1 = _span(piece.y0 + row, factor[0], level.height)
        x0, x1 = _span(piece.x0 + column, factor[1], level.width)
        box = Box(math.floor(y0), math.floor(x0), math.ceil(y1), math.ceil(x1))
        total = np.zeros(image.channels)
        for part in _pieces(box, level, (1.0, 1.0), image.channels * np.dtype(np.float64).itemsize):
            rows = image.read(part, level.index).reshape(part.height, -1)
            cover = _cover(part.y0, part.y1, y0, y1)
            sums = cv2.reduce(rows, 0, cv2.REDUCE_SUM, dtype=cv2.CV_64F) if cover.min() == 1.0 else cover @ rows
            total += _cover(part.x0, part.x1, x0, x1) @ sums.reshape(part.width, image.channels)
        out[row, column] = np.rint(total / ((y1 - y0) * (x1 - x0)))
    return out


def _span(position: int, factor: float, length: int) -> tuple[float, float]:
    """Source interval of one output pixel along an axis; the last source pixel if it lies wholly beyond."""
    begin = position * factor
    return (begin, min(begin + factor, length)) if begin < length else (length - 1.0, float(length))


def _cover(begin: int, end: int, low: float, high: float) -> NDArray[np.float64]:
    """Share of each of the source pixels ``[begin, end)`` that lies in ``[low, high)``."""
    index = np.arange(begin, end, dtype=np.float64)
    share: NDArray[np.float64] = np.clip(np.minimum(index + 1, high) - np.maximum(index, low), 0.0, None)
    return share


def _complete(piece: Box, level: Level, factor: tuple[float, float]) -> tuple[int, int]:
    """Count leading rows and columns whose blocks are whole and inside the level; zeros if none are."""
    if not (factor[0].is_integer() and factor[1].is_integer()):
        return 0, 0
    ny = min(piece.y1, level.height // int(factor[0])) - piece.y0
    nx = min(piece.x1, level.width // int(factor[1])) - piece.x0
    return (ny, nx) if ny > 0 and nx > 0 else (0, 0)


def _rest(piece: Box, ny: int, nx: int) -> Iterator[Box]:
    """Cut the remainder of a piece, without its leading `ny` rows and `nx` columns, into boxes."""
    if ny < piece.height:
        yield Box(piece.y0 + ny, piece.x0, piece.y1, piece.x1)
    if ny and nx < piece.width:
        yield Box(piece.y0, piece.x0 + nx, piece.y0 + ny, piece.x1)


def _weighted(
    source: NDArray[np.uint8], source_box: Box, part: Box, factor: tuple[float, float], level: Level
) -> NDArray[np.uint8]:
    """Mean by covered area, one axis after the other, summed in a fixed order."""
    index_y, weight_y = _taps(part.y0, part.y1, factor[0], level.height)
    index_x, weight_x = _taps(part.x0, part.x1, factor[1], level.width)
    first, last = index_x.min(), index_x.max() + 1
    strip = source[:, first - source_box.x0 : last - source_box.x0]
    narrow = np.zeros((part.height, *strip.shape[1:]))
    for tap in range(index_y.shape[1]):
        narrow += weight_y[:, tap, None, None] * strip[index_y[:, tap] - source_box.y0]
    small = np.zeros((part.height, part.width, source.shape[2]))
    for tap in range(index_x.shape[1]):
        small += weight_x[None, :, tap, None] * narrow[:, index_x[:, tap] - first]
    return np.rint(small).astype(np.uint8)


def _taps(begin: int, end: int, factor: float, length: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Source pixels under the output pixels ``[begin, end)`` of one axis, and their shares (rows sum to one).

    An output pixel wholly beyond the source takes the last source pixel.
    """
    position = np.arange(begin, end, dtype=np.float64)
    low = position * factor
    high = np.minimum((position + 1) * factor, length)
    index = np.floor(low)[:, None] + np.arange(math.ceil(factor) + 1)
    share = np.clip(np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None]), 0.0, None)
    share[low >= length, 0] = 1.0
    share /= share.sum(axis=1, keepdims=True)
    # Taps without a share may point past the pixels that were read.
    last = np.max(np.where(share > 0, index, -1), axis=1, keepdims=True)
    return np.minimum(np.minimum(index, last), length - 1).astype(np.intp), share
