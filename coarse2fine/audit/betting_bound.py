"""A bound on what was missed that holds at every moment of an audit.

Block b of N would yield `y_b` objects not yet found if it were refined: fixed, unknown numbers, so that the only chance
is in the choice of blocks. Nothing need be known of where the objects are, or of how good the scores are, which only
decide how soon the bound becomes small; the one assumption is a cap on the objects that a block can hold.

A draw i, of probability pi_i among the blocks still unknown, makes `K + y_i / pi_i` an unbiased estimate of the total T
(K: what the known blocks hold), whatever was drawn and refined before. A stake that wins where the estimate is below
tau, and loses where it is above, therefore has no mean gain if T >= tau, and with probability alpha at most its wealth
ever reaches 1 / alpha [1]_: once it does, tau is ruled out [2]_ [3]_; unequal probabilities are as in [4]_ and [5]_.
The wealth here is that of ten stakes together [6]_, the money on each in the beginning following from what the scan
expects; the largest stake alone gives the "rule of three", 3 cap N / n after n draws without a find.

References
----------
.. [1] J. Ville, Etude critique de la notion de collectif, 1939.
.. [2] I. Waudby-Smith, A. Ramdas, Confidence sequences for sampling without replacement, NeurIPS 2020.
.. [3] I. Waudby-Smith, A. Ramdas, Estimating means of bounded random variables by betting, JRSS B 86, 2024.
.. [4] S. Shekhar, Z. Xu, Z. Lipton, P. Liang, A. Ramdas, Risk-limiting financial audits via weighted sampling without
   replacement, UAI 2023.
.. [5] P. Stark, ALPHA: audit that learns from previously hand-audited ballots, Ann. Appl. Stat. 17, 2023.
.. [6] T. Cover, Universal portfolios, Mathematical Finance 1, 1991.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MissBound", "audit_weights", "doubling"]

_Floats = NDArray[np.float64]
_Indices = NDArray[np.int64]

# Stakes, as shares of the largest that cannot lose more than all.
_STAKES = np.array([0.03, 0.08, 0.16, 0.28, 0.42, 0.58, 0.72, 0.84, 0.93, 0.985])
# What the scan expects counts like draws enough to certify twice, but for a part of the money spread evenly.
_TRUST, _EVEN = 2.0, 0.15
# This share of the objects is looked for where the scan expects none.
_BLIND = 0.2
# Totals are told apart one by one up to the first number, by the second in proportion from there on.
_SINGLE, _STEP = 64, 0.01
_CHUNK, _BINS = 32, 40
# Plans are made for so many groups of like blocks, however many blocks there are.
_GROUPS = 512


def audit_weights(expected: ArrayLike, cap: ArrayLike, target: float) -> _Floats:
    """Weights of drawing with which the bound comes down to `target` soonest, if things are as expected.

    Every block has its cap for a weight, so that objects where none are expected come to light too, and adds to it in
    proportion to the square root of what is expected there (within 2 % of the best weights in our trials).

    Parameters
    ----------
    expected : array_like, (n,)
        Objects that the scan expects in each block. Where it is wrong the audit is longer, and no less true.
    cap : array_like, () or (n,)
        Most objects in a block.
    target : float
        Objects that may be missed.

    Returns
    -------
    ndarray, float64, (n,)
    """
    hoped, caps = _hoped(expected, cap, target)
    if not hoped.any():
        return caps
    slope_of = caps.mean() * np.sqrt(hoped / hoped.mean())
    count, some, rooms, slopes = _groups(np.lexsort((hoped, caps)), hoped, caps, slope_of)
    best, chosen = -np.inf, 0.0
    for slope in (0.0, *np.geomspace(0.01, 1000, 30).tolist()):
        trial = rooms + slope * slopes
        scale = float((trial * count).sum() * (rooms / trial).max())
        growth = float(_growth(np.array([min(target / scale, 0.9)]), some, trial, scale, count).max())
        if growth > best:
            best, chosen = growth, slope
    return np.asarray(caps + chosen * slope_of)


def doubling(caps: ArrayLike, found: ArrayLike) -> int:
    """Least power of two by which to multiply caps so that none of the numbers found is above its own."""
    excess = np.asarray(found, np.float64) / np.asarray(caps, np.float64)
    return 1 << max(0, math.ceil(math.log2(max(1.0, float(excess.max(initial=0))))))


def _hoped(expected: ArrayLike, cap: ArrayLike, target: float) -> tuple[_Floats, _Floats]:
    """The expectation with a part of it spread evenly, and the caps."""
    hoped = np.asarray(expected, np.float64)
    if hoped.ndim != 1 or not np.isfinite(hoped).all() or (hoped < 0).any():
        raise ValueError("expected: a finite number of objects, 0 or more, is wanted for each block")
    caps = np.broadcast_to(np.asarray(cap, np.float64), hoped.shape).copy()
    if not np.isfinite(caps).all() or (caps < 1).any() or not target > 0:
        raise ValueError("caps of 1 or more and a target above 0 are wanted; leave out blocks that can hold nothing")
    return (1 - _BLIND) * hoped + _BLIND * hoped.mean() if len(hoped) else hoped, caps


def _groups(order: _Indices, *values: _Floats) -> tuple[_Floats, ...]:
    """Sizes of groups of neighbours in an order, and the mean of each value in them: for plans, which need no more."""
    if not len(order):
        return tuple(np.zeros(0) for _ in range(len(values) + 1))
    edges = np.unique(np.linspace(0, len(order), _GROUPS, endpoint=False).astype(np.intp))
    count = np.diff(edges, append=len(order)).astype(np.float64)
    return (count, *(np.add.reduceat(value[order], edges) / count for value in values))


def _growth(q: _Floats, hoped: _Floats, weights: _Floats, scale: float, count: _Floats | float = 1.0) -> _Floats:
    """Mean growth of the logarithm of each stake's wealth in a draw, (len(q), stakes); finds are single objects."""
    lever = _STAKES / (1 - q[:, None])
    idle = np.log1p(lever * q[:, None])
    if not len(weights):
        return np.asarray(idle)
    chance = weights / (weights * count).sum()
    rate, size = chance * np.minimum(hoped, 1) * count, 1 / (chance * scale)
    order = np.argsort(size)
    # Neighbours in size hardly differ: a few bins do for many blocks.
    edges = np.unique(np.linspace(0, len(order), _BINS, endpoint=False).astype(np.intp))
    rates = np.add.reduceat(rate[order], edges)
    sizes = np.add.reduceat((rate * size)[order], edges) / np.maximum(rates, 1e-300)
    hit = np.log1p(lever[..., None] * (q[:, None, None] - sizes))
    return np.asarray(idle + (rates * (hit - idle[..., None])).sum(axis=-1))


