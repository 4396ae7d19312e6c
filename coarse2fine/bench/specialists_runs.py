"""One data set and one seed: a base at its plateau, what specialists learn from it, and their answers in the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.bench.specialists_data import HELD, TEST, TRAIN, TileSet
from coarse2fine.bench.specialists_nets import Trained, answers_of, inputs, stack, train_net
from coarse2fine.models.bundle import load_bundle, save_bundle
from coarse2fine.models.column import Column
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.gate import Gate
from coarse2fine.models.tree import NO_NODE, ROOT, FeatureTree
from coarse2fine.models.twin import ColumnSpec, Layout, Twins
from coarse2fine.specialists.group_growth import grow_groups, judge_groups
from coarse2fine.specialists.growth import Grown, grow
from coarse2fine.specialists.items import Items, ItemStore
from coarse2fine.specialists.training import TrainingOptions
from coarse2fine.specialists.validation import judge_tree

# What columns are given: all that the base has; no maps between its input and its high-level one; or the answers of a
# larger net for targets.
Lesson = Literal["whole", "blind", "taught"]
TEACHER = 2.0
CLUSTERS = 12
_CHUNK = 512


@dataclass(frozen=True)
class Outcome:
    """What one way of answering makes of the test.

    Parameters
    ----------
    wrong : ndarray, bool, (n,)
        Of each tile of the test.
    macs : float
        Multiply-adds for a tile, in the mean, all included.
    asked : float
        Columns that were asked of a tile, in the mean.
    """

    wrong: NDArray[np.bool_]
    macs: float
    asked: float = 0.0


class Trial:
    """A data set with a seed, and a folder that keeps what was trained.

    Parameters
    ----------
    tiles : TileSet
    seed : int
        Of the split into training and held back, and of all training.
    folder : Path
        Exists.
    steps : int
        Most steps of each net that is trained end to end.
    options : TrainingOptions
        Of columns.
    """

    def __init__(self, tiles: TileSet, seed: int, folder: Path, steps: int, options: TrainingOptions) -> None:
        self.tiles, self.seed, self.folder, self.steps = tiles, seed, folder, steps
        self.parts = tiles.parts(seed)
        self.options = replace(options, seed=seed)
        self._trained: dict[str, Trained] = {}

    @cached_property
    def test_labels(self) -> NDArray[np.int64]:
        """Classes of the test's tiles."""
        labels: NDArray[np.int64] = self.tiles.labels[self.parts == TEST]
        return labels

    def net(self, spec: StackSpec, *, extra: int = 0) -> Trained:
        """A net at its plateau, trained once."""
        name = f"net {spec} {extra}"
        path = self.folder / f"net-{str(spec).replace('/', 's').replace(' ', '_').replace(':', '-')}-{extra}.c2f"
        if name not in self._trained and path.is_file():
            arrays, text = load_bundle(path)
            net = ConvStack(spec)
            net.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
            self._trained[name] = Trained(net.eval(), int(text["epochs"]))
        if name not in self._trained:
            trained = train_net(self.tiles, self.parts, spec, steps=self.steps, seed=self.seed, extra=extra)
            arrays = {key: value.numpy() for key, value in trained.net.state_dict().items()}
            save_bundle(path, arrays, {"epochs": trained.epochs})
            self._trained[name] = trained
        return self._trained[name]

    def base(self, width: float = 1.0) -> ConvStack:
        """The base, with so many times its channels."""
        return self.net(stack(self.tiles, width)).net

    def twins(self, width: float = 1.0) -> Twins:
        """Its maps."""
        return Twins.of(self.base(width))

    def design(self, top: int, *, width: float = 1.0, first: int = 1) -> ColumnSpec:
        """A column over it."""
        return ColumnSpec.design(self.twins(width), top, first=first)

    def column_macs(self, spec: ColumnSpec) -> int:
        """Multiply-adds of a column over the base for a tile."""
        return Column(spec, self.twins(), len(self.tiles.classes)).macs(1, 1)

    def store(self, width: float = 1.0, lesson: Lesson = "whole") -> ItemStore:
        """What the base has to say of all tiles, computed once."""
        folder = self.folder / f"items-{width:g}-{lesson}"
        try:
            return ItemStore(folder)
        except FileNotFoundError:
            name = f"{self.tiles.digest()} {self.seed} {self.steps} {width:g} {lesson}"
            rows = [np.arange(at, min(at + _CHUNK, len(self.tiles))) for at in range(0, len(self.tiles), _CHUNK)]
            parts = (self._items(each, width, lesson) for each in rows)
            return ItemStore.write(folder, parts, loss="squared" if lesson == "taught" else "softmax", name=name)

    def _items(self, rows: NDArray[np.intp], width: float, lesson: Lesson) -> Items:
        twins, tiles = self.twins(width), self.tiles.tiles[rows]
        targets = torch.from_numpy(np.eye(len(self.tiles.classes), dtype=np.float32)[self.tiles.labels[rows]])
        layout = Layout.of(self.design(1, width=width), twins)
        held, group = self.parts[rows] != TRAIN, self.tiles.groups[rows]
        items = Items.of(
            self.base(width), layout, inputs(tiles), targets, held=held, group=group, tiles=tiles[:, ::2, ::2]
        )
        if lesson == "blind":
            return replace(items, maps=(items.maps[0], *(m * 0 for m in items.maps[1:-1]), items.maps[-1]))
        return replace(items, targets=answers_of(self.base(TEACHER), tiles)) if lesson == "taught" else items

    def end_to_end(self, net: ConvStack) -> Outcome:
        """What a net alone answers."""
        answers = answers_of(net, self.tiles.tiles[self.parts == TEST])
        return Outcome(self._wrong(answers), float(net.spec.macs(1, 1)))

    def tree(
        self,
        specs: Sequence[ColumnSpec],
        *,
        clusters: int = CLUSTERS,
        options: TrainingOptions | None = None,
        vectors: NDArray[np.float32] | None = None,
        width: float = 1.0,
        lesson: Lesson = "whole",
        routed: bool = True,
    ) -> dict[str, Outcome]:
        """Grow columns, and ask all of them; and then, "judged", as what is held back says.

        Parameters
        ----------
        specs : sequence of ColumnSpec
            One for each depth.
        clusters : int
            At the first depth.
        options : TrainingOptions, optional
        vectors : ndarray, float32, (n, d), optional
            What is clustered.
        width : float
            Of the base.
        lesson : {"whole", "blind", "taught"}
        routed : bool
            Whether finding the column costs anything.
        """
        grown = grow(
            self.store(width, lesson),
            self.twins(width),
            specs,
            options or self.options,
            clusters=clusters,
            vectors=vectors,
        )
        items = replace(self.store(width).read(last=1), held=self.parts == HELD)
        tree, gate, _ = judge_tree(grown, items, exclusive=True)
        tested = grown.take(np.flatnonzero(self.parts == TEST))
        base = self.base(width).spec.macs(1, 1)
        whole = Gate.open(exclusive=True)
        return {
            "": self._of_tree(tested, whole, tested.tree, base, routed=routed),
            "judged": self._of_tree(tested, gate, tree, base, routed=routed),
        }

    def _of_tree(self, grown: Grown, gate: Gate, tree: FeatureTree, base: int, *, routed: bool) -> Outcome:
        answers, asked = grown.answered(gate, tree)
        spent = macs_of(grown, gate, tree, routed=routed)
        return Outcome(self._wrong(answers), base + float(spent.mean()), float(asked.mean()))

    def activity(self, spec: ColumnSpec) -> dict[str, Outcome]:
        """Columns for groups of features that fire together, as "tree" has them."""
        store, base = self.store(), self.base().spec.macs(1, 1)
        grown = grow_groups(store, self.twins(), spec, self.options)
        items = store.read(last=1)
        later = self.parts[self.parts != TRAIN]  # what has grown are the items that train nothing
        judged, tested = np.flatnonzero(later == HELD), np.flatnonzero(later == TEST)
        held = replace(items, held=self.parts == HELD)
        kept, gate, _ = judge_groups(grown.take(judged), held, exclusive=True)
        part, own = items.take(np.flatnonzero(self.parts == TEST)), grown.take(tested)
        outcomes = {}
        every = np.ones(len(grown.columns), bool), Gate.open(exclusive=True)
        for name, (groups, band) in {"": every, "judged": (kept, gate)}.items():
            answers, asked = own.answered(part.answers, groups, band)
            macs = base + float(asked.mean()) * self.column_macs(spec)
            outcomes[name] = Outcome(self._wrong(answers), macs, float(asked.mean()))
        return outcomes

    def _wrong(self, answers: Tensor) -> NDArray[np.bool_]:
        return np.asarray(answers.argmax(dim=1).numpy() != self.test_labels)


