"""Adapters: a call on a batch of tiles, with what is known of the model behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coarse2fine.plugins import Registry

Kind = Literal["boxes", "map", "classes", "vectors"]
"""Form of an expert's answer for a tile."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Adapter:
    """A model of another library behind one call.

    Parameters
    ----------
    call : callable
        Takes tiles, uint8 (n, h, w, 3), RGB; returns any of the forms that `coarse2fine.experts.answers` reads.
    kind : {"boxes", "map", "classes", "vectors"}, optional
        Form of the answer, if the model tells.
    labels : tuple of str, optional
        Names of its classes, if the model tells.
    sha256 : str
        Hash of the weights, or of the code; empty if there is none.
    module : object, optional
        The ``torch.nn.Module`` inside, whose multiply-adds can be counted.
    batch : int, optional
        Most tiles that the model takes at once.
    confidence : float, optional
        Least score of what it returns, if it has a threshold of its own.
    """

    call: Callable[[Pixels], Any]
    kind: Kind | None = None
    labels: tuple[str, ...] | None = None
    sha256: str = ""
    module: Any = None
    batch: int | None = None
    confidence: float | None = None


Build = Callable[..., Adapter]

_HOMES = {
    name: f"coarse2fine.experts.adapters.{module}"
    for name, module in (
        ("onnx", "onnx"),
        ("pt2", "torch_program"),
        ("sahi", "sahi"),
        ("timm", "timm"),
        ("torchvision", "torchvision"),
        ("ultralytics", "ultralytics"),
    )
}
_ADAPTERS: Registry[Build] = Registry("coarse2fine.experts", _HOMES)


def register_expert(prefix: str, build: Build) -> None:
    """Register an adapter: experts are then made by texts that begin with its prefix, see `coarse2fine.expert`.

    Parameters
    ----------
    prefix : str
        Prefix of the text, before a colon: a Python identifier.
    build : callable
        Takes the text after the colon, and the options of `coarse2fine.expert` that it does not know itself, as keyword
        arguments; returns an `Adapter`. If it has parameters named ``kind``, ``side`` or ``confidence``, it also gets
        the kind and the confidence that the user gave, or None, and the side of the tiles with their context.

    Notes
    -----
    A package that its user does not import registers through an entry point of the group ``coarse2fine.experts``: the
    entry point's name is the prefix, its value a module that calls this function.

    Raises
    ------
    ValueError
        If the prefix is no identifier, or `build` cannot be called.
    """
    if not prefix.isidentifier() or not callable(build):
        raise ValueError(f"expected an identifier and a function that builds an adapter, got {prefix!r} and {build!r}")
    _ADAPTERS.register(prefix, build)


def find_adapter(prefix: str) -> Build | None:
    """The function registered for a prefix; None if there is none."""
    return _ADAPTERS.find(prefix)
