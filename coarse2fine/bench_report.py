"""What a benchmark says: a table, a flat mapping of figures, and a picture."""

from __future__ import annotations

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
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from coarse2fine._version import __version__
from coarse2fine.export import write_json
from coarse2fine.models.runtime import Runtime

DEFAULT, EXHAUSTIVE = "default", "1.00"
MEASURES = ("recall_exhaustive", "recall_labels", "precision_labels", "refined", "share", "seconds")
METHODS = {
    "ours": "scan, then windows where its features fire",
    "random": "cells in random order",
    "gradient": "largest Laplacian first",
    "mask": "non-empty cells (Otsu) in random order",
    "tiles": "windows of 32 x 32 cells, the least empty first",
    "oracle": "the exhaustive pass's own finds",
}
_STYLES = {
    "ours": ("#0060c0", "o", "-"),
    "random": ("#808080", "s", "--"),
    "gradient": ("#d08000", "^", "--"),
    "mask": ("#209060", "v", "--"),
    "tiles": ("#a040a0", "X", "--"),
    "oracle": ("#202020", "D", ":"),
}
_LINE = "{:<8} {:>7}  {:>14} {:>7}  {:>14} {:>14} {:>14}  {:>15}"
_EXPLAINED = (
    "spent: multiply-adds as a share of the exhaustive pass's (counted without any halo), scan and halos included; "
    "cells: share refined. found: recall of the exhaustive pass's finds; recall, precision: against the labels. "
    "Mean +- sd over {count} run(s) ({scenes} scene(s) x {seeds} seed(s)). ours at 1.00 is the exhaustive pass; "
    "default: the model's own threshold, with the rivals at the same multiply-adds in all. Rivals' maps count as free, "
    "in their favour."
)


@dataclass(frozen=True)
class Outcome:
    """One method at one budget on one scene.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    budget : str
        Such as "0.10"; "1.00" is the exhaustive pass, "default" the model's own threshold (and, of a rival, what
        that has cost).
    scene : str
    seed : int
    recall_exhaustive : float
        Share of the exhaustive pass's finds that were found; NaN where it found none.
    recall_labels, precision_labels : float
        Against the labels; NaN where there are no objects, or no finds.
    refined : float
        Share of the cells that were refined.
    share : float
        Multiply-adds in all, scan and halos included, as a share of the exhaustive pass's.
    seconds : float
        Wall-clock time.
    """

    method: str
    budget: str
    scene: str
    seed: int
    recall_exhaustive: float
    recall_labels: float
    precision_labels: float
    refined: float
    share: float
    seconds: float


