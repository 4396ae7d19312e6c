"""The choice of windows against a greedy loop, and its invariants."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.steps import plan as planning
from coarse2fine.steps.choose import choose
from coarse2fine.steps.plan import Plan, cover, dense_plan
from coarse2fine.steps.windows import best_windows

FIELD, STRIDE = 58, 8


def macs(height: int, width: int) -> int:
    """Cost with a halo, as a real refine net has it."""
    return (height * STRIDE + FIELD - STRIDE) * (width * STRIDE + FIELD - STRIDE)


def interest_map(seed: int, height: int, width: int, kind: str) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    values = rng.random((height, width))
    if kind == "sparse":
        values *= rng.random((height, width)) < 0.1
    if kind == "blobs":
        y, x = np.mgrid[:height, :width]
        cy, cx = rng.random(2) * (height, width)
        values = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 30) * (0.5 + 0.5 * values)
    return values.astype(np.float32)


sides = st.integers(1, 40)
maps = st.builds(interest_map, st.integers(0, 10**6), sides, sides, st.sampled_from(["even", "sparse", "blobs"]))


def greedy(interest: NDArray[np.float32], side: int, tau: float) -> list[tuple[float, int, int]]:
    """Take the best window, set it to zero, and so on."""
    left = interest.astype(np.float64)
    taken: list[tuple[float, int, int]] = []
    while True:
        corners = [(y, x) for y, x in np.ndindex(left.shape[0] - side + 1, left.shape[1] - side + 1)]
        sums = sorted(((left[y : y + side, x : x + side].sum(), y, x) for y, x in corners), reverse=True)
        # Nearly equal rivals may be taken either way.
        for a, b in itertools.pairwise(sums):
            near = abs(a[0] - b[0]) < 1e-3 * a[0] and a[0] > tau / 2
            assume(not (near and abs(a[1] - b[1]) < side and abs(a[2] - b[2]) < side))
        best, y, x = sums[0]
        assume(abs(best - tau) > 1e-3 * tau)
        if best <= tau:
            return taken
        taken.append((best, y, x))
        left[y : y + side, x : x + side] = 0


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.floats(0.05, 2))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_windows_are_those_of_the_greedy_loop(seed: int, height: int, width: int, side: int, tau: float) -> None:
    interest = interest_map(seed, height, width, "even")
    side = min(side, height, width)
    expected = greedy(interest, side, tau)
    corners, scores = best_windows(interest, side, tau)
    assert {(y, x) for _, y, x in expected} == set(map(tuple, corners.tolist()))
    np.testing.assert_allclose(scores, sorted((s for s, *_ in expected), reverse=True), rtol=1e-3)


@given(maps, st.integers(1, 4), st.floats(1e-3, 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_window_above_tau_is_left_and_hardly_a_find_counts_twice(
    interest: NDArray[np.float32], side: int, tau: float
) -> None:
    side = min(side, *interest.shape)
    corners, scores = best_windows(interest, side, tau)
    assert np.all(np.diff(scores) <= 0)
    assert np.all(scores > tau)
    left, twice = interest.astype(np.float64), 0
    for (y, x), score in zip(corners.tolist(), scores.tolist(), strict=True):
        own = left[y : y + side, x : x + side]
        twice += own.sum() != pytest.approx(score, rel=1e-3, abs=1e-6)
        own[:] = 0
    # Windows around the same few cells have exactly the same sum; once in a long while two of them are taken.
    assert twice <= 1 + len(scores) // 100
    for y, x in np.ndindex(left.shape[0] - side + 1, left.shape[1] - side + 1):
        assert left[y : y + side, x : x + side].sum() <= tau * 1.001


@given(maps, st.integers(1, 60))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_stopping_at_enough_windows_gives_the_first_of_all(interest: NDArray[np.float32], most: int) -> None:
    side = min(2, *interest.shape)
    corners, scores = best_windows(interest, side, 0.01)
    first, best = best_windows(interest, side, 0.01, most)
    np.testing.assert_array_equal(first, corners[:most])
    np.testing.assert_array_equal(best, scores[:most])


def spent(plan: Plan) -> int:
    return sum(macs(*side) for side in plan.sides.tolist())


def counted(plan: Plan) -> NDArray[np.int64]:
    """How often each cell is refined."""
    times = np.zeros(plan.cell_shape, np.int64)
    for (y, x), (height, width) in zip(plan.cell_corners.tolist(), plan.sides.tolist(), strict=True):
        times[y : y + height, x : x + width] += 1
    return times


@given(maps, st.integers(1, 4), st.floats(1e-3, 0.5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_merging_never_costs_more_and_covers_at_least_the_same(
    interest: NDArray[np.float32], window: int, tau: float
) -> None:
    side = min(window, *interest.shape)
    plan = choose(interest, window, window_macs=macs, tau=tau)
    corners, scores = best_windows(interest, side, tau)
    plain = Plan(corners, np.full((len(scores), 2), side), scores, interest.shape)
    assert spent(plan) <= spent(plain)
    assert plan.covered()[plain.covered()].all()
    assert np.all(np.diff(plan.scores) <= 0)
    np.testing.assert_array_equal(plan.covered(), counted(plan) > 0)
    rows = np.column_stack([plan.cell_corners, plan.sides])
    assert len(np.unique(rows, axis=0)) == len(rows)


@given(maps, st.floats(0.01, 1.5), st.floats(0.01, 1.5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_budgets_hold_and_larger_ones_cover_more(interest: NDArray[np.float32], first: float, second: float) -> None:
    least = macs(2, 2) * interest.size // 4
    budgets = [int(b * least) for b in sorted((first, second))]
    plans = [choose(interest, 2, window_macs=macs, budget_macs=b) for b in budgets]
    for plan, budget in zip(plans, budgets, strict=True):
        assert spent(plan) <= budget
    assert plans[1].covered()[plans[0].covered()].all()


def test_a_crowded_map_is_merged() -> None:
    plan = choose(np.full((64, 64), 0.5, np.float32), 2, window_macs=macs, tau=0.1)
    assert plan.sides.max() > 2
    assert plan.covered().all()
    assert spent(plan) < 0.5 * macs(2, 2) * 64 * 64 / 4


@pytest.mark.parametrize("kind", ["flat", "ramp", "zero"])
def test_dull_maps_do_not_explode(kind: str) -> None:
    ramp = np.linspace(0, 1, 300 * 300, dtype=np.float32).reshape(300, 300)
    interest = {"flat": np.full((300, 300), 0.2, np.float32), "ramp": ramp, "zero": ramp * 0}[kind]
    begin = time.perf_counter()
    plan = choose(interest, 2, window_macs=macs, tau=0.1)
    assert time.perf_counter() - begin < 5
    assert len(plan) <= 2 * 150 * 150
    assert plan.covered()[interest > 0.2].all()
    assert (len(plan) == 0) == (kind == "zero")


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (2, 5), (1, 40)])
def test_images_smaller_than_a_window(shape: tuple[int, int]) -> None:
    interest = np.full(shape, 0.9, np.float32)
    assert choose(interest, 4, window_macs=macs, tau=0.1).covered().all()
    assert len(choose(interest, 4, window_macs=macs, budget_macs=macs(1, 1) - 1)) == 0
    assert choose(interest, 4, window_macs=macs, budget_macs=macs(1, 1)).covered().sum() == 1
    assert dense_plan(shape).covered().all()


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 3, 7, 128]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_dense_plan_covers_each_cell_once(height: int, width: int, side: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "DENSE_SIDE", side)
        plan = dense_plan((height, width))
    assert (counted(plan) == 1).all()
    assert plan.covered().all()


def test_a_small_part_is_covered_in_small_squares() -> None:
    part = np.zeros((300, 300), bool)
    part[20:30, 40:45] = True
    plan = cover(part, macs)
    assert plan.covered()[part].all()
    assert 4 * plan.macs(macs) < dense_plan(part.shape).take(np.array([0])).macs(macs)
    assert cover(np.ones((256, 256), bool), macs).macs(macs) == dense_plan((256, 256)).macs(macs)


@given(st.integers(0, 10**6), st.floats(0.001, 0.3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_scattered_part_costs_no_more_than_a_window_for_each_cell(seed: int, share: float) -> None:
    part = np.random.default_rng(seed).random((90, 140)) < share
    plan = cover(part, macs)
    assert plan.covered()[part].all()
    assert plan.macs(macs) <= part.sum() * macs(1, 1)


@pytest.mark.parametrize("shape", [(1, 625), (625, 1), (3, 40), (63, 3000), (1, 1), (250, 250)])
def test_the_dense_plan_wastes_little_beyond_a_strip(shape: tuple[int, int]) -> None:
    plan = dense_plan(shape)
    assert plan.covered().all()
    # A square as large as the strip is long would cost more than a window for each cell.
    assert plan.macs(macs) <= macs(1, 1) * shape[0] * shape[1]
    # Across a strip nothing can be shared, along it windows as long as they may be share nearly all.
    assert plan.macs(macs) <= 1.06 * macs(*shape)


@given(maps, st.integers(1, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_plan_costs_more_than_everything(interest: NDArray[np.float32], window: int) -> None:
    plan = choose(interest, window, window_macs=macs, tau=1e-3)
    assert plan.macs(macs) <= dense_plan(interest.shape).macs(macs)


@given(maps, st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_windows_say_which_features_fired(interest: NDArray[np.float32], seed: int) -> None:
    fired = np.random.default_rng(seed).integers(0, 9, (*interest.shape, 2)).astype(np.uint8)
    plan = choose(interest, 2, window_macs=macs, tau=0.6)
    assert plan.fired is None
    told = plan.explained(interest, fired)
    assert told.fired is not None
    for (y, x), (height, width), names in zip(told.cell_corners.tolist(), told.sides.tolist(), told.fired, strict=True):
        view = interest[y : y + height, x : x + width]
        dy, dx = np.unravel_index(view.argmax(), view.shape)
        np.testing.assert_array_equal(names, fired[y + dy, x + dx])
    np.testing.assert_array_equal(told.take(np.arange(len(told))[::2]).fired, told.fired[::2])
    assert plan.explained(np.zeros((0, 0), np.float32), np.zeros((0, 0, 2), np.uint8)).fired is None
