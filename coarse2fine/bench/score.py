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
    """

    def __init__(self, truth: Annotations, model: Model) -> None:
        self._areas = {label.name for label in model.labels if label.kind == "area"}
        boxes = object_boxes(truth, model)[[a.label not in self._areas for a in truth.objects]]
        self._label = np.array([a.label for a in truth.objects if a.label not in self._areas], str)
        self._reach = np.maximum(model.geometry.cell, (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0) / 2)
        self._centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        self._annotated = AnnotatedArea(truth).contains
        self._counted = self._annotated(*self._centre.T)

    def score(self, regions: Sequence[Region]) -> LabelScore:
        """Match finds with objects of their class, one to one."""
        found = [r for r in regions if r.label not in self._areas]
        found_centre = np.array([r.full_centre for r in found], np.float64).reshape(-1, 2)
        scores = np.array([r.score for r in found], np.float32)
        found_label = np.array([r.label for r in found], str)
        hits, false_alarms = 0, 0
        for name in sorted({*self._label.tolist(), *found_label.tolist()}):
            mine, true = np.flatnonzero(found_label == name), np.flatnonzero(self._label == name)
            owner = match(found_centre[mine], scores[mine], self._centre[true], self._reach[true])
            hits += int(self._counted[true[owner[owner >= 0]]].sum())
            false_alarms += int(self._annotated(*found_centre[mine[owner < 0]].T).sum())
        return LabelScore(hits, false_alarms, int(self._counted.sum()))


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
    low, high = np.maximum(found[j, :2], there[i, :2]), np.minimum(found[j, 2:], there[i, 2:])
    common = (high - low).clip(min=0).prod(axis=1)
    union = _area(found[j]) + _area(there[i]) - common
    apart = np.hypot(*((found[j, :2] + found[j, 2:] - there[i, :2] - there[i, 2:]) / 2).T)
    label = np.array([r.label for r in regions]), np.array([r.label for r in reference])
    same = (label[0][j] == label[1][i]) & ((apart <= cell / 2) | (common > _SAME_IOU * union))
    graph = coo_array((np.ones(int(same.sum()), np.int8), (i[same], j[same])), shape=(len(there), len(found)))
    return float((maximum_bipartite_matching(graph.tocsr()) >= 0).sum() / len(there))


def _boxes(bounds: NDArray[np.float64]) -> NDArray[np.object_]:
    y0, x0, y1, x1 = bounds.T
    boxes: NDArray[np.object_] = shapely.box(x0, y0, x1, y1)
    return boxes


def _area(bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (bounds[:, 2:] - bounds[:, :2]).prod(axis=1)
    return area
