"""Benchmark of huge scenes made on disk: what an analysis costs as the scene grows, beside the exhaustive pass.

A first scene is refined everywhere. It gives the costs of our choice of windows and of its rivals for several recalls,
and the thresholds with which larger scenes are then analysed. Of those the exhaustive pass is sampled: random blocks of
it give its time, and the finds against which recall is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.annotations.read import read_annotations
from coarse2fine.bench.composite import Composition, compose
from coarse2fine.bench.data import BenchScene, load_scenes
from coarse2fine.bench.expert_run import mean_figures
from coarse2fine.bench.in_process import regions_from, run_apart
from coarse2fine.bench.lookup import SceneLookup
from coarse2fine.bench.methods import OURS, Method, methods
from coarse2fine.bench.score import Labelled, against_exhaustive
from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.model import Model, load_model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.results.json_file import write_json
from coarse2fine.steps.windows import best_windows
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.writing.pyramid import write_pyramid

RECALLS = (0.95, 0.99, 0.995)
SIZES = (0.25, 1.0, 4.0)
_FIRST_SEED, _SEED = 5000, 6000
_LOOKALIKES = 1430
"""Marks in a gigapixel that look like digits at low resolution."""

EXPLAINED = (
    "least cost: on the first scene, refined everywhere, the least multiply-adds, scan and halos included, as a share "
    "of the exhaustive pass's, for 95, 99 and 99.5 % of its finds; thresholds are swept on that scene. mask: cells "
    "that are not empty, in random order; gradient: largest Laplacian; oracle: knows the finds. Rivals choose for "
    "free.",
    "scenes: analyses of other scenes in processes of their own, by default and with the thresholds that gave these "
    "recalls on the first scene. recall: share of the exhaustive pass's finds, in the blocks of it that were sampled; "
    "finds: their number. labels: share of the labelled objects. saving_macs, saving_seconds, saving_bytes: the "
    "exhaustive pass's over ours; its seconds and decoded bytes are scaled from the sample. seconds: loading of the "
    "model and opening included. peak_mb: of the whole process.",
)


@dataclass(frozen=True)
class HugeScenes:
    """How scenes are made.

    Parameters
    ----------
    folder : Path
        Scenes are kept there, and reused.
    objects : float
        Digits in a gigapixel; beside them are 1,430 marks that look like digits from afar.
    data : Path, optional
        Folder of annotated images of which composites are made, instead of scenes of digits.
    density : float
        Share of a composite that is covered by those images; the rest is empty ground.
    """

    folder: Path
    objects: float = 312.0
    data: Path | None = None
    density: float = 0.03

    def make(self, gigapixels: float, seed: int, *, crowded: bool = False) -> BenchScene:
        """A scene of at least that size; `crowded` ones have the default number of digits, whatever `objects` says."""
        objects = HugeScenes.objects if crowded else self.objects
        if self.data is not None:
            return self._composite(gigapixels, seed)
        side = math.ceil(math.sqrt(gigapixels * 1e9) / 512) * 512
        area = side * side / 1e9
        count = max(1, round(objects * area))
        scene = DigitScene(
            side, side, digits=count, clutter=max(1, round(_LOOKALIKES * area)), seed=seed, handwriting="held-out"
        )
        path = self.folder / f"digits-{side}-{count}-{seed}.zarr"
        if not path.exists():
            write_pyramid(path, (side, side, 1), scene.block)
        labels = scene.annotations()
        return BenchScene(path.stem, path, labels, read_annotations(labels, full_shape=(side, side)))

    def _composite(self, gigapixels: float, seed: int) -> BenchScene:
        assert self.data is not None
        path = self.folder / f"{self.data.name}-{gigapixels:g}-{self.density:g}-{seed}.zarr"
        beside = path.with_suffix(".geojson")
        if path.exists() and beside.exists():
            with open_image(path) as image:
                return BenchScene(path.stem, path, beside, read_annotations(beside, full_shape=image.shape[:2]))
        scenes, _ = load_scenes(self.data)
        composition = Composition(gigapixels * 1000, self.density)
        made = compose(scenes, composition, path, rotate=True, seed=seed)
        assert isinstance(made.annotations, dict)
        write_json(beside, made.annotations)
        return made


def benchmark_gigapixel(
    scenes: HugeScenes, *, model: str = "digits", sizes: Sequence[float] = SIZES, seeds: int = 1, progress: bool = True
) -> SectionReport:
    """Measure what analyses of huge scenes cost.

    Parameters
    ----------
    scenes : HugeScenes
        Its folder must exist.
    model : str
        Name or file of a model that was fitted to annotations.
    sizes : sequence of float
        Gigapixels; the smallest is also the size of the first scene, and of the sample of the exhaustive pass.
    seeds : int
        Number of scenes of each size.
    progress : bool

    Raises
    ------
    ValueError
        If a size is not positive, there is no seed, or the exhaustive pass finds nothing.
    """
    if not sizes or min(sizes) <= 0 or seeds < 1:
        raise ValueError(f"expected sizes above 0 gigapixels and at least 1 seed, got {list(sizes)} and {seeds}")
    least, runs = min(sizes), []
    with Progress(progress) as bars:
        tick = bars.task("scenes")
        first = scenes.make(least, _FIRST_SEED, crowded=True)
        loaded = load_model(model)
        taus, costs, finds = _calibrated(first, loaded)
        rows = [(size, seed) for size in sorted(sizes) for seed in range(seeds)]
        for number, (size, seed) in enumerate(rows):
            tick(number, len(rows))
            scene = scenes.make(size, _SEED + seed)
            runs.append(_measured(scene, model, loaded, size, min(1.0, least / size), taus))
        tick(len(rows), len(rows))
    means, _ = mean_figures(runs)
    sections = [Section(f"least cost, {least:g} gigapixels, {finds:,} finds", costs), Section("scenes", means)]
    parameters = {
        "model": model,
        "sizes": list(sizes),
        "objects": scenes.objects,
        "density": None if scenes.data is None else scenes.density,
        "data": None if scenes.data is None else scenes.data.name,
    }
    notes = [f"number format: {Runtime.choose().name}"]
    return SectionReport("gigapixel", sections, tuple(range(seeds)), parameters, EXPLAINED, notes)


def _calibrated(scene: BenchScene, model: Model) -> tuple[dict[str, float], dict[str, float], int]:
    """Thresholds of our windows by recall, least costs of all methods on the scene, and the exhaustive pass's finds."""
    with open_image(scene.image) as image:
        lookup = SceneLookup(model, image, scene.truth, Runtime.choose())
        if not lookup.reference:
            raise ValueError(f"the exhaustive pass of {model.name} finds nothing in {scene.name}: nothing to compare")
        taus, costs = {}, {}
        for method in methods(lookup, None, seed=0):
            for recall in RECALLS:
                costs[f"{method.name}/{100 * recall:g} %"] = method.least("exhaustive", recall).share
            if method.name == OURS:
                taus = {f"{100 * recall:g} %": tau for recall, tau in _thresholds(lookup, method)}
    return taus, costs, len(lookup.reference)


