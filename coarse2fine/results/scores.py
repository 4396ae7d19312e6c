"""Scores as text."""

from __future__ import annotations

_LEAST, _MOST = 2, 6


def score_text(score: float) -> str:
    """A score with two decimals, or as many as tell it from 1: those of rare finds differ only there.

    Examples
    --------
    >>> score_text(0.873), score_text(0.99973)
    ('0.87', '0.9997')
    """
    texts = (f"{score:.{digits}f}" for digits in range(_LEAST, _MOST))
    return next((text for text in texts if float(text) < 1), f"{score:.{_LEAST}f}")
