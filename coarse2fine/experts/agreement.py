"""Agreement of two experts on the same tiles: what one gives of the other's finds, and what it gives beside them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from shapely import STRtree, box

from coarse2fine.models.candidates import Candidates

# Least IoU of two boxes that are the same find, as is usual for detectors (Everingham et al. 2010).
_SAME = 0.5


def shared_finds(mine: Candidates, theirs: Candidates, *, objects: bool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which finds of two experts are the same.

    Objects are the same if they have one label and their boxes an IoU of at least 0.5, one to one, in the same tile:
    each tile is answered by one expert alone. Other finds are the same if their cells and labels are.

    Parameters
    ----------
    mine, theirs : Candidates
        Finds before suppression across tiles; for objects a fine cell is a tile.
    objects : bool

    Returns
    -------
    ndarray, bool, (n,)
        Which of `mine` are among `theirs`.
    ndarray, bool, (m,)
        Which of `theirs` are among `mine`.
    """
    if not objects:
        keys = [np.column_stack([each.cells, each.labels]).astype(np.int64) for each in (mine, theirs)]
        _, number = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
        first, second = np.split(number.reshape(-1), [len(mine)])
        return np.isin(first, second), np.isin(second, first)
    of_mine, of_theirs = np.zeros(len(mine), bool), np.zeros(len(theirs), bool)
    pairs = _same_places(mine, theirs)
    # Pairs of one tile are solved together: the largest number of one-to-one pairs.
    tiles = mine.cells[pairs[:, 0]].astype(np.int64)
    _, group = np.unique(tiles, axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group.reshape(-1)[order])) + 1):
        one, a = np.unique(pairs[rows, 0], return_inverse=True)
        other, b = np.unique(pairs[rows, 1], return_inverse=True)
        same = np.zeros((len(one), len(other)), bool)
        same[a, b] = True
        chosen = linear_sum_assignment(same, maximize=True)
        kept = same[chosen]
        of_mine[one[chosen[0][kept]]] = True
        of_theirs[other[chosen[1][kept]]] = True
    return of_mine, of_theirs


def _same_places(mine: Candidates, theirs: Candidates) -> NDArray[np.intp]:
    """Pairs (n, 2) of rows with one tile, one label, and boxes that overlap enough."""
    if not (len(mine) and len(theirs)):
        return np.zeros((0, 2), np.intp)
    a, b = mine.boxes.astype(np.float64), theirs.boxes.astype(np.float64)
    shapes = [box(p[:, 1], p[:, 0], p[:, 3], p[:, 2]) for p in (a, b)]
    second, first = STRtree(shapes[0]).query(shapes[1])
    alike = (mine.cells[first] == theirs.cells[second]).all(axis=1) & (mine.labels[first] == theirs.labels[second])
    first, second = first[alike], second[alike]
    sides = np.minimum(a[first, 2:], b[second, 2:]) - np.maximum(a[first, :2], b[second, :2])
    common = sides.clip(min=0).prod(axis=1)
    union = _areas(a)[first] + _areas(b)[second] - common
    found: NDArray[np.intp] = np.column_stack([first, second])[common >= _SAME * np.maximum(union, 1e-12)]
    return found


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return found


def counts_in_tiles(
    mine: Candidates, theirs: Candidates, *, objects: bool, cells: int, shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds in each tile that `theirs` has of `mine`, and those that it has beside them, each (rows, columns).

    Parameters
    ----------
    mine, theirs, objects
        See `shared_finds`.
    cells : int
        Fine cells along a side of a tile.
    shape : tuple of int
        Rows and columns of tiles.
    """
    kept, known = shared_finds(mine, theirs, objects=objects)
    found = []
    for finds in (mine.cells[kept], theirs.cells[~known]):
        counts = np.zeros(shape, np.int64)
        np.add.at(counts, tuple(finds.astype(np.int64).T // cells), 1)
        found.append(counts)
    return found[0], found[1]
