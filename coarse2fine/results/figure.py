"""Picture of an analysis: the chosen windows, the finds, and one place at full resolution."""

from __future__ import annotations

import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from coarse2fine.region import Region
from coarse2fine.results.colours import WINDOWS, label_colours
from coarse2fine.results.overlays import HEAT, to_overview
from coarse2fine.results.scores import score_text
from coarse2fine.steps.plan import Plan
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import salvage

_ZOOM = 384
_LEGEND_ENTRIES = 14
_NAME_POINTS = 6.5
_TRAITS = 72  # characters of a line of a legend
# Windows of fewer dots than this are filled: their outlines would cover their content.
_DOTTED = 12
# Area of such a window's dot in square points: larger if they are few, so that each can be seen.
_LEAST_DOT, _LARGEST_DOT, _DOTS = 2.6, 16.0, 4000.0
# Least side of an example in full-resolution pixels.
_EXAMPLE = 96
_WINDOWS = tuple(value / 255 for value in WINDOWS)
_MOST_DRAWN = 20_000
"""Most windows, and most regions, that are drawn, the best of each: more would take minutes."""
_DPI = 110
_WIDE = 1.8
"""Ratio of width to height from which panels are stacked."""
_GAP, _BAR, _HEAD, _TITLE = 0.15, 0.8, 0.45, 0.3
"""Inches: between panels, for the colour bar, for the page's title and for a panel's."""
_SAVED: dict[str, dict[str, Any]] = {
    # A fifth of the time, for a file a tenth larger.
    "png": {"pil_kwargs": {"compress_level": 1}},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}


