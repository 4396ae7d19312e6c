"""Going on from a fitted model: its classes, planes, normalisation and weights are where training starts."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coarse2fine.annotations.read import AnnotationError
from coarse2fine.model import Geometry, Model, load_model
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.errors import ModelError
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.protocol import Label
from coarse2fine.remembered import Remembered

SHARE, GENTLE = 1 / 4, 1 / 3
"""Steps, at most, and learning rate, as shares of those of a first fit."""


def load_start(model: Model | str | os.PathLike[str], given: Collection[str]) -> Model:
    """The model to go on from.

    Parameters
    ----------
    model : Model or path
    given : collection of str
        Parameters of the fit that the caller has set although the model decides them.

    Raises
    ------
    ModelError
        If the model was not fitted to annotations, or has several bands of object sizes.
    ValueError
        If parameters are given that the model decides.
    """
    if given:
        raise ValueError(f"{' and '.join(given)} cannot be given with model: the model that goes on decides them")
    start = model if isinstance(model, Model) else load_model(model)
    if not isinstance(start.refiner, DetectionRefiner):
        raise ModelError(f"{start.name} was not fitted to annotations ({start.refiner.kind}): leave out model")
    if start.others:
        raise ModelError(f"{start.name} has {len(start.bands)} bands of object sizes, and only one can go on: fit anew")
    return start


def known_labels(start: Model, found: Sequence[Label]) -> tuple[Label, ...]:
    """The model's classes, among which all annotated ones must be.

    Raises
    ------
    AnnotationError
        If a class is annotated that the model does not know.
    """
    names = [label.name for label in start.labels]
    if unknown := [label.name for label in found if label.name not in names]:
        told = names if start.classifier is None else [*start.classifier.labels]
        raise AnnotationError(
            f"{start.name} does not know {', '.join(unknown)}: its classes are {', '.join(told)}; "
            "fit a new model for other classes, without model="
        )
    return start.labels


def reading(
    start: Model, channels: int | Sequence[int] | None, value_range: tuple[float, float] | None
) -> tuple[int | Sequence[int] | None, tuple[float, float] | None]:
    """Channels and value range in which to read images, the model's own unless others are given."""
    known = Remembered.by(start)
    if known is None:
        return channels, value_range
    if channels is None and known.picked:
        channels = known.channels
    if value_range is None and known.rule == "given":
        value_range = known.value_range
    return channels, value_range


def scanning_net(start: Model, geometry: Geometry) -> Base | None:
    """The model's net that scans in these planes; None if it has none."""
    planes = (geometry.cell, geometry.scan_downsample)
    return next((level.net for level in start.levels if (level.cell, level.downsample) == planes), None)


def trainable(net: Base, x: Tensor) -> Base:
    """A copy to be trained further, which still answers as `net`; `x` as in `unfolded`."""
    return unfolded(net, x) if isinstance(net, ConvStack) else copy.deepcopy(net)


@torch.no_grad()
def unfolded(net: ConvStack, x: Tensor) -> ConvStack:
    """A copy with batch norms that leave its answers as they are.

    Parameters
    ----------
    net : ConvStack
        With folded batch norms.
    x : Tensor, float32, (n, c, h, w)
        A typical input, for the norms' statistics.
    """
    found = ConvStack(net.spec, batch_norm=True)
    layers: Any = zip(net.convs, found.convs, found.norms, strict=True)
    for old, conv, norm in layers:
        conv.weight.copy_(old.weight)
        if not isinstance(norm, nn.BatchNorm2d):
            conv.bias.copy_(old.bias)
            continue
        x = conv(x)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        statistics = {"running_mean": mean, "running_var": variance}
        scale = {"weight": (variance + norm.eps).sqrt(), "bias": old.bias + mean}
        norm.load_state_dict({**norm.state_dict(), **statistics, **scale})
        x = torch.relu_(x + old.bias[:, None, None])
    return found
