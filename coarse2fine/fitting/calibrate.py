"""Calibration of the firing rule, the window size and the default threshold on held-out parts of the scenes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.rescaled import Area
from coarse2fine.fitting.scene import PART, Scene, part_of, pooled
from coarse2fine.fitting.teacher import Answers, _held
from coarse2fine.model import CascadeStage, Model
from coarse2fine.models.firing import Rule, calibrate_firing, features_choose, linear_discriminant
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.steps.scan import features, survey_level
from coarse2fine.steps.scan_net import ScanNet
from coarse2fine.steps.windows import best_windows

_MOST_CELLS = 500_000
WINDOWS = (2, 3, 4)
_FEW_FINDS = 5
_LEAST_TAU = 1e-4
_STEADY_RECALLS = (0.9, 0.95)
# Recalls whose thresholds are reported too, so that a benchmark need not set thresholds on its test data.
_TOLD_RECALLS = (0.9, 0.95, 0.97, 0.99, 0.995)


@dataclass(frozen=True)
class StageScan:
    """Scan of all fitting scenes by one cascade stage.

    Parameters
    ----------
    interests : tuple of ndarray, float32, (cell height, cell width)
        Interest of the stage's cells, one map for each scene.
    macs : int
        Multiply-adds, halos included.
    seconds : float
        Time, reading included.
    """

    interests: tuple[NDArray[np.float32], ...]
    macs: int
    seconds: float


@dataclass(frozen=True)
class Calibrated:
    """A model with its thresholds set, and the cost of its default plan on the fitting scenes.

    Parameters
    ----------
    model : Model
    seen : StageScan
        Scan by its base.
    cost : float
        Cost of scan and windows, in the price's unit.
    """

    model: Model
    seen: StageScan
    cost: float


@dataclass(frozen=True)
class Price:
    """Cost measure by which the geometry is chosen.

    Parameters
    ----------
    unit : {"macs", "seconds"}
    window_seconds : mapping of int to float
        Seconds for a window by its side in fine cells, reading included; empty if the unit is "macs".
    """

    unit: Literal["macs", "seconds"]
    window_seconds: Mapping[int, float] = field(default_factory=dict)

    def window(self, model: Model, cells: int) -> float:
        """Cost of refining a window of `cells` by `cells` cells."""
        if self.unit == "macs":
            return model.window_macs(cells, cells)
        return self.window_seconds[cells * model.geometry.fine]

    def scan(self, macs: int, seen: StageScan) -> float:
        """Cost of `macs` multiply-adds of a stage's net, at the speed of its full scan."""
        return macs if self.unit == "macs" else macs * seen.seconds / seen.macs


@dataclass(frozen=True)
class CalibrationSet:
    """Data and targets by which bases are calibrated and compared.

    Parameters
    ----------
    scenes : tuple of Scene
    answers : Answers
        The refine net's output on these scenes.
    recall : float
        Target recall of the default plan against the exhaustive pass.
    price : Price
    runtime : Runtime
    areas : tuple of Area
        The scenes and rescaled copies of them, with the refine net's output, from which bases learn.
    """

    scenes: tuple[Scene, ...]
    answers: Answers
    recall: float
    price: Price
    runtime: Runtime
    areas: tuple[Area, ...] = ()


def calibrate(model: Model, setting: CalibrationSet, tick: Tick | None = None) -> Calibrated:
    """Set the firing rule on the held-out parts, and the window and the default threshold by `Finds.threshold`.

    Parameters
    ----------
    model : Model
        With both nets trained and `threshold` set.
    setting : CalibrationSet
    tick : callable, optional
        Called with the numbers of scenes done and of all scenes.
    """
    level, areas = calibrate_level(model, setting, model.levels[-1])
    assert level.firing is not None
    model = replace(model, base=level.net, firing=level.firing)
    seen = survey_scenes(model, setting, level, tick)
    price = setting.price
    scan = price.scan(seen.macs, seen)
    finds, learned = Finds.of(model, setting), calibrates_on_all(setting.scenes, setting.answers)
    window, scores = _cheapest_window(model, setting, finds, seen.interests, scan)
    tau, count = scores.threshold(setting.recall)
    taus = {f"{r:g}": scores.threshold(r)[0] for r in _TOLD_RECALLS}
    provenance = {
        "f1_held_back": None if math.isnan(setting.answers.f1) else round(setting.answers.f1, 4),
        "area_for_95_percent": {str(rule): round(a, 5) for rule, a in areas.items()},
        "rule": level.firing.rule,
        "recall_target": setting.recall,
        "taus": taus,
        "finds": [0 if learned else int(finds.held.sum()), len(finds.held)],
    }
    model = replace(model, window=window, tau=tau, provenance=provenance)
    return Calibrated(model, seen, scan + count * price.window(model, window))


