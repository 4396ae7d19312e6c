"""A person who annotates place after place, simulated by the labels of a scene."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import shapely
from shapely.geometry import box, mapping

from coarse2fine.annotate.store import Feature, new_feature
from coarse2fine.annotations.annotated import REGION
from coarse2fine.annotations.read import Annotations

Corners = tuple[int, int, int, int]


class Annotator:
    """Annotates places of one scene completely; each object is a click, and so is the end of each place.

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
        return [shapely.box(*_bounds(item)) for item in self.items if _label(item) == REGION]

    @property
    def objects(self) -> int:
        """Number of objects drawn so far."""
        return len(self._drawn)

    def annotate(self, full_box: Corners) -> None:
        """Draw all objects with their centre in a place, (y0, x0, y1, x1), and mark it as complete."""
        y0, x0, y1, x1 = full_box
        place = box(x0, y0, x1, y1)
        for i in sorted(set(self._tree.query(place, predicate="intersects").tolist()) - self._drawn):
            annotation = self._objects[i]
            self._drawn.add(i)
            self.items.append(_feature(annotation.geometry, annotation.label))
            self.clicks += 1
        self.items.append(_feature(place, REGION))
        self.clicks += 1

    def follow(self, queue: Iterator[Corners], clicks: int) -> None:
        """Annotate places of a queue until so many clicks are made, or it is empty."""
        while self.clicks < clicks:
            place = next(queue, None)
            if place is None:
                return
            self.annotate(place)


def _feature(geometry: Any, label: str) -> Feature:
    return new_feature(mapping(geometry), label, (0, 0, 0), {})


def _label(item: Feature) -> str:
    return str(item["properties"]["classification"]["name"])


def _bounds(item: Feature) -> tuple[float, float, float, float]:
    x, y = zip(*item["geometry"]["coordinates"][0], strict=True)
    return min(x), min(y), max(x), max(y)
