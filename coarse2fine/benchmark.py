"""Benchmarks: what choosing where to look saves, and what it misses, beside the trivial rivals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench_data import BenchScene, Split, digit_split, load_scenes, named, splits
from coarse2fine.bench_report import DEFAULT, EXHAUSTIVE, Outcome, Report
from coarse2fine.bench_rivals import RIVALS, TILE_CELLS, filled, gradient_interest, oracle_interest, random_interest
from coarse2fine.bench_score import against_exhaustive, against_labels
from coarse2fine.calibrate import settle
from coarse2fine.conclude import conclude
from coarse2fine.engine import analyze
from coarse2fine.fit import fit
from coarse2fine.model import Model, load_model
from coarse2fine.models.heads import read_detections
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.refine import Fine, refine
from coarse2fine.regions import Region
from coarse2fine.scan import Scan, Tick
from coarse2fine.select import Plan, choose, dense_plan
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

BUDGETS = (0.05, 0.1, 0.2, 0.5)
_TIMED_RUNS = 3


def benchmark_scenes(
    data: Path | None = None,
    *,
    test: Sequence[str] = (),
    folds: int = 4,
    seeds: int = 5,
    steps: int = 1000,
    quick: bool = False,
    model: str | None = None,
    progress: bool = True,
) -> Report:
    """Fit on some scenes; test on the others, on which nothing was chosen, at several budgets, beside trivial rivals.

    Parameters
    ----------
    data : Path, optional
        Folder of images with GeoJSON of the same names beside them; without it, synthetic scenes of digits.
    test : sequence of str
        Names of the test scenes; by default every scene is left out once, in folds.
    folds : int
        At least 2; where there are fewer scenes, each is a fold.
    seeds : int
        How often all of it is done, each time with another seed.
    steps : int
        Optimisation steps of each net.
    quick : bool
        Only the first of the folds.
    model : str, optional
        A fitted model to test instead of fitting any; all scenes are then tested, or those of `test`.
    progress : bool

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError, AnnotationError, ImageError, ModelError, ValueError
        If the data or the model cannot be read, or a parameter does not suit them.
    """
    if seeds < 1:
        raise ValueError(f"expected at least 1 seed, got {seeds}")
    known = None if model is None else load_model(model)
    parts, notes = _parts(data, test, folds, known, quick=quick)
    outcomes: list[Outcome] = []
    for seed in range(seeds):
        for number, part in enumerate(parts):
            title = f"seed {seed + 1}/{seeds}, fold {number + 1}/{len(parts)}"
            fitted = known or _fit(part, title, rotate=data is not None, steps=steps, seed=seed, progress=progress)
            found, missing = _measure_all(fitted, part.test, seed, title, progress=progress)
            outcomes += found
            notes += missing
    return Report(
        outcomes=tuple(outcomes),
        notes=tuple(dict.fromkeys(notes)),
        folds=tuple({"fit": [s.name for s in p.train], "test": [s.name for s in p.test]} for p in parts),
        seeds=tuple(range(seeds)),
        parameters={"data": data and data.name, "model": known and known.name, "steps": steps, "quick": quick},
    )


def _parts(
    data: Path | None, test: Sequence[str], folds: int, known: Model | None, *, quick: bool
) -> tuple[list[Split], list[str]]:
    notes: list[str] = []
    if data is not None:
        scenes, notes = load_scenes(data)
        if known is None:
            return splits(scenes, test, folds)[: 1 if quick else None], notes
        chosen = named(scenes, test) if test else tuple(scenes)
    else:
        if test:
            raise ValueError("test scenes can be named only in a folder of scenes; give one, or name none")
        part = digit_split()
        if known is None:
            return [part], notes
        chosen = part.test
    seen = sorted({s.name for s in chosen} & set(known.provenance.get("scenes", ())))
    if seen:
        notes.append(f"NOT A TEST: {known.name} was fitted on scenes of these names: {', '.join(seen)}")
    return [Split((), chosen)], notes


def _fit(part: Split, title: str, *, rotate: bool, steps: int, seed: int, progress: bool) -> Model:
    return fit(
        [s.image for s in part.train],
        [s.annotations for s in part.train],
        rotate=rotate,
        steps=steps,
        seed=seed,
        name=title,
        progress=progress,
    )


def _measure_all(
    model: Model, scenes: Sequence[BenchScene], seed: int, title: str, *, progress: bool
) -> tuple[list[Outcome], list[str]]:
    outcomes: list[Outcome] = []
    notes: list[str] = []
    with Progress(progress) as bars:
        for scene in scenes:
            found, missing = measure(model, scene, seed, tick=bars.task(f"{title}: {scene.name}"))
            outcomes += found
            notes += missing
    return outcomes, notes


def measure(
    model: Model, scene: BenchScene, seed: int, *, budgets: Sequence[float] = BUDGETS, tick: Tick | None = None
) -> tuple[list[Outcome], list[str]]:
    """Measure one model on one scene it has not seen: ours and the rivals at equal multiply-adds.

    Parameters
    ----------
    model : Model
        A "detect" model.
    scene : BenchScene
    seed : int
        Of the random rivals.
    budgets : sequence of float
        Shares of the exhaustive pass's multiply-adds, each below 1; the exhaustive pass itself and the model's own
        default are measured in any case, and the rivals at what that default spent.
    tick : callable, optional
        Called with runs done and runs in all.

    Returns
    -------
    list of Outcome
    list of str
        Notes on what could not be measured.

    Raises
    ------
    ValueError
        If the model is of another kind.
    """
    if model.task != "detect":
        raise ValueError(
            f"this benchmark compares with labels: expected a detect model, got {model.name} ({model.task})"
        )
    with open_image(scene.image) as image:
        trial = _Trial(model, scene, image, seed)
        total = 2 * _TIMED_RUNS + len(budgets) * (1 + len(RIVALS)) + len(RIVALS)
        done = 0

        def count(outcome: Outcome) -> Outcome:
            nonlocal done
            done += 1
            if tick:
                tick(done, total)
            return outcome

        timed = [[count(trial.ours(None)), count(trial.ours(1.0))] for _ in range(_TIMED_RUNS)]
        default, exhaustive = (_typical(runs) for runs in zip(*timed, strict=True))
        outcomes, notes = [default, exhaustive], []
        spent = round(default.share * trial.exhaustive_macs)
        for budget in budgets:
            if budget * trial.exhaustive_macs < trial.scan_macs:
                notes.append(f"ours at {budget:.2f}: the scan alone costs more on {scene.name}")
            else:
                outcomes.append(count(trial.ours(budget)))
        limits = {f"{b:.2f}": int(b * trial.exhaustive_macs) for b in budgets} | {DEFAULT: spent}
        outcomes += [count(trial.rival(name, key, macs)) for key, macs in limits.items() for name in RIVALS]
    if not trial.reference:
        notes.append(f"the exhaustive pass found nothing in {scene.name}: no recall against it")
    return outcomes, notes


def _typical(runs: Sequence[Outcome]) -> Outcome:
    """The run of median time among several that are otherwise equal."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


