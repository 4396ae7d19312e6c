"""Thresholds and forecasts from tried tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coarse2fine.fitting.watching.calibrate import Screen, TriedTiles, share_with_finds, weighted_quantile


def world(seed: int, count: int = 400, *, even: bool = True) -> tuple[TriedTiles, np.ndarray, np.ndarray]:
    """Tiles in blocks of 20, of which some were tried, with two stages of which the second is better."""
    rng = np.random.default_rng(seed)
    finds = rng.poisson(0.15, count)
    chance = np.full(count, 0.5) if even else rng.uniform(0.2, 1, count)
    tried = rng.random(count) < chance
    tried[np.flatnonzero(finds)[:3]] = True
    weight = np.where(tried, 1 / chance, 0)
    signal = (finds > 0).astype(np.float32)
    first, last = ((signal * gain + rng.normal(0, 1, count)).astype(np.float32) for gain in (2.0, 4.0))
    ranks = [(np.argsort(np.argsort(v)) + 1) / (count + 1) for v in (first, last)]
    tiles = TriedTiles(np.arange(count)[tried] // 20, weight[tried], finds[tried], ())
    return tiles, ranks[0][tried].astype(np.float32), ranks[1][tried].astype(np.float32)


@given(st.integers(0, 10_000), st.floats(0, 0.9))
def test_quantile_leaves_at_most_the_share_below(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.random(40).astype(np.float32) + 0.1, rng.random(40) * (rng.random(40) < 0.7)
    tau = weighted_quantile(values, weights, share)
    if not weights.any():
        assert tau == 0
        return
    total = weights.sum()
    assert weights[values <= tau].sum() <= share * total + 1e-9
    # The next larger threshold would leave more.
    assert weights[values <= np.nextafter(values[values > tau].min(), 2)].sum() > share * total - 1e-9


@given(st.integers(0, 500), st.sampled_from([0.8, 0.9, 0.95, 0.99, 1.0]))
def test_one_stage_reaches_the_recall_with_as_few_tiles_as_possible(seed: int, recall: float) -> None:
    tiles, first, _ = world(seed, even=False)
    low, tau, chosen, cost = Screen(tiles, first, first, 0.01).thresholds(recall)
    value = tiles.weight * tiles.finds
    assert low == 0
    assert value[first > tau].sum() >= recall * value.sum() - 1e-9
    assert chosen == pytest.approx(np.average(first > tau, weights=tiles.weight))
    assert cost == pytest.approx(0.01 + chosen)
    fewer = first > np.min(first[(first > tau) & (value > 0)])
    assert value[fewer].sum() < recall * value.sum() + 1e-9 or not value.any()


@pytest.mark.parametrize("recall", [0.9, 0.95])
def test_two_stages_reach_the_recall_together(recall: float) -> None:
    tiles, first, last = world(1, 4000)
    low, tau, chosen, cost = Screen(tiles, first, last, 0.01, 0.1).thresholds(recall)
    value, both = tiles.weight * tiles.finds, (first > low) & (last > tau)
    assert value[both].sum() >= recall * value.sum() - 1e-9
    assert chosen == pytest.approx(np.average(both, weights=tiles.weight))
    assert cost == pytest.approx(0.01 + 0.1 * np.average(first > low, weights=tiles.weight) + chosen)
    assert cost < Screen(tiles, first, first, 0.01).thresholds(recall)[3]


def test_interval_holds_the_outcome_on_other_tiles_of_the_world() -> None:
    held = 0
    for seed in range(20):
        tiles, first, _ = world(seed, 2000)
        (share, low, high), (saving, worst, best) = Screen(tiles, first, first, 0.02).forecast(0.9, seed)
        assert low <= high
        assert worst <= saving * 1.001
        assert saving <= best * 1.001
        others, theirs, _ = world(1000 + seed, 20_000)
        true = Screen(others, theirs, theirs, 0.02).cautious(0.9)[2]
        held += low <= true <= high
        assert 0 < share < 1
    assert held >= 13  # 18 of 20 in the mean


def test_share_with_finds_is_estimated_by_the_weights() -> None:
    tiles, _, _ = world(5, 5000, even=False)
    share, low, high = share_with_finds(tiles, 0)
    assert low < 1 - np.exp(-0.15) < high
    assert low < share < high


def test_the_next_find_is_missed_as_seldom_as_the_recall_allows() -> None:
    """Of an exchangeable find after n others, over many worlds."""
    rng = np.random.default_rng(0)
    for count, recall in ((10, 0.8), (30, 0.9), (25, 0.95)):
        missed = 0
        for _ in range(2000):
            values = rng.random(count + 1).astype(np.float32) + 0.1
            tiles = TriedTiles(np.arange(count), np.ones(count), np.ones(count, np.int64), ())
            tau = Screen(tiles, values[:count], values[:count], 0.01).cautious(recall)[1]
            missed += values[count] <= tau
        assert missed / 2000 <= 1 - recall + 0.02
