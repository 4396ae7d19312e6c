"""Simultaneous bounds for several kinds of finds (objects, areas) from the same draws.

Each kind has its own bound with a share of the error probability (Bonferroni), so that all hold together with the
required confidence. They share the draws, since a refined block shows the finds of every kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.betting_bound import MissBound, audit_weights

_Counts = NDArray[np.int64]
_Floats = NDArray[np.float64]


def shared_confidence(confidence: float, kinds: int) -> float:
    """Confidence of each of `kinds` statements so that all hold together with `confidence`."""
    return 1 - (1 - confidence) / kinds


def shared_weights(expected: _Floats, caps: _Floats, targets: Sequence[float]) -> _Floats:
    """Sampling weights for several kinds: the sum of each kind's weights over their mean.

    Parameters
    ----------
    expected, caps : ndarray, float64, (k, n)
    targets : sequence of float
        Finds of each kind that may be missed.
    """
    if not caps.shape[1]:
        return np.zeros(0)
    each = [audit_weights(e, c, t) for e, c, t in zip(expected, caps, targets, strict=True)]
    return each[0] if len(each) == 1 else np.asarray(sum(w / max(w.mean(), 1e-300) for w in each))


class JointBound:
    """A `MissBound` for each kind, all with the same draws.

    Parameters
    ----------
    expected, caps : ndarray, float64, (k, n)
        Expected finds, and most finds, of each kind and block.
    targets : sequence of float
        Finds of each kind that may be missed.
    confidence : float
        Probability with which all bounds hold together.
    seed : int

    Attributes
    ----------
    kinds : tuple of MissBound
    """

    def __init__(
        self, expected: _Floats, caps: _Floats, *, targets: Sequence[float], confidence: float, seed: int
    ) -> None:
        weights = shared_weights(expected, caps, targets)
        each = shared_confidence(confidence, len(targets))
        self.kinds = tuple(
            MissBound(e, c, target=t, confidence=each, seed=seed, weights=weights)
            for e, c, t in zip(expected, caps, targets, strict=True)
        )

    @property
    def unknown(self) -> int:
        """Blocks still unknown."""
        return self.kinds[0].unknown

    @property
    def audited(self) -> int:
        """Blocks drawn and entered."""
        return self.kinds[0].audited

    def met(self, allowed: Sequence[int]) -> bool:
        """Whether the bound of every kind is at or below its allowed misses."""
        return all(kind.missed <= most for kind, most in zip(self.kinds, allowed, strict=True))

    def lacking(self, allowed: Sequence[int]) -> int:
        """Index of the kind with the most expected misses relative to those allowed."""
        return int(np.argmax([kind.expected / max(most, 1) for kind, most in zip(self.kinds, allowed, strict=True)]))

    def planned_draws(self, allowed: Sequence[int]) -> int:
        """Likely number of draws until the bound of every kind is down to its allowed misses."""
        return max(kind.planned_draws(most) for kind, most in zip(self.kinds, allowed, strict=True))

    def draw(self, count: int) -> _Counts:
        """The next random blocks, the same for all kinds."""
        first, *others = (kind.draw(count) for kind in self.kinds)
        assert all(np.array_equal(first, other) for other in others)
        return first

    def see(self, index: _Counts, found: _Counts) -> None:
        """Enter the finds (k, n) in drawn blocks."""
        for kind, y in zip(self.kinds, found, strict=True):
            kind.see(index, y)

    def know(self, index: _Counts, found: _Counts) -> None:
        """Enter the finds (k, n) in blocks that were refined without being drawn."""
        for kind, y in zip(self.kinds, found, strict=True):
            kind.know(index, y)
