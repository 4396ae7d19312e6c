"""Anytime-valid upper bound on missed objects, by betting: it holds at every moment of an audit.

Block b of N would yield `y_b` objects not yet found if it were refined. These are fixed, unknown numbers: only the
choice of blocks is random. The bound needs no knowledge of where objects are or how good the scores are (they only
decide how soon it becomes small); its one assumption is a cap on the objects that a block can hold.

Draw i, of probability pi_i among the blocks still unknown, makes `K + y_i / pi_i` an unbiased estimate of the total T
(K: objects in the known blocks), whatever was drawn and refined before. A bet that wins if the estimate is below tau,
and loses if it is above, therefore gains nothing in the mean if T >= tau, and its wealth ever reaches 1 / alpha with
probability at most alpha [1]_: once it does, tau is ruled out [2]_ [3]_; unequal probabilities as in [4]_ and [5]_.
The wealth here is the sum over ten bet sizes [6]_, whose initial shares follow from what the scan expects; the largest
bet alone gives the "rule of three", 3 cap N / n after n draws without a find.

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

# Bet sizes, as shares of the largest bet that cannot lose more than the wealth.
_STAKES = np.array([0.03, 0.08, 0.16, 0.28, 0.42, 0.58, 0.72, 0.84, 0.93, 0.985])
# Prior over bet sizes: the scan's expectation weighs as much as draws enough to certify twice; mixed with this uniform
# share.
_TRUST, _EVEN = 2.0, 0.15
# Share of the expected objects that is spread evenly over all blocks, in case the scan is blind to them.
_BLIND = 0.2
# Resolution of candidate totals: single objects up to the first number, relative steps of the second above it.
_SINGLE, _STEP = 64, 0.01
_CHUNK, _BINS = 32, 40
# Draws are planned for at most this many groups of similar blocks.
_GROUPS = 512


def audit_weights(expected: ArrayLike, cap: ArrayLike, target: float) -> _Floats:
    """Sampling weights with which the bound reaches `target` soonest, if the scan's expectation is right.

    The weight of a block is its cap, so that unexpected objects are found too, plus a term in proportion to the square
    root of the objects expected there (within 2 % of the best weights in our trials).

    Parameters
    ----------
    expected : array_like, (n,)
        Objects that the scan expects in each block. If it is wrong, the audit takes longer and stays valid.
    cap : array_like, () or (n,)
        Most objects in a block.
    target : float
        Objects that may be missed.

    Returns
    -------
    ndarray, float64, (n,)
    """
    smoothed, caps = _smoothed(expected, cap, target)
    if not smoothed.any():
        return caps
    slope_of = caps.mean() * np.sqrt(smoothed / smoothed.mean())
    count, some, rooms, slopes = _groups(np.lexsort((smoothed, caps)), smoothed, caps, slope_of)
    best, chosen = -np.inf, 0.0
    for slope in (0.0, *np.geomspace(0.01, 1000, 30).tolist()):
        trial = rooms + slope * slopes
        scale = float((trial * count).sum() * (rooms / trial).max())
        growth = float(_growth(np.array([min(target / scale, 0.9)]), *_bins(some, trial, scale, count)).max())
        if growth > best:
            best, chosen = growth, slope
    return np.asarray(caps + chosen * slope_of)


def doubling(caps: ArrayLike, found: ArrayLike) -> int:
    """Least power of two that multiplies the caps so that no number found exceeds its cap."""
    excess = np.asarray(found, np.float64) / np.asarray(caps, np.float64)
    return 1 << max(0, math.ceil(math.log2(max(1.0, float(excess.max(initial=0))))))


def _smoothed(expected: ArrayLike, cap: ArrayLike, target: float) -> tuple[_Floats, _Floats]:
    """The expectation, a part of it spread evenly, and the caps; both checked."""
    smoothed = np.asarray(expected, np.float64)
    if smoothed.ndim != 1 or not np.isfinite(smoothed).all() or (smoothed < 0).any():
        raise ValueError("expected must be a finite number of objects, 0 or more, for each block")
    caps = np.broadcast_to(np.asarray(cap, np.float64), smoothed.shape).copy()
    if not np.isfinite(caps).all() or (caps < 1).any() or not target > 0:
        raise ValueError("caps must be 1 or more and the target above 0; leave out blocks that can hold nothing")
    return (1 - _BLIND) * smoothed + _BLIND * smoothed.mean() if len(smoothed) else smoothed, caps


def _groups(order: _Indices, *values: _Floats) -> tuple[_Floats, ...]:
    """Sizes of groups of neighbours in an order, and each value's mean in a group: accurate enough for planning."""
    if not len(order):
        return tuple(np.zeros(0) for _ in range(len(values) + 1))
    edges = np.unique(np.linspace(0, len(order), _GROUPS, endpoint=False).astype(np.intp))
    count = np.diff(edges, append=len(order)).astype(np.float64)
    return (count, *(np.add.reduceat(value[order], edges) / count for value in values))


