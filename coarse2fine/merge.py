"""From refined cells to regions: one finding an object, no duplicate at a window's border, near-linear in number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import STRtree, box

from coarse2fine.models.heads import Candidates

_OVERLAP = 0.3


def suppress(candidates: Candidates, group: NDArray[np.int64] | None = None) -> Candidates:
    """Greedy non-maximum suppression across classes: of two boxes of one object the better one stays.

    Two boxes that touch are taken for one object where their IoU exceeds 0.3, or where their centres are nearer than
    the smaller one is large (the root of its area): boxes of a few pixels read in neighbouring cells overlap little.
    Overlapping pairs come from a spatial index, so the work grows with the pairs, not with the square of the boxes.

    Parameters
    ----------
    candidates : Candidates
        In raster order; of equal scores the first wins.
    group : ndarray, int64, (n,), optional
        Candidates of different groups leave each other alone.
    """
    if len(candidates) < 2:
        return candidates
    b = candidates.boxes.astype(np.float64)
    first, second = _same(b, b)
    apart = first < second
    if group is not None:
        apart &= group[first] == group[second]
    first, second = first[apart], second[apart]
    # Ties fall to the lower index, which is raster order, whatever order the windows came in.
    rank = np.empty(len(b), np.int64)
    rank[np.lexsort((np.arange(len(b)), -candidates.scores))] = np.arange(len(b))
    better = np.where(rank[first] < rank[second], first, second)
    worse = np.where(rank[first] < rank[second], second, first)
    best_first = np.argsort(rank[better], kind="stable")
    keep = bytearray(b"\1") * len(b)  # a loop is faster over plain Python values
    for i, j in zip(better[best_first].tolist(), worse[best_first].tolist(), strict=True):
        if keep[i]:
            keep[j] = 0
    return candidates.take(np.frombuffer(keep, np.bool_))


def repeats(candidates: Candidates, known: Candidates) -> NDArray[np.bool_]:
    """Which candidates are the same object as one that is known, by the rule of `suppress`."""
    again = np.zeros(len(candidates), bool)
    if len(candidates) and len(known):
        again[_same(candidates.boxes.astype(np.float64), known.boxes.astype(np.float64))[0]] = True
    return again


def clusters(candidates: Candidates, cell_width: int, *, reach: int = 1) -> NDArray[np.int64]:
    """Number of the area that each candidate belongs to.

    Cells of one class belong together where they share an edge; with a `reach` of more than one, cells of any class
    do that lie within so many rows and columns of each other.

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


def _same(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two tables of boxes that are likely to be of one object."""
    others = box(b[:, 1], b[:, 0], b[:, 3], b[:, 2])
    mine = others if a is b else box(a[:, 1], a[:, 0], a[:, 3], a[:, 2])
    first, second = STRtree(others).query(mine)
    same = _same_object(a[first], b[second])
    return first[same], second[same]


def _same_object(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether boxes in rows (y0, x0, y1, x1) are likely to be of one object, pair by pair."""
    distance = np.hypot(*((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2).T)
    smaller = np.sqrt(np.minimum(*((rows[:, 2:] - rows[:, :2]).prod(axis=1) for rows in (a, b))))
    near: NDArray[np.bool_] = (_iou(a, b) > _OVERLAP) | (distance < smaller)
    return near


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes in rows (y0, x0, y1, x1)."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(min=0).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - common
    return common / np.maximum(union, 1e-9)  # type: ignore[no-any-return]
