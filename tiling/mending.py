"""Reduced levels that are not whole: what is missing or damaged there is made from the next finer level."""

from __future__ import annotations

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


def mended(
    source: Source, levels: tuple[Level, ...], level: int, box: Box, stored: Read[T], finer: Read[T], *, remote: bool
) -> NDArray[T]:
    """Read a box that lies inside a level, and what the level lacks from the next finer one.

    Parameters
    ----------
    source : Source
        Knows what is not stored.
    levels : tuple of Level
    level : int
    box : Box
    stored, finer : callable
        Read a part of the box, (h, w) or (h, w, channels): where it is stored, and from the next finer level.
    remote : bool
        Whether a network lies between: its faults are not mended, as they would be met again.

    Raises
    ------
    ImageError
        If a part can be read from neither; it tells why not where it is stored.
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
            return finer(box)
        except ImageError:
            raise error from error.__cause__
    absent = source.absent(level, box)
    if absent is None:
        return values
    place = _bounds(absent)
    part = place.shift(box.y0, box.x0)
    # Nothing is where even the full resolution has nothing: looking that up is cheaper than reading it.
    if all(source.is_blank(under, _under(part, levels[level], levels[under])) for under in range(level)):
        return values
    values = values if values.flags.writeable else values.copy()
    rows, columns = slice(place.y0, place.y1), slice(place.x0, place.x1)
    lacking = absent[rows, columns]
    values[rows, columns] = np.where(
        lacking if values.ndim == 2 else lacking[..., None], finer(part), values[rows, columns]
    )
    return values


def _bounds(where: NDArray[np.bool_]) -> Box:
    rows, columns = (np.flatnonzero(where.any(axis=axis)) for axis in (1, 0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _under(box: Box, level: Level, finer: Level) -> Box:
    """Pixels of a finer level that a box of a level covers."""
    y, x = level.downsample_y / finer.downsample_y, level.downsample_x / finer.downsample_x
    whole = Box(int(box.y0 * y), int(box.x0 * x), int(-(-box.y1 * y // 1)), int(-(-box.x1 * x // 1)))
    return clamp(whole, finer.height, finer.width)
