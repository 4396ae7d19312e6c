"""Ours and the rivals on one scene: each an interest map, through the same windows and the same refine net."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from coarse2fine.bench.lookup import Point, Trial
from coarse2fine.bench.probe import Probe
from coarse2fine.bench.sweep import Reference, Sweep
from coarse2fine.fitting.teacher import settle
from coarse2fine.model import Model
from coarse2fine.preprocess import as_channels
from coarse2fine.steps.choose import choose
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.image import Image

TILE_CELLS = 32
"""Side of the windows of "tiles": a square that large pays little for its halo."""
_BLOCK_CELLS = 128


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


def random_interest(cell_shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    """Cells in random order."""
    return np.random.default_rng(seed).random(cell_shape, np.float32)


def gradient_interest(image: Image, model: Model) -> NDArray[np.float32]:
    """Largest absolute Laplacian of each cell's grey pixels, at the scan's resolution."""
    interest = np.zeros(model.cell_shape((image.height, image.width)), np.float32)
    for cell_box in blocks(*interest.shape, _BLOCK_CELLS):
        grey = _grey(image, model, cell_box, margin=1)
        edges = np.abs(cv2.Laplacian(grey, cv2.CV_32F))[1:-1, 1:-1]
        _view(interest, cell_box)[:] = _per_cell(edges, cell_box).max(axis=(1, 3))
    return interest


def filled(image: Image, model: Model) -> NDArray[np.bool_]:
    """Cells that are not empty.

    A cell is empty where the standard deviation of the grey pixels in it and its eight neighbours, at the scan's
    resolution, is not above Otsu's threshold over the image (Otsu 1979).
    """
    shape = model.cell_shape((image.height, image.width))
    mean, square = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for cell_box in blocks(*shape, _BLOCK_CELLS):
        pixels = _per_cell(_grey(image, model, cell_box, margin=0) / np.float32(255), cell_box)
        _view(mean, cell_box)[:] = pixels.mean(axis=(1, 3))
        _view(square, cell_box)[:] = (pixels**2).mean(axis=(1, 3))
    variance = cv2.blur(square, (3, 3)) - cv2.blur(mean, (3, 3)) ** 2
    deviation = np.sqrt(variance.clip(min=0))
    mask: NDArray[np.bool_] = deviation > threshold_otsu(deviation)
    return mask


def oracle_interest(cells: NDArray[np.int64], cell_shape: tuple[int, int]) -> NDArray[np.float32]:
    """The number of the exhaustive pass's own finds in each cell: what no method can know, and the most to be had.

    Parameters
    ----------
    cells : ndarray, int64, (n, 2)
        Cells (y, x) of the finds.
    cell_shape : tuple of int
    """
    interest = np.zeros(cell_shape, np.float32)
    np.add.at(interest, (cells[:, 0], cells[:, 1]), 1)
    return interest


def _grey(image: Image, model: Model, cell_box: Box, margin: int) -> NDArray[np.float32]:
    level_box = cell_box.scale(model.base.spec.stride).expand(margin)
    pixels = image.read_scaled(level_box, model.geometry.scan_downsample)
    return as_channels(pixels, 1)[..., 0].astype(np.float32)


def _per_cell(pixels: NDArray[np.float32], cell_box: Box) -> NDArray[np.float32]:
    """Pixels (h, w) as (cell rows, side, cell columns, side)."""
    return pixels.reshape(cell_box.height, pixels.shape[0] // cell_box.height, cell_box.width, -1)


def _view(cells: NDArray[np.float32], cell_box: Box) -> NDArray[np.float32]:
    return cells[cell_box.y0 : cell_box.y1, cell_box.x0 : cell_box.x1]
