"""Our method and the rivals on one scene: each is an interest map, with the same windows and the same refiner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench.lookup import SceneLookup
from coarse2fine.bench.probe import Probe
from coarse2fine.bench.results import Point
from coarse2fine.fitting.teacher import settle
from coarse2fine.model import Model
from coarse2fine.preprocess import as_channels
from coarse2fine.steps.choose import choose, merge_windows
from coarse2fine.steps.plan import dense_plan
from coarse2fine.steps.windows import best_windows
from coarse2fine.tiling.errors import MissingExtraError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.image import Image

try:  # on import, so that a missing extra is reported before long work
    from skimage.filters import threshold_otsu
except ImportError as error:
    raise MissingExtraError("scikit-image", "the benchmark of scenes", "benchmark") from error

Reference = Literal["exhaustive", "labels"]

OURS = "ours"
TILE_CELLS = 32
"""Side of the windows of "tiles", in cells: large enough for a small share of halo."""
_BLOCK_CELLS, _RIVAL_WINDOW = 128, 2
_FIRST_SHARE, _STEP, _FINEST = 2e-3, 1.35, 1.01


class Sweep:
    """Cost and quality of a method's best `n` windows on one scene, for any `n`, looked up when needed.

    Parameters
    ----------
    lookup : SceneLookup
    interest : ndarray, float32, (cell height, cell width)
        Rank of cells.
    window : int
        Side of the smallest windows, in cells.
    scan_macs : int
        Multiply-adds of the choice.
    """

    def __init__(self, lookup: SceneLookup, interest: NDArray[np.float32], window: int, scan_macs: int) -> None:
        self._lookup, self._scan_macs = lookup, scan_macs
        self._side = min(window, *lookup.cell_shape)
        self._corners, self._scores = best_windows(interest, self._side, 0.0)
        self._points: dict[int, Point] = {}
        # Fallback if the windows end, or cost more than refining everything: the exhaustive pass.
        self._everything = lookup.point(dense_plan(lookup.cell_shape), scan_macs)
        # The first step takes a small share of the exhaustive pass's cost.
        each = lookup.model.window_macs(self._side, self._side)
        count = max(1, int(_FIRST_SHARE * lookup.exhaustive_macs / each))
        while count < len(self._scores) and self._at(count).share < self._everything.share:
            count = max(count + 1, round(count * _STEP))
        if len(self._scores):
            self._at(min(count, len(self._scores)))

    def points(self) -> list[Point]:
        """Points looked up so far and the exhaustive pass, the cheapest first."""
        return sorted([*self._points.values(), self._everything], key=lambda p: p.share)

    def least(self, reference: Reference, recall: float) -> Point:
        """The cheapest point that reaches a recall, with at most 1 % more windows than needed.

        Parameters
        ----------
        reference : {"exhaustive", "labels"}
            Reference of the recall.
        recall : float
            At most that of the exhaustive pass.
        """

        def enough(point: Point) -> bool:
            return bool(getattr(point, f"recall_{reference}") >= recall * (1 - 1e-9))

        reached = sorted(n for n, p in self._points.items() if enough(p))
        if reached:
            low = max((n for n in self._points if n < reached[0]), default=0)
            high = reached[0]
            while high - low > 1 and high > low * _FINEST:
                middle = (low + high) // 2
                low, high = (low, middle) if enough(self._at(middle)) else (middle, high)
        return min((p for p in self.points() if enough(p)), key=lambda p: p.share, default=self._everything)

    def _at(self, count: int) -> Point:
        if count not in self._points:
            model, shape = self._lookup.model, self._lookup.cell_shape
            corners, scores = self._corners[:count], self._scores[:count]
            plan = merge_windows(corners, scores, self._side, shape, model.window_macs)
            self._points[count] = self._lookup.point(plan, self._scan_macs)
        return self._points[count]


class Method:
    """One way to choose windows, on one scene.

    Parameters
    ----------
    name : str
    lookup : SceneLookup
    interest : ndarray, float32, (cell height, cell width)
        Rank of cells.
    windows : sequence of int
        Sides of the smallest windows, in cells; the best of these counts.
    scan_macs : int
        Multiply-adds of the choice.
    """

    def __init__(
        self,
        name: str,
        lookup: SceneLookup,
        interest: NDArray[np.float32],
        windows: tuple[int, ...],
        scan_macs: int = 0,
    ) -> None:
        self.name, self._lookup, self._interest, self._windows = name, lookup, interest, windows
        self.scan_macs = scan_macs
        self._sweeps = [Sweep(lookup, interest, window, scan_macs) for window in windows]

    def points(self) -> list[list[Point]]:
        """Points looked up so far, for each size of windows."""
        return [sweep.points() for sweep in self._sweeps]

    def least(self, reference: Reference, recall: float) -> Point:
        """The cheapest point that reaches a recall; see `Sweep.least`."""
        return min((s.least(reference, recall) for s in self._sweeps), key=lambda p: p.share)

    def within(self, macs: int) -> Point | None:
        """The point of highest recall within `macs` in all; None if the choice alone takes more."""
        if macs < self.scan_macs:
            return None
        left, lookup = macs - self.scan_macs, self._lookup
        plans = [
            choose(self._interest, window, window_macs=lookup.model.window_macs, budget_macs=left)
            for window in self._windows
        ]
        found = [lookup.point(plan, self.scan_macs) for plan in plans]
        return max(found, key=lambda p: np.nan_to_num(p.recall_exhaustive))

    def above(self, tau: float) -> Point:
        """The point of the windows above a threshold, as `analyze` chooses them."""
        lookup = self._lookup
        plan = choose(self._interest, self._windows[0], window_macs=lookup.model.window_macs, tau=tau)
        return lookup.point(plan, self.scan_macs)


def methods(lookup: SceneLookup, probe: Probe | None, seed: int) -> Iterator[Method]:
    """Our method, then the rivals, whose maps count as free.

    Parameters
    ----------
    lookup : SceneLookup
    probe : Probe, optional
        Fitted on the same scenes as the model; left out if None.
    seed : int
        For the random rivals.
    """
    model, image, shape = lookup.model, lookup.image, lookup.cell_shape
    yield Method(OURS, lookup, lookup.scan.interest, (model.window,), lookup.scan.macs)
    windows = tuple(sorted({_RIVAL_WINDOW, model.window}))
    if probe is not None:
        yield Method("probe", lookup, probe.interest(image, model), windows)
    # Squared, so that a window's sum follows its strongest edge.
    yield Method("gradient", lookup, gradient_interest(image, model) ** 2, windows)
    there, chance = filled(image, model), random_interest(shape, seed)
    yield Method("mask", lookup, there * chance, windows)
    yield Method("tiles", lookup, there.astype(np.float32), (TILE_CELLS,))
    yield Method("random", lookup, chance, windows)
    finds = settle(lookup.candidates, model).cells.astype(np.int64) // model.geometry.fine
    yield Method("oracle", lookup, oracle_interest(finds, shape), windows)


def random_interest(cell_shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    """Interest that ranks cells in random order."""
    return np.random.default_rng(seed).random(cell_shape, np.float32)


def gradient_interest(image: Image, model: Model) -> NDArray[np.float32]:
    """Largest absolute Laplacian of each cell's grey pixels, at the scan's resolution."""
    interest = np.zeros(model.cell_shape((image.height, image.width)), np.float32)
    for cell_box in blocks(*interest.shape, _BLOCK_CELLS):
        grey = _grey(image, model, cell_box, margin=1)
        edges = np.abs(cv2.Laplacian(grey, cv2.CV_32F))[1:-1, 1:-1]
        interest[cell_box.slices] = _per_cell(edges, cell_box).max(axis=(1, 3))
    return interest


def filled(image: Image, model: Model) -> NDArray[np.bool_]:
    """Cells that are not empty.

    A cell is empty if the standard deviation of the grey pixels in it and its eight neighbours, at the scan's
    resolution, is not above Otsu's threshold over the image (Otsu 1979).
    """
    shape = model.cell_shape((image.height, image.width))
    mean, square = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for cell_box in blocks(*shape, _BLOCK_CELLS):
        pixels = _per_cell(_grey(image, model, cell_box, margin=0) / np.float32(255), cell_box)
        mean[cell_box.slices] = pixels.mean(axis=(1, 3))
        square[cell_box.slices] = (pixels**2).mean(axis=(1, 3))
    variance = cv2.blur(square, (3, 3)) - cv2.blur(mean, (3, 3)) ** 2
    deviation = np.sqrt(variance.clip(min=0))
    mask: NDArray[np.bool_] = deviation > threshold_otsu(deviation)
    return mask


def oracle_interest(cells: NDArray[np.int64], cell_shape: tuple[int, int]) -> NDArray[np.float32]:
    """Number of the exhaustive pass's finds in each cell: the upper bound on any method.

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
