"""Choice of the tiles to try: at random, and where the scan expects finds, with known probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Share of a round after the first that is drawn regardless of the scan.
_ANYWHERE = 0.4


def chances(
    interests: Sequence[NDArray[np.float32]] | None, shapes: Sequence[tuple[int, int]], count: float
) -> list[NDArray[np.float64]]:
    """Probability with which each tile is drawn, independently, so that `count` are drawn in the mean.

    The first round draws all alike. Later ones draw a part in proportion to the root of the expected finds, which
    minimises the variance of the estimated number of finds if the expectations are right (Neyman 1934).

    Parameters
    ----------
    interests : sequence of ndarray, float32, (h, w), or None
        Probability of a find in each tile; None in the first round.
    shapes : sequence of tuple of int
        Tiles of each scene.
    count : float
    """
    total = sum(h * w for h, w in shapes)
    even = min(1.0, count / total)
    if interests is None:
        return [np.full(shape, even) for shape in shapes]
    roots = [np.sqrt(np.clip(p.astype(np.float64), 1e-9, 1)) for p in interests]
    low, high = 0.0, count * total
    wanted = (1 - _ANYWHERE) * count
    for _ in range(60):  # bisection: probabilities are cut off at 1
        factor = (low + high) / 2
        drawn = sum(float(np.minimum(1, factor * root).sum()) for root in roots)
        low, high = (factor, high) if drawn < wanted else (low, factor)
    return [1 - (1 - _ANYWHERE * even) * (1 - np.minimum(1, high * root)) for root in roots]


def draw(chance: NDArray[np.float64], tried: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Tiles of one scene that are drawn and were not tried before."""
    return np.asarray((rng.random(chance.shape) < chance) & ~tried)
