"""Choice of the scan's cascade by total cost: at which resolution to scan, and whether coarser stages come first.

An extra, coarser stage before the base's is called a glance. Candidates are trained and calibrated; the default plan of
each is priced on the fitting scenes, in multiply-adds or in seconds on this machine; the cheapest at the target recall
is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from coarse2fine.fitting.base import train_base
from coarse2fine.fitting.calibrate import (
    WINDOWS,
    Calibrated,
    CalibrationSet,
    Finds,
    Price,
    StageScan,
    WindowScores,
    calibrate_level,
    survey_scenes,
)
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.geometry import base_spec
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.teacher import Answers
from coarse2fine.model import CascadeStage, Geometry, Model
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import refine
from coarse2fine.steps.scan import look, zoom_plan
from coarse2fine.steps.windows import best_windows

# Ratios of a glance's cell size and downsampling to those of the next stage.
_LARGER, _COARSER = 4, 2
_MOST_GLANCES = 3
_MOST_STRIDE = 8
_WIDER = 2.0
# Target from which a cell holds a find.
_FOUND = 0.5
# Largest relative cost with a glance: the same multiply-adds take longer in many small squares than in large blocks.
_GAIN = 0.85
# Images to analyse may have this many times as much empty ground as the scenes; a glance may make these dearer by this.
_EMPTIER, _DEARER = 10.0, 1.05
# Shares of the finds that a glance is expected to miss; a lower window threshold must make up for them.
_LOSSES = (0.002, 0.005, 0.01, 0.02)
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
    """Put coarser stages before the base's, one after another, as long as each lowers the cost.

    Annotated scenes are often crowded, and the images to analyse mostly empty. So a stage counts by the mean of what it
    saves on the scenes, and on the same scenes with `_EMPTIER` times as much ground without finds.

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
    seen: tuple[StageScan, ...] = (found.seen,)
    while len(found.model.cascade) < _MOST_GLANCES:
        model, first = found.model, found.model.levels[0]
        geometry = glance_geometry(first.cell, first.downsample, first.net.spec.stride, model.geometry, setting.scenes)
        if geometry is None:
            break
        glance = replace(recipe, geometry=geometry, width=1.0, seed=recipe.seed + 10 + len(model.cascade))
        ground = EmptyGround.of(setting.answers, geometry.cell // model.geometry.fine_cell)
        before = ground.costs(found, seen, setting)
        if _share(least_costs(found, glance, seen, setting, ground), before) > _GAIN:
            break
        net = train_base(glance, None, setting, bars, first_look(geometry))
        level = CascadeStage(net, geometry.cell, geometry.scan_downsample, None, 1.0)
        level, _ = calibrate_level(model, setting, level)
        views = (survey_scenes(model, setting, level), *seen)
        finds = Finds.of(model, setting)
        tried = [_with_glance(found, level, loss, views, setting, finds) for loss in _LOSSES]
        rated = [(_share(ground.costs(each, views, setting), before), each) for each in tried if each is not None]
        share, best = min(rated, key=lambda pair: pair[0], default=(1.0, found))
        if share > _GAIN or best.cost > _DEARER * found.cost:
            break
        found, seen = best, views
    return found


def _share(costs: tuple[float, float], before: tuple[float, float]) -> float:
    """Geometric mean of two costs as shares of those before."""
    return math.sqrt(costs[0] / before[0] * costs[1] / before[1])


@dataclass(frozen=True, eq=False)
class EmptyGround:
    """Ground of the fitting scenes without finds nearby.

    Parameters
    ----------
    ratio : int
        Fine cells along a side of a cell.
    finds, empty : tuple of ndarray, bool, (cell height, cell width)
        Whether each cell holds a find; whether neither it nor any of the eight around does.
    """

    ratio: int
    finds: tuple[NDArray[np.bool_], ...]
    empty: tuple[NDArray[np.bool_], ...]

    @classmethod
    def of(cls, answers: Answers, ratio: int) -> EmptyGround:
        """The ground by the refine net's answers; where it did not run is none."""
        finds, empty = [], []
        for answer in answers.targets:
            padded = np.pad(answer, [(0, -n % ratio) for n in answer.shape], constant_values=np.nan)
            cells = padded.reshape(padded.shape[0] // ratio, ratio, padded.shape[1] // ratio, ratio)
            finds.append(np.asarray((cells >= _FOUND).any(axis=(1, 3)), bool))
            known = ~np.isnan(cells).all(axis=(1, 3))
            empty.append(known & ~binary_dilation(finds[-1], np.ones((3, 3), bool)))
        return cls(ratio, tuple(finds), tuple(empty))

    def costs(self, found: Calibrated, views: Sequence[StageScan], setting: CalibrationSet) -> tuple[float, float]:
        """Cost on the scenes, and with `_EMPTIER` times as much empty ground.

        Parameters
        ----------
        found : Calibrated
        views : sequence of StageScan
            Scans by each of its stages alone, the coarsest first.
        setting : CalibrationSet
        """
        model, price = found.model, setting.price
        more = price.scan(views[0].macs, views[0]) * np.concatenate([each.ravel() for each in self.empty]).mean()
        for index, empty in enumerate(self.empty):
            interest, plans = zoomed(model.levels, [view.interests[index] for view in views])
            later = model.levels[1:]
            for plan, level, cost in zip(plans, later, _scan_costs(plans, views[1:], later, price), strict=True):
                looked = plan.covered()
                inside = looked & self._enlarged(empty, level.cell // model.geometry.fine_cell, looked.shape)
                more += inside.sum() / max(1, looked.sum()) * cost
            more += self.windows(model, interest, empty) * price.window(model, model.window)
        return found.cost, found.cost + (_EMPTIER - 1) * float(more)

    def _enlarged(self, empty: NDArray[np.bool_], fine: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """A map in smaller cells, of `fine` fine cells a side."""
        y, x = (np.arange(n) * fine // self.ratio for n in shape)
        large: NDArray[np.bool_] = empty[np.ix_(y.clip(max=empty.shape[0] - 1), x.clip(max=empty.shape[1] - 1))]
        return large

    def windows(self, model: Model, interest: NDArray[np.float32], empty: NDArray[np.bool_]) -> int:
        """Windows above the threshold whose middle lies in empty ground."""
        side = min(model.window, *interest.shape)
        corners, _ = best_windows(interest, side, model.tau)
        y, x = ((corners + side // 2) * model.geometry.fine // self.ratio).T
        return int(empty[y, x].sum())


def least_costs(
    found: Calibrated, glance: Recipe, seen: Sequence[StageScan], setting: CalibrationSet, ground: EmptyGround
) -> tuple[float, float]:
    """Costs as of `EmptyGround` with one more stage that costs nothing and knows where the finds are.

    Windows stay as they are. A trained stage is not expected to cost less: if this saves too little, it is not trained.
    """
    price = setting.price
    net = ConvStack(base_spec(glance.channels, glance.geometry))
    level = CascadeStage(net, glance.geometry.cell, glance.geometry.scan_downsample, None, 0.5)
    scan = -price.scan(seen[0].macs, seen[0])
    windows = 0
    for index, finds in enumerate(ground.finds):
        maps = [view.interests[index] for view in seen]
        _, plans = zoomed((level, *found.model.levels), [finds.astype(np.float32), *maps])
        scan += sum(_scan_costs(plans, seen, found.model.levels, price))
        windows += ground.windows(found.model, maps[-1], ground.empty[index])
    least = max(0.0, found.cost + scan)  # measured times may differ by more than is left
    return least, least + (_EMPTIER - 1) * windows * price.window(found.model, found.model.window)


def _scan_costs(
    plans: Sequence[Plan], views: Sequence[StageScan], levels: Sequence[CascadeStage], price: Price
) -> list[float]:
    """Cost of the squares that each stage scans."""
    each = zip(plans, views, levels, strict=True)
    return [price.scan(plan.macs(level.net.spec.macs), view) for plan, view, level in each]


def glance_geometry(
    cell: int, downsample: int, stride: int, finest: Geometry, scenes: Sequence[Scene]
) -> Geometry | None:
    """Geometry of a stage before another; None if no scene has enough cells for it, or its net's stride is too long.

    Parameters
    ----------
    cell, downsample, stride : int
        Of the other stage: side of its cells and factor of its plane in full-resolution pixels, and its net's stride.
    finest : Geometry
        That of the base.
    scenes : sequence of Scene
    """
    largest = max(min(scene.image.height, scene.image.width) for scene in scenes)
    if largest < 8 * cell * _LARGER or stride * _LARGER // _COARSER > _MOST_STRIDE:
        return None
    fine = cell * _LARGER // finest.fine_cell
    return Geometry(cell * _LARGER, downsample * _COARSER, finest.refine_downsample, fine)


def first_look(geometry: Geometry) -> str:
    """Name of the step in which a glance is trained."""
    return f"learning a first look at 1/{geometry.scan_downsample}"


def _with_glance(
    found: Calibrated,
    level: CascadeStage,
    loss: float,
    views: tuple[StageScan, ...],
    setting: CalibrationSet,
    finds: Finds,
) -> Calibrated | None:
    """The model with a glance that misses a share `loss` of the finds, recalibrated; None if recall is out of reach."""
    model, price = found.model, setting.price
    ratio = level.cell // model.geometry.cell
    seen = zip(views[0].interests, finds.cells, strict=True)
    values = np.concatenate([view[at[:, 0] // ratio, at[:, 1] // ratio] for view, at in seen])
    tau = finds.threshold(values, 1 - loss)
    model = replace(model, cascade=(replace(level, tau=tau), *model.cascade))
    interests, costs = [], 0.0
    for index in range(len(setting.scenes)):
        interest, plans = zoomed(model.levels, [view.interests[index] for view in views])
        interests.append(interest)
        costs += sum(_scan_costs(plans, views[1:], model.levels[1:], price))
    # Few finds do not show the loss that is expected: windows must make up for all of it.
    unseen = max(0.0, loss - float((values <= tau).sum()) / max(1, len(values)))
    tau, count = WindowScores.of(finds, interests, model.window).threshold(setting.recall + unseen)
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
) -> tuple[NDArray[np.float32], list[Plan]]:
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
    list of Plan
        Squares that each stage but the first scans.
    """
    seen, plans = interests[0], []
    for (level, closer), closely in zip(pairwise(levels), interests[1:], strict=True):
        plan = zoom_plan(seen, level, closer)
        plans.append(plan)
        looked = plan.covered()[: closely.shape[0], : closely.shape[1]]
        seen = np.where(looked, closely, np.float32(0))
    return seen, plans
