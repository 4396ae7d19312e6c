"""Population of an audit: the cells that a plan skipped, in blocks that can be refined one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.caps import object_cap, spacing
from coarse2fine.config import Cap
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.refiners.suppress import repeats, suppress
from coarse2fine.steps.plan import Plan, cover
from coarse2fine.steps.refine import Refinement
from coarse2fine.tiling.geometry import ceil_div

BLOCK_SIDES = (1, 2, 4, 8, 16)
# Blocks in an image, unless the largest are more.
_MOST_BLOCKS = 2**23
# Candidates from which double counting at block borders is estimated.
_ENOUGH = 1500
# Share of the allowed misses that is typically still missed while a certification draws blocks (see `certify`).
_LEFT = 0.3

Kind = Literal["object", "area"]
"""Unit that is counted: objects, or the fine cells of areas."""
Refine = Callable[[Plan], Refinement]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class AuditState:
    """State of an image when an audit begins.

    Parameters
    ----------
    model : Model
        A fitted one.
    interest : ndarray, float32, (cell height, cell width)
        Probability that refining the cell finds something.
    covered : ndarray, bool, (cell height, cell width)
        Cells that were refined.
    candidates : Candidates
        Candidates from these cells.
    threshold : float
        Least probability of a find.
    refine : callable
        Refines the windows of a plan.
    cap : {"seen", "certain"}
        Rule for the most objects in a block: see `coarse2fine.audit.caps`.
    scale : float
        Finds that are expected in a cell, as a multiple of its interest.
    """

    model: Model
    interest: NDArray[np.float32]
    covered: NDArray[np.bool_]
    candidates: Candidates
    threshold: float
    refine: Refine
    cap: Cap = "seen"
    scale: float = 1.0

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds that the model finds: objects, areas or both."""
        areas = self.model.areas
        return (*(("object",) if not areas.all() else ()), *(("area",) if areas.any() else ()))

    def of_kind(self, finds: Candidates) -> NDArray[np.intp]:
        """Index into `kinds` of each find."""
        area = self.model.areas[finds.labels].astype(np.intp)
        return area if len(self.kinds) > 1 else np.zeros(len(finds), np.intp)

    def counts(self, finds: Candidates | None = None) -> tuple[int, ...]:
        """Number of finds of each kind; by default of all finds."""
        return tuple(
            np.bincount(self.of_kind(self.finds() if finds is None else finds), minlength=len(self.kinds)).tolist()
        )

    @property
    def cell_shape(self) -> tuple[int, int]:
        """Cells of the image."""
        return self.covered.shape[0], self.covered.shape[1]

    def scaled(self, factor: float) -> AuditState:
        """Copy that expects `factor` times as many finds."""
        return replace(self, scale=self.scale * factor)

    def with_more(self, candidates: Candidates, covered: NDArray[np.bool_]) -> AuditState:
        """Copy with more candidates and refined cells; each fine cell once, in raster order."""
        return replace(self, covered=self.covered | covered, candidates=self.known_with(candidates))

    def known_with(self, candidates: Candidates) -> Candidates:
        """The candidates with more of them, each fine cell once, in raster order."""
        every = Candidates.concatenate([self.candidates, candidates])
        return every.distinct(self.covered.shape[1] * self.model.geometry.fine)

    def finds(self) -> Candidates:
        """Candidates at or above the threshold: each object once, and every fine cell of an area.

        If the refiner finds each object in one fine cell only, nothing is suppressed, so that counts are additive.
        """
        sure = self.candidates.take(self.candidates.scores >= self.threshold)
        if self.model.refiner.counts_once:
            return sure
        area = self.model.areas[sure.labels]
        return Candidates.concatenate([suppress(sure.take(~area)), sure.take(area)])


