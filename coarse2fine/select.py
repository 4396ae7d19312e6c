"""Choosing where to look again: cells with a probability become windows, best first, within a budget.

Windows are equal squares of k x k cells at the local maxima of the expected number of finds, taken again and again
with what is covered set to zero. Where they crowd, larger squares on a quad-tree replace them, whenever one larger
square costs less than the windows in it (its halo is paid once).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coarse2fine.tiling.grid import even
from coarse2fine.windows import best_windows

MERGED_SIDES = (8, 16, 32)
DENSE_SIDE = 128
_GATHERED = 2**22
# Longest sides of rectangles tried where only a part of the image is to be covered, besides `DENSE_SIDE`; the smallest
# if they are not too many.
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
        where no scan told.
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
        """No window at all."""
        return cls(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64), np.zeros(0, np.float32), cell_shape)

    def by_shape(self) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
        """Each shape (height, width) that windows have, and the rows of those that have it, in order."""
        most = int(self.sides.max(initial=0)) + 1
        shapes, which = np.unique(self.sides[:, 0] * most + self.sides[:, 1], return_inverse=True)
        for number, shape in enumerate(shapes.tolist()):
            yield divmod(shape, most), np.flatnonzero(which == number)

    def joined(self, other: Plan) -> Plan:
        """These windows, then those of another plan of the same image; unexplained."""
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
            for rows in np.array_split(mine, -(-len(mine) * len(steps) // _GATHERED)):
                cells = np.minimum(self.cell_corners[rows, None] + steps, last)
                flat = cells[..., 0] * width + cells[..., 1]
                best = interest.ravel()[flat].argmax(axis=1)
                names[rows] = fired.reshape(-1, fired.shape[-1])[flat[np.arange(len(rows)), best]]
        return replace(self, fired=names)

    def costs(self, window_macs: WindowMacs) -> NDArray[np.int64]:
        """Multiply-adds of each window, halo included, by what a window of a given shape takes."""
        found = np.zeros(len(self), np.int64)
        for shape, rows in self.by_shape():
            found[rows] = window_macs(*shape)
        return found

    def macs(self, window_macs: WindowMacs) -> int:
        """Multiply-adds of all windows, halos included, by what a window of a given shape takes."""
        return sum(window_macs(*shape) * len(rows) for shape, rows in self.by_shape())

    def touching(self, cells: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Rows of the windows that cover any of some cells, given as a map of shape `cell_shape`."""
        return _holding(self, _summed(cells))

    def covered(self) -> NDArray[np.bool_]:
        """Map of the cells that some window covers; shape `cell_shape`."""
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


