"""Fitting of a classifier of finds: its trunk, forks for kinds of finds, and the test that they help."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.annotations.read import Annotation, Annotations
from coarse2fine.fitting.classes.grow_forks import Growing, Step
from coarse2fine.fitting.classes.grow_forks import Recipe as ForkRecipe
from coarse2fine.fitting.classes.learner import BATCH, ON_RATE, Draw, Learner, stream, train_net
from coarse2fine.fitting.classes.object_crops import CONTEXT, ObjectCrops, Sampler
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.forecast import CLASSES
from coarse2fine.fitting.geometry import find_labels
from coarse2fine.fitting.resume import GENTLE, unfolded
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.specialists.earnings import KEY, as_record, earned_by
from coarse2fine.fitting.specialists.evidence import LEVEL, chance_of_gain
from coarse2fine.fitting.task import tell
from coarse2fine.model import Model
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.feature_tree import NO_NODE, ROOT
from coarse2fine.models.fork import ForkTree, Layers
from coarse2fine.progress import Tick
from coarse2fine.specialists.classifier import Classifier
from coarse2fine.tiling.image import Image

MOST_CLASSES = 24
"""Most classes of objects that the refine net tells apart itself."""
OBJECT = "object"
# The trunk without its reader: 1.4 MMAC for a colour crop of 30 px. Trees fork before its fourth stage.
_TRUNK, _FORK = "4/2:16 3:24 4/2:48 3:64 3:96", 3
_RATE, _FORK_RATE, _SMOOTHING = 4e-3, 1e-3, 0.05
# Samples for each class, and for all; as a share of those of the trunk, samples for forks and for their clusters.
_EACH, _LEAST, _MOST, _MORE, _CLUSTERED = 1000, 100_000, 1_000_000, 0.5, 8192
# Classes for each fork, and most forks.
_CLASSES, _FORKS = 24, 16
_TILES, _SHOWN = 8, 4096
# Steps of the refine net with which the classifier gets all its samples.
_STEPS = 500
# Training costs three forward passes; early layers of few channels take longer for each multiply-add.
_TRAINING = 4.5


def one_class(
    pairs: Sequence[tuple[Image, Annotations]], start: Model | None = None, areas: Sequence[str] = ()
) -> tuple[list[tuple[Image, Annotations]], bool]:
    """Annotations with one class for all objects if they have very many classes, and whether that is so.

    Parameters
    ----------
    pairs : sequence of (Image, Annotations)
    start : Model, optional
        A model to go on from, which decides.
    areas : sequence of str
        Classes that are learned as areas.
    """
    labels = find_labels([known for _, known in pairs], areas)
    if start is not None:
        if start.classifier is None:
            return list(pairs), False
        return _as_one(pairs, {label.name for label in labels if label.name in start.classifier.labels}, start), True
    objects = {label.name for label in labels if label.kind == "object"}
    if len(objects) <= MOST_CLASSES:
        return list(pairs), False
    name = OBJECT if OBJECT not in {label.name for label in labels} - objects else f"any {OBJECT}"
    return _as_one(pairs, objects, name), True


def _as_one(
    pairs: Sequence[tuple[Image, Annotations]], objects: Collection[str], into: str | Model
) -> list[tuple[Image, Annotations]]:
    """Annotations whose `objects` have one class: a name, or that of a model to go on from."""
    name = into if isinstance(into, str) else next(label.name for label in into.labels if label.kind == "object")

    def merged(each: Annotation) -> Annotation:
        return replace(each, label=name, own_label=each.label) if each.label in objects else each

    found = []
    for image, known in pairs:
        own = tuple(merged(each) for each in known.objects)
        found.append((image, replace(known, objects=own, labels=tuple(sorted({each.label for each in own})))))
    return found


@dataclass(frozen=True)
class TrunkPlan:
    """Shape of a classifier's nets, and how they are trained.

    Parameters
    ----------
    stages : str
        The trunk without its reader, see `StackSpec.parse`.
    fork : int
        Stage at which its tree forks.
    forks : int
        Number of forks to try; 1 for none.
    samples, more : int
        Samples for the trunk, and for the forks, of which each goes to one fork.
    """

    stages: str
    fork: int
    forks: int
    samples: int
    more: int

    @classmethod
    def usual(cls, classes: int, steps: int) -> TrunkPlan:
        """A plan for a number of classes, and of steps that the refine net may take."""
        samples = round(min(max(_LEAST, _EACH * classes), _MOST) * min(1.0, steps / _STEPS)) if classes > 1 else BATCH
        return cls(_TRUNK, _FORK, min(max(1, round(classes / _CLASSES)), _FORKS), samples, round(_MORE * samples))

    def spec(self, channels: int, classes: int) -> StackSpec:
        """Shape of the trunk."""
        return StackSpec.parse(channels, f"{self.stages} 1:{classes}")


@dataclass(frozen=True, eq=False)
class Judges:
    """Held-out crops.

    Parameters
    ----------
    pixels : ndarray, uint8, (n, side, side, channels)
    classes : ndarray, int64, (n,)
    groups : ndarray, int64, (n,)
        Groups of crops that may be alike: scenes, or parts of them.
    """

    pixels: NDArray[np.uint8]
    classes: NDArray[np.int64]
    groups: NDArray[np.int64]


def fit_classifier(
    scenes: Sequence[Scene],
    found: Sequence[NDArray[np.float64]],
    recipe: Recipe,
    tick: Tick | None = None,
    *,
    plan: TrunkPlan | None = None,
) -> tuple[Classifier | None, dict[str, Any]]:
    """Fit a classifier to the annotated objects, and what is to be known of it; None if there are areas only.

    It learns from the boxes of the finds too, which it will see: they cut off more than the annotated ones.

    Parameters
    ----------
    scenes : sequence of Scene
        With their held-out parts marked.
    found : sequence of ndarray, float64, (objects, 4)
        See `coarse2fine.fitting.classes.found_boxes`.
    recipe : Recipe
    tick : callable, optional
        Called with the numbers of samples seen and of all samples.
    plan : TrunkPlan, optional
        By default the usual one for so many classes.
    """
    start, names = _start(recipe), _names(scenes, recipe)
    if not names:
        return None, {}
    plan = plan or TrunkPlan.usual(len(names), recipe.steps)
    side = plan.spec(recipe.channels, len(names)).input_size(1) if start is None else start.side
    crops = ObjectCrops.of(scenes, names, side, recipe.channels, recipe.seed, found=found)
    if not len(crops.classes):
        tell("no object outside the held-out parts can be read closely: finds keep one class; annotate more scenes")
        return start, {}
    draw = Sampler(crops, recipe.mean, recipe.std, rotate=recipe.rotate, seed=recipe.seed).draw
    held = ObjectCrops.of(scenes, names, side, recipe.channels, recipe.seed, found=found, held=True)
    judges = Judges(held.plain, held.classes, held.groups)
    return learn_classes(names, draw, crops.plain, judges, plan, recipe, tick)


def _start(recipe: Recipe) -> Classifier | None:
    """The classifier of the model to go on from, if there is one."""
    return None if recipe.start is None else recipe.start.classifier


def _names(scenes: Sequence[Scene], recipe: Recipe) -> tuple[str, ...]:
    """Classes of the model to go on from, or those that can be learned: of which some object has a size that fits."""
    if (start := _start(recipe)) is not None:
        return start.labels
    rows = (zip(scene.names, scene.fits.tolist(), strict=True) for scene in scenes)
    return tuple(sorted({name for each in rows for name, fits in each if fits}))


def expected_of_classes(recipe: Recipe, scenes: Sequence[Scene]) -> list[tuple[str, float]]:
    """The step of a fit, with its multiply-adds."""
    classes = len(_names(scenes, recipe))
    if not classes:
        return []
    plan = TrunkPlan.usual(classes, recipe.steps)
    return [(CLASSES, _TRAINING * plan.spec(recipe.channels, classes).macs(1, 1) * (plan.samples + plan.more))]


def learn_classes(
    names: tuple[str, ...],
    draw: Draw,
    shown: NDArray[np.uint8],
    judges: Judges,
    plan: TrunkPlan,
    recipe: Recipe,
    tick: Tick | None = None,
) -> tuple[Classifier, dict[str, Any]]:
    """Train a trunk and forks of it; the forks stay if they name significantly more held-out crops correctly.

    Their control is the trunk, trained on with the samples that all forks had together.

    Parameters
    ----------
    names : tuple of str
    draw : callable
        Draws samples, of these classes.
    shown : ndarray, uint8, (n, side, side, channels)
        Crops to show of each fork.
    judges : Judges
    plan : TrunkPlan
    recipe : Recipe
        Channels, normalisation and seed.
    tick : callable, optional
    """
    start = _start(recipe)
    spec = plan.spec(recipe.channels, len(names)) if start is None else start.tree.spec
    total = plan.samples + plan.more
    counted = _counted(draw, total, tick)
    options: dict[str, Any] = {"seed": recipe.seed, "rate": _RATE, "batch": BATCH, "smoothing": _SMOOTHING}
    if start is not None:
        options |= {"start": unfolded(start.tree.trunk, draw(_SHOWN).images), "rate": GENTLE * _RATE}
    trunk = train_net(spec, counted, plan.samples, **options)
    more, tree = _trained_on(trunk, counted, plan, recipe.seed)
    usual = _classifier(names, ForkTree(more), recipe, draw, shown)
    found = usual if tree is None else _classifier(names, tree, recipe, draw, shown)
    named = [each(judges.pixels) for each in (usual, found)]
    right, forked = (each.labels == judges.classes for each in named)
    known: dict[str, Any] = {"classes": len(names), "samples": total, "held_objects": len(right), "forks": 0}
    if len(right):
        known["right"] = round(float(right.mean()), 4)
    if tree is None:
        return usual, known
    gains = np.bincount(judges.groups, weights=forked.astype(float) - right, minlength=1).astype(np.float64)
    luck = chance_of_gain(gains) if len(right) else 1.0
    known |= {"right_with_forks": round(float(forked.mean()), 4) if len(right) else None, "p": round(luck, 4)}
    if luck > LEVEL:
        return usual, known
    earned = earned_by(named[1].nodes[:, None], ~right, ~forked)
    return found, {**known, "forks": len(tree) - 1, KEY: as_record(earned, "wrong")}


def _trained_on(trunk: ConvStack, draw: Draw, plan: TrunkPlan, seed: int) -> tuple[ConvStack, ForkTree | None]:
    """The trunk trained on, and a tree of forks that had as many samples together."""
    growing = None
    if plan.forks > 1:
        recipe = ForkRecipe((Step(plan.fork, plan.forks),), rate=_FORK_RATE)
        growing = Growing(ForkTree(trunk), recipe, *draw(min(_CLUSTERED, plan.samples)), seed)
    early = Layers.of(trunk).folded()
    layers = Layers(list(trunk.convs), list(trunk.norms)).to(memory_format=torch.channels_last)
    learner = Learner(layers.train(), ON_RATE, BATCH, _SMOOTHING)
    for x, classes, done in stream(draw, plan.more, 4 * BATCH):
        learner.see(x, classes, done)
        if growing is not None:
            with torch.no_grad():
                before = early(x, 0, plan.fork)
            growing.see(before, classes, plan.fork, done)
    tree = None if growing is None or len(growing.tree) == 1 else growing.tree
    return trunk.eval(), tree


def _counted(draw: Draw, total: int, tick: Tick | None) -> Draw:
    done = 0

    def counted(count: int) -> Any:
        nonlocal done
        done += count
        if tick is not None:
            tick(min(done, total), total)
        return draw(count)

    return counted


def _classifier(
    names: tuple[str, ...], tree: ForkTree, recipe: Recipe, draw: Draw, shown: NDArray[np.uint8]
) -> Classifier:
    """A classifier with the classes, and some crops, of each leaf."""
    x, classes = draw(_SHOWN)
    shares = np.zeros((len(tree), len(names)), np.float32)
    for node, rows, _ in tree.arrivals(x):
        counts = torch.bincount(classes[rows], minlength=len(names)).numpy()
        while node != NO_NODE:
            shares[node] += counts
            node = tree.forks[node].parent  # noqa: PLW2901 (up to the root)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    mean, std = (tuple(map(float, each)) for each in (recipe.mean, recipe.std))
    _round(tree)
    bare = Classifier(names, tree, mean, std, CONTEXT, shares, {})
    some = shown[np.sort(np.random.default_rng(recipe.seed).permutation(len(shown))[:_SHOWN])]
    nodes = bare(some).nodes
    leaves = [node for node in range(len(tree)) if tree.forks[node].router is None]
    tiles = {node: some[np.flatnonzero(nodes == node)[:_TILES]] for node in leaves if (nodes == node).any()}
    return replace(bare, tiles=tiles if len(tree) > 1 else {ROOT: some[:_TILES]})


def _round(tree: ForkTree) -> None:
    """Round weights to the half precision in which they are saved, so that a saved model answers like this one."""
    for fork in tree.forks:
        for net in filter(None, (fork.layers, fork.router)):
            for parameter in net.parameters():
                parameter.data = parameter.data.half().float()
