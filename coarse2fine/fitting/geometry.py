"""Choice of cell size, scan and refine resolution from the sizes of the annotated objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from coarse2fine.annotations.annotated import AnnotationError
from coarse2fine.annotations.read import Annotations
from coarse2fine.model import Geometry
from coarse2fine.models.box_head import BOX_CHANNELS
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.refiners.protocol import Label

# 10.7 kMAC a pixel and a field of 58 pixels; for small objects 8.4 and 42, which halves the cost of windows' halos.
WIDE_REFINER = "4/2:16 3:24 4/2:48 3:64 3:64 4/2:128 3:128 1:128 1:{out}"
NARROW_REFINER = "4/2:16 3:24 4/2:48 3:64 3:64 4/2:128 1:128 1:{out}"
_SMALL = 24.0
# The base by the number of its stride-2 stages; 0.2-0.35 kMAC a full-resolution pixel at cells of 8 pixels.
BASES = {
    0: "3:16 3:32 3:32 1:32 1:1",
    1: "4/2:16 3:32 3:32 1:32 1:1",
    2: "4/2:12 4/2:24 3:32 3:32 1:32 1:1",
    3: "4/2:12 4/2:24 4/2:48 3:48 1:48 1:1",
}
FINE_STRIDE = 8
# A feature's number is stored as a byte, in which 255 means none.
_MOST_CHANNELS = 248
STRIDES = tuple(2**halvings for halvings in BASES)
_FIELD = 58
# An object of fewer scan pixels than this cannot be told from noise.
_SCAN_PIXELS = 5.0
_AREA_SIDE = 256.0
# Median side above which, and spread of sides (nine tenths over one tenth) beyond which polygons may be meant as areas.
_PATCH_SIDE, _PATCH_SPREAD = 96.0, 3.0
_POINT_SIDE, _LEAST_SIDE = 32.0, 4.0
# Quantile of the distances between neighbouring points; at the median half of the objects would overlap another.
_POINT_QUANTILE = 0.1
# Points, and share of the ground that squares of that side must cover, or else the side is at most the usual one.
_FEW_POINTS, _CROWDED = 20, 0.1
PLANES = (1, 2, 4, 8, 16, 32, 64)
"""Downsamples of the planes that may be refined."""
_LEAST_PIXELS = 2.5


@dataclass(frozen=True, eq=False)
class Sizes:
    """Sizes of the annotated objects, in full-resolution pixels.

    Parameters
    ----------
    sides : ndarray, float64, (n, 2)
        Smaller side of each object's bounding box, and the root of the box's area; without classes that are areas.
    labels : ndarray, str, (n,)
        Class of each.
    nominal : float
        Side given to annotations that are points.
    guess : str
        How that side was estimated; empty if it was given or there are no points.
    """

    sides: NDArray[np.float64]
    labels: NDArray[np.str_]
    nominal: float
    guess: str = ""

    @property
    def small(self) -> float:
        """10th percentile of the side (the root of the bounding box's area)."""
        return float(np.quantile(self.sides[:, 1], 0.1)) if len(self.sides) else self.nominal

    @property
    def median(self) -> float:
        """Median of the side."""
        return float(np.quantile(self.sides[:, 1], 0.5)) if len(self.sides) else self.nominal

    @property
    def large(self) -> float:
        """75th percentile of the side."""
        return float(np.quantile(self.sides[:, 1], 0.75)) if len(self.sides) else self.nominal


def find_labels(all_annotations: Sequence[Annotations], areas: Sequence[str] = ()) -> tuple[Label, ...]:
    """Classes in alphabetical order; those named in `areas` or of large, irregular polygons are areas, others objects.

    Parameters
    ----------
    all_annotations : sequence of Annotations
    areas : sequence of str

    Raises
    ------
    AnnotationError
        If a class of `areas` is not drawn, or only by points.
    """
    drawn = {a.label for each in all_annotations for a in each.objects if not a.is_point}
    if unknown := sorted(set(areas) - drawn):
        known = ", ".join(sorted(drawn)) or "none"
        raise AnnotationError(f"areas must be classes that are drawn: {unknown[0]!r} is not, only {known}")
    sides = _sides(all_annotations)
    irregular = _irregular(all_annotations)
    return tuple(
        Label(name, "area" if name in areas or (name in irregular and np.median(own) > _AREA_SIDE) else "object")
        for name, own in sorted(sides.items())
    )


def perhaps_areas(all_annotations: Sequence[Annotations], areas: Sequence[str] = ()) -> str | None:
    """Note on classes of objects whose polygons differ so much in size that areas may be meant; None without any."""
    sides, found = _sides(all_annotations), dict[str, str]()
    for name in sorted(_irregular(all_annotations) - set(areas)):
        low, middle, high = np.quantile(sides[name], (0.1, 0.5, 0.9)).tolist()
        if _PATCH_SIDE < middle <= _AREA_SIDE and high > _PATCH_SPREAD * low:
            found[name] = f"{name} ({low:,.0f} to {high:,.0f} px)"
    if not found:
        return None
    return (
        f"polygons that differ much in size are learned as objects, which come back as boxes: "
        f"{', '.join(found.values())}; areas={list(found)} (--areas) learns outlines instead"
    )


def _sides(all_annotations: Sequence[Annotations]) -> dict[str, list[float]]:
    """Roots of the bounding boxes' areas, by class."""
    sides = dict[str, list[float]]()
    for annotation in (a for each in all_annotations for a in each.objects):
        y0, x0, y1, x1 = annotation.full_bounds
        sides.setdefault(annotation.label, []).append(math.sqrt((y1 - y0) * (x1 - x0)))
    return sides


def _irregular(all_annotations: Sequence[Annotations]) -> set[str]:
    """Classes with an annotation that is neither a box nor a point."""
    return {a.label for each in all_annotations for a in each.objects if not (a.is_box or a.is_point)}


def measure(all_annotations: Sequence[Annotations], labels: Sequence[Label], object_size: float | None) -> Sizes:
    """Sizes of the objects; for points `object_size`, else estimated from drawn objects or distances of neighbours."""
    names = {label.name for label in labels if label.kind == "object"}
    objects = [[a for a in each.objects if a.label in names] for each in all_annotations]
    points = [[a.full_bounds[:2] for a in each if a.is_point] for each in objects]
    drawn = [a for each in objects for a in each if not a.is_point]
    bounds = np.array([a.full_bounds for a in drawn], np.float64).reshape(-1, 4)
    extent = bounds[:, 2:] - bounds[:, :2]
    sides = np.stack([extent.min(axis=1), np.sqrt(extent.prod(axis=1))], axis=1)
    count = sum(map(len, points))
    nominal, guess = (object_size, "") if object_size else _nominal(points, sides[:, 1])
    every = [a.label for a in drawn] + [a.label for each in objects for a in each if a.is_point]
    return Sizes(
        np.concatenate([sides, np.full((count, 2), nominal)]), np.array(every, np.str_), nominal, guess if count else ""
    )


def _nominal(points: Sequence[Sequence[tuple[float, float]]], drawn: NDArray[np.float64]) -> tuple[float, str]:
    """Estimated side of objects annotated as points, so that few overlap a neighbour, and how it was estimated.

    Parameters
    ----------
    points : sequence of sequence of tuple of float
        Positions (y, x) in each image.
    drawn : ndarray, float64, (n,)
        Sides of the objects that are not points.
    """
    if len(drawn) > 1:
        return float(np.median(drawn)), f"the median side of the {len(drawn):,} objects that are drawn"
    gaps = [cKDTree(each).query(each, k=2)[0][:, 1] for each in points if len(each) > 1]
    # The same object marked twice is no neighbour.
    apart = np.concatenate(gaps) if gaps else np.zeros(0)
    apart = apart[apart >= _LEAST_SIDE]
    if not len(apart):
        return _POINT_SIDE, "a usual size: no point has a neighbour to estimate it from"
    near = float(np.quantile(apart, _POINT_QUANTILE))
    # Points that crowd tell how large objects can be; others only how rare they are.
    ground = sum(float(np.prod(np.ptp(each, axis=0) + near)) for each in map(np.asarray, points) if len(each))
    count = sum(map(len, points))
    if near > _POINT_SIDE and (count < _FEW_POINTS or count * near**2 < _CROWDED * ground):
        return _POINT_SIDE, "a usual size: points that far apart do not tell it"
    return near, f"only {_POINT_QUANTILE:.0%} of the points have a nearest neighbour closer than that"


def choose_geometry(sizes: Sizes, labels: Sequence[Label]) -> Geometry:
    """Choose resolutions so that the scan resolves small objects and large ones fit the refine net's field.

    The refine net's plane is the one in which fewest classes lose all their objects; ties go to the plane with fewest
    objects too small or too large, then to the one nearest to the plane that suits the typical object.

    Parameters
    ----------
    sizes : Sizes
    labels : sequence of Label
    """
    if all(label.kind == "area" for label in labels):
        return Geometry(cell=FINE_STRIDE * 4, scan_downsample=16, refine_downsample=4)
    typical = 2 ** math.ceil(math.log2(max(1.0, 1.2 * sizes.large / _FIELD)))
    typical = min(typical, _coarsest_scan(sizes), PLANES[-1])
    return geometry_at(min(PLANES, key=lambda r: (*_unseen(sizes, labels, r), abs(math.log2(r / typical)))), sizes)


def geometry_at(refine: int, sizes: Sizes) -> Geometry:
    """Geometry with a given plane to refine: the scan is as coarse as small objects allow."""
    scan = min(max(_coarsest_scan(sizes), 2 * refine), FINE_STRIDE * refine)
    return Geometry(cell=FINE_STRIDE * refine, scan_downsample=scan, refine_downsample=refine)


def _coarsest_scan(sizes: Sizes) -> int:
    """The coarsest plane that resolves small objects."""
    return int(2 ** math.floor(math.log2(max(1.0, sizes.small / _SCAN_PIXELS))))


def suiting(sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Downsample at which objects of these sides nearly fill the refine net's field; at least 1."""
    return np.maximum(1.0, 1.2 * sides / _FIELD)


def taken(sizes: Sizes, planes: Sequence[int]) -> NDArray[np.bool_]:
    """Which objects (n) each plane (p) resolves and holds in the field of even the narrower refine net; (n, p)."""
    short, side = sizes.sides.T[:, :, None]
    plane = np.array(planes)
    largest = largest_side(StackSpec.parse(1, NARROW_REFINER.format(out=1)), 1)
    return np.asarray((short <= largest * plane) & ((side >= _SCAN_PIXELS * plane) | (plane == 1)))


def _unseen(sizes: Sizes, labels: Sequence[Label], refine: int) -> tuple[int, int]:
    """Number of classes that lose all objects at 1/refine, and number of objects that are too large or too small."""
    spec = refiner_spec(3, labels, sizes, Geometry(FINE_STRIDE * refine, refine, refine))
    short, side = sizes.sides.T
    large = short > largest_side(spec, refine)
    lost = large | (side < smallest_side(refine))
    gone = sum(bool(lost[sizes.labels == name].all()) for name in np.unique(sizes.labels))
    # Nothing is finer than the image itself.
    return gone, int((large | ((side < _SCAN_PIXELS * refine) & (refine > 1))).sum())


def largest_side(spec: StackSpec, refine_downsample: int) -> float:
    """Largest smaller side of an object in full-resolution pixels: a little more than the refine net's field."""
    return 1.25 * spec.field * refine_downsample


def smallest_side(refine_downsample: int) -> float:
    """Smallest side of an object in full-resolution pixels: fewer pixels of the refined plane cannot be learned."""
    return _LEAST_PIXELS * refine_downsample if refine_downsample > 1 else 0.0


def base_spec(channels: int, geometry: Geometry, width: float = 1.0) -> StackSpec:
    """Shape of the built-in base for a geometry; if the scan plane is as coarse as the cells, it has no stride.

    Parameters
    ----------
    channels : int
        Channels of the image.
    geometry : Geometry
    width : float
        Factor on the channels of all stages but the last, up to 248; multiply-adds grow nearly with its square.
    """
    halvings = int(math.log2(geometry.cell // geometry.scan_downsample))
    spec = StackSpec.parse(channels, BASES[halvings])
    *stages, last = spec.stages
    widths = [min(max(4, round(width * s.channels)), _MOST_CHANNELS) for s in stages]
    wider = (replace(s, channels=n) for s, n in zip(stages, widths, strict=True))
    return StackSpec(channels, (*wider, last))


def refiner_spec(channels: int, labels: Sequence[Label], sizes: Sizes, geometry: Geometry) -> StackSpec:
    """Shape of the refine net for a set of classes; the field depends on the larger objects' size in its plane."""
    areas = any(label.kind == "area" for label in labels)
    small = sizes.large / geometry.refine_downsample <= _SMALL and not areas
    text = NARROW_REFINER if small else WIDE_REFINER
    return StackSpec.parse(channels, text.format(out=len(labels) + BOX_CHANNELS))
