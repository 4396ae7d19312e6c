"""A person who annotates place after place, simulated by the labels of a scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import shapely
from shapely.geometry import box, mapping

from coarse2fine.annotate.finds import undecided
from coarse2fine.annotate.store import Feature, is_rejected, new_feature
from coarse2fine.annotations.annotated import REGION
from coarse2fine.annotations.read import Annotations
from coarse2fine.refiners.suppress import iou
from coarse2fine.region import Region

Corners = tuple[int, int, int, int]
_RIGHT = 0.4


class Annotator:
    """Annotates places of one scene completely, and counts clicks.

    An object that is drawn is a click, so is a find that is rejected, and so is the end of each place. Right finds are
    accepted with the place: their box has an IoU of at least 0.4 with the object's, and their class is right.

    Parameters
    ----------
    truth : Annotations
        Labels of the scene.

    Attributes
    ----------
    items : list of dict
        What is annotated so far.
    clicks : int
    """

    def __init__(self, truth: Annotations) -> None:
        self._objects = truth.objects
        self._tree = shapely.STRtree([annotation.geometry.centroid for annotation in truth.objects])
        self._drawn: set[int] = set()
        self.items: list[Feature] = []
        self.clicks = 0

    @property
    def areas(self) -> list[Any]:
        """The places annotated so far, as shapely geometries."""
        return [shapely.box(*_bounds(item)) for item in self.items if _label(item) == REGION and not is_rejected(item)]

    @property
    def objects(self) -> int:
        """Number of objects drawn so far."""
        return len(self._drawn)

    def annotate(self, full_box: Corners, finds: Sequence[Region] = ()) -> None:
        """Decide on finds with their centre in a place, (y0, x0, y1, x1), draw all other objects, mark it complete."""
        y0, x0, y1, x1 = full_box
        place = box(x0, y0, x1, y1)
        for find in undecided(finds, self.items):
            y, x = find.full_centre
            if y0 <= y < y1 and x0 <= x < x1:
                self._decide(find)
        for i in sorted(set(self._tree.query(place, predicate="intersects").tolist()) - self._drawn):
            annotation = self._objects[i]
            self._drawn.add(i)
            self.items.append(_feature(annotation.geometry, annotation.label))
            self.clicks += 1
        self.items.append(_feature(place, REGION))
        self.clicks += 1

    def _decide(self, find: Region) -> None:
        """Accept a find, without a click, or reject it."""
        y0, x0, y1, x1 = find.full_box
        outline = box(x0, y0, x1, y1)
        for i in sorted(set(self._tree.query(outline, predicate="intersects").tolist()) - self._drawn):
            known = self._objects[i]
            left, top, right, bottom = known.geometry.bounds
            overlap = iou(np.array([find.full_box]), np.array([[top, left, bottom, right]]))[0]
            if known.label == find.label and overlap >= _RIGHT:
                self._drawn.add(i)
                self.items.append(_feature(outline, find.label))
                return
        self.items.append(new_feature(mapping(outline), find.label, (0, 0, 0), {"coarse2fine": {"rejected": True}}))
        self.clicks += 1

    def follow(self, queue: Iterator[Corners], clicks: int, finds: Sequence[Region] = ()) -> None:
        """Annotate places of a queue until so many clicks are made, or it is empty."""
        while self.clicks < clicks:
            place = next(queue, None)
            if place is None:
                return
            self.annotate(place, finds)


def _feature(geometry: Any, label: str) -> Feature:
    return new_feature(mapping(geometry), label, (0, 0, 0), {})


def _label(item: Feature) -> str:
    return str(item["properties"]["classification"]["name"])


def _bounds(item: Feature) -> tuple[float, float, float, float]:
    x, y = zip(*item["geometry"]["coordinates"][0], strict=True)
    return min(x), min(y), max(x), max(y)
