"""Places of an image that teach a model most: unsure finds, skipped cells that nearly were refined, random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

Kind = Literal["find", "skip", "random"]

# One place in four is random, so that classes and backgrounds that the model does not know come up too.
_TURN: tuple[Kind, ...] = ("find", "skip", "find", "random")
_DONE_SHARE = 0.5
_SPREAD = 1.5
"""Difference in log odds to the threshold at which a find counts 1/e of one at the threshold."""
_LEAST = 1e-6


@dataclass(frozen=True)
class Place:
    """A square to annotate next.

    Parameters
    ----------
    kind : {"find", "skip", "random"}
        Why it was chosen.
    full_box : tuple of int
        (y0, x0, y1, x1) in full-resolution pixels.
    """

    kind: Kind
    full_box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a model is unsure of in an image.

    Parameters
    ----------
    full_centres : ndarray, float64, (n, 2)
        Centres (y, x) of its finds that were neither accepted nor rejected, in full-resolution pixels.
    scores : ndarray, float64, (n,)
    threshold : float
        Probability from which a find is reported.
    skipped : ndarray, float32, (cell height, cell width)
        Interest of the cells that were not refined, 0 for others.
    cell : int
        Side of a cell in full-resolution pixels.
    """

    full_centres: NDArray[np.float64]
    scores: NDArray[np.float64]
    threshold: float
    skipped: NDArray[np.float32]
    cell: int


def unsureness(scores: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """1 for finds at the threshold, falling with the difference in log odds."""
    return np.asarray(np.exp(-np.abs(_log_odds(scores) - _log_odds(np.array(threshold))) / _SPREAD))


def suggest(
    full_shape: tuple[int, int],
    side: int,
    done: Sequence[Any],
    evidence: Evidence | None,
    *,
    count: int,
    seed: int = 0,
) -> list[Place]:
    """Choose places to annotate next, the most instructive first.

    Parameters
    ----------
    full_shape : tuple of int
        Height and width of the image in full-resolution pixels.
    side : int
        Side of a place in full-resolution pixels.
    done : sequence of shapely geometries
        Annotated areas, (x, y) in full-resolution pixels; places mostly in them are left out.
    evidence : Evidence or None
        None without a model: all places are then random.
    count : int
        Most places.
    seed : int

    Returns
    -------
    list of Place
        Fewer than `count` if nothing else is left.
    """
    boxes = places(full_shape, side)
    free = ~_mostly_within(boxes, done)
    order = {"random": np.random.default_rng(seed).permutation(len(boxes))}
    if evidence is not None:
        finds = _summed(boxes, evidence.full_centres, unsureness(evidence.scores, evidence.threshold))
        order |= {"find": _ranked(finds), "skip": _ranked(_summed_skips(boxes, evidence))}
    queues: dict[str, Iterator[int]] = {kind: iter(each.tolist()) for kind, each in order.items()}
    chosen: list[Place] = []
    for kind in itertools.cycle(_TURN):
        if len(chosen) >= count or not free.any():
            return chosen
        wanted: Kind = kind if kind in queues else "random"
        found = next((i for i in queues[wanted] if free[i]), None)
        if found is None:
            queues.pop(wanted)
            if wanted == "random":
                return chosen
            continue
        free[found] = False
        y0, x0, y1, x1 = boxes[found].tolist()
        chosen.append(Place(wanted, (y0, x0, y1, x1)))
    return chosen


def places(full_shape: tuple[int, int], side: int) -> NDArray[np.int64]:
    """Squares (y0, x0, y1, x1) of a grid over an image, in reading order; those at its borders are cut, (n, 4)."""
    height, width = full_shape
    y, x = (grid.ravel() for grid in np.meshgrid(range(0, height, side), range(0, width, side), indexing="ij"))
    return np.stack([y, x, np.minimum(y + side, height), np.minimum(x + side, width)], axis=1)


def _mostly_within(boxes: NDArray[np.int64], done: Sequence[Any]) -> NDArray[np.bool_]:
    """Boxes of which at least half lies in the given areas."""
    if not done:
        return np.zeros(len(boxes), bool)
    y0, x0, y1, x1 = boxes.T
    area = shapely.union_all(list(done))
    squares = shapely.box(x0, y0, x1, y1)
    within: NDArray[np.bool_] = shapely.area(shapely.intersection(squares, area)) >= _DONE_SHARE * shapely.area(squares)
    return within


def _summed(
    boxes: NDArray[np.int64], full_centres: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum of the weights of the points in each box of the grid."""
    first = boxes[0]
    columns = int((boxes[:, 0] == 0).sum())
    side = max(int(first[2]), int(first[3]))
    rows = len(boxes) // columns
    y, x = (full_centres // side).astype(np.int64).T
    index = y.clip(0, rows - 1) * columns + x.clip(0, columns - 1)
    return np.bincount(index, weights, minlength=len(boxes)).astype(np.float64)


def _summed_skips(boxes: NDArray[np.int64], evidence: Evidence) -> NDArray[np.float64]:
    cells = np.argwhere(evidence.skipped > 0)
    weights = evidence.skipped[tuple(cells.T)].astype(np.float64)
    # Squares: one cell that nearly was refined counts more than many of little interest.
    centres = ((cells + 0.5) * evidence.cell).astype(np.float64)
    return _summed(boxes, centres, weights**2)


def _ranked(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Boxes with a value above 0, the highest first."""
    order = np.argsort(-values, kind="stable")
    return order[values[order] > 0]


def _log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.asarray(np.log(p / (1 - p)))
