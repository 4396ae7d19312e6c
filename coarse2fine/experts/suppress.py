"""Suppression of duplicates at the borders of an expert's tiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from shapely import STRtree, box

from coarse2fine.models.candidates import Candidates


def suppress_across(candidates: Candidates, overlap: float) -> Candidates:
    """Of boxes of one class in different tiles that overlap, the best.

    Boxes of one tile do not suppress each other: the expert has decided on them. Two boxes are one object if their
    IoU, or their intersection over the smaller box, exceeds `overlap`: an object cut at the border of what was read is
    a part of the whole one.

    Parameters
    ----------
    candidates : Candidates
        In raster order, in cells of one tile each; the first wins between equal scores.
    overlap : float
    """
    if len(candidates) < 2:
        return candidates
    p = candidates.boxes.astype(np.float64)
    shapes = box(p[:, 1], p[:, 0], p[:, 3], p[:, 2])
    # Boxes of two tiles overlap only if one of them reaches beyond its own tile.
    reach = np.flatnonzero(((p[:, :2] < candidates.cells) | (p[:, 2:] > candidates.cells + 1)).any(axis=1))
    first, second = STRtree(shapes).query(shapes[reach])
    first = reach[first]
    apart = candidates.labels[first] == candidates.labels[second]
    apart &= (candidates.cells[first] != candidates.cells[second]).any(axis=1)
    first, second = first[apart], second[apart]
    same = _share(p[first], p[second]) > overlap
    first, second = first[same], second[same]
    order = np.lexsort((np.arange(len(candidates)), -candidates.scores))
    rank = np.empty(len(candidates), np.int64)
    rank[order] = np.arange(len(candidates))
    better = np.where(rank[first] < rank[second], first, second)
    worse = np.where(rank[first] < rank[second], second, first)
    best_first = np.argsort(rank[better], kind="stable")
    keep = bytearray(b"\1") * len(candidates)  # a loop is faster over plain Python values
    for i, j in zip(better[best_first].tolist(), worse[best_first].tolist(), strict=True):
        if keep[i]:
            keep[j] = 0
    return candidates.take(np.frombuffer(keep, np.bool_))


def _share(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over the smaller box, pair by pair, which is at least the IoU."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(min=0).prod(axis=1)
    smaller = np.minimum((a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1))
    found: NDArray[np.float64] = common / np.maximum(smaller, 1e-12)
    return found
