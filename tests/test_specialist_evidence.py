"""Whether specialists help: worlds without any gain, in which hardly anything may be kept, and worlds with one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from coarse2fine.models.activity import Groups
from coarse2fine.models.tree import FeatureTree
from coarse2fine.specialists.group_growth import GrownGroups, judge_groups
from coarse2fine.specialists.growth import Grown
from coarse2fine.specialists.items import Items
from coarse2fine.specialists.validation import Verdict, best_way, judge_tree

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
    return *judged, judge_groups(GrownGroups(none, (), fires, added), items, exclusive=False)[3]


def tree(items: Items, rng: np.random.Generator) -> Grown:
    """Columns right below the root, and one below each of them."""
    parent = np.array([-1, *[0] * COLUMNS, *range(1, COLUMNS + 1)], np.int32)
    first = rng.integers(1, COLUMNS + 1, len(items))
    steps = torch.from_numpy(ADDED * rng.uniform(0.2, 1, (2, len(items), 1))).float()
    answers = (items.answers, items.answers + steps[0], items.answers + steps.sum(dim=0))
    centres = tuple(np.zeros((int((parent == node).sum()), 1), np.float32) for node in range(len(parent)))
    nodes = np.stack([first, first + COLUMNS], axis=1).astype(np.int32)
    clusters = FeatureTree(parent, np.ones(len(parent), np.int64), np.ones(len(parent), bool), centres)
    return Grown(clusters, {}, nodes, answers)


@pytest.mark.parametrize(
    ("groups", "tail"), [(2, "normal"), (6, "heavy"), (7, "normal"), (12, "heavy"), (60, "normal")]
)
def test_what_does_not_help_is_kept_in_less_than_one_fit_of_twenty(groups: int, tail: str) -> None:
    rng = np.random.default_rng(groups)
    runs = 40
    auto = named = 0
    for _ in range(runs):
        verdicts = world(groups, 0.0, tail, rng)
        auto += best_way(dict(zip("abc", ((v,) for v in verdicts), strict=True)), 3) is not None
        named += best_way({"a": verdicts[:1]}, 1) is not None
    for kept in (auto, named):
        assert binomtest(kept, runs, 0.05, "greater").pvalue > 0.01
    if groups == 2:
        assert auto == named == 0


@pytest.mark.parametrize(("groups", "gain"), [(7, 2.0), (12, 1.3), (60, 0.6)])
def test_what_helps_is_kept_in_most_fits(groups: int, gain: float) -> None:
    rng = np.random.default_rng(groups)
    runs = 15
    found = [world(groups, gain, "normal", rng) for _ in range(runs)]
    assert sum(best_way({n: (v,) for n, v in enumerate(f)}, 3) is not None for f in found) > 0.8 * runs  # type: ignore[misc]
