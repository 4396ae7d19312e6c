"""Adapter for a `torch.nn.Module` whose logits are a map, classes or a detector's dictionaries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coarse2fine.experts.adapter import Adapter

Activation = Literal["sigmoid", "softmax", "none"]


def module_adapter(
    module: nn.Module,
    *,
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
    activation: Activation = "sigmoid",
    device: str | None = None,
) -> Adapter:
    """Adapter of a net.

    Parameters
    ----------
    module : nn.Module
        Takes (n, 3, h, w) floats; returns logits (n, k, h, w) or (n, k).
    mean, std : tuple of float
        Normalisation of pixels in 0..1.
    activation : {"sigmoid", "softmax", "none"}
        From logits to probabilities. With "softmax" class 0 is the background, which is left out.
    device : str, optional
        By default an accelerator if there is one.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = module.eval().to(place)
    shift, scale = (torch.tensor(values, device=place).view(1, -1, 1, 1) for values in (mean, std))

    def call(pixels: NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            x = torch.from_numpy(pixels).to(place).permute(0, 3, 1, 2).float().div_(255)
            out = net((x - shift) / scale)
            return activated(out, activation)

    return Adapter(call, kind="map", sha256=weights_hash(net), module=net)


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


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of a net's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().reshape(-1).view(torch.uint8).numpy()).tobytes())
    return digest.hexdigest()
