"""Kinds for an "explore" model: what their columns paint is learned from stored cells, without any label."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.kinds import cell_pixels, kind_names, painted
from coarse2fine.model import Label, Model
from coarse2fine.models.gate import Gate
from coarse2fine.models.rarity import ridge
from coarse2fine.models.twin import ColumnSpec, Layout, Twins
from coarse2fine.specialists.fitting import column_spec
from coarse2fine.specialists.group_growth import GrownGroups, grow_groups
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.growth import Grown, grow
from coarse2fine.specialists.items import Items, ItemStore
from coarse2fine.specialists.training import TrainingOptions
from coarse2fine.specialists.tree import SpecialistTree

_BATCHES, _CELLS_OF_BATCH = 128, 96
# Wider columns, and a second level of them, found no more and cost more.
_TOP, _CLUSTERS, _GROUPS = 8, 32, 12
_TILES = 8
How = Literal["tree", "activity"]


def add_kinds(model: Model, crops: Callable[[np.random.Generator], Tensor], seed: int, how: How = "tree") -> Model:
    """The model with kinds of cells, and columns that paint what the code cannot; as it is if all are of one kind.

    Parameters
    ----------
    model : Model
        An "explore" model without them.
    crops : callable
        From a random generator to input of the encoder, (n, c, h, w).
    seed : int
    how : {"tree", "activity"}
        A column for each node of a tree of clusters, or for each group of features that fire together.
    """
    twins = Twins.of(model.refiner)
    spec = column_spec(twins, _TOP)
    layout = Layout.of(spec, twins)
    parts = [_cells(model, layout, crops, np.random.default_rng((seed, 3, n))) for n in range(_BATCHES)]
    codes, items = np.concatenate([code for code, _ in parts]), [item for _, item in parts]
    painter = ridge(codes, torch.cat([item.targets for item in items]).numpy())
    options = TrainingOptions(seed=seed)
    tree, groups = None, None
    with tempfile.TemporaryDirectory() as folder:
        store = ItemStore.write(folder, _started(items, codes, painter), loss="squared", name="kinds")
        if how == "tree":
            grown = grow(store, twins, (spec,), options, clusters=_CLUSTERS)
            tree = _as_tree(grown, Items.joined(items), painter, (spec,))
        else:
            with contextlib.suppress(ValueError):  # no feature fires
                groups = _as_groups(grow_groups(store, twins, spec, options, count=_GROUPS), spec, painter)
    columns = groups if tree is None else tree
    if columns is None or not columns.columns:
        return model
    labels = tuple(Label(name, "area") for name in kind_names(columns))
    return replace(model, tree=tree, groups=groups, painter=painter, labels=labels)


@torch.inference_mode()
def _cells(
    model: Model, layout: Layout, crops: Callable[[np.random.Generator], Tensor], rng: np.random.Generator
) -> tuple[NDArray[np.float32], Items]:
    """Some cells of a batch of crops: their codes; and what columns read, before any answer."""
    net = model.refiner
    x = crops(rng)
    features = net.features(x)
    code, pixels = net.head(features[-1]), cell_pixels(x, net.spec)
    count = code.shape[0] * code.shape[2] * code.shape[3]
    some = np.unravel_index(np.sort(rng.permutation(count)[:_CELLS_OF_BATCH]), (len(code), *code.shape[2:]))
    n, y, left = (torch.from_numpy(index) for index in some)
    sources, rows = layout.items(layout.read(x, features), (1, 1), (n, y, left))
    targets = pixels[n, :, y, left]
    side, channels = net.spec.stride, x.shape[1]
    tiles = targets.view(len(n), channels, side, side).permute(0, 2, 3, 1).numpy() * np.array(model.std)
    seen = ((tiles + np.array(model.mean)) * 255).round().clip(0, 255).astype(np.uint8)
    items = Items(
        tuple(s[r].half().contiguous() for s, r in zip(sources, rows, strict=True)),
        torch.zeros_like(targets),
        targets,
        torch.ones(len(n), 1),
        np.zeros(len(n), bool),
        np.zeros(len(n), np.int64),
        seen,
    )
    return code[n, :, y, left].numpy(), items


def _started(items: Sequence[Items], codes: NDArray[np.float32], painter: NDArray[np.float32]) -> Iterator[Items]:
    """The same with what the code alone paints as their answers."""
    start = 0
    for item in items:
        code = torch.from_numpy(codes[start : start + len(item)])
        yield item.answered(painted(code[:, :, None, None], painter)[:, :, 0, 0])
        start += len(item)


def _as_groups(grown: GrownGroups, spec: ColumnSpec, painter: NDArray[np.float32]) -> SpecialistGroups:
    # One column at most is asked of each cell.
    macs = painter[:-1].size + grown.columns[0].macs(1, 1)
    gate = Gate.open(exclusive=False)
    return SpecialistGroups(grown.groups, spec, grown.columns, gate, macs, painter.shape[1])


def _as_tree(grown: Grown, items: Items, painter: NDArray[np.float32], specs: tuple[ColumnSpec, ...]) -> SpecialistTree:
    tree = grown.tree
    rng = np.random.default_rng(0)
    tiles = {}
    for leaf in tree.leaves.tolist():
        rows = np.flatnonzero((grown.nodes == leaf).any(axis=1))
        tiles[leaf] = items.tiles[np.sort(rng.permutation(rows)[:_TILES])]
    macs = tree.centres[0].size + painter[:-1].size
    for nodes in grown.nodes.T:
        known = nodes[nodes > 0]
        each = np.array(
            [grown.columns[n].macs(1, 1) + tree.centres[n].size if n in grown.columns else 0 for n in range(len(tree))]
        )
        macs += each[known].sum() / len(nodes)
    return SpecialistTree(
        clusters=tree,
        specs=specs,
        columns=grown.columns,
        gate=Gate.open(exclusive=False),
        macs_per_cell=float(macs),
        names=(),
        shares=np.zeros((len(tree), 0), np.float32),
        tiles=tiles,
    )
