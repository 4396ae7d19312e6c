"""Choosing where to look again: cells with a probability become windows, best first, within a budget.

Windows are equal squares of k x k cells at the local maxima of the expected number of finds, taken again and again
with what is covered set to zero. Where they crowd, larger squares on a quad-tree replace them, whenever one larger
square costs less than the windows in it (its halo is paid once).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.grid import even

MERGED_SIDES = (8, 16, 32)
DENSE_SIDE = 128
_BAND_CELLS = 2**20
_ROUNDS = 60
_GATHERED = 2**22


@dataclass(frozen=True)
class Plan:
    """Windows to refine, best first.

    Parameters
    ----------
    cell_corners : ndarray, int64, (n, 2)
        First cell (y, x) of each window.
    sides : ndarray, int64, (n,)
        Side of each window in cells.
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
        return cls(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), cell_shape)

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
        for side in np.unique(self.sides).tolist():
            mine = np.flatnonzero(self.sides == side)
            steps = np.indices((side, side)).reshape(2, -1).T
            for rows in np.array_split(mine, -(-len(mine) * side**2 // _GATHERED)):
                cells = np.minimum(self.cell_corners[rows, None] + steps, last)
                flat = cells[..., 0] * width + cells[..., 1]
                best = interest.ravel()[flat].argmax(axis=1)
                names[rows] = fired.reshape(-1, fired.shape[-1])[flat[np.arange(len(rows)), best]]
        return replace(self, fired=names)

    def macs(self, window_macs: Callable[[int], int]) -> int:
        """Multiply-adds of all windows, halos included, by what a window of a given side takes."""
        sides, counts = np.unique(self.sides, return_counts=True)
        return sum(window_macs(int(s)) * int(n) for s, n in zip(sides, counts, strict=True))

    def touching(self, cells: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Rows of the windows that cover any of some cells, given as a map of shape `cell_shape`."""
        sums = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), np.int64)
        sums[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
        y, x = self.cell_corners.T
        y1, x1 = np.minimum(y + self.sides, cells.shape[0]), np.minimum(x + self.sides, cells.shape[1])
        return np.flatnonzero(sums[y1, x1] - sums[y, x1] - sums[y1, x] + sums[y, x])

    def covered(self) -> NDArray[np.bool_]:
        """Map of the cells that some window covers; shape `cell_shape`."""
        return _cover(self.cell_corners, self.sides, self.cell_shape)


def choose(
    interest: NDArray[np.float32],
    window: int,
    *,
    window_macs: Callable[[int], int],
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
        Side of the smallest window, in cells; less where so many cells are not to be had.
    window_macs : callable
        Multiply-adds of a window of a given side.
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
    # With the cheapest cover there is (the largest square), no more windows than this can be paid for.
    largest = merged[-1]
    most = None if budget_macs is None else int(budget_macs / window_macs(largest) * (largest / side) ** 2) + 1
    if budget_cells is not None:
        most = min(budget_cells, most if most is not None else budget_cells)  # each covers a cell of its own
    corners, scores = best_windows(interest, side, tau, most)

    def best(count: int) -> Plan:
        if budget_cells is not None:  # a larger square would cover cells that nobody asked for
            return Plan(corners[:count], np.full(count, side, np.int64), scores[:count], interest.shape)
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


def cover(cells: NDArray[np.bool_], window_macs: Callable[[int], int]) -> Plan:
    """Certain cells in squares of one size: that of the exhaustive pass, or a smaller one if that costs less.

    Parameters
    ----------
    cells : ndarray, bool, (cell height, cell width)
    window_macs : callable
        Multiply-adds of a window of a given side.
    """
    whole = dense_plan(cells.shape)
    side = int(whole.sides[0])
    plans = [whole, *(_squares(cells.shape, s) for s in reversed(MERGED_SIDES) if s < side)]
    touching = [plan.take(plan.touching(cells)) for plan in plans]
    return min(touching, key=lambda plan: plan.macs(window_macs))


def dense_plan(interest_shape: tuple[int, int]) -> Plan:
    """The exhaustive pass: every cell, in squares of `DENSE_SIDE` cells at most."""
    # Much of a square as large as a strip is long would lie beyond the strip; a very small one would be all halo.
    side = max(even(min(interest_shape), DENSE_SIDE), min(MERGED_SIDES[0], DENSE_SIDE, max(interest_shape)))
    return _squares(interest_shape, side)


def _squares(cell_shape: tuple[int, int], side: int) -> Plan:
    """Every cell, in squares on a grid."""
    ys, xs = np.arange(0, cell_shape[0], side), np.arange(0, cell_shape[1], side)
    corners = np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int64)
    count = len(corners)
    return Plan(corners, np.full(count, side, np.int64), np.ones(count, np.float32), cell_shape)


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


def best_windows(
    interest: NDArray[np.float32], side: int, tau: float, most: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Equal windows at the local maxima of the expected number of finds, best first, before any merging.

    Parameters
    ----------
    interest : ndarray, float32, (cell height, cell width)
    side : int
        Side of a window in cells; at most the image's.
    tau : float
        Expected finds that a window must exceed.
    most : int, optional
        Windows that are enough.

    Returns
    -------
    cell_corners : ndarray, int64, (n, 2)
    scores : ndarray, float32, (n,)
        Expected finds; what better windows cover counts for them alone.
    """
    left = interest.astype(np.float32, copy=True)
    ripple = _ripple(left.shape)
    floor = max(tau, 1e-7)
    corners: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    found = 0
    for _ in range(_ROUNDS):
        peaks, sums = _peaks(left, ripple, side, floor)
        if not len(peaks):
            break
        corners.append(peaks)
        scores.append(sums)
        found += len(peaks)
        for dy in range(side):
            for dx in range(side):
                left[peaks[:, 0] + dy, peaks[:, 1] + dx] = 0
        # What is left can only be worse than the best of this round; once enough windows beat that, stop.
        if most is not None and found > most:
            floor = max(floor, float(np.partition(np.concatenate(scores), -most)[-most]))
    else:
        rest, sums = _aligned(left, side, floor)
        corners.append(rest)
        scores.append(sums)
    if not corners:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    all_corners, all_scores = np.concatenate(corners), np.concatenate(scores)
    order = np.argsort(-all_scores, kind="stable")[:most]
    return all_corners[order], all_scores[order]


def _ripple(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A slight fixed pattern, which repeats in rows: equal neighbours (flat areas) would else all be maxima."""
    tile = 1 + 1e-4 * np.random.default_rng(0).random((min(251, shape[0]), min(257, shape[1])), np.float32)
    return np.tile(tile, (1, ceil_div(shape[1], tile.shape[1])))[:, : shape[1]]


def _peaks(
    left: NDArray[np.float32], ripple: NDArray[np.float32], side: int, floor: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """First cells of the windows that expect more than all near them and than a floor, in raster order; and how much.

    Band by band: maps as large as the image's own would be fresh memory each time, which takes longer than the sums.
    """
    height, width = (n - side + 1 for n in left.shape)
    kernel = np.ones((2 * side - 1, 2 * side - 1), np.uint8)
    rows = max(4 * side, _BAND_CELLS // width)
    corners, scores = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for y in range(0, height, rows):
        end = min(y + rows, height)
        first, last = max(0, y - side + 1), min(end + side - 1, height)
        band = left[first : last + side - 1]
        if float(band.max()) * side**2 * 1.001 <= floor:
            continue
        sums = cv2.boxFilter(band, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
        sums = (
            np.asarray(sums[: last - first, :width], np.float32) * ripple[np.arange(first, last) % len(ripple), :width]
        )
        own = slice(y - first, end - first)
        peaks = np.argwhere((sums[own] == cv2.dilate(sums, kernel)[own]) & (sums[own] > floor))
        scores.append(sums[own][peaks[:, 0], peaks[:, 1]])
        corners.append(peaks + np.array((y, 0)))
    return np.concatenate(corners), np.concatenate(scores)


def _aligned(left: NDArray[np.float32], side: int, floor: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What is left, in windows on a grid: a long smooth slope has one local maximum a round, and would never end."""
    height, width = left.shape
    ys, xs = (np.minimum(np.arange(0, n, side), n - side) for n in (height, width))
    sums = cv2.boxFilter(left, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    table = np.asarray(sums, np.float32)[np.ix_(ys, xs)]
    row, column = np.nonzero(table > floor)
    return np.stack([ys[row], xs[column]], axis=1).astype(np.int64), table[row, column]


def merge_windows(
    corners: NDArray[np.int64],
    scores: NDArray[np.float32],
    side: int,
    cell_shape: tuple[int, int],
    window_macs: Callable[[int], int],
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
        Multiply-adds of a window of a given side.
    merged : tuple of int
        Sides of the larger squares, increasing multiples.
    """
    count = len(scores)
    best = np.full(count, float(window_macs(side)))  # what is paid for each window, or its share of a square
    owner_side = np.full(count, side, np.int64)
    owner = corners.copy()
    for large in (s for s in merged if s > side and s <= max(cell_shape)):
        inside = np.all(corners % large + side <= large, axis=1)
        blocks = corners // large
        key = blocks[:, 0] * (cell_shape[1] // large + 1) + blocks[:, 1]
        unique, group = np.unique(key[inside], return_inverse=True)
        paid = np.bincount(group, weights=best[inside], minlength=len(unique))
        size = np.bincount(group, minlength=len(unique))
        cheaper = window_macs(large) < paid
        take = np.zeros(count, bool)
        take[inside] = cheaper[group]
        owner[take] = blocks[take] * large
        owner_side[take] = large
        share = np.zeros(count)
        share[inside] = window_macs(large) / size[group]
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
        cover = _cover(rows[merged, :2], rows[merged, 2], cell_shape)
        small = rows[~merged, :2]
        held = np.ones(len(small), bool)
        for dy in range(side):
            for dx in range(side):
                held &= cover[small[:, 0] + dy, small[:, 1] + dx]
        keep = merged.copy()
        keep[~merged] = ~held
        rows, scores = rows[keep], scores[keep]
    return Plan(rows[:, :2], rows[:, 2], scores, cell_shape)


def _cover(corners: NDArray[np.int64], sides: NDArray[np.int64], cell_shape: tuple[int, int]) -> NDArray[np.bool_]:
    cover = np.zeros(cell_shape, bool)
    for side in np.unique(sides).tolist():
        chosen = corners[sides == side]
        if side <= 4:
            for dy in range(side):
                for dx in range(side):
                    y, x = np.minimum(chosen + np.array([dy, dx]), np.array(cell_shape) - 1).T
                    cover[y, x] = True
        else:
            for y, x in chosen.tolist():
                cover[y : y + side, x : x + side] = True
    return cover
