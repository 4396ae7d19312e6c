"""The cells that a plan left out, in blocks that can be refined one by one: the population of an audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coarse2fine.merge import repeats, suppress
from coarse2fine.model import Model
from coarse2fine.models.heads import Candidates
from coarse2fine.refine import Fine
from coarse2fine.select import Plan, cover

BLOCK_SIDES = (4, 8, 16)
_LEAST_CAP = 2

Refine = Callable[[Plan], Fine]


@dataclass(frozen=True)
class Standing:
    """What is known when an audit begins.

    Parameters
    ----------
    model : Model
        Of the task "detect".
    interest : ndarray, float32, (cell height, cell width)
        Probability that refining the cell finds something.
    covered : ndarray, bool, (cell height, cell width)
        Cells that were refined.
    candidates : Candidates
        What that gave.
    threshold : float
        Probability from which a find counts.
    refine : callable
        Refines the windows of a plan.
    """

    model: Model
    interest: NDArray[np.float32]
    covered: NDArray[np.bool_]
    candidates: Candidates
    threshold: float
    refine: Refine

    @property
    def cell_shape(self) -> tuple[int, int]:
        """Cells of the image."""
        return self.covered.shape[0], self.covered.shape[1]

    def scaled(self, factor: float) -> Standing:
        """The same with another idea of how much there is."""
        return replace(self, interest=self.interest * np.float32(factor))

    def with_more(self, candidates: Candidates, covered: NDArray[np.bool_]) -> Standing:
        """After more was refined; each fine cell once, in raster order."""
        every = Candidates.concatenate([self.candidates, candidates])
        width = self.covered.shape[1] * self.model.geometry.fine
        return replace(self, covered=self.covered | covered, candidates=every.distinct(width))

    def finds(self) -> Candidates:
        """Sure candidates, each object once; of an area every cell."""
        sure = self.candidates.take(self.candidates.scores >= self.threshold)
        area = self.model.areas[sure.labels]
        return Candidates.concatenate([suppress(sure.take(~area)), sure.take(area)])


class Blocks:
    """Squares of cells with something in them that was not refined, numbered from 0.

    What a block holds is a number of its own, whatever else is refined: the finds in its skipped cells, each object
    once, without those that were known when the audit began. An object on the border of two blocks may count in both:
    an audit then errs on the safe side.

    Parameters
    ----------
    standing : Standing

    Attributes
    ----------
    side : int
        Of a block, in cells.
    cap : int
        Most finds that any block of this size was seen to hold.
    expected : ndarray, float64, (n,)
        Finds that the scan expects in the skipped cells of each.
    macs_each, rest_macs : int
        Multiply-adds of one block, and of all cells not yet refined, at its cheapest.
    macs : int
        Multiply-adds spent on blocks.
    failures : tuple of str
        What could not be read.
    interrupted, cut : bool
        Whether Ctrl-C ended work early; whether that or a deadline did.
    exhausted : bool
        Whether every cell was refined, as far as it can be read.
    """

    def __init__(self, standing: Standing) -> None:
        self._at = standing
        self._known = standing.finds()
        model, shape = standing.model, standing.covered.shape
        self.side, self.cap = _best_side(model, self._known, max(shape))
        self.macs_each = model.window_macs(self.side, self.side)
        self._skipped = ~standing.covered
        skipped = _per_block(self._skipped, self.side)
        self._columns = skipped.shape[1]
        self._numbers = np.flatnonzero(skipped)
        hoped = _per_block(np.where(self._skipped, standing.interest, 0), self.side)
        self.expected = hoped.ravel()[self._numbers]
        self._found: list[Candidates] = []
        self._refined = standing.covered.copy()
        self.macs = 0
        self.failures: tuple[str, ...] = ()
        self.interrupted = self.cut = self.exhausted = False

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def candidates(self) -> Candidates:
        """All there are by now, each fine cell once, in raster order."""
        return self.standing.candidates

    @property
    def cell_shape(self) -> tuple[int, int]:
        """Cells of the image."""
        return self._at.cell_shape

    @property
    def standing(self) -> Standing:
        """What is known by now: the beginning of another audit."""
        return self._at.with_more(Candidates.concatenate(self._found), self._refined)

    @property
    def refined(self) -> NDArray[np.bool_]:
        """Map of the cells refined by now, (cell height, cell width)."""
        return self._refined

    @property
    def rest_macs(self) -> int:
        return self._rest().macs(self._at.model.window_macs)

    def finds(self) -> int:
        """Finds by now, each object once."""
        return len(self.standing.finds())

    def look(self, index: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Refine blocks; the finds of each, or None where it was cut short.

        What cannot be read holds nothing: the exhaustive pass would find nothing there either.
        """
        numbers = self._numbers[index]
        corners = np.stack(np.divmod(numbers, self._columns), axis=1).astype(np.int64) * self.side
        count = len(index)
        plan = Plan(corners, np.full((count, 2), self.side, np.int64), np.ones(count, np.float32), self._at.cell_shape)
        fresh = self._refine(plan)
        if self.cut:
            return None
        homes = self._homes(fresh)
        order = np.argsort(numbers)
        mine = np.isin(homes, numbers)
        place = order[np.searchsorted(numbers, homes[mine], sorter=order)]
        return np.bincount(place, minlength=count).astype(np.int64)

    def look_at_rest(self) -> None:
        """Refine every cell that is left."""
        self._refine(self._rest())
        self.exhausted = not self.cut

    def _refine(self, plan: Plan) -> Candidates:
        """Sure finds in skipped cells."""
        fine = self._at.refine(plan)
        self.macs += fine.macs
        self.failures = tuple(dict.fromkeys(self.failures + fine.failures))
        self.cut |= fine.cut
        self.interrupted |= fine.interrupted
        self._refined |= plan.take(fine.done).covered()
        self._found.append(fine.candidates)
        sure = fine.candidates.take(fine.candidates.scores >= self._at.threshold)
        cells = sure.cells // self._at.model.geometry.fine
        return sure.take(self._skipped[cells[:, 0], cells[:, 1]])

    def _rest(self) -> Plan:
        return cover(~self._refined, self._at.model.window_macs)

    def _homes(self, fresh: Candidates) -> NDArray[np.int64]:
        """The block of each find, in the grid of all blocks."""
        area = self._at.model.areas[fresh.labels]
        objects = suppress(fresh.take(~area), self._home(fresh.take(~area)))
        objects = objects.take(~repeats(objects, self._known))
        return np.concatenate([self._home(objects), self._home(fresh.take(area))])

    def _home(self, candidates: Candidates) -> NDArray[np.int64]:
        block = candidates.cells.astype(np.int64) // (self.side * self._at.model.geometry.fine)
        return np.asarray(block[:, 0] * self._columns + block[:, 1])


