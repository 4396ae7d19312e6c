"""One model on one scene that it has not seen: ours and the rivals, what they cost and what they find."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coarse2fine.bench.audit import audit_runs
from coarse2fine.bench.cover import chunk_count, chunks_touched, stored_whole
from coarse2fine.bench.data import BenchScene
from coarse2fine.bench.lookup import Point, Trial
from coarse2fine.bench.methods import OURS, Method, methods
from coarse2fine.bench.probe import Probe
from coarse2fine.bench.results import (
    DEFAULT,
    EXHAUSTIVE,
    METHODS,
    RECALLS,
    AuditRun,
    Curve,
    Outcome,
    SceneFacts,
    at,
    fixed_at,
)
from coarse2fine.bench.score import against_exhaustive
from coarse2fine.bench.sweep import Reference
from coarse2fine.engine import analyze
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.cost import Cost
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.opening import ImageSource, open_image

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_REFERENCES: tuple[Reference, ...] = ("exhaustive", "labels")
_TIMED_RUNS = 3
_CHECKED_SHARE = 0.1


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model on one scene.

    Parameters
    ----------
    facts : SceneFacts
    outcomes : tuple of Outcome
    curves : tuple of Curve
    audits : tuple of AuditRun
    notes : tuple of str
        What could not be measured.
    """

    facts: SceneFacts
    outcomes: tuple[Outcome, ...]
    curves: tuple[Curve, ...]
    audits: tuple[AuditRun, ...]
    notes: tuple[str, ...]


def measure(
    model: Model,
    scene: BenchScene,
    seed: int,
    *,
    budgets: Sequence[float] = BUDGETS,
    probe: Probe | None = None,
    tick: Tick | None = None,
) -> Measurement:
    """Measure one model on one scene it has not seen.

    Parameters
    ----------
    model : Model
        A "detect" model.
    scene : BenchScene
    seed : int
        Of the random rivals.
    budgets : sequence of float
        Shares of the exhaustive pass's multiply-adds, each below 1.
    probe : Probe, optional
        The rival that was fitted on the scenes that the model was fitted on; left out where there is none.
    tick : callable, optional
        Called with steps done and steps in all.

    Raises
    ------
    ValueError
        If the model is of another kind.
    """
    if model.task != "detect":
        raise ValueError(
            f"this benchmark compares with labels: expected a detect model, got {model.name} ({model.task})"
        )
    total, done = 3 + len(METHODS) - (probe is None), 0

    def step() -> None:
        nonlocal done
        done += 1
        if tick:
            tick(done, total)

    with open_image(scene.image) as image:
        # This also decodes the image and warms the nets up, so that no timed run pays for it.
        trial = Trial(model, image, scene.truth, Runtime.choose())
        step()
        timed = _timed(trial, scene)
        agreement, notes = _check(trial, scene.name)
        step()
        about = _About(scene.name, seed, _Rates(timed[DEFAULT].cost, timed[EXHAUSTIVE].cost))
        outcomes = [about.measured(trial, key, analysis) for key, analysis in timed.items()]
        curves = []
        fixed: dict[str, float] = {}
        for method in methods(trial, probe, seed):
            if method.name == OURS:
                found = list(_fixed(method, model, about))
                fixed = {o.key: o.recall_exhaustive for o in (*found, outcomes[0])}
                outcomes += found
            elif trial.reference:
                outcomes += [about.estimated(method, k, method.least("exhaustive", r)) for k, r in fixed.items()]
            outcomes += _least_costs(method, trial, about)
            outcomes += _within_budgets(method, trial, budgets, about)
            if trial.reference:
                curves.append(Curve.of(method.name, scene.name, seed, method.points()))
            step()
        audits = audit_runs(trial, scene.name, seed) if trial.reference else []
        step()
    if not trial.reference:
        notes.append(f"the exhaustive pass found nothing in {scene.name}: no recall against it")
    facts = _facts(trial, scene.name, seed, timed[DEFAULT].cost, agreement)
    return Measurement(facts, tuple(outcomes), tuple(curves), tuple(audits), tuple(notes))


@dataclass(frozen=True)
class _Rates:
    """From two runs that were measured, the seconds of others."""

    default: Cost
    exhaustive: Cost

    def seconds(self, macs: int, scan_macs: int) -> float:
        """Of so many multiply-adds in all: the refine net's at the speed of the measured runs, and all else."""
        default, whole = self.default, self.exhaustive
        macs_known, seconds_known = [0, default.refine_macs], [0.0, default.refine_seconds]
        if whole.refine_macs > default.refine_macs:
            macs_known.append(whole.refine_macs)
            seconds_known.append(whole.refine_seconds)
        refining = float(np.interp(float(macs - scan_macs), np.array(macs_known, float), np.array(seconds_known)))
        looking = default.scan_seconds if scan_macs else 0.0
        return looking + default.choose_seconds + refining + default.conclude_seconds


