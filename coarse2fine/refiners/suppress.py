"""Suppression of duplicates and grouping of cells into areas, near-linear in the number of candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import STRtree, box

from coarse2fine.models.candidates import Candidates

# IoU above which two boxes are one object: of one class; of two classes; of two classes, one wholly within the other.
_OVERLAP, _OVERLAP_OF_CLASSES, _OVERLAP_WITHIN = 0.3, 0.5, 0.8
# That of two means of boxes: higher, since those of neighbours that touch vary about their true overlap.
_OVERLAP_OF_MEANS = 0.35
_TINY = 1e-6


def suppress(candidates: Candidates, group: NDArray[np.int64] | None = None) -> Candidates:
    """Greedy non-maximum suppression: from boxes of one object only the best remains.

    Two boxes of one class are taken for one object if their IoU exceeds 0.3, or if their centres are less than one fine
    cell apart and less than the side of the smaller (the root of its area): boxes smaller than a cell, read in
    neighbouring cells, overlap little. Boxes of two classes are one object if their IoU exceeds 0.5, or 0.8 if one lies
    wholly within the other, so that a find within a larger one of another class stays. Overlapping pairs come from a
    spatial index, so the work grows with the number of overlapping pairs.

    Parameters
    ----------
    candidates : Candidates
        In raster order; the first wins between equal scores.
    group : ndarray, int64, (n,), optional
        Candidates of different groups do not suppress each other.
    """
    return candidates.take(kept(candidates, group))


def merged(candidates: Candidates) -> Candidates:
    """What remains after `suppress`, each with the mean of the boxes that were taken for the same object.

    Boxes of its class count by their scores and by their IoU with the best one (box voting, Gidaris and Komodakis 2015,
    arXiv:1505.01749). A find with an outline keeps its box. Means may overlap more than the boxes that remained, as
    those of one long object's two ends do: of two with an IoU above 0.35 the better remains.

    Parameters
    ----------
    candidates : Candidates
        See `suppress`.
    """
    owner = owners(candidates)
    boxes = candidates.boxes.astype(np.float64)
    weight = candidates.scores * iou(boxes, boxes[owner]) * (candidates.labels == candidates.labels[owner])
    itself = owner == np.arange(len(owner))
    # Boxes without area overlap nothing, not even themselves.
    weight = np.where(itself, candidates.scores.clip(_TINY), np.where(candidates.sizes[owner] > 0, 0.0, weight))
    total = np.bincount(owner, weight, len(owner))
    sums = np.stack([np.bincount(owner, weight * side, len(owner)) for side in boxes.T], axis=1)
    mean = sums[itself] / total[itself, None]
    means = replace(candidates.take(itself), boxes=mean.astype(np.float32))
    return means.take(owners(means, overlap=_OVERLAP_OF_MEANS) == np.arange(len(means)))


def kept(
    candidates: Candidates, group: NDArray[np.int64] | None = None, band: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Which candidates remain after `suppress`.

    Parameters
    ----------
    candidates, group
        See `suppress`.
    band : ndarray, int64, (n,), optional
        Candidates of one band do not suppress each other.
    """
    return np.equal(owners(candidates, group, band), np.arange(len(candidates)))


def owners(
    candidates: Candidates,
    group: NDArray[np.int64] | None = None,
    band: NDArray[np.int64] | None = None,
    overlap: float = _OVERLAP,
) -> NDArray[np.int64]:
    """The candidate that each was suppressed by, or itself if it remains.

    Parameters
    ----------
    candidates, group, band
        See `kept`.
    overlap : float
        IoU above which two boxes of one class are one object.
    """
    count = len(candidates)
    if count < 2:
        return np.arange(count)
    first, second = _same(candidates, candidates, overlap)
    apart = first < second
    if group is not None:
        apart &= group[first] == group[second]
    if band is not None:
        apart &= band[first] != band[second]
    first, second = first[apart], second[apart]
    # Ties go to the lower index, raster order, so the result does not depend on the order of the windows.
    rank = np.empty(count, np.int64)
    rank[np.lexsort((np.arange(count), -candidates.scores))] = np.arange(count)
    better = np.where(rank[first] < rank[second], first, second)
    worse = np.where(rank[first] < rank[second], second, first)
    best_first = np.argsort(rank[better], kind="stable")
    owner = list(range(count))  # a loop is faster over plain Python values
    for i, j in zip(better[best_first].tolist(), worse[best_first].tolist(), strict=True):
        if owner[i] == i and owner[j] == j:
            owner[j] = i
    return np.array(owner, np.int64)


