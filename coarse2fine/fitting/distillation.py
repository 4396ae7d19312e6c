"""Training samples of the base: crops of the fitting scenes at many scales, each with the refine net's output.

Distillation works best if teacher and student see the same augmented input (Beyer et al. 2022, arXiv:2106.05237). So
the refine net is run again on each rescaled crop. Scale augmentation makes the base generalise better to images that it
was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.calibrate import CalibrationSet
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.scene import PART, Scene, pooled
from coarse2fine.fitting.teacher import FLOOR, settle, target_of
from coarse2fine.model import Model
from coarse2fine.models.base import Base
from coarse2fine.preprocess import as_channels
from coarse2fine.progress import Tick
from coarse2fine.steps.refine import context_of
from coarse2fine.tiling.geometry import Box, ceil_div

_CROP, _CROP_PIXELS = 48, 192
_SAMPLES, _SAMPLES_A_STEP = 2000, 4
# Natural logarithm of the largest scale factor of a crop, up or down.
_ZOOM = 0.4


@dataclass(frozen=True)
class DistillationSample:
    """One crop with its target.

    Parameters
    ----------
    pixels : ndarray, uint8, (h, w, channels)
        Pixels of the plane that the base scans, with its halo.
    target : ndarray, float32, (1, cell height, cell width)
        Probability that the cell holds a find.
    valid : ndarray, bool, (1, cell height, cell width)
        Cells that count in the loss.
    """

    pixels: NDArray[np.uint8]
    target: NDArray[np.float32]
    valid: NDArray[np.bool_]


def make_samples(
    recipe: Recipe, net: Base, model: Model, setting: CalibrationSet, tick: Tick | None = None
) -> list[DistillationSample]:
    """Draw crops, half of them around a find, and run the refine net on them.

    Parameters
    ----------
    recipe : Recipe
        With the geometry of the base.
    net : Base
        The base to train.
    model : Model
        With a trained refine net and its threshold.
    setting : CalibrationSet
    tick : callable, optional
        Called with the numbers of samples done and of all samples.
    """
    teacher = _Teacher(recipe, net, model, setting)
    count = min(_SAMPLES, _SAMPLES_A_STEP * recipe.steps)
    samples = []
    for number in range(count):
        samples.append(teacher.sample(np.random.default_rng((recipe.seed, number))))
        if tick:
            tick(number + 1, count)
    return samples


class _Teacher:
    def __init__(self, recipe: Recipe, net: Base, model: Model, setting: CalibrationSet) -> None:
        g, spec = recipe.geometry, net.spec
        self._recipe, self._spec, self._model, self._setting = recipe, spec, model, setting
        self._places = _places(setting.scenes, setting.answers.targets)
        side = min(_CROP, _CROP_PIXELS // spec.stride)
        self._side = ceil_div(side, spec.align) * spec.align
        fine_side = self._side * g.fine
        self._refine = model.refiner.start(context_of(model, setting.runtime, (fine_side, fine_side), FLOOR))
        # The coarsest plane that divides both nets' planes, and a halo that is enough for both.
        self._plane = math.gcd(g.scan_downsample, g.refine_downsample)
        step = math.lcm(g.scan_downsample, g.refine_downsample)
        reach = max(model.refiner.margin * g.refine_downsample, spec.margin * g.scan_downsample)
        self._reach = ceil_div(reach, step) * step

    def sample(self, rng: np.random.Generator) -> DistillationSample:
        recipe, g = self._recipe, self._recipe.geometry
        s, box = _crop(self._places, self._side, g.fine, rng)
        scene, zoom = self._setting.scenes[s], math.exp(rng.uniform(-_ZOOM, _ZOOM))
        middle = np.array([box.y0 + box.y1, box.x0 + box.x1]) / 2 * g.cell
        pixels = self._pixels(scene, middle, zoom)
        seen = _reduced(pixels, g.refine_downsample // self._plane)
        border = self._reach // g.refine_downsample - self._model.refiner.margin
        found = self._answer(seen[border : len(seen) - border, border : len(seen) - border])
        steps = (np.arange(box.height * g.fine) + 0.5) * g.fine_cell - box.height * g.cell / 2
        known = scene.trains_at(middle[0] + zoom * steps, middle[1] + zoom * steps)
        target, valid = pooled(found, known, g.fine)
        small = _reduced(pixels, g.scan_downsample // self._plane)
        border = self._reach // g.scan_downsample - self._spec.margin
        own = small[border : len(small) - border, border : len(small) - border]
        return DistillationSample(as_channels(own, recipe.channels), target[None], valid[None])

    def _pixels(self, scene: Scene, full_middle: NDArray[np.float64], zoom: float) -> NDArray[np.uint8]:
        """A crop with its halo, in the common plane, from an area of `zoom` times its side."""
        size = (self._side * self._recipe.geometry.cell + 2 * self._reach) // self._plane
        source = round(size * zoom)
        y, x = np.rint(full_middle / self._plane - source / 2).astype(int).tolist()
        pixels = scene.image.read_scaled(Box(y, x, y + source, x + source), self._plane)
        how = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
        resized = cv2.resize(pixels, (size, size), interpolation=how)
        return np.asarray(resized, np.uint8).reshape(size, size, -1)

    def _answer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Targets of all fine cells of a crop."""
        first = self._refine(as_channels(pixels[None], self._model.refiner.channels), np.zeros((1, 2), np.int64))
        rest = self._refine.flush()
        side = self._side * self._recipe.geometry.fine
        found = settle(type(first).concatenate([first, rest]), self._model)
        return target_of(found, np.ones((side, side), bool), self._model.threshold)


def _reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Area average of (h, w, c) pixels."""
    if factor == 1:
        return pixels
    side = len(pixels) // factor
    small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8).reshape(side, side, -1)


def _places(
    scenes: Sequence[Scene], targets: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to draw crops from: fine cells (scene, y, x) with a find, and all parts that are not held out."""
    found, parts = [], []
    for s, (scene, target) in enumerate(zip(scenes, targets, strict=True)):
        cells = np.argwhere(np.nan_to_num(target) > 0.2)
        cells = cells[~scene.held[cells[:, 0] // PART, cells[:, 1] // PART]]
        found.append(np.insert(cells, 0, s, axis=1))
        parts.append(np.insert(np.argwhere(~scene.held), 0, s, axis=1))
    return np.concatenate(found), np.concatenate(parts)


def _crop(
    places: tuple[NDArray[np.int64], NDArray[np.int64]], side: int, ratio: int, rng: np.random.Generator
) -> tuple[int, Box]:
    """A scene and a block of cells (`ratio` fine cells a side), in half of the draws around a find, else anywhere."""
    found, parts = places
    if len(found) and rng.random() < 0.5:
        s, *middle = found[rng.integers(len(found))].tolist()
        corner = np.array(middle) // ratio - rng.integers(side // 12, side - side // 12, 2)
    else:
        s, *part = parts[rng.integers(len(parts))].tolist()
        corner = (np.array(part) * PART + rng.integers(0, PART, 2)) // ratio - side // 2
    y, x = corner.tolist()
    return s, Box(y, x, y + side, x + side)
