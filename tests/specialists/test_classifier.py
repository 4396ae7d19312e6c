"""Classifiers of finds: files, answers and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coarse2fine.models.conv_stack import BatchInvariantConv2d, ConvStack, StackSpec
from coarse2fine.models.fork import ForkTree
from coarse2fine.specialists.classifier import Classifier

NAMES = ("a", "b", "c")


@pytest.fixture
def classifier() -> Classifier:
    """A trunk with three forks, the last of which knows two classes alone, and random weights."""
    torch.manual_seed(3)
    trunk = ConvStack(StackSpec.parse(1, "4/2:6 4/2:8 3:3"))
    tree = ForkTree(trunk)
    few = ForkTree(ConvStack(StackSpec.parse(1, "4/2:6 4/2:8 3:3"))).layers_of(0, 1)
    few.convs[-1] = BatchInvariantConv2d(8, 3, 3)
    tree.grow(
        0,
        1,
        BatchInvariantConv2d(6, 3, 8),
        [*(tree.layers_of(0, 1) for _ in range(2)), few],
        [None, None, torch.tensor([0, 2])],
    )
    for fork in tree.forks[1:]:
        for parameter in fork.layers.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    shares = np.full((4, 3), 1 / 3, np.float32)
    tiles = {node: np.zeros((2, 18, 18, 1), np.uint8) for node in (1, 2, 3)}
    return Classifier(NAMES, tree, (0.5,), (0.25,), 1.5, shares, tiles)


@pytest.fixture
def crops() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 18, 18, 1), np.uint8)


def test_a_loaded_classifier_answers_alike(classifier: Classifier, crops: NDArray[np.uint8]) -> None:
    rounded = Classifier.load(classifier.arrays(), classifier.describe())  # weights in half precision
    again = Classifier.load(rounded.arrays(), rounded.describe())
    first, second = rounded(crops), again(crops)
    assert classifier.side == 18
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.nodes, second.nodes)
    assert set(first.nodes.tolist()) <= {1, 2, 3}
    assert again.describe() == classifier.describe()
    assert again.lines() == classifier.lines()


def test_answers_do_not_depend_on_the_batch(classifier: Classifier, crops: NDArray[np.uint8]) -> None:
    whole = classifier(crops)
    parts = [classifier(crops[i : i + 7]) for i in range(0, 40, 7)]
    np.testing.assert_array_equal(whole.labels, np.concatenate([part.labels for part in parts]))
    np.testing.assert_array_equal(whole.nodes, np.concatenate([part.nodes for part in parts]))
    assert whole.macs == sum(part.macs for part in parts)


def test_no_crops_cost_nothing(classifier: Classifier) -> None:
    found = classifier(np.zeros((0, 18, 18, 1), np.uint8))
    assert (len(found.labels), len(found.nodes), found.macs) == (0, 0, 0)


def test_routes_lead_from_the_root(classifier: Classifier) -> None:
    assert [classifier.route(node) for node in range(4)] == [(), (1,), (2,), (3,)]


def test_plot_draws_a_row_for_each_leaf(classifier: Classifier, tmp_path: Path) -> None:
    assert classifier.plot(tmp_path / "kinds.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ("a", "b")},
        {"labels": ("a", "a", "a")},
        {"mean": (0.5, 0.5)},
        {"std": (0.0,)},
        {"std": (1e-300,)},
        {"mean": (float("nan"),)},
        {"tiles": {0: np.zeros((1, 18, 18, 1), np.uint8)}},
        {"tiles": {99: np.zeros((1, 18, 18, 1), np.uint8)}},
        {"tiles": {1: np.zeros((1, 9, 18, 1), np.uint8)}},
        {"tiles": {1: np.zeros((65, 18, 18, 1), np.uint8)}},
        {"shares": np.full((4, 3), 7, np.float32)},
        {"context": 0.0},
        {"context": float("nan")},
        {"shares": np.zeros((1, 3), np.float32)},
    ],
)
def test_fields_that_do_not_fit_are_refused(classifier: Classifier, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(classifier, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("node", "key", "value"),
    [
        *[(0, "parent", 0), (1, "parent", 2), (1, "stage", 2), (2, "parent", -1), (0, "stage", 1), (0, "split", 2)],
        *[(0, "split", 99), (0, "classes", [0]), (3, "classes", [2, 0]), (3, "classes", [0, 3]), (3, "classes", [])],
    ],
)
def test_descriptions_that_are_no_tree_are_refused(classifier: Classifier, node: int, key: str, value: object) -> None:
    text = classifier.describe()
    text["forks"][node][key] = value
    with pytest.raises(ValueError, match=r"does not fit|expected"):
        Classifier.load(classifier.arrays(), text)


def test_huge_crops_are_refused(classifier: Classifier) -> None:
    trunk = ConvStack(StackSpec.parse(1, "2/2:2 2/2:2 2/2:2 2/2:2 2/2:2 2/2:2 2/2:2 2/2:2 2/2:3"))
    with pytest.raises(ValueError, match="expected crops of 1 or 3 channels and up to 256 px, got 1 and 512"):
        replace(classifier, tree=ForkTree(trunk), shares=np.zeros((1, 3), np.float32), tiles={})


def test_names_are_shown_as_text(classifier: Classifier, tmp_path: Path) -> None:
    odd = replace(classifier, labels=("a\x1b[31m", "$1_{$ x", "c"))
    assert "\x1b" not in "".join(odd.lines())
    odd.plot(tmp_path / "kinds.png")
