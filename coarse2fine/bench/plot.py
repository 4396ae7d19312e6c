"""The picture of the scenes benchmark: recall against multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from coarse2fine.bench.results import DEFAULT, EXHAUSTIVE, METHODS, Curve, MeanCurve

_COLOURS = {
    "ours": "#0060c0",
    "probe": "#c04080",
    "gradient": "#d08000",
    "mask": "#209060",
    "tiles": "#8050b0",
    "random": "#909090",
    "oracle": "#202020",
}
_TICKS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_LEFT = 2e-3
_GOALS = (0.9, 0.95, 0.99)


def plot(path: Path, title: str, curves: Sequence[Curve], figures: Mapping[str, float]) -> Path:
    """Draw recall of the exhaustive pass's finds against all multiply-adds, one line a method, and what was certified.

    Parameters
    ----------
    path : Path
        A PNG file.
    title : str
    curves : sequence of Curve
    figures : mapping
        As the report has them.
    """
    figure = Figure(figsize=(9, 6.8), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method, text in METHODS.items():
        mine = [c for c in curves if c.method == method and c.share]
        if mine:
            _line(axes, method, text, mine)
    _points(axes, figures)
    axes.set_xscale("log")
    axes.set_xlim(_LEFT, 1.6)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.03)
    for goal in _GOALS:
        axes.axhline(goal, color="#000000", linewidth=0.5, alpha=0.35)
    axes.set_xlabel("multiply-adds in all, as a share of the exhaustive pass's (scan, halos and audit included)")
    axes.set_ylabel("recall of the exhaustive pass's finds")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    return path


def _line(axes: Any, method: str, text: str, curves: Sequence[Curve]) -> None:
    """The mean over runs, from where all are defined, and a band of one standard deviation."""
    mean, ours = MeanCurve.of(curves), method == "ours"
    line, width = ":" if method == "oracle" else "-", 2.4 if ours else 1.4
    colour, label = _COLOURS[method], f"{method}: {text}"
    axes.plot(mean.share, mean.recall, line, color=colour, linewidth=width, label=label, zorder=4 + ours)
    if len(curves) > 1:
        low, high = mean.recall - mean.sd, np.minimum(mean.recall + mean.sd, 1)
        axes.fill_between(mean.share, low, high, color=colour, alpha=0.15, linewidth=0)


def _points(axes: Any, figures: Mapping[str, float]) -> None:
    """The default, thresholds set by fitting, certified recalls, and the exhaustive pass."""
    fixed = sorted({name.split("/")[1] for name in figures if name.startswith("ours/fixed@")})
    certified = sorted({name.split("/")[0] for name in figures if name.startswith("certified@")})
    for name in certified:
        at = [figures[f"{name}/{m}"] for m in ("share", "recall")]
        text = f"{float(name.partition('@')[2]):.0%}"
        axes.annotate(text, at, xytext=(0, -15), textcoords="offset points", fontsize=8, ha="center", zorder=8)
    kinds = (
        ("o", "#0060c0", 6, "ours, thresholds set by fitting", [f"ours/{key}" for key in fixed], "recall_exhaustive"),
        ("*", "#c02020", 13, "ours at its default", [f"ours/{DEFAULT}"], "recall_exhaustive"),
        ("D", "#e06000", 7, "certified, audit included (true recall)", certified, "recall"),
        ("P", "#202020", 10, "exhaustive pass", [f"ours/{EXHAUSTIVE}"], "recall_exhaustive"),
    )
    for marker, colour, size, label, names, measure in kinds:
        there = [n for n in names if f"{n}/{measure}" in figures]
        x, y = ([figures[f"{n}/{m}"] for n in there] for m in ("share", measure))
        if there:
            axes.plot(
                x,
                y,
                marker,
                color=colour,
                markersize=size,
                markeredgecolor="white",
                label=label,
                zorder=7,
                clip_on=False,
            )
