"""How many finds a block can hold: for certain, or by the sizes of what was seen.

For certain it is one find a fine cell. By size it is the most objects that lie side by side in the block, none nearer
to another than the smallest ones seen are large, or than the nearest two seen are: for points at least d apart in a
convex area, that is 2 / sqrt(3) of the area over d^2, half the circumference over d, and one [1]_. How *many* lay in
the blocks seen says nothing of it: where the scan is blind, objects may crowd as they do nowhere else.

References
----------
.. [1] N. Oler, An inequality in the geometry of numbers, Acta Mathematica 105, 1961.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

from coarse2fine.models.candidates import Candidates

Cap = Literal["seen", "certain"]
"""By the sizes of the finds seen, or for certain."""

# Of the sizes and of the distances seen, all but so many are as large: one box that is far off must not decide.
_LOW = 5
# Fewer finds tell nothing of sizes.
_LEAST_FINDS = 20


def spacing(objects: Candidates) -> float:
    """Least distance between two objects, in fine cells, as far as sizes and distances of those seen tell; else 0.

    Parameters
    ----------
    objects : Candidates
        Each object once.
    """
    if len(objects) < _LEAST_FINDS:
        return 0.0
    boxes = objects.boxes.astype(np.float64)
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    nearest = cKDTree(centres).query(centres, k=2)[0][:, 1]
    return float(min(np.percentile(sizes, _LOW), np.percentile(nearest, _LOW)))


def packed(side: float, distance: float) -> float:
    """Most points in a square, none nearer to another than a distance (Oler's bound)."""
    if not distance > 0:
        return math.inf
    reach = side / distance
    return math.floor(2 / math.sqrt(3) * reach**2 + 2 * reach + 1)


def fullest(finds: Candidates, side: int) -> int:
    """Most finds seen in any square of so many fine cells, on a grid."""
    block = finds.cells.astype(np.int64) // side
    return int(np.unique(block, axis=0, return_counts=True)[1].max(initial=0)) if len(block) else 0


def object_cap(objects: Candidates, side: int, distance: float) -> int:
    """Most objects in a square of so many fine cells, none nearer to another than a distance; no less than was seen."""
    return int(min(side**2, max(packed(side, distance), fullest(objects, side))))
