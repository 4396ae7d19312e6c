"""Accuracy of an expert on annotated images, in the tiles that were watched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from coarse2fine.annotations.annotated import AnnotatedArea, Annotation, AnnotationError
from coarse2fine.annotations.read import Annotations
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.suppress import suppress_across
from coarse2fine.fitting.matching import match
from coarse2fine.fitting.watching.tiles import WatchedScene
from coarse2fine.models.candidates import Candidates

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def check_labels(expert: Expert, truths: Sequence[Annotations]) -> dict[str, str]:
    """Label of the expert for each annotated class; one class on each side is the same whatever its name.

    Raises
    ------
    AnnotationError
        If they have no class in common.
    """
    mine, theirs = [label.name for label in expert.labels], sorted({name for t in truths for name in t.labels})
    if len(mine) == len(theirs) == 1:
        return {theirs[0]: mine[0]}
    if not set(mine) & set(theirs):
        raise AnnotationError(
            f"the annotated classes {', '.join(theirs)} are none of the expert's ({', '.join(mine)}): name the "
            "expert's labels=, in the order of its numbers, as the annotations do"
        )
    return {name: name for name in theirs if name in mine}


def accuracy_of(
    scenes: Sequence[WatchedScene], truths: Sequence[Annotations], expert: Expert
) -> tuple[int, float, float]:
    """Annotated objects in the watched tiles, the share that an expert finds, and the share of its finds that are some.

    Tiles count by the inverse of the probability with which they were drawn. A find is an object if it has its class
    and their centres are at most half the object's longer side apart, or half the find's for points; one to one. Finds
    that are no objects, but tiles or cells of a map, are right where they meet an annotated object of their class.

    Parameters
    ----------
    scenes : sequence of WatchedScene
    truths : sequence of Annotations
        Of each scene.
    expert : Expert

    Raises
    ------
    AnnotationError
        If they have no class in common.
    """
    labels = check_labels(expert, truths)
    count, sums = 0, np.zeros(4)
    for scene, truth in zip(scenes, truths, strict=True):
        objects = [each for each in truth.objects if each.label in labels]
        finds = suppress_across(scene.found, expert.overlap) if expert.finds_objects else scene.found
        inside = AnnotatedArea(truth).contains
        found, right = _matched(objects, finds, labels, expert)
        for at, (hit, places) in enumerate(((found, _centres(objects)), (right, _places(finds, expert)))):
            weight = _weights(scene, expert, places) * inside(*places.T)
            sums[2 * at : 2 * at + 2] += (weight * hit).sum(), weight.sum()
            count += int((weight > 0).sum()) if at == 0 else 0
    return count, float(sums[0] / max(sums[1], 1e-300)), float(sums[2] / max(sums[3], 1e-300))


def _matched(
    objects: Sequence[Annotation], finds: Candidates, labels: dict[str, str], expert: Expert
) -> tuple[Bools, Bools]:
    """Which objects are found, and which finds are objects."""
    number = {label.name: index for index, label in enumerate(expert.labels)}
    theirs = np.array([number[labels[each.label]] for each in objects], np.int64)
    found, right = np.zeros(len(objects), bool), np.zeros(len(finds), bool)
    for label in np.unique(theirs).tolist():
        mine, true = np.flatnonzero(finds.labels == label), np.flatnonzero(theirs == label)
        some = [objects[i] for i in true.tolist()]
        if expert.finds_objects:
            centres, reach = _places(finds.take(mine), expert), _reach(some, finds, expert)
            owner = match(centres, finds.scores[mine], _centres(some), reach)
            right[mine] = owner >= 0
            found[true[owner[owner >= 0]]] = True
        else:
            tree = shapely.STRtree([each.geometry for each in some])
            first, second = tree.query(_squares(finds.take(mine), expert), predicate="intersects")
            right[mine[first]], found[true[second]] = True, True
    return found, right


def _reach(objects: Sequence[Annotation], finds: Candidates, expert: Expert) -> Floats:
    """Distance at which a find is each object."""
    bounds = np.array([each.full_bounds for each in objects]).reshape(-1, 4)
    sides = (bounds[:, 2:] - bounds[:, :2]).max(axis=1)
    scale = expert.cell * expert.downsample
    usual = float(np.median((finds.boxes[:, 2:] - finds.boxes[:, :2]).max(axis=1))) * scale if len(finds) else scale
    return np.where(sides > 0, sides, usual) / 2


def _centres(objects: Sequence[Annotation]) -> Floats:
    """Middle of each object's bounds, (n, 2), in full-resolution pixels."""
    bounds = np.array([each.full_bounds for each in objects], np.float64).reshape(-1, 4)
    found: Floats = (bounds[:, :2] + bounds[:, 2:]) / 2
    return found


def _places(finds: Candidates, expert: Expert) -> Floats:
    """Centres of finds, (n, 2), in full-resolution pixels."""
    found: Floats = (finds.boxes[:, :2] + finds.boxes[:, 2:]).astype(np.float64) / 2 * expert.cell * expert.downsample
    return found


def _squares(finds: Candidates, expert: Expert) -> NDArray[np.object_]:
    y0, x0, y1, x1 = finds.boxes.astype(np.float64).T * expert.cell * expert.downsample
    squares: NDArray[np.object_] = shapely.box(x0, y0, x1, y1)
    return squares


def _weights(scene: WatchedScene, expert: Expert, centres: Floats) -> Floats:
    """Weight of the tile in which each place (n, 2) lies; 0 if it was not watched."""
    last = np.array(scene.shape) - 1
    y, x = np.clip(centres // (expert.tile * expert.downsample), 0, last).astype(np.int64).T
    found: Floats = scene.weight[y, x]
    return found
