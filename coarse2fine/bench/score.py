"""Scores of a set of finds: against the labels, and against what the exhaustive pass finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from coarse2fine.annotations.read import AnnotatedArea, Annotations
from coarse2fine.fitting.matching import match
from coarse2fine.model import Model
from coarse2fine.refiners.suppress import iou
from coarse2fine.region import Region

_SAME_IOU = 0.5


@dataclass(frozen=True)
class LabelScore:
    """Counts of found objects, of false alarms (in annotated areas), and of all objects."""

    hits: int
    false_alarms: int
    objects: int

    @property
    def recall(self) -> float:
        """Share of the objects found; NaN without objects."""
        return self.hits / self.objects if self.objects else float("nan")

    @property
    def precision(self) -> float:
        """Share of the finds that are objects; NaN without finds."""
        finds = self.hits + self.false_alarms
        return self.hits / finds if finds else float("nan")


@dataclass(frozen=True, eq=False)
class MatchedFinds:
    """Finds of a scene, each with the labelled object that it is.

    Parameters
    ----------
    labels : ndarray, str, (n,)
        Class of each.
    scores : ndarray, float32, (n,)
    owner : ndarray, int64, (n,)
        Index of its object; -1 if it is none.
    counted : ndarray, bool, (n,)
        Whether its object, or for want of one its centre, lies in an annotated area.
    """

    labels: NDArray[np.str_]
    scores: NDArray[np.float32]
    owner: NDArray[np.int64]
    counted: NDArray[np.bool_]


class Labelled:
    """The labelled objects of a scene, to be matched with finds.

    A find matches an object if their centres are at most a cell apart, or half the object's longer side if that is
    more. Areas, which have no natural number, are left out on both sides. Objects too large for the refiner count as
    missed like any other.

    Parameters
    ----------
    truth : Annotations
    model : Model
        Gives the size of a cell, and which classes are areas.

    Attributes
    ----------
    labels : ndarray, str, (m,)
        Class of each object; if a classifier names finds, the one class of all.
    boxes : ndarray, float64, (m, 4)
        Their bounds (y0, x0, y1, x1).
    counted : ndarray, bool, (m,)
        Whether the centre of each lies in an annotated area.
    """

    def __init__(self, truth: Annotations, model: Model) -> None:
        self._areas = {label.name for label in model.labels if label.kind == "area"}
        # Benchmarks compare where to look: finds are alike before and after a classifier names them.
        self._alike = model.classifier is not None
        self.boxes = object_boxes(truth, model)[[a.label not in self._areas for a in truth.objects]]
        self.labels = self._one_class([a.label for a in truth.objects if a.label not in self._areas])
        longer = (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1, initial=0.0)
        self._reach = np.maximum(model.geometry.cell, longer / 2)
        self._centre = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        self._annotated = AnnotatedArea(truth).contains
        self.counted = self._annotated(*self._centre.T)

    def _one_class(self, labels: Sequence[str]) -> NDArray[np.str_]:
        return np.array(["object"] * len(labels) if self._alike else labels, str)

    def score(self, regions: Sequence[Region]) -> LabelScore:
        """Match finds with objects of their class, one to one."""
        found = self.matched(regions)
        right = found.owner >= 0
        return LabelScore(
            int((right & found.counted).sum()), int((~right & found.counted).sum()), int(self.counted.sum())
        )

    def matched(self, regions: Sequence[Region], overlap: float | None = None) -> MatchedFinds:
        """Match finds with objects of their class, one to one, the best find first.

        Parameters
        ----------
        regions : sequence of Region
        overlap : float, optional
            Least IoU of a find with its object, which is the free one that it overlaps most, instead of the rule on
            centres.
        """
        found = [r for r in regions if r.label not in self._areas]
        boxes = np.array([r.full_box for r in found], np.float64).reshape(-1, 4)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        scores = np.array([r.score for r in found], np.float32)
        labels = self._one_class([r.label for r in found])
        owner = np.full(len(found), -1, np.int64)
        for name in np.unique(labels):
            mine, true = np.flatnonzero(labels == name), np.flatnonzero(self.labels == name)
            if overlap is None:
                own = match(centre[mine], scores[mine], self._centre[true], self._reach[true])
            else:
                own = match_boxes(boxes[mine], scores[mine], self.boxes[true], overlap)
            owner[mine[own >= 0]] = true[own[own >= 0]]
        counted = self._annotated(*centre.T)
        counted[owner >= 0] = self.counted[owner[owner >= 0]]
        return MatchedFinds(labels, scores, owner, counted)


def match_boxes(
    found: NDArray[np.float64], scores: NDArray[np.float32], true: NDArray[np.float64], overlap: float
) -> NDArray[np.int64]:
    """Match boxes one to one, the best find first, each with the unmatched object that it overlaps most.

    Parameters
    ----------
    found, true : ndarray, float64, (n, 4) and (m, 4)
        y0, x0, y1, x1.
    scores : ndarray, float32, (n,)
        Scores of the finds.
    overlap : float
        Least IoU of a find and its object.

    Returns
    -------
    ndarray, int64, (n,)
        Index of each find's object; -1 for a false alarm.
    """
    owner = np.full(len(found), -1, np.int64)
    i, j = shapely.STRtree(_boxes(true)).query(_boxes(found), predicate="intersects")
    overlaps = iou(found[i], true[j])
    rank = np.empty(len(found), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(found))
    free = np.ones(len(true), bool)
    for row in np.lexsort((-overlaps, rank[i])).tolist():
        if overlaps[row] >= overlap and owner[i[row]] < 0 and free[j[row]]:
            owner[i[row]], free[j[row]] = j[row], False
    return owner


def object_boxes(truth: Annotations, model: Model) -> NDArray[np.float64]:
    """Bounds (y0, x0, y1, x1) of the labelled objects; points get the median size from fitting."""
    bounds = np.array([a.full_bounds for a in truth.objects], np.float64).reshape(-1, 4)
    half = float(model.provenance.get("median_size", 0.0)) / 2
    bounds[[a.is_point for a in truth.objects]] += np.array([-half, -half, half, half])
    return bounds


def against_exhaustive(regions: Sequence[Region], reference: Sequence[Region], cell: int) -> float:
    """Share of the exhaustive pass's finds that were found again; NaN if it found none.

    Two finds are the same if they are of one class and their centres lie within half a cell, or their boxes overlap
    by IoU > 0.5; each counts once (a maximum matching).

    Parameters
    ----------
    regions, reference : sequence of Region
    cell : int
        Side of a cell in full-resolution pixels.
    """
    if not reference:
        return float("nan")
    if not regions:
        return 0.0
    found = np.array([r.full_box for r in regions], np.float64)
    there = np.array([r.full_box for r in reference], np.float64)
    # Boxes grown by half a cell intersect whenever either rule can hold.
    grown = there + np.array([-0.5, -0.5, 0.5, 0.5]) * cell
    j, i = shapely.STRtree(_boxes(grown)).query(_boxes(found), predicate="intersects")
    apart = np.hypot(*((found[j, :2] + found[j, 2:] - there[i, :2] - there[i, 2:]) / 2).T)
    label = np.array([r.label for r in regions]), np.array([r.label for r in reference])
    same = (label[0][j] == label[1][i]) & ((apart <= cell / 2) | (iou(found[j], there[i]) > _SAME_IOU))
    graph = coo_array((np.ones(int(same.sum()), np.int8), (i[same], j[same])), shape=(len(there), len(found)))
    return float((maximum_bipartite_matching(graph.tocsr()) >= 0).sum() / len(there))


def _boxes(bounds: NDArray[np.float64]) -> NDArray[np.object_]:
    y0, x0, y1, x1 = bounds.T
    boxes: NDArray[np.object_] = shapely.box(x0, y0, x1, y1)
    return boxes
