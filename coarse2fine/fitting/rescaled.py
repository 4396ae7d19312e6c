"""The refine net's answer on the scenes at several scales: bases learn from crops of it.

Distillation works best if teacher and student see the same augmented input (Beyer et al. 2022, arXiv:2106.05237), and
scale augmentation makes a base generalise better to images that it was not fitted on. So the refine net runs on
rescaled scenes, once for each scale.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.teacher import FLOOR, Answers, settle, target_of
from coarse2fine.model import Geometry, Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import refine, window_pixels
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

# Pixels of a scene along one pixel of a rescaled one. With the scenes themselves they are 3.9 times the scenes' pixels.
ZOOMS = (Fraction(3, 4), Fraction(5, 4), Fraction(3, 2))
# Pixels of all rescaled areas together, in the refine net's plane; of larger scenes squares of this side are taken.
_MOST_PIXELS, _SIDE = 2**26, 2048
_WINDOW = 64


@dataclass(frozen=True, eq=False)
class Area:
    """A scene, or a rescaled copy of a part of one, with the refine net's answer on the grid of fine cells.

    Parameters
    ----------
    zoom : Fraction
        Pixels of the scene along one pixel of the copy, in the same plane; 1 for a scene itself.
    image : Image
    plane : int
        Full-resolution pixels of a scene of this scale along one pixel of `image`.
    target : ndarray, float32, (fine cell height, fine cell width)
        Probability that a cell holds a find, NaN where the refine net did not run.
    known, held : ndarray, bool, (fine cell height, fine cell width)
        Cells to learn from, and held-out cells: both annotated. Rescaled copies hold none out.
    cut : bool
        Whether the scene goes on beyond the edges.
    """

    zoom: Fraction
    image: Image
    plane: int
    target: NDArray[np.float32]
    known: NDArray[np.bool_]
    held: NDArray[np.bool_]
    cut: bool = False

    def read(self, box: Box, downsample: int) -> NDArray[np.uint8]:
        """Pixels (h, w, c) of a box of the plane at `downsample`, a multiple of `plane`."""
        return self.image.read_scaled(box, downsample // self.plane)


@dataclass(frozen=True)
class Areas:
    """Areas from which bases learn.

    Parameters
    ----------
    areas : tuple of Area
    pixels : int
        Pixels that the refine net read for the rescaled ones, halos included.
    """

    areas: tuple[Area, ...] = ()
    pixels: int = 0


def answered_areas(
    model: Model,
    scenes: Sequence[Scene],
    answers: Answers,
    planned: Sequence[Recipe],
    runtime: Runtime,
    tick: Tick | None = None,
) -> Areas:
    """The scenes with the refine net's answers, and rescaled copies of them with its answers there.

    Parameters
    ----------
    model : Model
        With a trained refine net and its threshold.
    scenes : sequence of Scene
    answers : Answers
        The refine net's output on the scenes.
    planned : sequence of Recipe
        Of all bases that are to learn; the first's seed also chooses the squares that are taken of large scenes.
    runtime : Runtime
    tick : callable, optional
        Called with the numbers of rescaled areas done and in all.
    """
    geometries = (model.geometry, *(recipe.geometry for recipe in planned))
    plane = math.gcd(model.geometry.refine_downsample, *(g.scan_downsample for g in geometries))
    areas = [_whole(scene, target) for scene, target in zip(scenes, answers.targets, strict=True)]
    places = _places(scenes, model.geometry.refine_downsample, np.random.default_rng((planned[0].seed, 3)))
    reader, pixels = _at_plane(model, plane), 0
    for done, (zoom, scene, corner, side) in enumerate(places):
        area, count = _rescaled(reader, scene, zoom, plane, (corner, side), runtime)
        areas.append(area)
        pixels += count
        if tick:
            tick(done + 1, len(places))
    return Areas(tuple(areas), pixels)


def reanswered(areas: Sequence[Area], answers: Answers) -> tuple[Area, ...]:
    """The areas with other answers on the scenes themselves, which come first."""
    whole = [replace(area, target=target) for area, target in zip(areas, answers.targets, strict=False)]
    return (*whole, *areas[len(whole) :])


def most_rescaled(pixels: float) -> float:
    """Pixels of all rescaled areas of scenes of so many pixels, both in the refine net's plane."""
    return min(_MOST_PIXELS, sum(pixels / float(zoom) ** 2 for zoom in ZOOMS))


def refined_share(scenes: Sequence[Scene], answers: Answers, areas: Areas, geometry: Geometry) -> float:
    """Pixels that the refine net read for its answers, halos included, per pixel of the scenes in its plane."""
    pixels = sum(scene.image.height * scene.image.width for scene in scenes) / geometry.refine_downsample**2
    return round((answers.pixels + areas.pixels) / pixels, 2)


