"""Pilot of a certification: estimate before the scan whether a certified recall costs less than the exhaustive pass.

A few random squares are refined first. Their finds give estimates of how many finds there are, how large they are and
how they cluster, and from that of the cost of scan, windows and audit. A pilot only decides where to work: no bound
depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.blocks import AuditState, Blocks
from coarse2fine.audit.joint_bound import shared_confidence
from coarse2fine.audit.sampling_bound import least_share
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.steps.plan import Plan, WindowMacs

MOST_OVER = 1.03
"""Most cost of a certified recall, as a share of the exhaustive pass."""
_SIDE, _SHARE, _MOST, _LEAST = 4, 0.015, 512, 4
# Windows and draws cost about this many times those of a perfect scan and of an audit without finds.
_WINDOWS, _DRAWS = 2.0, 2.0
# Scan, windows and audit must cost less than this share of the exhaustive pass, as estimates are uncertain.
_SAVES = 0.8


@dataclass(frozen=True)
class Pilot:
    """Result of a pilot.

    Parameters
    ----------
    candidates : Candidates
    covered : ndarray, bool, (cell height, cell width)
        Cells that it refined.
    macs : int
        Multiply-adds that it took.
    failures : tuple of str
    windows_macs, draws_macs : float
        Likely multiply-adds of windows and draws.
    """

    candidates: Candidates
    covered: NDArray[np.bool_]
    macs: int = 0
    failures: tuple[str, ...] = ()
    windows_macs: float = 0.0
    draws_macs: float = 0.0

    @classmethod
    def none(cls, cell_shape: tuple[int, int]) -> Pilot:
        """Empty result, if no pilot was made."""
        return cls(Candidates.empty(), np.zeros(cell_shape, bool))

    @classmethod
    def draw(
        cls, state: AuditState, exhaustive_macs: int, recall: float, *, confidence: float, seed: int
    ) -> Pilot | None:
        """Refine random squares and estimate costs; None if the image is too small for that to be worth it.

        Parameters
        ----------
        state : AuditState
            State before anything was refined.
        exhaustive_macs : int
            Multiply-adds of the exhaustive pass.
        recall, confidence : float
            Recall to certify, and its confidence.
        seed : int
        """
        plan = _squares(~state.covered, state.model, exhaustive_macs, seed)
        if not len(plan):
            return None
        plan = plan.divided(state.model.longest_window)[0]
        fine = state.refine(plan)
        if fine.interrupted:
            raise KeyboardInterrupt  # there is no result yet
        covered = plan.take(fine.done).covered()
        known = state.with_more(fine.candidates, covered)
        share = float(covered.sum() / max((~state.covered).sum(), 1))
        prices = _prices(known, share, recall, confidence) if share else (math.inf, math.inf)
        return cls(fine.candidates, covered, fine.macs, fine.failures, *prices)

    def pays(self, spent: float, windows_macs: float, exhaustive_macs: int) -> bool:
        """Whether spent multiply-adds, windows and draws together seem cheaper than the exhaustive pass."""
        return spent + windows_macs + self.draws_macs < _SAVES * exhaustive_macs


def scan_pays(pilot: Pilot | None, scan_macs: int, exhaustive_macs: int) -> bool:
    """Whether a scan is worth its cost for a recall; False without a pilot, since the image is then too small."""
    if pilot is None:
        return False
    return pilot.pays(pilot.macs + scan_macs, pilot.windows_macs, exhaustive_macs)


def affordable(plan: Plan, pilot: Pilot | None, spent: float, dense: Plan, window_macs: WindowMacs) -> Plan:
    """Plan for a recall within `MOST_OVER`: the exhaustive pass, if that is better and still affordable.

    Parameters
    ----------
    plan : Plan
        The windows chosen from the scan, best first.
    pilot : Pilot or None
        None if the plan is not to be replaced by the exhaustive pass.
    spent : float
        Multiply-adds of scan and pilot.
    dense : Plan
        The exhaustive pass.
    window_macs : callable
        Multiply-adds of a window of a given shape.
    """
    whole = dense.macs(window_macs)
    if pilot and spent <= (MOST_OVER - 1) * whole and not pilot.pays(spent, plan.macs(window_macs), whole):
        return dense
    most = MOST_OVER * whole
    if pilot and spent + plan.macs(window_macs) > most:
        # Windows left out must be audited instead: reserve the cost of pilots, and of draws in proportion to them.
        most -= _SHARE * whole
        share = min(pilot.draws_macs / whole, _SAVES)
        most -= (spent + plan.macs(window_macs) - most) * share / (1 - share)
    return plan.take(np.flatnonzero(plan.costs(window_macs).cumsum() + spent <= most))


def _squares(inside: NDArray[np.bool_], model: Model, exhaustive_macs: int, seed: int) -> Plan:
    count = min(_MOST, int(_SHARE * exhaustive_macs / model.window_macs(_SIDE, _SIDE)))
    height, width = (n // _SIDE for n in inside.shape)
    whole = inside[: height * _SIDE, : width * _SIDE].reshape(height, _SIDE, width, _SIDE).all(axis=(1, 3))
    squares = np.argwhere(whole)
    if not _LEAST <= count <= len(squares):
        return Plan.empty((inside.shape[0], inside.shape[1]))
    chosen = np.sort(np.random.default_rng([seed, len(squares)]).choice(len(squares), count, replace=False))
    sides, scores = np.full((count, 2), _SIDE, np.int64), np.ones(count, np.float32)
    return Plan(squares[chosen] * _SIDE, sides, scores, (inside.shape[0], inside.shape[1]))


def _prices(known: AuditState, share: float, recall: float, confidence: float) -> tuple[float, float]:
    """Likely multiply-adds of windows and draws, from a pilot of a share of the cells."""
    model, blocks = known.model, Blocks(known)
    side = min(model.window, *known.cell_shape)
    held = np.unique(known.finds().cells // (side * model.geometry.fine), axis=0)
    windows = _WINDOWS * (len(held) + 0.5) / share * model.window_macs(side, side)
    each = shared_confidence(confidence, len(blocks.kinds))
    shares = [
        least_share(round((found + 0.5) / share), recall, float(caps.max(initial=1)), each)
        for found, caps in zip(blocks.finds(), blocks.caps, strict=True)
    ]
    return windows, min(1.0, _DRAWS * max(shares)) * len(blocks) * blocks.macs_each
