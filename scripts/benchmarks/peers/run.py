"""Seconds, memory and finds of other tools that run the same network over the same image."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experts.rivals import Boxes, same_share
from benchmarks.peers import tools
from coarse2fine.bench.child_process import printed_json
from coarse2fine.bench.gigapixel import HugeScenes
from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress

_EXPLAINED = (
    "Each tool runs in a process of its own, one after another in every round; imports and a warm-up of the net are "
    "not counted, reading is. seconds, processor_seconds: medians of the rounds. slower: median seconds over ours. "
    "same: the lesser of the shares of its finds that our exhaustive pass has, and of that pass's finds that it has "
    "(one label, IoU of at least 0.5). SAHI, supervision and MONAI take the image in memory; SAHI and supervision "
    "also keep objects that lie in the overlap of two slices, cut or whole.",
)
_SEED = 51


@dataclass(frozen=True)
class PeersScale:
    """Extent of the comparison.

    Parameters
    ----------
    gigapixels : float
    rounds : int
    """

    gigapixels: float
    rounds: int


FULL, QUICK = PeersScale(0.06, 3), PeersScale(0.015, 1)


def benchmark_peers(out: Path, *, scale: PeersScale = FULL) -> SectionReport:
    """Compare tools on a scene of digits, kept in `out`, which must exist."""
    missing = [name for name, package in tools.PACKAGES.items() if find_spec(package) is None]
    notes = [
        f"number format: {Runtime.choose().name}",
        *(f"{name} is left out: it is not installed" for name in missing),
    ]
    names = [name for name in tools.TOOLS if name not in missing]
    path = HugeScenes(out).make(scale.gigapixels, _SEED).image
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with Progress(True) as bars:
        tick = bars.task("tools")
        for step in range(scale.rounds * len(names)):
            tick(step, scale.rounds * len(names))
            name = names[step % len(names)]
            runs[name].append(_run(name, path))
    reference = _boxes(runs["ours, exhaustive"])
    figures: dict[str, float] = {}
    for name, each in runs.items():
        row = {key: float(np.median([run[key] for run in each])) for key in ("seconds", "processor_seconds")}
        row["slower"] = row["seconds"] / float(np.median([run["seconds"] for run in runs["ours"]]))
        boxes = _boxes(each)
        row |= {"finds": float(len(boxes)), "same": same_share(boxes, reference)}
        row |= {"peak_mb": max(run["peak"] for run in each) / 1e6} if "peak" in each[0] else {}
        figures |= {f"{name}/{column}": value for column, value in row.items()}
    title = f"digits, {scale.gigapixels:g} gigapixels"
    return SectionReport("peers", [Section(title, figures)], (_SEED,), asdict(scale), _EXPLAINED, notes)


def _boxes(runs: list[dict[str, Any]]) -> Boxes:
    return np.array(runs[0]["boxes"], np.float64).reshape(-1, 5)


def _run(name: str, path: object) -> dict[str, Any]:
    scripts = str(Path(__file__).parents[2])
    known = [scripts, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return printed_json(
        [sys.executable, "-m", "benchmarks.peers.tools", name, str(path), "digits"],
        name,
        environment={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, known))},
    )
