"""From few windows to all of them: recall against cost, and the least cost of a recall."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench.lookup import Point, Trial
from coarse2fine.steps.choose import merge_windows
from coarse2fine.steps.plan import dense_plan
from coarse2fine.steps.windows import best_windows

Reference = Literal["exhaustive", "labels"]

_FIRST_SHARE = 2e-3
_STEP = 1.35
_FINEST = 1.01


class Sweep:
    """A method's windows on one scene, best first, cut off anywhere; each cut is looked up when asked for.

    Parameters
    ----------
    trial : Trial
    interest : ndarray, float32, (cell height, cell width)
        What the method ranks cells by.
    window : int
        Side of its smallest windows, in cells.
    scan_macs : int
        Multiply-adds that its choice takes.
    """

    def __init__(self, trial: Trial, interest: NDArray[np.float32], window: int, scan_macs: int) -> None:
        self._trial, self._scan_macs = trial, scan_macs
        self._side = min(window, *trial.cell_shape)
        self._corners, self._scores = best_windows(interest, self._side, 0.0)
        self._points: dict[int, Point] = {}
        # Whatever is left when its windows end, or cost more than everything, the exhaustive pass finds.
        self._everything = trial.point(dense_plan(trial.cell_shape), scan_macs)
        count = self._first()
        while count < len(self._scores) and self._at(count).share < self._everything.share:
            count = max(count + 1, round(count * _STEP))
        if len(self._scores):
            self._at(min(count, len(self._scores)))

    def points(self) -> list[Point]:
        """Those looked up so far and the exhaustive pass, the cheapest first."""
        return sorted([*self._points.values(), self._everything], key=lambda p: p.share)

    def least(self, reference: Reference, recall: float) -> Point:
        """The cheapest point that reaches a recall, within a hundredth of its windows.

        Parameters
        ----------
        reference : {"exhaustive", "labels"}
            What recall is measured against.
        recall : float
            At most the exhaustive pass's own.
        """

        def enough(point: Point) -> bool:
            return bool(getattr(point.score, reference) >= recall * (1 - 1e-9))

        reached = sorted(n for n, p in self._points.items() if enough(p))
        if reached:
            low = max((n for n in self._points if n < reached[0]), default=0)
            high = reached[0]
            while high - low > 1 and high > low * _FINEST:
                middle = (low + high) // 2
                low, high = (low, middle) if enough(self._at(middle)) else (middle, high)
        return min((p for p in self.points() if enough(p)), key=lambda p: p.share, default=self._everything)

    def _first(self) -> int:
        """Windows of the first step, for a small share of the exhaustive pass's cost."""
        return max(
            1, int(_FIRST_SHARE * self._trial.exhaustive_macs / self._trial.model.window_macs(self._side, self._side))
        )

    def _at(self, count: int) -> Point:
        if count not in self._points:
            model, shape = self._trial.model, self._trial.cell_shape
            corners, scores = self._corners[:count], self._scores[:count]
            plan = merge_windows(corners, scores, self._side, shape, model.window_macs)
            self._points[count] = self._trial.point(plan, self._scan_macs)
        return self._points[count]
