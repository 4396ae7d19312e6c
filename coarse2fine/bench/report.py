"""What the scenes benchmark says: tables, a flat mapping of figures, and a picture."""

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
import torch

from coarse2fine._version import __version__
from coarse2fine.bench.plot import plot
from coarse2fine.bench.results import (
    AuditRun,
    Curve,
    MeanCurve,
    Outcome,
    SceneFacts,
    audit_figures,
    outcome_figures,
    scene_figures,
)
from coarse2fine.bench.table import WIDTH, lines
from coarse2fine.export import write_json
from coarse2fine.models.runtime import Runtime


@dataclass(frozen=True)
class Report:
    """What a benchmark has measured, and what is needed to repeat it.

    Parameters
    ----------
    outcomes : tuple of Outcome
    curves : tuple of Curve
    audits : tuple of AuditRun
    facts : tuple of SceneFacts
        One for each scene and seed.
    notes : tuple of str
        What was left out, and why.
    folds : tuple of mapping
        Names of the scenes to fit and to test on.
    seeds : tuple of int
    parameters : mapping
        JSON values.
    """

    outcomes: tuple[Outcome, ...]
    curves: tuple[Curve, ...]
    audits: tuple[AuditRun, ...]
    facts: tuple[SceneFacts, ...]
    notes: tuple[str, ...]
    folds: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...]
    parameters: Mapping[str, Any]

    def figures(self) -> dict[str, float]:
        """Means by name, and their spread, "..._sd", where there is one; what is not defined in any run is left out."""
        return outcome_figures(self.outcomes) | audit_figures(self.audits) | scene_figures(self.facts)

    def __str__(self) -> str:
        runs, scenes = len(self.facts), len({f.scene for f in self.facts})
        title = f"{runs} run(s): {scenes} scene(s) x {len(self.seeds)} seed(s)"
        notes = [line for note in self.notes for line in textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")]
        return "\n".join([title, *lines(self.figures(), self.facts, self.audits), *notes])

    def save(self, folder: Path, json: Path) -> list[Path]:
        """Write the figures to `json`, and the picture, ``scenes.png``, into a folder; both folders must exist."""
        names = list(dict.fromkeys(f.scene for f in self.facts))
        shown = ", ".join(names) if len(names) <= 3 else f"{len(names)} scenes"
        picture = plot(folder / "scenes.png", f"{shown}; {len(self.seeds)} seed(s)", self.curves, self.figures())
        return [write_json(json, self.summary()), picture]

    def summary(self) -> dict[str, Any]:
        """All of it as JSON values; what is undefined is null in records and missing from `figures`."""
        return {
            "benchmark": "scenes",
            "figures": self.figures(),
            "seeds": list(self.seeds),
            "folds": list(self.folds),
            "parameters": dict(self.parameters),
            "machine": machine(),
            "versions": versions(),
            "notes": list(self.notes),
            "scenes": [_record(f) for f in self.facts],
            "runs": [_record(o) for o in self.outcomes],
            "audits": [_record(a) for a in self.audits],
            "curves": self._mean_curves(),
        }

    def _mean_curves(self) -> dict[str, dict[str, list[float]]]:
        """Recall of the exhaustive pass's finds against cost, of each method, as in the picture."""
        table = {}
        for method in dict.fromkeys(c.method for c in self.curves):
            mean = MeanCurve.of([c for c in self.curves if c.method == method])
            table[method] = {name: values.round(5).tolist() for name, values in vars(mean).items()}
        return table


def _record(value: Outcome | AuditRun | SceneFacts) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(value).items()}


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
