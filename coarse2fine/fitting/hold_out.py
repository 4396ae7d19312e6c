"""Parts of scenes that are held back: they set thresholds and train nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotationError
from coarse2fine.fitting.scene import _MOST_LOST, PART, LeftOut, Scene, _refuse, pooled
from coarse2fine.tiling.geometry import Box, ceil_div


def some_parts(rows: list[tuple[int, int, int]], most: int, seed: int) -> list[tuple[int, int, int]]:
    """Parts (scene, y, x), or a random choice of so many of them, in their order."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    return [rows[i] for i in chosen.tolist()]


def check_objects(scenes: Sequence[Scene], largest: float, smallest: float, *, strict: bool) -> tuple[LeftOut, ...]:
    """Count what is left out, before anything is trained; refuse what nothing or too little can be learned from.

    Parameters
    ----------
    scenes : sequence of Scene
    largest, smallest : float
        As those of the scenes.
    strict : bool
        Whether to refuse where a class loses all its objects or a fifth of all objects is left out.

    Returns
    -------
    tuple of LeftOut
        One for each class that loses any.

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
    lost = tuple(each for each in counts if each.count)
    gone = any(each.count == each.objects for each in lost)
    if gone or sum(each.count for each in lost) >= _MOST_LOST * len(label):
        _refuse(lost, largest, smallest, whole=sum(each.count for each in lost) == len(label), strict=strict)
    return lost


def check_cells(scenes: Sequence[Scene], cell: int) -> None:
    """Refuse cells of so many pixels if none of them is known as a whole, before anything is trained.

    Raises
    ------
    AnnotationError
        If none is.
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
    """Mark parts that calibrate and never train: whole images where there are many, else parts of all of them.

    Parts are drawn systematically in order of the objects they hold, so that rare objects are on both sides; what
    alone holds objects trains.
    """
    if len(scenes) >= 8:
        sizes = np.array([len(s.centre) for s in scenes])
        order = np.argsort(-sizes, kind="stable")[int(np.count_nonzero(sizes) == 1) :]
        for i in _systematic(order, share, rng):
            scenes[i].held[:] = True
        return
    counts = [_objects_by_part(scene).ravel() for scene in scenes]
    places = [(scene, i) for scene, count in zip(scenes, counts, strict=True) for i in range(len(count))]
    if len(places) < 2:  # what is held back cannot train
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
