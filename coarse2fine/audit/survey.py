"""Estimate of misses against the exhaustive pass on the same image, without labels.

The cells that the plan skipped are cut into blocks; a random sample of these is refined too, and its finds bound those
in the rest (elusion testing, as in document review). The statistics are in `sampling_bound`; for the certification of
a recall, in `certify` and `betting_bound`. Objects and areas have a bound each, of which the worse counts.
"""

from __future__ import annotations

import numpy as np

from coarse2fine.audit.blocks import AuditState, Blocks
from coarse2fine.audit.joint_bound import shared_confidence, shared_weights
from coarse2fine.audit.result import Audit, Audited, Part, _unknown
from coarse2fine.audit.sampling_bound import Sample, allowed_misses, inclusion

__all__ = ["Audit", "Part"]

# Recall for which the sampling weights are optimised.
_USUAL_RECALL = 0.95


def survey(state: AuditState, macs: int, *, confidence: float, seed: int, if_telling: bool = False) -> Audited:
    """Audit random blocks, each with a probability fixed beforehand, for an estimate of misses with an interval.

    Parameters
    ----------
    state : AuditState
    macs : int
        Mean number of multiply-adds that the audit may take: blocks are chosen independently.
    confidence : float
    seed : int
    if_telling : bool
        Audit nothing if finds are so few that the sample could show hardly anything about recall.
    """
    blocks = Blocks(state.scaled(expected_miss_scale(state)))
    size = min(macs / blocks.macs_each, len(blocks)) if macs < blocks.rest_macs else len(blocks)
    unknown = _unknown(blocks, confidence)
    if if_telling and len(blocks) and unknown.too_few(size / len(blocks)):
        return Audited.after(unknown, blocks)
    targets = [max(1, allowed_misses(found, _USUAL_RECALL)) for found in blocks.finds()]
    weights = shared_weights(blocks.expected, blocks.caps, targets)
    chances = inclusion(weights, size) if size else np.zeros(len(blocks))
    index = np.flatnonzero(np.random.default_rng(seed).random(len(blocks)) < chances)
    found = blocks.look(index) if len(index) else np.zeros((len(blocks.kinds), 0), np.int64)
    # An audit that was cut short, or that gives blocks no chance, is no random sample.
    if found is None or (len(blocks) and not size):
        return Audited.after(_unknown(blocks, confidence), blocks)
    each = shared_confidence(confidence, len(blocks.kinds))
    parts = [
        Part.of_sample(kind, Sample.of(chances, index, y, caps), finds, each, certain=certain)
        for kind, y, caps, finds, certain in zip(
            blocks.kinds, found, blocks.caps, blocks.finds(), blocks.certain, strict=True
        )
    ]
    return Audited.after(Audit(tuple(parts), confidence, len(blocks), len(index), blocks.side), blocks)


def expected_miss_scale(state: AuditState) -> float:
    """Factor from the finds that the scan expects in skipped cells to the misses of calibration, at most 1.

    Calibration bounds the precision of low activations from above, which adds up over millions of cells.
    """
    target = float(state.model.provenance.get("recall_target", _USUAL_RECALL))
    likely = (1 + len(state.finds())) * (1 - target) / target
    expected = float(state.interest.sum(where=~state.covered, dtype=np.float64)) * state.scale
    return min(1.0, likely / expected) if expected else 1.0
