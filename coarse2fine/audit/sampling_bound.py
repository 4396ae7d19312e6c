"""Bounds on missed objects from an audit of fixed size, in one image or pooled over many, and the recall they imply.

Each skipped block is audited with a probability fixed beforehand, independently of the others. The sum of the audited
blocks' contents, each over its probability, is an unbiased estimate of the content of all [1]_. The estimate, a sum of
independent variables, is in convex order at most as spread as a multiple of a binomial variable: that of as many full
blocks of the highest contribution as make up the total [2]_ [3]_. So for every t the mean of (t - sum)+ is at most the
binomial's, and that over t - s bounds the probability of a sum of s or less [4]_; the least over t is inverted to a
bound on the total. Nothing is approximated, and without a find the bound is the exact binomial one.

References
----------
.. [1] D. Horvitz, D. Thompson, A generalization of sampling without replacement from a finite universe, JASA 47, 1952.
.. [2] W. Hoeffding, On the distribution of the number of successes in independent trials, Ann. Math. Stat. 27, 1956.
.. [3] W. Hoeffding, Probability inequalities for sums of bounded random variables, JASA 58, 1963.
.. [4] V. Bentkus, On Hoeffding's inequalities, Ann. Probab. 32, 2004.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coarse2fine.audit.betting_bound import doubling

__all__ = ["Sample", "allowed_misses", "inclusion", "least_share", "pool", "recall_interval"]


def inclusion(weights: ArrayLike, size: float) -> NDArray[np.float64]:
    """Inclusion probabilities, in proportion to weights and at most 1, that sum to the mean size of a sample.

    Parameters
    ----------
    weights : array_like, (n,)
        Above 0; for instance from `coarse2fine.audit.betting_bound.audit_weights`.
    size : float
        Mean number of blocks to audit, at most n.
    """
    w = np.asarray(weights, np.float64)
    if not 0 < size <= len(w):
        raise ValueError(f"expected a size above 0 and up to the {len(w)} blocks there are, got {size}")
    if size == len(w):
        return np.ones(len(w))  # exactly: rounded, a block would count as one that may be left out
    sure = np.zeros(len(w), bool)
    while not sure.all():
        p = np.where(sure, 1.0, (size - sure.sum()) * w / w[~sure].sum())
        if (p <= 1).all():
            return p
        sure |= p >= 1
    return np.ones(len(w))


@dataclass(frozen=True)
class Sample:
    """Sums of an audit of blocks with fixed probabilities, without the blocks of probability 1, which are known.

    The bounds hold if no block holds more than its cap. If an audited one does, all caps of the sample are doubled
    until none does, which costs no confidence (see `coarse2fine.audit.betting_bound.MissBound`).

    Parameters
    ----------
    blocks, audited : int
        Number of blocks, and of those audited.
    found : int
        Objects in the audited blocks.
    total : float
        Estimate of the objects in all blocks.
    room : float
        Most objects in the blocks that were not audited.
    jump : float
        Most that one block could add to `total`: the largest ratio of cap to probability.
    least_cap, cap : float
        Smallest and largest cap of a block.
    """

    blocks: int = 0
    audited: int = 0
    found: int = 0
    total: float = 0.0
    room: float = 0.0
    jump: float = 0.0
    least_cap: float = math.inf
    cap: float = 0.0

    @classmethod
    def of(cls, probabilities: ArrayLike, audited: ArrayLike, found: ArrayLike, cap: ArrayLike) -> Sample:
        """Sum up an audit.

        Parameters
        ----------
        probabilities : array_like, (n,)
            Probability of each block to be audited: above 0, at most 1, fixed before the choice.
        audited : array_like, int, (k,)
            The blocks that were audited.
        found : array_like, int, (k,)
            Objects in each of them.
        cap : array_like, () or (n,)
            Most objects in a block, 1 or more.

        Raises
        ------
        ValueError
            If a number is out of its range.
        """
        p, index, y = np.asarray(probabilities, np.float64), np.asarray(audited, np.int64), np.asarray(found, np.int64)
        caps = np.broadcast_to(np.asarray(cap, np.float64), p.shape)
        if not ((p > 0) & (p <= 1)).all() or (caps < 1).any() or index.shape != y.shape or (y < 0).any():
            raise ValueError(
                "expected probabilities above 0 and up to 1, caps of 1 or more, and a number of objects, 0 or more, for"
                " each audited block"
            )
        caps = caps * doubling(caps[index], y)
        chance = p < 1
        rest = chance.copy()
        rest[index] = False
        kept = chance[index]
        return cls(
            blocks=int(chance.sum()),
            audited=int(kept.sum()),
            found=int(y[kept].sum()),
            total=float((y[kept] / p[index[kept]]).sum()),
            room=float(caps[rest].sum()),
            jump=float((caps / p)[chance].max(initial=0)),
            least_cap=float(caps[chance].min(initial=math.inf)),
            cap=float(caps[chance].max(initial=0)),
        )

    @property
    def missed(self) -> float:
        """Unbiased estimate of the objects in the blocks that were not audited."""
        return self.total - self.found

    def missed_upper(self, confidence: float = 0.95) -> int:
        """Most objects in the blocks that were not audited, with confidence."""
        if self.room == 0:
            return 0
        full = _first(lambda m: self._low_tail(m) <= 1 - confidence)
        return max(0, min(math.floor(self.room), math.ceil(full * self.least_cap) - 1 - self.found))

    def missed_lower(self, confidence: float = 0.95) -> int:
        """Fewest objects in the blocks that were not audited, with confidence."""
        full = _first(lambda m: self._high_tail(m) > 1 - confidence)
        least = math.floor((full - 1) * self.least_cap) + 1 if full else 0
        return max(0, min(math.floor(self.room), least - self.found))

    def missed_interval(self, confidence: float = 0.95) -> tuple[int, int]:
        """Fewest and most objects in the blocks that were not audited, both together with confidence."""
        side = (1 + confidence) / 2
        return self.missed_lower(side), self.missed_upper(side)

    def _low_tail(self, full: int) -> float:
        """Bound on the probability of a total this small or smaller, if objects fill `full` blocks of the least cap."""
        s = self.total / self.jump
        t = np.arange(math.floor(s) + 1, 2 * math.floor(s) + 40)
        return float(min(1.0, (self._below(full, t) / (t - s)).min()))

    def _high_tail(self, full: int) -> float:
        """Bound on the probability of a total at least this large; `full` as in `_low_tail`."""
        if self.total == 0:
            return 1.0
        s = self.total / self.jump
        t = np.arange(math.ceil(s))
        mean = full * self.least_cap / self.jump
        return float(min(1.0, ((mean - t + self._below(full, t)) / (s - t)).min()))

    def _below(self, full: int, t: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean of (t - B)+ for a binomial B of `full` trials."""
        from scipy.stats import binom  # noqa: PLC0415 (slow to import, and not every analysis has an audit)

        # It is the sum of P(B <= i) over i below t.
        cdf = binom.cdf(np.arange(int(t[-1])), full, self.least_cap / self.jump)
        return np.asarray(np.concatenate([[0.0], np.cumsum(cdf)])[t])