def _bins(smoothed: _Floats, weights: _Floats, scale: float, count: _Floats | float = 1.0) -> tuple[_Floats, _Floats]:
    """Rates of finds, and their sizes as shares of `scale`, if every find is a single object."""
    if not len(weights):
        return np.zeros(0), np.zeros(0)
    chance = weights / (weights * count).sum()
    rate, size = chance * np.minimum(smoothed, 1) * count, 1 / (chance * scale)
    order = np.argsort(size)
    # Neighbours in size hardly differ: a few bins suffice for many blocks.
    edges = np.unique(np.linspace(0, len(order), _BINS, endpoint=False).astype(np.intp))
    rates = np.add.reduceat(rate[order], edges)
    return rates, np.add.reduceat((rate * size)[order], edges) / np.maximum(rates, 1e-300)


def _growth(q: _Floats, rates: _Floats, sizes: _Floats) -> _Floats:
    """Mean log-growth of wealth per draw, (len(q), bet sizes)."""
    lever = _STAKES / (1 - q[:, None])
    idle = np.log1p(lever * q[:, None])
    hit = np.log1p(lever[..., None] * (q[:, None, None] - sizes))
    return np.asarray(idle + (rates * (hit - idle[..., None])).sum(axis=-1))


class BettingMartingale:
    """Wealth of ten bet sizes for each candidate total; totals from `top` on are ruled out.

    A row stands for the totals from its own up to the next row's: a bet against the least holds for the others too.
    """

    def __init__(self, room: float, smoothed: _Floats, weights: _Floats, scale: float, limit: float) -> None:
        self.top, self._limit = room + 1, limit
        steps = np.exp(np.arange(math.log(_SINGLE), math.log(max(self.top, _SINGLE)), _STEP))
        rows = np.concatenate([np.arange(min(_SINGLE, self.top)), np.ceil(steps)])
        self.totals = np.unique(rows[rows < self.top])
        self._open = np.ones(len(self.totals), bool)
        growth = _growth(np.minimum(self.totals / scale, 1 - 1e-6), *_bins(smoothed, weights, scale))
        most = np.maximum(growth.max(axis=1, keepdims=True), 1e-300)
        money = np.exp(np.maximum(_TRUST * math.log(limit) * (growth / most - 1), -50)) * (growth > 0) + 1e-12
        self.wealth = _EVEN / len(_STAKES) + (1 - _EVEN) * money / money.sum(axis=1, keepdims=True)

    def play(self, before: _Floats, scale: _Floats, rest: _Floats) -> None:
        """Update the wealth by draws: objects known before each, its largest possible estimate of the rest, its own."""
        for start in range(0, len(before), _CHUNK):
            known, most, z = (a[start : start + _CHUNK, None] for a in (before, scale, rest))
            # 1 - q must not be 0; a smaller bet stays fair.
            q = np.clip((self.totals - known) / most, 0, 1 - 1e-6)
            gain = np.where(self.totals > known, (q - z / most) / (1 - q), 0)
            path = np.cumprod(1 + _STAKES * gain[..., None], axis=0) * self.wealth
            # A total once ruled out stays so: the bound never rises.
            self._open &= path.sum(axis=2).max(axis=0) < self._limit
            end = int(np.flatnonzero(self._open)[-1]) + 1
            if end < len(self.totals):
                self.top = float(self.totals[end])
            self.totals, self._open = self.totals[:end], self._open[:end]
            # The wealth of rows that are ruled out may grow without limit: it must not overflow.
            self.wealth = np.minimum(path[-1, :end], 1e30)


