"""Fitting of the model of one band of object sizes: its nets, specialists, thresholds and cascade."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from coarse2fine.bases import TIMM, prefix_of, unfitted
from coarse2fine.fitting.base import train_base
from coarse2fine.fitting.calibrate import Calibrated, CalibrationSet, Price, calibrate, calibrates_on_all
from coarse2fine.fitting.cascade import add_glances, measure_price, scan_candidates
from coarse2fine.fitting.classes.fit_classifier import expected_of_classes, fit_classifier
from coarse2fine.fitting.classes.found_boxes import found_boxes
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.forecast import CLASSES, FINDING, OBJECTS, RESCALED, THRESHOLDS, expected_steps
from coarse2fine.fitting.geometry import base_spec
from coarse2fine.fitting.hold_out import check_cells
from coarse2fine.fitting.integer_scan import integer_ranges
from coarse2fine.fitting.origin import origin, origin_of_base, tried
from coarse2fine.fitting.refiner import train_refiner
from coarse2fine.fitting.rescaled import answered_areas, refined_share
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.specialists.activity import add_activity
from coarse2fine.fitting.specialists.add import Mode, add_specialists, tests_of
from coarse2fine.fitting.specialists.earnings import KEY
from coarse2fine.fitting.specialists.unsure_cells import most_groups
from coarse2fine.fitting.specialists.validate import fewest_groups
from coarse2fine.fitting.task import FitTask, tell
from coarse2fine.fitting.teacher import Answers, exhaustive_answer
from coarse2fine.fitting.timm_weights import Weights, make_backbone
from coarse2fine.model import Model
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.protocol import Label
from coarse2fine.steps.plan import dense_plan
from coarse2fine.steps.scan_net import KEY as INTEGERS


@dataclass(frozen=True)
class BandOrder:
    """Parameters of `fit` that are the same for all bands."""

    base: str | None
    base_weights: Weights
    search: bool
    minimise: Literal["macs", "seconds"]
    recall: float
    specialists: Mode | None
    depth: int
    cache: str | os.PathLike[str] | None
    name: str
    many_classes: bool


@dataclass(frozen=True)
class ReadyBand:
    """One band before training: its task, settings for each geometry to try, and networks if they are given."""

    order: BandOrder
    task: FitTask
    planned: list[Recipe]
    backbones: list[Base | None]

    @classmethod
    def of(cls, order: BandOrder, task: FitTask) -> ReadyBand:
        """Check the scenes of a task, and what is given for it."""
        usual = replace(task.recipe, geometry=task.band.geometry)
        planned = scan_candidates(usual, built_in=order.base is None) if order.search else [usual]
        check_cells(task.scenes, min(each.geometry.cell for each in planned))
        return cls(order, task, planned, [_backbone(each, order.base, order.base_weights) for each in planned])

    @property
    def expected(self) -> list[tuple[str, float]]:
        """Steps of its fit with their multiply-adds."""
        steps = expected_steps(self.task.recipe, self.planned, self.task.scenes)
        return steps + expected_of_classes(self.task.recipe, self.task.scenes) if self.order.many_classes else steps


def fit_band(ready: ReadyBand, runtime: Runtime, number: int, bars: Progress) -> Model:
    """The model of one band; `number` counts them from the finest."""
    order, task, planned = ready.order, ready.task, ready.planned
    untried: dict[str, Any] = {}
    if order.specialists == "auto" and (groups := most_groups(task.scenes)) < fewest_groups(tests_of("auto", 1)):
        why = f"not tried: nothing is significant with {groups} groups of held-out cells; give more scenes"
        untried = {"specialists": {"asked": "auto", "chosen": None, "why": why}}
        order = replace(order, specialists=None)
    scenes, recipe = task.scenes, task.recipe
    cache = Path(order.cache) / f"band{number}" if number and order.cache is not None else order.cache
    draft, taken = _refining(task, order, runtime, cache, bars)
    answers = exhaustive_answer(draft, scenes, runtime, recipe.seed, bars.task(FINDING))
    draft = replace(draft, threshold=answers.threshold)
    self_calibrated = _check_held(scenes, answers)
    price = _price(order.minimise, draft, scenes, runtime, recipe.seed, planned)
    areas = answered_areas(draft, scenes, answers, planned, runtime, bars.task(RESCALED))
    setting = CalibrationSet(tuple(scenes), answers, order.recall, price, runtime, areas.areas)
    # Bases take steps as the refine net did: it needed few if the scenes are few, or the objects plain.
    lessons = [replace(each, steps=taken.steps) for each in planned]
    found = [_calibrated(*each, draft, setting, bars) for each in zip(lessons, ready.backbones, strict=True)]
    record, best, setting = add_activity(draft.provenance, _cheapest(found), taken, setting, order.specialists, bars)
    best = add_glances(best, replace(taken, geometry=best.model.geometry), setting, bars)
    share = refined_share(scenes, answers, areas, task.band.geometry)
    known = {"calibrated_on_training": self_calibrated, "steps_taken": taken.steps, "refined_share": share}
    cost = {"minimised": order.minimise, "cost": best.cost} | tried(found)
    if order.minimise == "macs":
        plans = [dense_plan(best.model.cell_shape(scene.image.shape[:2])) for scene in scenes]
        cost["cost_share"] = best.cost / sum(plan.macs(best.model.refiner_macs) for plan in plans)
    data = origin(recipe, scenes, task.band, runtime) | origin_of_base(order.base, order.base_weights)
    classifier, named = None, dict[str, Any]()
    if order.many_classes:
        boxes = found_boxes(scenes, answers, draft.areas)
        classifier, of_classes = fit_classifier(scenes, boxes, recipe, bars.task(CLASSES))
        # Finds are routed by the classifier, if it has forks.
        earned = of_classes.pop(KEY, None)
        named = {"classifier": of_classes, **({KEY: earned} if earned else {})}
    ranges = {INTEGERS: found_ranges} if (found_ranges := integer_ranges(best.model, setting)) else {}
    provenance = {**best.model.provenance, **record, **untried, **data, **known, **cost, **named, **ranges}
    return replace(best.model, classifier=classifier, provenance=provenance)


def _refining(
    task: FitTask, order: BandOrder, runtime: Runtime, cache: str | os.PathLike[str] | None, bars: Progress
) -> tuple[Model, Recipe]:
    """A model with a trained refine net and specialists, and its recipe with the steps that the net took."""
    net, taken = train_refiner(task.recipe, task.scenes, runtime, bars.task(OBJECTS))
    draft = _draft(task.recipe, task.band.labels, order.name, net)
    # Specialists learn from as many crops as the refine net needed.
    recipe = replace(task.recipe, steps=taken)
    added = add_specialists(draft, recipe, task.scenes, runtime, order.specialists, cache, bars, order.depth)
    return added, recipe


def _price(
    minimise: str, draft: Model, scenes: Sequence[Scene], runtime: Runtime, seed: int, planned: Sequence[Recipe]
) -> Price:
    if minimise == "macs":
        return Price("macs")
    return measure_price(draft, scenes, runtime, seed, {each.geometry.fine for each in planned})


def _check_held(scenes: Sequence[Scene], answers: Answers) -> bool:
    """Whether thresholds must be set on the training data; if so, warn the caller."""
    if self_calibrated := calibrates_on_all(scenes, answers):
        undrawn = " what is not annotated counts as background: if not all objects are, mark the places where they are "
        undrawn = "" if any(scene.has_regions for scene in scenes) else f"{undrawn}by areas of class Region. Else"
        tell(
            "hardly anything was found in the held-out parts of the scenes: thresholds are "
            f"set on training data, and recall elsewhere may be lower;{undrawn} annotate larger or more scenes"
        )
    return self_calibrated


def _draft(recipe: Recipe, labels: tuple[Label, ...], name: str, refiner: ConvStack) -> Model:
    """A model with a trained refine net and an untrained base."""
    return Model(
        name=name,
        geometry=recipe.geometry,
        mean=tuple(float(m) for m in recipe.mean),
        std=tuple(float(s) for s in recipe.std),
        base=ConvStack(base_spec(recipe.channels, recipe.geometry)).eval(),
        refiner=DetectionRefiner(refiner, labels, recipe.geometry.refine_downsample),
    )


def _calibrated(
    recipe: Recipe, backbone: Base | None, draft: Model, setting: CalibrationSet, bars: Progress
) -> Calibrated:
    """The model with a trained base for one geometry, thresholds set."""
    fitted = train_base(recipe, backbone, setting, bars)
    model = replace(draft, geometry=recipe.geometry, base=fitted)
    return calibrate(model, setting, bars.task(THRESHOLDS))


def _cheapest(found: Sequence[Calibrated]) -> Calibrated:
    return min(found, key=lambda each: each.cost)


def _backbone(recipe: Recipe, base: str | None, weights: Weights) -> Base | None:
    """The requested base, if any; its new parts and its random weights follow the seed."""
    if base is None:
        return None
    torch.manual_seed(recipe.seed + 1)
    stride = recipe.geometry.cell // recipe.geometry.scan_downsample
    if prefix_of(base) != TIMM:
        net = unfitted(recipe.channels, base)()
        if net.spec.stride != stride:
            raise ValueError(f"{base} has cells of {net.spec.stride} px, expected {stride} px in {recipe.geometry}")
        return net
    return make_backbone(base, weights, channels=recipe.channels, stride=stride, mean=recipe.mean, std=recipe.std)
