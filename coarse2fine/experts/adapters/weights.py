"""Libraries and weights of adapters: loading, hashes, and errors that say what is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from coarse2fine.experts.errors import ExpertError

# Names under which trainers keep the parameters in a file, beside epochs and optimisers.
_NESTED = ("state_dict", "model_state_dict", "model")


def library(name: str, extra: str) -> Any:
    """An optional library.

    Parameters
    ----------
    name : str
        Its module.
    extra : str
        The extra of this package that brings it.

    Raises
    ------
    ExpertError
        If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ExpertError(
            f"this expert needs {name.partition('.')[0]}, which cannot be imported ({error}): "
            f"pip install 'coarse2fine[{extra}]'"
        ) from error


def place(device: str | None) -> torch.device:
    """The device of a name; by default an accelerator if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Fill a net from a file of parameters, which is read without running code.

    Parameters
    ----------
    net : nn.Module
    path : str or Path
        A safetensors file, or one that ``torch.save`` made of a ``state_dict``.

    Raises
    ------
    ExpertError
        If the file cannot be read, holds more than tensors, or does not fit the net.
    """
    file_hash(path)
    try:
        if Path(path).suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ExpertError(
            f"the weights {path} cannot be read as tensors; save them by torch.save(net.state_dict(), ...) or as "
            f"safetensors ({str(error).splitlines()[0]:.200})"
        ) from error
    if isinstance(state, Mapping):
        state = next((state[key] for key in _NESTED if isinstance(state.get(key), Mapping)), state)
    try:
        net.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ExpertError(
            f"the weights {path} do not fit {type(net).__name__}: is num_classes that of training? ({error!s:.400})"
        ) from error


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file of weights.

    Raises
    ------
    ExpertError
        If it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ExpertError(f"the expert's file {path} cannot be read ({error.strerror or error})") from error


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of a net's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().reshape(-1).view(torch.uint8).numpy()).tobytes())
    return digest.hexdigest()


def need_weights(weights: str | None, name: str) -> str:
    """The weights that were asked for; an ExpertError if none were."""
    if weights is None:
        raise ExpertError(
            f"{name} needs weights=: a file of its state_dict (.pt, .pth, .safetensors), 'pretrained' for those that "
            "its library downloads, or 'none' for random ones, for trials"
        )
    return weights


def not_downloaded(name: str, error: Exception) -> ExpertError:
    """The error if a library cannot download weights."""
    return ExpertError(
        f"the pretrained weights of {name} are not on this machine and could not be downloaded "
        f"({type(error).__name__}: {error!s:.200}); give weights= a file of its state_dict"
    )