class BettingMartingale:
    """Money on ten stakes against totals; all from `top` on are ruled out.

    A row stands for the totals from its own up to the next row's: a stake against the least is one against the others.
    """

    def __init__(self, room: float, hoped: _Floats, weights: _Floats, scale: float, limit: float) -> None:
        self.top, self._limit = room + 1, limit
        steps = np.exp(np.arange(math.log(_SINGLE), math.log(max(self.top, _SINGLE)), _STEP))
        rows = np.concatenate([np.arange(min(_SINGLE, self.top)), np.ceil(steps)])
        self.totals = np.unique(rows[rows < self.top])
        self._open = np.ones(len(self.totals), bool)
        growth = _growth(np.minimum(self.totals / scale, 1 - 1e-6), hoped, weights, scale)
        most = np.maximum(growth.max(axis=1, keepdims=True), 1e-300)
        money = np.exp(np.maximum(_TRUST * math.log(limit) * (growth / most - 1), -50)) * (growth > 0) + 1e-12
        self.wealth = _EVEN / len(_STAKES) + (1 - _EVEN) * money / money.sum(axis=1, keepdims=True)

    def play(self, before: _Floats, scale: _Floats, rest: _Floats) -> None:
        """Let draws win or lose the stakes; of each: known before, the rest at most, the rest as it estimates it."""
        for start in range(0, len(before), _CHUNK):
            known, most, z = (a[start : start + _CHUNK, None] for a in (before, scale, rest))
            # A lesser stake is as fair, and 1 - q must not be 0.
            q = np.clip((self.totals - known) / most, 0, 1 - 1e-6)
            gain = np.where(self.totals > known, (q - z / most) / (1 - q), 0)
            path = np.cumprod(1 + _STAKES * gain[..., None], axis=0) * self.wealth
            # Once ruled out is ruled out for good: the bound never rises.
            self._open &= path.sum(axis=2).max(axis=0) < self._limit
            end = int(np.flatnonzero(self._open)[-1]) + 1
            if end < len(self.totals):
                self.top = float(self.totals[end])
            self.totals, self._open = self.totals[:end], self._open[:end]
            # The wealth of rows ruled out in between matters no longer, and must not overflow.
            self.wealth = np.minimum(path[-1, :end], 1e30)


