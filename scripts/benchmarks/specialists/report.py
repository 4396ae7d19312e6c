"""What the specialists benchmark says: paired comparisons, a table for each data set, figures and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from benchmarks.report import IoReport, Section
from benchmarks.specialists.runs import Outcome
from benchmarks.specialists.variants import JUDGED, VARIANTS
from coarse2fine.results.json_file import write_json

_DRAWS = 2000
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_ROW = "{:<21} {:>13} {:>8} {:>6}   {:<31} {:<31} {}"
_NETS = ("net_half", "base", "net_columns", "net_full", "net_double")
_COLOURS = ("#0060c0", "#d08000", "#202020")
# Outcomes by name ("columns", "columns/judged"), one for each seed.
Outcomes = Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True)
class Paired:
    """How much more one way errs than another on the same tiles.

    Parameters
    ----------
    difference : float
        Of the shares of errors, mean over seeds.
    low, high : float
        95 % interval, by drawing groups of tiles anew.
    p : float
        Two-sided, of the same draws.
    """

    difference: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, these: Sequence[Outcome], those: Sequence[Outcome], group: NDArray[np.int64]) -> Paired:
        """Compare, seed by seed and tile by tile.

        Parameters
        ----------
        these, those : sequence of Outcome
            One for each seed, the same for both.
        group : ndarray, int64, (n,)
            Tiles of one group are not independent.
        """
        pairs = zip(these, those, strict=True)
        each = np.mean([a.wrong.astype(np.float64) - b.wrong for a, b in pairs], axis=0)
        _, index = np.unique(group, return_inverse=True)
        sums, counts = np.bincount(index, each), np.bincount(index)
        rng = np.random.default_rng(0)
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_DRAWS).astype(np.float64)
        means = (drawn @ sums) / (drawn @ counts)
        low, high = np.percentile(means, (2.5, 97.5))
        beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
        return cls(float(each.mean()), float(low), float(high), min(1.0, 2 * (beyond + 1) / (_DRAWS + 1)))

    def __str__(self) -> str:
        low, value, high = (f"{100 * v:+.2f}" for v in (self.low, self.difference, self.high))
        return f"{value} [{low}, {high}] p={self.p:.3f}"

    def figures(self, name: str) -> dict[str, float]:
        """By name, with "..._low", "..._high" and "..._p"."""
        return {name: self.difference, f"{name}_low": self.low, f"{name}_high": self.high, f"{name}_p": self.p}


@dataclass(frozen=True)
class SetResult:
    """One data set.

    Parameters
    ----------
    name, text : str
    group : ndarray, int64, (n,)
        Of the test's tiles.
    outcomes : mapping
        By name, one for each seed; all of one number.
    """

    name: str
    text: str
    group: NDArray[np.int64]
    outcomes: Outcomes

    def section(self) -> Section:
        """The table, and its figures."""
        head = ("", "errors %", "extra %", "asked", "more errors than base, points", "more than its control", "control")
        lines, figures = [_ROW.format(*head)], dict[str, float]()
        base = self.outcomes["base"]
        macs = _macs(base)
        for name, runs in self.outcomes.items():
            key = f"{self.name}/{name}"
            errors = [float(run.wrong.mean()) for run in runs]
            figures |= {f"{key}/errors": float(np.mean(errors)), f"{key}/extra_macs": _macs(runs) / macs - 1}
            figures |= {f"{key}/macs": _macs(runs), f"{key}/asked": float(np.mean([run.asked for run in runs]))}
            if len(runs) > 1:
                figures[f"{key}/errors_sd"] = float(np.std(errors, ddof=1))
            variant = VARIANTS[name.partition("/")[0]]
            told = []
            for other in dict.fromkeys(("base", variant.control, *variant.also)):
                if other != name and other in self.outcomes:
                    paired = Paired.of(runs, self.outcomes[other], self.group)
                    figures |= paired.figures(f"{key}/against_{other}")
                    figures[f"{key}/fewer_than_{other}"] = -paired.difference / max(_errors(self.outcomes[other]), 1e-9)
                    told += [str(paired)] if other in ("base", variant.control) else []
            figures |= self._equal_quality(name, key)
            spread = f"+-{100 * figures[f'{key}/errors_sd']:.2f}" if len(runs) > 1 else ""
            cells = f"{100 * np.mean(errors):.2f}{spread}", f"{100 * (_macs(runs) / macs - 1):+.1f}"
            asked = f"{figures[f'{key}/asked']:.2f}"
            row = (name, *cells, asked, *[*told, "", ""][:2], variant.control if len(told) > 1 else "")
            lines.append(_ROW.format(*row).rstrip())
        return Section(f"{self.name}: {self.text}", tuple(lines), figures)

    def _equal_quality(self, name: str, key: str) -> dict[str, float]:
        """Multiply-adds of the end-to-end net that errs as much, over those spent; none beyond the nets tried."""
        nets = sorted((_macs(self.outcomes[net]), _errors(self.outcomes[net])) for net in _NETS if net in self.outcomes)
        if len(nets) < 2 or name in _NETS:
            return {}
        macs, errors = np.log([m for m, _ in nets]), np.minimum.accumulate([e for _, e in nets])
        mine = _errors(self.outcomes[name])
        if not errors[-1] <= mine <= errors[0]:
            return {}
        equal = float(np.exp(np.interp(-mine, -errors, macs)))
        return {f"{key}/net_macs_at_equal_errors": equal / _macs(self.outcomes[name])}


def _macs(runs: Sequence[Outcome]) -> float:
    return float(np.mean([run.macs for run in runs]))


def _errors(runs: Sequence[Outcome]) -> float:
    return float(np.mean([run.wrong.mean() for run in runs]))


@dataclass(frozen=True)
class SpecialistsReport:
    """All data sets, what else was measured, and what is needed to repeat it.

    Parameters
    ----------
    sets : tuple of SetResult
    more : tuple of Section
        What was measured beside them.
    seeds : tuple of int
    parameters : mapping
        JSON values.
    notes : tuple of str
    """

    sets: tuple[SetResult, ...]
    more: tuple[Section, ...]
    seeds: tuple[int, ...]
    parameters: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def _inner(self) -> IoReport:
        shown = dict.fromkeys(name.partition("/")[0] for each in self.sets for name in each.outcomes)
        explained = [f"{name}: {VARIANTS[name].text}." for name in shown]
        explained += [
            f"NAME/{JUDGED}: the same, with columns pruned and a gate set by the tiles held back; else every tile of "
            "which the base is unsure (below 98 %) is sent down the whole tree.",
            "Errors of the test, mean +- sd over seeds, which change the split into training and held back too; extra: "
            "multiply-adds beyond the base's, columns and routing, mean over tiles; asked: columns asked of a tile. "
            "Differences are paired, with 95 % intervals and p of drawing groups of tiles (images, or blocks of them) "
            "anew; they say nothing of other data sets.",
            "Oddities: squares of pictures are changed, and all cells ranked; AP is the average precision, AUROC the "
            "area under the ROC curve. The memory bank (as in PatchCore) and the Gaussian (as in PaDiM) read the same "
            "encoder's features of every cell; ours with a share of the cost leave most cells out, which come last.",
        ]
        sections = (*(each.section() for each in self.sets), *self.more)
        return IoReport(
            sections, self.seeds[0], self.parameters, tuple(explained), self.notes, "specialists", _PACKAGES
        )

    def figures(self) -> dict[str, float]:
        """Numbers by name."""
        return self._inner().figures()

    def __str__(self) -> str:
        return str(self._inner())

    def save(self, folder: Path, json: Path) -> list[Path]:
        """Write the figures to `json`, and the picture, ``specialists.png``, into a folder; both folders must exist."""
        summary = self._inner().summary() | {"seeds": list(self.seeds)}
        return [write_json(json, summary), plot(folder / "specialists.png", self.sets)]


_PACKAGES = ("torch", "numpy", "scipy", "dask", "distributed", "zarr", "scikit-learn")


def plot(path: Path, sets: Sequence[SetResult]) -> Path:
    """Draw errors against multiply-adds, a panel for each data set; what is told the truth is left out.

    Parameters
    ----------
    path : Path
        A PNG file.
    sets : sequence of SetResult
    """
    across = min(2, len(sets))
    down = -(-len(sets) // across)
    figure = Figure(figsize=(8 * across, 6 * down), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes in panels[len(sets) :]:
        axes.set_axis_off()
    for axes, each in zip(panels, sets, strict=False):
        base = _macs(each.outcomes["base"])
        for name, runs in each.outcomes.items():
            if name.startswith("oracle"):
                continue
            kind = 2 if name in (*_NETS, "longer") else int(name.endswith(f"/{JUDGED}"))
            at = _macs(runs) / base, 100 * _errors(runs)
            axes.plot(*at, "o^s"[kind], color=_COLOURS[kind], markersize=5)
            if kind != 1:
                axes.annotate(name, at, xytext=(3, 3), textcoords="offset points", fontsize=6, color=_COLOURS[kind])
        nets = sorted(
            (_macs(each.outcomes[n]) / base, 100 * _errors(each.outcomes[n])) for n in _NETS if n in each.outcomes
        )
        axes.plot(*zip(*nets, strict=True), "-", color=_COLOURS[2], linewidth=0.8, label="end-to-end nets")
        axes.plot([], [], "o", color=_COLOURS[0], label="specialists")
        axes.plot([], [], "^", color=_COLOURS[1], label="specialists, pruned and gated")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_PLAIN)
        axes.xaxis.set_minor_formatter(_PLAIN)
        axes.set_title(each.name, fontsize=10)
        axes.set_xlabel("multiply-adds, the base's = 1")
        axes.set_ylabel("errors in %")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(path)
    return path
