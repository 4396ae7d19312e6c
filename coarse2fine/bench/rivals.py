"""The trivial rivals: interest maps that cost no multiply-adds, to be spent on as ours is."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from coarse2fine.model import Model
from coarse2fine.scan import as_channels
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.image import Image

TILE_CELLS = 32
"""Side of the windows of "tiles": a square that large pays little for its halo."""
_BLOCK_CELLS = 128


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
