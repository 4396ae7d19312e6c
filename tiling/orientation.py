"""Images stored rotated or mirrored, by the orientation of EXIF and TIFF (1 to 8; 1 is upright)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .geometry import Box, GeoReference
from .samples import PixelArray, SparseArray, sparse


class Turn(NamedTuple):
    """One of the eight orientations: rows and columns exchanged, then mirrored.

    Parameters
    ----------
    transpose : bool
        Whether rows become columns.
    mirror_y, mirror_x : bool
        Whether the order of rows, and that of columns, is reversed afterwards.
    """

    transpose: bool
    mirror_y: bool
    mirror_x: bool

    @classmethod
    def of(cls, orientation: int) -> Turn:
        """Turn that makes pixels stored in an EXIF orientation, 1 to 8, upright."""
        return cls(orientation >= 5, orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7))

    @classmethod
    def random(cls, rng: np.random.Generator) -> Turn:
        """One of the eight, each equally likely."""
        return cls(*(rng.random(3) < 0.5).tolist())

    def apply(self, pixels: NDArray[Any], y: int = 0, x: int = 1) -> NDArray[Any]:
        """View of pixels, turned; `y` and `x` are the axes of rows and columns."""
        if self.transpose:
            pixels = pixels.swapaxes(y, x)
        if self.mirror_y:
            pixels = np.flip(pixels, y)
        return np.flip(pixels, x) if self.mirror_x else pixels


def upright_geo(geo: GeoReference, turn: Turn, height: int, width: int) -> GeoReference:
    """Georeference of an image turned to `height` x `width` pixels, from that of the stored pixels."""
    transform: list[float] = []
    for by_x, by_y, start in (geo.transform[:3], geo.transform[3:]):
        along_x, along_y = (by_y, by_x) if turn.transpose else (by_x, by_y)
        origin = start
        if turn.mirror_x:
            origin, along_x = origin + along_x * width, -along_x
        if turn.mirror_y:
            origin, along_y = origin + along_y * height, -along_y
        transform += along_x, along_y, origin
    a, b, c, d, e, f = transform
    return dataclasses.replace(geo, transform=(a, b, c, d, e, f))


class UprightArray:
    """Lazy, upright view of a stored level.

    Parameters
    ----------
    stored : PixelArray
    turn : Turn
    y, x : int
        Axes of rows and columns.
    """

    def __init__(self, stored: PixelArray, turn: Turn, y: int, x: int) -> None:
        shape = list(stored.shape)
        if turn.transpose:
            shape[y], shape[x] = shape[x], shape[y]
        self.shape, self.dtype = tuple(shape), stored.dtype
        self._stored, self._turn, self._y, self._x = stored, turn, y, x

    def __getitem__(self, key: tuple[Any, ...], /) -> NDArray[Any]:
        """Read a part, by slices of `y` and `x` and slices or indices of other axes."""
        rows, columns = self._stored_place(*(range(self.shape[axis])[key[axis]] for axis in (self._y, self._x)))
        place = list(key)
        place[self._y], place[self._x] = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        # An integer index removes its axis.
        y, x = (axis - sum(isinstance(k, int) for k in key[:axis]) for axis in (self._y, self._x))
        return self._turn.apply(np.asarray(self._stored[tuple(place)]), y, x)

    @property
    def leaves_out(self) -> bool:
        """Whether the stored level leaves parts out."""
        return sparse(self._stored) is not None

    def absent(self, box: Box) -> NDArray[np.bool_]:
        """Pixels (h, w) of a box inside the level that are not stored."""
        return self._turn.apply(self._left_out.absent(self._stored_box(box)))

    def is_blank(self, box: Box) -> bool:
        """Whether nothing is stored under a box inside the level."""
        return self._left_out.is_blank(self._stored_box(box))

    @property
    def _left_out(self) -> SparseArray:
        found = sparse(self._stored)
        assert found is not None
        return found

    def _stored_box(self, box: Box) -> Box:
        rows, columns = self._stored_place(range(box.y0, box.y1), range(box.x0, box.x1))
        return Box(rows.start, columns.start, rows.stop, columns.stop)

    def _stored_place(self, rows: range, columns: range) -> tuple[range, range]:
        """Stored rows and columns of upright ones."""
        if self._turn.mirror_y:
            rows = range(self.shape[self._y] - rows.stop, self.shape[self._y] - rows.start)
        if self._turn.mirror_x:
            columns = range(self.shape[self._x] - columns.stop, self.shape[self._x] - columns.start)
        return (columns, rows) if self._turn.transpose else (rows, columns)
