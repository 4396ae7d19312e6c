"""Plans: windows to refine, best first, and their cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import DENSE_SIDE
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.grid import even
from coarse2fine.tiling.summed_area import rectangle_sums, summed_area

MERGED_SIDES = (8, 16, 32)
_GATHERED = 2**22
# Longest sides of rectangles tried besides `DENSE_SIDE` to cover a part of an image; the small ones only if they are at
# most `_MOST_SMALL`.
_PART_SIDES, _SMALL_SIDES, _MOST_SMALL = (64, *reversed(MERGED_SIDES)), (4, 2, 1), 2**16
WindowMacs = Callable[[int, int], int]
"""Multiply-adds of a window by its height and width in cells."""


@dataclass(frozen=True)
class Plan:
    """Windows to refine, best first.

    Parameters
    ----------
    cell_corners : ndarray, int64, (n, 2)
        First cell (y, x) of each window.
    sides : ndarray, int64, (n, 2)
        Height and width of each window in cells.
    scores : ndarray, float32, (n,)
        Expected finds of the best k x k cells in it.
    cell_shape : tuple of int
        Cells of the image.
    fired : ndarray, uint8, (n, f), optional
        High-level features that fired at the most interesting cell of each window, strongest first; 255 for none. None
        if there was no scan.
    """

    cell_corners: NDArray[np.int64]
    sides: NDArray[np.int64]
    scores: NDArray[np.float32]
    cell_shape: tuple[int, int]
    fired: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: NDArray[np.intp]) -> Plan:
        """The windows at `index`."""
        fired = None if self.fired is None else self.fired[index]
        return Plan(self.cell_corners[index], self.sides[index], self.scores[index], self.cell_shape, fired)

    @classmethod
    def empty(cls, cell_shape: tuple[int, int]) -> Plan:
        """A plan without windows."""
        return cls(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64), np.zeros(0, np.float32), cell_shape)

    def by_shape(self) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
        """Each shape (height, width) of windows, with the rows that have it, in order."""
        most = int(self.sides.max(initial=0)) + 1
        shapes, which = np.unique(self.sides[:, 0] * most + self.sides[:, 1], return_inverse=True)
        for number, shape in enumerate(shapes.tolist()):
            yield divmod(shape, most), np.flatnonzero(which == number)

    def joined(self, other: Plan) -> Plan:
        """These windows, then those of another plan of the same image, without `fired`."""
        return Plan(
            np.concatenate([self.cell_corners, other.cell_corners]),
            np.concatenate([self.sides, other.sides]),
            np.concatenate([self.scores, other.scores]),
            self.cell_shape,
        )

    def explained(self, interest: NDArray[np.float32], fired: NDArray[np.uint8]) -> Plan:
        """The same windows with the features that fired in them.

        Parameters
        ----------
        interest : ndarray, float32, (cell height, cell width)
        fired : ndarray, uint8, (cell height, cell width, f)
        """
        if not interest.size:
            return self
        names = np.full((len(self), fired.shape[-1]), 255, np.uint8)
        width, last = self.cell_shape[1], np.array(self.cell_shape) - 1
        for shape, mine in self.by_shape():
            steps = np.indices(shape).reshape(2, -1).T
            for rows in np.array_split(mine, ceil_div(len(mine) * len(steps), _GATHERED)):
                cells = np.minimum(self.cell_corners[rows, None] + steps, last)
                flat = cells[..., 0] * width + cells[..., 1]
                best = interest.ravel()[flat].argmax(axis=1)
                names[rows] = fired.reshape(-1, fired.shape[-1])[flat[np.arange(len(rows)), best]]
        return replace(self, fired=names)

    def costs(self, window_macs: WindowMacs) -> NDArray[np.int64]:
        """Multiply-adds of each window, halo included."""
        found = np.zeros(len(self), np.int64)
        for shape, rows in self.by_shape():
            found[rows] = window_macs(*shape)
        return found

    def macs(self, window_macs: WindowMacs) -> int:
        """Multiply-adds of all windows, halos included."""
        return sum(window_macs(*shape) * len(rows) for shape, rows in self.by_shape())

    def divided(self, side: int) -> tuple[Plan, NDArray[np.intp]]:
        """The windows cut into parts of at most `side` cells a side, and the row that each part comes from."""
        if not (self.sides > side).any():
            return self, np.arange(len(self))
        corners, sides, owners = [], [], []
        for (height, width), rows in self.by_shape():
            steps = np.stack(np.meshgrid(np.arange(0, height, side), np.arange(0, width, side), indexing="ij"), axis=-1)
            steps = steps.reshape(-1, 2)
            corners.append((self.cell_corners[rows, None] + steps).reshape(-1, 2))
            sides.append(np.tile(np.minimum(side, np.array((height, width)) - steps), (len(rows), 1)))
            owners.append(np.repeat(rows, len(steps)))
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        parts = Plan(np.concatenate(corners)[order], np.concatenate(sides)[order], self.scores[owner], self.cell_shape)
        return parts, owner

    def touching(self, cells: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Rows of the windows that cover any true cell of a map of shape `cell_shape`."""
        high = np.minimum(self.cell_corners + self.sides, self.cell_shape)
        return np.flatnonzero(rectangle_sums(summed_area(cells), self.cell_corners, high))

    def covered(self) -> NDArray[np.bool_]:
        """Map of the cells that the windows cover; shape `cell_shape`."""
        cover = np.zeros(self.cell_shape, bool)
        for (height, width), rows in self.by_shape():
            chosen = self.cell_corners[rows]
            if height * width <= 16:
                for dy, dx in np.ndindex(height, width):
                    y, x = np.minimum(chosen + np.array([dy, dx]), np.array(self.cell_shape) - 1).T
                    cover[y, x] = True
            else:
                for y, x in chosen.tolist():
                    cover[y : y + height, x : x + width] = True
        return cover