def pool(samples: Sequence[Sample]) -> Sample:
    """Sample of many images together: its bound is far closer than the sum of their bounds."""
    return Sample(
        blocks=sum(s.blocks for s in samples),
        audited=sum(s.audited for s in samples),
        found=sum(s.found for s in samples),
        total=math.fsum(s.total for s in samples),
        room=math.fsum(s.room for s in samples),
        jump=max((s.jump for s in samples), default=0.0),
        least_cap=min((s.least_cap for s in samples), default=math.inf),
        cap=max((s.cap for s in samples), default=0.0),
    )


def recall_interval(found: int, missed: tuple[float, float]) -> tuple[float, float]:
    """Recall for the most and for the fewest objects missed; 1 if none is missed.

    Parameters
    ----------
    found : int
        All objects found, including those of the audit.
    missed : tuple of float
        Fewest and most objects still missed.
    """
    few, many = missed
    return (found / (found + many) if many else 1.0, found / (found + few) if few else 1.0)


def allowed_misses(found: int, recall: float) -> int:
    """Most objects that may be missed, beside those found, at a recall."""
    # The factor offsets rounding, so that 19 objects at 95 % allow 1.
    return math.floor(found * (1 - recall) / recall * (1 + 1e-12))


def least_share(found: int, recall: float, cap: float, confidence: float = 0.95) -> float:
    """Share of the skipped blocks that must be audited to certify a recall, if the audit finds nothing.

    No audit needs much less, so this shows beforehand whether objects are too few to certify: the misses beyond those
    allowed may lie in one or a few blocks, which a smaller audit would likely not touch.

    Parameters
    ----------
    found : int
        Objects found so far.
    recall : float
        Recall to certify.
    cap : float
        Most objects in a block.
    confidence : float
    """
    blocks = math.ceil((allowed_misses(found, recall) + 1) / cap)
    return float(1 - (1 - confidence) ** (1 / blocks))


def _first(true: Callable[[int], bool]) -> int:
    """Least number, from 0, from which on a condition is true."""
    high = 1
    while not true(high):
        high *= 2
    low = -1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if true(middle) else (middle, high)
    return high