def _whole(scene: Scene, target: NDArray[np.float32]) -> Area:
    box = Box(0, 0, *scene.cell_shape)
    ran = ~np.isnan(target)
    return Area(Fraction(1), scene.image, 1, target, scene.known(box) & ran, scene.known(box, held=True) & ran)


_Place = tuple[Fraction, Scene, tuple[int, int], int | None]


def _places(scenes: Sequence[Scene], refine_downsample: int, rng: np.random.Generator) -> list[_Place]:
    """Zoom, scene, corner and side, in pixels of the refine net's plane, of the areas to rescale; side None: all."""
    sizes = [ceil_div(s.image.height, refine_downsample) * ceil_div(s.image.width, refine_downsample) for s in scenes]
    learned = [s for s, scene in enumerate(scenes) if not scene.held.all()]
    if sum(sizes[s] / float(zoom) ** 2 for s in learned for zoom in ZOOMS) <= _MOST_PIXELS:
        return [(zoom, scenes[s], (0, 0), None) for s, zoom in itertools.product(learned, ZOOMS)]
    count = max(1, _MOST_PIXELS // (len(ZOOMS) * _SIDE**2))
    weight = np.array([sizes[s] for s in learned]) / sum(sizes[s] for s in learned)
    places: list[_Place] = []
    for zoom in ZOOMS:
        side = math.ceil(_SIDE * zoom)
        for _ in range(count):
            scene = scenes[learned[rng.choice(len(learned), p=weight)]]
            free = [ceil_div(n, refine_downsample) - side for n in (scene.image.height, scene.image.width)]
            y, x = (int(rng.integers(max(n, 0) + 1)) for n in free)
            places.append((zoom, scene, (y, x), side))
    return places


def _at_plane(model: Model, plane: int) -> Model:
    """The model for images of which a pixel is `plane` full-resolution pixels."""
    g, refiner = model.geometry, model.refiner
    assert isinstance(refiner, DetectionRefiner)
    geometry = Geometry(g.fine_cell // plane, g.scan_downsample // plane, g.refine_downsample // plane)
    return replace(
        model, geometry=geometry, refiner=replace(refiner, downsample=geometry.refine_downsample), cascade=()
    )


def _rescaled(
    model: Model,
    scene: Scene,
    zoom: Fraction,
    plane: int,
    place: tuple[tuple[int, int], int | None],
    runtime: Runtime,
) -> tuple[Area, int]:
    """An area and the number of pixels that were refined; `model` is for images of this plane."""
    refine_downsample = model.geometry.refine_downsample  # of the plane's pixels
    (y, x), side = place
    height, width = (ceil_div(n, plane) for n in (scene.image.height, scene.image.width))
    y0, x0 = y * refine_downsample, x * refine_downsample
    end = (height, width) if side is None else (y0 + side * refine_downsample, x0 + side * refine_downsample)
    box = Box(y0, x0, min(end[0], height), min(end[1], width))
    shape = (max(1, round(box.height / zoom)), max(1, round(box.width / zoom)))
    pixels = scene.image.read_scaled(box, plane)
    how = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    image = open_image(np.asarray(cv2.resize(pixels, shape[::-1], interpolation=how), np.uint8).reshape(*shape, -1))
    cell = model.geometry.fine_cell
    cells = (ceil_div(shape[0], cell), ceil_div(shape[1], cell))
    target, count = _answer(model, image, cells, runtime)
    at = [
        (begin + (np.arange(n) + 0.5) * cell * length / size) * plane
        for begin, n, length, size in zip((y0, x0), cells, (box.height, box.width), shape, strict=True)
    ]
    known = scene.trains_at(*at)
    if side is not None:  # beyond a cut edge the net saw repeated pixels
        known &= _inner(cells, ceil_div(model.refiner.margin, model.refiner.stride))
    return Area(zoom, image, plane, target, known, np.zeros_like(known), side is not None), count


def _answer(model: Model, image: Image, cells: tuple[int, int], runtime: Runtime) -> tuple[NDArray[np.float32], int]:
    """Targets of all fine cells of an image, and the number of pixels that were refined."""
    corners = np.argwhere(np.ones([ceil_div(n, _WINDOW) for n in cells])) * _WINDOW
    sides = np.minimum(_WINDOW, np.array(cells) - corners)
    plan = Plan(corners, sides, np.ones(len(corners), np.float32), cells)
    fine = refine(image, plan, model, runtime, floor=FLOOR)
    if fine.interrupted:
        raise KeyboardInterrupt  # an unfinished pass would mark the rest as empty
    ran = plan.take(fine.done).covered()
    return target_of(settle(fine.candidates, model), ran, model.threshold), int(window_pixels(plan, model).sum())


def _inner(shape: tuple[int, int], border: int) -> NDArray[np.bool_]:
    """Cells that are further than `border` cells from the edges."""
    inner = np.zeros(shape, bool)
    inner[border : shape[0] - border, border : shape[1] - border] = True
    return inner
