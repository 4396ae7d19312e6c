"""Choice of the scan's cascade by total cost: at which resolution to scan, and whether coarser stages come first.

An extra, coarser stage before the base's is called a glance. Candidates are trained and calibrated; the default plan of
each is priced on the fitting scenes, in multiply-adds or in seconds on this machine; the cheapest at the target recall
is taken.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.base import train_base
from coarse2fine.fitting.calibrate import (
    WINDOWS,
    Calibrated,
    CalibrationSet,
    Price,
    StageScan,
    WindowScores,
    calibrate_level,
    held_finds,
    least_of,
    survey_scenes,
)
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.geometry import base_spec
from coarse2fine.fitting.scene import Scene
from coarse2fine.model import CascadeStage, Geometry, Model
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import refine
from coarse2fine.steps.scan import look, zoom_plan

# Ratios of a glance's cell size and downsampling to those of the next stage.
_LARGER, _COARSER = 4, 2
_MOST_GLANCES = 3
_MOST_STRIDE = 8
_WIDER = 2.0
# A glance saves at most the cost of the scan; if that is below this share of the total, none is trained.
_WORTH = 0.15
# Target from which a cell holds a find.
_FOUND = 0.5
# Largest relative cost with a glance: the same multiply-adds take longer in many small squares than in large blocks.
_GAIN = 0.85
# Shares of the finds that a glance may miss; a lower window threshold must make up for them.
_LOSSES = (0.0, 0.002, 0.005, 0.01, 0.02)
_TIMED_WINDOWS = 256


def measure_price(
    model: Model, scenes: Sequence[Scene], runtime: Runtime, seed: int, fines: Collection[int] = (1, 2)
) -> Price:
    """Time windows of every size on the largest scene, reading included.

    Parameters
    ----------
    model : Model
        With a trained refine net.
    scenes : sequence of Scene
    runtime : Runtime
    seed : int
        Seed of the windows' positions.
    fines : collection of int
        Fine cells along a side of a cell, for each geometry under consideration.
    """
    image = max((scene.image for scene in scenes), key=lambda i: i.height * i.width)
    shape = model.cell_shape(image.shape[:2])
    rng = np.random.default_rng(seed)
    sides = sorted({window * fine for window in WINDOWS for fine in fines})
    seconds = {}
    for side in sides:
        corners = rng.integers(0, [max(1, n - side + 1) for n in shape], (_TIMED_WINDOWS, 2))
        plan = Plan(corners, np.full((len(corners), 2), side), np.ones(len(corners), np.float32), shape)
        again = partial(refine, image, plan, model, runtime, floor=0.5)
        again()  # warm-up: decodes chunks and runs the net once
        start = time.perf_counter()
        again()
        seconds[side] = (time.perf_counter() - start) / _TIMED_WINDOWS
    return Price("seconds", seconds)


def scan_candidates(recipe: Recipe, *, built_in: bool = True) -> list[Recipe]:
    """The recipe itself, and variants with a finer or coarser scan plane, with larger cells, or with a wider base.

    Parameters
    ----------
    recipe : Recipe
        With the default geometry; its cells are those of the refine net.
    built_in : bool
        Whether the base is the built-in net, whose width can be chosen.
    """
    g = recipe.geometry
    scan, refined = g.scan_downsample, g.refine_downsample
    planes = [(g.cell, scan), (g.cell, 2 * scan), (2 * g.cell, 2 * scan)]
    planes += [(g.cell, scan // 2)] if scan >= 2 * refined else []
    near = [Geometry(c, s, refined, c // g.fine_cell) for c, s in planes if 1 <= c // s <= _MOST_STRIDE]
    found = [replace(recipe, geometry=each) for each in near]
    return [*found, replace(recipe, width=_WIDER * recipe.width)] if built_in else found


def add_glances(found: Calibrated, recipe: Recipe, setting: CalibrationSet, bars: Progress) -> Calibrated:
    """Put coarser stages before the base's, one after another, as long as each lowers the total cost.

    Parameters
    ----------
    found : Calibrated
        Model without glances.
    recipe : Recipe
        Recipe of the base.
    setting : CalibrationSet
        Its recall is that of glances and windows together.
    bars : Progress
    """
    price, scenes = setting.price, setting.scenes
    seen: tuple[StageScan, ...] = (found.seen,)
    while len(found.model.cascade) < _MOST_GLANCES:
        model, first = found.model, found.model.levels[0]
        if price.scan(seen[0].macs, seen[0]) < _WORTH * found.cost or not _room(first, scenes):
            break
        geometry = Geometry(
            first.cell * _LARGER,
            first.downsample * _COARSER,
            model.geometry.refine_downsample,
            first.cell * _LARGER // model.geometry.fine_cell,
        )
        glance = replace(recipe, geometry=geometry, width=1.0, seed=recipe.seed + 10 + len(model.cascade))
        if least_cost(found, glance, seen, setting) > _GAIN * found.cost:
            break
        net = train_base(glance, None, setting, bars, f"learning a first look at 1/{geometry.scan_downsample}")
        level = CascadeStage(net, geometry.cell, geometry.scan_downsample, None, 1.0)
        level, _ = calibrate_level(model, setting, level)
        views = (survey_scenes(model, setting, level), *seen)
        tried = [_with_glance(found, level, loss, views, setting) for loss in _LOSSES]
        best = min((t for t in tried if t is not None), key=lambda t: t.cost, default=found)
        if best.cost > _GAIN * found.cost:
            break
        found, seen = best, views
    return found


def least_cost(found: Calibrated, glance: Recipe, seen: Sequence[StageScan], setting: CalibrationSet) -> float:
    """Cost with one more stage that costs nothing and knows where the finds are; windows stay as they are.

    A trained one is not expected to cost less, so its training can be spared if this saves too little.

    Parameters
    ----------
    found : Calibrated
        Model without the stage.
    glance : Recipe
        With the stage's geometry.
    seen : sequence of StageScan
        Scans by the stages that follow, the coarsest first.
    setting : CalibrationSet
    """
    spec, geometry = base_spec(glance.channels, glance.geometry), glance.geometry
    level = CascadeStage(ConvStack(spec), geometry.cell, geometry.scan_downsample, None, 0.5)
    ratio = geometry.cell // found.model.geometry.fine_cell
    costs = -setting.price.scan(seen[0].macs, seen[0])
    for index, answer in enumerate(setting.answers.targets):
        finds = np.nan_to_num(answer) >= _FOUND
        padded = np.pad(finds, [(0, -n % ratio) for n in finds.shape])
        shape = padded.shape[0] // ratio, ratio, padded.shape[1] // ratio, ratio
        perfect = np.asarray(padded.reshape(shape).any(axis=(1, 3)), np.float32)
        _, macs = zoomed((level, *found.model.levels), [perfect, *(view.interests[index] for view in seen)])
        costs += sum(setting.price.scan(m, view) for m, view in zip(macs, seen, strict=True))
    return found.cost + costs


def _room(level: CascadeStage, scenes: Sequence[Scene]) -> bool:
    """Whether some scene has enough cells for a glance, and its net's stride is allowed."""
    largest = max(min(scene.image.height, scene.image.width) for scene in scenes)
    stride = level.net.spec.stride * _LARGER // _COARSER
    return largest >= 8 * level.cell * _LARGER and stride <= _MOST_STRIDE