@dataclass(frozen=True)
class _Spent:
    """What a run cost: share of the cells refined, share of the exhaustive pass's multiply-adds, seconds."""

    refined: float
    share: float
    seconds: float


def _check(*, complete: bool, failures: Sequence[str]) -> None:
    """A run that was cut short, or that could not read all, is no measurement."""
    if failures:
        raise ImageError(f"{len(failures)} window(s) could not be read, the first: {failures[0]}")
    if not complete:
        raise KeyboardInterrupt


class _Trial:
    """One model on one scene: runs ours or a rival, and scores what comes out.

    Attributes
    ----------
    reference : tuple of Region
        What the exhaustive pass finds.
    exhaustive_macs, scan_macs : int
        Multiply-adds of the exhaustive pass and of our scan.
    """

    def __init__(self, model: Model, scene: BenchScene, image: Image, seed: int) -> None:
        self._model, self._scene, self._image, self._seed = model, scene, image, seed
        self._runtime = Runtime.choose()
        self._read = partial(read_detections, floor=model.threshold)
        self._cell_shape = model.cell_shape((image.height, image.width))
        self.exhaustive_macs = model.exhaustive_macs(self._cell_shape)
        self.scan_macs = 0
        # This also decodes the image and warms the nets up, so that no timed run pays for it.
        fine, self.reference = self._refined(dense_plan(self._cell_shape))
        finds = settle(fine.candidates, model)
        self._cells: NDArray[np.int64] = finds.cells.astype(np.int64) // model.geometry.fine
        self._interest: dict[str, Callable[[], NDArray[np.float32]]] = {
            "random": lambda: random_interest(self._cell_shape, seed),
            "gradient": lambda: gradient_interest(image, model),
            "mask": lambda: filled(image, model) * random_interest(self._cell_shape, seed),
            "tiles": lambda: filled(image, model).astype(np.float32),
            "oracle": lambda: oracle_interest(self._cells, self._cell_shape),
        }

    def ours(self, budget: float | None) -> Outcome:
        """The public way, at a budget or at the model's own default."""
        analysis = analyze(self._image, self._model, budget=budget)
        _check(complete=analysis.complete, failures=analysis.failures)
        cost = analysis.cost
        if budget is None:
            self.scan_macs = cost.scan_macs
        key = DEFAULT if budget is None else EXHAUSTIVE if budget >= 1 else f"{budget:.2f}"
        spent = _Spent(cost.cells_refined / cost.cells, cost.share, cost.seconds)
        return self._outcome("ours", key, analysis.regions, spent)

    def rival(self, name: str, key: str, macs: int) -> Outcome:
        """A rival's interest, through the same windows and the same refine net, for so many multiply-adds in all."""
        model = self._model
        start = time.perf_counter()
        window = TILE_CELLS if name == "tiles" else model.window
        plan = choose(self._interest[name](), window, window_macs=model.window_macs, budget_macs=macs)
        fine, regions = self._refined(plan)
        seconds = time.perf_counter() - start
        spent = _Spent(float(plan.covered().mean()), fine.macs / self.exhaustive_macs, seconds)
        return self._outcome(name, key, regions, spent)

    def _refined(self, plan: Plan) -> tuple[Fine, tuple[Region, ...]]:
        """What `analyze` does with a plan."""
        fine = refine(self._image, plan, self._model, self._read, self._runtime)
        _check(complete=len(fine.done) == len(plan), failures=fine.failures)
        return fine, conclude(fine.candidates, self._model, Scan.none(), self._image, self._model.threshold)

    def _outcome(self, method: str, key: str, regions: Sequence[Region], spent: _Spent) -> Outcome:
        labels = against_labels(regions, self._scene.truth, self._model)
        return Outcome(
            method=method,
            budget=key,
            scene=self._scene.name,
            seed=self._seed,
            recall_exhaustive=against_exhaustive(regions, self.reference, self._model.geometry.cell),
            recall_labels=labels.recall,
            precision_labels=labels.precision,
            refined=spent.refined,
            share=spent.share,
            seconds=spent.seconds,
        )
