"""Loading of a timm network as a base: source of its weights, and their input normalisation."""

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
    """Make a network of timm with its weights, and an untrained neck and head.

    Parameters
    ----------
    text : str
        ``"timm:NAME?argument=value&argument=value"``. The arguments are the network's own, except `mean` and `std`: the
        input normalisation of its weights, if it differs from timm's record. They refer to pixels in 0..1; each is one
        number, or three with commas between.
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
        If the network or its weights are not available; the message gives the remedy.
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
            f"the weights of {spec.name} could not be loaded from timm's hub nor from its local cache ({error}); "
            "give a local file (base_weights=PATH, a .safetensors or .pth file with timm's names), "
            f"start from random weights (base_weights={NO_WEIGHTS!r}), or omit base for the built-in net"
        ) from error


def _load(net: Backbone, path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"no weights at {path}: expected a .safetensors or .pth file, or {NO_WEIGHTS!r}")
    try:
        net.load_network(_read(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; no code in it is executed."""
    from timm.models import load_state_dict  # noqa: PLC0415 - slow to import

    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        cause = str(error).partition(". ")[0]  # the rest is advice on unsafe loading
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
    """One number for each channel; for grey images the mean of RGB."""
    whole = torch.tensor(numbers, dtype=torch.float32)
    return whole.expand(channels) if len(whole) == 1 else whole if channels == len(whole) else whole.mean()[None]
