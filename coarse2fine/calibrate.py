"""The refine net's answer to the fitting scenes, and the thresholds that follow from what was held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coarse2fine.evaluate import best_f1_threshold, match
from coarse2fine.merge import suppress
from coarse2fine.model import Model
from coarse2fine.models.firing import calibrate_firing
from coarse2fine.models.heads import Candidates, read_detections
from coarse2fine.models.runtime import Runtime
from coarse2fine.refine import refine
from coarse2fine.scan import Tick, features, look
from coarse2fine.select import Plan, best_windows
from coarse2fine.targets import PART, Scene

FLOOR = 0.05
_MOST_PARTS = 1024
_MOST_CELLS = 500_000
_WINDOWS = (2, 3, 4)
_LEAST_TAU = 1e-4


@dataclass(frozen=True)
class Answers:
    """What the refine net finds in the fitting scenes, wherever it was asked.

    Parameters
    ----------
    found : tuple of Candidates
        One for each scene: objects without duplicates, and all cells of areas.
    targets : tuple of ndarray, float32, (cell height, cell width)
        Probability that a cell holds a find, NaN where the net was not asked.
    threshold : float
        Probability from which an answer counts, by the best F1 on what was held back.
    f1 : float
        That F1; NaN where nothing was held back that could tell.
    """

    found: tuple[Candidates, ...]
    targets: tuple[NDArray[np.float32], ...]
    threshold: float
    f1: float


def exhaustive_answer(
    model: Model, scenes: Sequence[Scene], runtime: Runtime, seed: int, tick: Tick | None = None
) -> Answers:
    """Ask the refine net everywhere, or in a random choice of parts where the scenes are very large.

    Parameters
    ----------
    model : Model
        With a trained refine net.
    scenes : sequence of Scene
    runtime : Runtime
    seed : int
        Of the choice of parts.
    tick : callable, optional
        Called with parts done and parts in all.
    """
    parts = _parts(scenes, seed)
    total, before = sum(len(p) for p in parts), 0
    found, asked = [], []
    for scene, rows in zip(scenes, parts, strict=True):
        plan = Plan(rows * PART, np.full(len(rows), PART), np.ones(len(rows), np.float32), scene.cell_shape)
        offset = before
        progress = (lambda done, _, offset=offset: tick(offset + done, total)) if tick else None
        fine = refine(scene.image, plan, model, partial(read_detections, floor=FLOOR), runtime, progress)
        if fine.interrupted:
            raise KeyboardInterrupt  # half an answer would teach that there is nothing in the other half
        found.append(settle(fine.candidates, model))
        asked.append(plan.take(fine.done).covered())
        before += len(rows)
    threshold, f1 = _threshold(model, scenes, found)
    targets = [_target(c, a, threshold) for c, a in zip(found, asked, strict=True)]
    return Answers(tuple(found), tuple(targets), threshold, f1)


def settle(candidates: Candidates, model: Model) -> Candidates:
    """Objects reduced to one candidate each; cells of areas left as they are."""
    area = model.areas[candidates.labels]
    objects = suppress(candidates.take(~area))
    return Candidates.concatenate([objects, candidates.take(area)])


def _parts(scenes: Sequence[Scene], seed: int) -> list[NDArray[np.int64]]:
    """Parts to ask, for each scene: all, or a random choice of them."""
    rows = [(s, y, x) for s, scene in enumerate(scenes) for y, x in np.ndindex(scene.part_shape)]
    if len(rows) > _MOST_PARTS:
        rng = np.random.default_rng(seed)
        keep = np.sort(rng.permutation(len(rows))[:_MOST_PARTS])
        rows = [rows[i] for i in keep.tolist()]
    table = np.array(rows, np.int64)
    return [table[table[:, 0] == s, 1:] for s in range(len(scenes))]


def _held(scene: Scene, cells: NDArray[np.int32]) -> NDArray[np.bool_]:
    return scene.held[cells[:, 0] // PART, cells[:, 1] // PART]


def _threshold(model: Model, scenes: Sequence[Scene], found: Sequence[Candidates]) -> tuple[float, float]:
    """Best-F1 threshold over the held-back objects of all scenes; over all objects where none was held back."""
    if model.areas.all():
        return 0.5, float("nan")
    for held_only in (True, False):
        scores, right, count = [], [], 0
        for scene, candidates in zip(scenes, found, strict=True):
            s, r, n = _matched(model, scene, candidates, held_only)
            scores.append(s)
            right.append(r)
            count += n
        if count and any(len(s) for s in scores):
            threshold, f1 = best_f1_threshold(np.concatenate(scores), np.concatenate(right), count)
            return threshold, f1 if held_only else float("nan")
    return 0.5, 0.0


def _matched(
    model: Model, scene: Scene, candidates: Candidates, held_only: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Scores of finds, whether each is right, and how many objects there were to find."""
    c = candidates.take(~model.areas[candidates.labels])
    cells = (scene.centre / scene.fine_cell).astype(np.int32)
    cells = np.minimum(cells, np.array(scene.cell_shape, np.int32) - 1)
    counted = scene.fits & scene.annotated(*scene.centre.T) & (_held(scene, cells) if held_only else True)
    boxes = c.boxes.astype(np.float64) * scene.fine_cell
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # A find that nobody can have annotated is no false alarm.
    judged = scene.annotated(*centres.T)
    scores, right = [], []
    excused = np.zeros(len(c), bool)
    reach = np.maximum(scene.fine_cell, 0.5 * scene.size.max(axis=1, initial=0))
    for k in range(len(model.labels)):
        mine, true = np.flatnonzero(c.labels == k), np.flatnonzero(scene.label == k)
        owner = match(centres[mine], c.scores[mine], scene.centre[true], reach[true])
        hit = owner >= 0
        excused[mine[hit]] = ~counted[true[owner[hit]]]
        scores.append(c.scores[mine])
        right.append(np.stack([mine, hit], axis=1))
    order = np.concatenate(right) if right else np.zeros((0, 2), int)
    mask = ~excused[order[:, 0]] & (judged[order[:, 0]] | order[:, 1].astype(bool))
    if held_only:
        mask &= _held(scene, c.cells[order[:, 0]])
    return np.concatenate(scores)[mask], order[mask, 1].astype(bool), int(counted.sum())