def _summed(cells: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Summed-area table of a map."""
    sums = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), np.int64)
    sums[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
    return sums


def _holding(plan: Plan, sums: NDArray[np.int64]) -> NDArray[np.intp]:
    """Rows of the windows that cover any of the cells of a summed-area table."""
    (y, x), (y1, x1) = plan.cell_corners.T, np.minimum(plan.cell_corners + plan.sides, plan.cell_shape).T
    return np.flatnonzero(sums[y1, x1] - sums[y, x1] - sums[y1, x] + sums[y, x])


def choose(
    interest: NDArray[np.float32],
    window: int,
    *,
    window_macs: WindowMacs,
    tau: float = 0.0,
    budget_macs: int | None = None,
    budget_cells: int | None = None,
    merged: tuple[int, ...] = MERGED_SIDES,
) -> Plan:
    """Cover the interesting cells with windows.

    Parameters
    ----------
    interest : ndarray, float32, (cell height, cell width)
        Probability that refining a cell finds something.
    window : int
        Side of the smallest window, in cells; less where so many cells are not to be had, or not to be paid for.
    window_macs : callable
        Multiply-adds of a window of a given height and width.
    tau : float
        Expected finds below which a window is not taken.
    budget_macs, budget_cells : int, optional
        Most multiply-adds the windows may cost, and most cells they may cover; without either every window above
        `tau` is taken, or all cells where that is cheaper.
    merged : tuple of int
        Sides of the larger squares, increasing multiples.
    """
    side = min(window, *interest.shape)
    if budget_cells is not None:
        side = min(side, math.isqrt(budget_cells))  # a few cells are less than one usual window
    while budget_macs is not None and side > 1 and window_macs(side, side) > budget_macs:
        side -= 1  # as is a small budget
    # With the cheapest cover there is (the largest square), no more windows than this can be paid for.
    largest = merged[-1]
    most = None if budget_macs is None else int(budget_macs / window_macs(largest, largest) * (largest / side) ** 2) + 1
    if budget_cells is not None:
        most = min(budget_cells, most if most is not None else budget_cells)  # each covers a cell of its own
    corners, scores = best_windows(interest, side, tau, most)

    def best(count: int) -> Plan:
        if budget_cells is not None:  # a larger square would cover cells that nobody asked for
            return Plan(corners[:count], np.full((count, 2), side, np.int64), scores[:count], interest.shape)
        return merge_windows(corners[:count], scores[:count], side, interest.shape, window_macs, merged)

    def affordable(plan: Plan) -> bool:
        if budget_macs is not None and plan.macs(window_macs) > budget_macs:
            return False
        return budget_cells is None or int(plan.covered().sum()) <= budget_cells

    if budget_macs is not None or budget_cells is not None:
        return _most(best, len(scores), affordable)
    plan, everything = best(len(scores)), dense_plan(interest.shape)
    # Where nearly all is interesting, the exhaustive pass is cheaper than its pieces and misses nothing.
    return plan if plan.macs(window_macs) < everything.macs(window_macs) else everything


def cover(cells: NDArray[np.bool_], window_macs: WindowMacs, most: int = DENSE_SIDE) -> Plan:
    """Certain cells, in even rectangles of the size that costs least.

    Parameters
    ----------
    cells : ndarray, bool, (cell height, cell width)
    window_macs : callable
        Multiply-adds of a window of a given height and width.
    most : int
        Longest side of a rectangle in cells, 8 or more.
    """
    if not cells.any():
        return Plan.empty(cells.shape)
    sums = _summed(cells)
    rows, columns = (np.flatnonzero(cells.any(axis=axis)) for axis in (1, 0))
    low, high = np.array([rows[0], columns[0]]), np.array([rows[-1], columns[-1]]) + 1
    small = [side for side in _SMALL_SIDES if (high - low).prod() <= _MOST_SMALL * side**2]
    sides = [side for side in (DENSE_SIDE, *_PART_SIDES, *small) if side <= most]
    plans = [_rectangles(low, high, cells.shape, side) for side in sides]
    holding = [plan.take(_holding(plan, sums)) for plan in plans]
    return min(holding, key=lambda plan: plan.macs(window_macs))


def dense_plan(cell_shape: tuple[int, int]) -> Plan:
    """The exhaustive pass: every cell once, in even rectangles of at most `DENSE_SIDE` cells a side."""
    return _rectangles(np.zeros(2, np.int64), np.array(cell_shape), cell_shape, DENSE_SIDE)


def _rectangles(low: NDArray[np.int64], high: NDArray[np.int64], cell_shape: tuple[int, int], most: int) -> Plan:
    """Cells from `low` to `high` (y, x), each once, in as few rectangles as may be.

    A halo is paid for once a rectangle, so few are cheap, whatever their shapes. The last of a row or column ends
    where the part does: there are four shapes at most.
    """
    starts = [np.arange(a, b, even(b - a, most)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    lengths = [np.diff(s, append=b) for s, b in zip(starts, high.tolist(), strict=True)]
    corners, sides = (np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2) for axes in (starts, lengths))
    return Plan(corners.astype(np.int64), sides.astype(np.int64), np.ones(len(corners), np.float32), cell_shape)


def _most(best: Callable[[int], Plan], count: int, affordable: Callable[[Plan], bool]) -> Plan:
    """The plan of the most windows, best first, that can be paid for (found by bisection)."""
    plan = best(count)
    if affordable(plan):
        return plan
    low, high = 0, count
    found = best(0)
    while high - low > max(1, count // 1000):
        middle = (low + high) // 2
        plan = best(middle)
        if affordable(plan):
            low, found = middle, plan
        else:
            high = middle
    return found


def merge_windows(
    corners: NDArray[np.int64],
    scores: NDArray[np.float32],
    side: int,
    cell_shape: tuple[int, int],
    window_macs: WindowMacs,
    merged: tuple[int, ...] = MERGED_SIDES,
) -> Plan:
    """Replace crowded windows by larger squares wherever that costs less (exact on the quad-tree of squares).

    Parameters
    ----------
    corners : ndarray, int64, (n, 2)
        First cell (y, x) of each window, the best first.
    scores : ndarray, float32, (n,)
    side : int
        Side of a window in cells.
    cell_shape : tuple of int
        Cells of the image.
    window_macs : callable
        Multiply-adds of a window of a given height and width.
    merged : tuple of int
        Sides of the larger squares, increasing multiples.
    """
    count = len(scores)
    best = np.full(count, float(window_macs(side, side)))  # what is paid for each window, or its share of a square
    owner_side = np.full(count, side, np.int64)
    owner = corners.copy()
    for large in (s for s in merged if s > side and s <= max(cell_shape)):
        inside = np.all(corners % large + side <= large, axis=1)
        blocks = corners // large
        key = blocks[:, 0] * (cell_shape[1] // large + 1) + blocks[:, 1]
        unique, group = np.unique(key[inside], return_inverse=True)
        paid = np.bincount(group, weights=best[inside], minlength=len(unique))
        size = np.bincount(group, minlength=len(unique))
        cheaper = window_macs(large, large) < paid
        take = np.zeros(count, bool)
        take[inside] = cheaper[group]
        owner[take] = blocks[take] * large
        owner_side[take] = large
        share = np.zeros(count)
        share[inside] = window_macs(large, large) / size[group]
        best[take] = share[take]
    return _distinct(owner, owner_side, scores, side, cell_shape)


def _distinct(
    owner: NDArray[np.int64],
    owner_side: NDArray[np.int64],
    scores: NDArray[np.float32],
    side: int,
    cell_shape: tuple[int, int],
) -> Plan:
    """One row a square, in order of its best window; small windows inside the squares taken are dropped."""
    rows = np.column_stack([owner, owner_side])
    _, first = np.unique(rows, axis=0, return_index=True)
    first.sort()  # windows come best first, so the first row of a square bears its best score
    rows, scores = rows[first], scores[first]
    merged = rows[:, 2] > side
    if merged.any():
        cover = Plan(*_squares(rows[merged]), scores[merged], cell_shape).covered()
        small = rows[~merged, :2]
        held = np.ones(len(small), bool)
        for dy in range(side):
            for dx in range(side):
                held &= cover[small[:, 0] + dy, small[:, 1] + dx]
        keep = merged.copy()
        keep[~merged] = ~held
        rows, scores = rows[keep], scores[keep]
    return Plan(*_squares(rows), scores, cell_shape)


def _squares(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First cells and sides of the squares that rows (y, x, side) stand for."""
    return rows[:, :2], np.repeat(rows[:, 2:], 2, axis=1)
