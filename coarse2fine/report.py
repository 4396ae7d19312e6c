"""The picture of an analysis: the overview with the interest, the cells refined and the finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from coarse2fine.export import label_colour
from coarse2fine.regions import Region
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image

_SIDE = 1400
_LEGEND_ENTRIES = 14


def plot(
    path: Path,
    image: Image,
    interest: NDArray[np.float32],
    refined: NDArray[np.bool_],
    cell: int,
    regions: Sequence[Region],
    title: str,
) -> Path:
    """Draw two panels: where it was sought, and what was found.

    Parameters
    ----------
    path : Path
        The ending chooses the format.
    image : Image
    interest : ndarray, float32, (cell height, cell width)
        May be empty.
    refined : ndarray, bool, (cell height, cell width)
    cell : int
        Side of a cell in full-resolution pixels.
    regions : sequence of Region
    title : str
    """
    overview, downsample = read_overview(image)
    height, width = overview.shape[:2]
    side = 7.0
    figure = Figure(figsize=(2 * side * min(1, width / height) + 1.2, side * min(1, height / width) + 1.0), dpi=130)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.imshow(_washed(overview), cmap="gray", vmin=0, vmax=255)
    if interest.size:
        heat = _to_overview(interest, cell, downsample, (height, width))
        shown = left.imshow(heat, cmap="inferno", alpha=np.clip(heat * 3, 0, 0.75), vmin=0, vmax=max(heat.max(), 1e-6))
        figure.colorbar(shown, ax=left, fraction=0.035, pad=0.01, label="interest (scan)")
    edges = _to_overview(refined.astype(np.float32), cell, downsample, (height, width)) > 0
    left.imshow(_mask(edges, (0, 200, 255), 0.55))
    left.set_title("where to look again: interest and, in blue, what was refined", fontsize=9)
    right.imshow(overview, cmap="gray", vmin=0, vmax=255)
    _draw_regions(right, regions, downsample, max(height, width))
    right.set_title(f"what was found: {len(regions):,}", fontsize=9)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    return path


def read_overview(image: Image) -> tuple[NDArray[np.uint8], int]:
    """The whole image at a size fit for a page, (h, w) or (h, w, 3), and its downsample."""
    downsample = ceil_div(max(image.height, image.width), _SIDE)
    whole = Box(0, 0, ceil_div(image.height, downsample), ceil_div(image.width, downsample))
    pixels = image.read_scaled(whole, downsample)
    return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels), downsample


def _washed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey and pale, so that colours laid over it stand out."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return (96 + grey.astype(np.float32) * 0.62).astype(np.uint8)


def _to_overview(cells: NDArray[np.float32], cell: int, downsample: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Largest cell value under each overview pixel, so that a single cell still shows."""
    ratio = downsample / cell
    if ratio > 1:
        reach = int(np.ceil(ratio))
        cells = np.asarray(cv2.dilate(cells, np.ones((reach, reach), np.uint8)), np.float32)
    y = np.minimum(((np.arange(shape[0]) + 0.5) * ratio).astype(int), cells.shape[0] - 1)
    x = np.minimum(((np.arange(shape[1]) + 0.5) * ratio).astype(int), cells.shape[1] - 1)
    return cells[np.ix_(y, x)]


def _mask(where: NDArray[np.bool_], colour: tuple[int, int, int], alpha: float) -> NDArray[np.float32]:
    layer = np.zeros((*where.shape, 4), np.float32)
    layer[where] = (*(c / 255 for c in colour), alpha)
    return layer


def _draw_regions(axes: Any, regions: Sequence[Region], downsample: int, extent: int) -> None:
    labels = sorted({r.label for r in regions})
    least = extent / 150  # smaller finds would not be seen on the page
    for label in labels:
        colour = np.array(label_colour(label)) / 255
        shapes = [_corners(r, downsample, least) for r in regions if r.label == label]
        axes.add_collection(PolyCollection(shapes, facecolors=[(*colour, 0.15)], edgecolors=[colour], linewidths=1.1))
    counts = {label: sum(r.label == label for r in regions) for label in labels[:_LEGEND_ENTRIES]}
    handles = [Patch(color=np.array(label_colour(k)) / 255, label=f"{k} ({n:,})") for k, n in counts.items()]
    if handles:
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _corners(region: Region, downsample: int, least: float) -> NDArray[np.float64]:
    """Outline (x, y) in overview pixels, grown to a size that can be seen."""
    y0, x0, y1, x1 = region.full_box
    outline = region.outline or ((y0, x0), (y0, x1), (y1, x1), (y1, x0))
    points = np.array(outline, np.float64)[:, ::-1] / downsample
    size = float(np.ptp(points, axis=0).max())
    if size < least:
        points = (points - points.mean(axis=0)) * (least / max(size, 1e-6)) + points.mean(axis=0)
    return points
