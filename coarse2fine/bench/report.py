"""Report of the scenes benchmark: tables, a flat mapping of figures, and a plot."""

from __future__ import annotations

import math
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from coarse2fine._version import __version__
from coarse2fine.bench.results import (
    DEFAULT,
    EXHAUSTIVE,
    METHODS,
    Measurement,
    RecallCurve,
    audit_figures,
    mean_curve,
    outcome_figures,
    scene_figures,
)
from coarse2fine.bench.table import WIDTH, lines
from coarse2fine.models.runtime import Runtime
from coarse2fine.results.json_file import write_json

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


@dataclass
class Report:
    """Results of a benchmark, and the settings to repeat it.

    Parameters
    ----------
    measurements : tuple of Measurement
        One for each scene and seed.
    notes : tuple of str
        Remarks, such as what was left out and why.
    folds : tuple of mapping
        Names of the scenes to fit and to test on.
    seeds : tuple of int
    parameters : mapping
        JSON values.
    """

    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]
    folds: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...]
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.facts = [m.facts for m in self.measurements]
        self.outcomes = [o for m in self.measurements for o in m.outcomes]
        self.curves = [c for m in self.measurements for c in m.curves]
        self.audits = [a for m in self.measurements for a in m.audits]

    def figures(self) -> dict[str, float]:
        """Means by name, and standard deviations, "..._sd", of two runs or more; undefined figures are left out."""
        return outcome_figures(self.outcomes) | audit_figures(self.audits) | scene_figures(self.facts)

    def __str__(self) -> str:
        runs, scenes = len(self.facts), len({f.scene for f in self.facts})
        title = f"{runs} run(s): {scenes} scene(s) x {len(self.seeds)} seed(s)"
        notes = [line for note in self.notes for line in textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")]
        return "\n".join([title, *lines(self.figures(), self.facts, self.audits), *notes])

    def save(self, folder: Path, json: Path) -> list[Path]:
        """Write the figures to `json`, and the plot, ``scenes.png``, into a folder; both folders must exist."""
        names = list(dict.fromkeys(f.scene for f in self.facts))
        shown = ", ".join(names) if len(names) <= 3 else f"{len(names)} scenes"
        picture = plot(folder / "scenes.png", f"{shown}; {len(self.seeds)} seed(s)", self.curves, self.figures())
        return [write_json(json, self.summary()), picture]

    def summary(self) -> dict[str, Any]:
        """The report as JSON values; undefined values are null in records and missing from `figures`."""
        return summary("scenes", self.figures(), self.seeds, self.parameters, self.notes) | {
            "folds": list(self.folds),
            "scenes": [_record(f) for f in self.facts],
            "runs": [_record(o) for o in self.outcomes],
            "audits": [_record(a) for a in self.audits],
            "curves": self._mean_curves(),
            "printed": str(self).splitlines(),
        }

    def _mean_curves(self) -> dict[str, dict[str, list[float]]]:
        """Recall of the exhaustive pass's finds against cost, for each method, as in the plot."""
        table = {}
        for method in dict.fromkeys(c.method for c in self.curves):
            mean = mean_curve([c for c in self.curves if c.method == method])
            table[method] = {name: values.round(5).tolist() for name, values in mean.items()}
        return table


def _record(value: Any) -> dict[str, Any]:
    """A dataclass as JSON values."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(value).items()}


def summary(
    benchmark: str,
    figures: Mapping[str, float],
    seeds: Sequence[int],
    parameters: Mapping[str, Any],
    notes: Sequence[str],
    packages: Sequence[str] = ("torch", "numpy", "scipy", "scikit-image"),
) -> dict[str, Any]:
    """The common record of all benchmarks, as JSON values, with the machine and the versions of installed packages."""
    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "runtime": Runtime.choose().name,
        "system": platform.platform(),
    }
    versions = {"coarse2fine": __version__, "python": platform.python_version(), "opencv": cv2.__version__}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "benchmark": benchmark,
        "figures": dict(figures),
        "seeds": list(seeds),
        "parameters": dict(parameters),
        "machine": machine,
        "versions": versions,
        "notes": list(notes),
    }


def _cpu() -> str:
    """The processor's name, on Linux from ``/proc/cpuinfo``, the only source there."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def plot(path: Path, title: str, curves: Sequence[RecallCurve], figures: Mapping[str, float]) -> Path:
    """Plot recall of the exhaustive pass's finds against all multiply-adds: one line a method, and certified recalls.

    Parameters
    ----------
    path : Path
        A PNG file.
    title : str
    curves : sequence of RecallCurve
    figures : mapping
        From `Report.figures`.
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


def _line(axes: Any, method: str, text: str, curves: Sequence[RecallCurve]) -> None:
    """Plot the mean over runs, at costs where all are defined, and a band of one standard deviation."""
    mean, ours = mean_curve(curves), method == "ours"
    line, width = ":" if method == "oracle" else "-", 2.4 if ours else 1.4
    colour, label = _COLOURS[method], f"{method}: {text}"
    axes.plot(mean["share"], mean["recall"], line, color=colour, linewidth=width, label=label, zorder=4 + ours)
    if len(curves) > 1:
        low, high = mean["recall"] - mean["sd"], np.minimum(mean["recall"] + mean["sd"], 1)
        axes.fill_between(mean["share"], low, high, color=colour, alpha=0.15, linewidth=0)


def _points(axes: Any, figures: Mapping[str, float]) -> None:
    """Plot the default, thresholds calibrated in fitting, certified recalls, and the exhaustive pass."""
    fixed = sorted({name.split("/")[1] for name in figures if name.startswith("ours/fixed@")})
    certified = sorted({name.split("/")[0] for name in figures if name.startswith("certified@")})
    for name in certified:
        at = [figures[f"{name}/{m}"] for m in ("share", "recall")]
        text = f"{float(name.partition('@')[2]):.0%}"
        axes.annotate(text, at, xytext=(0, -15), textcoords="offset points", fontsize=8, ha="center", zorder=8)
    kinds = (
        ("o", "#0060c0", 6, "ours, calibrated thresholds", [f"ours/{key}" for key in fixed], "recall_exhaustive"),
        ("*", "#c02020", 13, "ours at its default", [f"ours/{DEFAULT}"], "recall_exhaustive"),
        ("D", "#e06000", 7, "certified, audit included (true recall)", certified, "recall"),
        ("P", "#202020", 10, "exhaustive pass", [f"ours/{EXHAUSTIVE}"], "recall_exhaustive"),
    )
    for marker, colour, size, label, names, measure in kinds:
        there = [n for n in names if f"{n}/{measure}" in figures]
        x, y = ([figures[f"{n}/{m}"] for n in there] for m in ("share", measure))
        drawn = {"color": colour, "markersize": size, "markeredgecolor": "white", "label": label, "zorder": 7}
        if there:
            axes.plot(x, y, marker, clip_on=False, **drawn)
