"""Training of the base at low resolution on the refine net's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coarse2fine.fitting.calibrate import CalibrationSet
from coarse2fine.fitting.crops import Recipe, turn_planes
from coarse2fine.fitting.distillation import Samples, crop_side, held_samples, make_samples
from coarse2fine.fitting.geometry import base_spec
from coarse2fine.fitting.optimise import RATE, outputs, train
from coarse2fine.fitting.resume import GENTLE, scanning_net, trainable
from coarse2fine.models.backbone import Backbone
from coarse2fine.models.base import Base, BaseSpec
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.tiling.orientation import Turn

PRIOR_LOGIT = -4.0
SCAN, SAMPLES = "learning where to look", "choosing samples of it"
"""Names of the steps of training."""
LONGER = 3
"""Base steps per step that the refine net took: the base is cheap to train and has many samples to learn from."""
# Nets that take no orthogonal steps need more of them, and calmer ones.
_LONGER_TUNED, _BATCH, _TUNED_BATCH = 4, 4, 16
# Largest added noise, in standard deviations of the scenes' pixels: other cameras have other noise.
_GRAIN = 0.1
# Learning rate of a backbone's neck and head; its stages and the built-in nets use a third of it.
_NEW_RATE = 9e-3


def train_base(
    recipe: Recipe, backbone: Base | None, setting: CalibrationSet, bars: Progress, name: str = SCAN
) -> Base:
    """Train a base to predict where refining would find something.

    Parameters
    ----------
    recipe : Recipe
    backbone : Base, optional
        Net to fit, changed in place; by default the built-in net of the geometry.
    setting : CalibrationSet
        Scenes, and the refine net's output on them and on rescaled copies.
    bars : Progress
    name : str
        Name of the step of training.
    """
    seed = recipe.seed + 1
    torch.manual_seed(seed)
    old = None if recipe.start is None else scanning_net(recipe.start, recipe.geometry)
    net = old or backbone or ConvStack(base_spec(recipe.channels, recipe.geometry, recipe.width), batch_norm=True)
    samples = make_samples(recipe, net.spec, setting.areas, bars.task(SAMPLES))
    if old is not None:
        held = held_samples(recipe, net.spec, setting.areas)
        net = trainable(old, recipe.plain(held.pixels[:_TUNED_BATCH]))
    elif net.reader.bias is not None:
        with torch.no_grad():
            net.reader.bias.fill_(PRIOR_LOGIT)
    built_in, share = isinstance(net, ConvStack), 1.0 if old is None else GENTLE
    make = _batches(recipe, samples, _BATCH if built_in else _TUNED_BATCH)
    steps = (LONGER if built_in else _LONGER_TUNED) * recipe.steps
    options: dict[str, Any] = {"steps": steps, "seed": seed, "tick": bars.task(name)}
    # A new base takes all its steps: ended at the plateau of its loss, it needed more area for the same recall.
    if old is not None:
        options["check"] = _held_loss(recipe, held, setting.runtime)
    if isinstance(net, ConvStack):
        train(net, make, _answer_loss, setting.runtime, orthogonal=True, rate=share * RATE, **options)
        return net.folded()
    stages = net.stages if isinstance(net, Backbone) else None
    train(net, make, _answer_loss, setting.runtime, rate=share * _NEW_RATE, slow=stages, **options)
    return net


def batch_macs(spec: BaseSpec) -> int:
    """Multiply-adds of a base for a batch of crops."""
    return _BATCH * spec.macs(crop_side(spec), crop_side(spec))


def _batches(recipe: Recipe, samples: Samples, size: int) -> Callable[[np.random.Generator], tuple[Tensor, ...]]:
    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        rows = rng.integers(len(samples), size=size)
        turns = [recipe.turn(rng) for _ in rows]
        alike = [(turn, rows[[each == turn for each in turns]]) for turn in dict.fromkeys(turns)]
        return tuple(torch.cat(parts) for parts in zip(*(turned(*each, rng) for each in alike), strict=True))

    def turned(turn: Turn, rows: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, ...]:
        x = recipe.batch(samples.pixels[rows], turn, rng, _GRAIN)
        target, valid = (turn_planes(each[rows], turn) for each in (samples.target, samples.valid))
        return x, torch.from_numpy(target), torch.from_numpy(valid).float()

    return make


def _held_loss(recipe: Recipe, samples: Samples, runtime: Runtime) -> Callable[[nn.Module], float]:
    """Loss of a net on samples as they are."""

    def loss(net: nn.Module) -> float:
        return float(_answer_loss(outputs(net, x, _BATCH, runtime), target, valid))

    x = recipe.plain(samples.pixels)
    target, valid = torch.from_numpy(samples.target), torch.from_numpy(samples.valid).float()
    return loss


def _answer_loss(out: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy against the refine net's output, per find."""
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(out.float(), target, reduction="none")
    return (entropy * valid).sum() / (target * valid).sum().clamp(min=1.0)