@dataclass(frozen=True)
class Picture:
    """Content of the picture.

    Parameters
    ----------
    image : Image
    overview : tuple of ndarray and int
        See `coarse2fine.results.overlays.read_overview`.
    interest : ndarray, float32, (cell height, cell width)
        May be empty.
    plan : Plan
        The windows that were refined.
    cell : int
        Side of a cell in full-resolution pixels.
    regions : sequence of Region
    title : str
    kinds : mapping of str to tuple of str and sequence of float
        Traits, and the box of an example, of labels that are unnamed kinds.
    """

    image: Image
    overview: tuple[NDArray[np.uint8], int]
    interest: NDArray[np.float32]
    plan: Plan
    cell: int
    regions: Sequence[Region]
    title: str
    kinds: Mapping[str, tuple[str, Sequence[float]]] = field(default_factory=dict)

    def save(self, path: Path, kind: str) -> Path:
        """Draw three panels into a file: "png", "pdf" or "svg"."""
        if kind not in _SAVED:
            raise ValueError(f"a picture is drawn into a file that ends in .png, .pdf or .svg, got .{kind}")
        with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "coarse2fine", "text.parse_math": False}):
            # Fonts may lack characters of a name; a dollar sign in one is no formula.
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
            return self._draw(path, kind)

    def _draw(self, path: Path, kind: str) -> Path:
        counts = Counter(r.label for r in self.regions)
        commonest = sorted(counts, key=lambda label: (-counts[label], label))
        shown = sorted(commonest[:_LEGEND_ENTRIES])
        names = ["\n".join([f"{label}: {counts[label]:,}", *self._traits(label)]) for label in shown]
        longest = max((len(line) for name in names for line in name.splitlines()), default=0)
        page = _Page.of(self.image.height / self.image.width, longest)
        figure = page.figure()
        sought, found, near = (page.panel(figure, n) for n in range(3))
        overview = self._overview(page)
        full = Box(0, 0, self.image.height, self.image.width)
        colours = _colours(self.regions)
        self._draw_sought(sought, overview, page.beside(figure, 0))
        _show(found, overview, full)
        self._draw_regions(found, self.regions[:_MOST_DRAWN], colours, max(full.height, full.width) / 130)
        found.set_title(f"finds: {len(self.regions):,}", fontsize=10)
        self._draw_zoom(near, colours)
        if self.kinds:
            self._draw_examples(
                figure, page, [(label, colours[label], name) for label, name in zip(shown, names, strict=True)]
            )
        elif shown:
            page.legend(
                figure, [Patch(color=colours[label], label=name) for label, name in zip(shown, names, strict=True)]
            )
        figure.suptitle(self.title, fontsize=12, y=1 - 0.12 / page.height, va="top")
        # Without dates and random names, equal results give equal files.
        figure.savefig(path, format=kind, **_SAVED[kind])
        # Parts of a figure refer to each other: without this, 12 MB a picture wait for the garbage collector, now 1 MB.
        figure.clear()
        # Texts keep the renderer, which holds the picture.
        if (renderer := vars(figure.canvas).get("renderer")) is not None:
            vars(renderer).clear()
        return path

    def _overview(self, page: _Page) -> NDArray[np.uint8]:
        """The whole image at about the resolution of a panel: drawing a larger one takes most of the time."""
        whole = self.overview[0]
        share = page.dots / max(whole.shape[:2])
        if share >= 1:
            return whole
        height, width = (max(1, round(n * share)) for n in whole.shape[:2])
        return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    def _draw_sought(self, axes: Any, overview: NDArray[np.uint8], beside: Any) -> None:
        full = Box(0, 0, self.image.height, self.image.width)
        downsample = full.height / overview.shape[0]
        _show(axes, _washed(overview), full)
        if not self.interest.size:
            axes.set_title("every cell was refined", fontsize=10)
            beside.remove()
            return
        heat = to_overview(self.interest, self.cell, downsample, (overview.shape[0], overview.shape[1]))
        alpha = np.clip(heat * 3, 0, 0.75)
        shown = axes.imshow(heat, cmap=HEAT, alpha=alpha, vmin=0, vmax=max(float(heat.max()), 1e-6))
        shown.set_extent(_extent(full))
        # Not `shown` itself: a colour bar would keep its pixels in memory.
        axes.figure.colorbar(ScalarMappable(shown.norm, HEAT), cax=beside)
        # Below the bar: at its side the next picture begins.
        beside.set_xlabel("interest", fontsize=8)
        if len(self.plan) and np.median(self.plan.sides) * self.cell < _DOTTED * downsample:
            self._dot_windows(axes, downsample)
        else:
            axes.add_collection(
                PolyCollection(self._windows(full), facecolors="none", edgecolors=_WINDOWS, linewidths=0.7)
            )
        share = self.plan.covered().mean()
        count = f"{len(self.plan):,} window{'s' * (len(self.plan) != 1)}"
        axes.set_title(f"chosen: {count}, {share:.2%} of the image", fontsize=10)

    def _dot_windows(self, axes: Any, downsample: float) -> None:
        """Fill windows that are too small for outlines with the colour of their interest, the best on top."""
        y, x = (self.plan.cell_corners + self.plan.sides / 2).T * self.cell
        worst_first = slice(None, None, -1)
        across = float(np.median(self.plan.sides)) * self.cell / downsample * 72 / _DPI
        style = {
            "s": max(_LEAST_DOT, min(_LARGEST_DOT, _DOTS / len(self.plan)), across**2),
            "marker": "s",
            "linewidths": 0,
            "cmap": HEAT,
            "vmin": 0,
            "vmax": float(self.plan.scores.max()) / 2,
        }
        axes.scatter(x[worst_first], y[worst_first], c=self.plan.scores[worst_first], **style)

    def _windows(self, full_box: Box) -> list[NDArray[np.float64]]:
        """Corners (x, y) of the best windows that touch a box."""
        low = self.plan.cell_corners * self.cell
        high = low + self.plan.sides * self.cell
        near = (low[:, 0] < full_box.y1) & (low[:, 1] < full_box.x1)
        near &= (high[:, 0] > full_box.y0) & (high[:, 1] > full_box.x0)
        best = np.flatnonzero(near)[:_MOST_DRAWN]
        (y0, x0), (y1, x1) = low[best].T, high[best].T
        return list(np.stack([x0, y0, x0, y1, x1, y1, x1, y0], axis=1).reshape(-1, 4, 2).astype(np.float64))

    def _draw_regions(self, axes: Any, regions: Sequence[Region], colours: dict[str, Any], least: float) -> None:
        for label, colour in colours.items():
            shapes = [_corners(r, least) for r in regions if r.label == label]
            fill = (*colour[:3], 0.12)
            axes.add_collection(PolyCollection(shapes, facecolors=[fill], edgecolors=[colour], linewidths=1.4))

    def _draw_zoom(self, axes: Any, colours: dict[str, Any]) -> None:
        """Show a place at full resolution, with the windows, and the finds with their names."""
        box = self._worth_seeing()
        _show(axes, salvage(self.image.read, box), box)
        axes.add_collection(PolyCollection(self._windows(box), facecolors="none", edgecolors=_WINDOWS, linewidths=1.0))
        shown = [r for r in self.regions if _touches(r, box)]
        self._draw_regions(axes, shown, colours, 0)
        self._name_regions(axes, shown, box, colours)
        axes.set_title(f"full resolution, {box.width} x {box.height} px at x {box.x0:,}, y {box.y0:,}", fontsize=10)

    def _name_regions(self, axes: Any, regions: Sequence[Region], box: Box, colours: dict[str, Any]) -> None:
        """Write names of regions, the best first, inside the panel and beside each other."""
        alone = len(colours) == 1  # then the name is in the legend
        scale = box.width / axes.bbox.width * _DPI / 72  # full-resolution pixels per point
        height, taken = 1.5 * _NAME_POINTS * scale, np.zeros((0, 4))
        for region in regions:
            name = score_text(region.score) if alone else f"{region.label} {score_text(region.score)}"
            width = (0.62 * len(name) + 0.5) * _NAME_POINTS * scale
            y0, x0, y1, _ = region.full_box
            x = min(max(x0, box.x0), box.x1 - width)
            bottom = y0 if y0 - height >= box.y0 else y1 + height
            place = np.array([bottom - height, x, bottom, x + width])
            crowded = ((taken[:, :2] < place[2:]) & (taken[:, 2:] > place[:2])).all(axis=1).any()
            if crowded or bottom > box.y1 or not box.y0 <= y0 < box.y1:
                continue
            taken = np.vstack([taken, place])
            style = {"facecolor": colours[region.label], "edgecolor": "none", "pad": 0.8}
            axes.text(
                x + 0.3 * _NAME_POINTS * scale,
                bottom - 0.35 * _NAME_POINTS * scale,
                name,
                fontsize=_NAME_POINTS,
                color=_ink(colours[region.label]),
                va="bottom",
                bbox=style,
                clip_on=True,
            )

    def _traits(self, label: str) -> list[str]:
        """Lines with the traits of an unnamed kind; none for other labels."""
        return textwrap.wrap(self.kinds[label][0], _TRAITS) if label in self.kinds else []

    def _draw_examples(self, figure: Figure, page: _Page, rows: Sequence[tuple[str, Any, str]]) -> None:
        """Draw a legend with a picture of each kind."""
        for number, (label, colour, name) in enumerate(rows):
            axes = page.example(figure, number, len(rows))
            y0, x0, y1, x1 = self.kinds[label][1]
            half = max(_EXAMPLE, y1 - y0, x1 - x0) / 2
            y, x = int((y0 + y1) / 2 - half), int((x0 + x1) / 2 - half)
            box = Box(y, x, y + int(2 * half), x + int(2 * half))
            _show(axes, salvage(self.image.read, box), box)
            for spine in axes.spines.values():
                spine.set(color=colour, linewidth=2.5)
            axes.text(1.12, 0.5, name, transform=axes.transAxes, fontsize=8, va="center")

    def _worth_seeing(self) -> Box:
        """The square of the image with the most finds, or around the rarest; without finds, around the best window."""
        height, width = min(_ZOOM, self.image.height), min(_ZOOM, self.image.width)
        if self.regions and self.kinds:
            y, x = map(int, self.regions[0].full_centre)
        elif self.regions:
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


