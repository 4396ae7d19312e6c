"""Adapter for a `torch.nn.Module` whose logits are a map or classes, or that returns vectors or boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coarse2fine.experts.adapter import Adapter, Kind, Pixels
from coarse2fine.experts.adapters.weights import place, weights_hash
from coarse2fine.experts.errors import ExpertError

Activation = Literal["sigmoid", "softmax", "none"]


def adapt(
    module: nn.Module,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    activation: Activation | None = None,
    device: str | None = None,
    kind: Kind | None = None,
) -> Adapter:
    """Adapter of a net.

    Parameters
    ----------
    module : nn.Module
        Takes (n, 3, h, w) floats; returns logits (n, k, h, w) or (n, k), vectors (n, d), or boxes in a form that
        `coarse2fine.experts.answers` reads.
    mean, std : sequence of float
        Normalisation of pixels in 0..1.
    activation : {"sigmoid", "softmax", "none"}, optional
        From logits to probabilities; by default "sigmoid" for maps and classes. With "softmax" class 0 is the
        background, which is left out.
    device : str, optional
        By default an accelerator if there is one.
    kind : {"boxes", "map", "classes", "vectors"}, optional
        By default "map".

    Raises
    ------
    ExpertError
        If the normalisation or the activation is unknown.
    """
    where = place(device)
    net = module.eval().to(where)
    kind = kind or "map"
    prepare = normaliser(mean, std, where)
    if activation is None:
        activation = "sigmoid" if kind in ("map", "classes") else "none"
    check_activation(activation)

    def call(pixels: Pixels) -> Any:
        with torch.inference_mode():
            out = net(prepare(pixels))
            return out if kind == "boxes" else activated(out, activation)

    return Adapter(call, kind=kind, sha256=weights_hash(net), module=net)


def normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Pixels], Tensor]:
    """Function from tiles, uint8 (n, h, w, 3), to floats (n, 3, h, w) of a normalisation.

    Parameters
    ----------
    mean, std : sequence of float
        Of pixels in 0..1, for each channel.
    device : torch.device

    Raises
    ------
    ExpertError
        If they are not three numbers each, or `std` is not above 0.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ExpertError(
            f"expected mean and std of pixels in 0..1, three numbers each and std above 0, got {mean} and {std}"
        )
    shift, scale = (torch.tensor(list(values), device=device).view(1, -1, 1, 1) for values in (mean, std))

    def normalised(pixels: Pixels) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float().div_(255)
        return (x - shift) / scale

    return normalised


def check_activation(activation: str) -> None:
    """Raise an ExpertError if an activation is unknown."""
    if activation not in get_args(Activation):
        raise ExpertError(f'expected the activation "sigmoid", "softmax" or "none", got {activation!r}')


def activated(out: Any, activation: Activation) -> NDArray[np.float32]:
    """Probabilities from the output of a net; the first tensor of a tuple or a mapping."""
    if isinstance(out, Mapping):
        out = next(iter(out.values()))
    if isinstance(out, (tuple, list)):
        out = out[0]
    found: Tensor = out.float()
    if activation == "sigmoid":
        found = torch.sigmoid(found)
    elif activation == "softmax":
        found = torch.softmax(found, dim=1)[:, 1:]
    values: NDArray[np.float32] = found.cpu().numpy()
    return values
