"""Bands of object sizes in one analysis: a limit divided among them, and their maps and windows on one grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.firing import NO_FEATURE
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.windows import best_windows

Price = Callable[[Model, int], float]
"""What a window of so many cells a side costs, in the unit of a limit."""


def divide(limit: float, bands: Sequence[Model], interests: Sequence[NDArray[np.float32]], price: Price) -> list[float]:
    """Divide a limit so that, over all bands, the windows with most expected finds for their price come first.

    Parameters
    ----------
    limit : float
        What all windows may cost.
    bands : sequence of Model
    interests : sequence of ndarray, float32, (cell height, cell width)
        Of each band: probability that refining a cell finds something.
    price : callable

    Returns
    -------
    list of float
        The share of each band; they add up to the limit.
    """
    worth, cost, owner = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, np.intp)]
    for number, (band, interest) in enumerate(zip(bands, interests, strict=True)):
        side = min(band.window, band.longest_window, *interest.shape)
        each = price(band, side)
        scores = best_windows(interest, side, 0.0, int(limit / each) + 1)[1]
        worth.append(scores.astype(np.float64) / each)
        cost.append(np.full(len(scores), each))
        owner.append(np.full(len(scores), number))
    order = np.argsort(-np.concatenate(worth), kind="stable")
    prices = np.concatenate(cost)[order]
    # The first one even if the limit does not pay for it: a smaller window may be affordable.
    count = max(1, int(np.searchsorted(prices.cumsum(), limit, side="right")))
    shares = np.bincount(np.concatenate(owner)[order[:count]], weights=prices[:count], minlength=len(bands))
    if not shares.any():
        shares[0] = 1
    return (limit * shares / shares.sum()).tolist()  # type: ignore[no-any-return]


def map_on_grid(cells: NDArray[Any], ratio: int, cell_shape: tuple[int, int]) -> NDArray[Any]:
    """A map of cells on a grid of `ratio` times smaller cells."""
    if ratio == 1:
        return cells
    height, width = cell_shape
    return np.repeat(np.repeat(cells, ratio, axis=0)[:height], ratio, axis=1)[:, :width]


def plan_on_grid(plans: Sequence[Plan], ratios: Sequence[int], cell_shape: tuple[int, int]) -> Plan:
    """The windows of all bands in cells of one grid, those with most expected finds first.

    Parameters
    ----------
    plans : sequence of Plan
        With the features that fired, or all without.
    ratios : sequence of int
        Sides of each band's cells in cells of the grid.
    cell_shape : tuple of int
        Cells of the grid.
    """
    if len(plans) == 1:
        return plans[0]
    corners = np.concatenate([plan.cell_corners * ratio for plan, ratio in zip(plans, ratios, strict=True)])
    sides = np.concatenate([plan.sides * ratio for plan, ratio in zip(plans, ratios, strict=True)])
    scores = np.concatenate([plan.scores for plan in plans])
    fired = None
    if any(plan.fired is not None for plan in plans):
        width = max(plan.fired.shape[1] for plan in plans if plan.fired is not None)
        fired = np.concatenate([_fired(plan, width) for plan in plans])
    # Windows at the far edges of a coarser grid may reach beyond this one.
    whole = Plan(corners, np.minimum(sides, np.array(cell_shape) - corners), scores, cell_shape, fired)
    return whole.take(np.argsort(-scores, kind="stable"))


def _fired(plan: Plan, width: int) -> NDArray[np.uint8]:
    return np.full((len(plan), width), NO_FEATURE, np.uint8) if plan.fired is None else plan.fired
