"""Steps of one analysis in one band of object sizes: what each may spend, and on which windows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.blocks import AuditState
from coarse2fine.audit.certify import certify
from coarse2fine.audit.pilot import MOST_OVER, Pilot, affordable, scan_pays
from coarse2fine.audit.result import Audited
from coarse2fine.audit.survey import survey
from coarse2fine.config import Config
from coarse2fine.experts.errors import ExpertError
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.steps.checkpoint import Checkpoint
from coarse2fine.steps.choose import choose
from coarse2fine.steps.mask import MaskSource, cells_inside
from coarse2fine.steps.pieces import refine_in_pieces
from coarse2fine.steps.plan import Plan, cover, dense_plan
from coarse2fine.steps.refine import Refinement, refine
from coarse2fine.steps.scan import SCANNED, Scan
from coarse2fine.steps.scan_blocks import scan_macs
from coarse2fine.steps.strategy import strategy_of
from coarse2fine.tiling.image import Image

# Sides of windows, in cells, tried with a limit on cells if the model's own windows cost more than may be spent.
_LARGER = (4, 8, 16, 32)
# Share of a limit that closer looks of the scan may take, beyond what their thresholds ask for.
_CLOSER = 0.25


class BandRun:
    """One analysis with a model of one band, step by step.

    Parameters
    ----------
    image : Image
    model : Model
    config : Config
    checkpoint : Checkpoint
        Partial results, which are not computed again.
    mask : path or ndarray, bool, (h, w), optional

    Attributes
    ----------
    inside : ndarray, bool, (cell height, cell width)
        Cells to analyse.
    budget, cells : float or int, optional
        Limits as in `Config`; `AnalysisRun` divides them among the bands of a model.

    Raises
    ------
    ValueError
        If the parameters do not suit the model, or the device cannot be used.
    """

    def __init__(
        self, image: Image, model: Model, config: Config, checkpoint: Checkpoint, mask: MaskSource | None = None
    ) -> None:
        self._image, self._model, self._config, self._checkpoint = image, model, config, checkpoint
        self.budget, self.cells = config.budget, config.cells
        self.deadline = None if config.seconds is None else time.perf_counter() + config.seconds
        self.runtime = Runtime.choose(config.device, config.precision)
        self.threshold = model.threshold if config.threshold is None else config.threshold
        self.cell_shape = model.cell_shape((image.height, image.width))
        cell = model.geometry.cell
        # Without a mask a view of one value: of a huge image every map of its cells takes memory.
        everywhere = np.broadcast_to(np.True_, self.cell_shape)
        self.inside = everywhere if mask is None else cells_inside(mask, image, cell)
        self._strategy = strategy_of(model)
        self.exhaustive_macs = self._strategy.exhaustive_macs(image.shape[:2], self._dense)
        self.pilot = Pilot.none(self.cell_shape)
        self._notes: dict[str, None] = {}
        self._whole = config.exhaustive or self._needs_no_scan()
        self.sample = self._checked_sample()
        self.audits = bool(self.sample or config.recall)

    def _checked_sample(self) -> float:
        """Share of the exhaustive pass's multiply-adds for a random sample."""
        config, model = self._config, self._model
        if not model.refiner.learns:
            # A sample by the expert alone says nothing of what its alternatives miss.
            return 0.0 if self._routes else config.sample
        if config.recall or config.audit:
            raise ValueError(
                f"{model.name} was not fitted to anything, so there is no recall to speak of: leave out recall and "
                "audit, or fit a model"
            )
        return 0.0

    @property
    def _routes(self) -> bool:
        """Whether cells are routed to alternatives of the refiner: unless something is stated of its own finds."""
        config = self._config
        return self._model.refiner.routed and config.budget is None and config.recall is None and not config.audit

    def refine_all(self) -> None:
        """Make it the exhaustive pass, which needs no scan; without effect if the refiner needs one."""
        self._whole = self._whole or not self._strategy.needed

    def _needs_no_scan(self) -> bool:
        """Whether a scan does not pay with this model, and nothing limits the analysis."""
        return not (self._model.refiner.screened or self._config.limited)

    @cached_property
    def scans(self) -> bool:
        """Whether a scan comes first. If not, every cell is refined, so that it would save nothing."""
        if self._strategy.needed:
            return True
        self._whole = self._whole or self._scan_exceeds_all() or not self._pays()
        return not self._whole

    @property
    def least_macs(self) -> int:
        """Least multiply-adds of the scan, if there is one."""
        if not self.scans:
            return 0
        return self._strategy.least_macs(self._image.shape[:2], self.inside, self._most_after_scan())

    def look(self, tick: Tick | None) -> tuple[Scan, Any]:
        """The scan, and the context that the refiner learns from the image, or None."""
        if not self.scans:
            return Scan.none(), None
        most, closer = self._most_after_scan(), self._closer_macs()
        scanning = partial(self._strategy.scan, self._image, self.runtime, self.inside, self._config.seed, most, tick)
        scan, learned = self._checkpoint.scan_or_load(partial(scanning, closer_macs=closer))
        return self._masked(scan), scan.leaves if self._routes else learned

    def _most_after_scan(self) -> int:
        """Multiply-adds left for everything after the scan of the plane."""
        most = self._dense_macs
        if self.budget is None:
            return most
        left = int(self.budget * self.exhaustive_macs) - scan_macs(self._model, self._image.shape[:2])
        return min(most, left)

    def _closer_macs(self) -> int:
        """Multiply-adds that closer looks may take to find windows for a whole limit: elsewhere nothing is known."""
        side, limits = self._model.window, list[float]()
        if self.budget is not None:
            limits.append(self._most_after_scan() - self.sample * self.exhaustive_macs)
        if self.cells is not None:
            limits.append(self.cells * self._model.window_macs(side, side) / side**2)
        return int(_CLOSER * max(0.0, min(limits, default=0.0)))

    def _scan_exceeds_all(self) -> bool:
        """Whether the scan alone would cost more than the exhaustive pass, and no limit excludes that pass."""
        config = self._config
        default = config.budget is None and config.cells is None and config.recall is None
        return default and scan_macs(self._model, self._image.shape[:2], self.inside) > self.exhaustive_macs

    def _masked(self, scan: Scan) -> Scan:
        return scan if self._unmasked else replace(scan, interest=scan.interest * self.inside)

    @cached_property
    def _unmasked(self) -> bool:
        """Whether every cell is to be analysed."""
        return bool(self.inside.all())

    @cached_property
    def _dense(self) -> Plan:
        """The exhaustive pass."""
        model = self._model
        if self._unmasked:
            return dense_plan(self.cell_shape, model.longest_window)
        return cover(self.inside, model.window_macs, model.longest_window)

    @cached_property
    def _dense_macs(self) -> int:
        """Multiply-adds of the exhaustive pass, with what specialists may take."""
        return self._dense.macs(self._model.window_macs)

    @property
    def _prices_first(self) -> bool:
        return self._config.recall is not None and not self._config.limited and not self._whole

    def _pays(self) -> bool:
        """Whether a scan pays: always, except if refining everything seems cheaper for certifying a recall."""
        config, macs = self._config, self._dense_macs
        if config.recall is None or not self._prices_first:
            return True
        bare = self._audit_state(
            np.zeros(self.cell_shape, np.float32),
            ~self.inside,
            Candidates.empty(),
            partial(self.refine_piece, learned=None),
        )
        pilot = Pilot.draw(bare, macs, config.recall, confidence=config.confidence, seed=config.seed)
        self.pilot = pilot or self.pilot
        return scan_pays(pilot, scan_macs(self._model, self._image.shape[:2], self.inside), macs)

    def _audit_state(
        self,
        interest: NDArray[np.float32],
        covered: NDArray[np.bool_],
        candidates: Candidates,
        refine: Callable[[Plan], Refinement],
    ) -> AuditState:
        """State of the audit, including the pilot's finds."""
        at = AuditState(self._model, interest, covered, candidates, self.threshold, refine, self._config.cap)
        return at.with_more(self.pilot.candidates, self.pilot.covered) if self.pilot.macs else at

    def choose(self, scan: Scan) -> Plan:
        """The windows to refine."""
        plan = self._choose(scan)
        return plan if self._unmasked else plan.take(plan.touching(self.inside))

    def _choose(self, scan: Scan) -> Plan:
        config, model = self._config, self._model
        if self._whole:
            return self._dense
        if self.cells is not None:
            return self._few(scan, self.cells) if self.cells else Plan.empty(self.cell_shape)
        chosen = partial(
            choose, scan.interest, model.window, window_macs=model.window_macs, longest=model.longest_window
        )
        if self.budget is None and self._strategy.default_share is None:
            plan = chosen(tau=model.tau)
            if config.recall is not None:
                pilot = self.pilot if self._prices_first else None
                spent = scan.macs + self.pilot.macs
                return affordable(plan, pilot, spent, self._dense, model.window_macs)
            return plan if config.limited else self._cheapest(plan)
        left = self._left(scan)
        if config.recall is None:
            return chosen(budget_macs=left)
        # The other half is for the audit, which itself begins with further windows if that makes the whole cheaper.
        return chosen(budget_macs=left // 2, tau=model.tau)

    def _left(self, scan: Scan) -> int:
        """Multiply-adds left for windows."""
        share, usual = self.budget, self._strategy.default_share
        if share is None and usual is None:
            return int(MOST_OVER * self._dense_macs) - scan.macs
        left = int(((share or usual or 0) - self.sample) * self.exhaustive_macs) - scan.macs
        # In a small image the scan and its sample may use up the default share; half of it is for windows all the same.
        return left if share is not None else max(left, int((usual or 0) / 2 * self.exhaustive_macs))

    def _few(self, scan: Scan, cells: int) -> Plan:
        """The smallest windows within `cells`; if they cost too much, those of the size that covers most interest."""
        window, macs, left = self._model.window, self._model.window_macs, self._left(scan)
        plan = choose(scan.interest, window, window_macs=macs, budget_cells=cells)
        if not len(plan) or plan.macs(macs) <= left:
            return plan
        if self.budget is None:
            left = max(left, int(plan.costs(macs)[0]))  # at least one window after a scan
        most = min(math.isqrt(cells), self._model.longest_window)
        sides = (window, *(side for side in _LARGER if window < side <= most))
        plans = [choose(scan.interest, s, window_macs=macs, budget_macs=left, budget_cells=cells) for s in sides]
        return max(plans, key=lambda each: float(scan.interest[each.covered()].sum()))

    def _cheapest(self, plan: Plan) -> Plan:
        """The plan, or the exhaustive pass if that costs less than the plan and its audit."""
        macs = plan.macs(self._model.window_macs) + self.sample * self.exhaustive_macs
        return plan if macs < self._dense_macs else self._dense

    def refine(
        self, plan: Plan, learned: Any, tick: Tick | None = None, *, deadline: float | None = None
    ) -> Refinement:
        """Refine a plan: in pieces that the checkpoint stores, or without it if there is a deadline.

        Parameters
        ----------
        plan : Plan
        learned : object
        tick : callable, optional
        deadline : float, optional
            Earlier than that of the whole analysis.
        """
        closely = self._closely(learned)
        if self.deadline is not None:
            fine = closely(plan, tick=tick, deadline=deadline or self.deadline)
        else:
            fine = refine_in_pieces(plan, self._model, self._checkpoint, closely, tick)
        self._notes |= dict.fromkeys(fine.notes)
        if self._unmasked:
            return fine
        y, x = fine.candidates.cells.T // self._model.geometry.fine
        return replace(fine, candidates=fine.candidates.take(self.inside[y, x]))

    def _refine_more(self, plan: Plan, learned: Any, tick: Tick | None) -> Refinement:
        """Refine further windows for an audit: none after the deadline."""
        if self.deadline is not None and time.perf_counter() >= self.deadline:
            return Refinement.none(late=True)
        return self.refine(plan, learned, tick)

    def refine_piece(self, plan: Plan, learned: Any) -> Refinement:
        """Refine one piece of a plan, or load it from the checkpoint."""
        fine = self._checkpoint.refine_or_load(plan, self._closely(learned))
        self._notes |= dict.fromkeys(fine.notes)
        return fine

    def check_refined(self, plan: Plan, fine: Refinement) -> None:
        """Raise an ExpertError if the refiner failed on every window of the plan: the image is not the reason."""
        if 0 < len(plan) == fine.refused:
            raise ExpertError(f"nothing could be refined, {len(plan):,} of {len(plan):,} failed: {fine.failures[-1]}")

    def leaves(self, learned: Any, refined: NDArray[np.bool_]) -> NDArray[np.int32] | None:
        """Leaves by which the refined cells were routed; None if they were not."""
        return None if learned is None or not self._model.refiner.routed else np.asarray(learned[refined])

    def notes(self, candidates: Candidates, leaves: NDArray[np.int32] | None = None) -> list[str]:
        """Notes of the refiner on its work and its finds.

        Parameters
        ----------
        candidates : Candidates
        leaves : ndarray, int32, (n,), optional
            Leaves by which the refined cells were routed.
        """
        refiner, cell = self._model.refiner, self._model.geometry.fine_cell
        shape = (self._image.height / cell, self._image.width / cell)
        sure = candidates.take(candidates.scores >= self.threshold)
        return [*self._notes, *(refiner.routing_notes(leaves) if refiner.routed else ()), *refiner.notes(sure, shape)]

    def _closely(self, learned: Any) -> Callable[..., Refinement]:
        return partial(
            refine,
            self._image,
            model=self._model,
            runtime=self.runtime,
            floor=self.threshold,
            learned=learned if self._model.scan_groups is None else self._fired(learned),
            batch_size=self._config.batch_size,
            capped=not self._whole and (self.budget is not None or self._config.recall is not None),
        )

    def _fired(self, groups: NDArray[np.uint16] | None) -> NDArray[np.uint16]:
        """`Scan.groups` of the part to analyse: outside nothing fires, and nothing has to be scanned."""
        found = np.zeros(self.cell_shape, np.uint16) if groups is None else groups
        return found if self._unmasked else np.where(self.inside, found, SCANNED)

    def audit(self, scan: Scan, plan: Plan, fine: Refinement, learned: Any, tick: Tick | None = None) -> Audited:
        """Certify or sample after scan and refinement; neither if the refinement was cut short."""
        interest = scan.interest if scan.interest.size else np.zeros(self.cell_shape, np.float32)
        again = partial(self._refine_more, learned=learned, tick=tick)
        covered = plan.take(fine.done).covered()
        if not self._unmasked:
            covered |= ~self.inside
        state = self._audit_state(interest, covered, fine.candidates, again)
        config = self._config
        if config.recall is not None and not fine.cut:
            most = MOST_OVER * self._dense_macs
            share = math.inf if self.budget is None else self.budget * self.exhaustive_macs
            left = int(min(most, share)) - scan.macs - fine.macs - self.pilot.macs
            return certify(state, config.recall, confidence=config.confidence, seed=config.seed, most_macs=left)
        macs = int(self.sample * self.exhaustive_macs)
        if fine.cut or not macs:
            return Audited.none(state, None if config.recall is None and not macs else config.confidence)
        return survey(state, macs, confidence=config.confidence, seed=config.seed, if_telling=config.audit is None)

    def spent(self, scan: Scan, fine: Refinement, audited: Audited) -> dict[str, int]:
        """Multiply-adds and cells of the analysis, by the names of `Cost`'s fields."""
        refined = int((audited.refined & self.inside).sum())
        exhaustive = self.exhaustive_macs
        if self._whole and refined == self.inside.sum() and self._model.expert is None:
            # The cost of specialists and columns depends on the image: this run was the exhaustive pass, use its own.
            exhaustive = scan.macs + fine.macs
        return {
            "scan_macs": scan.macs,
            "refine_macs": fine.macs,
            "audit_macs": self.pilot.macs + audited.macs,
            "exhaustive_macs": exhaustive,
            "cells": int(self.inside.sum()),
            "cells_refined": refined,
        }
