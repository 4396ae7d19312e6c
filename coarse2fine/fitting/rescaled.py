"""The refine net's answer on the scenes at many scales: bases learn from crops of it.

Distillation works best if teacher and student see the same augmented input (Beyer et al. 2022, arXiv:2106.05237), and
scale augmentation makes a base generalise better to images that it was not fitted on. So the refine net runs on
rescaled copies of the scenes. Each copy has a scale of its own: with the same few scales for all scenes, a base on Mars
needed half as much area again for 99 % of the finds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.teacher import FLOOR, Answers, finds_of, settle, target_of
from coarse2fine.model import Geometry, Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import refine, window_pixels
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

COPIES = 3
"""Rescaled copies of a scene. With the scenes themselves they are about 4.3 times the scenes' pixels."""
LARGEST = 0.4
"""Natural logarithm of the largest scale, up or down."""
# Scales are rounded to this denominator, so that a scene's size divided by them has few digits.
_STEPS = 64
# Mean of the pixels of copies per pixel of the scenes, if the logarithm of the scale is uniform.
_PIXELS_A_COPY = math.sinh(2 * LARGEST) / (2 * LARGEST)
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
    stratum : int
        Which third of the scales a copy has, from 1; 0 for a scene itself.
    image : Image
    plane : int
        Full-resolution pixels of a scene of this scale along one pixel of `image`.
    target : ndarray, float32, (fine cell height, fine cell width)
        Probability that a cell holds a find, NaN where the refine net did not run.
    finds : ndarray, float32, (n, 3)
        Middles (y, x) of the finds in fine cells, and their targets.
    known, held : ndarray, bool, (fine cell height, fine cell width)
        Cells to learn from, and held-out cells: both annotated. Rescaled copies hold none out.
    moves : bool
        Whether the finds are objects, whose cells follow if the grid of cells moves; parts of areas are not.
    cut : bool
        Whether the scene goes on beyond the edges.
    """

    zoom: Fraction
    stratum: int
    image: Image
    plane: int
    target: NDArray[np.float32]
    finds: NDArray[np.float32]
    known: NDArray[np.bool_]
    held: NDArray[np.bool_]
    moves: bool
    cut: bool = False

    def read(self, box: Box, downsample: int) -> NDArray[np.uint8]:
        """Pixels (h, w, c) of a box of the plane at `downsample`, a multiple of `plane`."""
        return self.image.read_scaled(box, downsample // self.plane)

    def moved(self, box: Box, by: tuple[float, float]) -> NDArray[np.float32]:
        """Targets (h, w) of a box of a grid of fine cells that is moved `by` (y, x) cells; 0 beyond the area."""
        target = np.zeros((box.height, box.width), np.float32)
        place = np.floor(self.finds[:, :2] - np.array(by, np.float32)).astype(int) - (box.y0, box.x0)
        inside = ((place >= 0) & (place < target.shape)).all(axis=1)
        np.maximum.at(target, tuple(place[inside].T), self.finds[inside, 2])
        return target


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
    finds = _finds(answers)
    moves = not model.areas.any()
    areas = [_whole(*each, moves) for each in zip(scenes, answers.targets, finds, strict=True)]
    places = _places(scenes, model.geometry.refine_downsample, np.random.default_rng((planned[0].seed, 3)))
    reader, pixels = _at_plane(model, plane), 0
    for done, place in enumerate(places):
        area, count = _rescaled(reader, place, plane, runtime)
        areas.append(area)
        pixels += count
        if tick:
            tick(done + 1, len(places))
    return Areas(tuple(areas), pixels)


def reanswered(areas: Sequence[Area], answers: Answers) -> tuple[Area, ...]:
    """The areas with other answers on the scenes themselves, which come first."""
    whole = [
        replace(area, target=target, finds=finds)
        for area, target, finds in zip(areas, answers.targets, _finds(answers), strict=False)
    ]
    return (*whole, *areas[len(whole) :])


def most_rescaled(pixels: float) -> float:
    """Pixels of all rescaled areas of scenes of so many pixels, both in the refine net's plane."""
    return min(_MOST_PIXELS, COPIES * _PIXELS_A_COPY * pixels)


def refined_share(scenes: Sequence[Scene], answers: Answers, areas: Areas, geometry: Geometry) -> float:
    """Pixels that the refine net read for its answers, halos included, per pixel of the scenes in its plane."""
    pixels = sum(scene.image.height * scene.image.width for scene in scenes) / geometry.refine_downsample**2
    return round((answers.pixels + areas.pixels) / pixels, 2)


def _finds(answers: Answers) -> list[NDArray[np.float32]]:
    return [finds_of(found, answers.threshold) for found in answers.found]


def _whole(scene: Scene, target: NDArray[np.float32], finds: NDArray[np.float32], moves: bool) -> Area:
    box, ran = Box(0, 0, *scene.cell_shape), ~np.isnan(target)
    known, held = (scene.known(box, held=each) & ran for each in (False, True))
    return Area(Fraction(1), 0, scene.image, 1, target, finds, known, held, moves)


