"""Scenes of a fit and what is to be learned from them: classes, planes, shape of the refine net, normalisation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from coarse2fine.annotations.read import Annotations
from coarse2fine.fitting.crops import Recipe, normalisation
from coarse2fine.fitting.geometry import (
    Sizes,
    choose_geometry,
    find_labels,
    largest_side,
    measure,
    refiner_spec,
    smallest_side,
)
from coarse2fine.fitting.hold_out import check_objects, hold_back
from coarse2fine.fitting.resume import known_labels
from coarse2fine.fitting.scene import LeftOut, Scene
from coarse2fine.model import Geometry, Model
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.refiners.net import net_of
from coarse2fine.refiners.protocol import Label
from coarse2fine.tiling.image import Image

_HELD_SHARE = 0.2


class Schedule(NamedTuple):
    """Parameters of `fit` that are the same for all nets."""

    rotate: bool
    steps: int
    seed: int
    width: float


@dataclass(frozen=True)
class FitTask:
    """Scenes, and what is to be learned from them.

    Parameters
    ----------
    recipe : Recipe
        Of the refine net.
    scenes : list of Scene
    labels : tuple of Label
    planes : Geometry
        Planes of the model, unless a search finds others.
    sizes : Sizes
    lost : tuple of LeftOut
    """

    recipe: Recipe
    scenes: list[Scene]
    labels: tuple[Label, ...]
    planes: Geometry
    sizes: Sizes
    lost: tuple[LeftOut, ...]


def prepare(
    pairs: Sequence[tuple[Image, Annotations]],
    start: Model | None,
    object_size: float | None,
    geometry: Geometry | str | None,
    schedule: Schedule,
) -> FitTask:
    """Scenes and recipe, after a model to go on from if there is one."""
    labels = find_labels([a for _, a in pairs])
    if start is not None:
        labels, geometry = known_labels(start, labels), start.geometry
        object_size = object_size or start.provenance.get("point_size")
    sizes = measure([a for _, a in pairs], labels, object_size)
    planes = geometry if isinstance(geometry, Geometry) else choose_geometry(sizes, labels)
    depth = 1 if all(image.channels == 1 for image, _ in pairs) else 3
    depth = depth if start is None else start.channels
    spec = refiner_spec(depth, labels, sizes, planes) if start is None else net_of(start.refiner).spec
    scenes, lost = _scenes(pairs, labels, planes, spec, sizes, schedule.seed, strict=planes is not geometry)
    if start is None:
        mean, std = normalisation([image for image, _ in pairs], depth, planes.scan_downsample)
    else:
        mean, std = np.array(start.mean, np.float32), np.array(start.std, np.float32)
    recipe = Recipe(_fine_planes(planes), spec, depth, mean, std, *schedule, start)
    return FitTask(recipe, scenes, labels, planes, sizes, lost)


def _fine_planes(planes: Geometry) -> Geometry:
    """Planes with the refine net's cells, which are the base's unless a search finds larger ones."""
    scan = min(planes.scan_downsample, planes.fine_cell)
    return replace(planes, cell=planes.fine_cell, fine=1, scan_downsample=scan)


def _scenes(
    pairs: Sequence[tuple[Image, Annotations]],
    labels: tuple[Label, ...],
    planes: Geometry,
    spec: StackSpec,
    sizes: Sizes,
    seed: int,
    *,
    strict: bool,
) -> tuple[list[Scene], tuple[LeftOut, ...]]:
    """Scenes with their held-out parts marked, and the objects that are left out."""
    largest = largest_side(spec, planes.refine_downsample)
    smallest = smallest_side(planes.refine_downsample)
    options: dict[str, float] = {"largest": largest, "smallest": smallest, "nominal": sizes.nominal}
    scenes = [Scene(i, a, labels, fine_cell=planes.fine_cell, **options) for i, a in pairs]
    lost = check_objects(scenes, largest, smallest, strict=strict)
    if sizes.guess:
        tell(f"points have no size: took {sizes.nominal:.3g} px ({sizes.guess}); give object_size to choose")
    if lost:
        tell(f"left out, objects must have {smallest:,.0f} to {largest:,.0f} px: {'; '.join(map(str, lost))}")
    hold_back(scenes, _HELD_SHARE, np.random.default_rng(seed))
    return scenes, lost


def tell(text: str) -> None:
    """Warn the caller of `fit`."""
    warnings.warn(text, UserWarning, stacklevel=3)
