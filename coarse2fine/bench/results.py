"""Results of the scenes benchmark, and the figures computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

DEFAULT, EXHAUSTIVE, SAMPLE = "default", "1.00", "sample"
RECALLS = (0.9, 0.95, 0.99)
MEASURES = ("recall_exhaustive", "recall_labels", "precision_labels", "refined", "chunks", "share")
METHODS = {
    "ours": "scan, then windows where its features fire",
    "probe": "logistic regression on pixel statistics",
    "gradient": "largest Laplacian first",
    "mask": "non-empty cells (Otsu) in random order",
    "tiles": "windows of 32 x 32 cells, the least empty first",
    "random": "cells in random order",
    "oracle": "the exhaustive pass's own finds",
}
_CURVE_POINTS = 300
_TRIVIAL = tuple(name for name in METHODS if name not in ("ours", "oracle"))


@dataclass(frozen=True)
class Quality:
    """Recall and precision of a set of finds.

    Parameters
    ----------
    recall_exhaustive : float
        Share of the exhaustive pass's finds that were found; NaN if it found none.
    recall_labels, precision_labels : float
        Against the labels; NaN if there are no objects, or no finds.
    """

    recall_exhaustive: float
    recall_labels: float
    precision_labels: float


@dataclass(frozen=True)
class Point(Quality):
    """Cost and quality of the windows of a plan.

    Parameters
    ----------
    refined : float
        Share of the cells that were refined.
    chunks : float
        Share of the stored chunks of full resolution that the windows touch with their halos.
    share : float
        Multiply-adds in all, scan and halos included, as a share of the exhaustive pass's.
    """

    refined: float
    chunks: float
    share: float


@dataclass(frozen=True)
class Outcome(Point):
    """One method on one scene, at one cost.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    key : str
        Rule that set the cost. "0.10": a share of the exhaustive pass's. "1.00": the exhaustive pass. "default",
        "fixed@0.95": the model's own threshold, or the one calibrated for a recall in fitting; for a rival, the least
        cost at the recall that ours reached with it. "exhaustive@0.95", "labels@0.95": the least cost of that recall,
        of the exhaustive pass's finds, or of the labels that it finds.
    scene : str
    seed : int
    seconds : float
        Wall-clock time.
    measured : bool
        Whether `seconds` was measured; otherwise it is estimated from measured runs.
    """

    method: str
    key: str
    scene: str
    seed: int
    seconds: float
    measured: bool


@dataclass(frozen=True)
class RecallCurve:
    """Recall of the exhaustive pass's finds against cost, for one method on one scene.

    Parameters
    ----------
    method : str
    share, recall : tuple of float
        Increasing costs, and the highest recall up to each.
    """

    method: str
    share: tuple[float, ...]
    recall: tuple[float, ...]

    @classmethod
    def of(cls, method: str, sweeps: Sequence[Sequence[Point]]) -> RecallCurve:
        """The best of several sweeps at each cost, with linear interpolation between points."""
        share = np.unique([p.share for points in sweeps for p in points])
        recall = np.zeros(len(share))
        for points in sweeps:
            x, y = np.array(sorted((p.share, p.recall_exhaustive) for p in points)).T
            recall = np.maximum(recall, np.interp(share, x, y, left=0.0))
        return cls(method, tuple(share.tolist()), tuple(np.maximum.accumulate(recall).tolist()))

    def within(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Recall at each cost, by linear interpolation; NaN below the first point."""
        return np.interp(shares, self.share, self.recall, left=np.nan)


def mean_curve(curves: Sequence[RecallCurve]) -> dict[str, NDArray[np.float64]]:
    """Mean of several curves of one method at costs where all are defined: "share", "recall" and "sd", each (n,).

    Costs run from 0.1 % of the exhaustive pass's to the largest of any curve; "sd" of a single curve is 0.
    """
    end = max(c.share[-1] for c in curves)
    share = np.append(np.geomspace(1e-3, end, _CURVE_POINTS)[:-1], end)
    recall = np.stack([c.within(share) for c in curves])
    there = ~np.isnan(recall).any(axis=0)
    recall = recall[:, there]
    sd = recall.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(recall.shape[1])
    return {"share": share[there], "recall": recall.mean(axis=0), "sd": sd}


@dataclass(frozen=True)
class SceneFacts:
    """Properties of a scene, and of a model's runs on it.

    Parameters
    ----------
    scene : str
    seed : int
    megapixels : float
    labelled, finds : int
        Numbers of labelled objects, and of the exhaustive pass's finds.
    label_recall, label_precision : float
        Recall and precision of the exhaustive pass against the labels.
    labels_cover, finds_cover : float
        Share of the squares of 16 x 16 pixels that labelled objects, or the finds, touch.
    scan_share : float
        Multiply-adds of the scan as a share of the exhaustive pass's.
    chunks_assumed : bool
        Whether the image is stored whole, so that chunks of 256 x 256 pixels are assumed.
    chunks_decoded : float
        Chunks that the measured run at the model's default decoded, repeats included, per chunk stored at full
        resolution; NaN if the image is stored whole.
    scan_seconds, choose_seconds, refine_seconds, conclude_seconds : float
        Wall-clock times of that run's steps.
    agreement : float
        Share of a real run's finds that equal the looked-up ones; NaN without such a run.
    """

    scene: str
    seed: int
    megapixels: float
    labelled: int
    finds: int
    label_recall: float
    label_precision: float
    labels_cover: float
    finds_cover: float
    scan_share: float
    chunks_assumed: bool
    chunks_decoded: float
    scan_seconds: float
    choose_seconds: float
    refine_seconds: float
    conclude_seconds: float
    agreement: float