def macs_of(grown: Grown, gate: Gate, tree: FeatureTree, *, routed: bool = True) -> NDArray[np.int64]:
    """Multiply-adds of columns and routing for each tile, (n,), by a gate and by what a tree keeps.

    Parameters
    ----------
    grown : Grown
    gate : Gate
    tree : FeatureTree
    routed : bool
        Whether finding the column costs anything.
    """
    count = len(grown.nodes)
    spent, answers = np.zeros(count, np.int64), grown.answers[0]
    going, at = np.ones(count, bool), np.full(count, ROOT)
    own = np.array([0, *(grown.columns[node].macs(1, 1) for node in range(1, len(tree)))])
    # A node is worth routing to only where some column may follow.
    followed = np.array([bool(tree.kept[tree.children(node)].any()) for node in range(len(tree))])
    routing = np.array([centres.size for centres in tree.centres]) * followed * routed
    for nodes, after in zip(grown.nodes.T, grown.answers[1:], strict=True):
        going &= gate.unsure(answers).numpy() & followed[at]
        spent += going * routing[at]
        going &= (nodes != NO_NODE) & tree.kept[nodes]
        spent += going * own[nodes]
        answers = torch.where(torch.from_numpy(going)[:, None], after, answers)
        at = np.where(going, nodes, at)
    return spent