@dataclass(frozen=True)
class _Page:
    """Layout in inches: three panels in a row, or stacked if they are wide.

    It is computed, since matplotlib's own layout would draw everything twice.
    """

    panel_width: float
    panel_height: float
    stacked: bool
    legend_width: float

    @classmethod
    def of(cls, ratio: float, longest_name: int) -> _Page:
        """Layout for an image's ratio of height to width, and the longest name in characters."""
        legend = min(5.0, 0.75 + 0.085 * longest_name) if longest_name else 0.0
        if ratio < 1 / _WIDE:
            return cls(12.0, 12.0 * ratio, stacked=True, legend_width=max(legend, _BAR))
        width = 5.6 * min(1.2, 1 / ratio)
        return cls(width, width * ratio, stacked=False, legend_width=legend)

    @property
    def width(self) -> float:
        panels = self.panel_width if self.stacked else 3 * self.panel_width + _BAR + _GAP
        return panels + self.legend_width + 2 * _GAP

    @property
    def height(self) -> float:
        return _HEAD + (3 if self.stacked else 1) * (_TITLE + self.panel_height) + _GAP

    @property
    def dots(self) -> float:
        """Dots along the longer side of a panel."""
        return max(self.panel_width, self.panel_height) * _DPI

    def figure(self) -> Figure:
        figure = Figure(figsize=(self.width, self.height), dpi=_DPI)
        FigureCanvasAgg(figure)
        return figure

    def panel(self, figure: Figure, number: int) -> Any:
        """Axes of a panel."""
        return self._axes(figure, self._left(number), self._bottom(number), self.panel_width)

    def beside(self, figure: Figure, number: int) -> Any:
        """Axes of a colour bar right of a panel."""
        return self._axes(figure, self._left(number) + self.panel_width + 0.08, self._bottom(number), 0.14)

    def legend(self, figure: Figure, handles: Sequence[Patch]) -> None:
        """Draw the legend right of the panels."""
        left = self.width - self.legend_width - _GAP / 2
        bottom = self._bottom(1) + self.panel_height / 2
        place = left / self.width, bottom / self.height
        figure.legend(handles=list(handles), loc="center left", bbox_to_anchor=place, fontsize=9, frameon=False)

    def example(self, figure: Figure, number: int, count: int) -> Any:
        """Axes of one of several small pictures, one below the other, where the legend would be."""
        step = min(0.62, self.height / (count + 1))
        middle = self.height / 2 if not self.stacked else self._bottom(1) + self.panel_height / 2
        bottom = min(middle + step * (count / 2 - number - 1), self.height - _HEAD - step * (number + 1))
        return self._axes(figure, self.width - self.legend_width - _GAP / 2, bottom, 0.88 * step, 0.88 * step)

    def _left(self, number: int) -> float:
        if self.stacked or not number:
            return _GAP
        return _GAP + _BAR + number * self.panel_width + (number - 1) * _GAP

    def _bottom(self, number: int) -> float:
        return _GAP + ((2 - number) * (_TITLE + self.panel_height) if self.stacked else 0)

    def _axes(self, figure: Figure, left: float, bottom: float, width: float, height: float | None = None) -> Any:
        share = self.width, self.height
        high = self.panel_height if height is None else height
        return figure.add_axes((left / share[0], bottom / share[1], width / share[0], high / share[1]))


def _colours(regions: Sequence[Region]) -> dict[str, Any]:
    found = label_colours(region.label for region in regions)
    return {label: tuple(value / 255 for value in colour) for label, colour in found.items()}


def _ink(colour: Sequence[float]) -> str:
    """Black or white, whichever is easier to read on a colour."""
    return "black" if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.55 else "white"


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
    points = np.array(region.full_corners, np.float64)[:, ::-1]
    size = float(np.ptp(points, axis=0).max())
    if size < least:
        points = (points - points.mean(axis=0)) * (least / max(size, 1e-6)) + points.mean(axis=0)
    return points
