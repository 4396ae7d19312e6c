"""Held-out parts of scenes: they set thresholds and are not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotationError
from coarse2fine.fitting.scene import _MOST_LOST, PART, LeftOut, Scene, _refuse, pooled
from coarse2fine.tiling.geometry import Box, ceil_div


def some_parts(rows: list[tuple[int, int, int]], most: int, seed: int) -> list[tuple[int, int, int]]:
    """At most `most` of the parts (scene, y, x), chosen at random, in their order."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    return [rows[i] for i in chosen.tolist()]


def check_objects(scenes: Sequence[Scene], largest: float, smallest: float, *, strict: bool) -> tuple[LeftOut, ...]:
    """Count the objects that are left out, before training; refuse data with too few objects to learn from.

    Parameters
    ----------
    scenes : sequence of Scene
    largest, smallest : float
        Size limits, as given to the scenes.
    strict : bool
        Whether to refuse if a class loses all its objects or a fifth of all objects is left out.

    Returns
    -------
    tuple of LeftOut
        One for each class that loses objects.

    Raises
    ------
    AnnotationError
        If no object counts, or too many are left out.
    """
    names = [label.name for label in scenes[0].labels if label.kind == "object"]
    if not names:
        return ()
    index = [i for i, label in enumerate(scenes[0].labels) if label.kind == "object"]
    seen = [scene.annotated(*scene.centre.T) for scene in scenes]
    label = np.concatenate([scene.label[each] for scene, each in zip(scenes, seen, strict=True)])
    large = np.concatenate([scene.too_large[each] for scene, each in zip(scenes, seen, strict=True)])
    small = ~large & ~np.concatenate([scene.fits[each] for scene, each in zip(scenes, seen, strict=True)])
    if not len(label) and len(names) == len(scenes[0].labels):
        raise AnnotationError(
            "all objects lie in Ignore* areas or outside the Region* areas: there is nothing to learn from; check them"
        )
    counts = [
        LeftOut(name, *(int(rows[label == i].sum()) for rows in (np.ones_like(large), large, small)))
        for i, name in zip(index, names, strict=True)
    ]
    return refuse_if_many(counts, largest, smallest, strict=strict)


def refuse_if_many(
    counts: Sequence[LeftOut], largest: float, smallest: float, *, strict: bool = True
) -> tuple[LeftOut, ...]:
    """The classes that lose objects; parameters and errors as in `check_objects`."""
    lost, every = tuple(each for each in counts if each.count), sum(each.objects for each in counts)
    gone, count = any(each.count == each.objects for each in lost), sum(each.count for each in lost)
    if gone or count >= _MOST_LOST * every:
        _refuse(lost, largest, smallest, whole=count == every, strict=strict)
    return lost


def check_cells(scenes: Sequence[Scene], cell: int) -> None:
    """Refuse cells of `cell` pixels a side, before training, if none of them is fully annotated.

    Raises
    ------
    AnnotationError
        If no cell is.
    """
    ratio = cell // scenes[0].fine_cell
    for scene in scenes:
        height, width = scene.cell_shape
        for top in range(0, ceil_div(height, ratio) * ratio, ceil_div(PART, ratio) * ratio):
            band = Box(top, 0, top + ceil_div(PART, ratio) * ratio, ceil_div(width, ratio) * ratio)
            known = scene.known(band) | scene.known(band, held=True)
            if pooled(np.zeros(known.shape, np.float32), known, ratio)[1].any():
                return
    raise AnnotationError(
        f"no cell of {cell} px lies wholly in an image and in what was annotated: "
        "give larger images or Region* areas, or a geometry of smaller cells"
    )


def hold_back(scenes: Sequence[Scene], share: float, rng: np.random.Generator) -> None:
    """Mark the held-out parts, for calibration only: whole images if there are at least 8, else parts of all images.

    Sampling is systematic in order of the number of objects, so that rare objects are on both sides; if only one part
    holds objects, it is trained on.
    """
    if len(scenes) >= 8:
        sizes = np.array([len(s.centre) for s in scenes])
        order = np.argsort(-sizes, kind="stable")[int(np.count_nonzero(sizes) == 1) :]
        for i in _systematic(order, share, rng):
            scenes[i].held[:] = True
        return
    counts = [_objects_by_part(scene).ravel() for scene in scenes]
    places = [(scene, i) for scene, count in zip(scenes, counts, strict=True) for i in range(len(count))]
    if len(places) < 2:  # the only part is needed for training
        return
    sizes = np.concatenate(counts)
    order = np.lexsort((rng.random(len(places)), -sizes))[int(np.count_nonzero(sizes) == 1) :]
    for row in _systematic(order, share, rng).tolist():
        scene, i = places[row]
        scene.held.flat[i] = True


def _objects_by_part(scene: Scene) -> NDArray[np.int64]:
    counts = np.zeros(scene.part_shape, np.int64)
    y, x = (scene.centre / scene.fine_cell // PART).astype(int).T
    np.add.at(counts, (y.clip(0, counts.shape[0] - 1), x.clip(0, counts.shape[1] - 1)), 1)
    return counts


def _systematic(order: NDArray[np.intp], share: float, rng: np.random.Generator) -> NDArray[np.intp]:
    step = 1 / share
    picks = np.arange(rng.uniform(0, min(step, len(order))), len(order), step).astype(int)
    chosen: NDArray[np.intp] = order[picks]
    return chosen
