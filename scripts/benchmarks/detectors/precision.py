"""Precision and recall of finds at every threshold: average precision, the best F1, recall by size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench.score import Labelled
from coarse2fine.fitting.matching import at_thresholds
from coarse2fine.region import Region

MISSED = -1.0
"""Score of an object that no find is."""


@dataclass(frozen=True)
class Point:
    """Recall and precision of the finds from a threshold on."""

    threshold: float
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Finds of one scene or several, and labelled objects, as far as they lie in annotated areas.

    Parameters
    ----------
    labels, scores, right : ndarray, str, float32 and bool, (n,)
        Class and score of each find, and whether it is an object.
    object_labels : ndarray, str, (m,)
        Class of each object.
    object_sides : ndarray, float64, (m,)
        Its side, the root of its box's area, in full-resolution pixels.
    object_scores : ndarray, float32, (m,)
        Score of the find that is this object; `MISSED` if there is none.
    """

    labels: NDArray[np.str_]
    scores: NDArray[np.float32]
    right: NDArray[np.bool_]
    object_labels: NDArray[np.str_]
    object_sides: NDArray[np.float64]
    object_scores: NDArray[np.float32]

    @classmethod
    def of(cls, labelled: Labelled, regions: Sequence[Region], overlap: float | None = None) -> Outcomes:
        """The outcome of one scene; parameters as of `Labelled.matched`."""
        found = labelled.matched(regions, overlap)
        right = found.owner >= 0
        scores = np.full(len(labelled.labels), MISSED, np.float32)
        scores[found.owner[right]] = found.scores[right]
        sides = np.sqrt((labelled.boxes[:, 2:] - labelled.boxes[:, :2]).prod(axis=1))
        counted, own = found.counted, labelled.counted
        finds = (found.labels[counted], found.scores[counted], right[counted])
        return cls(*finds, labelled.labels[own], sides[own], scores[own])

    @classmethod
    def together(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """The outcome of several scenes as if they were one."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def average_precision(self) -> float:
        """Mean of the classes' areas under the interpolated curve of precision against recall; NaN without objects."""
        each = []
        for name in np.unique(self.object_labels):
            mine = self.labels == name
            count = int((self.object_labels == name).sum())
            each.append(average_precision(self.scores[mine], self.right[mine], count))
        return float(np.mean(each)) if each else float("nan")

    def best(self) -> Point:
        """The threshold, one for all classes, with the highest F1; the higher of equal ones."""
        scores, hits, finds = at_thresholds(self.scores, self.right)
        objects = len(self.object_labels)
        if not len(scores) or not objects:
            return Point(1.0, 0.0, 0.0, 0.0)
        f1 = 2 * hits / (finds + objects)
        i = int(np.argmax(f1))
        return Point(float(scores[i]), float(hits[i] / objects), float(hits[i] / finds[i]), float(f1[i]))

    def recall(self, threshold: float, low: float = 0.0, high: float = np.inf) -> float:
        """Share of the objects with `low` <= side < `high` found from a threshold on; NaN if there are none."""
        rows = (self.object_sides >= low) & (self.object_sides < high)
        return float((self.object_scores[rows] >= threshold).mean()) if rows.any() else float("nan")

    def found(self) -> float:
        """Share of the objects found at any threshold."""
        return self.recall(0.0)


def average_precision(scores: NDArray[np.float32], right: NDArray[np.bool_], objects: int) -> float:
    """Area under the curve of the highest precision at this recall or a higher one.

    Parameters
    ----------
    scores : ndarray, float32, (n,)
        Scores of the finds.
    right : ndarray, bool, (n,)
        Whether each is an object.
    objects : int
        Number of objects, at least 1.
    """
    _, hits, finds = at_thresholds(scores, right)
    highest = np.maximum.accumulate((hits / finds)[::-1])[::-1]
    return float((np.diff(hits / objects, prepend=0.0) * highest).sum())