@dataclass(frozen=True)
class Report:
    """The outcomes of a benchmark, and what is needed to repeat it.

    Parameters
    ----------
    outcomes : tuple of Outcome
    notes : tuple of str
        What was left out, and why.
    folds : tuple of mapping
        Names of the scenes to fit and to test on.
    seeds : tuple of int
    parameters : mapping
        JSON values.
    """

    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    folds: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...]
    parameters: Mapping[str, Any]

    def rows(self) -> dict[tuple[str, str], list[Outcome]]:
        """Outcomes by (budget, method): cheapest budget first, the default and the exhaustive pass at the end."""
        budgets = sorted({o.budget for o in self.outcomes}, key=lambda b: (b == EXHAUSTIVE, b == DEFAULT, b))
        table = {(b, m): [o for o in self.outcomes if (o.budget, o.method) == (b, m)] for b in budgets for m in METHODS}
        return {key: found for key, found in table.items() if found}

    def figures(self) -> dict[str, float]:
        """Means by name, such as "ours/0.10/recall_exhaustive", and their spread, "..._sd", where there is one.

        Measures that are not defined in any run (recall without objects) are left out. "ours/default/times_faster"
        and "times_fewer_macs" compare with the exhaustive pass on the same scene; times are medians of interleaved
        runs.
        """
        figures: dict[str, float] = {}
        for (budget, method), found in self.rows().items():
            for measure in MEASURES:
                figures |= _mean(f"{method}/{budget}/{measure}", [getattr(o, measure) for o in found])
        own = {(o.scene, o.seed): o for o in self.outcomes if (o.method, o.budget) == ("ours", DEFAULT)}
        whole = {(o.scene, o.seed): o for o in self.outcomes if (o.method, o.budget) == ("ours", EXHAUSTIVE)}
        figures |= _mean(f"ours/{DEFAULT}/times_faster", [whole[k].seconds / own[k].seconds for k in own])
        return figures | _mean(f"ours/{DEFAULT}/times_fewer_macs", [whole[k].share / own[k].share for k in own])

    def __str__(self) -> str:
        figures = self.figures()
        head = ("method", "budget", "spent", "cells", "found", "recall", "precision", "seconds")
        lines = [_LINE.format(*head)]
        previous = ""
        for budget, method in self.rows():
            lines += [""] if budget != previous else []
            previous = budget
            name = f"{method}/{budget}"
            spent, found, recall, precision, seconds = (
                _spread(figures, f"{name}/{measure}")
                for measure in ("share", "recall_exhaustive", "recall_labels", "precision_labels", "seconds")
            )
            cells = f"{figures[f'{name}/refined']:.2%}"
            lines.append(_LINE.format(method, budget, spent, cells, found, recall, precision, seconds))
        scenes = {o.scene for o in self.outcomes}
        count = len({(o.scene, o.seed) for o in self.outcomes})
        gain = (_spread(figures, f"ours/{DEFAULT}/times_{measure}") for measure in ("fewer_macs", "faster"))
        explained = _EXPLAINED.format(count=count, scenes=len(scenes), seeds=len(self.seeds))
        lines += ["", *textwrap.wrap(explained, 118)]
        lines.append("exhaustive pass over ours at its default: multiply-adds {}, seconds {}".format(*gain))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def save(self, folder: Path, json: Path) -> list[Path]:
        """Write the figures to `json`, and the picture, ``scenes.png``, into a folder; both folders must exist."""
        return [write_json(json, self.summary()), self.plot(folder / "scenes.png")]

    def summary(self) -> dict[str, Any]:
        """All of it as JSON values; what is undefined is null in `runs` and missing from `figures`."""
        runs = [{k: None if v != v else v for k, v in asdict(o).items()} for o in self.outcomes]  # noqa: PLR0124 (NaN)
        return {
            "benchmark": "scenes",
            "figures": self.figures(),
            "seeds": list(self.seeds),
            "folds": list(self.folds),
            "parameters": dict(self.parameters),
            "machine": machine(),
            "versions": versions(),
            "notes": list(self.notes),
            "runs": runs,
        }

    def plot(self, path: Path) -> Path:
        """Draw the recall of the exhaustive pass's finds against all multiply-adds spent."""
        figures = self.figures()
        figure = Figure(figsize=(8, 6.5), dpi=130)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for method, (colour, marker, line) in _STYLES.items():
            budgets = [b for b, m in self.rows() if m == method and b not in (DEFAULT, EXHAUSTIVE)]
            x, y, sd = (
                np.array([figures.get(f"{method}/{b}/{name}", np.nan) for b in budgets])
                for name in ("share", "recall_exhaustive", "recall_exhaustive_sd")
            )
            label = f"{method}: {METHODS[method]}"
            axes.errorbar(
                x, y, yerr=np.nan_to_num(sd), color=colour, marker=marker, linestyle=line, capsize=3, ms=5, label=label
            )
        for budget, marker, label in ((DEFAULT, "*", "ours at its default"), (EXHAUSTIVE, "P", "exhaustive pass")):
            at = [figures.get(f"ours/{budget}/{name}", np.nan) for name in ("share", "recall_exhaustive")]
            axes.plot(at[:1], at[1:], marker, color="#c02020", markersize=12, label=label, zorder=5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel("multiply-adds in all, as a share of the exhaustive pass's (scan and halos included)")
        axes.set_ylabel("recall of the exhaustive pass's finds")
        scenes = sorted({o.scene for o in self.outcomes})
        shown = ", ".join(scenes) if len(scenes) <= 4 else f"{len(scenes)} scenes"
        axes.set_title(f"{shown}; {len(self.seeds)} seed(s)", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
        figure.tight_layout()
        figure.savefig(path)
        return path


def _mean(name: str, values: list[float]) -> dict[str, float]:
    defined = [v for v in values if v == v]  # noqa: PLR0124 (NaN differs from itself)
    if not defined:
        return {}
    spread = {f"{name}_sd": float(np.std(defined, ddof=1))} if len(defined) > 1 else {}
    return {name: float(np.mean(defined))} | spread


def _spread(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return "-"
    sd = figures.get(f"{name}_sd")
    return f"{figures[name]:.3f}" + ("" if sd is None else f" +- {sd:.3f}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "runtime": Runtime.choose().name,
        "system": platform.platform(),
    }


def versions(names: Sequence[str] = ("torch", "numpy", "scipy", "scikit-image")) -> dict[str, str]:
    """Versions that bear on the figures; of the named packages, those that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {"coarse2fine": __version__, "python": platform.python_version(), **found, "opencv": cv2.__version__}


def _cpu() -> str:
    """The processor's name; Linux tells it in a file only."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
