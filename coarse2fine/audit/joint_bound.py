"""Bounds for several kinds of finds from the same draws, all true together.

Each kind has a bound of its own with a share of what may go wrong (Bonferroni), so that all hold together with the
confidence that was asked for. They draw the same blocks: what is refined tells of every kind at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.betting_bound import MissBound, audit_weights

_Counts = NDArray[np.int64]
_Floats = NDArray[np.float64]


def shared_confidence(confidence: float, kinds: int) -> float:
    """Confidence of each of some statements that hold together with a confidence."""
    return 1 - (1 - confidence) / kinds


def shared_weights(expected: _Floats, caps: _Floats, targets: Sequence[float]) -> _Floats:
    """Weights of drawing for several kinds: the mean of each kind's own, as shares.

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
    """A `MissBound` for each kind, which all see the same draws.

    Parameters
    ----------
    expected, caps : ndarray, float64, (k, n)
        Of each kind and block.
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
        """Blocks drawn and seen."""
        return self.kinds[0].audited

    def met(self, allowed: Sequence[int]) -> bool:
        """Whether no kind may lack more than allowed."""
        return all(kind.missed <= most for kind, most in zip(self.kinds, allowed, strict=True))

    def lacking(self, allowed: Sequence[int]) -> int:
        """The kind of which most seems to be missed beside what is allowed."""
        return int(np.argmax([kind.hoped / max(most, 1) for kind, most in zip(self.kinds, allowed, strict=True)]))

    def planned_draws(self, allowed: Sequence[int]) -> int:
        """Draws from here until every kind's bound is likely to be down to what is allowed."""
        return max(kind.planned_draws(most) for kind, most in zip(self.kinds, allowed, strict=True))

    def draw(self, count: int) -> _Counts:
        """The next blocks at random: the same for all kinds."""
        first, *others = (kind.draw(count) for kind in self.kinds)
        assert all(np.array_equal(first, other) for other in others)
        return first

    def see(self, index: _Counts, found: _Counts) -> None:
        """Enter what drawn blocks hold, (k, n)."""
        for kind, y in zip(self.kinds, found, strict=True):
            kind.see(index, y)

    def know(self, index: _Counts, found: _Counts) -> None:
        """Enter what blocks hold that were refined for another reason, (k, n)."""
        for kind, y in zip(self.kinds, found, strict=True):
            kind.know(index, y)
