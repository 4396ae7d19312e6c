"""Collection of the specialists' training data: features of cells of which the refine net is unsure."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.hold_out import some_parts
from coarse2fine.fitting.refiner import batches
from coarse2fine.fitting.scene import PART, Scene
from coarse2fine.fitting.specialists.items import Items, ItemStore
from coarse2fine.fitting.teacher import FLOOR
from coarse2fine.model import Model
from coarse2fine.models.box_head import BOX_CHANNELS
from coarse2fine.models.feature_maps import ColumnInputs
from coarse2fine.models.gate import Gate
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.net import net_of
from coarse2fine.tiling.geometry import Box

# Probabilities of cells that are collected; the gate is a band within.
_BAND = Gate(FLOOR, 0.98)
_CELLS_OF_BATCH = 96
_MOST_BYTES = 2**30
_SCENES = 6
_TILE = 32


@dataclass(frozen=True)
class Draws:
    """How many cells are collected.

    Parameters
    ----------
    batches : float
        Batches of crops as a share of the refine net's training steps; `_CELLS_OF_BATCH` cells are kept of each.
    parts, cells : int
        Most held-out parts, and most cells of each.
    """

    batches: float = 0.15
    parts: int = 256
    cells: int = 256

    def limited(self, layout: ColumnInputs, steps: int) -> Draws:
        """As many as fit into the memory set aside, for columns with these inputs and a net trained for `steps`."""
        item = sum(2 * t.channels * side**2 for t, side in zip(layout.maps, layout.sides(1), strict=True))
        items = self.batches * steps * _CELLS_OF_BATCH + self.parts * self.cells
        share = min(1.0, _MOST_BYTES / (items * item))
        return Draws(share * self.batches, self.parts, max(1, int(share * self.cells)))


@dataclass(frozen=True)
class UnsureCells:
    """Unsure cells of the fitting scenes, in a store.

    Parameters
    ----------
    store : ItemStore
    held_cells : int
        Cells of the held-out parts that were examined, sure or unsure.
    """

    store: ItemStore
    held_cells: int

    @classmethod
    def collect(
        cls,
        model: Model,
        recipe: Recipe,
        scenes: Sequence[Scene],
        runtime: Runtime,
        layout: ColumnInputs,
        folder: Path,
        draws: Draws,
    ) -> UnsureCells | None:
        """Run the refine net on crops and on held-out parts; None if it is unsure of no cell of the crops.

        Parameters
        ----------
        model : Model
            With a trained refine net.
        recipe : Recipe
        scenes : sequence of Scene
        runtime : Runtime
        layout : ColumnInputs
            Inputs of the columns to train.
        folder : Path
            Folder of the store; a complete one of the same net and scenes is reused.
        draws : Draws
        """
        parts = _held_parts(scenes, draws.parts, recipe.seed)
        name = _name(model, recipe, layout, scenes, runtime, draws)
        cells = sum(box.area for _, box in parts)
        with contextlib.suppress(FileNotFoundError):
            if (store := ItemStore(folder)).name == name:
                return cls(store, cells)
        source = _Source(model, recipe, scenes, runtime, layout, draws)
        learning = (part for part in source.learning() if len(part))
        first = next(learning, None)
        if first is None:
            return None
        held = (part for part in source.held(parts) if len(part))
        found = itertools.chain([first], learning, held)
        return cls(ItemStore.write(folder, found, loss="sigmoid", name=name), cells)


def _name(
    model: Model, recipe: Recipe, layout: ColumnInputs, scenes: Sequence[Scene], runtime: Runtime, draws: Draws
) -> str:
    """Digest of all that the items depend on; pixels enter through the weights of the net trained on them."""
    digest = hashlib.sha256(f"{recipe} {layout.spec} {runtime.dtype} {_BAND} {_SCENES} quarters {draws}".encode())
    for scene in scenes:
        digest.update(f"{scene.image.name} {scene.cell_shape} {scene.digest}".encode())
        digest.update(np.packbits(scene.held).tobytes())
    for tensor in net_of(model.refiner).state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _held_parts(scenes: Sequence[Scene], most: int, seed: int) -> list[tuple[int, Box]]:
    """Held-out parts, or a random choice of them: the number of the scene, and a box of its fine cells."""
    rows = [(s, y, x) for s, scene in enumerate(scenes) for y, x in np.argwhere(scene.held).tolist()]
    found = []
    for s, y, x in some_parts(rows, most, seed):
        height, width = scenes[s].cell_shape
        y0, x0 = y * PART, x * PART
        found.append((s, Box(y0, x0, min(y0 + PART, height), min(x0 + PART, width))))
    return found


def most_groups(scenes: Sequence[Scene]) -> int:
    """Most groups that held-out cells can form, see `group_of`."""
    parts = _held_parts(scenes, sum(int(scene.held.sum()) for scene in scenes), 0)
    own, half, found = [scene for scene, _ in parts], PART // 2, set[int]()
    for number, (_, box) in enumerate(parts):
        sides = itertools.product((False, True)[: 1 + (box.height > half)], (False, True)[: 1 + (box.width > half)])
        found |= {int(group_of(own, number, low, right)) for low, right in sides}
    return len(found)


def group_of(scenes: Sequence[int], number: int, low: Any, right: Any) -> Any:
    """Group of independent items that cells of a part belong to.

    Parts of one scene are alike, so groups are scenes; if these are too few for a test, groups are parts, or quarters
    of parts. A quarter is far wider than the net's receptive field.

    Parameters
    ----------
    scenes : sequence of int
        Scene of each part.
    number : int
        The part.
    low, right : bool or ndarray of bool
        Whether the cells lie in its lower, and in its right half.
    """
    group = scenes[number] if len(set(scenes)) >= _SCENES else number
    shape = np.broadcast(low, right).shape
    whole = np.full(shape, group, np.int64)
    return whole if len(scenes) >= _SCENES else 4 * whole + 2 * np.asarray(low) + np.asarray(right)


class _Source:
    """Runs the refine net and yields items of its unsure cells."""

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        scenes: Sequence[Scene],
        runtime: Runtime,
        layout: ColumnInputs,
        draws: Draws,
    ) -> None:
        self._recipe, self._scenes, self._runtime, self._layout = recipe, scenes, runtime, layout
        self._draws = draws
        self._net = runtime.place(net_of(model.refiner))

    def learning(self) -> Iterator[Items]:
        """Training items: cells of random crops, drawn with other seeds than the refine net's training crops."""
        # Crops anywhere, not around objects: columns also learn class frequencies.
        make = batches(self._recipe, self._scenes, around=0.0)
        for step in range(max(4, round(self._draws.batches * self._recipe.steps))):
            rng = np.random.default_rng((self._recipe.seed, 1, step))
            x, classes, valid, *_ = make(rng)
            group = np.zeros(classes.shape[-2:], np.int64)
            yield self._items(x, classes, valid, _CELLS_OF_BATCH, rng, group=group, held=False)

    def held(self, parts: Sequence[tuple[int, Box]]) -> Iterator[Items]:
        """Items of held-out parts."""
        spec, recipe = self._recipe.refiner, self._recipe
        for number, (s, box) in enumerate(parts):
            full = box.scale(spec.stride).expand(spec.margin)
            pixels = self._scenes[s].image.read_scaled(full, recipe.geometry.refine_downsample)
            t = self._scenes[s].draw(box, held=True)
            x, classes, valid = (
                torch.from_numpy(np.ascontiguousarray(each))[None]
                for each in (recipe.planes(pixels), t.classes, t.valid)
            )
            rng = np.random.default_rng((recipe.seed, 2, number))
            low, right = np.indices(classes.shape[-2:]) >= PART // 2
            group = group_of([scene for scene, _ in parts], number, low, right)
            yield self._items(x, classes, valid, self._draws.cells, rng, group=group, held=True)

    @torch.inference_mode()
    def _items(
        self,
        x: Tensor,
        classes: Tensor,
        valid: Tensor,
        most: int,
        rng: np.random.Generator,
        *,
        group: NDArray[np.int64],
        held: bool,
    ) -> Items:
        x = x.to(self._runtime.device, self._runtime.dtype).contiguous(memory_format=torch.channels_last)
        features = self._net.features(x)
        answers = self._net.head(features[-1])[:, :-BOX_CHANNELS].float().cpu()
        open_ = _BAND.unsure(answers) & valid.bool().any(dim=1)
        places = torch.nonzero(open_)
        chosen = torch.from_numpy(np.sort(rng.permutation(len(places))[:most]))
        n, y, x_ = places[chosen].unbind(dim=1)
        at = (n.to(x.device), y.to(x.device), x_.to(x.device))
        sources, rows = self._layout.items(self._layout.read(x, features), (1, 1), at)
        maps = tuple(s[r].half().cpu().contiguous() for s, r in zip(sources, rows, strict=True))
        return Items(
            maps,
            answers[n, :, y, x_],
            classes[n, :, y, x_],
            valid[n, :, y, x_],
            np.full(len(n), held),
            group[y.numpy(), x_.numpy()],
            self._tiles(x, n, y, x_),
        )

    def _tiles(self, x: Tensor, n: Tensor, y: Tensor, x_: Tensor) -> NDArray[np.uint8]:
        """Pixels of the middle of each cell's receptive field."""
        spec, recipe = self._recipe.refiner, self._recipe
        side = min(_TILE, spec.field)
        start = spec.margin + (spec.stride - side) // 2
        pixels = x.float().cpu().permute(0, 2, 3, 1).numpy() * recipe.std + recipe.mean
        tiles = np.zeros((len(n), side, side, pixels.shape[-1]), np.uint8)
        corners = torch.stack([n, y * spec.stride + start, x_ * spec.stride + start], dim=1)
        for i, (row, top, left) in enumerate(corners.tolist()):
            tiles[i] = (pixels[row, top : top + side, left : left + side] * 255).round().clip(0, 255)
        return tiles
