"""What was missed, against what the exhaustive pass would find in this very image: no labels are needed.

The cells that the plan left out are cut into blocks; a random choice of these is refined too, and what it turns up
bounds what the rest holds (elusion testing, as in the review of documents). The statistics are in `sample`; where a
recall is to be certified, in `certify` and `bound`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.blocks import Blocks, Standing
from coarse2fine.bound import audit_weights
from coarse2fine.models.heads import Candidates
from coarse2fine.sample import Sample, allowed_misses, inclusion, least_share, pool, recall_interval
from coarse2fine.select import Plan

__all__ = ["Audit"]

# A sample is drawn as if this recall were to be certified.
_USUAL_RECALL = 0.95
# A sample that could not show this recall even by finding nothing tells nothing.
_TELLING = 0.5


@dataclass(frozen=True)
class Audit:
    """How much was found of what the exhaustive pass would find.

    Parameters
    ----------
    found : int
        Finds, those of the audit included; of an area every fine cell counts.
    missed : float
        Unbiased estimate of the finds missed; NaN where nothing was audited.
    missed_interval : tuple of int
        Fewest and most of them, with `confidence`. After a certification, which asks for the most alone, from 0.
    confidence : float
        Probability, over the random choice of blocks, with which the interval holds. The one assumption is `cap`.
    cap : float
        Most finds that a block can hold: the most seen in any, doubled where the audit saw more.
    blocks, audited : int
        Blocks of skipped cells, and those of them that were chosen at random and refined.
    side : int
        Of a block, in cells; 0 where images of several sizes are pooled.
    target : float, optional
        The recall to certify.
    sample : Sample, optional
        The record from which audits of several images are pooled; None after a certification.
    """

    found: int
    missed: float
    missed_interval: tuple[int, int]
    confidence: float
    cap: float
    blocks: int
    audited: int
    side: int
    target: float | None = None
    sample: Sample | None = None

    @property
    def recall(self) -> float:
        """Estimate of found over all; 1 where there seems to be nothing to find."""
        if math.isnan(self.missed):
            return math.nan
        return self.found / (self.found + self.missed) if self.missed else 1.0

    @property
    def recall_interval(self) -> tuple[float, float]:
        """Least and greatest recall, with `confidence`."""
        return recall_interval(self.found, self.missed_interval)

    @property
    def certified(self) -> bool:
        """Whether the recall that was asked for is reached, with confidence."""
        return self.target is not None and self.recall_interval[0] >= self.target

    @classmethod
    def pooled(cls, audits: Sequence[Audit], *, confidence: float = 0.95, target: float | None = None) -> Audit:
        """One audit out of those of many images: its interval is far closer than those of single images.

        Parameters
        ----------
        audits : sequence of Audit
            Of analyses without a `recall` of their own.
        confidence : float
            Probability with which the interval of the whole holds.
        target : float, optional
            Recall to certify for all images together.

        Raises
        ------
        ValueError
            If one of them has no sample, or was made to certify a recall of its own and stopped where it was lucky.
        """
        samples = [audit.sample for audit in audits if audit.sample is not None]
        if len(samples) < len(audits):
            raise ValueError("only random samples can be pooled: analyse every image with audit=0.01, without recall")
        whole = pool(samples)
        made = _of_sample(whole, sum(a.found for a in audits), confidence, sum(a.blocks for a in audits), 0)
        return replace(made, audited=sum(a.audited for a in audits), target=target)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `sample` is left out."""
        low, high = self.recall_interval
        return {
            "found": self.found,
            "missed": None if math.isnan(self.missed) else self.missed,
            "missed_interval": list(self.missed_interval),
            "recall": None if math.isnan(self.recall) else self.recall,
            "recall_interval": [low, high],
            "confidence": self.confidence,
            "cap": self.cap,
            "blocks": self.blocks,
            "audited": self.audited,
            "side": self.side,
            "target": self.target,
            "certified": self.certified,
        }

    def __str__(self) -> str:
        low, high = self.recall_interval
        work = f"{self.audited:,} of {self.blocks:,} skipped blocks audited" if self.blocks else "nothing was skipped"
        sure = f"with {_percent(self.confidence)} confidence"
        if self.target is not None:
            short = "" if self.certified else f"; {_percent(self.target)} is not certified"
            return f"recall at least {_floored(low)} {sure}{short} ({work})"
        if math.isnan(self.missed):
            few = "; too few finds for a small sample to tell" if self._too_few(_TELLING, 0.01) else ""
            return f"recall unknown ({work}{few})"
        if self.blocks and self._too_few(_TELLING, self.audited / self.blocks):
            return f"too few finds for so small a sample: recall {_floored(low)} to {high:.1%} {sure} ({work})"
        return f"recall {self.recall:.1%} of the exhaustive pass, {_floored(low)} to {high:.1%} {sure} ({work})"

    def _too_few(self, recall: float, share: float) -> bool:
        """Whether a sample of this share could not show that recall even by finding nothing."""
        return least_share(self.found, recall, max(self.cap, 1), self.confidence) > share


