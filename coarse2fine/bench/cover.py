"""Squares of a grid that boxes touch: stored chunks by windows with their halo, cells by objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.steps.plan import Plan
from coarse2fine.tiling.formats.raster_header import RASTERS
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.image import Image

ASSUMED_CHUNK = 256
"""Assumed side of a chunk, in pixels, if an image is stored whole."""


def stored_whole(image: Image) -> bool:
    """Whether the image can only be decoded all at once."""
    return image.format == "array" or image.format in RASTERS


def chunk_shape(image: Image) -> tuple[int, int]:
    """Height and width of a stored chunk of full resolution, or the assumed one if there are none."""
    return (ASSUMED_CHUNK, ASSUMED_CHUNK) if stored_whole(image) else image.levels[0].chunk


def chunk_count(image: Image) -> int:
    """Chunks of full resolution."""
    height, width = chunk_shape(image)
    return ceil_div(image.height, height) * ceil_div(image.width, width)


def touched(boxes: NDArray[np.float64], shape: tuple[int, int], step: tuple[int, int]) -> NDArray[np.bool_]:
    """Squares of a grid that share some area with a box.

    Parameters
    ----------
    boxes : ndarray, float64, (n, 4)
        Half-open (y0, x0, y1, x1); parts beyond the image are left out.
    shape : tuple of int
        Height and width of the image, in the units of the boxes.
    step : tuple of int
        Height and width of a square.

    Returns
    -------
    ndarray, bool, (rows, columns)
    """
    rows, columns = (ceil_div(n, s) for n, s in zip(shape, step, strict=True))
    low = boxes[:, :2].clip(0)
    high = np.minimum(boxes[:, 2:], shape)
    inside = np.all(high > low, axis=1)
    y0, x0 = np.floor(low[inside] / step).astype(np.int64).T
    y1, x1 = np.ceil(high[inside] / step).astype(np.int64).T
    # 2-D difference array: its cumulative sum counts the boxes on each square.
    counts = np.zeros((rows + 1, columns + 1), np.int64)
    for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        np.add.at(counts, (y, x), sign)
    there: NDArray[np.bool_] = counts.cumsum(axis=0).cumsum(axis=1)[:rows, :columns] > 0
    return there


def chunks_touched(plan: Plan, model: Model, image: Image) -> float:
    """Share of the stored chunks of full resolution that the windows of a plan touch, halos included."""
    cell, margin = model.geometry.cell, model.refiner.margin * model.geometry.refine_downsample
    low = plan.cell_corners * float(cell)
    boxes = np.concatenate([low - margin, low + plan.sides * cell + margin], axis=1)
    return float(touched(boxes, (image.height, image.width), chunk_shape(image)).mean())
