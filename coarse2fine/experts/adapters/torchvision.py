"""Adapter for torchvision's detection and segmentation models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coarse2fine.experts.adapter import Adapter, Pixels, register_expert
from coarse2fine.experts.adapters.torch_module import activated, normaliser
from coarse2fine.experts.adapters.weights import (
    file_hash,
    library,
    load_weights,
    need_weights,
    not_downloaded,
    place,
    weights_hash,
)
from coarse2fine.experts.errors import ExpertError

# The normalisation of torchvision's segmentation weights; its detectors normalise themselves.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(
    name: str,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    min_size: int | None = None,
    device: str | None = None,
    mean: Sequence[float] = _MEAN,
    std: Sequence[float] = _STD,
) -> Adapter:
    """Adapter of a model by its name in torchvision, such as ``fasterrcnn_mobilenet_v3_large_320_fpn``.

    Parameters
    ----------
    name : str
    weights : str
        File of a state_dict, "none" for random weights, "pretrained", or a name such as ``COCO_V1``.
    num_classes : int, optional
        Classes of the model, its background included; by default those of torchvision's weights.
    min_size, device, mean, std
        See `adapt`.

    Raises
    ------
    ExpertError
        If torchvision is missing, the name is unknown or of no such model, or the weights cannot be had.
    """
    models = library("torchvision", "torchvision").models
    weights = need_weights(weights, f"torchvision:{name}")
    known = models.list_models(module=models.detection) + models.list_models(module=models.segmentation)
    if name not in known:
        raise ExpertError(
            f"torchvision has no detection or segmentation model {name!r}; it has {', '.join(known)}. For classifiers "
            "and encoders use timm:NAME"
        )
    local = Path(weights).is_file()
    choice = None if weights == "none" or local else _choice(models, name, weights)
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    try:
        net = models.get_model(name, weights=choice, weights_backbone=None, **sizes)
    except OSError as error:
        raise not_downloaded(f"torchvision:{name}", error) from error
    except ValueError as error:
        raise ExpertError(f"torchvision:{name} cannot be made with {weights=} and {num_classes=}: {error}") from error
    if local:
        load_weights(net, weights)
    categories = choice.meta.get("categories") if choice is not None else None
    made = adapt(net, min_size=min_size, device=device, mean=mean, std=std, categories=categories)
    return replace(made, sha256=file_hash(weights)) if local else made


def adapt(
    net: Any,
    *,
    min_size: int | None = None,
    device: str | None = None,
    mean: Sequence[float] = _MEAN,
    std: Sequence[float] = _STD,
    categories: Sequence[str] | None = None,
) -> Adapter:
    """Adapter of a detection or segmentation net.

    Parameters
    ----------
    net : nn.Module
        Of ``torchvision.models.detection``, which normalises and resizes itself, or of ``.segmentation``.
    min_size : int, optional
        Side to which a detector resizes tiles; by default that of the tiles, which are then not resized. SSD resizes
        to its own size in any case.
    device : str, optional
        By default an accelerator if there is one.
    mean, std : sequence of float
        Normalisation of pixels in 0..1 for segmentation nets.
    categories : sequence of str, optional
        Names of the classes, the background included.
    """
    where = place(device)
    net = net.eval().to(where)
    if hasattr(net, "transform"):
        return _detector(net, min_size, where, categories)
    prepare = normaliser(mean, std, where)

    def call(pixels: Pixels) -> Any:
        with torch.inference_mode():
            return activated(net(prepare(pixels)), "softmax")

    convolutions = [part for part in net.classifier.modules() if isinstance(part, nn.Conv2d)]
    labels = _names(categories, convolutions[-1].out_channels, 1)
    return Adapter(call, kind="map", labels=labels, sha256=weights_hash(net), module=net)


def _detector(net: Any, min_size: int | None, where: torch.device, categories: Sequence[str] | None) -> Adapter:
    """Adapter of a detector; the background of those that have one is not a label."""
    detection = library("torchvision.models.detection", "torchvision")
    background = 1 if isinstance(net, (detection.FasterRCNN, detection.ssd.SSD)) else 0

    def call(pixels: Pixels) -> list[dict[str, Any]]:
        side = min_size or pixels.shape[1]
        net.transform.min_size, net.transform.max_size = (side,), side
        with torch.inference_mode():
            x = torch.from_numpy(pixels).to(where).permute(0, 3, 1, 2).float().div_(255)
            return [{**found, "labels": found["labels"] - background} for found in net(list(x))]

    labels = _names(categories, _classes(net), background)
    return Adapter(call, kind="boxes", labels=labels, sha256=weights_hash(net), module=net)


def _classes(detector: Any) -> int:
    """Classes of a detector, its background included."""
    if hasattr(detector, "roi_heads"):
        return int(detector.roi_heads.box_predictor.cls_score.out_features)
    head = detector.head.classification_head
    return int(getattr(head, "num_classes", 0) or head.num_columns)


def _names(categories: Sequence[str] | None, count: int, first: int) -> tuple[str, ...]:
    """Names of the classes from `first` on."""
    if categories is not None and len(categories) == count:
        return tuple(categories[first:])
    return tuple(f"class {number}" for number in range(first, count))


def _choice(models: Any, name: str, weights: str) -> Any:
    """Torchvision's own weights by name."""
    known = models.get_model_weights(name)
    try:
        return known["DEFAULT" if weights == "pretrained" else weights]
    except KeyError as error:
        raise ExpertError(
            f"no file {weights!r}, and torchvision has no such weights of {name}; give a file of a state_dict, 'none', "
            f"'pretrained', or one of {', '.join(w.name for w in known)}"
        ) from error


register_expert("torchvision", build)