class Blocks:
    """Squares of cells that were not refined completely, numbered from 0.

    The content of a block does not depend on what else is refined: for each kind, the number of finds in its skipped
    cells, each object once, without those known when the audit began. An object on the border of two blocks may count
    in both, which makes bounds on misses larger, not wrong.

    Parameters
    ----------
    state : AuditState

    Attributes
    ----------
    kinds : tuple of str
        Kinds that the model finds: objects, areas, or both.
    side : int
        Side of a block in cells.
    caps : ndarray, float64, (k, n)
        Most finds of each kind that each block can hold.
    certain : tuple of bool
        For each kind, whether its caps need no assumption.
    macs_each, rest_macs : int
        Multiply-adds of one block, and of all cells not yet refined, in the cheapest windows.
    macs : int
        Multiply-adds spent on blocks.
    failures : tuple of str
        Parts of the image that could not be read.
    cut : bool
        Whether Ctrl-C or a deadline ended work early.
    exhausted : bool
        Whether every cell was refined, as far as it can be read.
    """

    def __init__(self, state: AuditState) -> None:
        self._at, self.kinds = state, state.kinds
        known, model = state.finds(), state.model
        self._known = known.take(~model.areas[known.labels])  # an area's cell hides no object
        self._skipped = ~state.covered
        self.side, caps = _best_side(state, known)
        self.macs_each = model.window_macs(self.side, self.side)
        skipped = _per_block(self._skipped, self.side)
        self._columns = skipped.shape[1]
        self._numbers = np.flatnonzero(skipped)
        most = skipped.ravel()[self._numbers] * model.geometry.fine**2 * model.refiner.most_in_cell
        self.caps = np.minimum(np.array(caps, np.float64)[:, None], most)
        certain = (self.side * model.geometry.fine) ** 2 * model.refiner.most_in_cell
        self.certain = tuple(cap >= certain for cap in caps)
        self._found: list[Candidates] = []
        self._refined = state.covered
        # With the cells that could not be refined, which hold no finds and are not tried again.
        self._tried = state.covered
        self.macs = 0
        self.failures: tuple[str, ...] = ()
        self.cut = self.exhausted = False

    def __len__(self) -> int:
        return len(self._numbers)

    @cached_property
    def expected(self) -> NDArray[np.float64]:
        """Finds (k, n) of each kind that the scan expects in the skipped cells of each block."""
        at = self._at
        sums = _per_block(at.interest, self.side, self._skipped).ravel()[self._numbers]
        return np.asarray(_shares(at, at.finds())[:, None] * sums * at.scale)

    @property
    def candidates(self) -> Candidates:
        """All candidates by now, each fine cell once, in raster order."""
        return self._at.known_with(Candidates.concatenate(self._found))

    @property
    def cell_shape(self) -> tuple[int, int]:
        """Cells of the image."""
        return self._at.cell_shape

    @property
    def state(self) -> AuditState:
        """State after the work so far, from which another audit can begin."""
        return self._at.with_more(Candidates.concatenate(self._found), self._refined)

    @property
    def refined(self) -> NDArray[np.bool_]:
        """Map of the cells refined by now, (cell height, cell width)."""
        return self._refined

    @property
    def rest_macs(self) -> int:
        return self._rest().macs(self._at.model.window_macs)

    def finds(self) -> tuple[int, ...]:
        """Finds of each kind by now, each object once."""
        return replace(self._at, candidates=self.candidates).counts()

    def look(self, index: Counts) -> Counts | None:
        """Refine blocks; returns the finds (k, n) of each kind and block, or None if it was cut short.

        Pixels that cannot be read hold no finds: the exhaustive pass would find nothing there either.
        """
        numbers = self._numbers[index]
        corners = np.stack(np.divmod(numbers, self._columns), axis=1).astype(np.int64) * self.side
        count = len(index)
        plan = Plan(corners, np.full((count, 2), self.side, np.int64), np.ones(count, np.float32), self._at.cell_shape)
        self._refine(plan)
        return None if self.cut else self._held(index)

    def pieces(self, side: int) -> tuple[Plan, NDArray[np.int64], NDArray[np.float64]]:
        """All cells not yet refined, in rectangles of at most `side` cells a side, most expected finds per cost first.

        Returns
        -------
        plan : Plan
        costs : ndarray, int64, (n,)
            Multiply-adds of each rectangle.
        shares : ndarray, float64, (n,)
            Share of each in the finds that the scan expects in all of them.
        """
        left, model = ~self._tried, self._at.model
        plan = cover(left, model.window_macs, min(side, model.longest_window))
        expected = np.where(left, self._at.interest * np.float32(self._at.scale), 0)
        # The scan may be blind to objects: add the mean expectation to every cell.
        expected += left * max(expected.sum(dtype=np.float64) / max(left.sum(), 1), 1e-9)
        corners = zip(plan.cell_corners.tolist(), plan.sides.tolist(), strict=True)
        held = np.array([expected[y : y + h, x : x + w].sum(dtype=np.float64) for (y, x), (h, w) in corners])
        costs, shares = plan.costs(model.window_macs), held / max(held.sum(), 1e-300)
        order = np.argsort(-shares / costs, kind="stable")
        return plan.take(order), costs[order], shares[order]

    def look_widely(self, plan: Plan) -> tuple[Counts, Counts] | None:
        """Refine rectangles; returns the blocks (n,) that are refined whole by it, and their finds (k, n) by kind.

        None if it was cut short.
        """
        before = self._whole()
        self._refine(plan)
        if self.cut:
            return None
        self.exhausted = bool(self._tried.all())
        index = np.flatnonzero(self._whole() & ~before)
        return index, self._held(index)

    def _whole(self) -> NDArray[np.bool_]:
        """Mask of the blocks that have no cell left to refine."""
        return np.asarray(_per_block(~self._tried, self.side).ravel()[self._numbers] == 0)

    def _held(self, index: Counts) -> Counts:
        """Finds (k, n) of each kind in refined blocks."""
        numbers, count = self._numbers[index], len(index)
        finds = self._once(self._fresh(numbers))
        homes, kinds = self._home(finds), self._at.of_kind(finds)
        order = np.argsort(numbers)
        place = order[np.searchsorted(numbers, homes, sorter=order)]
        found = np.bincount(kinds * count + place, minlength=len(self.kinds) * count)
        return found.astype(np.int64).reshape(len(self.kinds), count)

    def look_at_rest(self) -> None:
        """Refine all cells that are left."""
        self._refine(self._rest())
        self.exhausted = not self.cut

    def _refine(self, plan: Plan) -> None:
        # By single windows of the refiner: one that fails must not take the others of its block with it.
        plan = plan.divided(self._at.model.longest_window)[0]
        fine = self._at.refine(plan)
        self.macs += fine.macs
        self.failures = tuple(dict.fromkeys(self.failures + fine.failures))
        self.cut |= fine.cut
        # New maps: the first of each is the state's own.
        self._refined = self._refined | plan.take(fine.done).covered()
        if not fine.cut:
            self._tried = self._tried | plan.covered()
        self._found.append(fine.candidates)

    def _fresh(self, numbers: Counts) -> Candidates:
        """Finds in the skipped cells of some blocks, each fine cell once."""
        known = self.candidates
        sure = known.take(known.scores >= self._at.threshold)
        sure = sure.take(np.isin(self._home(sure), numbers))
        cells = sure.cells // self._at.model.geometry.fine
        return sure.take(self._skipped[cells[:, 0], cells[:, 1]])

    def _rest(self) -> Plan:
        model = self._at.model
        return cover(~self._tried, model.window_macs, model.longest_window)

    def _once(self, fresh: Candidates) -> Candidates:
        """Each object once in its block, without those known before the audit; all fine cells of areas."""
        if self._at.model.refiner.counts_once:
            return fresh
        area = self._at.model.areas[fresh.labels]
        objects = suppress(fresh.take(~area), self._home(fresh.take(~area)))
        return Candidates.concatenate([objects.take(~repeats(objects, self._known)), fresh.take(area)])

    def _home(self, candidates: Candidates) -> NDArray[np.int64]:
        block = candidates.cells.astype(np.int64) // (self.side * self._at.model.geometry.fine)
        return np.asarray(block[:, 0] * self._columns + block[:, 1])


