"""Training of a tree of specialists on stored items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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


class TreeGrower:
    """Grows a tree depth by depth: clusters items, trains a column for each cluster, and clusters its items again.

    At the root items are clustered by the base's high-level features, below it by those of their own column, scaled.

    Parameters
    ----------
    store : ItemStore
    twins : FeatureMaps
        Maps of the base.
    options : TrainingOptions
    maps : int
        Maps that the columns read, counted from the high-level one.
    clusters : int, optional
        Largest number of clusters at the first depth; by default 6 to 32, by the number of items.
    vectors : ndarray, float32, (n, d), optional
        Features by which all items are clustered at every depth, instead.
    answers : Tensor, float32, (n, classes), optional
        Answers that the columns correct, instead of the base's.

    Attributes
    ----------
    grown : Grown
        The tree up to now.
    items : Items
        With their initial answers.
    """

    def __init__(
        self,
        store: ItemStore,
        twins: FeatureMaps,
        options: TrainingOptions,
        *,
        maps: int,
        clusters: int | None = None,
        vectors: NDArray[np.float32] | None = None,
        answers: Tensor | None = None,
    ) -> None:
        items = store.read(last=maps)
        self.items = items = items if answers is None else items.answered(answers)
        self._trainer, self._twins, self._seed = ColumnTrainer(store, options), twins, options.seed
        self._limits, self._vectors, self._learning = (
            (clusters or _FIRST[0], clusters or _FIRST[1]),
            vectors,
            ~items.held,
        )
        tree = FeatureTree.root(int(self._learning.sum()))
        self.grown = Grown(tree, {}, np.zeros((len(items), 0), np.int32), (items.answers,))
        self._branches = {ROOT: _Branch(np.arange(len(items)), items.features if vectors is None else vectors)}
        self._parent: ColumnSpec | None = None

    def deepen(self, spec: ColumnSpec) -> bool:
        """Grow the tree by one depth of columns of one shape; whether there was a node to split.

        Parameters
        ----------
        spec : ColumnSpec
        """
        items, before = self.items, self.grown
        tree, branches = self._split(before.tree)
        if not branches:
            return False
        shape = Shape(spec, self._twins, items.answers.shape[1], self._parent)
        classes = []
        for branch in branches.values():
            rows = branch.rows[self._learning[branch.rows]]
            classes.append(Cohort(rows, branch.above, answers=items.answers[torch.from_numpy(rows)]))
        way, after, columns = np.full(len(items), NO_NODE, np.int32), before.answers[-1].clone(), dict(before.columns)
        for (node, branch), path in zip(branches.items(), self._trainer.train(shape, classes), strict=True):
            branch.above = (*branch.above, (shape, path))
            mine = items.take(branch.rows)
            chain = [load_column(*each) for each in branch.above]
            after[torch.from_numpy(branch.rows)], stages, _ = through(mine, chain)
            if self._vectors is None:
                branch.features = features_at(mine.maps[-1], stages)
            way[branch.rows], columns[node] = node, chain[-1]
        self.grown = Grown(tree, columns, np.column_stack([before.nodes, way]), (*before.answers, after))
        self._branches, self._parent, self._limits = branches, spec if spec.stages else None, _BELOW
        return True

    def _split(self, tree: FeatureTree) -> tuple[FeatureTree, dict[int, _Branch]]:
        """Cluster the items of each leaf that has enough of them."""
        grown: dict[int, _Branch] = {}
        own = self._parent is not None and self._vectors is None
        for node, branch in self._branches.items():
            known = self._learning[branch.rows]
            count = min(max(int(known.sum()) // _ITEMS_EACH, self._limits[0]), self._limits[1])
            smallest = max(_FEWEST, int(known.sum()) // (4 * count))
            unread = self._twins.maps[-1].channels if own else 0
            vectors = branch.features[known]
            tree, _ = tree.split(node, vectors, count, smallest=smallest, seed=self._seed, unread=unread, scaled=own)
            below = tree.step(node, branch.features)
            for child in tree.children(node).tolist():
                at = np.flatnonzero(below == child)
                grown[child] = _Branch(branch.rows[at], branch.features[at], branch.above)
        return tree, grown


def grow(
    store: ItemStore, twins: FeatureMaps, specs: Sequence[ColumnSpec], options: TrainingOptions, **more: Any
) -> Grown:
    """Grow a tree of a fixed number of depths.

    Parameters
    ----------
    store : ItemStore
    twins : FeatureMaps
        Maps of the base.
    specs : sequence of ColumnSpec
        Shape of the columns at each depth of the tree.
    options : TrainingOptions
    **more
        As for `TreeGrower`.
    """
    grower = TreeGrower(store, twins, options, maps=max(len(twins.maps) - spec.first + 1 for spec in specs), **more)
    for spec in specs:
        if not grower.deepen(spec):
            break
    return grower.grown