class MissBound:
    """Upper bound on the objects in skipped blocks, under any rule of stopping and of refining further blocks.

    It holds with the stated confidence, at all times together, if no block holds more than its cap. If a block turns
    out to hold more, all caps are doubled until none does, and the bound is computed anew from all draws. That costs no
    confidence: the first doubling that is true of all blocks does not depend on the draws, the bound holds for it, and
    the caps never exceed it; smaller caps claim nothing, since the claim is "if no block holds more".

    Parameters
    ----------
    expected : array_like, (n,)
        Objects that the scan expects in each block: sets weights and bets. If all are equal, draws are uniform.
    cap : array_like, () or (n,)
        Most objects in a block, 1 or more.
    target : float
        Objects that may be missed; weights and bets are optimised for it.
    confidence : float
        Probability with which the bound holds.
    seed : int
        Seed of the draws.
    weights : array_like, (n,), optional
        Sampling weights above 0; by default `audit_weights`. Bounds with equal weights and seed draw the same blocks.

    Attributes
    ----------
    weights : ndarray, float64, (n,)
        Sampling weights: the probability of drawing an unknown block is in proportion to its weight.
    known : int
        Objects in the known blocks (K).
    audited : int
        Blocks drawn and entered.

    Raises
    ------
    ValueError
        If a number is out of its range.
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
        self._smoothed, self._caps = _smoothed(expected, cap, target)
        if not 0 < confidence < 1:
            raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
        own = audit_weights(expected, self._caps, target) if weights is None else weights
        self.weights = np.array(own, np.float64)
        self.known = self.audited = self._drawn_finds = self._shown = 0
        self._drawn_expected, self._doubled = 0.0, 1
        self._limit = 1 / (1 - confidence)
        self._ratios = self._caps / self.weights
        self._unknown = np.ones(len(self._caps), bool)
        self._rng = np.random.default_rng(seed)
        self._order = self._race()
        # For each draw: objects known before it, largest possible estimate of the rest, its estimate, its weight.
        self._draws = np.zeros((4, 0))
        self._bets = self._opening()

    @property
    def cap(self) -> float:
        """Most objects in a block, as assumed now: the largest cap, doubled if it proved too small."""
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

        The mean of the unbiased estimates of all draws, weighted by the inverse square of the sampling weight left at
        each. For uniform draws that is the mean of the sample times the number of blocks.
        """
        if not self.unknown:
            return float(self.known)
        if not self.audited:
            return math.nan
        before, _, rest, trust = self._draws
        return max(float(self.known), float(((before + rest) * trust).sum() / trust.sum()))

    @property
    def expected(self) -> float:
        """Objects expected in the blocks still unknown: the scan's expectation, corrected by the draws so far.

        Biased, but of less variance than `estimate` while draws are few.
        """
        return float(self._smoothed[self._unknown].sum()) * self._correction

    @property
    def _correction(self) -> float:
        return (1 + self._drawn_finds) / (1 + self._drawn_expected)

    def draw(self, count: int) -> _Indices:
        """The next `count` blocks to audit, in order, or all that are unknown; the same until `see` enters them."""
        index = self._order[self._unknown[self._order]][:count]
        self._shown = max(self._shown, len(index))
        return index

    def see(self, indices: ArrayLike, found: ArrayLike) -> None:
        """Enter the objects in drawn blocks: the first that `draw` gives, in its order.

        Parameters
        ----------
        indices, found : array_like, int, (n,)
            Blocks, and the objects in each.

        Raises
        ------
        ValueError
            If they are other blocks: the bound would not hold.
        """
        index, y = self._checked(indices, found)
        if not np.array_equal(index, self.draw(len(index))):
            raise ValueError("see() takes the blocks that draw() gave, from the first, in its order; know() any others")
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
        self._drawn_expected += float(self._smoothed[index].sum())
        if not self._raise_caps(index, y):
            self._bets.play(fresh[0], fresh[1] * self._doubled, fresh[2])

    def know(self, indices: ArrayLike, found: ArrayLike) -> None:
        """Enter the objects in blocks that were refined without being drawn.

        Blocks drawn but not entered yet go back into the draw, since knowing them may have influenced this choice.

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
        """Likely number of draws until the bound is down to `missed`, at most all blocks left.

        Uses the expectation given to the bound, corrected by the draws so far.
        """
        if self.missed <= missed:
            return 0
        every, mass = self.weights[self._unknown], float(self.weights[self._unknown].sum())
        count, weights, smoothed = _groups(np.argsort(every), every, self._smoothed[self._unknown] * self._correction)
        scale = mass * float(self._ratios[self._unknown].max()) * self._doubled
        bins = _bins(smoothed, weights, scale, count)
        # Drawing without replacement equals a race of exponential clocks (see _race): log-wealth is linear in its time.
        for time in np.geomspace(0.5, 50 * len(every), 200) / mass:
            drawn = -np.expm1(-time * weights) * count
            total = self.known + missed + float((smoothed * drawn).sum())
            row = int(np.searchsorted(self._bets.totals, total + 1, side="right")) - 1
            q = np.clip((self._bets.totals[[row]] - self.known) / scale, 0, 1 - 1e-6)
            gain = _growth(q, *bins)[0] * time * mass
            if (self._bets.wealth[row] * np.exp(np.minimum(gain, 300))).sum() >= self._limit:
                return math.ceil(float(drawn.sum()))
        return len(every)

    def _checked(self, indices: ArrayLike, found: ArrayLike) -> tuple[_Indices, _Indices]:
        index, y = (np.asarray(a, np.int64) for a in (indices, found))
        if index.ndim != 1 or index.shape != y.shape or (y < 0).any() or (index < 0).any():
            raise ValueError("expected a list of blocks, and for each a number of objects, 0 or more")
        if len(np.unique(index)) < len(index) or not self._unknown[index].all():
            raise ValueError("a block is entered once: one of these is known already")
        return index, y

    def _race(self) -> _Indices:
        """Order of draws: by exponential variables whose rates are the weights.

        Whichever blocks are removed, the next in order is distributed by the weights of those left.
        """
        return np.argsort(self._rng.exponential(size=len(self.weights)) / self.weights)

    def _opening(self) -> BettingMartingale:
        scale = max(1.0, float(self.weights.sum() * self._ratios.max(initial=0)))
        room = self._doubled * float(self._caps.sum())
        return BettingMartingale(room, self._smoothed, self.weights, scale * self._doubled, self._limit)

    def _learn(self, index: _Indices, y: _Indices) -> None:
        self._unknown[index] = False
        self.known += int(y.sum())

    def _raise_caps(self, index: _Indices, y: _Indices) -> bool:
        """Double the caps and replay all draws, if a block holds more than its cap; whether it did."""
        factor = doubling(self._caps[index], y)
        if factor <= self._doubled:
            return False
        self._doubled = factor
        self._bets = self._opening()
        self._bets.play(self._draws[0], self._draws[1] * factor, self._draws[2])
        return True