def _cheapest_window(
    model: Model, setting: CalibrationSet, finds: Finds, interests: Sequence[NDArray[np.float32]], scan: float
) -> tuple[int, WindowScores]:
    """The window that costs least with the scan, and its scores.

    A few finds decide the cost at one recall: lower recalls, which more of them decide, choose the window too.
    """
    scores = {window: WindowScores.of(finds, interests, window) for window in WINDOWS}

    def cost(window: int) -> float:
        counts = [scores[window].threshold(recall)[1] for recall in (setting.recall, *_STEADY_RECALLS)]
        return math.prod(scan + count * setting.price.window(model, window) for count in counts)

    window = min(WINDOWS, key=cost)
    return window, scores[window]


def calibrate_level(
    model: Model, setting: CalibrationSet, level: CascadeStage
) -> tuple[CascadeStage, dict[Rule, float]]:
    """The stage with its firing rule, and the share of the cells that each rule needs for 95 % of the finds.

    If the features choose, weights that follow from the learning cells replace those that the net's training found.

    Parameters
    ----------
    model : Model
    setting : CalibrationSet
    level : CascadeStage
        With a trained net.
    """
    learning, (high, logit, target) = scanned_cells(model, setting, level)
    found = linear_discriminant(learning[0], learning[2])
    chosen, areas = (False, {}) if found is None else features_choose(found, high, logit, target)
    if found is None or not chosen:
        return replace(level, firing=calibrate_firing(high, logit, target)), areas
    if level.net.reader.bias is None:
        found = found._replace(bias=0.0)
    firing = calibrate_firing(high, found(high), target, "discriminant")
    return replace(level, net=level.net.read_by(*found), firing=firing), areas


def survey_scenes(model: Model, setting: CalibrationSet, level: CascadeStage, tick: Tick | None = None) -> StageScan:
    """Scan all scenes with one stage, independently of the other stages."""
    interests, macs = [], 0
    start = time.perf_counter()
    for done, scene in enumerate(setting.scenes):
        scan = survey_level(scene.image, model, setting.runtime, level)
        interests.append(scan.interest)
        macs += scan.macs
        if tick:
            tick(done + 1, len(setting.scenes))
    return StageScan(tuple(interests), macs, time.perf_counter() - start)


