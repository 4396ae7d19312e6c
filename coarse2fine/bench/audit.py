"""Certifications and samples, with what refining finds looked up: what they cost, and whether what they say is true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coarse2fine.audit import Audited, survey
from coarse2fine.bench.results import SAMPLE, AuditRun
from coarse2fine.bench.trial import Trial
from coarse2fine.blocks import Standing
from coarse2fine.budget import AUDIT
from coarse2fine.certify import certify
from coarse2fine.models.heads import Candidates
from coarse2fine.pilot import MOST_OVER, Pilot, affordable, scan_pays
from coarse2fine.select import Plan, choose, dense_plan

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
    standing = Standing(model, interest, plan.covered(), fine.candidates, model.threshold, trial.refine)
    spent = trial.scan.macs + fine.macs
    sample = int(AUDIT * trial.exhaustive_macs)
    runs = []
    for draw in range(AUDIT_SEEDS):
        for recall in TARGETS:
            audited, before = _certified(trial, plan, recall, draw)
            runs.append(_run(trial, audited, before, f"{recall:g}", scene, seed, draw))
        audited = survey(standing, sample, confidence=CONFIDENCE, seed=draw, if_telling=True)
        runs.append(_run(trial, audited, spent, SAMPLE, scene, seed, draw))
    return runs


def _certified(trial: Trial, plan: Plan, recall: float, draw: int) -> tuple[Audited, int]:
    """What an analysis towards a recall does, and what it spends before the audit."""
    model, shape = trial.model, plan.cell_shape
    dense = dense_plan(shape)
    whole = dense.macs(model.window_macs)
    bare = Standing(
        model, np.zeros(shape, np.float32), np.zeros(shape, bool), Candidates.empty(), model.threshold, trial.refine
    )
    pilot = Pilot.draw(bare, whole, recall, confidence=CONFIDENCE, seed=draw)
    spent = 0 if pilot is None else pilot.macs
    if not scan_pays(pilot, trial.scan.macs, whole):
        towards = dense
    else:
        spent += trial.scan.macs
        towards = affordable(plan, pilot, spent, dense, model.window_macs)
    fine = trial.refine(towards)
    spent += fine.macs
    at = replace(bare, interest=trial.scan.interest).with_more(fine.candidates, towards.covered())
    at = at if pilot is None else at.with_more(pilot.candidates, pilot.covered)
    left = int(MOST_OVER * whole) - spent
    return certify(at, recall, confidence=CONFIDENCE, seed=draw, most_macs=left), spent


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
