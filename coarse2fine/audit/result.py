"""Results of an audit: estimates and intervals of recall."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.blocks import AuditState, Blocks, Kind
from coarse2fine.audit.joint_bound import shared_confidence
from coarse2fine.audit.sampling_bound import Sample, least_share, pool, recall_interval
from coarse2fine.models.candidates import Candidates
from coarse2fine.steps.plan import Plan

# A sample that could not show this recall even without a find is too small to report an estimate.
_TELLING = 0.5
_NAMES: dict[Kind, str] = {"object": "objects", "area": "cells of areas"}


@dataclass(frozen=True)
class Part:
    """Audit of one kind of finds.

    Parameters
    ----------
    kind : {"object", "area"}
        Objects, or areas, whose fine cells are counted one by one.
    found : int
        Finds, including those of the audit.
    missed : float
        Unbiased estimate of the finds missed; NaN if nothing was audited.
    missed_interval : tuple of int
        Fewest and most of them, with `confidence`. A certification bounds only the most: it starts at 0.
    confidence : float
        Probability, over the random choice of blocks, with which the interval holds; for two kinds closer to 1 than
        the audit's, so that both hold together.
    cap : float
        Most finds of this kind that a block can hold; doubled if the audit saw more.
    certain : bool
        Whether `cap` is certain; otherwise the interval assumes it.
    sample : Sample, optional
        Sums from which audits of several images are pooled; None after a certification.
    plane : int, optional
        Full-resolution pixels per pixel of the plane in which they were looked for, if the model has several bands of
        object sizes; each then has a recall of its own.
    output : str
        Name of the output, if the model has several experts; each then has a recall of its own.
    """

    kind: Kind
    found: int
    missed: float
    missed_interval: tuple[int, int]
    confidence: float
    cap: float
    certain: bool
    sample: Sample | None = None
    plane: int | None = None
    output: str = ""

    @property
    def name(self) -> str:
        """What is counted, in words."""
        of = f" of {self.output}" if self.output else ""
        return _NAMES[self.kind] + of + ("" if self.plane is None else f" at 1/{self.plane}")

    @property
    def recall(self) -> float:
        """Estimate of found over all; 1 if nothing seems to be missed, NaN if nothing was audited."""
        if math.isnan(self.missed):
            return math.nan
        return self.found / (self.found + self.missed) if self.missed else 1.0

    @property
    def recall_interval(self) -> tuple[float, float]:
        """Least and greatest recall, with `confidence`."""
        return recall_interval(self.found, self.missed_interval)

    @classmethod
    def of_sample(cls, kind: Kind, sample: Sample, found: int, confidence: float, *, certain: bool) -> Part:
        """Estimate and interval from a sample; `found`: all finds, including those of the sample."""
        interval, missed = sample.missed_interval(confidence), max(0.0, sample.missed)
        return cls(kind, found, missed, interval, confidence, sample.cap, certain, sample)

    def to_json(self) -> dict[str, Any]:
        """The audit as JSON values; see `from_json`."""
        sample = None if self.sample is None else dataclasses.asdict(self.sample)
        if sample is not None and math.isinf(sample["least_cap"]):
            sample["least_cap"] = None
        return {
            "kind": self.kind,
            **_stated(self),
            "sample": sample,
            **({} if self.plane is None else {"plane": self.plane}),
            **({"output": self.output} if self.output else {}),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Part:
        """Inverse of `to_json`."""
        low, high = record["missed_interval"]
        sample = record["sample"]
        if sample is not None:
            sample = Sample(**{**sample, "least_cap": math.inf if sample["least_cap"] is None else sample["least_cap"]})
        return cls(
            missed=math.nan if record["missed"] is None else record["missed"],
            missed_interval=(low, high),
            sample=sample,
            plane=record.get("plane"),
            output=record.get("output", ""),
            **{name: record[name] for name in ("kind", "found", "confidence", "cap", "certain")},
        )

    def too_few(self, recall: float, share: float) -> bool:
        """Whether a sample of this share of the blocks could not show that recall even without a find."""
        return least_share(self.found, recall, max(self.cap, 1), self.confidence) > share


@dataclass(frozen=True)
class Audit:
    """Recall, as the share of the exhaustive pass's finds that was found.

    Parameters
    ----------
    kinds : tuple of Part
        Results for objects and for cells of areas, as far as the model finds them, of each of its bands or experts. The
        recall of an audit is that of the worst: the many cells of a lake say nothing about the objects beside it.
    confidence : float
        Probability, over the random choice of blocks, with which all intervals hold.
    blocks, audited : int
        Blocks of skipped cells, and those of them that were chosen at random and refined.
    side : int
        Side of a block in cells; 0 if images with blocks of several sizes are pooled.
    target : float, optional
        The recall to certify, of every kind.
    """

    kinds: tuple[Part, ...]
    confidence: float
    blocks: int
    audited: int
    side: int
    target: float | None = None

    @property
    def found(self) -> int:
        """Finds of all kinds; every fine cell of an area counts."""
        return sum(part.found for part in self.kinds)

    @property
    def missed(self) -> float:
        """Unbiased estimate of the finds missed; NaN if nothing was audited."""
        return math.fsum(part.missed for part in self.kinds)

    @property
    def missed_interval(self) -> tuple[int, int]:
        """Fewest and most of them, with `confidence`."""
        return sum(part.missed_interval[0] for part in self.kinds), sum(part.missed_interval[1] for part in self.kinds)

    @property
    def cap(self) -> float:
        """Most finds of a kind that a block can hold."""
        return max((part.cap for part in self.kinds), default=0.0)

    @property
    def certain(self) -> bool:
        """Whether the cap of every kind is certain, so that nothing is assumed."""
        return all(part.certain for part in self.kinds)

    @property
    def sampled(self) -> bool:
        """Whether the audit can be pooled with others."""
        return bool(self.kinds) and all(part.sample is not None for part in self.kinds)

    @property
    def recall(self) -> float:
        """Estimate of found over all, of the worse kind; 1 if nothing seems to be missed."""
        recalls = [part.recall for part in self.kinds]
        return math.nan if any(map(math.isnan, recalls)) else min(recalls, default=math.nan)

    @property
    def recall_interval(self) -> tuple[float, float]:
        """Least and greatest recall of the worse kind, with `confidence`."""
        lows, highs = zip(*(part.recall_interval for part in self.kinds), strict=True)
        return min(lows), min(highs)

    @property
    def certified(self) -> bool:
        """Whether every kind reaches the target with confidence."""
        return self.target is not None and self.recall_interval[0] >= self.target

    @classmethod
    def joined(cls, audits: Sequence[Audit], confidence: float) -> Audit:
        """Audit by a model of several bands or experts, from that of each; all hold together with `confidence`."""
        if len(audits) == 1:
            return audits[0]
        sides = {audit.side for audit in audits if audit.blocks}
        return cls(
            tuple(part for audit in audits for part in audit.kinds),
            confidence=confidence,
            blocks=sum(audit.blocks for audit in audits),
            audited=sum(audit.audited for audit in audits),
            side=sides.pop() if len(sides) == 1 else 0,
            target=next((audit.target for audit in audits if audit.target is not None), None),
        )

    @classmethod
    def pooled(cls, audits: Sequence[Audit | None], *, confidence: float = 0.95, target: float | None = None) -> Audit:
        """Audit of many images together, with a far narrower interval than those of single images.

        Parameters
        ----------
        audits : sequence of Audit or None
            Audits of analyses without a `recall` of their own. Analyses without an audit (None) are left out: what is
            said then holds for the other images.
        confidence : float
            Probability with which the pooled interval holds.
        target : float, optional
            Recall to certify for all images together.

        Raises
        ------
        ValueError
            If none has an audit, or one has no sample or certified a recall of its own: its stopping depends on its
            draws.
        """
        made = [audit for audit in audits if audit is not None]
        if not made or not all(audit.sampled for audit in made):
            raise ValueError("only random samples can be pooled: analyse every image with audit=0.01, without recall")
        parts = [part for audit in made for part in audit.kinds]
        kinds = list(dict.fromkeys((part.kind, part.plane, part.output) for part in parts))
        kinds.sort(key=lambda each: (list(_NAMES).index(each[0]), each[1] or 0))
        sides = {audit.side for audit in made if audit.blocks}
        return cls(
            tuple(_pooled(*each, parts, shared_confidence(confidence, len(kinds))) for each in kinds),
            confidence=confidence,
            blocks=sum(a.blocks for a in made),
            audited=sum(a.audited for a in made),
            side=sides.pop() if len(sides) == 1 else 0,
            target=target,
        )

    def to_json(self) -> dict[str, Any]:
        """The audit as JSON values, with the samples that pooling needs; see `from_json`."""
        return {
            **_stated(self),
            "blocks": self.blocks,
            "audited": self.audited,
            "side": self.side,
            "target": self.target,
            "certified": self.certified,
            "kinds": [part.to_json() for part in self.kinds],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Audit:
        """Inverse of `to_json`."""
        names = ("confidence", "blocks", "audited", "side", "target")
        # Version 0.1 counted objects and cells of areas together, in the audit itself.
        kinds = record.get("kinds") or [{**record, "kind": "object", "certain": False}]
        return cls(tuple(map(Part.from_json, kinds)), **{name: record[name] for name in names})

    def __str__(self) -> str:
        if not self.blocks and self.target is None:
            return "recall 100% of the exhaustive pass: nothing was skipped"
        work = f"{self.audited:,} of {self.blocks:,} skipped blocks audited" if self.blocks else "nothing was skipped"
        sure = f"with {_percent(self.confidence)} confidence"
        low, high = self.recall_interval
        alone = self._assuming(self.kinds[0]) if len(self.kinds) == 1 else ""
        if self.target is not None:
            short = "" if self.certified else f"; {_percent(self.target)} is not certified"
            return f"recall at least {_floored(low)} {sure}{alone}{self._each()}{short} ({work})"
        if math.isnan(self.missed):
            return f"recall unknown{self._each()} ({work})"
        if self.too_few(self.audited / self.blocks):
            lead = "too few finds for so small a sample: "
            return f"{lead}recall {_floored(low)} to {high:.1%} {sure}{alone}{self._each()} ({work})"
        span = f"{_floored(low)} to {high:.1%}"
        return f"recall {self.recall:.1%} of the exhaustive pass, {span} {sure}{alone}{self._each()} ({work})"

    def _each(self) -> str:
        """Recall of each kind, if there are several."""
        if len(self.kinds) < 2:
            return ""
        spans = []
        for part in self.kinds:
            low, high = part.recall_interval
            span = f"at least {_floored(low)}" if self.target is not None else f"{_floored(low)} to {high:.1%}"
            span = "unknown" if self.target is None and math.isnan(part.missed) else span
            spans.append(f"{part.name} {span}{self._assuming(part)}")
        return f": {', '.join(spans)}"

    def _assuming(self, part: Part) -> str:
        """Assumption under which a bound holds; empty if there is none."""
        if part.certain or self.audited == self.blocks:
            return ""
        size = f" of {self.side} x {self.side} cells" if self.side else ""
        return f" if no block{size} holds more than {part.cap:,.0f} {'find' if part.cap == 1 else 'finds'}"

    def too_few(self, share: float) -> bool:
        """Whether a sample of this share of the blocks could not show a recall of 50 % of any kind."""
        return all(part.too_few(_TELLING, share) for part in self.kinds)


@dataclass(frozen=True)
class Audited:
    """An audit, and the state after it.

    Parameters
    ----------
    audit : Audit
    candidates : Candidates
        All candidates, including those from before the audit.
    refined : ndarray, bool, (cell height, cell width)
        All cells refined by now.
    plan : Plan
        Further windows of a certification; otherwise empty.
    macs : int
        Multiply-adds of the windows and blocks refined for it.
    failures : tuple of str
    interrupted : bool
        Whether Ctrl-C or a deadline ended it early.
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
        """State after work on blocks, and after a plan and `macs` multiply-adds before it."""
        return cls(
            audit,
            blocks.candidates,
            blocks.refined,
            Plan.empty(blocks.cell_shape) if plan is None else plan,
            macs + blocks.macs,
            blocks.failures,
            blocks.cut,
        )

    @classmethod
    def none(cls, state: AuditState, confidence: float | None) -> Audited:
        """No audit; with a confidence: bounds without one, by the most finds that skipped blocks can hold."""
        nothing = Audit((), confidence=0.0, blocks=0, audited=0, side=0)
        audit = nothing if confidence is None else _unknown(Blocks(state), confidence)
        return cls(audit, state.candidates, state.covered, Plan.empty(state.cell_shape), 0, (), False)


