"""One analysis, step by step: each band, or expert, of the model by itself, within limits that they share."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.joint_bound import shared_confidence
from coarse2fine.audit.result import Audit, Audited
from coarse2fine.band_run import BandRun
from coarse2fine.config import Config
from coarse2fine.model import Model
from coarse2fine.progress import Tick
from coarse2fine.region import Region
from coarse2fine.results.cost import Cost
from coarse2fine.steps.bands import divide, map_on_grid, plan_on_grid
from coarse2fine.steps.checkpoint import Checkpoint
from coarse2fine.steps.classify import Named, classify
from coarse2fine.steps.conclude import conclude, once
from coarse2fine.steps.mask import MaskSource
from coarse2fine.steps.pieces import cut
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import Refinement
from coarse2fine.steps.scan import Scan
from coarse2fine.steps.scan_net import in_integers
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.stats import ReadStats


class AnalysisRun:
    """One analysis, step by step; what a step takes and returns has one entry for each band, or expert, of the model.

    Parameters
    ----------
    image : Image
    model : Model
    config : Config
    checkpoint : Checkpoint
        Partial results, which are not computed again.
    mask : path or ndarray, bool, (h, w), optional

    Raises
    ------
    ValueError
        If the parameters do not suit the model, or the device cannot be used.
    """

    def __init__(
        self, image: Image, model: Model, config: Config, checkpoint: Checkpoint, mask: MaskSource | None = None
    ) -> None:
        self._image, self._model, self._config = image, model, config
        count = len(model.bands)
        # What is said of the bands holds together with the confidence (Bonferroni).
        own = config if count == 1 else replace(config, confidence=shared_confidence(config.confidence, count))
        self.bands = tuple(BandRun(image, band, own, checkpoint.of_band(i), mask) for i, band in enumerate(model.bands))
        self.audits = any(band.audits for band in self.bands)
        self.names_finds = any(band.classifier is not None for band in model.bands)
        self._named = [Named((), 0)] * count
        self.exhaustive_macs = sum(band.exhaustive_macs for band in self.bands)
        if self._may_refine_all():
            for band in self.bands:
                band.refine_all()

    @property
    def runtime_name(self) -> str:
        """Device and number format, also of the scan if that computes in integers."""
        runtime = self.bands[0].runtime
        pairs = zip(self.bands, self._model.bands, strict=True)
        levels = [(level, model) for band, model in pairs if band.scans for level in model.levels]
        whole = any(in_integers(level, model, runtime, self._image) for level, model in levels)
        return f"{runtime.name}, scan int8" if whole else runtime.name

    @property
    def threshold(self) -> float:
        """Least probability of a find; that of the first band, if each has its own."""
        return self.bands[0].threshold

    def _may_refine_all(self) -> bool:
        """Whether the only limit is a number of cells that allows for all."""
        cells = self._config.cells
        if cells is None or cells < sum(int(band.inside.sum()) for band in self.bands):
            return False
        rest = replace(self._config, cells=None)
        return rest.exhaustive or not rest.limited

    def look(self, tick: Tick | None) -> tuple[tuple[Scan, Any], ...]:
        """The scans, and the contexts that the refiners learn from the image, or None."""
        self._check_pays(sum(band.least_macs for band in self.bands))
        return tuple(band.look(tick) for band in self.bands)

    def choose(self, scans: Sequence[Scan]) -> tuple[Plan, ...]:
        """The windows to refine."""
        if not self._config.exhaustive:
            self._check_pays(sum(scan.macs for scan in scans), self.bands[0].sample)
            if len(self.bands) > 1:
                self._divide(scans)
        return tuple(band.choose(scan) for band, scan in zip(self.bands, scans, strict=True))

    def _divide(self, scans: Sequence[Scan]) -> None:
        """Divide limits on multiply-adds and cells among the bands.

        A budget is divided among experts by what each costs everywhere: their finds are not of one kind, so that the
        finds of one do not make up for those of another.
        """
        config, models, interests = self._config, self._model.bands, [scan.interest for scan in scans]
        if not all(interest.size for interest in interests):
            return  # all cells are refined, without a limit
        if config.budget is not None:
            each = [
                scan.macs + band.sample * band.exhaustive_macs for band, scan in zip(self.bands, scans, strict=True)
            ]
            left = config.budget * self.exhaustive_macs - sum(each)
            if self._model.output:
                shares = [left * band.exhaustive_macs / self.exhaustive_macs for band in self.bands]
            else:
                shares = divide(left, models, interests, lambda model, side: model.window_macs(side, side))
            for band, spent, share in zip(self.bands, each, shares, strict=True):
                # Rounded down: the shares together must not exceed the budget.
                band.budget = math.nextafter((spent + share) / band.exhaustive_macs, 0)
        if config.cells is not None:
            shares = divide(config.cells, models, interests, lambda _, side: side**2)
            cells = np.floor(shares).astype(int)
            cells[np.argmax(shares)] += config.cells - cells.sum()
            for band, most in zip(self.bands, cells.tolist(), strict=True):
                band.cells = most

    def pieces(self, plans: Sequence[Plan]) -> list[tuple[int, NDArray[np.intp]]]:
        """The pieces in which the plans are refined: number of the band, and rows of its plan."""
        parts = enumerate(zip(self._model.bands, plans, strict=True))
        return [(number, rows) for number, (model, plan) in parts for rows in cut(plan, model)]

    def refine(self, plans: Sequence[Plan], learned: Sequence[Any], tick: Tick | None = None) -> tuple[Refinement, ...]:
        """Refine the plans, the last first: of bands it costs least. Each has its share of the time left."""
        found: list[Refinement] = []
        macs = [plan.macs(model.window_macs) for plan, model in zip(plans, self._model.bands, strict=True)]
        for number in reversed(range(len(plans))):
            if any(fine.interrupted for fine in found):
                found.append(Refinement.none(interrupted=True))
                continue
            band, share = self.bands[number], macs[number] / max(1, sum(macs[: number + 1]))
            now = time.perf_counter()
            deadline = None if band.deadline is None else now + max(0.0, band.deadline - now) * share
            found.append(band.refine(plans[number], learned[number], tick, deadline=deadline))
            band.check_refined(plans[number], found[-1])
        return tuple(reversed(found))

    def audit(
        self,
        scans: Sequence[Scan],
        plans: Sequence[Plan],
        fines: Sequence[Refinement],
        learned: Sequence[Any],
        tick: Tick | None = None,
    ) -> tuple[Audited, ...]:
        """Certify or sample after scan and refinement; neither if the refinement was cut short."""
        found: list[Audited] = []
        for number in range(len(self.bands)):
            fine = fines[number]
            if any(each.interrupted for each in fines) or any(each.interrupted for each in found):
                fine = replace(fine, interrupted=True)
            found.append(self.bands[number].audit(scans[number], plans[number], fine, learned[number], tick))
        return tuple(found)

    def reported_audit(self, audited: Sequence[Audited]) -> Audit | None:
        """The audit for the result; None without one, or if one by default gave no estimate."""
        usual = self._config.recall is None and self._config.audit is None
        if not self.audits:
            return None
        named = [_named(each.audit, band) for each, band in zip(audited, self._model.bands, strict=True)]
        whole = Audit.joined(named if self._several else [audited[0].audit], self._config.confidence)
        return None if usual and all(math.isnan(part.missed) for part in whole.kinds) else whole

    @property
    def _several(self) -> bool:
        """Whether what is said must name its band or expert."""
        return len(self.bands) > 1 or bool(self._model.output)

    def conclude(
        self, scans: Sequence[Scan], audited: Sequence[Audited], tick: Tick | None = None
    ) -> tuple[Region, ...]:
        """The finds, each object once even if several bands found it, highest score first."""
        each = [
            conclude(done.candidates, model, scan, self._image, band.threshold)
            for done, model, scan, band in zip(audited, self._model.bands, scans, self.bands, strict=True)
        ]
        found = once(each, self._model)
        if not self.names_finds:
            return found
        home = {id(region): number for number, own in enumerate(each) for region in own}
        new: dict[int, Region] = {}
        for number, band in enumerate(self._model.bands):
            own = [region for region in found if home[id(region)] == number]
            self._named[number] = classify(own, band, self._image, tick)
            new |= {id(old): region for old, region in zip(own, self._named[number].regions, strict=True)}
        return tuple(new[id(region)] for region in found)

    def notes(self, audited: Sequence[Audited], learned: Sequence[Any]) -> list[str]:
        """Notes of the refiners on their work and their finds; those of several experts begin with its output."""
        rows = zip(self.bands, audited, learned, strict=True)
        found = [band.notes(done.candidates, band.leaves(known, done.refined)) for band, done, known in rows]
        return self._said(found)

    def outcomes(self, scans: Sequence[Scan], fines: Sequence[Refinement], audited: Sequence[Audited]) -> list[str]:
        """Notes on the cost of an analysis without limits, beside what was forecast for each refiner."""
        found = []
        rows = zip(self.bands, self._model.bands, scans, fines, audited, strict=True)
        for band, model, scan, fine, done in rows:
            spent = band.spent(scan, fine, done)
            macs = spent["scan_macs"] + spent["refine_macs"] + spent["audit_macs"]
            found.append([] if self._config.limited else model.refiner.outcome(macs / spent["exhaustive_macs"]))
        return self._said(found)

    def _said(self, notes: Sequence[Sequence[str]]) -> list[str]:
        """Notes of each band, each once; with the name of the output if there is one."""
        leads = [f"{band.output}: " if band.output else "" for band in self._model.bands]
        return list(dict.fromkeys(lead + note for lead, some in zip(leads, notes, strict=True) for note in some))

    def failures(
        self, scans: Sequence[Scan], fines: Sequence[Refinement], audited: Sequence[Audited]
    ) -> tuple[str, ...]:
        """Why parts of the image could not be read or refined, each once; with the output if only one says so."""
        rows = zip(scans, self.bands, fines, audited, strict=True)
        every = [scan.failures + band.pilot.failures + fine.failures + done.failures for scan, band, fine, done in rows]
        every = [known + named.failures for known, named in zip(every, self._named, strict=True)]
        times = Counter(failure for failures in every for failure in dict.fromkeys(failures))
        shared = [failure for failure, count in times.items() if count > 1]
        return (*shared, *self._said([[each for each in failures if times[each] == 1] for failures in every]))

    def interest(self, scans: Sequence[Scan]) -> NDArray[np.float32]:
        """Interest of each cell of the result's grid: that of the band in which it is greatest."""
        known = [(scan.interest, ratio) for scan, ratio in zip(scans, self._ratios, strict=True) if scan.interest.size]
        found = [map_on_grid(interest, ratio, self._cell_shape) for interest, ratio in known]
        return reduce(np.maximum, found) if found else np.zeros((0, 0), np.float32)

    def plan(self, scans: Sequence[Scan], plans: Sequence[Plan], audited: Sequence[Audited]) -> Plan:
        """All windows, those of certifications included, in cells of the result's grid."""
        rows = zip(scans, plans, audited, strict=True)
        explained = [plan.joined(done.plan).explained(scan.interest, scan.fired) for scan, plan, done in rows]
        return plan_on_grid(explained, self._ratios, self._cell_shape)

    def refined(self, audited: Sequence[Audited]) -> NDArray[np.bool_]:
        """Cells of the result's grid that any band refined."""
        rows = zip(audited, self.bands, self._ratios, strict=True)
        found = [map_on_grid(done.refined & band.inside, ratio, self._cell_shape) for done, band, ratio in rows]
        return np.asarray(np.logical_or.reduce(found), np.bool_)

    def cost(
        self,
        scans: Sequence[Scan],
        fines: Sequence[Refinement],
        audited: Sequence[Audited],
        read: ReadStats,
        seconds: dict[str, float],
    ) -> Cost:
        """Cost of the analysis: that of all bands."""
        spent: Counter[str] = Counter(chunks=read.chunks, bytes=read.bytes, fetched=read.fetched)
        for band, scan, fine, done in zip(self.bands, scans, fines, audited, strict=True):
            spent.update(band.spent(scan, fine, done))
        spent.update(classify_macs=sum(each.macs for each in self._named))
        read_seconds = {"decode_seconds": read.seconds, "wait_seconds": read.waited}
        return Cost(**spent, **seconds, **read_seconds)  # type: ignore[arg-type]

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the naming of finds."""
        return any(named.interrupted for named in self._named)

    @property
    def _ratios(self) -> list[int]:
        """Side of each band's cells in cells of the result's grid."""
        return [band.geometry.cell // self._model.cell for band in self._model.bands]

    @property
    def _cell_shape(self) -> tuple[int, int]:
        """Cells of the result's grid."""
        return ceil_div(self._image.height, self._model.cell), ceil_div(self._image.width, self._model.cell)

    def _check_pays(self, macs: int, sample: float = 0.0) -> None:
        share = macs / self.exhaustive_macs + sample
        if self._config.budget is not None and self._config.budget < share:
            audit = " and the audit" if sample else ""
            raise ValueError(
                f"a budget of {self._config.budget:g} does not pay for the scan{audit}, which alone costs {share:.3f} "
                "of the exhaustive pass; allow more, or give no budget"
            )


def _named(audit: Audit, band: Model) -> Audit:
    """An audit whose kinds name their expert, by its output, or their band, by its refined plane."""
    plane = None if band.output else band.geometry.refine_downsample
    return replace(audit, kinds=tuple(replace(part, plane=plane, output=band.output) for part in audit.kinds))
