"""Recall by size: a model of several bands beside a model for each size alone."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sizes.scenes import COUNTS, SizesScene, make_scene
from coarse2fine import analyze, fit
from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.fitting.matching import match
from coarse2fine.model import Model
from coarse2fine.results.json_file import write_json
from coarse2fine.terminal import say

_EXPLAINED = (
    "Scenes of discs and squares of 8, 30, 100 and 400 px among as many crosses. bands: one model, fitted to all of "
    "them. alone: a model for each size, fitted to the same scenes, in which the objects of other sizes are areas to "
    "ignore. Recall: objects found in other scenes, with the right shape and a centre within half a side.",
    "default: an analysis without limits. exhaustive: budget=1. false: finds in a scene that are no object, or again "
    "an object that was found; finds of a model alone on objects of another size are not false.",
    "GMAC: multiply-adds of a scene, in thousands of millions; of the models alone, of all four together. Means and "
    "standard deviations over seeds.",
)
_OFF = 1000  # first seed of the scenes that are analysed


@dataclass(frozen=True)
class Scale:
    """Size of the benchmark.

    Parameters
    ----------
    seeds : int
    steps : int
        Optimisation steps of each net.
    train, test : int
        Scenes that a model is fitted to, and scenes that it analyses.
    """

    seeds: int
    steps: int
    train: int
    test: int


FULL = Scale(seeds=3, steps=400, train=10, test=6)
QUICK = Scale(seeds=1, steps=60, train=6, test=2)


def benchmark_sizes(out: Path, *, scale: Scale) -> SectionReport:
    """Fit and analyse; results of finished fits are kept in `out`, and a second run goes on from there."""
    rows = [
        {name: _kept(out, name, seed, scale) for name in ("bands", *map(str, COUNTS))} for seed in range(scale.seeds)
    ]
    recalls: dict[str, float] = {}
    for size in COUNTS:
        for pass_ in ("default", "exhaustive"):
            for name, key in (("bands", "bands"), ("alone", str(size))):
                values = [row[key][pass_]["recall"][str(size)] for row in rows]
                recalls[f"{size} px/{pass_}, {name}"] = float(np.mean(values))
                recalls[f"{size} px/sd of {pass_}, {name}"] = float(np.std(values))
    costs: dict[str, float] = {}
    for pass_ in ("default", "exhaustive"):
        for figure in ("GMAC", "false"):
            each = [[row[str(size)][pass_][figure] for size in COUNTS] for row in rows]
            costs[f"{pass_}/{figure}, bands"] = float(np.mean([row["bands"][pass_][figure] for row in rows]))
            costs[f"{pass_}/{figure}, alone"] = float(np.mean(np.sum(each, axis=1)))
    times = {"fit/minutes, bands": _minutes(rows, ["bands"]), "fit/minutes, alone": _minutes(rows, map(str, COUNTS))}
    notes = sorted({row["bands"]["model"] for row in rows})
    sections = [Section("recall by size", recalls), Section("cost of a scene", costs), Section("fits", times, notes)]
    return SectionReport("sizes", sections, range(scale.seeds), asdict(scale), _EXPLAINED)


def _minutes(rows: Sequence[Mapping[str, Any]], names: Any) -> float:
    chosen = list(names)
    return float(np.mean([sum(row[name]["seconds"] for name in chosen) for row in rows])) / 60


def _kept(out: Path, name: str, seed: int, scale: Scale) -> dict[str, Any]:
    path, wanted = out / f"sizes-{name}-{seed}.json", {"seed": seed, **asdict(scale)}
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if kept["scale"] == wanted:
            return kept
    sizes = tuple(COUNTS) if name == "bands" else (int(name),)
    scenes = [make_scene(100 * seed + number) for number in range(scale.train)]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        images, texts = [scene.pixels for scene in scenes], [scene.annotations(sizes) for scene in scenes]
        model = fit(images, texts, steps=scale.steps, seed=seed, specialists=None, name="sizes", progress=False)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"scale": wanted, "seconds": seconds, "model": "; ".join(str(model).splitlines()[1:])}
    others = [make_scene(_OFF + 100 * seed + number) for number in range(scale.test)]
    found |= {"default": measured(model, others, sizes), "exhaustive": measured(model, others, sizes, budget=1.0)}
    write_json(path, found)
    say(f"{path.stem}: {found['default']['recall']}, {found['default']['GMAC']:.2f} GMAC, {seconds:.0f} s")
    return found


def measured(model: Model, scenes: Sequence[SizesScene], sizes: Sequence[int], **limits: float) -> dict[str, Any]:
    """Recall by size, false finds and multiply-adds of a scene."""
    right, every = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0)
    false, macs = 0, 0
    for scene in scenes:
        with analyze(scene.pixels, model, audit=0.0, **limits) as analysis:  # type: ignore[arg-type]
            regions, macs = analysis.regions, macs + analysis.cost.macs
        centres = np.array([region.full_centre for region in regions]).reshape(-1, 2)
        scores = np.array([region.score for region in regions], np.float32)
        shapes = np.array([region.label for region in regions], np.str_)
        other = scene.boxes[~np.isin(scene.sizes, sizes)]
        inside = (centres[:, None] >= other[:, :2]) & (centres[:, None] <= other[:, 2:])
        stray = ~np.any(np.all(inside, axis=2), axis=1)
        for shape in np.unique(scene.shapes):
            mine, true = np.flatnonzero(shapes == shape), np.flatnonzero(np.array(scene.shapes) == shape)
            boxes = scene.boxes[true]
            middle, reach = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 2
            owner = match(centres[mine], scores[mine], middle, reach)
            hit = np.isin(np.arange(len(true)), owner)
            stray[mine[owner >= 0]] = False
            for size in sizes:
                own = scene.sizes[true] == size
                right[size], every[size] = right[size] + int(hit[own].sum()), every[size] + int(own.sum())
        false += int(stray.sum())
    return {
        "recall": {str(size): right[size] / max(1, every[size]) for size in sizes},
        "false": false / len(scenes),
        "GMAC": macs / len(scenes) / 1e9,
    }
