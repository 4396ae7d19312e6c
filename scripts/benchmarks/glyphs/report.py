"""Figures of the benchmark of forks, with paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.glyphs.experiment import Result
from benchmarks.glyphs.variants import BASE, BORDERS, ON, ONCE, ORACLE, ROUTED, VARIANTS
from benchmarks.specialists.report import Paired
from coarse2fine.bench.sections import Section

EXPLAINED = (
    *(f"{name}: {v.text}; control: {v.control}." for name, v in VARIANTS.items()),
    f"{BORDERS}: {ROUTED}, but tiles to whose second leaf the router gives more than 0.2 are answered by both.",
    f"{ORACLE}: {ROUTED}, but each tile goes to the usual leaf of its true class, which no method can know.",
    f"{', '.join(ONCE)}: first seed only, and compared with its control of that seed.",
    "errors: of test samples that nothing was trained or chosen on, mean and sd over seeds; macs: multiply-adds of a "
    "test sample, relative to the trunk's, with routing and ways back; samples: millions trained on, with the trunk's; "
    "training: multiply-adds of training after the trunk, in units of the trunk's training (three times its "
    "multiply-adds a sample). than_on, than_control: more errors than the trunk trained on, and than the control, "
    "paired, with 95 % interval and p by a bootstrap over test samples; they do not hold for other seeds.",
)


def section_of(title: str, found: Mapping[str, Sequence[Result]]) -> Section:
    """Figures of results by variant, one for each seed."""
    base, figures = found[BASE][0], dict[str, float]()
    each = np.arange(len(base.wrong))
    controls = {name: v.control for name, v in VARIANTS.items()} | {BORDERS: ROUTED, ORACLE: ROUTED}
    for name, runs in found.items():
        shares = [float(run.wrong.mean()) for run in runs]
        figures[f"{name}/errors"] = float(np.mean(shares))
        if len(runs) > 1:
            figures[f"{name}/errors_sd"] = float(np.std(shares, ddof=1))
        figures[f"{name}/macs"] = float(np.mean([run.macs for run in runs])) / base.macs
        figures[f"{name}/samples"] = float(np.mean([run.samples for run in runs])) / 1e6
        figures[f"{name}/training"] = float(np.mean([run.training for run in runs])) / (3 * base.macs * base.samples)
        for word, other in (("on", ON), ("control", controls[name])):
            same_seeds = found.get(other, ())[: len(runs)]
            if name != other and len(same_seeds) == len(runs) and (word, other) != ("control", ON):
                figures |= Paired.of(runs, same_seeds, each).figures(f"{name}/than_{word}")  # type: ignore[arg-type]
    return Section(title, figures)
