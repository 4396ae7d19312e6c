"""Pictures of the benchmark of forks: errors against multiply-adds and against training samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.glyphs.experiment import Result
from benchmarks.glyphs.variants import BASE, BORDERS, ON, ORACLE, WIDE

# Okabe and Ito's colours, which the colour-blind can tell apart; markers differ too.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = "osD^vPX*<>h8p"
_END_TO_END = (BASE, ON, WIDE)
_SIZE, _DPI = (10.5, 4.6), 120


def save_picture(found: Mapping[str, Sequence[Result]], path: Path) -> Path:
    """Draw errors, mean over seeds with their range, and write a PNG.

    Nets end to end are filled; `ORACLE` is left out, since no method can reach it.
    """
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    base = found[BASE][0]
    unit = 3 * base.macs * base.samples
    for number, (name, runs) in enumerate((n, r) for n, r in found.items() if n != ORACLE):
        errors = 100 * np.array([run.wrong.mean() for run in runs])
        middle = float(errors.mean())
        spread = [[middle - float(errors.min())], [float(errors.max()) - middle]]
        style = {
            "marker": _MARKERS[number % len(_MARKERS)],
            "color": _COLOURS[number % len(_COLOURS)],
            "markerfacecolor": None if name in _END_TO_END else "white",
            "linestyle": "none",
            "markersize": 8,
            "capsize": 2,
        }
        left.errorbar(np.mean([r.macs for r in runs]) / 1e3, middle, spread, label=name, **style)
        # Evaluated after the same training as the variant whose routing it changes.
        if name != BORDERS:
            cost = 1 + float(np.mean([r.training for r in runs])) / unit
            right.errorbar(cost, middle, spread, **style)
    _named(left, "multiply-adds of a tile, thousands", "errors, %")
    _named(right, "multiply-adds of training; the trunk's = 1", "")
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path)
    return path


def _named(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
