"""Certification of recall: refine further windows while many finds seem to be missed, then audit random blocks.

Pilot draws estimate how much is missed, since the scan's expectation can be off by a multiple on other images. They
only decide where to refine, so that the bound of the final audit, on blocks that were fixed before its first draw,
holds with the full confidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.blocks import AuditState, Blocks
from coarse2fine.audit.joint_bound import JointBound, shared_confidence
from coarse2fine.audit.result import Audit, Audited, Part
from coarse2fine.audit.sampling_bound import allowed_misses
from coarse2fine.audit.survey import expected_miss_scale
from coarse2fine.steps.choose import choose
from coarse2fine.steps.plan import Plan, cover, dense_plan
from coarse2fine.tiling.geometry import ceil_div

_LEAST_DRAWS = 32
# Promising blocks are refined first while the expected misses exceed this share of those allowed.
_HOPEFUL = 0.6
# Shares of the model's threshold `tau` at which plans of further windows are tried.
_DEEPER = tuple(0.5**k for k in range(10))
# A pilot: most blocks, most cost as a share of the exhaustive pass, and least blocks that are worth it.
_MOST_PILOTS, _PILOT_SHARE, _LEAST_PILOTS = 256, 0.015, 16
_ROUNDS = 4
# Plans tend to fall short: once refining all would soon be unaffordable, draws go on only if this many times their
# planned cost is left.
_WARY = 1.5
# Sides of the rectangles that are refined instead of blocks, and the share of what is left that is kept for an audit.
_SIDES, _RESERVE = (128, 64, 32, 16), 0.03
_NEARLY = 0.95
# Further windows and an audit must cost less than this share of refining all that is left, as estimates are uncertain.
_SAVES = 0.8


def certify(state: AuditState, recall: float, *, confidence: float, seed: int, most_macs: int | None = None) -> Audited:
    """Refine more until a recall is certified or nothing is left.

    Parameters
    ----------
    state : AuditState
    recall : float
        Share of the exhaustive pass's finds.
    confidence : float
    seed : int
    most_macs : int, optional
        Most multiply-adds of this work.
    """
    work = _Work(state, recall, confidence, seed, most_macs)
    for stage in range(_ROUNDS):
        work.extend()
        if work.cut or work.settled(stage):
            break
    blocks = Blocks(work.state)
    bound = work.bound(blocks, stage=_ROUNDS)
    if not work.cut:
        _go_on(blocks, bound, recall, work.left)
    audit = _audit(blocks, bound, recall, confidence)
    done = Audited.after(audit, blocks, work.plan, work.macs)
    failures = tuple(dict.fromkeys((*work.failures, *done.failures)))
    return replace(done, failures=failures, interrupted=done.interrupted or work.cut)


def _audit(blocks: Blocks, bound: JointBound, recall: float, confidence: float) -> Audit:
    nothing_left = blocks.exhausted or not bound.unknown
    parts = [
        Part(
            kind=kind,
            found=found,
            missed=0.0 if nothing_left else mine.estimate - mine.known,
            missed_interval=(0, 0 if nothing_left else mine.missed),
            confidence=shared_confidence(confidence, len(blocks.kinds)),
            cap=mine.cap,
            certain=certain,
        )
        for kind, found, mine, certain in zip(blocks.kinds, blocks.finds(), bound.kinds, blocks.certain, strict=True)
    ]
    return Audit(
        tuple(parts),
        confidence=confidence,
        # If all was refined in the end, the draws do not matter.
        blocks=0 if blocks.exhausted else len(blocks),
        audited=0 if blocks.exhausted else bound.audited,
        side=blocks.side,
        target=recall,
    )


def _allowed(found: Iterable[float], recall: float) -> tuple[int, ...]:
    """Most finds of each kind that may be missed."""
    return tuple(allowed_misses(round(each), recall) for each in found)


class _Work:
    """Work before the final audit: further windows and pilot draws."""

    def __init__(self, state: AuditState, recall: float, confidence: float, seed: int, most_macs: int | None) -> None:
        self.state = state.scaled(expected_miss_scale(state))
        self._recall, self._confidence, self._seed, self._most = recall, confidence, seed, most_macs
        self.plan = Plan.empty(state.cell_shape)
        self.macs = 0
        self.failures: tuple[str, ...] = ()
        self.cut = False

    @property
    def left(self) -> float:
        """Multiply-adds that may still be spent."""
        return math.inf if self._most is None else self._most - self.macs

    def bound(self, blocks: Blocks, stage: int, more: float = 0.0) -> JointBound:
        """Bounds for these blocks, with draws of their own."""
        targets = [max(1, n) for n in self._allowed(blocks, more)]
        seed = self._seed * (_ROUNDS + 1) + stage
        return JointBound(blocks.expected, blocks.caps, targets=targets, confidence=self._confidence, seed=seed)

    def _allowed(self, blocks: Blocks, more: float = 0.0) -> tuple[int, ...]:
        """Allowed misses of each kind, if there were `more` finds in the same proportions."""
        finds = np.array(blocks.finds(), np.float64)
        return _allowed(finds + more * (finds + 1) / (finds + 1).sum(), self._recall)

    def extend(self) -> None:
        """Refine further windows if that lowers the total cost with the audit; or all that is left, if that does."""
        plan, price = self._extension()
        model = self.state.model
        everything = cover(~self.state.covered, model.window_macs, model.longest_window)
        rest = everything.macs(model.window_macs)
        if _SAVES * rest <= price and rest <= self.left:
            plan = everything
        if not len(plan):
            return
        fine = self.state.refine(plan)
        self.macs += fine.macs
        self.failures += fine.failures
        self.cut |= fine.cut
        self.plan = self.plan.joined(plan)
        self.state = self.state.with_more(fine.candidates, plan.take(fine.done).covered())

    def settled(self, stage: int) -> bool:
        """Draw a pilot and correct the expectation by it; whether no further windows seem to be needed."""
        blocks = Blocks(self.state)
        exhaustive = dense_plan(self.state.cell_shape).macs(self.state.model.refiner_macs)
        count = int(min(_MOST_PILOTS, min(_PILOT_SHARE * exhaustive, self.left) / blocks.macs_each, len(blocks) // 4))
        if count < _LEAST_PILOTS:
            return True
        index = self.bound(blocks, stage).draw(count)
        found = blocks.look(index)
        self.macs += blocks.macs
        self.failures += blocks.failures
        self.cut |= blocks.cut
        self.state = blocks.state
        if found is None:
            return True
        correction = (1 + found.sum()) / (1 + blocks.expected[:, index].sum())
        self.state = self.state.scaled(float(correction))
        seems = Blocks(self.state).expected.sum(axis=1)
        return bool((seems <= _HOPEFUL * np.array(self._allowed(blocks))).all())

    def _extension(self) -> tuple[Plan, float]:
        """Further windows of least total cost, and the likely cost of these and the audit in multiply-adds."""
        at = self.state
        best, least = Plan.empty(at.cell_shape), math.inf
        for plan in self._plans():
            macs = plan.macs(at.model.window_macs)
            if macs > min(least, self.left):
                break
            covered = plan.covered()
            more = float(at.interest[covered & ~at.covered].sum()) * at.scale
            blocks = Blocks(replace(at, covered=at.covered | covered))
            allowed = self._allowed(blocks, more)
            draws = self.bound(blocks, _ROUNDS, more).planned_draws(allowed) if len(blocks) else 0
            cost = macs + min(draws * blocks.macs_each, blocks.rest_macs)
            if cost < least:
                best, least = plan, cost
        return best, least

    def _plans(self) -> Iterator[Plan]:
        """Plans of further windows: none first, then ever more."""
        at, model = self.state, self.state.model
        yield Plan.empty(at.cell_shape)
        # Thresholds refer to the interest as it is, not to the finds that the scan leads to expect.
        left = np.where(at.covered, 0, at.interest).astype(np.float32)
        for share in _DEEPER:
            plan = choose(
                left,
                model.window,
                window_macs=model.window_macs,
                tau=model.tau * share,
                longest=model.longest_window,
            )
            if len(plan):
                yield plan


def _go_on(blocks: Blocks, bound: JointBound, recall: float, most_macs: float) -> None:
    """Refine promising blocks, or draw random ones, in rounds until the bounds are down to the allowed misses."""
    unknown = np.ones(len(blocks), bool)
    while bound.unknown:
        allowed = _allowed(blocks.finds(), recall)
        if bound.met(allowed):
            return
        kind = bound.lacking(allowed)
        expected, seems = blocks.expected[kind], bound.kinds[kind].expected
        promising = seems > _HOPEFUL * max(allowed[kind], 1)
        planned = _promising(expected[unknown], seems, allowed[kind]) if promising else bound.planned_draws(allowed)
        left, rest = most_macs - blocks.macs, blocks.rest_macs
        # Only half of the planned blocks: their finds improve the next plan.
        count = min(
            max(_LEAST_DRAWS, ceil_div(planned, 2)), bound.unknown, int(min(left / blocks.macs_each, len(blocks)))
        )
        # Large rectangles cost nothing extra if all is refined in the end.
        goal = 1 - _HOPEFUL * allowed[kind] / seems if promising else 0.0
        pieces = _pieces(blocks, planned, count, goal, left, rest)
        if len(pieces):
            looked = blocks.look_widely(pieces)
            if looked is None:
                return
            fresh = unknown[looked[0]]
            bound.know(looked[0][fresh], looked[1][:, fresh])
            unknown[looked[0]] = False
            continue
        if _rather_all(blocks, planned, count, left, rest):
            blocks.look_at_rest()
            return
        if count < 1:
            return
        if promising:
            candidates = np.flatnonzero(unknown)
            index = candidates[np.argsort(-expected[candidates], kind="stable")[:count]]
        else:
            index = bound.draw(count)
        found = blocks.look(index)
        if found is None:
            return
        (bound.know if promising else bound.see)(index, found)
        unknown[index] = False


def _rather_all(blocks: Blocks, planned: int, count: int, left: float, rest: int) -> bool:
    """Whether to refine all that is left now: if that is cheaper, or will soon be unaffordable and draws may not do."""
    macs = planned * blocks.macs_each
    last = rest > left - count * blocks.macs_each
    return rest <= left and (macs >= rest or (last and macs * _WARY >= left))


def _promising(expected: NDArray[np.float64], seems: float, allowed: int) -> int:
    """Number of blocks, best first, that hold enough of the expected misses."""
    order = np.sort(expected)[::-1]
    enough = (1 - _HOPEFUL * allowed / seems) * order.sum()
    return int(np.searchsorted(np.cumsum(order), enough)) + 1


def _pieces(blocks: Blocks, planned: int, count: int, goal: float, left: float, rest: int) -> Plan:
    """Rectangles to refine instead of single blocks, if blocks cost more or too much; else none.

    Parameters
    ----------
    blocks : Blocks
    planned, count : int
        Single blocks that are planned in all, and those of the next round.
    goal : float
        Share of the expected misses that the rectangles must hold; 0 if draws are to bound them.
    left : float
        Multiply-adds that may be spent.
    rest : int
        Multiply-adds of all that is not refined yet.
    """
    price = planned * blocks.macs_each
    best, least, most = Plan.empty(blocks.cell_shape), min(price, left), 0.0
    # If not all that is left is affordable, refine as much as is, with a reserve to audit the remainder, if blocks cost
    # more than everything, or if after the next round the affordable part would no longer be nearly all.
    last = _NEARLY * rest <= left < _NEARLY * rest + count * blocks.macs_each and price * _WARY >= left
    short = left < rest and (rest < price or last)
    for side in _SIDES if goal or short else ():
        plan, costs, shares = blocks.pieces(side)
        spent, gain = costs.cumsum(), shares.cumsum()
        enough, can = int(np.searchsorted(gain, goal)) + 1, int(np.searchsorted(spent, (1 - _RESERVE) * left, "right"))
        if goal and enough <= len(plan) and spent[enough - 1] < least:
            best, least, most = plan.take(np.arange(enough)), float(spent[enough - 1]), 1.0
        elif short and can and gain[can - 1] > most:
            best, most = plan.take(np.arange(can)), float(gain[can - 1])
    return best
