"""Agreement of two experts' finds, against all possible pairings."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coarse2fine.experts.agreement import counts_in_tiles, shared_finds
from coarse2fine.models.candidates import Candidates


def finds(rng: np.random.Generator, count: int) -> Candidates:
    """Boxes around few places of three tiles, so that many of them nearly coincide."""
    cells = np.stack([np.zeros(count, int), rng.integers(0, 3, count)], axis=1)
    low = cells + rng.choice([0.1, 0.15, 0.4], (count, 2))
    sides = rng.choice([0.2, 0.3], (count, 2))
    return Candidates(
        cells.astype(np.int32),
        rng.random(count).astype(np.float32),
        rng.integers(0, 2, count).astype(np.int16),
        np.concatenate([low, low + sides], axis=1).astype(np.float32),
        np.zeros(count, np.int32),
    )


def iou(a: list[float], b: list[float]) -> float:
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    common = sides[0] * sides[1]
    return common / (sum(areas) - common)


def most_pairs(mine: Candidates, theirs: Candidates) -> int:
    """Largest number of one-to-one pairs, by trying them all."""
    rows = range(len(mine)), range(len(theirs))
    same = {
        (i, j)
        for i in rows[0]
        for j in rows[1]
        if (mine.cells[i] == theirs.cells[j]).all()
        and mine.labels[i] == theirs.labels[j]
        and iou(mine.boxes[i].tolist(), theirs.boxes[j].tolist()) >= 0.5
    }
    few, many, turned = (*rows, False) if len(mine) <= len(theirs) else (rows[1], rows[0], True)
    ways = permutations(many, len(few))
    return max(sum(((j, i) if turned else (i, j)) in same for i, j in zip(few, way, strict=True)) for way in ways)


@given(st.integers(0, 10_000), st.integers(0, 5), st.integers(0, 5))
def test_as_many_objects_are_shared_as_can_be_paired(seed: int, one: int, other: int) -> None:
    rng = np.random.default_rng(seed)
    mine, theirs = finds(rng, one), finds(rng, other)
    of_mine, of_theirs = shared_finds(mine, theirs, objects=True)
    assert of_mine.sum() == of_theirs.sum() == most_pairs(mine, theirs)
    kept, extra = counts_in_tiles(mine, theirs, objects=True, cells=1, shape=(1, 3))
    assert kept.sum() == of_mine.sum()
    for tile in range(3):
        assert extra[0, tile] == (theirs.cells[~of_theirs, 1] == tile).sum()


def test_cells_are_shared_by_place_and_label() -> None:
    rng = np.random.default_rng(0)
    mine, theirs = finds(rng, 30), finds(rng, 30)
    keys = [{(*c, n) for c, n in zip(f.cells.tolist(), f.labels.tolist(), strict=True)} for f in (mine, theirs)]
    of_mine, of_theirs = shared_finds(mine, theirs, objects=False)
    for found, rows, other in ((mine, of_mine, keys[1]), (theirs, of_theirs, keys[0])):
        wanted = [(*c, n) in other for c, n in zip(found.cells.tolist(), found.labels.tolist(), strict=True)]
        assert rows.tolist() == wanted
