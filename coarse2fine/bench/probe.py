"""The rival that learns: logistic regression on statistics of each cell's pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from coarse2fine.bench.lookup import answer
from coarse2fine.fitting.teacher import settle
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.preprocess import as_channels
from coarse2fine.steps.plan import dense_plan
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.image import Image

_BLOCK_CELLS = 128
_MOST_CELLS = 300_000
_DECAY = 1e-5


@dataclass(frozen=True)
class Probe:
    """A fitted logistic regression.

    Parameters
    ----------
    mean, std : ndarray, float64, (f,)
        Mean and standard deviation of the statistics over the training cells.
    weights : ndarray, float64, (f + 1,)
        Weights, the bias last.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    weights: NDArray[np.float64]

    def interest(self, image: Image, model: Model) -> NDArray[np.float32]:
        """Probability that refining the cell finds something, (cell height, cell width)."""
        interest = np.zeros(model.cell_shape((image.height, image.width)), np.float32)
        for cell_box in blocks(*interest.shape, _BLOCK_CELLS):
            known = (statistics(image, model, cell_box) - self.mean) / self.std
            logit = known @ self.weights[:-1] + self.weights[-1]
            interest[cell_box.slices] = expit(logit)
        return interest


def statistics(image: Image, model: Model, cell_box: Box) -> NDArray[np.float32]:
    """Statistics of the pixels of each cell of a block, at the scan's resolution.

    They are mean, standard deviation, minimum, maximum, and largest gradient (Sobel) and Laplacian of the cell's
    pixels, the same of the 3 x 3 cells around it, for each channel, and the logarithm of one plus each.

    Parameters
    ----------
    image : Image
    model : Model
    cell_box : Box

    Returns
    -------
    ndarray, float32, (height, width, 24 * channels)
    """
    side = model.geometry.cell // model.geometry.scan_downsample
    around = cell_box.expand(1)
    pixels = image.read_scaled(around.scale(side).expand(1), model.geometry.scan_downsample)
    maps = [m for plane in np.moveaxis(as_channels(pixels, model.channels), -1, 0) for m in _of_plane(plane, side)]
    table = np.stack(maps, axis=-1)
    return np.concatenate([table, np.log1p(table)], axis=-1)


def _of_plane(plane: NDArray[np.uint8], side: int) -> list[NDArray[np.float32]]:
    """Statistics, as maps (h, w), of a block of (h + 2) x (w + 2) cells with a margin of one pixel."""
    grey = plane.astype(np.float32)
    slopes = [cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (0, 1)]
    curve = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    inner, slope, curve = (_per_cell(a[1:-1, 1:-1], side) for a in (grey, np.hypot(*slopes), curve))
    mean, square = inner.mean(axis=-1), (inner**2).mean(axis=-1)
    low, high = inner.min(axis=-1), inner.max(axis=-1)
    steep, sharp = slope.max(axis=-1), curve.max(axis=-1)
    wide = [cv2.blur(mean, (3, 3)), _spread(cv2.blur(mean, (3, 3)), cv2.blur(square, (3, 3)))]
    wide += [cv2.erode(low, np.ones((3, 3)))] + [cv2.dilate(m, np.ones((3, 3))) for m in (high, steep, sharp)]
    return [m[1:-1, 1:-1] for m in (mean, _spread(mean, square), low, high, steep, sharp, *wide)]


def _per_cell(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Pixels (h, w) as (cell rows, cell columns, pixels of a cell)."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows, columns, -1)


def _spread(mean: NDArray[np.float32], square: NDArray[np.float32]) -> NDArray[np.float32]:
    deviation: NDArray[np.float32] = np.sqrt((square - mean**2).clip(min=0))
    return deviation


def fit_probe(images: Iterable[Image], model: Model, runtime: Runtime, seed: int) -> Probe:
    """Fit a probe to predict which cells hold a find of the exhaustive pass.

    Parameters
    ----------
    images : iterable of Image
        Scenes that the model was fitted on.
    model : Model
    runtime : Runtime
    seed : int
        For the choice of training cells, if there are more than 300,000.
    """
    known, target = [], []
    for image in images:
        here = at_pixel_size(model, image)
        shape = here.cell_shape((image.height, image.width))
        finds = settle(answer(image, dense_plan(shape), here, runtime).candidates, here)
        there = np.zeros(shape, bool)
        there[tuple((finds.cells // here.geometry.fine).T)] = True
        for cell_box in blocks(*shape, _BLOCK_CELLS):
            table = statistics(image, here, cell_box)
            known.append(table.reshape(-1, table.shape[-1]))
            target.append(there[cell_box.slices].ravel())
    x, y = np.concatenate(known).astype(np.float64), np.concatenate(target).astype(np.float64)
    if len(y) > _MOST_CELLS:
        chosen = np.random.default_rng(seed).permutation(len(y))[:_MOST_CELLS]
        x, y = x[chosen], y[chosen]
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    return Probe(mean, std, _regression((x - mean) / std, y))


def _regression(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights, the bias last, that minimise cross-entropy with weight decay."""

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logit = x @ weights[:-1] + weights[-1]
        error = expit(logit) - y
        gradient = np.append(x.T @ error / len(y) + 2 * _DECAY * weights[:-1], error.mean())
        entropy = float((np.logaddexp(0, logit) - y * logit).mean())
        return entropy + _DECAY * float(weights[:-1] @ weights[:-1]), gradient

    prior = float(y.mean().clip(1e-6, 1 - 1e-6))
    start = np.append(np.zeros(x.shape[1]), np.log(prior / (1 - prior)))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(found.x, np.float64)
