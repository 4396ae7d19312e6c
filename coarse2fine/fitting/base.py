"""Training of the base at low resolution on the refine net's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.calibrate import CalibrationSet
from coarse2fine.fitting.crops import Recipe, turn_planes
from coarse2fine.fitting.distillation import DistillationSample, make_samples
from coarse2fine.fitting.geometry import base_spec
from coarse2fine.fitting.optimise import train
from coarse2fine.model import Model
from coarse2fine.models.backbone import Backbone
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.progress import Progress

PRIOR_LOGIT = -4.0
_BATCH = 16
# Base steps per refine-net step: the base is cheap to train and has many samples to learn from.
_LONGER = 4
# Largest added noise, in standard deviations of the scenes' pixels: other cameras have other noise.
_GRAIN = 0.1
# Learning rate of a backbone's neck and head; its stages and the built-in nets use a third of it.
_NEW_RATE = 9e-3


def train_base(
    recipe: Recipe, backbone: Base | None, model: Model, setting: CalibrationSet, bars: Progress, name: str = "base"
) -> Base:
    """Train a base to predict where refining would find something.

    Parameters
    ----------
    recipe : Recipe
    backbone : Base, optional
        Net to fit, changed in place; by default the built-in net of the geometry.
    model : Model
        With a trained refine net and its threshold.
    setting : CalibrationSet
        Scenes, and the refine net's output on them.
    bars : Progress
    name : str
        Name of the progress bars.
    """
    seed = recipe.seed + 1
    torch.manual_seed(seed)
    net = backbone or ConvStack(base_spec(recipe.channels, recipe.geometry, recipe.width), batch_norm=True)
    if net.reader.bias is not None:
        with torch.no_grad():
            net.reader.bias.fill_(PRIOR_LOGIT)
    make = _batches(recipe, make_samples(recipe, net, model, setting, bars.task(f"samples for the {name}")))
    options: dict[str, Any] = {"steps": _LONGER * recipe.steps, "seed": seed, "tick": bars.task(name)}
    if isinstance(net, ConvStack):
        train(net, make, _answer_loss, setting.runtime, **options)
        return net.folded()
    stages = net.stages if isinstance(net, Backbone) else None
    train(net, make, _answer_loss, setting.runtime, rate=_NEW_RATE, slow=stages, **options)
    return net


def _batches(
    recipe: Recipe, samples: Sequence[DistillationSample]
) -> Callable[[np.random.Generator], tuple[Tensor, ...]]:
    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        rows = [_sample(recipe, samples[int(rng.integers(len(samples)))], rng) for _ in range(_BATCH)]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))

    return make


def _sample(recipe: Recipe, sample: DistillationSample, rng: np.random.Generator) -> tuple[NDArray[np.float32], ...]:
    turn = recipe.turn(rng)
    planes = recipe.relit(turn_planes(recipe.planes(sample.pixels), turn), rng)
    grain = rng.normal(0, rng.uniform(0, _GRAIN), planes.shape).astype(np.float32)
    return planes + grain, turn_planes(sample.target, turn), turn_planes(sample.valid.astype(np.float32), turn)


def _answer_loss(out: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy against the refine net's output, per find."""
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(out.float(), target, reduction="none")
    return (entropy * valid).sum() / (target * valid).sum().clamp(min=1.0)