def cover(cells: NDArray[np.bool_], window_macs: WindowMacs, most: int = DENSE_SIDE) -> Plan:
    """Cover cells with even rectangles of the size that costs least.

    Parameters
    ----------
    cells : ndarray, bool, (cell height, cell width)
    window_macs : callable
        Multiply-adds of a window of a given height and width.
    most : int
        Longest side of a rectangle in cells.
    """
    if not cells.any():
        return Plan.empty(cells.shape)
    rows, columns = (np.flatnonzero(cells.any(axis=axis)) for axis in (1, 0))
    low, high = np.array([rows[0], columns[0]]), np.array([rows[-1], columns[-1]]) + 1
    small = [side for side in _SMALL_SIDES if (high - low).prod() <= _MOST_SMALL * side**2]
    sides = [side for side in (DENSE_SIDE, *_PART_SIDES, *small) if side <= most] or [most]
    part = cells[low[0] : high[0], low[1] : high[1]]
    holding = [_rectangles(low, high, cells.shape, side, part) for side in sides]
    return min(holding, key=lambda plan: plan.macs(window_macs))


def dense_plan(cell_shape: tuple[int, int], most: int = DENSE_SIDE) -> Plan:
    """The exhaustive pass: every cell once, in even rectangles of at most `most` cells a side."""
    return _rectangles(np.zeros(2, np.int64), np.array(cell_shape), cell_shape, most)


def _rectangles(
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    cell_shape: tuple[int, int],
    most: int,
    part: NDArray[np.bool_] | None = None,
) -> Plan:
    """Cells from `low` to `high` (y, x), each once, in as few rectangles as possible; without those empty in `part`.

    Each rectangle adds a halo, so fewer cost less. The last of a row or column is cut at `high`: there are at most four
    shapes.
    """
    starts = [np.arange(a, b, even(b - a, most)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    lengths = [np.diff(s, append=b) for s, b in zip(starts, high.tolist(), strict=True)]
    corners, sides = (np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2) for axes in (starts, lengths))
    plan = Plan(corners.astype(np.int64), sides.astype(np.int64), np.ones(len(corners), np.float32), cell_shape)
    if part is None:
        return plan
    rows, columns = (s - first for s, first in zip(starts, low.tolist(), strict=True))
    holds = np.logical_or.reduceat(np.logical_or.reduceat(part, rows, axis=0), columns, axis=1)
    return plan.take(np.flatnonzero(holds))


def _squares(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First cells and sides of squares given as rows (y, x, side)."""
    return rows[:, :2], np.repeat(rows[:, 2:], 2, axis=1)
