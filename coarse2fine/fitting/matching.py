"""Matching of finds with annotated objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_AS_GOOD, _LEAST, _MOST = 0.995, np.float32(0.1), np.float32(0.9)


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
    # A threshold keeps equal scores, so those above one score and up to the next are alike; the first range keeps none.
    edges = np.concatenate([[np.inf], ordered, [0.0]]).astype(np.float32)
    allowed = (edges[:-1] >= _LEAST) & (np.minimum(edges[:-1], _MOST) > edges[1:])
    low, high = (
        np.nextafter(edges[1:], np.float32(1)).clip(_LEAST, None)[allowed],
        edges[:-1].clip(None, _MOST)[allowed],
    )
    f1 = (2 * np.append(0, hits) / np.maximum(np.append(0, finds) + true_count, 1))[allowed]
    good = f1 >= _AS_GOOD * f1.max()
    middle = (low[good].min() + high[good].max()) / 2
    nearest = np.clip(middle, low[good], high[good])
    best = int(np.argmin(np.abs(nearest - middle)))
    return float(nearest[best]), float(f1[good][best])
