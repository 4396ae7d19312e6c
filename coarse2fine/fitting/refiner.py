"""Training of the refine net at full resolution on the annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.base import PRIOR_LOGIT
from coarse2fine.fitting.crops import Recipe, turn_boxes, turn_planes
from coarse2fine.fitting.optimise import train
from coarse2fine.fitting.scene import PART, Scene
from coarse2fine.models.box_head import BOX_CHANNELS, detection_loss
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.tiling.geometry import Box

_CROP, _BATCH = 24, 16


def train_refiner(recipe: Recipe, scenes: Sequence[Scene], runtime: Runtime, tick: Tick | None = None) -> ConvStack:
    """Train the refine net on the annotations.

    Parameters
    ----------
    recipe : Recipe
    scenes : sequence of Scene
    runtime : Runtime
    tick : callable, optional
        Called with the numbers of steps done and of all steps.
    """
    torch.manual_seed(recipe.seed)
    net = ConvStack(recipe.refiner, batch_norm=True)
    bias = net.convs[-1].bias
    with torch.no_grad():
        bias[:-BOX_CHANNELS].fill_(PRIOR_LOGIT)  # type: ignore[index]
        bias[-BOX_CHANNELS:].zero_()  # type: ignore[index]
    make = batches(recipe, scenes)
    train(net, make, detection_loss, runtime, steps=recipe.steps, seed=recipe.seed, tick=tick)
    return net.folded()


def batches(
    recipe: Recipe, scenes: Sequence[Scene], around: float = 0.5
) -> Callable[[np.random.Generator], tuple[Tensor, ...]]:
    """A sampler of batches of crops with their targets, as `detection_loss` takes them; held-out parts do not count.

    Parameters
    ----------
    recipe : Recipe
    scenes : sequence of Scene
    around : float
        Share of crops around an object, of classes drawn by the root of their counts; the others may lie anywhere.
    """
    choose = _object_crops(scenes, around)

    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        rows = [_sample(recipe, choose(rng), rng) for _ in range(_BATCH)]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))

    return make


def _object_crops(scenes: Sequence[Scene], around: float) -> Callable[[np.random.Generator], tuple[Scene, Box]]:
    """A sampler of crops as (scene, cell box), a share `around` of them near an object."""
    rows = [(s, i, int(scene.label[i])) for s, scene in enumerate(scenes) for i in np.flatnonzero(_trains(scene))]
    by_label = {k: [r for r in rows if r[2] == k] for k in sorted({r[2] for r in rows})}
    parts = [(s, y, x) for s, scene in enumerate(scenes) for y, x in np.argwhere(~scene.held).tolist()]
    side = _CROP

    def choose(rng: np.random.Generator) -> tuple[Scene, Box]:
        if by_label and rng.random() < around:
            # Rare classes are oversampled, but not to the level of common ones.
            weight = np.array([len(v) for v in by_label.values()]) ** 0.5
            label = list(by_label)[rng.choice(len(by_label), p=weight / weight.sum())]
            s, i, _ = by_label[label][rng.integers(len(by_label[label]))]
            middle = scenes[s].centre[i] / scenes[s].fine_cell + rng.uniform(-side / 3, side / 3, 2)
            corner = np.floor(middle - side / 2).astype(int)
        else:
            s, y, x = parts[rng.integers(len(parts))]
            corner = np.array([y, x]) * PART + rng.integers(-side // 2, PART - side // 2, 2)
        y, x = corner.tolist()
        return scenes[s], Box(y, x, y + side, x + side)

    return choose


def _trains(scene: Scene) -> NDArray[np.bool_]:
    """Objects outside held-out parts whose size fits the net."""
    y, x = (scene.centre / scene.fine_cell // PART).astype(int).T
    held = scene.held[y.clip(0, scene.part_shape[0] - 1), x.clip(0, scene.part_shape[1] - 1)]
    trains: NDArray[np.bool_] = scene.fits & ~held
    return trains


def _sample(recipe: Recipe, place: tuple[Scene, Box], rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    scene, cell_box = place
    spec = recipe.refiner
    pixels = scene.image.read_scaled(cell_box.scale(spec.stride).expand(spec.margin), recipe.geometry.refine_downsample)
    t = scene.draw(cell_box)
    turn = recipe.turn(rng)
    return (
        recipe.relit(turn_planes(recipe.planes(pixels), turn), rng),
        turn_planes(t.classes, turn),
        turn_planes(t.valid, turn),
        turn_boxes(t.boxes, turn),
        turn_planes(t.boxed[None], turn)[0],
    )