class MissBound:
    """Upper bound on the objects in skipped blocks, under any rule of stopping and of refining further blocks.

    It holds with the stated confidence, at all times together, if no block holds more than its cap. Where one is seen
    to hold more, all caps are doubled until none does, and the bound is computed anew from all draws, at no loss of
    confidence: the caps never exceed the first doubling that is true of all blocks. For that one, which does not depend
    on the draws, the bound holds; for a lesser one nothing is claimed, the claim being "if no block holds more".

    Parameters
    ----------
    expected : array_like, (n,)
        Objects that the scan expects in each block: decides weights and stakes. All alike, blocks are drawn uniformly.
    cap : array_like, () or (n,)
        Most objects in a block, 1 or more.
    target : float
        Objects that may be missed; weights and stakes are made for it.
    confidence : float
        Probability with which the bound holds.
    seed : int
        Of the draws.
    weights : array_like, (n,), optional
        Above 0; by default `audit_weights`. Bounds with the same weights and seed draw the same blocks.

    Attributes
    ----------
    weights : ndarray, float64, (n,)
        A block is drawn among those unknown with a probability in proportion to these.
    known : int
        Objects in the known blocks (K).
    audited : int
        Blocks drawn and seen.

    Raises
    ------
    ValueError
        Where a number is out of its range.
    """

    def __init__(
        self,
        expected: ArrayLike,
        cap: ArrayLike,
        *,
        target: float,
        confidence: float = 0.95,
        seed: int = 0,
        weights: ArrayLike | None = None,
    ) -> None:
        self._hoped, self._caps = _hoped(expected, cap, target)
        if not 0 < confidence < 1:
            raise ValueError(f"a confidence between 0 and 1 is wanted, not {confidence}")
        own = audit_weights(expected, self._caps, target) if weights is None else weights
        self.weights = np.array(own, np.float64)
        self.known = self.audited = self._drawn_finds = self._shown = 0
        self._drawn_hopes, self._doubled = 0.0, 1
        self._limit = 1 / (1 - confidence)
        self._ratios = self._caps / self.weights
        self._unknown = np.ones(len(self._caps), bool)
        self._rng = np.random.default_rng(seed)
        self._order = self._race()
        # For each draw: known objects before it, the most it could estimate the rest to be, what it did, its trust.
        self._draws = np.zeros((4, 0))
        self._bets = self._opening()

    @property
    def cap(self) -> float:
        """Most objects in a block, as assumed now: the largest cap, doubled where it was seen to be too small."""
        return float(self._caps.max(initial=0) * self._doubled)

    @property
    def unknown(self) -> int:
        """Blocks still unknown."""
        return int(self._unknown.sum())

    @property
    def upper(self) -> int:
        """Bound on the objects in all blocks."""
        room = self._doubled * float(self._caps[self._unknown].sum())
        return max(self.known, min(math.ceil(self._bets.top) - 1, math.floor(self.known + room)))

    @property
    def missed(self) -> int:
        """Bound on the objects in the blocks still unknown."""
        return self.upper - self.known

    @property
    def estimate(self) -> float:
        """Estimate of the objects in all blocks, never below those known; NaN before the first draw.

        The mean of the unbiased estimates of all draws, by the weight left at each. For uniform draws that is the
        mean of the sample times the blocks.
        """
        if not self.unknown:
            return float(self.known)
        if not self.audited:
            return math.nan
        before, _, rest, trust = self._draws
        return max(float(self.known), float(((before + rest) * trust).sum() / trust.sum()))

    @property
    def hoped(self) -> float:
        """Objects to be expected in the blocks still unknown: what the scan expects, corrected by the draws so far.

        Steadier than `estimate` while draws are few, and not unbiased.
        """
        return float(self._hoped[self._unknown].sum()) * self._correction

    @property
    def _correction(self) -> float:
        return (1 + self._drawn_finds) / (1 + self._drawn_hopes)

    def draw(self, count: int) -> _Indices:
        """The next blocks to audit, in order: `count`, or all that are unknown. The same again until they are seen."""
        index = self._order[self._unknown[self._order]][:count]
        self._shown = max(self._shown, len(index))
        return index

    def see(self, indices: ArrayLike, found: ArrayLike) -> None:
        """Enter what drawn blocks hold: the first ones that `draw` gives, in its order.

        Parameters
        ----------
        indices, found : array_like, int, (n,)
            Blocks, and the objects in each.

        Raises
        ------
        ValueError
            Where the blocks are others: the bound would not hold.
        """
        index, y = self._checked(indices, found)
        if not np.array_equal(index, self.draw(len(index))):
            raise ValueError("see() wants the blocks that draw() gave, from the first, in its order; know() any others")
        if not len(index):
            return
        weights, left = self.weights[index], self.unknown - np.arange(len(index))
        mass = self.weights[self._unknown].sum() - (np.cumsum(weights) - weights)
        before = self.known + np.cumsum(y) - y
        self._learn(index, y)
        others = self._ratios[self._unknown].max(initial=0)
        largest = np.maximum(np.maximum.accumulate(self._ratios[index][::-1])[::-1], others)
        trust = left / (np.maximum(left - 1, 0.5) * mass**2)
        fresh = np.stack([before, mass * largest, y * mass / weights, trust])
        self._draws = np.concatenate([self._draws, fresh], axis=1)
        self.audited += len(index)
        self._shown -= len(index)
        self._drawn_finds += int(y.sum())
        self._drawn_hopes += float(self._hoped[index].sum())
        if not self._raise_caps(index, y):
            self._bets.play(fresh[0], fresh[1] * self._doubled, fresh[2])

    def know(self, indices: ArrayLike, found: ArrayLike) -> None:
        """Enter what blocks hold that were refined for another reason than a draw.

        What was drawn and not seen is put back: a glimpse of the next draws must not choose among them.

        Parameters
        ----------
        indices, found : array_like, int, (n,)
            Unknown blocks, and the objects in each.
        """
        index, y = self._checked(indices, found)
        if self._shown:
            self._order, self._shown = self._race(), 0
        self._learn(index, y)
        self._raise_caps(index, y)

    def planned_draws(self, missed: float) -> int:
        """Draws from here until `missed` is likely to be down to a number; all blocks left where it is not before.

        Counts on the expectation that the bound was made with, scaled by what the draws have found so far.
        """
        if self.missed <= missed:
            return 0
        every, mass = self.weights[self._unknown], float(self.weights[self._unknown].sum())
        count, weights, hoped = _groups(np.argsort(every), every, self._hoped[self._unknown] * self._correction)
        scale = mass * float(self._ratios[self._unknown].max()) * self._doubled
        # Drawing without replacement is a race of clocks (see _race), in whose time wealth grows evenly.
        for time in np.geomspace(0.5, 50 * len(every), 200) / mass:
            drawn = -np.expm1(-time * weights) * count
            total = self.known + missed + float((hoped * drawn).sum())
            row = int(np.searchsorted(self._bets.totals, total + 1, side="right")) - 1
            q = np.clip((self._bets.totals[[row]] - self.known) / scale, 0, 1 - 1e-6)
            gain = _growth(q, hoped, weights, scale, count)[0] * time * mass
            if (self._bets.wealth[row] * np.exp(np.minimum(gain, 300))).sum() >= self._limit:
                return math.ceil(float(drawn.sum()))
        return len(every)

    def _checked(self, indices: ArrayLike, found: ArrayLike) -> tuple[_Indices, _Indices]:
        index, y = (np.asarray(a, np.int64) for a in (indices, found))
        if index.ndim != 1 or index.shape != y.shape or (y < 0).any() or (index < 0).any():
            raise ValueError("a list of blocks, and for each a number of objects, 0 or more, are wanted")
        if len(np.unique(index)) < len(index) or not self._unknown[index].all():
            raise ValueError("a block is entered once: one of these is known already")
        return index, y

    def _race(self) -> _Indices:
        """Order of drawing: that in which exponential clocks ring, at rates that are the weights.

        Whatever blocks are taken out of the race, the next to ring is drawn by the weights of those left.
        """
        return np.argsort(self._rng.exponential(size=len(self.weights)) / self.weights)

    def _opening(self) -> BettingMartingale:
        scale = max(1.0, float(self.weights.sum() * self._ratios.max(initial=0)))
        room = self._doubled * float(self._caps.sum())
        return BettingMartingale(room, self._hoped, self.weights, scale * self._doubled, self._limit)

    def _learn(self, index: _Indices, y: _Indices) -> None:
        self._unknown[index] = False
        self.known += int(y.sum())

    def _raise_caps(self, index: _Indices, y: _Indices) -> bool:
        """Double the caps and play all draws again, if that is called for."""
        factor = doubling(self._caps[index], y)
        if factor <= self._doubled:
            return False
        self._doubled = factor
        self._bets = self._opening()
        self._bets.play(self._draws[0], self._draws[1] * factor, self._draws[2])
        return True
