"""What was missed, against what the exhaustive pass would find in this very image: no labels are needed.

The cells that the plan left out are cut into blocks; a random choice of these is refined too, and what it turns up
bounds what the rest holds (elusion testing, as in the review of documents). The statistics are in `sample`; if a recall
is to be certified, in `certify` and `bound`. Objects and areas have a bound each, of which the worse counts.
"""

from __future__ import annotations

import numpy as np

from coarse2fine.audit.blocks import AuditState, Blocks
from coarse2fine.audit.joint_bound import shared_confidence, shared_weights
from coarse2fine.audit.result import Audit, Audited, Part, _unknown
from coarse2fine.audit.sampling_bound import Sample, allowed_misses, inclusion

__all__ = ["Audit", "Part"]

# A sample is drawn as if this recall were to be certified.
_USUAL_RECALL = 0.95


def survey(standing: AuditState, macs: int, *, confidence: float, seed: int, if_telling: bool = False) -> Audited:
    """Audit blocks at random, each with a probability fixed beforehand; an estimate with an interval.

    Parameters
    ----------
    standing : AuditState
    macs : int
        Multiply-adds that it may take; in the mean, since chance decides on every block by itself.
    confidence : float
    seed : int
    if_telling : bool
        Spend nothing where finds are so few that the sample could hardly tell anything of recall.
    """
    blocks = Blocks(standing.scaled(expected_miss_scale(standing)))
    size = min(macs / blocks.macs_each, len(blocks)) if macs < blocks.rest_macs else len(blocks)
    unknown = _unknown(blocks, confidence)
    if if_telling and len(blocks) and unknown.too_few(size / len(blocks)):
        return Audited.after(unknown, blocks)
    targets = [max(1, allowed_misses(found, _USUAL_RECALL)) for found in blocks.finds()]
    weights = shared_weights(blocks.expected, blocks.caps, targets)
    chances = inclusion(weights, size) if size else np.zeros(len(blocks))
    index = np.flatnonzero(np.random.default_rng(seed).random(len(blocks)) < chances)
    found = blocks.look(index) if len(index) else np.zeros((len(blocks.kinds), 0), np.int64)
    # Cut short it is no sample any more, nor without a chance for every block.
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


def expected_miss_scale(standing: AuditState) -> float:
    """Factor from what the scan expects of skipped cells to the misses that the model was calibrated for, 1 at most.

    Calibration bounds the precision of low activations from above; over millions of cells that adds up.
    """
    target = float(standing.model.provenance.get("recall_target", _USUAL_RECALL))
    likely = (1 + len(standing.finds())) * (1 - target) / target
    expected = float(standing.interest[~standing.covered].sum())
    return min(1.0, likely / expected) if expected else 1.0