@dataclass(frozen=True, eq=False)
class _Place:
    """What to rescale of a scene.

    Parameters
    ----------
    zoom, stratum
        See `Area`.
    scene : Scene
    corner : tuple of int
        First pixel (y, x) in the refine net's plane.
    side : int, optional
        Of a square in the same pixels; the whole scene if None.
    """

    zoom: Fraction
    stratum: int
    scene: Scene
    corner: tuple[int, int] = (0, 0)
    side: int | None = None


def _places(scenes: Sequence[Scene], refine_downsample: int, rng: np.random.Generator) -> list[_Place]:
    """The areas to rescale: all scenes, or squares of them if they are large."""
    sizes = [ceil_div(s.image.height, refine_downsample) * ceil_div(s.image.width, refine_downsample) for s in scenes]
    learned = [s for s, scene in enumerate(scenes) if not scene.held.all()]
    if COPIES * _PIXELS_A_COPY * sum(sizes[s] for s in learned) <= _MOST_PIXELS:
        return [
            _Place(zoom, stratum, scenes[s])
            for stratum, zooms in enumerate(_zooms(len(learned), rng), 1)
            for s, zoom in zip(learned, zooms, strict=True)
        ]
    weight = np.array([sizes[s] for s in learned]) / sum(sizes[s] for s in learned)
    places = []
    for stratum, zooms in enumerate(_zooms(max(1, _MOST_PIXELS // (COPIES * _SIDE**2)), rng), 1):
        for zoom in zooms:
            scene, side = scenes[learned[rng.choice(len(learned), p=weight)]], math.ceil(_SIDE * zoom)
            free = [ceil_div(n, refine_downsample) - side for n in (scene.image.height, scene.image.width)]
            y, x = (int(rng.integers(max(n, 0) + 1)) for n in free)
            places.append(_Place(zoom, stratum, scene, (y, x), side))
    return places


def _zooms(count: int, rng: np.random.Generator) -> list[list[Fraction]]:
    """Scales of `count` copies of each stratum, spread evenly over it, in random order."""
    rows = []
    for stratum in range(COPIES):
        shares = (stratum + (rng.permutation(count) + rng.random(count)) / count) / COPIES
        found = np.exp(LARGEST * (2 * shares - 1))
        rows.append([Fraction(round(zoom * _STEPS), _STEPS) for zoom in found.tolist()])
    return rows


def _at_plane(model: Model, plane: int) -> Model:
    """The model for images of which a pixel is `plane` full-resolution pixels."""
    g, refiner = model.geometry, model.refiner
    assert isinstance(refiner, DetectionRefiner)
    geometry = Geometry(g.fine_cell // plane, g.scan_downsample // plane, g.refine_downsample // plane)
    return replace(
        model, geometry=geometry, refiner=replace(refiner, downsample=geometry.refine_downsample), cascade=()
    )


def _rescaled(model: Model, place: _Place, plane: int, runtime: Runtime) -> tuple[Area, int]:
    """An area and the number of pixels that were refined; `model` is for images of this plane."""
    refine_downsample = model.geometry.refine_downsample  # of the plane's pixels
    scene, zoom, side, (y, x) = place.scene, place.zoom, place.side, place.corner
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
    target, finds, count = _answer(model, image, cells, runtime)
    at = [
        (begin + (np.arange(n) + 0.5) * cell * length / size) * plane
        for begin, n, length, size in zip((y0, x0), cells, (box.height, box.width), shape, strict=True)
    ]
    known = scene.trains_at(*at)
    if side is not None:  # beyond a cut edge the net saw repeated pixels
        known &= _inner(cells, ceil_div(model.refiner.margin, model.refiner.stride))
    moves, held = not model.areas.any(), np.zeros_like(known)
    return Area(zoom, place.stratum, image, plane, target, finds, known, held, moves, side is not None), count


def _answer(
    model: Model, image: Image, cells: tuple[int, int], runtime: Runtime
) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Targets of all fine cells of an image, its finds, and the number of pixels that were refined."""
    corners = np.argwhere(np.ones([ceil_div(n, _WINDOW) for n in cells])) * _WINDOW
    sides = np.minimum(_WINDOW, np.array(cells) - corners)
    plan = Plan(corners, sides, np.ones(len(corners), np.float32), cells)
    fine = refine(image, plan, model, runtime, floor=FLOOR)
    if fine.interrupted:
        raise KeyboardInterrupt  # an unfinished pass would mark the rest as empty
    found, ran = settle(fine.candidates, model), plan.take(fine.done).covered()
    target = target_of(found, ran, model.threshold)
    return target, finds_of(found, model.threshold), int(window_pixels(plan, model).sum())


def _inner(shape: tuple[int, int], border: int) -> NDArray[np.bool_]:
    """Cells that are further than `border` cells from the edges."""
    inner = np.zeros(shape, bool)
    inner[border : shape[0] - border, border : shape[1] - border] = True
    return inner
