"""Fitting by watching: one expert, or several with an output each over the same images, which are opened once."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from coarse2fine.annotations.annotated import AnnotationError
from coarse2fine.annotations.read import Annotations
from coarse2fine.experts.outputs import check_outputs
from coarse2fine.fitting.pairs import Sources, load_images, load_pairs
from coarse2fine.fitting.watching.accuracy import check_labels
from coarse2fine.fitting.watching.fit import expected_steps, fit_watched
from coarse2fine.fitting.watching.recipe import WatchRecipe, tried_experts
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress, duration
from coarse2fine.remembered import KEY, Remembered
from coarse2fine.terminal import say

_TRIAL = "trying the expert"


def fit_experts(
    images: Sources,
    annotations: Sources | None,
    recipes: Sequence[WatchRecipe],
    runtime: Runtime,
    channels: int | Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    *,
    progress: bool,
) -> Model:
    """Fit one model around the expert, or the experts, of the recipes.

    Parameters
    ----------
    images, annotations, channels, value_range, progress
        See `coarse2fine.fit`.
    recipes : sequence of WatchRecipe
        One for each output.
    runtime : Runtime
        Of the scans.

    Raises
    ------
    AnnotationError
        If annotations are given, and cannot be read or have no class in common with an expert.
    ExpertError
        If an expert cannot run.
    ValueError
        If one finds nothing in the watched tiles.
    """
    pairs = [] if annotations is None else load_pairs(images, annotations, channels, value_range)
    truths = _truths_of(recipes, [truth for _, truth in pairs])
    opened = [image for image, _ in pairs] or load_images(images, channels, value_range)
    recipes = [recipe.on(opened) for recipe in recipes]
    check_outputs({recipe.output: recipe.experts[0] for recipe in recipes if recipe.output})
    # All are tried before the first is watched, so that a fault of any is reported at once.
    with torch.random.fork_rng(devices=[]), Progress(progress) as bars:
        tried = [tried_experts(recipe.experts, opened, bars.task(_TRIAL)) for recipe in recipes]
    steps = []
    for recipe, (experts, seconds) in zip(recipes, tried, strict=True):
        total = sum(math.prod(experts[0].grid(image)) for image in opened)
        if progress:
            say(_whole(recipe, total, seconds), file=sys.stderr)
        steps += expected_steps(recipe.watch.tiles(total, seconds) * seconds, recipe.steps)
    with Progress(progress, steps) as bars, torch.random.fork_rng(devices=[]):
        first, *others = (
            fit_watched(opened, known, *experts, recipe, runtime, bars)
            for known, experts, recipe in zip(truths, tried, recipes, strict=True)
        )
    provenance = {**first.provenance, KEY: Remembered.of(opened).to_json()}
    return replace(first, provenance=provenance, others=tuple(others))


def _whole(recipe: WatchRecipe, tiles: int, seconds: float) -> str:
    """What the experts would take for all tiles: who has no more images may run them everywhere instead."""
    name = "the expert" if len(recipe.experts) == 1 else "the expert with its alternatives"
    name += f" for {recipe.output}" if recipe.output else ""
    return f"{name} would take about {duration(tiles * seconds)} for all {tiles:,} tiles of these images"


def _truths_of(recipes: Sequence[WatchRecipe], truths: Sequence[Annotations]) -> list[Sequence[Annotations]]:
    """The annotations by which each expert is judged: of several experts, none for those without an annotated class."""
    if not truths:
        return [()] * len(recipes)
    if len(recipes) == 1:
        check_labels(recipes[0].experts[0], truths)
        return [truths]
    annotated = {name for truth in truths for name in truth.labels}
    labels = [{label.name for label in recipe.experts[0].labels} for recipe in recipes]
    known = {name for mine in labels for name in mine}
    if not annotated & known:
        raise AnnotationError(
            f"the annotated classes {', '.join(sorted(annotated))} are none of the experts' "
            f"({', '.join(sorted(known))}): name the experts' labels= as the annotations do"
        )
    return [truths if annotated & mine else () for mine in labels]
