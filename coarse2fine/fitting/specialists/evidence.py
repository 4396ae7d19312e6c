"""Significance test of columns: their gain on held-out groups of items against random sign flips.

The decisions (by how much columns are shrunk, which of them stay, where they run) are made on all held-out groups, so
the gain there is biased upwards. So all decisions are made again with the signs of whole groups' gains flipped at
random: if columns do not help, a group's gain is as likely to be a loss of the same size. The share of flips with at
least the same gain is the p-value of exactly the model that is kept; it is valid for few groups, heavy tails, dependent
items within a group, and any number of columns.

A column that clearly hurts must not enter as chance: its losses, flipped into gains, would hide columns that help
(Hansen's test of superior predictive ability, 2005). So its mean is kept, and only the deviations from it are flipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Significance level: probability that one fit keeps specialists although none helps.
LEVEL = 0.05
# All signs are tried for up to 8 groups, for more a random sample, which keeps the level too.
_FLIPS = 256
# A column hurts if it loses more than this many standard errors.
_SURELY = 3.0
# Of the gates that keep this share of the largest gain, the one with fewest items is taken.
_GAIN_KEPT = 0.9


class Columns(Protocol):
    """Gains of columns on held-out items, for every decision about them.

    Attributes
    ----------
    sizes : ndarray, float64, (columns, groups)
        Number of items routed to each column.
    depths : ndarray, int64, (columns,)
        Depth of each column; columns of one depth are compared with each other.
    shares : int
        Number of shrinkage factors that are tried.
    """

    sizes: NDArray[np.float64]
    depths: NDArray[np.int64]
    shares: int

    def alone(self, share: int) -> NDArray[np.float64]:
        """Reduction of the loss of each column's items, (columns, groups)."""

    def stays(self, gains: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which columns stay, (columns,), by their estimated gains."""

    def whole(self, share: int, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gains of the kept columns, and how often they run; each (gates, groups), the open gate first."""


@dataclass(frozen=True, eq=False)
class Decision:
    """Choice of shrinkage, columns and gate.

    Parameters
    ----------
    share : int
        Index of the shrinkage factor.
    kept : ndarray, bool, (columns,)
    gate : int
        Index of the gate.
    gain : float
        Reduction of the loss of the items that decided.
    """

    share: int
    kept: NDArray[np.bool_]
    gate: int
    gain: float


def decide(columns: Columns, signs: NDArray[np.float64]) -> Decision:
    """Choose the shrinkage, the columns and the gate with the largest gain.

    Parameters
    ----------
    columns : Columns
    signs : ndarray, float64, (groups,)
        1 for groups that decide, 0 for the others; -1 flips gains into losses.
    """
    tried = []
    for share in range(columns.shares):
        alone, sizes = _turned(columns.alone(share), columns.sizes, signs), columns.sizes * np.abs(signs)
        kept = columns.stays(believed(alone, sizes, columns.depths))
        gains, runs = columns.whole(share, kept)
        tried.append((_turned(gains, runs, signs).sum(axis=1), runs @ np.abs(signs), share, kept))
    gains, runs, share, kept = max(tried, key=lambda each: float(each[0][0]))
    gates = np.arange(1, len(gains)) if len(gains) > 1 else np.arange(1)
    most = gains[gates].max()
    enough = gates[gains[gates] >= most - (1 - _GAIN_KEPT) * abs(most)]
    gate = min(enough.tolist(), key=lambda g: (runs[g], -gains[g]))
    return Decision(share, kept, gate, float(gains[gate]))


def _turned(gains: NDArray[np.float64], sizes: NDArray[np.float64], signs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gains (rows, groups) with these signs; for rows that hurt, only the deviations from the mean per item."""
    if signs.min(initial=1) >= 0:
        return gains * signs
    mean = gains.sum(axis=1, keepdims=True) / np.maximum(sizes.sum(axis=1, keepdims=True), 1)
    groups = (sizes > 0).sum(axis=1)
    spread = ((gains - mean * sizes) ** 2).sum(axis=1) * groups / np.maximum(groups - 1, 1)
    hurts = (groups > 1) & (gains.sum(axis=1) < -_SURELY * np.sqrt(spread))
    stays = mean * sizes * hurts[:, None]
    return np.asarray((gains - stays) * signs + stays)


def believed(gains: NDArray[np.float64], sizes: NDArray[np.float64], depths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Empirical-Bayes estimate of each column's gain: shrunk toward the mean of all columns by its standard error.

    The best of many columns look better, and the worst look worse, than they are (James and Stein). The variance
    between columns is estimated by the method of moments.

    Parameters
    ----------
    gains, sizes : ndarray, float64, (columns, groups)
        Reduction of each column's loss, and its number of items.
    depths : ndarray, int64, (columns,)

    Returns
    -------
    ndarray, float64, (columns,)
        Total over the column's items; for a column without items, the gain of one item.
    """
    found = np.zeros(len(gains))
    for depth in np.unique(depths):
        at = depths == depth
        g, n = gains[at], sizes[at]
        count, groups = n.sum(axis=1), (n > 0).sum(axis=1)
        every = max(float(count.sum()), 1.0)
        mean, some = float(g.sum()) / every, np.maximum(count, 1)
        own = g.sum(axis=1) / some
        # Groups, not items, are independent; few groups estimate a variance poorly, so it is averaged with that of all.
        spread = ((g - own[:, None] * n) ** 2).sum(axis=1) * groups / np.maximum(groups - 1, 1)
        shared = float(spread.sum()) / every * some
        error = np.where(groups > 1, (spread + shared) / 2, shared) / some**2
        between = max(0.0, float((count * ((own - mean) ** 2 - error)).sum()) / every)
        weight = np.where(count > 0, between / np.maximum(between + error, 1e-300), 0.0)
        found[at] = (mean + weight * (own - mean)) * some
    return found


def chance(columns: Columns, decision: Decision) -> float:
    """Probability that columns that do not help gain at least as much as the decision on all groups.

    Parameters
    ----------
    columns : Columns
    decision : Decision
        Decision on all groups.

    Returns
    -------
    float
        A p-value. Above `LEVEL` it is a lower bound, since the count stops there. It is 1 if there is no gain.
    """
    if not decision.gain > 0:
        return 1.0
    signs = _signs(columns.sizes.shape[1])
    reached = 1  # the observed signs
    for flipped in signs[1:]:
        # Tolerance for rounding: sums in another order differ in the last digits.
        reached += decide(columns, flipped).gain >= decision.gain * (1 - 1e-9)
        if reached > LEVEL * len(signs):
            break
    return reached / len(signs)


def chance_of_gain(gains: NDArray[np.float64]) -> float:
    """p-value of a gain in groups of items, (groups,): the share of random sign flips of them with at least its sum."""
    totals = _signs(len(gains)) @ gains
    return float((totals >= gains.sum() - 1e-9).mean())


def _signs(groups: int) -> NDArray[np.float64]:
    """Sign flips of groups, the observed signs first, (flips, groups)."""
    if 2**groups <= _FLIPS:
        return np.array(list(product((1.0, -1.0), repeat=groups)))
    signs = np.random.default_rng(0).choice((1.0, -1.0), (_FLIPS, groups))
    signs[0] = 1
    return signs
