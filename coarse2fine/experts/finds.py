"""Finds of an expert: from its answers on tiles to candidates that each tile owns."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.answers import Boxes, Floats, outline_of, read_boxes, read_classes, read_map, read_vectors
from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.expert import Expert
from coarse2fine.models.candidates import Candidates


def read_answer(
    expert: Expert,
    answer: Any,
    corners: NDArray[np.int64],
    floor: float,
    fine_shape: tuple[int, int] | None = None,
) -> Candidates:
    """Candidates of tiles from the expert's raw answer.

    A tile owns the objects whose box's centre lies in its half-open core; maps are cropped to the core. A tile at the
    image's edge also owns those whose centre lies beyond that edge: the padding repeats an object that is cut by it.

    Parameters
    ----------
    expert : Expert
    answer : object
        What it returned for these tiles.
    corners : ndarray, int64, (n, 2)
        Fine-grid index (y, x) of each tile's first fine cell.
    floor : float
        Least score of a candidate.
    fine_shape : tuple of int, optional
        Fine cells of the image; without it, no tile lies at an edge.

    Raises
    ------
    ExpertError
        If the answer cannot be read.
    """
    count, names = len(corners), [label.name for label in expert.labels]
    if expert.kind == "boxes":
        tiles = read_boxes(answer, count, names, expert.read_side)
        return _objects(expert, _all_owned(expert, tiles, corners, floor, fine_shape), corners)
    if expert.kind == "map":
        maps = read_map(answer, count, len(names), expert.read_side)
        if expert.finds_objects:
            tiles = [_components(planes, floor) for planes in maps]
            return _objects(expert, _all_owned(expert, tiles, corners, floor, fine_shape), corners)
        return _areas(expert, maps, corners, floor)
    if expert.kind == "classes":
        return _tiles(read_classes(answer, count, len(names)), corners, floor)
    return _tiles(_interest(expert, answer, count), corners, floor)


def _interest(expert: Expert, answer: Any, count: int) -> Floats:
    assert expert.interest is not None
    return read_classes(expert.interest(read_vectors(answer, count)), count, 1)


def _all_owned(
    expert: Expert,
    tiles: list[Boxes],
    corners: NDArray[np.int64],
    floor: float,
    fine_shape: tuple[int, int] | None,
) -> list[Boxes]:
    """The objects that each tile owns."""
    last = np.array(fine_shape) - expert.tile // expert.cell if fine_shape else np.full(2, np.iinfo(np.int64).max)
    # In the order x, y of boxes.
    low = np.where((corners[:, ::-1] == 0) & (fine_shape is not None), -np.inf, 0.0)
    high = np.where(corners[:, ::-1] >= last[::-1], np.inf, expert.tile)
    return [_owned(expert, each, floor, a, b) for each, a, b in zip(tiles, low, high, strict=True)]


def _owned(expert: Expert, boxes: Boxes, floor: float, low: NDArray[np.float64], high: NDArray[np.float64]) -> Boxes:
    """The best objects, `most` of them, at or above a score whose centre (x, y) lies from `low` to `high`."""
    centre = (boxes.xyxy[:, :2] + boxes.xyxy[:, 2:]) / 2 - expert.context
    mine = ((centre >= low) & (centre < high)).all(axis=1) & (boxes.scores >= floor)
    rows = np.flatnonzero(mine)
    rows = rows[np.argsort(-boxes.scores[rows], kind="stable")][: expert.most]
    outlines = None if boxes.outlines is None else tuple(boxes.outlines[i] for i in rows.tolist())
    return Boxes(boxes.xyxy[rows], boxes.scores[rows], boxes.labels[rows], outlines)


def _objects(expert: Expert, tiles: list[Boxes], corners: NDArray[np.int64]) -> Candidates:
    """Candidates of the objects that tiles own; a fine cell is a tile."""
    counts = [len(boxes) for boxes in tiles]
    if not sum(counts):
        return Candidates.empty()
    cells = np.repeat(corners, counts, axis=0)
    xyxy = np.concatenate([boxes.xyxy for boxes in tiles])
    boxes = (xyxy[:, [1, 0, 3, 2]] - expert.context) / expert.tile + np.tile(cells, 2)
    outlines = [_outline(expert, outline, home) for outline, home in zip(_polygons(tiles), cells, strict=True)]
    return Candidates(
        cells=cells.astype(np.int32),
        scores=np.concatenate([each.scores for each in tiles]),
        labels=np.concatenate([each.labels for each in tiles]).astype(np.int16),
        boxes=boxes.astype(np.float32),
        nodes=np.zeros(len(cells), np.int32),
        ranks=np.concatenate([np.arange(n, dtype=np.int32) for n in counts]),
        sizes=np.array([len(outline) for outline in outlines], np.int32),
        corners=np.concatenate(outlines).astype(np.float32),
    )


def _polygons(tiles: list[Boxes]) -> list[Floats]:
    none = np.zeros((0, 2), np.float32)
    return [outline for each in tiles for outline in (each.outlines or (none,) * len(each))]


def _outline(expert: Expert, outline: Floats, cell: NDArray[np.int64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (outline[:, ::-1].astype(np.float64) - expert.context) / expert.tile + cell
    return found


def _components(planes: Floats, floor: float) -> Boxes:
    """Connected parts of each class's map as objects, with their mean probability and outline."""
    boxes, scores, labels, outlines = [], [], [], []
    for label, plane in enumerate(planes):
        count, parts, stats, _ = cv2.connectedComponentsWithStats((plane >= floor).astype(np.uint8), connectivity=8)
        for part in range(1, count):
            x, y, width, height = stats[part, :4].tolist()
            own = parts[y : y + height, x : x + width] == part
            boxes.append((x, y, x + width, y + height))
            scores.append(float(plane[y : y + height, x : x + width][own].mean()))
            labels.append(label)
            outlines.append(outline_of(own) + np.array([x, y], np.float32))
    return Boxes(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        tuple(outline if len(outline) else np.zeros((0, 2), np.float32) for outline in outlines),
    )


