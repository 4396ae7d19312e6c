"""Whether columns help at all: what they gain on held-back groups of items, and how often luck alone gains as much.

The decisions (by how much columns are shrunk, which of them stay, where they are asked) are made on all held-back
groups, and what they gain there is too good to be true. So all decisions are made again with the signs of whole groups'
gains flipped at random: if columns do not help, a group's gain is as likely to be a loss of the same size, and what is
decided then gains as much by luck alone. The share of flips that gain at least as much is the p-value of exactly what
is shipped, and is right for few groups, heavy tails, items that are alike within a group, and any number of columns.

What surely hurts is no candidate for luck: its losses, turned into gains, would hide whatever helps beside it (Hansen's
test of superior predictive ability, 2005). So only what is left of it is flipped when its mean is taken off.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# The chance that specialists are kept although none helps, whatever is tried in one fit.
LEVEL = 0.05
# Up to 8 groups all signs are tried; of more groups a random choice, which holds the level as well.
_FLIPS = 256
# What loses more than so many standard errors surely hurts.
_SURELY = 3.0
# Where columns are asked is the band in which fewest items lie, of those that keep this share of the gain.
_GAIN_KEPT = 0.9


class Columns(Protocol):
    """What columns gain on held-back items, under every decision about them.

    Attributes
    ----------
    sizes : ndarray, float64, (columns, groups)
        Items that come to each column.
    depths : ndarray, int64, (columns,)
        Columns of one depth are compared with each other.
    shares : int
        How many shares of what columns add are tried.
    """

    sizes: NDArray[np.float64]
    depths: NDArray[np.int64]
    shares: int

    def alone(self, share: int) -> NDArray[np.float64]:
        """What each column takes off the loss of its items, (columns, groups)."""

    def stays(self, gains: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which columns stay, (columns,), by what each is believed to gain."""

    def whole(self, share: int, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What those that stay gain, and how often they are asked; each (gates, groups), the open gate first."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What is made of columns.

    Parameters
    ----------
    share : int
        Number of the share of what columns add.
    kept : ndarray, bool, (columns,)
    gate : int
        Number of the gate.
    gain : float
        What that takes off the loss of the items that decided.
    """

    share: int
    kept: NDArray[np.bool_]
    gate: int
    gain: float


def decide(columns: Columns, signs: NDArray[np.float64]) -> Decision:
    """The share, the columns and the gate that gain most.

    Parameters
    ----------
    columns : Columns
    signs : ndarray, float64, (groups,)
        1 for groups that decide, 0 for the others; -1 turns gains into losses.
    """
    tried = []
    for share in range(columns.shares):
        alone, sizes = _turned(columns.alone(share), columns.sizes, signs), columns.sizes * np.abs(signs)
        kept = columns.stays(believed(alone, sizes, columns.depths))
        gains, asked = columns.whole(share, kept)
        tried.append((_turned(gains, asked, signs).sum(axis=1), asked @ np.abs(signs), share, kept))
    gains, asked, share, kept = max(tried, key=lambda each: float(each[0][0]))
    gates = np.arange(1, len(gains)) if len(gains) > 1 else np.arange(1)
    most = gains[gates].max()
    enough = gates[gains[gates] >= most - (1 - _GAIN_KEPT) * abs(most)]
    gate = min(enough.tolist(), key=lambda g: (asked[g], -gains[g]))
    return Decision(share, kept, gate, float(gains[gate]))


def _turned(gains: NDArray[np.float64], sizes: NDArray[np.float64], signs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gains (rows, groups) with these signs; of rows that surely hurt, all but the mean of an item has them."""
    if signs.min(initial=1) >= 0:
        return gains * signs
    mean = gains.sum(axis=1, keepdims=True) / np.maximum(sizes.sum(axis=1, keepdims=True), 1)
    groups = (sizes > 0).sum(axis=1)
    spread = ((gains - mean * sizes) ** 2).sum(axis=1) * groups / np.maximum(groups - 1, 1)
    hurts = (groups > 1) & (gains.sum(axis=1) < -_SURELY * np.sqrt(spread))
    stays = mean * sizes * hurts[:, None]
    return np.asarray((gains - stays) * signs + stays)


def believed(gains: NDArray[np.float64], sizes: NDArray[np.float64], depths: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each column is believed to gain: its own gain, drawn toward that of all as far as its items tell too little.

    Of many columns the best look better, and the worst worse, than they are (empirical Bayes, as James and Stein; the
    spread between columns by the method of moments).

    Parameters
    ----------
    gains, sizes : ndarray, float64, (columns, groups)
        What each column takes off the loss, and how many items it was asked for.
    depths : ndarray, int64, (columns,)

    Returns
    -------
    ndarray, float64, (columns,)
        In all; of a column without items, for one.
    """
    found = np.zeros(len(gains))
    for depth in np.unique(depths):
        at = depths == depth
        g, n = gains[at], sizes[at]
        count, groups = n.sum(axis=1), (n > 0).sum(axis=1)
        every = max(float(count.sum()), 1.0)
        mean, some = float(g.sum()) / every, np.maximum(count, 1)
        own = g.sum(axis=1) / some
        # Groups, not items, are independent; a few of them tell little of their own spread, so that of all counts too.
        spread = ((g - own[:, None] * n) ** 2).sum(axis=1) * groups / np.maximum(groups - 1, 1)
        shared = float(spread.sum()) / every * some
        error = np.where(groups > 1, (spread + shared) / 2, shared) / some**2
        between = max(0.0, float((count * ((own - mean) ** 2 - error)).sum()) / every)
        weight = np.where(count > 0, between / np.maximum(between + error, 1e-300), 0.0)
        found[at] = (mean + weight * (own - mean)) * some
    return found


def chance(columns: Columns, decision: Decision) -> float:
    """How likely columns that do not help gain as much as what was decided on all groups.

    Parameters
    ----------
    columns : Columns
    decision : Decision
        By all groups.

    Returns
    -------
    float
        A p-value; one above `LEVEL` is at least that and not computed to the end. It is 1 if nothing is gained.
    """
    if not decision.gain > 0:
        return 1.0
    signs = _signs(columns.sizes.shape[1])
    reached = 1  # by what is so
    for flipped in signs[1:]:
        # Sums in another order differ in the last digits.
        reached += decide(columns, flipped).gain >= decision.gain * (1 - 1e-9)
        if reached > LEVEL * len(signs):
            break
    return reached / len(signs)


def _signs(groups: int) -> NDArray[np.float64]:
    """Signs of groups, the true ones first, (flips, groups)."""
    if 2**groups <= _FLIPS:
        return np.array(list(product((1.0, -1.0), repeat=groups)))
    signs = np.random.default_rng(0).choice((1.0, -1.0), (_FLIPS, groups))
    signs[0] = 1
    return signs