def _per_block(cells: NDArray[np.generic], side: int, where: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Sums over squares of `side` cells; of the cells `where` alone, if that is given."""
    height, width = cells.shape
    sums = np.zeros((ceil_div(height, side), ceil_div(width, side)))
    # One row of squares at a time: sums stay in the processor's cache, and no map is copied.
    for number, y in enumerate(range(0, height, side)):
        rows = cells[y : y + side]
        kept = rows if where is None else np.where(where[y : y + side], rows, 0)
        columns = kept.sum(axis=0, dtype=np.float64)
        for first in range(min(side, width)):
            every = columns[first::side]
            sums[number, : len(every)] += every
    return sums


def _shares(state: AuditState, known: Candidates) -> NDArray[np.float64]:
    """Share of each kind in the finds so far; the scan's expectation, which does not separate kinds, is split by it."""
    found = np.array(state.counts(known), np.float64) + 1
    return np.asarray(found / found.sum())


def _best_side(state: AuditState, known: Candidates) -> tuple[int, tuple[int, ...]]:
    """Side of block with the cheapest bound, and the most finds of each kind in such a block."""
    model = state.model
    objects = known.take(~model.areas[known.labels])
    height, width = state.cell_shape
    sides = [side for side in BLOCK_SIDES if side <= max(height, width)]
    # Of a huge image only larger blocks: their numbers and chances are kept in memory.
    sides = [side for side in sides if height * width <= _MOST_BLOCKS * side**2] or sides[-1:]
    distance = spacing(objects) if state.cap == "seen" else 0.0
    caps = {side: tuple(_cap(model, kind, objects, side, distance) for kind in state.kinds) for side in sides}
    found = np.array(state.counts(known), np.float64) + 1

    def price(side: int) -> float:
        # The number of draws is in proportion to the number of blocks, and to the cap over the allowed misses.
        draws = float((np.array(caps[side]) / found).max()) / side**2
        return draws * model.window_macs(side, side) / max(0.1, 1 - _LEFT * _repeated(state, side))

    side = min(sides, key=price)
    return side, caps[side]


def _cap(model: Model, kind: Kind, objects: Candidates, side: int, distance: float) -> int:
    fine, most = side * model.geometry.fine, model.refiner.most_in_cell
    # Every cell of an area is a find.
    return fine**2 * most if kind == "area" else object_cap(objects, fine, distance, most)


def _repeated(state: AuditState, side: int) -> float:
    """Mean number of times that an object is counted, since each block that it touches may count it."""
    if state.model.refiner.counts_once:
        return 1.0
    near = state.candidates.take(np.arange(min(_ENOUGH, len(state.candidates))))
    near = near.take((near.scores >= state.threshold) & ~state.model.areas[near.labels])
    block = near.cells.astype(np.int64) // (side * state.model.geometry.fine)
    once = len(suppress(near))
    return len(suppress(near, block[:, 0] * 2**32 + block[:, 1])) / once if once else 1.0