def _target(candidates: Candidates, asked: NDArray[np.bool_], threshold: float) -> NDArray[np.float32]:
    """sigmoid(logit - logit of the threshold) in the cells of finds, 0 elsewhere, NaN where nothing was asked."""
    target = np.where(asked, np.float32(0), np.float32(np.nan))
    p = candidates.scores.astype(np.float64).clip(1e-6, 1 - 1e-6)
    odds = p / (1 - p) * (1 - threshold) / threshold
    y, x = candidates.cells.T
    target[y, x] = np.fmax(target[y, x], (odds / (1 + odds)).astype(np.float32))
    return target


def calibrate(
    model: Model,
    scenes: Sequence[Scene],
    answers: Answers,
    recall: float,
    runtime: Runtime,
    tick: Tick | None = None,
) -> Model:
    """Set the rule of firing, the window and the default threshold from what was held back.

    Parameters
    ----------
    model : Model
        With both nets trained and `threshold` set.
    scenes : sequence of Scene
    answers : Answers
    recall : float
        Share of the exhaustive pass's finds that the default plan is to find again.
    runtime : Runtime
    tick : callable, optional
        Called with scenes done and scenes in all.
    """
    high, logit, target = _held_cells(model, scenes, answers, runtime)
    firing, areas = calibrate_firing(high, logit, target)
    model = replace(model, firing=firing)
    best: tuple[float, int, float] | None = None
    interests = []
    for done, scene in enumerate(scenes):
        interests.append(look(scene.image, model, runtime).interest)
        if tick:
            tick(done + 1, len(scenes))
    for window in _WINDOWS:
        tau, count = _window_threshold(model, scenes, answers, interests, window, recall)
        cost = count * model.window_macs(window)
        if best is None or cost < best[0]:
            best = (cost, window, tau)
    assert best is not None
    return replace(
        model,
        window=best[1],
        tau=best[2],
        provenance={
            "f1_held_back": round(answers.f1, 4) if answers.f1 == answers.f1 else None,
            "area_for_95_percent": {rule: round(a, 5) for rule, a in areas.items()},
            "rule": firing.rule,
            "recall_target": recall,
        },
    )


def _held_cells(
    model: Model, scenes: Sequence[Scene], answers: Answers, runtime: Runtime
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Activations, logits and targets of the held-back cells (of all cells, where too few are held back)."""
    high, logit, target = [], [], []
    # Of very large scenes every so many cells is enough, and all that memory need hold.
    step = max(1, sum(int(s.held.sum()) for s in scenes) * PART**2 // _MOST_CELLS)
    everything = not any(s.held.any() for s in scenes) or _held_finds(scenes, answers) < 5
    for scene, answer in zip(scenes, answers.targets, strict=True):
        for box, h, own, _ in features(scene.image, model, runtime):
            view = answer[box.y0 : box.y1, box.x0 : box.x1]
            use = ~np.isnan(view) & (scene.known(box, held=True) | (scene.known(box) if everything else False))
            y, x = (index[::step] for index in np.nonzero(use))
            high.append(h.float().cpu().numpy()[:, y, x].T)
            logit.append(own[0].cpu().numpy()[y, x])
            target.append(view[y, x])
    return np.concatenate(high), np.concatenate(logit), np.concatenate(target)


def _held_finds(scenes: Sequence[Scene], answers: Answers) -> int:
    return sum(
        int((_held(s, c.cells) & (c.scores >= answers.threshold)).sum())
        for s, c in zip(scenes, answers.found, strict=True)
    )


def _window_threshold(
    model: Model,
    scenes: Sequence[Scene],
    answers: Answers,
    interests: Sequence[NDArray[np.float32]],
    window: int,
    recall: float,
) -> tuple[float, int]:
    """The score from which windows hold `recall` of the held-back finds, and how many windows of all that takes."""
    everything = _held_finds(scenes, answers) < 5
    reached, area, scores = [], [], []
    for scene, found, interest in zip(scenes, answers.found, interests, strict=True):
        side = min(window, *interest.shape)
        corners, sums = best_windows(interest, side, _LEAST_TAU)
        sure = found.take(found.scores >= answers.threshold)
        sure = sure if everything else sure.take(_held(scene, sure.cells))
        best = np.zeros(interest.shape, np.float32)
        for dy, dx in np.ndindex(side, side):
            np.maximum.at(best, (corners[:, 0] + dy, corners[:, 1] + dx), sums)
        reached.append(best[sure.cells[:, 0], sure.cells[:, 1]])
        area.append(model.areas[sure.labels])
        scores.append(sums)
    values, areas = np.concatenate(reached), np.concatenate(area)
    # Each kind must be found: the many cells of an area would outvote the objects.
    kinds = [values[areas == kind] for kind in (False, True) if (areas == kind).any()]
    tau = min((float(np.quantile(v, 1 - recall, method="lower")) for v in kinds), default=0.5)
    # A hair below, so that the window which decided is itself taken.
    tau *= 1 - 1e-3
    return tau, int(sum((s > tau).sum() for s in scores))
