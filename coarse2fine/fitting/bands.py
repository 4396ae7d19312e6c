"""Bands of object sizes: one plane to refine for each, so that no object is too large or too small for its net.

The net of a plane sees objects of a limited range of sizes. If one plane does not suit all objects, those of other
sizes form further bands; each has a geometry of its own, and a model that is fitted to its own objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from coarse2fine.annotations.read import Annotation, Annotations
from coarse2fine.fitting.geometry import (
    PLANES,
    Sizes,
    choose_geometry,
    geometry_at,
    largest_side,
    refiner_spec,
    smallest_side,
    suiting,
    taken,
)
from coarse2fine.fitting.hold_out import refuse_if_many
from coarse2fine.fitting.scene import LeftOut
from coarse2fine.model import Geometry
from coarse2fine.refiners.protocol import Label

# Least objects of a band, and most bands.
_LEAST_OBJECTS, _MOST_BANDS = 20, 4
# Objects up to this factor beyond a band's border are found in both bands, those up to the second factor in the next
# band alone: they count neither as objects nor as background. All others are background: their size tells them apart.
_SHARED, _UNDECIDED = 1.2, 1.8
# Areas have no size: they belong to the plane nearest to this one, which they have in a model of their own.
_AREA_PLANE = 4


@dataclass(frozen=True)
class SizeBand:
    """Range of object sizes that one model finds.

    Parameters
    ----------
    geometry : Geometry
    labels : tuple of Label
        Classes that occur in it.
    sizes : Sizes
        Of its objects.
    low, high : float
        Least side of its objects (the root of the bounding box's area), and least side of the next band's, in
        full-resolution pixels; 0 and infinity if it is the only one.
    """

    geometry: Geometry
    labels: tuple[Label, ...]
    sizes: Sizes
    low: float = 0.0
    high: float = math.inf

    @property
    def alone(self) -> bool:
        """Whether it is the only one."""
        return self.low == 0.0 and self.high == math.inf

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest side of its objects."""
        side = self.sizes.sides[:, 1]
        return float(side.min()), float(side.max())

    def __str__(self) -> str:
        g, (least, most) = self.geometry, self.range
        sides = f"{len(self.sizes.sides):,} objects of {least:,.0f} to {most:,.0f} px"
        return f"{sides}, scan at 1/{g.scan_downsample}, refine at 1/{g.refine_downsample}"

    @property
    def smallest(self) -> float:
        """Least side of objects that are trained on, if the plane resolves them."""
        return self.low / _SHARED

    @property
    def largest(self) -> float:
        """Largest side of objects that are trained on, if they fit the net."""
        return self.high * _SHARED

    def of(self, annotations: Annotations) -> Annotations:
        """The annotations without objects that are clearly of another band, which are background."""
        if self.alone:
            return annotations
        kinds = {label.name: label.kind for label in self.labels}
        low, high = self.low / _UNDECIDED, self.high * _UNDECIDED

        def belongs(each: Annotation) -> bool:
            if kinds.get(each.label) != "object":
                return each.label in kinds
            return low <= (self.sizes.nominal if each.is_point else _side(each.full_bounds)) < high

        return replace(annotations, objects=tuple(filter(belongs, annotations.objects)))


def choose_bands(sizes: Sizes, labels: Sequence[Label]) -> tuple[SizeBand, ...]:
    """Choose as few bands as leave out hardly any object, the smallest objects first.

    There is one band if it leaves out fewer objects than a band must have. Otherwise the planes are those that leave
    out fewest, and suit the others best; borders lie in the widest gaps between sizes that both planes can take.

    Parameters
    ----------
    sizes : Sizes
    labels : sequence of Label
    """
    whole = SizeBand(choose_geometry(sizes, labels), tuple(labels), sizes)
    least = int(_lost(sizes, whole).any(axis=1).sum())
    planes: tuple[int, ...] = ()
    for count in range(2, _MOST_BANDS + 1):
        if least < _LEAST_OBJECTS:
            break
        found = min(combinations(PLANES, count), key=lambda each: _price(sizes, each))
        lost = _price(sizes, found)[0]
        if lost <= least - _LEAST_OBJECTS and _counts(sizes, found).min() >= _LEAST_OBJECTS:
            planes, least = found, lost
    if not planes:
        return (whole,)
    borders = [0.0, *_borders(sizes, planes), math.inf]
    homes = np.searchsorted(borders[1:-1], sizes.sides[:, 1], side="right")
    area_home = min(range(len(planes)), key=lambda i: (abs(math.log2(planes[i] / _AREA_PLANE)), -i))
    bands = []
    for i, plane in enumerate(planes):
        own = Sizes(sizes.sides[homes == i], sizes.labels[homes == i], sizes.nominal, sizes.guess if i == 0 else "")
        names = set(own.labels.tolist())
        kept = tuple(each for each in labels if each.name in names or (each.kind == "area" and i == area_home))
        bands.append(SizeBand(geometry_at(plane, own), kept, own, borders[i], borders[i + 1]))
    return tuple(bands)


def check_left_out(bands: Sequence[SizeBand], largest: float, smallest: float) -> tuple[LeftOut, ...]:
    """The objects that several bands leave out even so, by class.

    Raises
    ------
    AnnotationError
        If they are too many, as in `check_objects`.
    """
    found = []
    lost = np.concatenate([_lost(band.sizes, band) for band in bands])
    labels = np.concatenate([band.sizes.labels for band in bands])
    for name in np.unique(labels).tolist():
        own = lost[labels == name]
        found.append(LeftOut(name, len(own), int(own[:, 0].sum()), int(own[:, 1].sum())))
    return refuse_if_many(found, largest, smallest)


def _lost(sizes: Sizes, band: SizeBand) -> NDArray[np.bool_]:
    """Which objects are too large, and which too small, for a band's plane; (n, 2)."""
    refine = band.geometry.refine_downsample
    short, side = sizes.sides.T
    large = short > largest_side(refiner_spec(3, band.labels, band.sizes, band.geometry), refine)
    return np.column_stack([large, ~large & (side < smallest_side(refine))])


def _price(sizes: Sizes, planes: Sequence[int]) -> tuple[int, float]:
    """Number of objects that fit no plane, and how far the best plane of each object is from the one that suits it."""
    suits = taken(sizes, planes)
    away = np.where(suits, np.abs(np.log2(np.array(planes) / suiting(sizes.sides[:, 1])[:, None])), np.inf).min(axis=1)
    return int((~suits.any(axis=1)).sum()), float(away[suits.any(axis=1)].sum())


def _counts(sizes: Sizes, planes: Sequence[int]) -> NDArray[np.int64]:
    """Number of objects in each band."""
    homes = np.searchsorted(_borders(sizes, planes), sizes.sides[:, 1], side="right")
    return np.bincount(homes, minlength=len(planes))


def _borders(sizes: Sizes, planes: Sequence[int]) -> list[float]:
    """Sides that divide the bands: in the widest gap between sizes, on a scale of logarithms, that both planes take."""
    suits, side = taken(sizes, planes), np.maximum(sizes.sides[:, 1], 1.0)
    found = []
    for a, b in pairwise(range(len(planes))):
        low = float(side[suits[:, a] & ~suits[:, b]].max(initial=1.0))
        high = float(side[suits[:, b] & ~suits[:, a]].min(initial=math.inf))
        between = np.unique(side[(side >= low) & (side <= high)])
        if len(between) > 1:
            widest = int(np.diff(np.log(between)).argmax())
            low, high = float(between[widest]), float(between[widest + 1])
        found.append(math.sqrt(low * high) if math.isfinite(high) else low)
    return found


def _side(full_bounds: tuple[float, float, float, float]) -> float:
    y0, x0, y1, x1 = full_bounds
    return math.sqrt((y1 - y0) * (x1 - x0))