_Cells = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def scanned_cells(
    model: Model, setting: CalibrationSet, level: CascadeStage, net: ScanNet | None = None
) -> tuple[_Cells, _Cells]:
    """Activations, logits and targets of the learning cells, and of the held-out ones (of all if too few are held).

    Parameters
    ----------
    model : Model
    setting : CalibrationSet
    level : CascadeStage
    net : callable, optional
        By default the stage's net in the number format of the setting.
    """
    scenes, answers = setting.scenes, setting.answers
    ratio = level.cell // model.geometry.fine_cell
    everything = calibrates_on_all(scenes, answers)
    kept: tuple[list[_Cells], list[_Cells]] = ([], [])
    # Subsample the cells of very large scenes to bound memory.
    parts = [sum(int((s.held == held).sum()) for s in scenes) for held in (False, True)]
    steps = [max(1, count * (PART // ratio) ** 2 // _MOST_CELLS) for count in parts]
    for scene, answer in zip(scenes, answers.targets, strict=True):
        for box, h, own, _ in features(scene.image, model, setting.runtime, level=level, net=net):
            fine_box = box.scale(ratio)
            high, logit = h.float().cpu().numpy(), own[0].float().cpu().numpy()
            learning, held = scene.known(fine_box), scene.known(fine_box, held=True)
            for rows, known, step in zip(kept, (learning, held | learning if everything else held), steps, strict=True):
                value, use = pooled(part_of(answer, fine_box), known, ratio)
                y, x = (index[::step] for index in np.nonzero(use))
                rows.append((high[:, y, x].T, logit[y, x], value[y, x]))
    first, last = (tuple(np.concatenate(column) for column in zip(*rows, strict=True)) for rows in kept)
    return first, last  # type: ignore[return-value]


def calibrates_on_all(scenes: Sequence[Scene], answers: Answers) -> bool:
    """Whether the held-out parts hold too few finds, so that thresholds are set on the training data too."""
    count = 0
    for scene, found in zip(scenes, answers.found, strict=True):
        # Only annotated cells calibrate.
        annotated = scene.annotated(*((found.cells + 0.5) * scene.fine_cell).T)
        count += int((_held(scene, found.cells) & annotated & (found.scores >= answers.threshold)).sum())
    return count < _FEW_FINDS


@dataclass(frozen=True, eq=False)
class Finds:
    """The refine net's finds above its threshold, by which thresholds of a scan are set.

    Those in annotated parts; all, and all as if held out, if too few lie in held-out parts.

    Parameters
    ----------
    cells : tuple of ndarray, int64, (n, 2)
        Their cells (y, x), for each scene.
    areas, held : ndarray, bool, (m,)
        Of all scenes: which are parts of areas, and which count as held out.
    """

    cells: tuple[NDArray[np.int64], ...]
    areas: NDArray[np.bool_]
    held: NDArray[np.bool_]

    @classmethod
    def of(cls, model: Model, setting: CalibrationSet) -> Finds:
        """Those on the scenes of a setting."""
        scenes, answers = setting.scenes, setting.answers
        everything = calibrates_on_all(scenes, answers)
        cells, areas, held = [], [], []
        for scene, found in zip(scenes, answers.found, strict=True):
            annotated = scene.annotated(*((found.cells + 0.5) * scene.fine_cell).T)
            sure = found.take((found.scores >= answers.threshold) & (annotated | everything))
            cells.append(sure.cells.astype(np.int64) // model.geometry.fine)
            areas.append(model.areas[sure.labels])
            held.append(_held(scene, sure.cells) | everything)
        return cls(tuple(cells), np.concatenate(areas), np.concatenate(held))

    def threshold(self, values: NDArray[np.float32], recall: float) -> float:
        """The threshold that a share `recall` of other finds is expected to exceed.

        The lowest of those by objects and by areas, which have far more cells, each by all finds and by the held-out
        ones alone: a base knows the ground it learned from. A handful of held-out finds says little of what lies below
        the least of them, so only all finds together set a threshold lower than any of theirs.

        Parameters
        ----------
        values : ndarray, float32, (m,)
            A value for each find.
        recall : float
        """
        kinds = [mine for mine in (~self.areas, self.areas) if mine.any()]
        taus = [expected_quantile(values[mine], 1 - recall) for mine in kinds]
        held = [values[mine & self.held] for mine in kinds]
        taus += [max(expected_quantile(each, 1 - recall), float(each.min())) for each in held if len(each)]
        tau = min(taus, default=0.5)
        # Slightly below, so that the deciding value itself is included.
        return tau * (1 - 1e-3)


def expected_quantile(values: NDArray[np.float32], share: float) -> float:
    """The value below which another one, drawn like these from 0 on, lies with a probability of `share` at most.

    With few values that is lower than their own quantile. If `share` is below 1 / (n + 1) it is lower than the least of
    n, as if values below were spread evenly.
    """
    ordered = np.sort(values)
    rank = (len(ordered) + 1) * share
    return float(ordered[int(rank) - 1]) if rank >= 1 else float(ordered[0]) * rank


@dataclass(frozen=True, eq=False)
class WindowScores:
    """Scores of the windows of one size on all scenes.

    Parameters
    ----------
    scores : ndarray, float32, (n,)
        Of all windows.
    best : ndarray, float32, (m,)
        Score of the best window over each find.
    finds : Finds
    """

    scores: NDArray[np.float32]
    best: NDArray[np.float32]
    finds: Finds

    @classmethod
    def of(cls, finds: Finds, interests: Sequence[NDArray[np.float32]], window: int) -> WindowScores:
        """The scores for windows of a side, in cells, and maps of interest."""
        values, scores = [], []
        for cells, interest in zip(finds.cells, interests, strict=True):
            side = min(window, *interest.shape)
            corners, sums = best_windows(interest, side, _LEAST_TAU)
            best = np.zeros(interest.shape, np.float32)
            for dy, dx in np.ndindex(side, side):
                np.maximum.at(best, (corners[:, 0] + dy, corners[:, 1] + dx), sums)
            values.append(best[cells[:, 0], cells[:, 1]])
            scores.append(sums)
        return cls(np.concatenate(scores), np.concatenate(values), finds)

    def threshold(self, recall: float) -> tuple[float, int]:
        """The score above which windows hold `recall` of the finds, and the number of windows above it."""
        tau = self.finds.threshold(self.best, recall)
        return tau, int((self.scores > tau).sum())
