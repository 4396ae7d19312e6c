"""Mending: missing or unreadable parts of a reduced level are computed from the next finer level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import Box, Level
from .scaling import clamp
from .source import Source

T = TypeVar("T", bound=np.generic)
Read = Callable[[Box], NDArray[T]]


class Damage:
    """Record of the chunks of reduced levels that could not be read and were mended."""

    def __init__(self) -> None:
        self._chunks: set[tuple[int, int, int]] = set()

    def add(self, level: Level, box: Box) -> None:
        """Count the chunk in which a box lies, once."""
        self._chunks.add(
            (level.index, box.y0 // level.chunk[0] * level.chunk[0], box.x0 // level.chunk[1] * level.chunk[1])
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Note on their number so far; empty if there are none."""
        if not self._chunks:
            return ()
        level, y, x = min(self._chunks.copy())
        return (
            f"{len(self._chunks):,} chunk(s) of reduced levels cannot be read and were made from the next finer level; "
            f"the first: level {level}, y={y}, x={x}",
        )


def mended(
    source: Source,
    levels: tuple[Level, ...],
    level: int,
    box: Box,
    stored: Read[T],
    finer: Read[T],
    *,
    remote: bool,
    damage: Damage,
) -> NDArray[T]:
    """Read a box that lies inside a level; parts that the level lacks come from the next finer one.

    Parameters
    ----------
    source : Source
        States which parts are not stored.
    levels : tuple of Level
    level : int
    box : Box
    stored, finer : callable
        Read a part of the box, (h, w) or (h, w, channels): from the level itself, and from the next finer level.
    remote : bool
        Whether the image is read over a network: network errors are raised, as the finer level would fail, too.
    damage : Damage
        Records the box if the level itself cannot be read.

    Raises
    ------
    ImageError
        If a part can be read from neither; the message gives the reason for the level itself.
    """
    if level == 0:
        return stored(box)
    try:
        values = stored(box)
    except ImageError as error:
        closed = error.__cause__ is None
        if closed or (remote and isinstance(error.__cause__, OSError)):
            raise
        try:
            values = finer(box)
        except ImageError:
            raise error from error.__cause__
        damage.add(levels[level], box)
        return values
    absent = source.absent(level, box)
    if absent is None:
        return values
    place = _bounds(absent)
    part = place.shift(box.y0, box.x0)
    # If no finer level stores anything there, there is nothing to mend; this check is cheaper than reading.
    if all(source.is_blank(under, _under(part, levels[level], levels[under])) for under in range(level)):
        return values
    values = values if values.flags.writeable else values.copy()
    lacking, own = absent[place.slices], values[place.slices]
    values[place.slices] = np.where(lacking if values.ndim == 2 else lacking[..., None], finer(part), own)
    return values


def chunk_by_chunk(level: Level, box: Box, read: Callable[[Box], NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Mask (h, w) of a box that lies inside a level, assembled from one read per chunk."""
    mask = np.empty((box.height, box.width), dtype=np.bool_)
    step_y, step_x = level.chunk
    for y in range(box.y0 // step_y * step_y, box.y1, step_y):
        for x in range(box.x0 // step_x * step_x, box.x1, step_x):
            part = Box(y, x, y + step_y, x + step_x).intersect(box)
            assert part is not None
            into = part.shift(-box.y0, -box.x0)
            mask[into.slices] = read(part)
    return mask


def read_error(level: str, box: Box, error: Exception) -> ImageError:
    """Error that says which part of a named level cannot be read, and why."""
    place = f"{level}, chunk at y={box.y0}, x={box.x0} ({box.height} x {box.width} pixels) cannot"
    if isinstance(error, OSError):
        return ImageError(f"{place} be read ({error.strerror or error}); check the disk or the network, and try again")
    return ImageError(
        f"{place} be decoded ({type(error).__name__}: {error}); the file is damaged there, copy or export it again"
    )


def _bounds(where: NDArray[np.bool_]) -> Box:
    rows, columns = (np.flatnonzero(where.any(axis=axis)) for axis in (1, 0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _under(box: Box, level: Level, finer: Level) -> Box:
    """Pixels of a finer level that a box of a level covers."""
    y, x = level.downsample_y / finer.downsample_y, level.downsample_x / finer.downsample_x
    whole = Box(int(box.y0 * y), int(box.x0 * x), math.ceil(box.y1 * y), math.ceil(box.x1 * x))
    return clamp(whole, finer.height, finer.width)