def _stated(of: Part | Audit) -> dict[str, Any]:
    """The members that a part and a whole audit have alike, as JSON values."""
    return {
        "found": of.found,
        "missed": None if math.isnan(of.missed) else of.missed,
        "missed_interval": list(of.missed_interval),
        "recall": None if math.isnan(of.recall) else of.recall,
        "recall_interval": list(of.recall_interval),
        "confidence": of.confidence,
        "cap": of.cap,
        "certain": of.certain,
    }


def _pooled(kind: Kind, plane: int | None, output: str, parts: Sequence[Part], confidence: float) -> Part:
    """Pooled result of one kind, and one band or expert, in many images."""
    mine = [part for part in parts if (part.kind, part.plane, part.output) == (kind, plane, output)]
    whole = pool([part.sample for part in mine if part.sample is not None])
    found, certain = sum(part.found for part in mine), all(part.certain for part in mine)
    return replace(Part.of_sample(kind, whole, found, confidence, certain=certain), plane=plane, output=output)


def _unknown(blocks: Blocks, confidence: float) -> Audit:
    each = shared_confidence(confidence, len(blocks.kinds))
    parts = [
        Part(kind, found, math.nan, (0, int(caps.sum())), each, float(caps.max(initial=0)), certain)
        for kind, found, caps, certain in zip(blocks.kinds, blocks.finds(), blocks.caps, blocks.certain, strict=True)
    ]
    return Audit(tuple(parts), confidence, len(blocks), 0, blocks.side)


def _percent(share: float) -> str:
    """A requested share in percent, not rounded: 99.9 % must not become 100 %."""
    return f"{100 * share:.10g}%"


def _floored(share: float) -> str:
    """A lower bound in percent, never rounded up."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
