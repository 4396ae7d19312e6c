"""Cap on the finds in a block: certain, or from the sizes and distances of the finds seen.

The certain cap is one find for each fine cell. The cap by size is a packing bound: objects are at least d apart, d
being the lesser of a low percentile of their sizes and of their distances. At most 2 / sqrt(3) of the area over d^2,
plus half the perimeter over d, plus one, points at least d apart fit a convex area [1]_. The largest *number* seen in a
block is no cap: objects may crowd exactly where the scan is blind to them.

References
----------
.. [1] N. Oler, An inequality in the geometry of numbers, Acta Mathematica 105, 1961.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from coarse2fine.models.candidates import Candidates

# Percentile of sizes and distances that counts as the least: a single outlier must not decide.
_LOW = 5
# Fewer finds are too few to estimate sizes.
_LEAST_FINDS = 20


def spacing(objects: Candidates) -> float:
    """Least distance between two objects in fine cells, by sizes and distances seen; 0 if there are too few objects.

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
    """Most points in a square of a side that are at least `distance` apart (Oler's bound)."""
    if not distance > 0:
        return math.inf
    reach = side / distance
    return math.floor(2 / math.sqrt(3) * reach**2 + 2 * reach + 1)


def fullest(finds: Candidates, side: int) -> int:
    """Most finds seen in a square of a grid; `side` in fine cells."""
    block = finds.cells.astype(np.int64) // side
    return int(np.unique(block, axis=0, return_counts=True)[1].max(initial=0)) if len(block) else 0


def object_cap(objects: Candidates, side: int, distance: float, most: int = 1) -> int:
    """Most objects at least `distance` apart in a square, and no less than seen; both lengths in fine cells.

    `most` is the largest number of objects in a fine cell.
    """
    return int(min(most * side**2, max(packed(side, distance), fullest(objects, side))))