def _per_block(cells: NDArray[np.generic], side: int) -> NDArray[np.float64]:
    """Sums over squares of `side` cells."""
    # Row by row of squares: what is summed stays in the processor's cache.
    rows = np.stack([cells[y : y + side].sum(axis=0, dtype=np.float64) for y in range(0, cells.shape[0], side)])
    return np.asarray(np.add.reduceat(rows, np.arange(0, cells.shape[1], side), axis=1))


def _best_side(model: Model, known: Candidates, most: int) -> tuple[int, int]:
    """Side of a block with which a bound comes cheapest, and the most finds that any such block holds."""
    caps = {side: max(_LEAST_CAP, _fullest(model, known, side)) for side in BLOCK_SIDES if side <= max(most, 4)}
    # The draws that a bound takes go with the number of blocks and with the cap.
    side = min(caps, key=lambda s: caps[s] * model.window_macs(s, s) / s**2)
    return side, caps[side]


def _fullest(model: Model, known: Candidates, side: int) -> int:
    if model.areas.any():
        return (side * model.geometry.fine) ** 2  # every cell of an area is a find
    block = known.cells.astype(np.int64) // (side * model.geometry.fine)
    return int(np.unique(block, axis=0, return_counts=True)[1].max(initial=0)) if len(block) else 0
