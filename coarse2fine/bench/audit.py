"""Certifications and samples, with what refining finds looked up: what they cost, and whether what they say is true."""

from __future__ import annotations

from collections.abc import Callable

from coarse2fine.analysis_run import AnalysisRun
from coarse2fine.audit.blocks import AuditState
from coarse2fine.audit.result import Audited
from coarse2fine.audit.survey import survey
from coarse2fine.bench.lookup import Trial
from coarse2fine.bench.results import SAMPLE, AuditRun
from coarse2fine.config import AUDIT, Config
from coarse2fine.steps.checkpoint import Checkpoint, Looked
from coarse2fine.steps.choose import choose
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import Refinement

TARGETS = (0.9, 0.95)
CONFIDENCE = 0.95
AUDIT_SEEDS = 10


def audit_runs(trial: Trial, scene: str, seed: int) -> list[AuditRun]:
    """Audit the model's default windows, several times for each recall to certify and for the usual sample.

    Parameters
    ----------
    trial : Trial
        Of a scene in which the exhaustive pass finds something.
    scene : str
    seed : int
    """
    model, interest = trial.model, trial.scan.interest
    plan = choose(interest, model.window, window_macs=model.window_macs, tau=model.tau)
    fine = trial.refine(plan)
    standing = AuditState(model, interest, plan.covered(), fine.candidates, model.threshold, trial.refine)
    spent = trial.scan.macs + fine.macs
    sample = int(AUDIT * trial.exhaustive_macs)
    runs = []
    for draw in range(AUDIT_SEEDS):
        for recall in TARGETS:
            audited, before = _certified(trial, recall, draw)
            runs.append(_run(trial, audited, before, f"{recall:g}", scene, seed, draw))
        audited = survey(standing, sample, confidence=CONFIDENCE, seed=draw, if_telling=True)
        runs.append(_run(trial, audited, spent, SAMPLE, scene, seed, draw))
    return runs


class _Known(Checkpoint):
    """A scan that was made, and what windows find, looked up."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def looked(self, look: Callable[[], Looked]) -> Looked:  # noqa: ARG002
        return self._trial.scan, None

    def refined(self, plan: Plan, refine: Callable[[Plan], Refinement]) -> Refinement:  # noqa: ARG002
        return self._trial.refine(plan)


def _certified(trial: Trial, recall: float, draw: int) -> tuple[Audited, int]:
    """An analysis towards a recall, and what it spends before the audit."""
    config = Config(recall=recall, confidence=CONFIDENCE, seed=draw)
    run = AnalysisRun(trial.image, trial.model, config, _Known(trial))
    scan, read = run.look(None)
    plan = run.choose(scan)
    fine = run.refine(plan, read)
    return run.audit(scan, plan, fine, read), scan.macs + fine.macs + run.pilot.macs


def _run(trial: Trial, audited: Audited, spent: int, kind: str, scene: str, seed: int, draw: int) -> AuditRun:
    recall = trial.score(trial.regions(audited.candidates)).exhaustive
    audit = audited.audit
    least, most = audit.recall_interval
    return AuditRun(
        kind=kind,
        scene=scene,
        seed=seed,
        audit_seed=draw,
        share=(spent + audited.macs) / trial.exhaustive_macs,
        recall=recall,
        least=least,
        most=most,
        held=least - 1e-9 <= recall <= most + 1e-9,
        told=audit.recall == audit.recall,
    )