def _with_glance(
    found: Calibrated,
    level: CascadeStage,
    loss: float,
    views: tuple[StageScan, ...],
    setting: CalibrationSet,
) -> Calibrated | None:
    """The model with a glance that misses a share `loss` of the finds, recalibrated; None if recall is out of reach."""
    model, price = found.model, setting.price
    cells, areas = held_finds(model, setting)
    ratio = level.cell // model.geometry.cell
    values = [view[at[:, 0] // ratio, at[:, 1] // ratio] for view, at in zip(views[0].interests, cells, strict=True)]
    tau = least_of(np.concatenate(values), np.concatenate(areas), 1 - loss)
    model = replace(model, cascade=(replace(level, tau=tau), *model.cascade))
    interests, costs = [], 0.0
    for index in range(len(setting.scenes)):
        interest, macs = zoomed(model.levels, [view.interests[index] for view in views])
        interests.append(interest)
        costs += sum(price.scan(m, view) for m, view in zip(macs, views[1:], strict=True))
    tau, count = WindowScores.of(model, setting, interests, model.window).threshold(setting.recall)
    # The glance has missed more than the recall allows: no window threshold reaches it.
    if tau <= 0:
        return None
    model = replace(model, tau=tau)
    scan = price.scan(views[0].macs, views[0]) + costs if price.unit == "macs" else _seconds(model, setting)
    return Calibrated(model, found.seen, scan + count * price.window(model, model.window))


def _seconds(model: Model, setting: CalibrationSet) -> float:
    """Measured time of the cascade's scan of all scenes: small squares take longer than their multiply-adds suggest."""
    start = time.perf_counter()
    for scene in setting.scenes:
        look(scene.image, model, setting.runtime)
    return time.perf_counter() - start


def zoomed(
    levels: Sequence[CascadeStage], interests: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], list[int]]:
    """Simulate the cascade on an image from each stage's full scan; no net is run.

    Parameters
    ----------
    levels : sequence of CascadeStage
        The coarsest first.
    interests : sequence of ndarray, float32, (cell height, cell width)
        Interest of each stage's cells.

    Returns
    -------
    ndarray, float32, (cell height, cell width)
        Interest of the last stage's cells, 0 where it does not scan.
    list of int
        Multiply-adds of each stage but the first.
    """
    seen, macs = interests[0], []
    for (level, closer), closely in zip(pairwise(levels), interests[1:], strict=True):
        plan = zoom_plan(seen, level, closer)
        macs.append(plan.macs(closer.net.spec.macs))
        looked = plan.covered()[: closely.shape[0], : closely.shape[1]]
        seen = np.where(looked, closely, np.float32(0))
    return seen, macs