def repeats(candidates: Candidates, known: Candidates) -> NDArray[np.bool_]:
    """Which candidates are the same object as one that is known, by the rule of `suppress`."""
    again = np.zeros(len(candidates), bool)
    if len(candidates) and len(known):
        again[_same(candidates, known)[0]] = True
    return again


def clusters(candidates: Candidates, cell_width: int, *, reach: int = 1) -> NDArray[np.int64]:
    """Number of the area that each candidate belongs to.

    With a `reach` of 1, cells of one class that share an edge form an area; with more, cells of any class at most
    `reach` rows and columns apart do.

    Parameters
    ----------
    candidates : Candidates
        In raster order, each cell once.
    cell_width : int
        Fine cells in a row of the image.
    reach : int
    """
    count = len(candidates)
    stride = cell_width + 2 * reach
    keys = candidates.cells[:, 0].astype(np.int64) * stride + candidates.cells[:, 1]
    steps = [(dy, dx) for dy in range(reach + 1) for dx in range(-reach, reach + 1) if (dy, dx) > (0, 0)]
    rows, columns = [], []
    for dy, dx in ((0, 1), (1, 0)) if reach == 1 else steps:
        other = keys + dy * stride + dx
        at = np.searchsorted(keys, other).clip(max=max(count - 1, 0))
        alike = (reach > 1) | (candidates.labels[at] == candidates.labels)
        there = np.flatnonzero((keys[at] == other) & alike) if count else at
        rows.append(there)
        columns.append(at[there] if count else at)
    i, j = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]


def _same(a: Candidates, b: Candidates, overlap: float = _OVERLAP) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of rows of two tables of candidates that are likely to be of one object."""
    mine, others = (box(*each.boxes.astype(np.float64).T[[1, 0, 3, 2]]) for each in (a, b))
    first, second = STRtree(others).query(mine)
    same = _same_object(a.take(first), b.take(second), overlap)
    return first[same], second[same]


def _same_object(a: Candidates, b: Candidates, most: float) -> NDArray[np.bool_]:
    """Whether candidates are likely to be of one object, pair by pair."""
    p, q = a.boxes.astype(np.float64), b.boxes.astype(np.float64)
    distance = np.hypot(*((p[:, :2] + p[:, 2:] - q[:, :2] - q[:, 2:]) / 2).T)
    smaller = np.sqrt(np.minimum(*((rows[:, 2:] - rows[:, :2]).prod(axis=1) for rows in (p, q))))
    # Boxes are in units of fine cells.
    near = distance < np.minimum(smaller, 1.0)
    overlap, alike = iou(p, q), a.labels == b.labels
    low, high = p[:, :2] - q[:, :2], q[:, 2:] - p[:, 2:]
    within = ((low >= 0) & (high >= 0)).all(axis=1) | ((low <= 0) & (high <= 0)).all(axis=1)
    limit = np.where(within, _OVERLAP_WITHIN, _OVERLAP_OF_CLASSES)
    same: NDArray[np.bool_] = np.where(alike, (overlap > most) | near, overlap > limit)
    return same


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes (y0, x0, y1, x1), row by row; 0 for two boxes without area."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(min=0).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - common
    return common / np.maximum(union, 1e-9)  # type: ignore[no-any-return]
