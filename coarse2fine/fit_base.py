"""Training the base at low resolution on the refine net's own answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.crops import Recipe
from coarse2fine.models.backbone import Backbone
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.scan import Tick
from coarse2fine.shape import base_spec
from coarse2fine.targets import PART, Scene, part_of, pooled
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.training import train

PRIOR_LOGIT = -4.0
_CROP, _BATCH = 48, 16
_CROP_PIXELS = 192
# Of a backbone's neck and head; its stages learn at a third of it, as do the built-in nets.
_NEW_RATE = 9e-3


def train_base(
    recipe: Recipe,
    backbone: Backbone | None,
    scenes: Sequence[Scene],
    targets: Sequence[NDArray[np.float32]],
    runtime: Runtime,
    tick: Tick | None = None,
) -> Base:
    """Teach a base where refining would find something.

    Parameters
    ----------
    recipe : Recipe
    backbone : Backbone, optional
        The net to fit, changed in place; by default the built-in net of the geometry.
    scenes : sequence of Scene
    targets : sequence of ndarray, float32, (fine cell height, fine cell width)
        The refine net's answer to each scene, NaN where it was not asked.
    runtime : Runtime
    tick : callable, optional
        Called with steps done and steps in all.
    """
    seed = recipe.seed + 1
    torch.manual_seed(seed)
    net = backbone or ConvStack(base_spec(recipe.channels, recipe.geometry, recipe.width), batch_norm=True)
    reader = net.reader if isinstance(net, Backbone) else net.convs[-1]
    with torch.no_grad():
        reader.bias.fill_(PRIOR_LOGIT)  # type: ignore[operator]
    make = _batches(recipe, net, scenes, targets)
    if isinstance(net, ConvStack):
        train(net, make, _answer_loss, runtime, steps=recipe.steps, seed=seed, tick=tick)
        return net.folded()
    train(net, make, _answer_loss, runtime, steps=recipe.steps, seed=seed, rate=_NEW_RATE, slow=net.stages, tick=tick)
    return net


def _batches(
    recipe: Recipe, net: Base, scenes: Sequence[Scene], targets: Sequence[NDArray[np.float32]]
) -> Callable[[np.random.Generator], tuple[Tensor, ...]]:
    places = _answer_crops(scenes, targets)

    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        rows = [_base_sample(recipe, scenes, targets, places, net, rng) for _ in range(_BATCH)]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))

    return make


def _answer_crops(
    scenes: Sequence[Scene], targets: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fine cells (scene, y, x) where the refine net found something, and all parts, as places to draw crops from."""
    found, parts = [], []
    for s, (scene, target) in enumerate(zip(scenes, targets, strict=True)):
        cells = np.argwhere(np.nan_to_num(target) > 0.2)
        cells = cells[~scene.held[cells[:, 0] // PART, cells[:, 1] // PART]]
        found.append(np.insert(cells, 0, s, axis=1))
        seen = [p for p in np.argwhere(~scene.held) if not np.isnan(target[p[0] * PART, p[1] * PART])]
        parts.append(np.insert(np.array(seen, np.int64).reshape(-1, 2), 0, s, axis=1))
    return np.concatenate(found), np.concatenate(parts)


def _base_sample(
    recipe: Recipe,
    scenes: Sequence[Scene],
    targets: Sequence[NDArray[np.float32]],
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    net: Base,
    rng: np.random.Generator,
) -> tuple[NDArray[Any], ...]:
    spec, ratio = net.spec, recipe.geometry.fine
    s, box = _crop(places, _crop_side(net), ratio, rng)
    pixels = scenes[s].image.read_scaled(box.scale(spec.stride).expand(spec.margin), recipe.geometry.scan_downsample)
    fine_box = box.scale(ratio)
    target, valid = pooled(part_of(targets[s], fine_box), scenes[s].known(fine_box), ratio)
    turn = recipe.turn(rng)
    return (
        recipe.relit(turn.maps(recipe.planes(pixels)), rng),
        turn.maps(target[None]),
        turn.maps(valid.astype(np.float32)[None]),
    )


def _crop_side(net: Base) -> int:
    """Cells of a crop; of nets of large strides fewer, which are as many pixels."""
    side = min(_CROP, _CROP_PIXELS // net.spec.stride)
    return ceil_div(side, net.spec.align) * net.spec.align


def _crop(
    places: tuple[NDArray[np.int64], NDArray[np.int64]], side: int, ratio: int, rng: np.random.Generator
) -> tuple[int, Box]:
    """A scene and a block of its cells, each of `ratio` fine cells: half of them around a find, half anywhere."""
    found, parts = places
    if len(found) and rng.random() < 0.5:
        s, *middle = found[rng.integers(len(found))].tolist()
        corner = np.array(middle) // ratio - rng.integers(side // 12, side - side // 12, 2)
    else:
        s, *part = parts[rng.integers(len(parts))].tolist()
        corner = (np.array(part) * PART + rng.integers(0, PART, 2)) // ratio - side // 2
    y, x = corner.tolist()
    return s, Box(y, x, y + side, x + side)


def _answer_loss(out: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy with the refine net's answer, per find."""
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(out.float(), target, reduction="none")
    return (entropy * valid).sum() / (target * valid).sum().clamp(min=1.0)
