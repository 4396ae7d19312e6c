"""From candidates to finds, against loops over all pairs and scipy's labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torchvision.ops import nms

from coarse2fine.fitting.matching import best_f1_threshold, match
from coarse2fine.models.candidates import Candidates
from coarse2fine.refiners.suppress import clusters, iou, merged, repeats, suppress


def scene(seed: int, height: int, width: int, share: float, levels: int) -> tuple[Candidates, NDArray[np.int64]]:
    """Random candidates in raster order, with ties, and the map of their scores (0: none)."""
    rng = np.random.default_rng(seed)
    table = rng.integers(1, levels + 1, (height, width)) * (rng.random((height, width)) < share)
    cells = np.argwhere(table).astype(np.int32)
    count = len(cells)
    centre = cells + 0.5 + rng.normal(0, 0.5, (count, 2))
    half = rng.uniform(0.3, 2.0, (count, 2))
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    scores = (table[tuple(cells.T)] / (levels + 1)).astype(np.float32)
    return Candidates(
        cells, scores, rng.integers(0, 3, count).astype(np.int16), boxes, np.zeros(count, np.int32)
    ), table


scenes = st.builds(
    scene,
    st.integers(0, 10**6),
    st.integers(1, 15),
    st.integers(1, 15),
    st.floats(0, 1),
    st.sampled_from([1, 3, 10**6]),
)


def of_boxes(boxes: NDArray[np.float64], labels: NDArray[np.int64] | int = 0, seed: int = 0) -> Candidates:
    """Candidates with these boxes, in units of fine cells, and random scores."""
    cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2).astype(np.int32)
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    scores = np.random.default_rng(seed).permutation(len(boxes)) / len(boxes)
    kinds = np.broadcast_to(labels, len(boxes)).astype(np.int16)
    table = boxes.astype(np.float32)
    return Candidates(cells, scores.astype(np.float32), kinds, table, np.zeros(len(boxes), np.int32)).take(order)


@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(2, 9), st.floats(0.5, 1), st.integers(1, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_objects_of_like_size_are_suppressed_as_by_torchvision(
    seed: int, count: int, side: float, flatness: float, kinds: int
) -> None:
    # Of boxes of one shape of two cells and more, those whose centres are within a cell overlap by more than 0.3.
    rng = np.random.default_rng(seed)
    centre, half = rng.uniform(0, 4 * side, (count, 2)), np.array([2 * side, 2 * side * flatness]) / 2
    found = of_boxes(np.hstack([centre - half, centre + half]), rng.integers(0, kinds, count), seed)
    apart = [suppress(found.take(found.labels == kind)) for kind in range(kinds)]
    for kind, kept in enumerate(apart):
        mine = found.take(found.labels == kind)
        rows = nms(torch.from_numpy(mine.boxes), torch.from_numpy(mine.scores), 0.3).sort().values.numpy()
        np.testing.assert_array_equal(kept.boxes, mine.boxes[rows])


RED_CELLS = Path(__file__).resolve().parents[3] / "shared" / "data" / "rbc"


@pytest.mark.skipif(not RED_CELLS.exists(), reason="the blood smears are not here")
def test_perfect_boxes_of_red_cells_that_touch_stay() -> None:
    kept = total = 0
    for path in sorted(RED_CELLS.rglob("*.geojson"))[::6]:
        features = json.loads(path.read_text("utf-8"))["features"]
        x, y = np.array([f["geometry"]["coordinates"] for f in features], float).reshape(-1, 2).T
        boxes = np.stack([y, x, y, x], axis=1) + 43.6 / 2 * np.array([-1, -1, 1, 1])
        kept, total = kept + len(suppress(of_boxes(boxes / 8))), total + len(boxes)
    assert kept > 0.998 * total > 0


@pytest.mark.parametrize(
    ("height", "width", "step"),
    [
        pytest.param(40, 40, (38, 38), id="packed discs"),
        pytest.param(4, 4, (4, 4), id="touching and smaller than a cell"),
        # Cars of 45 x 18 px at 45 degrees, in bays of 25 px: their boxes overlap by a quarter.
        pytest.param(44.5, 44.5, (17.7, 120), id="parked cars"),
    ],
)
def test_objects_that_touch_are_not_one(height: float, width: float, step: tuple[float, float]) -> None:
    y, x = np.divmod(np.arange(400), 20)
    corner = np.stack([y * step[0], x * step[1]], axis=1)
    if step[1] > step[0]:
        corner[:, 1] += y * step[0]  # the row of cars runs along the diagonal
    found = of_boxes(np.hstack([corner, corner + np.array([height, width])]) / 8)
    assert len(suppress(found)) == 400


@given(st.integers(0, 10**6), st.floats(0.5, 12), st.floats(0, 0.12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_each_object_read_in_several_cells_is_found_once(seed: int, side: float, noise: float) -> None:
    """Objects at least one side and two cells apart, each read by its cell and the eight around, with errors."""
    rng = np.random.default_rng(seed)
    grid = np.argwhere(np.ones((5, 6), bool)) * (side + 2.0) + 20 + rng.uniform(0, 1, (30, 2))
    centre = np.repeat(grid, 9, axis=0) + rng.uniform(-1, 1, (270, 2)) * noise * max(side, 1)
    half = side * np.exp(rng.uniform(-1, 1, (270, 2)) * noise) / 2
    found = suppress(of_boxes(np.hstack([centre - half, centre + half]), seed=seed))
    middle = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    distance = np.abs(middle[:, None] - grid[None]).max(axis=2)
    assert sorted(distance.argmin(axis=1).tolist()) == list(range(30))


@given(scenes)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_merging_changes_boxes_alone_and_leaves_no_duplicates(case: tuple[Candidates, NDArray[np.int64]]) -> None:
    candidates, _ = case
    kept, mean = suppress(candidates), merged(candidates)
    rows = [(*cell, score, label) for cell, score, label in zip(mean.cells, mean.scores, mean.labels, strict=True)]
    known = [(*cell, score, label) for cell, score, label in zip(kept.cells, kept.scores, kept.labels, strict=True)]
    assert {tuple(map(float, row)) for row in rows} <= {tuple(map(float, row)) for row in known}
    boxes = mean.boxes.astype(np.float64)
    for i, j in np.argwhere(np.triu(mean.labels[:, None] == mean.labels[None], 1)):
        assert iou(boxes[i : i + 1], boxes[j : j + 1])[0] <= 0.35 + 1e-6
    low, high = candidates.boxes.min(axis=0, initial=99), candidates.boxes.max(axis=0, initial=-99)
    assert ((mean.boxes >= low - 1e-4) & (mean.boxes <= high + 1e-4)).all()
    np.testing.assert_allclose(merged(kept).boxes, kept.boxes, rtol=1e-6)  # nothing is left to merge with


def test_two_readings_of_one_long_object_are_one_find() -> None:
    """Each end is read as a short box of its own; boxes between them draw the two means together."""
    starts = np.array([0.0, 0.8, 1.2, 2.0])
    boxes = np.stack([np.zeros(4), starts, np.full(4, 1.5), starts + 3.6], axis=1) + 10
    found = replace(of_boxes(boxes), scores=np.array([0.99, 0.9, 0.9, 0.98], np.float32))
    assert len(suppress(found)) == 2
    assert len(merged(found)) == 1


def test_the_mean_of_several_readings_is_nearer_to_the_object() -> None:
    rng, side = np.random.default_rng(0), 3.0
    grid = np.argwhere(np.ones((8, 8), bool)) * 9.0 + 20
    true = np.hstack([grid, grid + side])
    found = of_boxes(np.repeat(true, 9, axis=0) + rng.normal(0, 0.2, (576, 4)))
    found = found.take(found.scores > 0.2)
    best, mean = suppress(found), merged(found)
    errors = [np.abs(each.boxes[:, None] - true).max(axis=2).min(axis=1).mean() for each in (best, mean)]
    assert errors[1] < 0.6 * errors[0]


def test_boxes_of_other_classes_and_finds_with_outlines_keep_their_boxes() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0.1, 4, 4.1], [0, 0.2, 4, 4.2]])
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    other = replace(of_boxes(boxes, np.array([0, 1, 1])), scores=scores)
    np.testing.assert_array_equal(merged(other).boxes, boxes[:1].astype(np.float32))
    alike = replace(other, labels=np.zeros(3, np.int16))
    assert 0 < merged(alike).boxes[0, 1] < 0.2
    ring = np.array([[0, 0], [4, 0], [4, 4]], np.float32)
    drawn = replace(alike, sizes=np.array([3, 3, 3], np.int32), corners=np.tile(ring, (3, 1)))
    np.testing.assert_array_equal(merged(drawn).boxes, boxes[:1].astype(np.float32))
    unlikely = replace(alike, scores=np.zeros(3, np.float32))
    np.testing.assert_allclose(merged(unlikely).boxes, boxes[:1], atol=1e-6)


@pytest.mark.parametrize("nucleus", [[3, 3, 7, 7], [0, 0, 8, 8]])
def test_what_lies_within_a_larger_find_of_another_class_stays(nucleus: list[float]) -> None:
    cell = [0, 0, 10, 10]
    boxes = np.array([cell, nucleus, [0.5, 0, 10, 10]], float)
    kept = suppress(of_boxes(boxes, np.array([0, 1, 1])))
    assert {tuple(b) for b in kept.boxes.tolist()} > {tuple(map(float, nucleus))}
    assert len(kept) == 2  # the third is the cell under another name


def test_exact_copies_are_dropped_whatever_their_class() -> None:
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 5, 2, 7]], np.float32)
    labels, cells = np.array([0, 1, 1], np.int16), np.array([[0, 0], [0, 1], [0, 5]], np.int32)
    found = suppress(Candidates(cells, np.array([0.6, 0.6, 0.5], np.float32), labels, boxes, np.zeros(3, np.int32)))
    assert found.cells.tolist() == [[0, 0], [0, 5]]
    assert len(suppress(Candidates.empty())) == 0


@given(scenes)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_what_repeats_a_known_find_is_what_suppression_drops(case: tuple[Candidates, NDArray[np.int64]]) -> None:
    candidates, _ = case
    kept = suppress(candidates)
    fresh = candidates.take(~repeats(candidates, kept))
    assert len(fresh) == 0  # each is kept itself, or was dropped for one that is
    assert not len(kept) or repeats(kept, kept).all()


@given(scenes)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_clusters_equal_those_of_scipy(case: tuple[Candidates, NDArray[np.int64]]) -> None:
    candidates, table = case
    group = clusters(candidates, table.shape[1])
    assert len(group) == len(candidates)
    expected = np.zeros(table.shape, np.int64)
    for label in range(3):
        mask = np.zeros(table.shape, bool)
        mask[tuple(candidates.cells[candidates.labels == label].T)] = True
        parts, _ = ndimage.label(mask)
        expected[mask] = parts[mask] + expected.max()
    pairs = set(zip(group.tolist(), expected[tuple(candidates.cells.T)].tolist(), strict=True))
    assert len(pairs) == len(set(group.tolist())) == len({e for _, e in pairs})


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_matching_well_separated_points_is_the_assignment(seed: int, objects: int, alarms: int) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.permutation(400)[: objects + alarms]
    spots = 10 * np.stack([grid // 20, grid % 20], axis=1).astype(np.float64)
    true = spots[:objects]
    seen = rng.random(objects) < 0.7
    found = np.concatenate([true[seen] + rng.uniform(-1.5, 1.5, (seen.sum(), 2)), spots[objects:]])
    found = found[rng.permutation(len(found))]
    owner = match(found, rng.random(len(found)).astype(np.float32), true, np.full(objects, 3.0, np.float64))
    distance = np.linalg.norm(found[:, None] - true[None], axis=2)
    rows, columns = linear_sum_assignment(np.where(distance <= 3, distance, 1e6))
    expected = np.full(len(found), -1)
    good = distance[rows, columns] <= 3
    expected[rows[good]] = columns[good]
    np.testing.assert_array_equal(owner, expected)


def test_matching_is_one_to_one_and_keeps_to_each_reach() -> None:
    true = np.array([[0.0, 0.0], [0.0, 4.0]])
    found = np.array([[0.0, 1.0], [0.0, 0.5], [0.0, 3.0]])
    scores = np.array([0.9, 0.8, 0.95], np.float32)
    assert match(found, scores, true, np.array([2.0, 2.0])).tolist() == [0, -1, 1]
    assert match(found, scores, true, np.array([0.6, 2.0])).tolist() == [-1, 0, 1]
    assert match(found[:0], scores[:0], true, np.ones(2)).tolist() == []
    assert match(found, scores, true[:0], np.ones(0)).tolist() == [-1, -1, -1]


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 10), st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_threshold_is_in_the_middle_of_those_that_are_as_good_as_the_best(
    seed: int, count: int, missed: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, 8, count) / 8 if ties else rng.random(count)).astype(np.float32)
    right = rng.random(count) < scores
    objects = int(right.sum()) + missed

    def f1(threshold: float) -> float:
        kept = scores >= threshold
        return 2 * float(right[kept].sum()) / max(int(kept.sum()) + max(objects, 1), 1)

    threshold, best = best_f1_threshold(scores, right, objects)
    every = np.unique(np.append(np.linspace(0.1, 0.9, 2001), scores[(scores >= 0.1) & (scores <= 0.9)]))
    values = np.array([f1(t) for t in every])
    assert 0.1 - 1e-6 <= threshold <= 0.9 + 1e-6
    assert f1(threshold) == best
    assert best >= 0.995 * values.max()
    as_good = every[values >= 0.995 * values.max()]
    middle = (as_good[0] + as_good[-1]) / 2
    assert abs(threshold - middle) <= np.abs(as_good - middle).min() + 1e-3


def test_a_perfect_net_has_the_best_f1() -> None:
    sure = np.full(20, 0.99, np.float32)
    threshold, best = best_f1_threshold(sure, np.ones(20, bool), 20)
    assert threshold == pytest.approx(0.5)
    assert best == 1
    # One false find of little chance is cut off.
    threshold, best = best_f1_threshold(np.append(sure, np.float32(0.12)), np.arange(21) < 20, 20)
    assert 0.12 < threshold == pytest.approx(0.51, abs=0.01)
    assert best == 1
    assert best_f1_threshold(sure[:0], np.ones(0, bool), 3)[1] == 0
