"""One data set and one seed: a fully trained base, specialists trained on it, and their test errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.specialists.data import HELD, TEST, TRAIN, TileSet
from benchmarks.specialists.nets import answers_of, augmented, inputs, stack, train_net
from coarse2fine.fitting.specialists.grow_tree import Grown, grow
from coarse2fine.fitting.specialists.items import Items, ItemStore
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.fitting.specialists.validate import judge_tree
from coarse2fine.models.column import Column
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.feature_tree import NO_NODE, ROOT, FeatureTree
from coarse2fine.models.gate import Gate

CLUSTERS = 12
UNSURE = Gate(0.0, 0.98, exclusive=True)
_CHUNK = 512
# Augmented copies of each tile for columns: the base fits the original tiles too well.
_COPIES = 2


@dataclass(frozen=True)
class Errors:
    """Test errors of one variant.

    Parameters
    ----------
    wrong : ndarray, bool, (n,)
        One for each tile of the test.
    macs, columns_run : float
        Total multiply-adds, and columns run, per tile in the mean.
    """

    wrong: NDArray[np.bool_]
    macs: float
    columns_run: float = 0.0


class Experiment:
    """A data set with a seed, which determines the split and all training, and a folder for stores of items.

    Each net is trained end to end for `steps`, times the square root of the number of domains.
    """

    def __init__(self, tiles: TileSet, seed: int, folder: Path, steps: int, options: TrainingOptions) -> None:
        self.tiles, self.seed, self.folder, self.steps = tiles, seed, folder, steps
        self.parts = tiles.parts(seed)
        self.options = replace(options, seed=seed)
        self._trained: dict[tuple[str, int], ConvStack] = {}

    def net(self, spec: StackSpec, *, times: int = 1) -> ConvStack:
        """A net, trained once, for `times` as many steps."""
        key = str(spec), times
        if key not in self._trained:
            # Domains have much in common.
            steps = round(self.steps * times * math.sqrt(len(np.unique(self.tiles.domains))))
            self._trained[key] = train_net(self.tiles, self.parts, spec, steps=steps, seed=self.seed)
        return self._trained[key]

    def base(self) -> ConvStack:
        """The base."""
        return self.net(stack(self.tiles))

    def twins(self) -> FeatureMaps:
        """Its maps."""
        return FeatureMaps.of(self.base())

    def design(self, top: int) -> ColumnSpec:
        """A column over it."""
        return ColumnSpec.design(self.twins(), top, first=1)

    def column_macs(self, spec: ColumnSpec) -> int:
        """Multiply-adds of a column over the base for a tile."""
        return Column(spec, self.twins(), len(self.tiles.classes)).macs(1, 1)

    def store(self, *, unsure: bool = False) -> ItemStore:
        """Store of the base's outputs for all tiles and for augmented training tiles, computed once.

        With `unsure`, training tiles are only those of which the base is unsure.
        """
        folder = self.folder / f"items-{'unsure' if unsure else 'all'}"
        try:
            return ItemStore(folder)
        except FileNotFoundError:
            parts = (self._items(*each, unsure) for each in self._looks())
            return ItemStore.write(folder, parts, loss="softmax", name=f"{self.seed} {unsure}")

    def _looks(self) -> Iterator[tuple[NDArray[np.intp], int]]:
        """All original tiles, and then augmented training tiles."""
        for copy in range(_COPIES + 1):
            rows = np.flatnonzero(self.parts == TRAIN) if copy else np.arange(len(self.tiles))
            yield from ((rows[start : start + _CHUNK], copy) for start in range(0, len(rows), _CHUNK))

    def _items(self, rows: NDArray[np.intp], copy: int, unsure: bool) -> Items:
        x = inputs(self.tiles.tiles[rows])
        if copy:
            x = augmented(x, self.tiles.turns[rows], np.random.default_rng((self.seed, copy, int(rows[0]))))
        layout = ColumnInputs.of(self.design(1), self.twins())
        small, held = np.zeros((len(rows), 1, 1, 1), np.uint8), self.parts[rows] != TRAIN
        # An item's group is its tile.
        items = Items.of(self.base(), layout, x, self._targets(rows), held=held, group=rows, tiles=small)
        return items.take(np.flatnonzero(items.held | UNSURE.unsure(items.answers).numpy())) if unsure else items

    def end_to_end(self, net: ConvStack) -> dict[str, Errors]:
        """Errors of a net alone."""
        answers = answers_of(net, inputs(self.tiles.tiles[self.parts == TEST]))
        return {"": self._errors(answers, float(net.spec.macs(1, 1)))}

    def tree(
        self,
        specs: Sequence[ColumnSpec],
        *,
        clusters: int = CLUSTERS,
        options: TrainingOptions | None = None,
        vectors: NDArray[np.float32] | None = None,
        unsure: bool = False,
        routed: bool = True,
    ) -> dict[str, Errors]:
        """Grow columns, one spec per depth, and run all of them where the base is unsure.

        "judged": pruned and gated on held-out tiles. Clusters, with their number at the first depth, are of `vectors`,
        (n, d), if given. With `unsure` columns learn only from tiles of which the base is unsure; unless `routed`,
        finding the column costs nothing.
        """
        store = self.store(unsure=unsure)
        items, part = self._labelled(store)
        vectors = None if vectors is None else vectors[store.table("group")]
        grown = grow(store, self.twins(), specs, options or self.options, clusters=clusters, vectors=vectors)
        judged, within, _ = judge_tree(grown, items, exclusive=True)
        base, found = self.base().spec.macs(1, 1), {}
        for name, each, gate in (("", grown, UNSURE), ("judged", judged, _within(within))):
            tested = each.take(np.flatnonzero(part == TEST))
            answers, runs = tested.answered(gate, tested.tree)
            spent = macs_of(tested, gate, tested.tree, routed=routed)
            found[name] = self._errors(answers, base + float(spent.mean()), float(runs.mean()))
        return found

    def _labelled(self, store: ItemStore) -> tuple[Items, NDArray[np.int8]]:
        """Held-out items for pruning and gating with their classes, and the part of each item."""
        tile = store.table("group")
        part, items = self.parts[tile], store.read(last=1)
        held = (part == HELD) & UNSURE.unsure(items.answers).numpy()
        return replace(items, held=held, group=self.tiles.groups[tile], targets=self._targets(tile)), part

    def _targets(self, rows: NDArray[np.intp]) -> Tensor:
        """1 at the class of each tile, (n, classes)."""
        return torch.from_numpy(np.eye(len(self.tiles.classes), dtype=np.float32)[self.tiles.labels[rows]])

    def _errors(self, answers: Tensor, macs: float, runs: float = 0.0) -> Errors:
        true = self.tiles.labels[self.parts == TEST]
        return Errors(np.asarray(answers.argmax(dim=1).numpy() != true), macs, runs)


def _within(gate: Gate) -> Gate:
    """The part of a gate's band in which the base is unsure."""
    return replace(gate, high=min(gate.high, UNSURE.high))


def macs_of(grown: Grown, gate: Gate, tree: FeatureTree, *, routed: bool = True) -> NDArray[np.int64]:
    """Multiply-adds of columns and routing for each tile, (n,), by a gate and by what a tree keeps."""
    count = len(grown.nodes)
    spent, answers = np.zeros(count, np.int64), grown.answers[0]
    going, at = np.ones(count, bool), np.full(count, ROOT)
    own = np.array([0, *(grown.columns[node].macs(1, 1) for node in range(1, len(tree)))])
    # Routing goes only to nodes with a column below them.
    followed = np.array([bool(tree.kept[tree.children(node)].any()) for node in range(len(tree))])
    routing = np.array([tree.step_macs(node) for node in range(len(tree))]) * followed * routed
    for nodes, after in zip(grown.nodes.T, grown.answers[1:], strict=True):
        going &= gate.unsure(answers).numpy() & followed[at]
        spent += going * routing[at]
        going &= (nodes != NO_NODE) & tree.kept[nodes]
        spent += going * own[nodes]
        answers = torch.where(torch.from_numpy(going)[:, None], after, answers)
        at = np.where(going, nodes, at)
    return spent
