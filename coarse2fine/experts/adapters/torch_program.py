"""Adapter for programs of `torch.export` (.pt2) and TorchScript, which need none of the code that made them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from coarse2fine.experts.adapter import Adapter, Kind, Pixels, register_expert
from coarse2fine.experts.adapters.torch_module import Activation, activated, check_activation, normaliser
from coarse2fine.experts.adapters.weights import file_hash, place
from coarse2fine.experts.errors import ExpertError


def build(
    path: str,
    *,
    kind: Kind | None = None,
    side: int,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    activation: Activation | None = None,
    device: str | None = None,
) -> Adapter:
    """Adapter of a program that takes (n, 3, h, w) floats.

    Parameters
    ----------
    path : str
        File of ``torch.export.save``, or of ``torch.jit.save``.
    kind : {"boxes", "map", "classes", "vectors"}, optional
        By default "map".
    side : int
        Side of a tile with its context.
    mean, std, activation, device
        See `coarse2fine.experts.adapters.torch_module.adapt`.

    Raises
    ------
    ExpertError
        If the file cannot be read, or takes images of another size.
    """
    hashed = file_hash(path)
    where = place(device)
    prepare = normaliser(mean, std, where)
    kind = kind or "map"
    activation = activation or ("sigmoid" if kind in ("map", "classes") else "none")
    check_activation(activation)
    net, batch = _loaded(path, side, where)

    def call(pixels: Pixels) -> Any:
        step = batch or len(pixels)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(pixels), step):
                part = pixels[start : start + step]
                full = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
                out = net(prepare(full))
                if kind == "boxes":
                    parts.extend(list(out)[: len(part)])
                else:
                    parts.extend(activated(out, activation)[: len(part)])
        return parts if kind == "boxes" else np.stack(parts)

    return Adapter(call, kind=kind, sha256=hashed, module=net, batch=batch)


def _loaded(path: str, side: int, where: torch.device) -> tuple[Any, int | None]:
    """The program on a device, and the batch that it takes; None for any."""
    if _is_script(path):
        return torch.jit.load(path, map_location=where).eval(), None  # type: ignore[no-untyped-call]
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise ExpertError(
            f"{path} is no program of torch.export.save and no TorchScript ({error!s:.200}); for a state_dict name "
            "the function that makes the net: 'package.module:function'"
        ) from error
    names = program.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in names]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ExpertError(f"{path} takes inputs of the shapes {[tuple(s) for s in shapes]}; expected one (n, 3, h, w)")
    batch, _, height, width = (size if isinstance(size, int) else None for size in shapes[0])
    if (height or side, width or side) != (side, side):
        raise ExpertError(
            f"{path} takes images of {height} x {width} px, but tiles have {side} px with their context: choose "
            f"tile + 2 * context = {height}, or export it with dynamic_shapes"
        )
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415 (slow to import)

    return move_to_device_pass(program, where).module(), batch


def _is_script(path: str) -> bool:
    """Whether a file is TorchScript, by the names in its archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


register_expert("pt2", build)
