"""Whether specialists help: worlds without any gain, in which hardly anything may be kept, and worlds with one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, permutation_test

from coarse2fine.fitting.specialists.evidence import believed, chance, decide
from coarse2fine.fitting.specialists.grow_groups import GrownGroups, judge_groups
from coarse2fine.fitting.specialists.grow_tree import Grown
from coarse2fine.fitting.specialists.items import Items
from coarse2fine.fitting.specialists.validate import Verdict, best_way, gates_tried, judge_reconstruction, judge_tree
from coarse2fine.models.feature_groups import Groups
from coarse2fine.models.feature_tree import FeatureTree

# Of each group; columns of each way; the logit before them, and about what they add to it.
ITEMS, COLUMNS, START, ADDED = 12, 4, 1.0, 0.01


def world(groups: int, gain: float, tail: str, rng: np.random.Generator) -> tuple[Verdict, ...]:
    """Verdicts on three ways whose columns all raise an answer a little, as is right for some items and not for others.

    How right it is for an item has a part common to its group, the same for all ways, and a mean of `gain`, in standard
    deviations of that part. What is added is so small that losses change in proportion.
    """
    group = np.repeat(np.arange(groups), ITEMS)
    common = rng.standard_t(2, groups) if tail == "heavy" else rng.standard_normal(groups)
    right = gain + common[group] + rng.standard_normal(len(group))
    n = len(group)
    target = torch.tensor(right + 1 / (1 + np.exp(-START)), dtype=torch.float32)[:, None]
    items = Items(
        (torch.zeros(n, 1, 1, 1),),
        torch.full((n, 1), START),
        target,
        torch.ones(n, 1),
        np.ones(n, bool),
        group,
        np.zeros((n, 1, 1, 1), np.uint8),
    )
    judged = [judge_tree(tree(items, rng), items, exclusive=False)[2] for _ in range(2)]
    fires = torch.from_numpy(rng.random((n, COLUMNS, 1, 1)) < 0.4)
    added = tuple(torch.from_numpy(ADDED * rng.uniform(0.2, 1, (n, 1, 1, 1))).float() for _ in range(COLUMNS))
    none = Groups(np.zeros(1, np.int64), np.zeros(1, np.float32))
    gates = gates_tried(exclusive=False)
    return *judged, judge_groups(GrownGroups(none, (), fires, added), items, exclusive=False, gates=gates)[3]


def tree(items: Items, rng: np.random.Generator) -> Grown:
    """Columns right below the root, and one below each of them."""
    parent = np.array([-1, *[0] * COLUMNS, *range(1, COLUMNS + 1)], np.int32)
    first = rng.integers(1, COLUMNS + 1, len(items))
    steps = torch.from_numpy(ADDED * rng.uniform(0.2, 1, (2, len(items), 1))).float()
    answers = (items.answers, items.answers + steps[0], items.answers + steps.sum(dim=0))
    centres = tuple(np.zeros((int((parent == node).sum()), 1), np.float32) for node in range(len(parent)))
    nodes = np.stack([first, first + COLUMNS], axis=1).astype(np.int32)
    clusters = FeatureTree(parent, np.ones(len(parent), np.int64), np.ones(len(parent), bool), centres, centres)
    return Grown(clusters, {}, nodes, answers)


@pytest.mark.parametrize("runs", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_what_does_not_help_is_kept_in_at_most_one_fit_of_twenty(runs: int) -> None:
    rng = np.random.default_rng(0)
    auto, named = 0, 0
    worlds = [(2, "normal"), (6, "heavy"), (9, "heavy"), (20, "normal")]
    for groups, tail in worlds:
        for _ in range(runs):
            verdicts = world(groups, 0.0, tail, rng)
            kept = best_way({str(n): verdict for n, verdict in enumerate(verdicts)}, 3) is not None
            one = best_way({"tree": verdicts[0]}, 1) is not None
            # All signs of two groups are too few.
            assert groups > 2 or not (kept or one)
            auto, named = auto + kept, named + one
    for count in (auto, named):
        assert binomtest(count, runs * len(worlds), 0.05, "greater").pvalue > 0.02


@pytest.mark.parametrize(("groups", "gain"), [(7, 2.5), pytest.param(12, 1.6, marks=pytest.mark.slow)])
def test_what_helps_is_kept_in_most_fits(groups: int, gain: float) -> None:
    rng = np.random.default_rng(groups)
    found = [world(groups, gain, "normal", rng) for _ in range(4)]
    assert sum(best_way({str(n): v for n, v in enumerate(f)}, 3) is not None for f in found) >= 3


class OneColumn:
    """A column that stays whatever it gains, and one gate."""

    depths, shares = np.zeros(1, np.int64), 1

    def __init__(self, gains: NDArray[np.float64]) -> None:
        self._gains, self.sizes = gains[None], np.ones((1, len(gains)))

    def alone(self, _: int) -> NDArray[np.float64]:
        return self._gains

    def stays(self, _: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.ones(1, bool)

    def whole(self, *_: object) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._gains, self.sizes


@pytest.mark.parametrize("gains", [[1.0, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, -0.5], [3, 1, 4, 1, 5, 9, 2, -1]])
def test_a_chance_without_choices_is_that_of_signs(gains: list[float]) -> None:
    column: Any = OneColumn(np.array(gains))
    found = chance(column, decide(column, np.ones(len(gains))))
    exact = permutation_test((gains,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf)
    assert found == pytest.approx(exact.pvalue)


def test_columns_of_which_little_is_known_are_believed_to_be_like_the_others() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(1, 1, 40)
    sizes = np.repeat(rng.choice([1.0, 50.0], 40)[:, None], 12, axis=1)
    gains = true[:, None] * sizes + rng.standard_normal((40, 12)) * 5 * np.sqrt(sizes)
    count = sizes.sum(axis=1)
    found, own = believed(gains, sizes, np.zeros(40, np.int64)) / count, gains.sum(axis=1) / count
    assert ((found - true) ** 2).sum() < 0.8 * ((own - true) ** 2).sum()
    # By a normal world's own posterior mean.
    error = 25 / count
    best = (true.var() * own + error * true.mean()) / (true.var() + error)
    assert np.corrcoef(found, best)[0, 1] > 0.97


def test_a_column_that_paints_worse_falls_back_to_its_parent() -> None:
    """One column goes half of the way to the pixels in each image, one away from them, one anywhere."""
    rng = np.random.default_rng(0)
    n, side = 480, 16
    node, image = rng.integers(1, 4, n).astype(np.int32), rng.integers(0, 12, n)
    target = torch.from_numpy(rng.standard_normal((n, side))).float()
    anywhere = torch.from_numpy(rng.standard_normal((n, side))).float()
    step = {1: 0.5 * target, 2: -0.5 * target, 3: 0.5 * anywhere}
    last = torch.stack([step[int(k)][i] for i, k in enumerate(node)])
    zeros = torch.zeros(n, side)
    tiles = np.zeros((n, 1, 1, 1), np.uint8)
    items = Items((zeros[:, :1, None, None],), zeros, target, torch.ones(n, 1), np.ones(n, bool), image, tiles)
    centres = (np.zeros((3, 1), np.float32), *[np.zeros((0, 0), np.float32)] * 3)
    clusters = FeatureTree(np.array([-1, 0, 0, 0], np.int32), np.ones(4, np.int64), np.ones(4, bool), centres, centres)
    judged, verdict = judge_reconstruction(Grown(clusters, {}, node[:, None], (zeros, last)), items)
    assert judged.tree.kept.tolist() == [True, True, False, False]
    assert verdict.pays()
    assert verdict.groups == 12
    # Alone, those that do not help are not sure to.
    worse = judge_reconstruction(Grown(clusters, {}, node[:, None], (zeros, 0.5 * anywhere)), items)[1]
    assert not worse.pays()


def test_of_a_net_without_mistakes_nothing_is_gained() -> None:
    sure = Verdict(
        items=22_000, groups=15, share_run=1.0, loss_before=4e-5, loss=1e-5, wrong_before=0.0, wrong=0.0, chance=0.004
    )
    assert not sure.pays()
    assert replace(sure, loss_before=0.068, loss=0.048).pays()  # a reconstruction is never wrong
    assert replace(sure, loss_before=0.068, loss=0.048, wrong=0.01).pays() is False
