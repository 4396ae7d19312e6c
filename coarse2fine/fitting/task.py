"""Scenes of a fit and what is to be learned from them: classes, planes, shape of the refine net, normalisation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from coarse2fine.annotations.read import Annotations
from coarse2fine.fitting.bands import SizeBand, choose_bands
from coarse2fine.fitting.crops import Recipe, normalisation
from coarse2fine.fitting.geometry import (
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
    """Scenes, and what is to be learned from them, for the objects of one band of sizes.

    Parameters
    ----------
    recipe : Recipe
        Of the refine net.
    scenes : list of Scene
    band : SizeBand
        Its planes are those of the model, unless a search finds others.
    lost : tuple of LeftOut
    """

    recipe: Recipe
    scenes: list[Scene]
    band: SizeBand
    lost: tuple[LeftOut, ...]


def bands_of(
    pairs: Sequence[tuple[Image, Annotations]],
    start: Model | None,
    object_size: float | None,
    geometry: Geometry | str | None,
    areas: Sequence[str] = (),
) -> tuple[SizeBand, ...]:
    """Bands of object sizes, the finest first: one if the planes are given, or if there is a model to go on from."""
    annotations = [a for _, a in pairs]
    labels = find_labels(annotations, areas)
    if start is not None:
        labels, geometry = known_labels(start, labels), start.geometry
        object_size = object_size or start.provenance.get("point_size")
    sizes = measure(annotations, labels, object_size)
    if isinstance(geometry, Geometry):
        return (SizeBand(geometry, labels, sizes),)
    return choose_bands(sizes, labels)


def prepare(
    pairs: Sequence[tuple[Image, Annotations]], band: SizeBand, start: Model | None, schedule: Schedule, *, strict: bool
) -> FitTask:
    """Scenes and recipe of a band, after a model to go on from if there is one.

    Parameters
    ----------
    pairs : sequence of (Image, Annotations)
    band : SizeBand
    start : Model or None
    schedule : Schedule
    strict : bool
        Whether to refuse if the only band leaves out too many objects.
    """
    planes = band.geometry
    depth = 1 if all(image.channels == 1 for image, _ in pairs) else 3
    depth = depth if start is None else start.channels
    spec = refiner_spec(depth, band.labels, band.sizes, planes) if start is None else net_of(start.refiner).spec
    scenes, lost = _scenes(pairs, band, spec, schedule.seed, strict=strict and band.alone)
    if start is None:
        mean, std = normalisation([image for image, _ in pairs], depth, planes.scan_downsample)
    else:
        mean, std = np.array(start.mean, np.float32), np.array(start.std, np.float32)
    recipe = Recipe(_fine_planes(planes), spec, depth, mean, std, *schedule, start)
    return FitTask(recipe, scenes, band, lost)


def _fine_planes(planes: Geometry) -> Geometry:
    """Planes with the refine net's cells, which are the base's unless a search finds larger ones."""
    scan = min(planes.scan_downsample, planes.fine_cell)
    return replace(planes, cell=planes.fine_cell, fine=1, scan_downsample=scan)


def _scenes(
    pairs: Sequence[tuple[Image, Annotations]], band: SizeBand, spec: StackSpec, seed: int, *, strict: bool
) -> tuple[list[Scene], tuple[LeftOut, ...]]:
    """Scenes of a band with their held-out parts marked, and the objects that it leaves out."""
    planes, sizes = band.geometry, band.sizes
    largest = largest_side(spec, planes.refine_downsample)
    smallest = smallest_side(planes.refine_downsample)
    limits = {"largest": min(largest, band.largest), "smallest": max(smallest, band.smallest)}
    scenes = [
        Scene(i, band.of(a), band.labels, fine_cell=planes.fine_cell, nominal=sizes.nominal, **limits) for i, a in pairs
    ]
    lost = check_objects(scenes, largest, smallest, strict=strict)
    if sizes.guess:
        tell(
            f"points have no size: took {sizes.nominal:.3g} px ({sizes.guess}); resolution and accuracy depend on it: "
            "give object_size, the pixels across a typical object"
        )
    hold_back(scenes, _HELD_SHARE, np.random.default_rng(seed))
    return scenes, lost


def tell(text: str) -> None:
    """Warn the caller of `fit`."""
    warnings.warn(text, UserWarning, stacklevel=3)
