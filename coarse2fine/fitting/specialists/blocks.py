"""Training data of the specialists that the scan chooses: blocks of cells in which groups of its features fire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.hold_out import some_parts
from coarse2fine.fitting.scene import PART, Scene
from coarse2fine.fitting.specialists.unsure_cells import group_of
from coarse2fine.model import Model
from coarse2fine.models.base import round_up
from coarse2fine.models.box_head import BOX_CHANNELS
from coarse2fine.models.routing import Answered
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import normalised
from coarse2fine.refiners.net import net_of
from coarse2fine.specialists.groups import TILE_OF_BLOCKS
from coarse2fine.specialists.tree import SpecialistTree
from coarse2fine.tiling.geometry import Box, ceil_div

SIDE = TILE_OF_BLOCKS
"""Fine cells along a side of a block that is trained on."""
_MOST_PARTS = 48
# Training blocks for each step of the refine net's training, and most of them; most held-out blocks.
_BLOCKS_A_STEP, _MOST_BLOCKS, _MOST_HELD = 0.6, 1200, 600
_BATCH = 16


@dataclass(frozen=True)
class Seen:
    """Features of the scan in all blocks of some parts of the scenes.

    Parameters
    ----------
    high : ndarray, float32, (n, c)
        Largest activation of each feature in the cells of each block.
    places : ndarray, int64, (n, 4)
        Scene, first fine cell (y, x), and group of each block; blocks of one group are not independent.
    held : ndarray, bool, (n,)
        Blocks of held-out parts.
    """

    high: NDArray[np.float32]
    places: NDArray[np.int64]
    held: NDArray[np.bool_]


@dataclass(frozen=True)
class Blocks:
    """Blocks with their pixels, answers and targets.

    Parameters
    ----------
    pixels : ndarray, uint8, (n, h, w, channels)
        With the refine net's halo.
    answers, targets, valid : Tensor, float32, (n, classes, SIDE, SIDE)
        Logits of the refine net and its tree; 1 for each cell's classes; 0 where the class is unknown.
    """

    pixels: NDArray[np.uint8]
    answers: Tensor
    targets: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.answers)


def block_side(model: Model) -> int:
    """Cells along a side of the blocks in which the scan chooses: `SIDE` fine cells, rounded up to its alignment."""
    cells = max(1, SIDE // model.geometry.fine)
    return round_up(cells, model.base.spec.align)


def see(model: Model, scenes: Sequence[Scene], runtime: Runtime, seed: int) -> Seen:
    """Run the base on random parts of the scenes, half of them held out.

    Parameters
    ----------
    model : Model
        With a trained base.
    scenes : sequence of Scene
    runtime : Runtime
    seed : int
    """
    net, g, block = runtime.place(model.base), model.geometry, block_side(model)
    side = block * g.fine
    high, places, held_back = [], [], []
    for held in (False, True):
        rows = [(s, y, x) for s, scene in enumerate(scenes) for y, x in np.argwhere(scene.held == held).tolist()]
        parts = some_parts(rows, _MOST_PARTS, seed)
        for number, (s, y, x) in enumerate(parts):
            corner = np.array([y, x]) * PART // side * side
            count = PART // side or 1
            box = Box(*(corner // g.fine).tolist(), *(corner // g.fine + count * block).tolist())
            pixels = scenes[s].image.read_scaled(box.scale(net.spec.stride).expand(net.spec.margin), g.scan_downsample)
            with torch.inference_mode():
                found = net.high(normalised(pixels[None], model, runtime))[0].float().cpu()
            blocks = found.view(len(found), count, block, count, block).amax(dim=(2, 4))
            high.append(blocks.flatten(1).T.numpy())
            corners = np.stack(np.meshgrid(*(np.arange(count) * side,) * 2, indexing="ij"), axis=-1).reshape(-1, 2)
            groups = [
                group_of([part[0] for part in parts], number, *(at >= PART // 2 for at in each))
                for each in corners.tolist()
            ]
            places.append(np.column_stack([np.full(len(corners), s), corner + corners, groups]))
            held_back.append(np.full(len(corners), held))
    return Seen(np.concatenate(high), np.concatenate(places).astype(np.int64), np.concatenate(held_back))


def most_blocks(recipe: Recipe, *, held: bool) -> int:
    """Most blocks that are read."""
    return _MOST_HELD if held else max(_BATCH, min(_MOST_BLOCKS, round(_BLOCKS_A_STEP * recipe.steps)))


def read_blocks(
    model: Model, recipe: Recipe, scenes: Sequence[Scene], runtime: Runtime, places: NDArray[np.int64], *, held: bool
) -> Blocks:
    """Read blocks of `SIDE` by `SIDE` fine cells, and run the refine net and its tree on them.

    Parameters
    ----------
    model : Model
    recipe : Recipe
    scenes : sequence of Scene
    runtime : Runtime
    places : ndarray, int64, (n, 4)
        See `Seen`.
    held : bool
        Whether cells count that are held out, or those that are not.
    """
    net, spec = runtime.place(net_of(model.refiner)), recipe.refiner
    tree = model.tree
    pixels, targets, valid = [], [], []
    for s, y, x, _ in places.tolist():
        box = Box(y, x, y + SIDE, x + SIDE)
        full = box.scale(spec.stride).expand(spec.margin)
        pixels.append(scenes[s].image.read_scaled(full, recipe.geometry.refine_downsample))
        t = scenes[s].draw(box, held=held)
        targets.append(torch.from_numpy(t.classes))
        valid.append(torch.from_numpy(t.valid))
    stacked, answers = np.stack(pixels), []
    for rows in np.array_split(np.arange(len(stacked)), ceil_div(len(stacked), _BATCH)):
        with torch.inference_mode():
            x_ = normalised(stacked[rows], model, runtime)
            features = net.features(x_)
            own = net.head(features[-1])[:, :-BOX_CHANNELS]
            answers.append((own if tree is None else _corrected(tree, runtime, x_, features, own)).float().cpu())
    return Blocks(stacked, torch.cat(answers), torch.stack(targets), torch.stack(valid))


def _corrected(tree: SpecialistTree, runtime: Runtime, x: Tensor, features: list[Tensor], answers: Tensor) -> Tensor:
    """Answers of all cells after the tree."""
    ended: list[Answered] = []
    queue = tree.runner(runtime, ended.append)
    n, top, left = torch.nonzero(tree.gate.unsure(answers), as_tuple=True)
    sources, rows = tree.layout.items(tree.layout.read(x, features), (1, 1), (n, top, left))
    queue.put(np.arange(len(n)), sources, rows, answers[n, :, top, left])
    queue.flush()
    answers = answers.clone()
    for each in ended:
        at = torch.from_numpy(each.keys).to(answers.device)
        answers[n[at], :, top[at], left[at]] = each.answers.to(answers.dtype)
    return answers


def batched(count: int, steps: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Rows of each step's batch."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield rng.permutation(count)[:_BATCH]
