"""One data set and one seed: a base at its plateau, what specialists learn from it, and their answers in the test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.specialists.data import HELD, TEST, TRAIN, TileSet
from benchmarks.specialists.nets import answers_of, augmented, inputs, stack, train_net
from coarse2fine.bundle import packed
from coarse2fine.fitting.specialists.grow_groups import grow_groups, judge_groups
from coarse2fine.fitting.specialists.grow_tree import Grown, grow
from coarse2fine.fitting.specialists.items import Items, ItemStore
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.fitting.specialists.validate import judge_tree
from coarse2fine.model_file import read_model_file
from coarse2fine.models.column import Column
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.feature_tree import NO_NODE, ROOT, FeatureTree
from coarse2fine.models.gate import Gate
from coarse2fine.tiling.writing.atomic import replace_file

# What columns learn from: all tiles, or those of which the base is unsure; all without the maps between its input and
# its high-level one; or all with the answers of a larger net for targets.
Lesson = Literal["all", "unsure", "blind", "taught"]
TEACHER = 2.0
CLUSTERS = 12
_CHUNK = 512
UNSURE = Gate(0.0, 0.98, exclusive=True)
# Columns learn from each tile as it is and from so many augmented ones: the base knows it as it is too well.
_COPIES = 2


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
        Of each net that is trained end to end; with several domains the root of their number times as many.
    options : TrainingOptions
        Of columns.
    """

    def __init__(self, tiles: TileSet, seed: int, folder: Path, steps: int, options: TrainingOptions) -> None:
        self.tiles, self.seed, self.folder, self.steps = tiles, seed, folder, steps
        self.parts = tiles.parts(seed)
        self.options = replace(options, seed=seed)
        self._trained: dict[str, ConvStack] = {}

    @cached_property
    def test_labels(self) -> NDArray[np.int64]:
        """Classes of the test's tiles."""
        labels: NDArray[np.int64] = self.tiles.labels[self.parts == TEST]
        return labels

    def net(self, spec: StackSpec, *, times: int = 1) -> ConvStack:
        """A net, trained once, for so many times the steps."""
        name = f"net-{str(spec).replace('/', 's').replace(' ', '_').replace(':', '-')}-{times}"
        path = self.folder / f"{name}.c2f"
        if name not in self._trained and path.is_file():
            net = ConvStack(spec)
            net.load_state_dict({key: torch.from_numpy(value) for key, value in read_model_file(path)[0].items()})
            self._trained[name] = net.eval()
        if name not in self._trained:
            # Domains share much of what they teach.
            steps = round(self.steps * times * math.sqrt(self.tiles.domain_count))
            net = train_net(self.tiles, self.parts, spec, steps=steps, seed=self.seed)
            replace_file(path, packed({key: value.numpy() for key, value in net.state_dict().items()}, {}))
            self._trained[name] = net
        return self._trained[name]

    def base(self, width: float = 1.0) -> ConvStack:
        """The base, with so many times its channels."""
        return self.net(stack(self.tiles, width))

    def twins(self, width: float = 1.0) -> FeatureMaps:
        """Its maps."""
        return FeatureMaps.of(self.base(width))

    def design(self, top: int, *, width: float = 1.0, first: int = 1) -> ColumnSpec:
        """A column over it."""
        return ColumnSpec.design(self.twins(width), top, first=first)

    def column_macs(self, spec: ColumnSpec) -> int:
        """Multiply-adds of a column over the base for a tile."""
        return Column(spec, self.twins(), len(self.tiles.classes)).macs(1, 1)

    def store(self, width: float = 1.0, lesson: Lesson = "all") -> ItemStore:
        """What the base has to say of all tiles, and of what is made of those that train, computed once."""
        folder = self.folder / f"items-{width:g}-{lesson}"
        try:
            return ItemStore(folder)
        except FileNotFoundError:
            name = f"{self.tiles.digest()} {self.seed} {self.steps} {width:g} {lesson}"
            parts = (self._items(*each, width, lesson) for each in self._looks())
            return ItemStore.write(folder, parts, loss="squared" if lesson == "taught" else "softmax", name=name)

    def _looks(self) -> Iterator[tuple[NDArray[np.intp], int]]:
        """All tiles as they are, and then those that train, augmented."""
        for copy in range(_COPIES + 1):
            rows = np.flatnonzero(self.parts == TRAIN) if copy else np.arange(len(self.tiles))
            yield from ((rows[start : start + _CHUNK], copy) for start in range(0, len(rows), _CHUNK))

    def _items(self, rows: NDArray[np.intp], copy: int, width: float, lesson: Lesson) -> Items:
        twins, x = self.twins(width), inputs(self.tiles.tiles[rows])
        if copy:
            x = augmented(x, self.tiles.turns[rows], np.random.default_rng((self.seed, copy, int(rows[0]))))
        layout = ColumnInputs.of(self.design(1, width=width), twins)
        small = np.zeros((len(rows), 1, 1, 1), np.uint8)
        # An item's group is its tile.
        items = Items.of(
            self.base(width), layout, x, self._targets(rows), held=self.parts[rows] != TRAIN, group=rows, tiles=small
        )
        if lesson == "blind":
            items = replace(items, maps=(items.maps[0], *(m * 0 for m in items.maps[1:-1]), items.maps[-1]))
        if lesson == "taught":
            items = replace(items, targets=answers_of(self.base(TEACHER), x))
        if lesson == "unsure":
            return items.take(np.flatnonzero(items.held | UNSURE.unsure(items.answers).numpy()))
        return items

    def end_to_end(self, net: ConvStack) -> Outcome:
        """What a net alone answers."""
        answers = answers_of(net, inputs(self.tiles.tiles[self.parts == TEST]))
        return Outcome(self._wrong(answers), float(net.spec.macs(1, 1)))

    def tree(
        self,
        specs: Sequence[ColumnSpec],
        *,
        clusters: int = CLUSTERS,
        options: TrainingOptions | None = None,
        vectors: NDArray[np.float32] | None = None,
        width: float = 1.0,
        lesson: Lesson = "all",
        routed: bool = True,
        gate: Gate = UNSURE,
    ) -> dict[str, Outcome]:
        """Grow columns, and ask all of them where the base is unsure; and, "judged", as what is held back says.

        Parameters
        ----------
        specs : sequence of ColumnSpec
            One for each depth.
        clusters : int
            At the first depth.
        options : TrainingOptions, optional
        vectors : ndarray, float32, (n, d), optional
            What is clustered, of each tile.
        width : float
            Of the base.
        lesson : {"all", "unsure", "blind", "taught"}
        routed : bool
            Whether finding the column costs anything.
        gate : Gate
            Where columns are asked at most.
        """
        store = self.store(width, lesson)
        items, part = self._told(store, gate)
        vectors = None if vectors is None else vectors[store.table("group")]
        grown = grow(store, self.twins(width), specs, options or self.options, clusters=clusters, vectors=vectors)
        judged, within, _ = judge_tree(grown, items, exclusive=True)
        tested, later = (each.take(np.flatnonzero(part == TEST)) for each in (grown, judged))
        base = self.base(width).spec.macs(1, 1)
        return {
            "": self._of_tree(tested, gate, base, routed=routed),
            "judged": self._of_tree(later, _within(within, gate), base, routed=routed),
        }

    def _of_tree(self, grown: Grown, gate: Gate, base: int, *, routed: bool) -> Outcome:
        answers, asked = grown.answered(gate, grown.tree)
        spent = macs_of(grown, gate, grown.tree, routed=routed)
        return Outcome(self._wrong(answers), base + float(spent.mean()), float(asked.mean()))

    def _told(self, store: ItemStore, most: Gate) -> tuple[Items, NDArray[np.int8]]:
        """Items to be judged by, with what they are; and the part that each is of."""
        tile = store.table("group")
        part, items = self.parts[tile], store.read(last=1)
        held = (part == HELD) & most.unsure(items.answers).numpy()
        return replace(items, held=held, group=self.tiles.groups[tile], targets=self._targets(tile)), part

    def _targets(self, rows: NDArray[np.intp]) -> Tensor:
        """1 at the class of each tile, (n, classes)."""
        return torch.from_numpy(np.eye(len(self.tiles.classes), dtype=np.float32)[self.tiles.labels[rows]])

    def activity(self, spec: ColumnSpec) -> dict[str, Outcome]:
        """Columns for groups of features that fire together, as "tree" has them."""
        store, base = self.store(), self.base().spec.macs(1, 1)
        grown = grow_groups(store, self.twins(), spec, self.options)
        items, parts = self._told(store, UNSURE)
        later = parts != TRAIN  # what has grown are the items that train nothing
        judged, tested = np.flatnonzero(items.held[later]), np.flatnonzero(parts[later] == TEST)
        share, kept, gate, _ = judge_groups(grown.take(judged), items, exclusive=True)
        part, own = items.take(np.flatnonzero(parts == TEST)), grown.take(tested)
        outcomes = {}
        ways = {"": (own, np.ones(len(kept), bool), UNSURE), "judged": (own.shrunk(share), kept, _within(gate, UNSURE))}
        for name, (groups, which, band) in ways.items():
            answers, asked = groups.answered(part.answers, which, band)
            macs = base + float(asked.mean()) * self.column_macs(spec)
            outcomes[name] = Outcome(self._wrong(answers), macs, float(asked.mean()))
        return outcomes

    def _wrong(self, answers: Tensor) -> NDArray[np.bool_]:
        return np.asarray(answers.argmax(dim=1).numpy() != self.test_labels)


def _within(gate: Gate, most: Gate) -> Gate:
    """The part of a gate's band that lies within another's."""
    return replace(gate, high=min(gate.high, most.high))


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