@dataclass(frozen=True)
class _About:
    """What all outcomes of a scene share."""

    scene: str
    seed: int
    rates: _Rates

    def measured(self, trial: Trial, key: str, analysis: Analysis) -> Outcome:
        cost = analysis.cost
        chunks = chunks_touched(analysis.plan, trial.model, trial.image)
        point = Point(cost.share, cost.cells_refined / cost.cells, chunks, trial.score(analysis.regions))
        return Outcome.of(OURS, key, self.scene, self.seed, point, cost.seconds, measured=True)

    def estimated(self, method: Method, key: str, point: Point) -> Outcome:
        macs = round(point.share * self.rates.default.exhaustive_macs)
        seconds = self.rates.seconds(macs, method.scan_macs)
        return Outcome.of(method.name, key, self.scene, self.seed, point, seconds, measured=False)


def _timed(trial: Trial, scene: BenchScene) -> dict[str, Analysis]:
    """Ours at its default and the exhaustive pass, the public way, in turn; of each the run of median time."""
    runs: dict[str, list[Analysis]] = {DEFAULT: [], EXHAUSTIVE: []}
    # An image that is stored in chunks is opened anew, so that each run decodes what it needs.
    source = trial.image if stored_whole(trial.image) else scene.image
    for _ in range(_TIMED_RUNS):
        for key, budget in ((DEFAULT, None), (EXHAUSTIVE, 1.0)):
            analysis = _analyzed(trial, source, budget)
            if analysis.image is not trial.image:
                analysis.image.close()
            runs[key].append(analysis)
    return {key: sorted(found, key=lambda a: a.cost.seconds)[_TIMED_RUNS // 2] for key, found in runs.items()}


def _analyzed(trial: Trial, source: ImageSource, budget: float | None) -> Analysis:
    """A real run, without audit.

    Raises
    ------
    ImageError
        If something could not be read: then it is no measurement.
    KeyboardInterrupt
        If it was cut short.
    """
    analysis = analyze(source, trial.model, budget=budget, audit=0)
    if analysis.failures:
        raise ImageError(f"{len(analysis.failures)} part(s) could not be read, the first: {analysis.failures[0]}")
    if not analysis.complete:
        raise KeyboardInterrupt
    return analysis


def _check(trial: Trial, scene: str) -> tuple[float, list[str]]:
    """Share of a real run's finds that are those looked up for the cells that it refined, and a note where not all."""
    budget = trial.scan.macs / trial.exhaustive_macs + _CHECKED_SHARE
    if budget >= 1:
        return float("nan"), []
    analysis = _analyzed(trial, trial.image, budget)
    real, known = analysis.regions, trial.regions(trial.within(analysis.refined))
    if not real and not known:
        return 1.0, []
    cell = trial.model.geometry.cell
    share = min(np.nan_to_num(against_exhaustive(a, b, cell)) for a, b in ((real, known), (known, real)))
    note = f"{scene}: a real run found {len(real):,}, its look-up {len(known):,}; {share:.2%} are the same (rounding)"
    return float(share), [] if share == 1 else [note]


def _fixed(ours: Method, model: Model, about: _About) -> Iterator[Outcome]:
    """Ours at the thresholds that fitting has set for some recalls."""
    for recall, tau in model.provenance.get("taus", {}).items():
        yield about.estimated(ours, fixed_at(float(recall)), ours.above(tau))


def _least_costs(method: Method, trial: Trial, about: _About) -> Iterator[Outcome]:
    """The least cost of each recall, of the exhaustive pass's finds and of the labels that it finds."""
    for reference in _REFERENCES:
        most = getattr(trial.whole, reference)
        if most > 0:
            for recall in RECALLS:
                yield about.estimated(method, at(reference, recall), method.least(reference, recall * most))


def _within_budgets(method: Method, trial: Trial, budgets: Sequence[float], about: _About) -> Iterator[Outcome]:
    for budget in budgets:
        point = method.within(int(budget * trial.exhaustive_macs))
        if point is not None:
            yield about.estimated(method, f"{budget:.2f}", point)


def _facts(trial: Trial, scene: str, seed: int, default: Cost, agreement: float) -> SceneFacts:
    image = trial.image
    return SceneFacts(
        scene=scene,
        seed=seed,
        megapixels=image.height * image.width / 1e6,
        labelled=trial.labelled,
        finds=len(trial.reference),
        label_recall=trial.whole.labels,
        label_precision=trial.whole.precision,
        labels_cover=trial.covered_by_labels(),
        finds_cover=trial.covered_by_finds(),
        scan_share=trial.scan.macs / trial.exhaustive_macs,
        chunks_assumed=stored_whole(image),
        chunks_decoded=math.nan if stored_whole(image) else default.chunks / chunk_count(image),
        scan_seconds=default.scan_seconds,
        choose_seconds=default.choose_seconds,
        refine_seconds=default.refine_seconds,
        conclude_seconds=default.conclude_seconds,
        agreement=agreement,
    )
