"""Matching of finds with annotated objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_AS_GOOD = 0.995


def match(
    found: NDArray[np.float64],
    scores: NDArray[np.float32],
    true: NDArray[np.float64],
    reach: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Match finds with true objects one to one, the best find first, each with the nearest unmatched object.

    Parameters
    ----------
    found : ndarray, float64, (n, 2)
        Centres (y, x) of the finds.
    scores : ndarray, float32, (n,)
        Their scores.
    true : ndarray, float64, (m, 2)
        Centres of the objects.
    reach : ndarray, float64, (m,)
        Greatest distance at which a find counts as that object.

    Returns
    -------
    ndarray, int64, (n,)
        Index of each find's object; -1 for a false alarm.
    """
    owner = np.full(len(found), -1, np.int64)
    if not len(found) or not len(true):
        return owner
    free = np.ones(len(true), bool)
    near = cKDTree(true).query_ball_point(found, float(reach.max()))
    for i in np.argsort(-scores, kind="stable").tolist():
        rows = np.array([j for j in near[i] if free[j]], np.int64)
        if len(rows):
            distance = np.hypot(*(true[rows] - found[i]).T)
            within = distance <= reach[rows]
            if within.any():
                best = rows[within][np.argmin(distance[within])]
                owner[i], free[best] = best, False
    return owner


def at_thresholds(
    scores: NDArray[np.float32], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores, the highest first, with the numbers of right finds and of all finds from each on."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]  # a threshold takes all equal scores or none
    return ordered[last], np.cumsum(right[order])[last], np.arange(1, len(ordered) + 1)[last]


def best_f1_threshold(scores: NDArray[np.float32], right: NDArray[np.bool_], true_count: int) -> tuple[float, float]:
    """Middle of the thresholds between 0.1 and 0.9 whose F1 is within half a per cent of the best, and its F1.

    Some hundred held-out objects cannot resolve smaller differences: the best may lie anywhere on a plateau, and at its
    ends the F1 of other scenes drops first.

    Parameters
    ----------
    scores : ndarray, float32, (n,)
        Scores of the finds.
    right : ndarray, bool, (n,)
        Whether each is a true object.
    true_count : int
        Number of true objects.
    """
    ordered, hits, finds = at_thresholds(scores, right)
    f1 = 2 * hits / (finds + max(true_count, 1))
    allowed = (ordered >= 0.1) & (ordered <= 0.9)
    if not allowed.any():
        return 0.5, 0.0
    plateau = np.flatnonzero(allowed & (f1 >= _AS_GOOD * f1[allowed].max()))
    middle = (ordered[plateau[0]] + ordered[plateau[-1]]) / 2
    best = plateau[np.argmin(np.abs(ordered[plateau] - middle))]
    return float(ordered[best]), float(f1[best])
