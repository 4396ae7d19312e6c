"""Audits on a scene with looked-up refinements: their cost, and whether their confidence statements hold."""

from __future__ import annotations

from collections.abc import Callable

from coarse2fine.audit.blocks import AuditState
from coarse2fine.audit.result import Audited
from coarse2fine.audit.survey import survey
from coarse2fine.band_run import BandRun
from coarse2fine.bench.lookup import SceneLookup
from coarse2fine.bench.results import SAMPLE, AuditRun
from coarse2fine.config import AUDIT, Config
from coarse2fine.steps.checkpoint import Checkpoint, Looked
from coarse2fine.steps.choose import choose
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import Refinement

TARGETS = (0.9, 0.95)
CONFIDENCE = 0.95
AUDIT_SEEDS = 10


def audit_runs(lookup: SceneLookup, scene: str, seed: int) -> list[AuditRun]:
    """Audit the model's default windows, `AUDIT_SEEDS` times for each recall to certify and for the default sample.

    Parameters
    ----------
    lookup : SceneLookup
        For a scene in which the exhaustive pass finds something.
    scene : str
    seed : int
    """
    model, interest = lookup.model, lookup.scan.interest
    plan = choose(interest, model.window, window_macs=model.window_macs, tau=model.tau)
    fine = lookup.refine(plan)
    state = AuditState(model, interest, plan.covered(), fine.candidates, model.threshold, lookup.refine)
    spent = lookup.scan.macs + fine.macs
    sample = int(AUDIT * lookup.exhaustive_macs)
    runs = []
    for draw in range(AUDIT_SEEDS):
        for recall in TARGETS:
            audited, before = _certified(lookup, recall, draw)
            runs.append(_run(lookup, audited, before, f"{recall:g}", scene, seed, draw))
        audited = survey(state, sample, confidence=CONFIDENCE, seed=draw, if_telling=True)
        runs.append(_run(lookup, audited, spent, SAMPLE, scene, seed, draw))
    return runs


class _Known(Checkpoint):
    """A checkpoint that holds the scan and the refinement of any windows, from a look-up."""

    def __init__(self, lookup: SceneLookup) -> None:
        self._lookup = lookup

    def scan_or_load(self, look: Callable[[], Looked]) -> Looked:  # noqa: ARG002
        return self._lookup.scan, None

    def refine_or_load(self, plan: Plan, refine: Callable[[Plan], Refinement]) -> Refinement:  # noqa: ARG002
        return self._lookup.refine(plan)


def _certified(lookup: SceneLookup, recall: float, draw: int) -> tuple[Audited, int]:
    """The audit of an analysis that certifies a recall, and the multiply-adds spent before it."""
    config = Config(recall=recall, confidence=CONFIDENCE, seed=draw)
    run = BandRun(lookup.image, lookup.model, config, _Known(lookup))
    scan, read = run.look(None)
    plan = run.choose(scan)
    fine = run.refine(plan, read)
    return run.audit(scan, plan, fine, read), scan.macs + fine.macs + run.pilot.macs


def _run(lookup: SceneLookup, audited: Audited, spent: int, kind: str, scene: str, seed: int, draw: int) -> AuditRun:
    recall = lookup.quality(lookup.regions(audited.candidates)).recall_exhaustive
    audit, share = audited.audit, (spent + audited.macs) / lookup.exhaustive_macs
    least, most = audit.recall_interval
    held = least - 1e-9 <= recall <= most + 1e-9
    return AuditRun(kind, scene, seed, draw, share, recall, least, most, held, reported=audit.recall == audit.recall)