def _thresholds(lookup: SceneLookup, ours: Method) -> Iterator[tuple[float, float]]:
    """For each recall, the highest threshold of windows that reaches it; by bisection over the windows' scores."""
    _, scores = best_windows(lookup.scan.interest, lookup.model.window, 0.0)
    values = np.unique(scores)
    for recall in RECALLS:
        low, high = 0, len(values)  # the first is taken to reach it
        while high - low > 1:
            middle = (low + high) // 2
            reached = ours.above(_below(values[middle])).recall_exhaustive >= recall
            low, high = (middle, high) if reached else (low, middle)
        yield recall, _below(values[low]) if len(values) else 0.0


def _below(score: np.float32) -> float:
    """The next number below, so that windows with this score are chosen."""
    return float(np.nextafter(score, np.float32(0)))


def _measured(
    scene: BenchScene, model: str, loaded: Model, size: float, share: float, taus: dict[str, float]
) -> dict[str, float]:
    """Figures of one scene, by "size, threshold/column"."""
    path = str(scene.image)
    whole = run_apart("exhaustive", path=path, model=model, share=share)
    reference, labelled = regions_from(whole["regions"]), Labelled(scene.truth, loaded)
    figures: dict[str, float] = {}
    runs: dict[str, float | None] = {"default": None} | dict(taus)
    for name, tau in runs.items():
        done = run_apart("analysis", path=path, model=model, tau=tau)
        row = _row(done, whole)
        regions = regions_from(done["regions"])
        row["recall"] = against_exhaustive(regions, reference, loaded.geometry.cell)
        row["labels"] = labelled.score(regions).recall
        row |= {"finds": float(len(reference))}
        figures |= {f"{size:g} Gpx, {name}/{column}": v for column, v in row.items() if not math.isnan(v)}
    figures |= {f"{size:g} Gpx, exhaustive/seconds": whole["seconds"], f"{size:g} Gpx, exhaustive/sampled": share}
    if "peak" in whole:
        figures[f"{size:g} Gpx, exhaustive/peak_mb"] = whole["peak"] / 1e6
    return figures


def _row(done: dict[str, Any], whole: dict[str, Any]) -> dict[str, float]:
    found = {
        "saving_macs": done["exhaustive_macs"] / done["macs"],
        "saving_seconds": whole["seconds"] / done["seconds"],
        "saving_bytes": whole["bytes"] / max(done["bytes"], 1),
        "seconds": done["seconds"],
        "decoded_mb": done["bytes"] / 1e6,
    }
    return found | ({"peak_mb": done["peak"] / 1e6} if "peak" in done else {})
