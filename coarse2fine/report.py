"""The picture of an analysis: where it was sought, what was found, and one place at full resolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from coarse2fine.overlays import HEAT, to_overview
from coarse2fine.regions import Region
from coarse2fine.select import Plan
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.reader import salvage

_ZOOM = 384
_LEGEND_ENTRIES = 14
_NAMED_IN_ZOOM = 60
_MOST_DRAWN = 20_000
"""Windows and regions, the best of each: more would cover the page, and take minutes to draw."""
_BLUE = "#00c8f0"
_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
# Blue and cyan come last: windows are drawn in such a colour.
_ORDER = (1, 3, 2, 4, 6, 8, 5, 7, 0, 9)


@dataclass(frozen=True)
class Picture:
    """All that the picture shows.

    Parameters
    ----------
    image : Image
    overview : tuple of ndarray and int
        See `coarse2fine.overlays.read_overview`.
    interest : ndarray, float32, (cell height, cell width)
        May be empty.
    plan : Plan
        The windows that were refined.
    cell : int
        Side of a cell in full-resolution pixels.
    regions : sequence of Region
    title : str
    """

    image: Image
    overview: tuple[NDArray[np.uint8], int]
    interest: NDArray[np.float32]
    plan: Plan
    cell: int
    regions: Sequence[Region]
    title: str

    def save(self, path: Path, kind: str) -> Path:
        """Draw three panels into a file: "png", "pdf" or "svg"."""
        height, width = self.image.height, self.image.width
        stacked = width > 1.8 * height
        panel_width, panel_height = (12.0, 12.0 * height / width) if stacked else (5.6 * min(1.2, width / height), 5.6)
        size = (panel_width + 2.2, 3 * panel_height + 2) if stacked else (3 * panel_width + 2.2, panel_height + 1.1)
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        sought, found, near = figure.subplots(3, 1) if stacked else figure.subplots(1, 3)
        overview, downsample = self.overview
        full = Box(0, 0, height, width)
        colours = _colours(self.regions)
        self._draw_sought(figure, sought, overview, downsample)
        _show(found, overview, full)
        self._draw_regions(found, self.regions[:_MOST_DRAWN], colours, max(height, width) / 130)
        found.set_title(f"what was found: {len(self.regions):,}", fontsize=10)
        self._draw_zoom(near, colours)
        counts = Counter(r.label for r in self.regions)
        shown = sorted(counts.items())[:_LEGEND_ENTRIES]
        handles = [Patch(color=colours[label], label=f"{label} ({n:,})") for label, n in shown]
        if handles:
            figure.legend(handles=handles, loc="outside right center", fontsize=9, frameon=False)
        figure.suptitle(self.title, fontsize=12)
        with mpl.rc_context({"svg.hashsalt": "coarse2fine"}):
            # Without a date and with fixed names inside, equal results are equal files.
            figure.savefig(path, format=kind, metadata=_UNDATED.get(kind))
        return path

    def _draw_sought(self, figure: Figure, axes: Any, overview: NDArray[np.uint8], downsample: int) -> None:
        full = Box(0, 0, self.image.height, self.image.width)
        _show(axes, _washed(overview), full)
        if not self.interest.size:
            axes.set_title("every cell was refined", fontsize=10)
            return
        heat = to_overview(self.interest, self.cell, downsample, (overview.shape[0], overview.shape[1]))
        alpha = np.clip(heat * 3, 0, 0.75)
        shown = axes.imshow(heat, cmap=HEAT, alpha=alpha, vmin=0, vmax=max(float(heat.max()), 1e-6))
        shown.set_extent(_extent(full))
        figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.01, label="interest, seen by the scan")
        if len(self.plan) and self.plan.sides.max() * self.cell < 4 * downsample:
            self._dot_windows(axes)
        else:
            axes.add_collection(
                PolyCollection(self._windows(full), facecolors="none", edgecolors=_BLUE, linewidths=0.7)
            )
        share = self.plan.covered().mean()
        axes.set_title(f"where to look again: {len(self.plan):,} windows, {share:.2%} of the image", fontsize=10)

    def _dot_windows(self, axes: Any) -> None:
        """Mark windows too small to be drawn to scale, the best on top and the brightest."""
        y, x = (self.plan.cell_corners.T + self.plan.sides / 2) * self.cell
        worst_first = slice(None, None, -1)
        style = {"s": 2.6, "linewidths": 0, "cmap": HEAT, "vmin": 0, "vmax": float(self.plan.scores.max()) / 2}
        axes.scatter(x[worst_first], y[worst_first], c=self.plan.scores[worst_first], **style)

    def _windows(self, full_box: Box) -> list[NDArray[np.float64]]:
        """Corners (x, y) of the best windows that touch a box."""
        low = self.plan.cell_corners * self.cell
        size = self.plan.sides * self.cell
        near = (low[:, 0] < full_box.y1) & (low[:, 1] < full_box.x1)
        near &= (low[:, 0] + size > full_box.y0) & (low[:, 1] + size > full_box.x0)
        best = np.flatnonzero(near)[:_MOST_DRAWN]
        centre = low[best] + size[best, None] / 2
        half = size[best][:, None, None] / 2
        square = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)], np.float64)
        return list(centre[:, None, ::-1] + half * square)

    def _draw_regions(self, axes: Any, regions: Sequence[Region], colours: dict[str, Any], least: float) -> None:
        for label, colour in colours.items():
            shapes = [_corners(r, least) for r in regions if r.label == label]
            fill = (*colour[:3], 0.12)
            axes.add_collection(PolyCollection(shapes, facecolors=[fill], edgecolors=[colour], linewidths=1.4))

    def _draw_zoom(self, axes: Any, colours: dict[str, Any]) -> None:
        """Show the busiest place as it is: the windows read there, and the finds with their names."""
        box = self._busiest()
        pixels = salvage(self.image.read, box)
        _show(axes, pixels[..., 0] if pixels.shape[-1] == 1 else pixels, box)
        axes.add_collection(PolyCollection(self._windows(box), facecolors="none", edgecolors=_BLUE, linewidths=1.0))
        shown = [r for r in self.regions if _touches(r, box)]
        self._draw_regions(axes, shown, colours, 0)
        for region in shown if len(shown) <= _NAMED_IN_ZOOM else []:
            y0, x0, _, _ = region.full_box
            if box.y0 + 8 < y0 < box.y1 and box.x0 < x0 < box.x1 - 20:
                style = {"facecolor": colours[region.label], "edgecolor": "none", "pad": 0.8}
                name = f"{region.label} {region.score:.2f}"
                axes.text(x0, y0 - 2, name, fontsize=6.5, color="white", va="bottom", bbox=style)
        axes.set_title(f"full resolution, {box.width} x {box.height} px at x {box.x0:,}, y {box.y0:,}", fontsize=10)

    def _busiest(self) -> Box:
        """A square of the image with many finds; without finds, around the best window."""
        height, width = min(_ZOOM, self.image.height), min(_ZOOM, self.image.width)
        if self.regions:
            centres = np.array([r.full_centre for r in self.regions[:_MOST_DRAWN]])
            neighbours = cKDTree(centres).query_ball_point(centres, _ZOOM / 2, p=np.inf, return_length=True)
            y, x = centres[int(np.argmax(neighbours))].astype(int).tolist()
        elif len(self.plan):
            y, x = (self.plan.cell_corners[0] * self.cell).tolist()
        else:
            y, x = self.image.height // 2, self.image.width // 2
        y0 = min(max(0, y - height // 2), self.image.height - height)
        x0 = min(max(0, x - width // 2), self.image.width - width)
        return Box(y0, x0, y0 + height, x0 + width)


def _colours(regions: Sequence[Region]) -> dict[str, Any]:
    """Colours that are told apart on a page, by the order of the labels."""
    labels = sorted({r.label for r in regions})
    if len(labels) <= len(_ORDER):
        return {label: mpl.colormaps["tab10"](_ORDER[i]) for i, label in enumerate(labels)}
    table = mpl.colormaps["tab20"]
    return {label: table(i % table.N) for i, label in enumerate(labels)}


def _extent(full_box: Box) -> tuple[float, float, float, float]:
    return full_box.x0, full_box.x1, full_box.y1, full_box.y0


def _show(axes: Any, pixels: NDArray[np.uint8], full_box: Box) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=_extent(full_box))
    axes.set_xlim(full_box.x0, full_box.x1)
    axes.set_ylim(full_box.y1, full_box.y0)
    axes.set_xticks([])
    axes.set_yticks([])


def _washed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey and pale, so that colours laid over it stand out."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return (96 + grey.astype(np.float32) * 0.62).astype(np.uint8)


def _touches(region: Region, full_box: Box) -> bool:
    y0, x0, y1, x1 = region.full_box
    return y0 < full_box.y1 and y1 > full_box.y0 and x0 < full_box.x1 and x1 > full_box.x0


def _corners(region: Region, least: float) -> NDArray[np.float64]:
    """Outline (x, y) in full-resolution pixels, grown to a size that can be seen."""
    y0, x0, y1, x1 = region.full_box
    outline = region.outline or ((y0, x0), (y0, x1), (y1, x1), (y1, x0))
    points = np.array(outline, np.float64)[:, ::-1]
    size = float(np.ptp(points, axis=0).max())
    if size < least:
        points = (points - points.mean(axis=0)) * (least / max(size, 1e-6)) + points.mean(axis=0)
    return points
