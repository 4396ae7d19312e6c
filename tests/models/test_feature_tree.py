"""The tree of feature clusters against scipy and plain loops."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, vq

from coarse2fine.bundle import packed
from coarse2fine.model_file import read_model_file
from coarse2fine.models.clustering import kmeans, merged, nearest
from coarse2fine.models.feature_tree import NO_NODE, ROOT, FeatureTree, pooled

seeds = st.integers(0, 10_000)


def points(
    seed: int, count: int = 200, dimensions: int = 5, kinds: int = 6, spread: float = 0.5
) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    middles = 4 * rng.standard_normal((kinds, dimensions))
    noise = spread * rng.standard_normal((count, dimensions))
    return np.asarray(middles[rng.integers(kinds, size=count)] + noise, np.float32)


def grown(seed: int, smallest: int = 5) -> tuple[FeatureTree, NDArray[np.float32], NDArray[np.int32]]:
    """A tree of depth 2 on one set of features, and the leaf of each item."""
    x = points(seed)
    tree, leaf = FeatureTree.root(len(x)).split(ROOT, x, 3, smallest=smallest, seed=seed)
    for node in tree.children(ROOT).tolist()[:2]:
        rows = np.flatnonzero(leaf == node)
        tree, leaf[rows] = tree.split(node, x[rows], 2, smallest=smallest, seed=seed)
    return tree, x, leaf


@given(seeds, st.integers(1, 9))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_nearest_centre_is_the_nearest(seed: int, count: int) -> None:
    x = points(seed) + np.float32(30)
    centres = x[:count]
    index, squared = nearest(x, centres)
    _, distance = vq(x.astype(float), centres.astype(float))
    np.testing.assert_allclose(np.sqrt(squared), distance, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(x - centres[index], axis=1), distance, atol=1e-3)


@given(seeds, st.integers(1, 9))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_clusters_are_at_rest_and_as_tight_as_those_of_scipy(seed: int, count: int) -> None:
    x = points(seed)
    centres = kmeans(x, count, seed=seed)
    index, squared = nearest(x, centres)
    assert len(centres) == count
    for k in range(count):
        np.testing.assert_allclose(centres[k], x[index == k].mean(axis=0), atol=1e-4)
    starts = [kmeans2(x.astype(float), count, minit="++", seed=s, iter=50)[0] for s in range(3)]
    theirs = [(vq(x.astype(float), each)[1] ** 2).sum() for each in starts]
    assert squared.sum() <= 1.001 * np.mean(theirs)
    np.testing.assert_array_equal(centres, kmeans(x, count, seed=seed))


def test_kinds_that_lie_apart_are_found() -> None:
    kind = np.arange(300) % 7
    x = (10 * np.eye(7)[kind] + 0.1 * np.random.default_rng(0).standard_normal((300, 7))).astype(np.float32)
    index, _ = nearest(x, kmeans(x, 7, seed=0))
    assert len({*zip(kind.tolist(), index.tolist(), strict=True)}) == 7


def test_few_distinct_items_make_few_clusters() -> None:
    x = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    assert sorted(kmeans(x, 8, seed=0).tolist()) == sorted(np.eye(3).tolist())


@given(seeds, st.integers(1, 100))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_no_cluster_is_smaller_than_asked(seed: int, smallest: int) -> None:
    x = points(seed)
    centres = merged(x, kmeans(x, 12, seed=seed), smallest)
    sizes = np.bincount(nearest(x, centres)[0], minlength=len(centres))
    assert sizes.min() >= smallest or len(centres) == 1
    tree, node = FeatureTree.root(len(x)).split(ROOT, x, 12, smallest=smallest, seed=seed)
    assert tree.sizes[1:].sum() == (len(x) if len(tree) > 1 else 0)
    np.testing.assert_array_equal(np.bincount(node, minlength=len(tree))[1:], tree.sizes[1:])


def test_one_cluster_is_no_split() -> None:
    x = points(0)
    tree, node = FeatureTree.root(len(x)).split(ROOT, x, 4, smallest=150, seed=0)
    assert len(tree) == 1
    assert tree.leaves.tolist() == [ROOT]
    assert set(node.tolist()) == {ROOT}
    assert set(tree.step(ROOT, x).tolist()) == {NO_NODE}


@given(seeds)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_items_go_where_they_were_when_the_tree_was_grown(seed: int) -> None:
    tree, x, leaf = grown(seed)
    at = np.zeros(len(x), np.int32)
    for node in range(len(tree)):  # a child's number is larger than its parent's
        rows = np.flatnonzero(at == node)
        assert len(rows) == tree.sizes[node]
        if len(tree.children(node)):
            at[rows] = tree.step(node, x[rows])
    assert at.tolist() == leaf.tolist()
    assert sorted(set(at.tolist())) == tree.leaves.tolist()


def test_features_are_standardised_or_not_read() -> None:
    """Kinds differ in features of small units; those of large units are noise, and still larger ones are not read."""
    rng = np.random.default_rng(0)
    kind = np.arange(300) % 3
    own = 0.03 * (10 * np.eye(3)[kind] + rng.standard_normal((300, 3)))
    x = np.concatenate([1e6 * rng.standard_normal((300, 2)), own, rng.standard_normal((300, 1))], axis=1)
    x = x.astype(np.float32)
    tree, leaf = FeatureTree.root(300).split(ROOT, x, 3, smallest=5, seed=0, unread=2, scaled=True)
    assert len({*zip(kind.tolist(), leaf.tolist(), strict=True)}) == 3
    x[:, :2] *= -1
    assert tree.step(ROOT, x).tolist() == leaf.tolist()
    assert tree.step_macs(ROOT) == 3 * 4
    variance = x[:, 2:].var(axis=0)
    np.testing.assert_allclose(tree.scales[ROOT][2:] ** -2.0, variance + 0.01 * variance.mean(), rtol=1e-4)
    assert not tree.scales[ROOT][:2].any()


def test_trees_of_before_read_features_as_they_are() -> None:
    tree, x, _ = grown(2)
    old = {name: array for name, array in tree.arrays().items() if not name.startswith("scales")}
    centres = tree.centres[ROOT]
    expected = 1 + ((x[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert FeatureTree.from_arrays(old).step(ROOT, x).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="expected a scale for each feature"):
        FeatureTree.from_arrays({**tree.arrays(), "scales.0": tree.scales[ROOT][:-1]})


def test_nodes_keep_their_numbers_when_the_tree_grows() -> None:
    tree, x, _ = grown(3)
    before, _ = FeatureTree.root(len(x)).split(ROOT, x, 3, smallest=5, seed=3)
    np.testing.assert_array_equal(tree.parent[: len(before)], before.parent)
    np.testing.assert_array_equal(tree.centres[ROOT], before.centres[ROOT])
    assert tree.depths.tolist() == [0, 1, 1, 1, 2, 2, 2, 2]
    with pytest.raises(ValueError, match="has children already; split a leaf, one of"):
        tree.split(1, x, 2, smallest=1, seed=0)


@given(seeds)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_pruning_keeps_the_columns_with_the_least_loss(seed: int) -> None:
    tree, x, leaf = grown(1)
    rng = np.random.default_rng(seed)
    # Of each item, the loss of the answer of each node.
    losses = rng.random((len(x), len(tree))) + 0.3 * rng.random(len(tree))
    ways = [[int(leaf[i])] for i in range(len(x))]
    for way in ways:
        while way[0] != ROOT:
            way.insert(0, int(tree.parent[way[0]]))
    here = np.array([[node in way for node in range(len(tree))] for way in ways])
    own = (losses * here).sum(axis=0)
    above = (losses[:, np.maximum(tree.parent, 0)] * here).sum(axis=0)

    def total(kept: NDArray[np.bool_]) -> float:
        last = [max(node for node in way if all(kept[n] for n in way[: way.index(node) + 1])) for way in ways]
        return float(losses[np.arange(len(x)), last].sum())

    best = min(total(np.array((True, *kept))) for kept in product((False, True), repeat=len(tree) - 1))
    pruned = tree.pruned(own, above)
    assert total(pruned.kept) == pytest.approx(best)
    assert all(pruned.kept[parent] or not kept for parent, kept in zip(tree.parent[1:], pruned.kept[1:], strict=True))


def test_a_column_that_neither_helps_nor_hurts_is_kept() -> None:
    tree, _, _ = grown(0)
    same = np.ones(len(tree))
    assert tree.pruned(same, same).kept.all()
    worse = tree.pruned(np.where(np.arange(len(tree)) == 1, 9.0, 1.0), same)
    off = np.flatnonzero(~worse.kept).tolist()
    assert off == [1, *tree.children(1).tolist()]


def test_a_tree_survives_a_model_file(tmp_path: Path) -> None:
    tree, x, _ = grown(0)
    tree = tree.pruned((np.arange(len(tree)) % 3).astype(np.float64), np.ones(len(tree)))
    (tmp_path / "tree.c2f").write_bytes(packed(tree.arrays(), {}))
    arrays, _ = read_model_file(tmp_path / "tree.c2f")
    found = FeatureTree.from_arrays(arrays)
    np.testing.assert_array_equal(found.kept, tree.kept)
    np.testing.assert_array_equal(found.sizes, tree.sizes)
    np.testing.assert_array_equal(found.step(ROOT, x), tree.step(ROOT, x))
    for name, value in (("parent", arrays["parent"][::-1]), ("centres.0", arrays["centres.0"][:-1])):
        with pytest.raises(ValueError, match="expected parents before their children"):
            FeatureTree.from_arrays({**arrays, name: value})


def test_features_are_the_means_of_all_channels() -> None:
    maps = [torch.randn(3, 2, 4, 5), torch.randn(3, 4, 2, 2)]
    expected = np.concatenate([m.numpy().mean(axis=(2, 3)) for m in maps], axis=1)
    np.testing.assert_allclose(pooled(*maps), expected, atol=1e-6)
