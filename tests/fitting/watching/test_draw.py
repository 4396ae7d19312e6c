"""Tiles that are drawn for the expert."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coarse2fine.fitting.watching.draw import chances, draw
from coarse2fine.fitting.watching.watch import WatchLimit

SHAPES = [(7, 9), (4, 5)]


@given(st.integers(1, 83))
def test_first_round_draws_all_tiles_alike(count: int) -> None:
    found = chances(None, SHAPES, count)
    assert [each.shape for each in found] == SHAPES
    assert sum(each.sum() for each in found) == pytest.approx(count)
    assert len({float(p) for each in found for p in each.ravel()}) == 1


@given(st.integers(1, 60), st.integers(0, 1000))
def test_later_rounds_draw_likely_tiles_more_often_and_every_tile_sometimes(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    interests = [rng.random(shape).astype(np.float32) ** 4 for shape in SHAPES]
    found = chances(interests, SHAPES, count)
    flat = np.concatenate([each.ravel() for each in found])
    assert (flat > 0).all()
    assert (flat <= 1).all()
    # Tiles that both parts of a round would draw count once.
    assert 0.7 * count <= flat.sum() <= count + 1e-6
    order = np.argsort(np.concatenate([each.ravel() for each in interests]), kind="stable")
    assert (np.diff(flat[order]) >= -1e-12).all()


def test_weighted_finds_of_drawn_tiles_estimate_all_finds() -> None:
    rng = np.random.default_rng(3)
    finds = (rng.random((30, 30)) < 0.05).astype(float)
    interest = np.clip(finds * 0.6 + rng.random((30, 30)) * 0.3, 0, 1).astype(np.float32)
    estimates = []
    for _ in range(300):
        first = chances(None, [finds.shape], 90)[0]
        tried = draw(first, np.zeros(finds.shape, bool), rng)
        second = chances([interest], [finds.shape], 90)[0]
        tried = tried | draw(second, tried, rng)
        chance = 1 - (1 - first) * (1 - second)
        estimates.append((finds / chance)[tried].sum())
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - finds.sum()) < 4 * error


def test_no_tile_is_drawn_twice() -> None:
    rng = np.random.default_rng(0)
    tried = rng.random((5, 6)) < 0.5
    assert not (draw(np.ones((5, 6)), tried, rng) & tried).any()


@pytest.mark.parametrize(
    ("watch", "tiles"), [(0.1, 100), (1.0, 1000), (0.001, 48), ("50s", 100), ("10 min", 1000), ("2h", 1000)]
)
def test_limit_is_a_share_or_a_time(watch: float | str, tiles: int) -> None:
    assert WatchLimit.parse(watch).tiles(1000, 0.5) == tiles


@pytest.mark.parametrize("watch", [0, -1, 1.5, "soon", "5 parsecs", "0min", ""])
def test_other_limits_are_refused(watch: float | str) -> None:
    with pytest.raises(ValueError, match=r"share of the tiles.*time"):
        WatchLimit.parse(watch)
