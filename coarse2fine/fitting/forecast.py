"""Steps of a fit to come, in words, with their multiply-adds: from these the time left is estimated."""

from __future__ import annotations

from collections.abc import Sequence

from coarse2fine.fitting import base, refiner
from coarse2fine.fitting.cascade import first_look, glance_geometry
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.geometry import base_spec
from coarse2fine.fitting.optimise import likely_steps
from coarse2fine.fitting.rescaled import most_rescaled
from coarse2fine.fitting.scene import Scene
from coarse2fine.models.base import BaseSpec

OBJECTS, SPECIALISTS = "learning the objects", "trying specialists"
SCAN_SPECIALISTS = "trying specialists of the scan"
FINDING, RESCALED = "finding all objects", "finding them at other scales"
THRESHOLDS, CLASSES = "setting thresholds", "learning the classes"
# Training costs three forward passes; specialists about this share of the refine net's training. A scan is bound by
# memory, so its multiply-adds take longer than the refine net's.
_TRAINING, _SPECIALISTS, _SLOWER = 3.0, 0.15, 2.0
_SAMPLES, _LONG_SAMPLES = 0.02, 0.2


def expected_steps(recipe: Recipe, planned: Sequence[Recipe], scenes: Sequence[Scene]) -> list[tuple[str, float]]:
    """Names of the steps in order, with their multiply-adds.

    Parameters
    ----------
    recipe : Recipe
    planned : sequence of Recipe
        Of all bases that are to be trained.
    scenes : sequence of Scene
    """
    full = sum(scene.image.height * scene.image.width for scene in scenes)
    pixels = full / recipe.geometry.refine_downsample**2
    refining = recipe.refiner.macs_per_cell / recipe.refiner.stride**2
    learning = _TRAINING * likely_steps(recipe.steps) * refiner.batch_macs(recipe)
    steps = [
        (OBJECTS, learning),
        (SPECIALISTS, _SPECIALISTS * learning),
        (FINDING, pixels * refining),
        (RESCALED, most_rescaled(pixels) * refining),
    ]
    for each in planned:
        spec = base_spec(each.channels, each.geometry, each.width)
        scan = full * spec.macs_per_cell / each.geometry.cell**2
        steps += [
            (base.SAMPLES, _SAMPLES * learning),
            (base.SCAN, _scan_training(each, spec)),
            (THRESHOLDS, 2 * _SLOWER * scan),
        ]
    return [*steps, (SCAN_SPECIALISTS, _SAMPLES * learning), *_first_look(planned[-1], scenes)]


def _first_look(planned: Recipe, scenes: Sequence[Scene]) -> list[tuple[str, float]]:
    """Steps of the first glance that is tried, if there is room for one; more are rare."""
    g = planned.geometry
    glance = glance_geometry(g.cell, g.scan_downsample, g.cell // g.scan_downsample, g, scenes)
    if glance is None:
        return []
    training = _scan_training(planned, base_spec(planned.channels, glance))
    return [(base.SAMPLES, _LONG_SAMPLES * training), (first_look(glance), training)]


def _scan_training(recipe: Recipe, spec: BaseSpec) -> float:
    """Multiply-adds of training a net that scans, as if they took no longer than the refine net's."""
    return _SLOWER * _TRAINING * base.LONGER * likely_steps(recipe.steps) * base.batch_macs(spec)
