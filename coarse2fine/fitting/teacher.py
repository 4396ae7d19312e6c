"""The refine net's output on whole scenes: training target and reference of the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.hold_out import some_parts
from coarse2fine.fitting.matching import best_f1_threshold, match
from coarse2fine.fitting.scene import PART, Scene
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.refiners.suppress import merged
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import refine, window_pixels

FLOOR = 0.05
_MOST_PARTS = 1024


@dataclass(frozen=True)
class Answers:
    """Finds of the refine net in the fitting scenes, in all parts where it ran.

    Parameters
    ----------
    found : tuple of Candidates
        One for each scene: objects without duplicates, and all cells of areas.
    targets : tuple of ndarray, float32, (cell height, cell width)
        Probability that a cell holds a find, NaN where the net did not run.
    threshold : float
        Probability from which a candidate counts, by the best F1 on held-out parts.
    f1 : float
        That F1; NaN if the held-out parts hold no object.
    pixels : int
        Pixels that the refine net read, halos included.
    """

    found: tuple[Candidates, ...]
    targets: tuple[NDArray[np.float32], ...]
    threshold: float
    f1: float
    pixels: int = 0


def exhaustive_answer(
    model: Model, scenes: Sequence[Scene], runtime: Runtime, seed: int, tick: Tick | None = None
) -> Answers:
    """Run the refine net everywhere, or in a random choice of parts if the scenes are very large.

    Parameters
    ----------
    model : Model
        With a trained refine net.
    scenes : sequence of Scene
    runtime : Runtime
    seed : int
        Seed of the choice of parts.
    tick : callable, optional
        Called with the numbers of parts done and of all parts.
    """
    parts = _parts(scenes, seed)
    total, before, pixels = sum(len(p) for p in parts), 0, 0
    found, ran = [], []
    for scene, rows in zip(scenes, parts, strict=True):
        plan = Plan(rows * PART, np.full((len(rows), 2), PART), np.ones(len(rows), np.float32), scene.cell_shape)
        offset = before
        progress = (lambda done, _, offset=offset: tick(offset + done, total)) if tick else None
        fine = refine(scene.image, plan, model, runtime, progress, floor=FLOOR)
        if fine.interrupted:
            raise KeyboardInterrupt  # an unfinished pass would mark the rest as empty
        found.append(settle(fine.candidates, model))
        ran.append(plan.take(fine.done).covered())
        before += len(rows)
        pixels += int(window_pixels(plan, model).sum())
    threshold, f1 = _threshold(model, scenes, found)
    targets = [target_of(c, a, threshold) for c, a in zip(found, ran, strict=True)]
    return Answers(tuple(found), tuple(targets), threshold, f1, pixels)


def settle(candidates: Candidates, model: Model) -> Candidates:
    """Merge duplicates of objects; cells of areas stay as they are."""
    area = model.areas[candidates.labels]
    objects = merged(candidates.take(~area))
    return Candidates.concatenate([objects, candidates.take(area)])


def _parts(scenes: Sequence[Scene], seed: int) -> list[NDArray[np.int64]]:
    """Parts to refine in each scene: all, or a random choice of them."""
    rows = [(s, y, x) for s, scene in enumerate(scenes) for y, x in np.ndindex(scene.part_shape)]
    table = np.array(some_parts(rows, _MOST_PARTS, seed), np.int64)
    return [table[table[:, 0] == s, 1:] for s in range(len(scenes))]


def _held(scene: Scene, cells: NDArray[np.int32]) -> NDArray[np.bool_]:
    return scene.held[cells[:, 0] // PART, cells[:, 1] // PART]


def _threshold(model: Model, scenes: Sequence[Scene], found: Sequence[Candidates]) -> tuple[float, float]:
    """Best-F1 threshold over the held-out objects of all scenes, or over all objects if none is held out."""
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
    """Scores of finds, whether each is a true object, and the number of objects that count."""
    c = candidates.take(~model.areas[candidates.labels])
    cells = (scene.centre / scene.fine_cell).astype(np.int32)
    cells = np.minimum(cells, np.array(scene.cell_shape, np.int32) - 1)
    counted = scene.fits & scene.annotated(*scene.centre.T) & (_held(scene, cells) if held_only else True)
    boxes = c.boxes.astype(np.float64) * scene.fine_cell
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # A find outside the annotated area is no false alarm.
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


def target_of(candidates: Candidates, ran: NDArray[np.bool_], threshold: float) -> NDArray[np.float32]:
    """Targets of a base: sigmoid(logit - logit of the threshold) in the cells of finds, 0 in all others.

    Parameters
    ----------
    candidates : Candidates
        Without duplicates.
    ran : ndarray, bool, (cell height, cell width)
        Cells where the refine net ran; the target is NaN elsewhere.
    threshold : float

    Returns
    -------
    ndarray, float32, (cell height, cell width)
    """
    target = np.where(ran, np.float32(0), np.float32(np.nan))
    y, x = candidates.cells.T
    target[y, x] = np.fmax(target[y, x], finds_of(candidates, threshold)[:, 2])
    return target


def finds_of(candidates: Candidates, threshold: float) -> NDArray[np.float32]:
    """Middle (y, x) of each find in fine cells, within its cell, and its target as in `target_of`; (n, 3)."""
    p = candidates.scores.astype(np.float64).clip(1e-6, 1 - 1e-6)
    odds = p / (1 - p) * (1 - threshold) / threshold
    middle = (candidates.boxes[:, :2] + candidates.boxes[:, 2:]) / 2
    cells = candidates.cells.astype(np.float32)
    middle = np.clip(middle, cells, np.nextafter(cells + 1, np.float32(0)))
    return np.column_stack([middle, odds / (1 + odds)]).astype(np.float32)
