"""Paired comparisons of the variants on one data set, as a table with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.specialists.experiment import Errors
from benchmarks.specialists.variants import JUDGED, VARIANTS
from coarse2fine.bench.sections import Section

_DRAWS = 2000
EXPLAINED = (
    *(f"{name}: {variant.text}; control: {variant.control}." for name, variant in VARIANTS.items()),
    f"NAME/{JUDGED}: the same, with columns pruned and a gate set on held-out tiles; otherwise every tile of which the "
    "base is unsure (below 98 %) is sent down the whole tree.",
    "Errors of the test, mean +- sd over seeds, which change the split into training and held out too; extra: "
    "multiply-adds beyond the base's, columns and routing, mean over tiles; columns_run: per tile. "
    "than_base, than_control: more errors, paired, with 95 % interval and p by a bootstrap over groups of tiles "
    "(images or blocks of them); they do not hold for other data sets.",
    "Novelty: squares of pictures are changed, and all cells ranked; AP is the average precision, AUROC the area under "
    "the ROC curve. The memory bank (as in PatchCore) and the Gaussian (as in PaDiM) read the same encoder's features "
    "of every cell; ours with a share of the cost leave most cells out, which come last.",
)


class Paired(NamedTuple):
    """Paired difference in errors of two variants on the same tiles.

    Parameters
    ----------
    difference : float
        Difference of error rates, mean over seeds.
    low, high : float
        95 % interval, by a bootstrap over groups of tiles.
    p : float
        Two-sided, of the same bootstrap.
    """

    difference: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, these: Sequence[Errors], those: Sequence[Errors], group: NDArray[np.int64]) -> Paired:
        """Compare errors, one for each seed, tile by tile; tiles of one group, (n,), are not independent."""
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

    def figures(self, name: str) -> dict[str, float]:
        """Figures by name, with "..._low", "..._high" and "..._p"."""
        return {name: self.difference, f"{name}_low": self.low, f"{name}_high": self.high, f"{name}_p": self.p}


def section_of(name: str, text: str, group: NDArray[np.int64], found: Mapping[str, Sequence[Errors]]) -> Section:
    """Figures of one data set: of errors by variant ("columns/judged"), one a seed, on tiles of these groups, (n,)."""
    figures: dict[str, float] = {}
    macs = float(np.mean([errors.macs for errors in found["base"]]))
    for variant, runs in found.items():
        key, shares = f"{name}/{variant}", [float(run.wrong.mean()) for run in runs]
        figures[f"{key}/errors"] = float(np.mean(shares))
        if len(runs) > 1:
            figures[f"{key}/errors_sd"] = float(np.std(shares, ddof=1))
        figures[f"{key}/extra_macs"] = float(np.mean([run.macs for run in runs])) / macs - 1
        figures[f"{key}/columns_run"] = float(np.mean([run.columns_run for run in runs]))
        control = VARIANTS[variant.partition("/")[0]].control
        for word, other in (("base", "base"), ("control", control)):
            if other in found and variant != "base" and (word, other) != ("control", "base"):
                figures |= Paired.of(runs, found[other], group).figures(f"{key}/than_{word}")
    return Section(f"{name}: {text}", figures)
