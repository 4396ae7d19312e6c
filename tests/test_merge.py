"""From candidates to finds, against loops over all pairs and scipy's labels."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from coarse2fine.fitting.evaluate import best_f1_threshold, match
from coarse2fine.merge import clusters, suppress
from coarse2fine.models.heads import Candidates


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


def overlap(a: list[float], b: list[float]) -> float:
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / (sum((q[2] - q[0]) * (q[3] - q[1]) for q in (a, b)) - common)


def same_object(a: list[float], b: list[float]) -> bool:
    if max(a[0], b[0]) > min(a[2], b[2]) or max(a[1], b[1]) > min(a[3], b[3]):
        return False
    distance = math.dist(((a[0] + a[2]) / 2, (a[1] + a[3]) / 2), ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2))
    return overlap(a, b) > 0.3 or distance < math.sqrt(min((q[2] - q[0]) * (q[3] - q[1]) for q in (a, b)))


@given(scenes)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_suppression_equals_the_loop_over_all_pairs(case: tuple[Candidates, NDArray[np.int64]]) -> None:
    candidates, _ = case
    boxes = candidates.boxes.astype(np.float64).tolist()
    kept: list[int] = []
    for i in sorted(range(len(candidates)), key=lambda i: (-candidates.scores[i], i)):
        if not any(same_object(boxes[i], boxes[k]) for k in kept):
            kept.append(i)
    found = suppress(candidates)
    np.testing.assert_array_equal(found.cells, candidates.cells[sorted(kept)])
    np.testing.assert_array_equal(found.boxes, candidates.boxes[sorted(kept)])


def test_small_neighbours_stay_apart_and_boxes_of_one_place_do_not() -> None:
    boxes = np.array([[0, 0, 0.6, 0.6], [0, 0.9, 0.6, 1.5], [0.3, 1.1, 0.9, 1.7]], np.float32)
    cells = np.array([[0, 0], [0, 1], [1, 1]], np.int32)
    found = suppress(
        Candidates(cells, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int16), boxes, np.zeros(3, np.int32))
    )
    assert found.cells.tolist() == [[0, 0], [0, 1]]


def test_suppression_works_across_classes_and_drops_exact_copies() -> None:
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 5, 2, 7]], np.float32)
    labels, cells = np.array([0, 1, 1], np.int16), np.array([[0, 0], [0, 1], [0, 5]], np.int32)
    found = suppress(Candidates(cells, np.array([0.6, 0.6, 0.5], np.float32), labels, boxes, np.zeros(3, np.int32)))
    assert found.cells.tolist() == [[0, 0], [0, 5]]
    assert len(suppress(Candidates.empty())) == 0


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
        parts, count = ndimage.label(mask)
        expected[mask] = parts[mask] + expected.max()
        assert count >= 0
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
def test_best_f1_is_the_best_of_all_thresholds(seed: int, count: int, missed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, 8, count) / 8 if ties else rng.random(count)).astype(np.float32)
    right = rng.random(count) < scores
    objects = int(right.sum()) + missed

    def f1(threshold: float) -> float:
        kept = scores >= threshold
        return 2 * float(right[kept].sum()) / max(int(kept.sum()) + max(objects, 1), 1)

    threshold, best = best_f1_threshold(scores, right, objects)
    allowed = [float(s) for s in scores if 0.1 <= s <= 0.9]
    if allowed:
        assert best == max(f1(t) for t in allowed)
        assert f1(threshold) == best
    else:
        assert (threshold, best) == (0.5, 0.0)
