"""Boxes of the finds that match annotated objects: an analysis names finds, whose boxes differ a little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.matching import match
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.teacher import Answers


def found_boxes(scenes: Sequence[Scene], answers: Answers, areas: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The box in which the refine net found each object.

    Parameters
    ----------
    scenes : sequence of Scene
    answers : Answers
        Its finds in these scenes.
    areas : ndarray, bool
        Which labels are areas, by their index.

    Returns
    -------
    list of ndarray, float64, (objects, 4)
        (y0, x0, y1, x1) in full-resolution pixels for each scene; NaN for objects that were not found.
    """
    boxes = []
    for scene, candidates in zip(scenes, answers.found, strict=True):
        sure = candidates.take((candidates.scores >= answers.threshold) & ~areas[candidates.labels])
        found = sure.boxes.astype(np.float64) * scene.fine_cell
        reach = np.maximum(scene.fine_cell, 0.5 * scene.size.max(axis=1, initial=0))
        owner = match((found[:, :2] + found[:, 2:]) / 2, sure.scores, scene.centre, reach)
        own = np.full((len(scene.centre), 4), np.nan)
        own[owner[owner >= 0]] = found[owner >= 0]
        boxes.append(own)
    return boxes
