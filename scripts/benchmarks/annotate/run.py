"""F1 against clicks: suggested places, random places, and a scene annotated from its corner on."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.annotate.annotator import Annotator, Corners
from benchmarks.annotate.data import Mosaic, data_sets, split
from coarse2fine import analyze
from coarse2fine.annotate.finds import evidence_of
from coarse2fine.annotate.fit_worker import learn
from coarse2fine.annotate.suggest import Evidence, places, suggest
from coarse2fine.annotate.training import training_annotations
from coarse2fine.bench.score import Labelled, LabelScore
from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.region import Region
from coarse2fine.results.json_file import write_json
from coarse2fine.terminal import say

Way = Literal["suggested", "random", "whole"]
WAYS: tuple[Way, ...] = ("suggested", "random", "whole")

_EXPLAINED = (
    "F1 of a fitted model's finds on another scene (analysed exhaustively, at its threshold) against the clicks "
    "that its annotations took: one for each object that is drawn and one for each place that is complete.",
    "suggested: random places up to the first number of clicks, then those that the model fitted last suggests, in "
    "order; right finds of that model in them are accepted with the place, and a wrong one is a click. random, whole: "
    "by hand, in places drawn at random, or in reading order from the scene's corner.",
    "share: clicks with which suggested places reach the best F1 of random ones, as a share of the clicks that random "
    "ones took (linear between measurements, median over seeds); absent if no seed reaches it.",
)


@dataclass(frozen=True)
class Scale:
    """Size of the benchmark.

    Parameters
    ----------
    seeds : int
    steps : int
        Optimisation steps of each net.
    clicks : tuple of int
        Numbers of clicks after which a model is fitted.
    side : int
        Side of the scenes in pixels.
    place : int
        Side of a place in pixels.
    """

    seeds: int
    steps: int
    clicks: tuple[int, ...]
    side: int
    place: int


FULL = Scale(seeds=3, steps=400, clicks=(25, 50, 100, 200, 400), side=2000, place=128)
QUICK = Scale(seeds=1, steps=40, clicks=(40, 120), side=1000, place=128)


def benchmark_annotate(out: Path, *, data: Path, scale: Scale) -> SectionReport:
    """Measure all data sets; results of finished fits are kept in `out`, and a second run goes on from there."""
    sections = []
    for name, scenes in data_sets(data).items():
        curves: dict[Way, list[list[float]]] = {way: [] for way in WAYS}
        for seed in range(scale.seeds):
            train, test = split(scenes, scale.side, seed)
            for way in WAYS:
                kept = out / f"annotate-{name}-{way}-{seed}.json"
                curves[way].append(_kept_curve(kept, train, test, way, seed, scale))
        figures = {
            f"{name}/{way}/{clicks} clicks": float(np.mean(column))
            for way, rows in curves.items()
            for clicks, column in zip(scale.clicks, zip(*rows, strict=True), strict=True)
        }
        shares = [
            share_of_clicks(s, r, scale.clicks) for s, r in zip(curves["suggested"], curves["random"], strict=True)
        ]
        reached = [share for share in shares if share is not None]
        if reached:
            figures[f"{name}/suggested/share"] = float(np.median(reached))
        notes = [f"{name}: suggested places reach the best F1 of random ones in {len(reached)} of {len(shares)}"]
        sections.append(Section(f"F1 on {name}", figures, notes))
    return SectionReport("annotate", sections, range(scale.seeds), asdict(scale), _EXPLAINED)


def _kept_curve(path: Path, train: Mosaic, test: Mosaic, way: Way, seed: int, scale: Scale) -> list[float]:
    wanted = {"seed": seed, "way": way, **json.loads(json.dumps(asdict(scale)))}
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if kept["scale"] == wanted:
            return [float(value) for value in kept["f1"]]
    found = list(_curve(train, test, way, seed, scale))
    write_json(path, {"scale": wanted, "f1": found})
    say(f"{path.stem}: " + ", ".join(f"{f1:.3f}" for f1 in found))
    return found


def _curve(train: Mosaic, test: Mosaic, way: Way, seed: int, scale: Scale) -> Iterator[float]:
    """F1 after each number of clicks."""
    annotator = Annotator(train.truth)
    shape = train.pixels.shape[:2]
    squares = [tuple(map(int, row)) for row in places(shape, scale.place).tolist()]
    order = np.random.default_rng(seed).permutation(len(squares)).tolist()
    reading: list[Corners] = [(y0, x0, y1, x1) for y0, x0, y1, x1 in squares]
    queue = iter(reading if way == "whole" else [reading[i] for i in order])
    finds: Sequence[Region] = ()
    for clicks in scale.clicks:
        annotator.follow(queue, clicks, finds)
        f1, seen = _measured(train, test, annotator, seed, scale.steps)
        if seen is not None and way == "suggested":
            evidence, finds = seen
            found = suggest(shape, scale.place, annotator.areas, evidence, count=len(squares), seed=seed)
            queue = iter([place.full_box for place in found])
        yield f1


def _measured(
    train: Mosaic, test: Mosaic, annotator: Annotator, seed: int, steps: int
) -> tuple[float, tuple[Evidence, list[Region]] | None]:
    """F1 of a model fitted to what is annotated, what it is unsure of and its finds; 0 and None if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            annotations = training_annotations(annotator.items, train.pixels.shape[:2])
            model, analysis = learn(train.pixels, annotations, steps=steps, seed=seed)
        except ValueError as error:  # AnnotationError: too little to learn from
            say(f"no fit after {annotator.clicks} clicks: {error}")
            return 0.0, None
        with analysis:
            evidence = evidence_of(analysis, model.threshold, annotator.items)
            finds = [region for region in analysis.regions if region.score >= model.threshold]
        with analyze(test.pixels, model, budget=1.0) as exhaustive:
            score = Labelled(test.truth, model).score(exhaustive.regions)
    return f1_of(score), (evidence, finds)


def f1_of(score: LabelScore) -> float:
    """Harmonic mean of recall and precision; 0 without hits."""
    return 2 * score.hits / max(score.objects + score.hits + score.false_alarms, 1)


def share_of_clicks(suggested: Sequence[float], random: Sequence[float], clicks: Sequence[int]) -> float | None:
    """Clicks with which suggested places reach the best F1 of random ones, as a share of those that random ones took.

    None if they do not reach it, or random places found nothing. Linear between measurements.
    """
    best = int(np.argmax(random))
    target = random[best]
    if target <= 0:
        return None
    if suggested[0] >= target:
        return clicks[0] / clicks[best]
    for (before, after), (low, high) in zip(itertools.pairwise(clicks), itertools.pairwise(suggested), strict=True):
        if high >= target:
            return (before + (after - before) * (target - low) / (high - low)) / clicks[best]
    return None