def _areas(expert: Expert, maps: Floats, corners: NDArray[np.int64], floor: float) -> Candidates:
    """Cells whose mean probability of a class reaches the floor."""
    side, cell = expert.tile // expert.cell, expert.cell
    own = maps[:, :, expert.context : expert.context + expert.tile, expert.context : expert.context + expert.tile]
    means = own.reshape(*own.shape[:2], side, cell, side, cell).mean(axis=(3, 5))
    best, scores = means.argmax(axis=1), means.max(axis=1)
    n, y, x = np.nonzero(scores >= floor)
    cells = corners[n] + np.stack([y, x], axis=1)
    return _squares(cells, scores[n, y, x], best[n, y, x])


def _tiles(probabilities: Floats, corners: NDArray[np.int64], floor: float) -> Candidates:
    """Tiles whose best class reaches the floor."""
    best, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    rows = np.flatnonzero(scores >= floor)
    return _squares(corners[rows], scores[rows], best[rows])


def _squares(cells: NDArray[np.int64], scores: Floats, labels: NDArray[np.int64]) -> Candidates:
    return Candidates(
        cells.astype(np.int32),
        scores.astype(np.float32).clip(0, 1),
        labels.astype(np.int16),
        np.concatenate([cells, cells + 1], axis=1).astype(np.float32),
        np.zeros(len(cells), np.int32),
    )


def check_normalised(boxes: list[Boxes], side: int) -> None:
    """Raise an ExpertError if all boxes lie within one pixel: they are shares of the tile, not pixels."""
    every = np.concatenate([each.xyxy for each in boxes]) if boxes else np.zeros((0, 4))
    if len(every) > 2 and every.max() <= 1.5:
        raise ExpertError(
            f"all boxes of the expert lie within {every.max():.2g} px: they seem to be shares of the tile; multiply by "
            f"{side}"
        )


def notes_on_finds(expert: Expert, candidates: Candidates, fine_shape: tuple[float, float]) -> list[str]:
    """Notes on objects that touch the edge of what was read, and on tiles with as many objects as are kept.

    The edge of the image cuts nothing that is known, so it does not count.

    Parameters
    ----------
    expert : Expert
    candidates : Candidates
        Objects of tiles, before suppression, in fine cells, which are tiles.
    fine_shape : (float, float)
        Height and width of the image in fine cells.
    """
    if not (expert.finds_objects and len(candidates)):
        return []
    said = []
    margin, pixel = expert.context / expert.tile, 1 / expert.tile
    low, high = candidates.cells - margin, candidates.cells + 1 + margin
    cut = (low > 0) & (candidates.boxes[:, :2] < low + pixel)
    cut |= (high < np.array(fine_shape)) & (candidates.boxes[:, 2:] > high - pixel)
    if count := int(cut.any(axis=1).sum()):
        said.append(
            f"{count:,} of {len(candidates):,} finds touch the edge of what was read around their tile and may be cut: "
            f"a context above {expert.context} px would show more of them"
        )
    if full := int((candidates.ranks == expert.most - 1).sum()):
        said.append(f"{full:,} tiles hold {expert.most:,} finds, and may hold more: only the best are kept")
    return said
