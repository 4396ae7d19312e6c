"""Measurement of one model on one held-out scene: cost and quality of our method and the rivals (baselines)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coarse2fine.bench.audit import audit_runs
from coarse2fine.bench.cover import chunk_count, chunks_touched, stored_whole
from coarse2fine.bench.data import BenchScene
from coarse2fine.bench.lookup import SceneLookup
from coarse2fine.bench.methods import OURS, Method, Reference, methods
from coarse2fine.bench.probe import Probe
from coarse2fine.bench.results import (
    DEFAULT,
    EXHAUSTIVE,
    METHODS,
    RECALLS,
    Measurement,
    Outcome,
    Point,
    RecallCurve,
    SceneFacts,
)
from coarse2fine.bench.score import against_exhaustive, object_boxes
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


def measure(
    model: Model,
    scene: BenchScene,
    seed: int,
    *,
    budgets: Sequence[float] = BUDGETS,
    probe: Probe | None = None,
    tick: Tick | None = None,
) -> Measurement:
    """Measure one model on one held-out scene.

    Parameters
    ----------
    model : Model
        A "detect" model.
    scene : BenchScene
    seed : int
        For the random rivals.
    budgets : sequence of float
        Shares of the exhaustive pass's multiply-adds, each below 1.
    probe : Probe, optional
        The rival that learns, fitted on the same scenes as the model; left out if None.
    tick : callable, optional
        Called with steps done and steps in all.

    Raises
    ------
    ValueError
        If the model learns from each image.
    """
    if model.refiner.learns:
        raise ValueError(
            f"this benchmark compares with labels: expected a detect model, got {model.name} ({model.refiner.kind})"
        )
    total, done = 3 + len(METHODS) - (probe is None), 0

    def step() -> None:
        nonlocal done
        done += 1
        if tick:
            tick(done, total)

    with open_image(scene.image) as image:
        # This also decodes the image and warms up the nets, so that no timed run includes either.
        lookup = SceneLookup(model, image, scene.truth, Runtime.choose())
        step()
        timed = _timed(lookup, scene)
        agreement, notes = _check(lookup, scene.name)
        step()
        recorder = _Recorder(lookup, scene.name, seed, timed[DEFAULT].cost, timed[EXHAUSTIVE].cost)
        outcomes = [recorder.measured(key, analysis) for key, analysis in timed.items()]
        curves = []
        fixed: dict[str, float] = {}
        for method in methods(lookup, probe, seed):
            if method.name == OURS:
                found = [
                    recorder.estimated(method, f"fixed@{float(recall):g}", method.above(tau))
                    for recall, tau in model.provenance.get("taus", {}).items()
                ]
                fixed = {o.key: o.recall_exhaustive for o in (*found, outcomes[0])}
                outcomes += found
            elif lookup.reference:
                outcomes += [recorder.estimated(method, k, method.least("exhaustive", r)) for k, r in fixed.items()]
            outcomes += recorder.swept(method, budgets)
            if lookup.reference:
                curves.append(RecallCurve.of(method.name, method.points()))
            step()
        audits = audit_runs(lookup, scene.name, seed) if lookup.reference else []
        step()
    if not lookup.reference:
        notes.append(f"the exhaustive pass found nothing in {scene.name}: no recall against it")
    return Measurement(recorder.facts(agreement), tuple(outcomes), tuple(curves), tuple(audits), tuple(notes))


@dataclass(frozen=True)
class _Recorder:
    """Outcomes on one scene; seconds of look-ups are estimated from the costs of two measured runs."""

    lookup: SceneLookup
    scene: str
    seed: int
    default: Cost
    exhaustive: Cost

    def measured(self, key: str, analysis: Analysis) -> Outcome:
        cost, lookup = analysis.cost, self.lookup
        point = Point(
            **vars(lookup.quality(analysis.regions)),
            refined=cost.cells_refined / cost.cells,
            chunks=chunks_touched(analysis.plan, lookup.model, lookup.image),
            share=cost.share,
        )
        return Outcome(**vars(point), **self._named(OURS, key), seconds=cost.seconds, measured=True)

    def estimated(self, method: Method, key: str, point: Point) -> Outcome:
        """Outcome with seconds interpolated: those of the refiner by multiply-adds, the rest from the default run."""
        default, whole = self.default, self.exhaustive
        macs, seconds = [0, default.refine_macs], [0.0, default.refine_seconds]
        if whole.refine_macs > default.refine_macs:
            macs.append(whole.refine_macs)
            seconds.append(whole.refine_seconds)
        spent = round(point.share * default.exhaustive_macs) - method.scan_macs
        refining = float(np.interp(float(spent), np.array(macs, float), np.array(seconds)))
        taken = (default.scan_seconds if method.scan_macs else 0.0) + default.choose_seconds
        taken += refining + default.conclude_seconds
        return Outcome(**vars(point), **self._named(method.name, key), seconds=taken, measured=False)

    def swept(self, method: Method, budgets: Sequence[float]) -> Iterator[Outcome]:
        """Outcomes at the least cost of each recall, against both references, and within each budget."""
        for reference in _REFERENCES:
            most = getattr(self.lookup.whole, f"recall_{reference}")
            for recall in RECALLS if most > 0 else ():
                point = method.least(reference, recall * most)
                yield self.estimated(method, f"{reference}@{recall:g}", point)
        for budget in budgets:
            within = method.within(int(budget * self.lookup.exhaustive_macs))
            if within is not None:
                yield self.estimated(method, f"{budget:.2f}", within)

    def facts(self, agreement: float) -> SceneFacts:
        lookup, image, default = self.lookup, self.lookup.image, self.default
        return SceneFacts(
            scene=self.scene,
            seed=self.seed,
            megapixels=image.height * image.width / 1e6,
            labelled=len(lookup.truth.objects),
            finds=len(lookup.reference),
            label_recall=lookup.whole.recall_labels,
            label_precision=lookup.whole.precision_labels,
            labels_cover=lookup.covered(object_boxes(lookup.truth, lookup.model)),
            finds_cover=lookup.covered(np.array([r.full_box for r in lookup.reference], np.float64)),
            scan_share=lookup.scan.macs / lookup.exhaustive_macs,
            chunks_assumed=stored_whole(image),
            chunks_decoded=math.nan if stored_whole(image) else default.chunks / chunk_count(image),
            scan_seconds=default.scan_seconds,
            choose_seconds=default.choose_seconds,
            refine_seconds=default.refine_seconds,
            conclude_seconds=default.conclude_seconds,
            agreement=agreement,
        )

    def _named(self, method: str, key: str) -> dict[str, Any]:
        return {"method": method, "key": key, "scene": self.scene, "seed": self.seed}


def _timed(lookup: SceneLookup, scene: BenchScene) -> dict[str, Analysis]:
    """Runs of median time of our default and of the exhaustive pass, interleaved, through `analyze`."""
    runs: dict[str, list[Analysis]] = {DEFAULT: [], EXHAUSTIVE: []}
    # An image stored in chunks is opened again, so that each run decodes its chunks.
    source = lookup.image if stored_whole(lookup.image) else scene.image
    for _ in range(_TIMED_RUNS):
        for key, budget in ((DEFAULT, None), (EXHAUSTIVE, 1.0)):
            analysis = _analyzed(lookup, source, budget)
            if analysis.image is not lookup.image:
                analysis.image.close()
            runs[key].append(analysis)
    return {key: sorted(found, key=lambda a: a.cost.seconds)[_TIMED_RUNS // 2] for key, found in runs.items()}


def _analyzed(lookup: SceneLookup, source: ImageSource, budget: float | None) -> Analysis:
    """A real run without audit; raises ImageError if something was not read, KeyboardInterrupt if it was cut short."""
    analysis = analyze(source, lookup.model, budget=budget, audit=0)
    if analysis.failures:
        raise ImageError(f"{len(analysis.failures)} part(s) could not be read, the first: {analysis.failures[0]}")
    if not analysis.complete:
        raise KeyboardInterrupt
    return analysis


def _check(lookup: SceneLookup, scene: str) -> tuple[float, list[str]]:
    """Agreement of a real run's finds with those looked up for the cells that it refined; a note if below 1."""
    budget = lookup.scan.macs / lookup.exhaustive_macs + _CHECKED_SHARE
    if budget >= 1:
        return float("nan"), []
    analysis = _analyzed(lookup, lookup.image, budget)
    real, found = analysis.regions, lookup.regions(lookup.within(analysis.refined))
    if not real and not found:
        return 1.0, []
    cell = lookup.model.geometry.cell
    share = min(np.nan_to_num(against_exhaustive(a, b, cell)) for a, b in ((real, found), (found, real)))
    note = f"{scene}: a real run found {len(real):,}, its look-up {len(found):,}; {share:.2%} are the same (rounding)"
    return float(share), [] if share == 1 else [note]
