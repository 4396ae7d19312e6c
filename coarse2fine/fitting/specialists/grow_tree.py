"""Training of a tree of specialists on stored items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.specialists.items import ItemStore
from coarse2fine.fitting.specialists.train_columns import (
    Cohort,
    ColumnTrainer,
    Shape,
    TrainingOptions,
    load_column,
    through,
)
from coarse2fine.models.column import Column
from coarse2fine.models.feature_maps import ColumnSpec, FeatureMaps
from coarse2fine.models.feature_tree import NO_NODE, ROOT, FeatureTree
from coarse2fine.models.gate import Gate
from coarse2fine.models.routing import features_at

# Fewest and most clusters at the root, and at a node below it, by the number of training items.
_FIRST, _BELOW = (6, 32), (2, 6)
_ITEMS_EACH, _FEWEST = 400, 48


@dataclass(frozen=True)
class Grown:
    """A tree with its columns, and their answers to the items it was grown on.

    Parameters
    ----------
    tree : FeatureTree
    columns : dict of int to Column
        Column of each node but the root.
    nodes : ndarray, int32, (n, depth)
        Path of each item from the first node below the root on; -1 after the last.
    answers : tuple of Tensor, float32, (n, classes)
        Answers of the base, then those after one column, after two, and so on.
    """

    tree: FeatureTree
    columns: dict[int, Column]
    nodes: NDArray[np.int32]
    answers: tuple[Tensor, ...]

    def answered(self, gate: Gate, tree: FeatureTree) -> tuple[Tensor, NDArray[np.int64]]:
        """Answers, and how many columns ran on each item, for a gate and the kept nodes of `tree`."""
        answers, runs = self.answers[0], np.zeros(len(self.nodes), np.int64)
        going = np.ones(len(self.nodes), bool)
        for nodes, after in zip(self.nodes.T, self.answers[1:], strict=True):
            going &= gate.unsure(answers).numpy() & (nodes != NO_NODE) & tree.kept[nodes]
            answers = torch.where(torch.from_numpy(going)[:, None], after, answers)
            runs += going
        return answers, runs

    def shrunk(self, share: float) -> Grown:
        """A copy with the output of every column multiplied by `share`."""
        if share == 1:
            return self
        base = self.answers[0]
        answers = tuple(base + share * (after - base) for after in self.answers)
        columns = {node: column.shrunk(share) for node, column in self.columns.items()}
        return replace(self, columns=columns, answers=answers)

    def take(self, rows: NDArray[np.intp]) -> Grown:
        """A copy with some of the items."""
        at = torch.from_numpy(rows)
        return Grown(self.tree, self.columns, self.nodes[rows], tuple(a[at] for a in self.answers))


@dataclass
class _Branch:
    """A node while the tree grows: its items, their features there, and the columns on its path."""

    rows: NDArray[np.intp]
    features: NDArray[np.float32]
    above: tuple[tuple[Shape, Path], ...] = ()


def grow(
    store: ItemStore,
    twins: FeatureMaps,
    specs: Sequence[ColumnSpec],
    options: TrainingOptions,
    *,
    clusters: int | None = None,
    vectors: NDArray[np.float32] | None = None,
    answers: Tensor | None = None,
) -> Grown:
    """Cluster items, train a column for each cluster, and cluster again by the columns' features.

    Parameters
    ----------
    store : ItemStore
    twins : FeatureMaps
        Maps of the base.
    specs : sequence of ColumnSpec
        Shape of the columns at each depth of the tree.
    options : TrainingOptions
    clusters : int, optional
        Largest number of clusters at the first depth; by default 6 to 32, by the number of items.
    vectors : ndarray, float32, (n, d), optional
        Features by which all items are clustered at every depth, instead of high-level features.
    answers : Tensor, float32, (n, classes), optional
        Answers that the columns correct, instead of the base's.
    """
    trainer = ColumnTrainer(store, options)
    items = store.read(last=max(len(twins.maps) - spec.first + 1 for spec in specs))
    items = items if answers is None else items.answered(answers)
    learning = ~items.held
    tree = FeatureTree.root(int(learning.sum()))
    branches = {ROOT: _Branch(np.arange(len(items)), items.features if vectors is None else vectors)}
    columns: dict[int, Column] = {}
    ways, after_each = [], [items.answers]
    parent: ColumnSpec | None = None
    for spec in specs:
        shape = Shape(spec, twins, items.answers.shape[1], parent)
        limits = _BELOW if columns else (clusters or _FIRST[0], clusters or _FIRST[1])
        tree, grown = _split(tree, branches, learning, limits, options.seed)
        classes = []
        for branch in grown.values():
            rows = branch.rows[learning[branch.rows]]
            classes.append(Cohort(rows, branch.above, answers=items.answers[torch.from_numpy(rows)]))
        way, after = np.full(len(items), NO_NODE, np.int32), after_each[-1].clone()
        for (node, branch), path in zip(grown.items(), trainer.train(shape, classes), strict=True):
            branch.above = (*branch.above, (shape, path))
            mine = items.take(branch.rows)
            chain = [load_column(*each) for each in branch.above]
            after[torch.from_numpy(branch.rows)], stages, _ = through(mine, chain)
            branch.features = features_at(mine.maps[-1], stages) if vectors is None else branch.features
            way[branch.rows], columns[node] = node, chain[-1]
        branches, parent = grown, spec if spec.stages else None
        ways.append(way)
        after_each.append(after)
    return Grown(tree, columns, np.stack(ways, axis=1), tuple(after_each))


def _split(
    tree: FeatureTree,
    branches: dict[int, _Branch],
    learning: NDArray[np.bool_],
    limits: tuple[int, int],
    seed: int,
) -> tuple[FeatureTree, dict[int, _Branch]]:
    """Cluster the items of each leaf that has enough of them."""
    grown: dict[int, _Branch] = {}
    for node, branch in branches.items():
        known = learning[branch.rows]
        count = min(max(int(known.sum()) // _ITEMS_EACH, limits[0]), limits[1])
        smallest = max(_FEWEST, int(known.sum()) // (4 * count))
        tree, _ = tree.split(node, branch.features[known], count, smallest=smallest, seed=seed)
        below = tree.step(node, branch.features)
        for child in tree.children(node).tolist():
            at = np.flatnonzero(below == child)
            grown[child] = _Branch(branch.rows[at], branch.features[at], branch.above)
    return tree, grown