@dataclass(frozen=True)
class Audited:
    """An audit, and what there is after it.

    Parameters
    ----------
    audit : Audit
    candidates : Candidates
        All, those from before the audit included.
    refined : ndarray, bool, (cell height, cell width)
        All cells refined by now.
    plan : Plan
        Windows that were chosen in addition; empty but for a certification.
    macs : int
        Multiply-adds of the windows and blocks refined for it.
    failures : tuple of str
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    audit: Audit
    candidates: Candidates
    refined: NDArray[np.bool_]
    plan: Plan
    macs: int
    failures: tuple[str, ...]
    interrupted: bool

    @classmethod
    def after(cls, audit: Audit, blocks: Blocks, plan: Plan | None = None, macs: int = 0) -> Audited:
        """What there is after work on blocks, and on a plan and what else came before."""
        return cls(
            audit,
            blocks.candidates,
            blocks.refined,
            Plan.empty(blocks.cell_shape) if plan is None else plan,
            macs + blocks.macs,
            blocks.failures,
            blocks.interrupted,
        )

    @classmethod
    def none(cls, standing: Standing, confidence: float | None) -> Audited:
        """No audit was asked for; or, with a confidence, it came to nothing, and all that is known is the room left."""
        nothing = Audit(0, math.nan, (0, 0), 0.0, 0.0, 0, 0, 0)
        audit = nothing if confidence is None else _unknown(Blocks(standing), confidence)
        return cls(audit, standing.candidates, standing.covered, Plan.empty(standing.cell_shape), 0, (), False)


def survey(standing: Standing, macs: int, *, confidence: float, seed: int, if_telling: bool = False) -> Audited:
    """Audit blocks at random, each with a probability fixed beforehand; an estimate with an interval.

    Parameters
    ----------
    standing : Standing
    macs : int
        Multiply-adds that it may take; in the mean, since chance decides on every block by itself.
    confidence : float
    seed : int
    if_telling : bool
        Spend nothing where finds are so few that the sample could hardly tell anything of recall.
    """
    blocks = Blocks(standing.scaled(sobriety(standing)))
    size = min(macs / blocks.macs_each, len(blocks)) if macs < blocks.rest_macs else len(blocks)
    finds = blocks.finds()
    if if_telling and len(blocks) and least_share(finds, _TELLING, blocks.cap, confidence) > size / len(blocks):
        return Audited.after(_unknown(blocks, confidence), blocks)
    target = max(1, allowed_misses(finds, _USUAL_RECALL))
    chances = inclusion(audit_weights(blocks.expected, blocks.cap, target), size) if size else np.zeros(len(blocks))
    index = np.flatnonzero(np.random.default_rng(seed).random(len(blocks)) < chances)
    found = blocks.look(index) if len(index) else np.zeros(0, np.int64)
    # Cut short it is no sample any more, nor without a chance for every block.
    if found is None or (len(blocks) and not size):
        audit = _unknown(blocks, confidence)
    else:
        sample = Sample.of(chances, index, found, blocks.cap)
        audit = replace(_of_sample(sample, blocks.finds(), confidence, len(blocks), blocks.side), audited=len(index))
    return Audited.after(audit, blocks)


def sobriety(standing: Standing) -> float:
    """Factor from what the scan expects of skipped cells to the misses that the model was calibrated for, 1 at most.

    Calibration bounds the precision of low activations from above; over millions of cells that adds up.
    """
    target = float(standing.model.provenance.get("recall_target", _USUAL_RECALL))
    likely = (1 + len(standing.finds())) * (1 - target) / target
    expected = float(standing.interest[~standing.covered].sum())
    return min(1.0, likely / expected) if expected else 1.0


def _of_sample(sample: Sample, found: int, confidence: float, blocks: int, side: int) -> Audit:
    return Audit(
        found=found,
        missed=max(0.0, sample.missed),
        missed_interval=sample.missed_interval(confidence),
        confidence=confidence,
        cap=sample.cap,
        blocks=blocks,
        audited=sample.audited,
        side=side,
        sample=sample,
    )


def _unknown(blocks: Blocks, confidence: float) -> Audit:
    most = blocks.cap * len(blocks)
    return Audit(blocks.finds(), math.nan, (0, most), confidence, blocks.cap, len(blocks), 0, blocks.side)


def _percent(share: float) -> str:
    """What was asked for, in percent, as it was given: 99.9 % must not be told as 100 %."""
    return f"{100 * share:.10g}%"


def _floored(share: float) -> str:
    """A lower bound in percent, never rounded up."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
