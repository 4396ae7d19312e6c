"""Draw the figures of the documents.

recall-budget.svg       recall against cost on one scene.
recall-statement.svg    the recall that audits of one image state, and the true one; simulated.
how-it-works-scene.png  a scene, its interest, its windows and its finds.

Recall is measured against the exhaustive pass of the same scene. Colours are of Okabe and Ito (2008), which people with
any form of colour blindness tell apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import coarse2fine as c2f
from coarse2fine.audit.sampling_bound import Sample, recall_interval
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.fitting.matching import match
from coarse2fine.results.overlays import HEAT
from coarse2fine.tiling.geometry import Box

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"
_SIDE, _DIGITS, _CLUTTER = 2048, 150, 700
_BUDGETS = (0.03, 0.04, 0.05, 0.08, 0.12, 0.2, 0.35, 0.6)
_BLOCKS, _FOUND, _MISSED, _DRAWN, _AUDITS = 40_000, 2_000, 300, 0.04, 60


def draw_pictures() -> None:
    """Draw all figures."""
    mpl.rcParams.update({"svg.hashsalt": "coarse2fine", "font.size": 9, "axes.spines.top": False})
    mpl.rcParams.update({"axes.spines.right": False})
    model = c2f.load_model("digits")
    _budgets(model)
    _statements()
    _steps(model)


def scene_pixels(seed: int) -> Any:
    """A scene of digits, as (h, w) uint8."""
    scene = DigitScene(_SIDE, _SIDE, digits=_DIGITS, clutter=_CLUTTER, seed=seed, handwriting="held-out")
    return scene.block(Box(0, 0, _SIDE, _SIDE))


def recall_of(analysis: c2f.Analysis, exhaustive: c2f.Analysis) -> float:
    """Share of the finds of the exhaustive pass that an analysis has within half of their size."""
    boxes = np.array([region.full_box for region in exhaustive.regions])
    if not analysis.regions:
        return 0.0
    found = np.array([region.full_centre for region in analysis.regions])
    scores = np.array([region.score for region in analysis.regions], np.float32)
    reach = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 2
    owner = match(found, scores, (boxes[:, :2] + boxes[:, 2:]) / 2, reach)
    return float((np.asarray(owner) >= 0).sum() / len(boxes))


def _analyze(pixels: Any, model: c2f.Model, **limits: Any) -> c2f.Analysis:
    return c2f.analyze(pixels, model, device="cpu", precision="fp32", progress=False, **limits)


def _budgets(model: c2f.Model) -> None:
    pixels = scene_pixels(1)
    exhaustive = _analyze(pixels, model, budget=1.0)
    curve = [_analyze(pixels, model, budget=budget) for budget in _BUDGETS]
    figure = Figure((6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    shares = [a.cost.share * 100 for a in curve]
    axes.plot(shares, [recall_of(a, exhaustive) * 100 for a in curve], "o-", color=BLUE, ms=4, label="measured")
    usual = _analyze(pixels, model)
    at = (usual.cost.share * 100, recall_of(usual, exhaustive) * 100)
    axes.plot(*at, "o", mfc="white", mec=ORANGE, mew=2, ms=8, label="without a limit")
    axes.set(xscale="log", xlabel="multiply-adds, % of the exhaustive pass", ylabel="recall, %", ylim=(0, 104))
    axes.set_xticks([3, 5, 10, 20, 50], ["3", "5", "10", "20", "50"], minor=False)
    axes.minorticks_off()
    axes.legend(loc="lower right", frameon=False)
    _save(figure, "recall-budget.svg")


def _statements() -> None:
    """Audits of one image, simulated: blocks without the nets, drawn and bounded by the code of `analyze`."""
    true = _FOUND / (_FOUND + _MISSED) * 100
    contents = np.zeros(_BLOCKS, np.int64)
    contents[:_MISSED] = 1
    figure = Figure((6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    wrong = 0
    for seed in range(_AUDITS):
        drawn = np.flatnonzero(np.random.default_rng(seed).random(_BLOCKS) < _DRAWN)
        sample = Sample.of(np.full(_BLOCKS, _DRAWN), drawn, contents[drawn], 1)
        found = _FOUND + sample.found
        low, high = (share * 100 for share in recall_interval(found, sample.missed_interval()))
        holds = low <= found / (_FOUND + _MISSED) * 100 <= high  # an audit's own finds count, too
        wrong += not holds
        colour = BLUE if holds else ORANGE
        axes.plot([seed, seed], [low, high], color=colour, lw=2)
        axes.plot(seed, 100 * found / (found + sample.missed), "o", color=colour, ms=4)
    axes.axhline(true, color=GREY, lw=1, zorder=0)
    axes.annotate("true", (1.01, true), xycoords=("axes fraction", "data"), color=GREY, va="center")
    axes.set(xlabel="audit", ylabel="recall, %", xticks=range(0, _AUDITS, 10))
    _save(figure, "recall-statement.svg")
    print(f"{_AUDITS} statements, {wrong} of them false; true recall {true:.1f} %")


def _steps(model: c2f.Model) -> None:
    pixels = scene_pixels(3)
    analysis = _analyze(pixels, model)
    side = 480
    y0, x0 = _busiest(analysis, side)
    part = pixels[y0 : y0 + side, x0 : x0 + side]
    figure = Figure((8.4, 8.6), layout="constrained", dpi=110)
    panels = figure.subplots(2, 2)
    extent = (x0, x0 + side, y0 + side, y0)
    titles = ("the image", "scan: interest of each cell", "choose: windows", "refine: finds")
    for axes, title in zip(panels.flat, titles, strict=True):
        axes.imshow(part, cmap="gray", vmin=0, vmax=255, extent=extent)
        axes.set(title=title, xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    heat = analysis.interest
    height, width = (n * analysis.cell for n in heat.shape)
    panels[0, 1].imshow(
        heat,
        cmap=HEAT,
        alpha=np.clip(heat / heat.max() * 4, 0, 1),
        extent=(0, width, height, 0),
        vmin=0,
        interpolation="nearest",
    )
    panels[0, 1].set(xlim=extent[:2], ylim=extent[2:])
    table = analysis.tiles_table
    for top, left, bottom, right in zip(*(table[f"full_{name}"] for name in ("y0", "x0", "y1", "x1")), strict=True):
        panels[1, 0].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=BLUE, lw=1.8))
    for region in analysis.regions:
        top, left, bottom, right = region.full_box
        panels[1, 1].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=ORANGE, lw=1.8))
        if x0 < left < x0 + side - 40 and y0 + 30 < top < y0 + side:
            panels[1, 1].text(left, top - 4, region.label, color=ORANGE, fontsize=11, weight="bold")
    _save(figure, "how-it-works-scene.png")


def _busiest(analysis: c2f.Analysis, side: int) -> tuple[int, int]:
    """Corner (y, x) of the square with most finds."""
    height, width = analysis.image.height, analysis.image.width
    counts = np.zeros((height, width), np.float32)
    for y, x in (region.full_centre for region in analysis.regions):
        counts[int(y), int(x)] += 1
    sums = cv2.boxFilter(counts, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
    top, left = (int(n) - side // 2 for n in np.unravel_index(int(sums.argmax()), sums.shape))
    return min(max(top, 0), height - side), min(max(left, 0), width - side)


def _save(figure: Figure, name: str) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(DOCS / name, metadata={"Date": None} if name.endswith(".svg") else None)
    print(f"written {DOCS / name}", flush=True)
