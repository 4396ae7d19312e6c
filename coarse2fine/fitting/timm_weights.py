"""A network of timm as the base of a model: where its weights come from, and what they expect of their input."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from coarse2fine.models.backbone import Backbone, BackboneSpec, design
from coarse2fine.models.errors import ModelError
from coarse2fine.models.timm_text import parse_network

Weights = str | os.PathLike[str] | None
NO_WEIGHTS = "none"


def make_backbone(
    text: str,
    weights: Weights,
    *,
    channels: int,
    stride: int,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
) -> Backbone:
    """A network of timm with its weights, and a neck and a head yet to be trained.

    Parameters
    ----------
    text : str
        ``"timm:NAME?argument=value&argument=value"``. The arguments are the network's own, but `mean` and `std`, of
        pixels in 0..1, each one number or one for each of three channels with commas between, are what its weights
        expect of their input, where that is not what timm says.
    weights : path, "none" or None
        A .safetensors or .pth file; "none" for random weights; by default those of timm's hub.
    channels : int
        Channels of the images: 1 or 3. RGB weights are adapted to grey images.
    stride : int
        Input pixels from one cell to the next.
    mean, std : ndarray, float32, (c,)
        The model's normalisation. The network's own is applied inside it; random weights take the model's.

    Raises
    ------
    ModelError
        If the network or its weights cannot be had; the message says what to do.
    """
    name, arguments = parse_network(text)
    expected = {key: _numbers(key, arguments.pop(key), channels) for key in ("mean", "std") if key in arguments}
    spec = design(channels, name, arguments, stride)
    if weights is None:
        net = _from_hub(spec)
    else:
        net = Backbone(spec)
        if weights != NO_WEIGHTS:
            _load(net, Path(weights))
    if expected or weights != NO_WEIGHTS:
        usual: Any = net.network.pretrained_cfg
        own = {key: expected.get(key, _fitted(usual[key], channels)) for key in ("mean", "std")}
        net.expect(torch.from_numpy(mean), torch.from_numpy(std), own["mean"], own["std"])
    return net


def _from_hub(spec: BackboneSpec) -> Backbone:
    try:
        return Backbone(spec, pretrained=True)
    except Exception as error:  # the hub's clients raise errors of many kinds
        raise ModelError(
            f"the weights of {spec.name} could not be had from timm's hub nor from its cache here ({error}); "
            "give weights that are here (base_weights=PATH, a .safetensors or .pth file by timm's names), "
            f"start from random ones (base_weights={NO_WEIGHTS!r}), or leave base out for the built-in net"
        ) from error


def _load(net: Backbone, path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"no weights at {path}: expected a .safetensors or .pth file, or {NO_WEIGHTS!r}")
    try:
        net.load_network(_read(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint; nothing in it is executed."""
    from timm.models import load_state_dict  # noqa: PLC0415 - slow to import

    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        cause = str(error).partition(". ")[0]  # what follows is advice on loading by hand
        raise ModelError(f"cannot be read as plain weights ({cause}); save them as .safetensors") from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError("expected a mapping of names to tensors; save the network's state_dict() as .safetensors")
    return dict(state)


def _numbers(key: str, text: str, channels: int) -> Tensor:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not np.isfinite(numbers).all() or (key == "std" and min(numbers) <= 0):
        positive = " positive" if key == "std" else ""
        raise ModelError(f"{key} of a base must be one{positive} number or three, such as {key}=0.5; got {text!r}")
    return _fitted(numbers, channels)


def _fitted(numbers: list[float] | tuple[float, ...], channels: int) -> Tensor:
    """A number for each channel; grey takes the mean of RGB."""
    whole = torch.tensor(numbers, dtype=torch.float32)
    return whole.expand(channels) if len(whole) == 1 else whole if channels == len(whole) else whole.mean()[None]
