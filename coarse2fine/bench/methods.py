"""Ours and the rivals on one scene: each an interest map, through the same windows and the same refine net."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench.probe import Probe
from coarse2fine.bench.rivals import TILE_CELLS, filled, gradient_interest, oracle_interest, random_interest
from coarse2fine.bench.sweep import Reference, Sweep
from coarse2fine.bench.trial import Point, Trial
from coarse2fine.fitting.calibrate import settle
from coarse2fine.select import choose

OURS = "ours"
_RIVAL_WINDOW = 2


class Method:
    """One way to choose windows, on one scene.

    Parameters
    ----------
    name : str
    trial : Trial
    interest : ndarray, float32, (cell height, cell width)
        What it ranks cells by.
    windows : sequence of int
        Sides of its smallest windows, in cells; what is cheapest of these counts.
    scan_macs : int
        Multiply-adds that its choice takes.
    """

    def __init__(
        self, name: str, trial: Trial, interest: NDArray[np.float32], windows: tuple[int, ...], scan_macs: int = 0
    ) -> None:
        self.name, self._trial, self._interest, self._windows = name, trial, interest, windows
        self.scan_macs = scan_macs
        self._sweeps = [Sweep(trial, interest, window, scan_macs) for window in windows]

    def points(self) -> list[list[Point]]:
        """What was looked up so far, for each size of windows."""
        return [sweep.points() for sweep in self._sweeps]

    def least(self, reference: Reference, recall: float) -> Point:
        """The cheapest way to a recall."""
        return min((s.least(reference, recall) for s in self._sweeps), key=lambda p: p.share)

    def within(self, macs: int) -> Point | None:
        """The most that is found for so many multiply-adds in all; None where the choice alone takes more."""
        if macs < self.scan_macs:
            return None
        left, trial = macs - self.scan_macs, self._trial
        plans = [
            choose(self._interest, window, window_macs=trial.model.window_macs, budget_macs=left)
            for window in self._windows
        ]
        found = [trial.point(plan, self.scan_macs) for plan in plans]
        return max(found, key=lambda p: np.nan_to_num(p.score.exhaustive))

    def above(self, tau: float) -> Point:
        """The windows above a threshold, as `analyze` takes them."""
        trial = self._trial
        plan = choose(self._interest, self._windows[0], window_macs=trial.model.window_macs, tau=tau)
        return trial.point(plan, self.scan_macs)


def methods(trial: Trial, probe: Probe | None, seed: int) -> Iterator[Method]:
    """Ours first, then the rivals, whose maps count as free.

    Parameters
    ----------
    trial : Trial
    probe : Probe, optional
        Fitted on the scenes that the model was fitted on; left out where there is none.
    seed : int
        Of the random rivals.
    """
    model, image, shape = trial.model, trial.image, trial.cell_shape
    yield Method(OURS, trial, trial.scan.interest, (model.window,), trial.scan.macs)
    windows = tuple(sorted({_RIVAL_WINDOW, model.window}))
    if probe is not None:
        yield Method("probe", trial, probe.interest(image, model), windows)
    # Squares: a window's sum then follows its strongest edge.
    yield Method("gradient", trial, gradient_interest(image, model) ** 2, windows)
    there, chance = filled(image, model), random_interest(shape, seed)
    yield Method("mask", trial, there * chance, windows)
    yield Method("tiles", trial, there.astype(np.float32), (TILE_CELLS,))
    yield Method("random", trial, chance, windows)
    finds = settle(trial.candidates, model).cells.astype(np.int64) // model.geometry.fine
    yield Method("oracle", trial, oracle_interest(finds, shape), windows)
