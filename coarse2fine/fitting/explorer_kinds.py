"""Kinds of cells for novelty: clusters whose columns learn, without labels, to reconstruct pixels."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.specialists.earnings import KEY, as_record
from coarse2fine.fitting.specialists.first_stage import candidates
from coarse2fine.fitting.specialists.grow_tree import Grown, grow
from coarse2fine.fitting.specialists.items import Items, ItemStore
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.fitting.specialists.validate import judge_reconstruction
from coarse2fine.model import Model
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.gate import Gate
from coarse2fine.models.mixture import ridge
from coarse2fine.refiners.novelty import NoveltyRefiner
from coarse2fine.refiners.protocol import Label
from coarse2fine.specialists.kinds import cell_pixels, kind_names, reconstructed
from coarse2fine.specialists.tree import SpecialistTree

_BATCHES, _CELLS_OF_BATCH = 128, 96
# Wider columns and a second depth of the tree cost more and improved nothing.
_TOP, _CLUSTERS = 8, 32
_TILES = 8
# Five held-out images are the fewest that can be significant; a few more tolerate an outlier.
_LEAST_HELD = 8
Crops = Callable[[np.random.Generator], tuple[Tensor, NDArray[np.int64]]]


def add_kinds(model: Model, crops: Crops, seed: int) -> Model:
    """Add kinds of cells, with columns that reconstruct what the code alone cannot.

    A quarter of the images is held out: a column stays if its estimated gain there is positive; if the gain of all
    together is not significant, all are left out with a warning. The model is unchanged, too, if all cells are of one
    kind.

    Parameters
    ----------
    model : Model
        With a `NoveltyRefiner` without kinds.
    crops : callable
        From a random generator to input of the encoder, (n, c, h, w), and the number of each crop's image, int64, (n,).
    seed : int
    """
    refiner = model.refiner
    assert isinstance(refiner, NoveltyRefiner)
    twins = FeatureMaps.of(refiner.net)
    spec = candidates(twins, _TOP)[0]
    layout = ColumnInputs.of(spec, twins)
    parts = [_cells(model, refiner.net, layout, crops, np.random.default_rng((seed, 3, n))) for n in range(_BATCHES)]
    codes, whole = np.concatenate([code for code, _ in parts]), Items.joined([item for _, item in parts])
    whole = replace(whole, held=_held(whole.group, seed))
    learning = np.flatnonzero(~whole.held)
    decoder = ridge(codes[learning], whole.targets[torch.from_numpy(learning)].numpy())
    whole = whole.answered(reconstructed(torch.from_numpy(codes)[:, :, None, None], decoder)[:, :, 0, 0])
    options = TrainingOptions(seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        store = ItemStore.write(folder, [whole], loss="squared", name="kinds")
        grown = grow(store, twins, (spec,), options, clusters=_CLUSTERS)
    if not grown.columns:
        return model
    grown, verdict = judge_reconstruction(grown, whole)
    model = replace(model, provenance={**model.provenance, "kinds": verdict.reported()})
    if not verdict.pays():
        warnings.warn(
            f"no columns for kinds: their gain on held-out images is not significant: {verdict.reported()}",
            stacklevel=2,
        )
        return model
    tree = _as_tree(grown, whole, decoder, (spec,))
    provenance = {**model.provenance, KEY: as_record(verdict.earned, "error")}
    labels = tuple(Label(name, "area") for name in kind_names(tree))
    refiner = replace(refiner, tree=tree, decoder=decoder, labels=labels)
    return replace(model, refiner=refiner, provenance=provenance)


def _held(image: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Cells of the held-out images: a quarter of the images, or enough for significance, at most half."""
    known = np.unique(image)
    count = min(max(len(known) // 4, _LEAST_HELD), len(known) // 2)
    return np.isin(image, np.random.default_rng((seed, 4)).permutation(known)[:count])


@torch.inference_mode()
def _cells(
    model: Model, net: ConvStack, layout: ColumnInputs, crops: Crops, rng: np.random.Generator
) -> tuple[NDArray[np.float32], Items]:
    """Random cells of a batch of crops: their codes, and the columns' inputs with answers still zero."""
    x, image = crops(rng)
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
        image[n.numpy()],
        seen,
    )
    return code[n, :, y, left].numpy(), items


def _as_tree(grown: Grown, items: Items, decoder: NDArray[np.float32], specs: tuple[ColumnSpec, ...]) -> SpecialistTree:
    tree = grown.tree
    rng = np.random.default_rng(0)
    tiles = {}
    for leaf in tree.leaves.tolist():
        rows = np.flatnonzero((grown.nodes == leaf).any(axis=1))
        tiles[leaf] = items.tiles[np.sort(rng.permutation(rows)[:_TILES])]
    macs = tree.step_macs(0) + decoder[:-1].size
    for nodes in grown.nodes.T:
        known = nodes[nodes > 0]
        each = np.array(
            [grown.columns[n].macs(1, 1) if n in grown.columns and tree.kept[n] else 0 for n in range(len(tree))]
        )
        macs += each[known].sum() / len(nodes)
    return SpecialistTree(
        clusters=tree,
        specs=specs,
        columns={node: column for node, column in grown.columns.items() if tree.kept[node]},
        gate=Gate.open(exclusive=False),
        macs_per_cell=float(macs),
        names=(),
        shares=np.zeros((len(tree), 0), np.float32),
        tiles=tiles,
    )
