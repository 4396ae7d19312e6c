"""Choice of windows: cells with a probability become windows to refine, best first, within a budget.

Windows are equal squares of k x k cells at the local maxima of the expected number of finds. They are taken in rounds,
each with the cells covered so far set to zero. A larger square on a quad-tree replaces the windows in it if it costs
less than they do (its halo is paid once).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import DENSE_SIDE
from coarse2fine.steps.plan import MERGED_SIDES, Plan, WindowMacs, _squares, dense_plan
from coarse2fine.steps.windows import best_windows


def choose(
    interest: NDArray[np.float32],
    window: int,
    *,
    window_macs: WindowMacs,
    tau: float = 0.0,
    budget_macs: int | None = None,
    budget_cells: int | None = None,
    merged: tuple[int, ...] = MERGED_SIDES,
    longest: int = DENSE_SIDE,
) -> Plan:
    """Cover the interesting cells with windows.

    Parameters
    ----------
    interest : ndarray, float32, (cell height, cell width)
        Probability that refining a cell finds something.
    window : int
        Side of the smallest window, in cells; less if the image has fewer cells or the budget does not pay for it.
    window_macs : callable
        Multiply-adds of a window of a given height and width.
    tau : float
        Expected finds below which a window is not taken.
    budget_macs, budget_cells : int, optional
        Most multiply-adds the windows may cost, and most cells they may cover. Without either, every window above
        `tau` is taken, or all cells if that is cheaper.
    merged : tuple of int
        Sides of the larger squares, increasing multiples.
    longest : int
        Longest side of a window, in cells.
    """
    side = min(window, longest, *interest.shape)
    merged = tuple(large for large in merged if large <= longest) or (side,)
    if budget_cells is not None:
        side = min(side, math.isqrt(budget_cells))  # the budget may be less than one usual window
    while budget_macs is not None and side > 1 and window_macs(side, side) > budget_macs:
        side -= 1
    # Upper bound on the windows that the budget pays for: all in the largest squares, which cost least per cell.
    largest = merged[-1]
    most = None if budget_macs is None else int(budget_macs / window_macs(largest, largest) * (largest / side) ** 2) + 1
    if budget_cells is not None:
        most = min(budget_cells, most if most is not None else budget_cells)  # each covers a cell that no other does
    corners, scores = best_windows(interest, side, tau, most)

    def best(count: int) -> Plan:
        if budget_cells is not None:  # a larger square would spend cells on gaps between windows
            return Plan(corners[:count], np.full((count, 2), side, np.int64), scores[:count], interest.shape)
        return merge_windows(corners[:count], scores[:count], side, interest.shape, window_macs, merged)

    def affordable(plan: Plan) -> bool:
        if budget_macs is not None and plan.macs(window_macs) > budget_macs:
            return False
        return budget_cells is None or int(plan.covered().sum()) <= budget_cells

    if budget_macs is not None or budget_cells is not None:
        return _most(best, len(scores), affordable)
    plan, everything = best(len(scores)), dense_plan(interest.shape, longest)
    # If nearly all cells are interesting, the exhaustive pass costs less than single windows and misses nothing.
    return plan if plan.macs(window_macs) < everything.macs(window_macs) else everything


def _most(best: Callable[[int], Plan], count: int, affordable: Callable[[Plan], bool]) -> Plan:
    """The largest affordable plan of the best windows, by bisection to 0.1 % of `count`."""
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
    """Replace windows by larger squares if that costs less (exact on the quad-tree of squares).

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
    best = np.full(count, float(window_macs(side, side)))  # cost of each window, or its share of a square's
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
    """One row per square, in order of its best window, without the small windows that larger squares cover."""
    rows = np.column_stack([owner, owner_side])
    # One number for each square: sorting rows takes eight times as long.
    width, longest = cell_shape[1] + 1, int(owner_side.max(initial=0)) + 1
    _, first = np.unique((owner[:, 0] * width + owner[:, 1]) * longest + owner_side, return_index=True)
    first.sort()  # windows come best first, so the first row of a square has its best score
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