@dataclass(frozen=True)
class AuditRun:
    """One audit of one scene.

    Parameters
    ----------
    kind : str
        The recall to certify, such as "0.95", or "sample" for the random sample of an analysis that has no limit.
    scene : str
    seed, audit_seed : int
        Seed of the benchmark's run, and seed of the audit's random choices.
    share : float
        Multiply-adds in all, audit included, as a share of the exhaustive pass's.
    recall : float
        Share of the exhaustive pass's finds that were found after the audit.
    least, most : float
        Bounds on `recall` that the audit states.
    held : bool
        Whether `recall` lies within them.
    reported : bool
        Whether the audit stated bounds: with too few finds a sample is not informative, and none is drawn.
    """

    kind: str
    scene: str
    seed: int
    audit_seed: int
    share: float
    recall: float
    least: float
    most: float
    held: bool
    reported: bool


@dataclass(frozen=True)
class Measurement:
    """Measurements of one model on one scene, with notes."""

    facts: SceneFacts
    outcomes: tuple[Outcome, ...]
    curves: tuple[RecallCurve, ...]
    audits: tuple[AuditRun, ...]
    notes: tuple[str, ...]


def mean(name: str, values: Iterable[float]) -> dict[str, float]:
    """Mean of the defined values, and standard deviation, "..._sd", of two or more; empty if none is defined."""
    defined = [v for v in values if not math.isnan(v)]
    if not defined:
        return {}
    spread = {f"{name}_sd": float(np.std(defined, ddof=1))} if len(defined) > 1 else {}
    return {name: float(np.mean(defined))} | spread


def outcome_figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means by name, such as "ours/0.10/recall_exhaustive", and their standard deviations.

    "times_fewer" is one over the mean share; "best_rival/KEY/share" is the least mean share among the trivial rivals.
    "ours/default/times_faster" and "times_fewer_macs" compare with the exhaustive pass, halo included, on the same
    scene; times are medians of interleaved runs.
    """
    figures: dict[str, float] = {}
    table: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        table.setdefault((outcome.method, outcome.key), []).append(outcome)
    for (method, key), found in table.items():
        name = f"{method}/{key}"
        for measure in MEASURES:
            figures |= mean(f"{name}/{measure}", [getattr(o, measure) for o in found])
        seconds = "seconds" if all(o.measured for o in found) else "seconds_estimated"
        figures |= mean(f"{name}/{seconds}", [o.seconds for o in found])
        if figures[f"{name}/share"] > 0:
            figures[f"{name}/times_fewer"] = 1 / figures[f"{name}/share"]
    for key in {key for _, key in table if "@" in key or key == DEFAULT}:
        rival = best_rival(figures, key)
        if rival is not None:
            figures[f"best_rival/{key}/share"] = figures[f"{rival}/{key}/share"]
    own, whole = ({(o.scene, o.seed): o for o in table.get(("ours", key), ())} for key in (DEFAULT, EXHAUSTIVE))
    figures |= mean(f"ours/{DEFAULT}/times_faster", [whole[k].seconds / own[k].seconds for k in own])
    return figures | mean(f"ours/{DEFAULT}/times_fewer_macs", [whole[k].share / own[k].share for k in own])


def audit_figures(audits: Sequence[AuditRun]) -> dict[str, float]:
    """Figures of each kind of audit, such as "certified@0.95/held" (share of runs whose bounds held)."""
    figures: dict[str, float] = {}
    for kind in dict.fromkeys(a.kind for a in audits):
        name = audit_name(kind)
        found = [a for a in audits if a.kind == kind]
        reported = [a for a in found if a.reported]
        figures |= {f"{name}/runs": float(len(found)), f"{name}/reported": len(reported) / len(found)}
        figures |= mean(f"{name}/share", [a.share for a in found])
        figures |= mean(f"{name}/recall", [a.recall for a in found])
        figures[f"{name}/recall_least"] = min(a.recall for a in found)
        figures |= {} if not reported else {f"{name}/held": float(np.mean([a.held for a in reported]))}
        figures |= mean(f"{name}/least_stated", [a.least for a in reported])
        figures |= mean(f"{name}/most_stated", [a.most for a in reported])
    return figures


def audit_name(kind: str) -> str:
    """Name of a kind of audit in the figures."""
    return SAMPLE if kind == SAMPLE else f"certified@{kind}"


def scene_figures(facts: Sequence[SceneFacts]) -> dict[str, float]:
    """Means over scenes and seeds of the properties of scenes, such as "scenes/finds_cover"."""
    measures = [f.name for f in fields(SceneFacts) if f.name not in ("scene", "seed", "chunks_assumed")]
    return {k: v for m in measures for k, v in mean(f"scenes/{m}", [getattr(f, m) for f in facts]).items()}


def best_rival(figures: Mapping[str, float], key: str) -> str | None:
    """Name of the trivial rival with the least mean share."""
    shares = {m: figures[f"{m}/{key}/share"] for m in _TRIVIAL if f"{m}/{key}/share" in figures}
    return min(shares, key=lambda m: shares[m]) if shares else None
