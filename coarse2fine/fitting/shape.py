"""How fine to look: cell, scan and refine resolution from the sizes of the annotated objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from coarse2fine.annotations import Annotations
from coarse2fine.model import Geometry, Label
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.models.heads import BOX_CHANNELS

# 10.7 kMAC a pixel and a field of 58 pixels; for small objects 8.4 and 42: then windows lose half as much to halos.
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
# A feature's number is a byte, of which 255 is no feature.
_MOST_CHANNELS = 248
STRIDES = tuple(2**halvings for halvings in BASES)
_FIELD = 58
# An object of fewer scan pixels than this cannot be told from noise.
_SCAN_PIXELS = 5.0
_AREA_SIDE = 256.0
_POINT_SIDE, _LEAST_SIDE = 32.0, 4.0


@dataclass(frozen=True)
class Sizes:
    """Typical sizes of the annotated objects, in full-resolution pixels.

    Parameters
    ----------
    small, median, large : float
        10th, 50th and 75th percentile of the side (the root of the bounding box's area).
    nominal : float
        Side given to annotations that are points.
    """

    small: float
    median: float
    large: float
    nominal: float


def find_labels(all_annotations: Sequence[Annotations]) -> tuple[Label, ...]:
    """Classes in alphabetical order; those of large, irregular polygons are areas, all others are objects."""
    sides: dict[str, list[float]] = {}
    boxed: dict[str, bool] = {}
    for annotation in (a for each in all_annotations for a in each.objects):
        y0, x0, y1, x1 = annotation.full_bounds
        sides.setdefault(annotation.label, []).append(math.sqrt((y1 - y0) * (x1 - x0)))
        boxed[annotation.label] = boxed.get(annotation.label, True) and (annotation.is_box or annotation.is_point)
    return tuple(
        Label(name, "area" if np.median(sides[name]) > _AREA_SIDE and not boxed[name] else "object")
        for name in sorted(sides)
    )


def measure(all_annotations: Sequence[Annotations], labels: Sequence[Label], object_size: float | None) -> Sizes:
    """Sizes of the objects; points take `object_size`, else what their distances allow for."""
    objects = {label.name for label in labels if label.kind == "object"}
    sides: list[float] = []
    gaps: list[NDArray[np.float64]] = []
    for each in all_annotations:
        points = [a.full_bounds[:2] for a in each.objects if a.is_point and a.label in objects]
        if len(points) > 1:
            gaps.append(cKDTree(points).query(points, k=2)[0][:, 1])
        for a in each.objects:
            if not a.is_point and a.label in objects:
                y0, x0, y1, x1 = a.full_bounds
                sides.append(math.sqrt((y1 - y0) * (x1 - x0)))
    nominal = object_size or max(float(np.median(np.concatenate(gaps))) if gaps else _POINT_SIDE, _LEAST_SIDE)
    if not sides:
        sides = [nominal]
    if object_size is None and len(sides) > 1:
        nominal = float(np.median(sides))
    small, median, large = np.quantile(sides, (0.1, 0.5, 0.75)).tolist()
    return Sizes(small, median, large, nominal)


def choose_geometry(sizes: Sizes, labels: Sequence[Label]) -> Geometry:
    """Resolutions at which the small objects are still seen by the scan and the large ones fit the refine net's field.

    Parameters
    ----------
    sizes : Sizes
    labels : sequence of Label
    """
    if all(label.kind == "area" for label in labels):
        return Geometry(cell=FINE_STRIDE * 4, scan_downsample=16, refine_downsample=4)
    coarsest = max(1.0, sizes.small / _SCAN_PIXELS)
    wanted = max(1.0, 1.2 * sizes.large / _FIELD)
    refine = 2 ** math.ceil(math.log2(wanted))
    refine = min(refine, 2 ** math.floor(math.log2(coarsest)), 64)
    scan = 2 ** math.floor(math.log2(coarsest))
    scan = min(max(scan, 2 * refine), FINE_STRIDE * refine)
    return Geometry(cell=FINE_STRIDE * refine, scan_downsample=scan, refine_downsample=refine)


def base_spec(channels: int, geometry: Geometry, width: float = 1.0) -> StackSpec:
    """The base for a geometry; a scan as coarse as its cells needs no stride.

    Parameters
    ----------
    channels : int
        Of the image.
    geometry : Geometry
    width : float
        Factor on the channels of all stages but the answer's, up to 248; multiply-adds go nearly with its square.
    """
    halvings = int(math.log2(geometry.cell // geometry.scan_downsample))
    spec = StackSpec.parse(channels, BASES[halvings])
    *stages, last = spec.stages
    widths = [min(max(4, round(width * s.channels)), _MOST_CHANNELS) for s in stages]
    wider = (replace(s, channels=n) for s, n in zip(stages, widths, strict=True))
    return StackSpec(channels, (*wider, last))


def refiner_spec(channels: int, labels: Sequence[Label], sizes: Sizes, geometry: Geometry) -> StackSpec:
    """The refine net for a set of classes; its field follows the larger objects' size where it refines."""
    areas = any(label.kind == "area" for label in labels)
    small = sizes.large / geometry.refine_downsample <= _SMALL and not areas
    text = NARROW_REFINER if small else WIDE_REFINER
    return StackSpec.parse(channels, text.format(out=len(labels) + BOX_CHANNELS))
