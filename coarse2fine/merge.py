"""From refined cells to regions: one finding an object, no duplicate at a window's border, near-linear in number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import STRtree, box

from coarse2fine.models.heads import Candidates

_OVERLAP = 0.3
_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def peaks(candidates: Candidates, cell_width: int) -> Candidates:
    """Candidates that no neighbour among the eight beats; ties go to the first in raster order.

    Parameters
    ----------
    candidates : Candidates
        In raster order, each cell once.
    cell_width : int
        Fine cells in a row of the image.
    """
    keys = candidates.cells[:, 0].astype(np.int64) * (cell_width + 2) + candidates.cells[:, 1]
    best = np.ones(len(keys), bool)
    for dy, dx in _NEIGHBOURS:
        other = keys + dy * (cell_width + 2) + dx
        at = np.searchsorted(keys, other).clip(max=max(len(keys) - 1, 0))
        there = keys[at] == other if len(keys) else np.zeros(0, bool)
        earlier = dy < 0 or (dy == 0 and dx < 0)
        rival = candidates.scores[at]
        beaten = rival >= candidates.scores if earlier else rival > candidates.scores
        best &= ~(there & beaten)
    return candidates.take(best)


def suppress(candidates: Candidates) -> Candidates:
    """Greedy non-maximum suppression across classes: of two boxes that overlap by IoU > 0.3 the better one stays.

    Overlapping pairs come from a spatial index, so the work grows with the pairs, not with the square of the boxes.
    """
    if len(candidates) < 2:
        return candidates
    b = candidates.boxes.astype(np.float64)
    shapes = box(b[:, 1], b[:, 0], b[:, 3], b[:, 2])
    first, second = STRtree(shapes).query(shapes, predicate="intersects")
    apart = first < second
    first, second = first[apart], second[apart]
    overlap = _iou(b[first], b[second]) > _OVERLAP
    first, second = first[overlap], second[overlap]
    # Ties fall to the lower index, which is raster order, whatever order the windows came in.
    rank = np.empty(len(b), np.int64)
    rank[np.lexsort((np.arange(len(b)), -candidates.scores))] = np.arange(len(b))
    better = np.where(rank[first] < rank[second], first, second)
    worse = np.where(rank[first] < rank[second], second, first)
    keep = np.ones(len(b), bool)
    for i in np.argsort(rank[better], kind="stable").tolist():
        if keep[better[i]]:
            keep[worse[i]] = False
    return candidates.take(keep)


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


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes in rows (y0, x0, y1, x1)."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(min=0).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - common
    return common / np.maximum(union, 1e-9)  # type: ignore[no-any-return]
