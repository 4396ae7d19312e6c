"""Adapter for timm's encoders, which give a vector of each tile, and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch.nn.functional import interpolate

from coarse2fine.experts.adapter import Adapter, Kind, Pixels, register_expert
from coarse2fine.experts.adapters.torch_module import normaliser
from coarse2fine.experts.adapters.weights import (
    file_hash,
    load_weights,
    need_weights,
    not_downloaded,
    place,
    weights_hash,
)
from coarse2fine.experts.errors import ExpertError


def build(
    name: str,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    kind: Kind | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    background: int | None = None,
    device: str | None = None,
    **create: Any,
) -> Adapter:
    """Adapter of a model by its name in timm.

    Parameters
    ----------
    name : str
        Such as ``resnet18``, or ``hf-hub:OWNER/NAME``.
    weights : str
        File of a state_dict, "pretrained", or "none" for random weights.
    num_classes : int, optional
        Classes of the weights; 0 for those of an encoder without a classifier.
    kind, mean, std, background, device
        See `adapt`.
    **create
        Other options of ``timm.create_model``, such as ``img_size`` and ``dynamic_img_size``.

    Raises
    ------
    ExpertError
        If the model is unknown, or the weights cannot be had.
    """
    weights = need_weights(weights, f"timm:{name}")
    local = Path(weights).is_file()
    if not local and weights not in ("none", "pretrained"):
        raise ExpertError(f"no file {weights!r} of weights; give one, 'pretrained' or 'none'")
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    try:
        net = timm.create_model(name, pretrained=weights == "pretrained", **sizes, **create)
    except OSError as error:
        raise not_downloaded(f"timm:{name}", error) from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExpertError(f"timm cannot make {name} ({error!s:.300})") from error
    if local:
        load_weights(net, weights)
    made = adapt(net, kind=kind, mean=mean, std=std, background=background, device=device)
    return replace(made, sha256=file_hash(weights)) if local else made


def adapt(
    net: Any,
    *,
    kind: Kind | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    background: int | None = None,
    device: str | None = None,
) -> Adapter:
    """Adapter of a net of timm.

    A net that takes images of one size only gets tiles resized to it, bicubic with antialiasing.

    Parameters
    ----------
    net : nn.Module
    kind : {"classes", "vectors"}, optional
        By default "classes" if the net has any, else "vectors": what it gives before its classifier.
    mean, std : sequence of float, optional
        Normalisation of pixels in 0..1; by default that of its weights.
    background : int, optional
        Number of a class that is no find, which is left out of the softmax's probabilities. One class alone gets the
        sigmoid.
    device : str, optional
        By default an accelerator if there is one.

    Raises
    ------
    ExpertError
        If the kind is another, or a class is unknown.
    """
    where = place(device)
    net = net.eval().to(where)
    kind = kind or ("classes" if net.num_classes else "vectors")
    if kind not in ("classes", "vectors") or (kind == "classes" and not net.num_classes):
        raise ExpertError(f"{type(net).__name__} of timm gives classes or vectors, not {kind}")
    if background is not None and not 0 <= background < net.num_classes:
        raise ExpertError(f"expected a background from 0 to {net.num_classes - 1}, got {background}")
    config = timm.data.resolve_model_data_config(net)
    prepare, size = normaliser(mean or config["mean"], std or config["std"], where), _size(net)
    kept = [number for number in range(net.num_classes) if number != background]

    def call(pixels: Pixels) -> Any:
        with torch.inference_mode():
            x = prepare(pixels)
            if size is not None and x.shape[-1] != size:
                x = interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
            if kind == "vectors":
                return net.forward_head(net.forward_features(x), pre_logits=True)
            logits = net(x).float()
            return torch.sigmoid(logits) if net.num_classes == 1 else torch.softmax(logits, dim=1)[:, kept]

    labels = tuple(_label(net.num_classes, number) for number in kept) if kind == "classes" else None
    return Adapter(call, kind=kind, labels=labels, sha256=weights_hash(net), module=net)


def _size(net: Any) -> int | None:
    """The only side of images that a net takes; None if it takes several."""
    patches = getattr(net, "patch_embed", None)
    if patches is not None and getattr(patches, "strict_img_size", False):
        return int(patches.img_size[0])
    return None


def _label(count: int, number: int) -> str:
    """Name of a class: ImageNet's if there are a thousand."""
    if count == 1000:
        return str(timm.data.ImageNetInfo().index_to_description(number))
    return f"class {number}"


register_expert("timm", build)
