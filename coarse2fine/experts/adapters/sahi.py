"""Adapter for SAHI's detection models, which bring detectron2, MMDetection, Hugging Face and others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from coarse2fine.experts.adapter import Adapter, Pixels, register_expert
from coarse2fine.experts.adapters.weights import file_hash, library, weights_hash
from coarse2fine.experts.errors import ExpertError


def build(
    kind_of_model: str, *, model_path: str | None = None, confidence: float | None = None, **options: Any
) -> Adapter:
    """Adapter of a model that ``sahi.AutoDetectionModel.from_pretrained`` makes.

    Parameters
    ----------
    kind_of_model : str
        SAHI's ``model_type``, such as ``torchvision``, ``mmdet``, ``detectron2``, ``huggingface`` or ``ultralytics``.
    model_path : str, optional
        File of its weights, or what its library takes for it.
    confidence : float, optional
        Taken as SAHI's ``confidence_threshold`` if that is not among the options.
    **options
        Of ``from_pretrained``, such as ``config_path``, ``device``, ``image_size`` and ``category_mapping``.

    Raises
    ------
    ExpertError
        If SAHI or the library of the model is missing, or the model cannot be made.
    """
    auto = library("sahi", "sahi").AutoDetectionModel
    if confidence is not None:
        options = {"confidence_threshold": confidence, **options}
    try:
        model = auto.from_pretrained(model_type=kind_of_model, model_path=model_path, **options)
    except Exception as error:
        raise ExpertError(
            f"SAHI cannot make sahi:{kind_of_model} with {model_path=} ({type(error).__name__}: {error!s:.300}); "
            "the library of that model must be installed, and its weights be a local file if there is no network"
        ) from error
    made = adapt(model)
    return replace(made, sha256=file_hash(model_path)) if model_path and Path(model_path).is_file() else made


def adapt(model: Any) -> Adapter:
    """Adapter of a ``sahi.models.base.DetectionModel``.

    Labels are its categories in the order of their numbers. Tiles are given to it as one batch; models of SAHI that
    have no batches run them one by one.

    Parameters
    ----------
    model : DetectionModel
    """
    categories = {int(number): str(name) for number, name in (model.category_mapping or {}).items()}
    places = {number: place for place, number in enumerate(sorted(categories))}
    net = _module(model.model)
    return Adapter(
        lambda pixels: [_boxes(found, places) for found in _predicted(model, pixels)],
        kind="boxes",
        labels=tuple(categories[number] for number in sorted(categories)) or None,
        sha256="" if net is None else weights_hash(net),
        module=net,
        confidence=model.confidence_threshold,
    )


def _module(model: Any) -> Any:
    """The torch module inside a model of SAHI, perhaps one step down; None if there is none."""
    return next((part for part in (getattr(model, "model", None), model) if isinstance(part, nn.Module)), None)


def _predicted(model: Any, pixels: Pixels) -> list[Any]:
    """SAHI's predictions for each tile."""
    tiles = [np.ascontiguousarray(tile) for tile in pixels]
    if hasattr(model, "perform_batch_inference"):
        model.perform_batch_inference(tiles)
        model.convert_original_predictions(
            shift_amount=[[0, 0] for _ in tiles], full_shape=[list(tile.shape[:2]) for tile in tiles]
        )
        found: list[Any] = model.object_prediction_list_per_image
        return found
    found = []
    for tile in tiles:
        model.perform_inference(tile)
        model.convert_original_predictions(shift_amount=[[0, 0]], full_shape=[list(tile.shape[:2])])
        found.append(model.object_prediction_list)
    return found


def _boxes(predictions: list[Any], places: dict[int, int]) -> dict[str, Any] | None:
    """Boxes of a tile, with masks as polygons if there are."""
    if not predictions:
        return None
    number = [each.category.id for each in predictions]
    found: dict[str, Any] = {
        "boxes": [each.bbox.to_xyxy() for each in predictions],
        "scores": [each.score.value for each in predictions],
        "labels": [places.get(n, n) for n in number],
    }
    if any(each.mask is not None for each in predictions):
        found["polygons"] = [_polygon(each.mask) for each in predictions]
    return found


def _polygon(mask: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Corners of the longest ring of a mask of SAHI; none if there is none."""
    rings = mask.segmentation if mask is not None else []
    longest: list[float] = max(rings, key=len, default=[])
    return np.asarray(longest, np.float32).reshape(-1, 2)


register_expert("sahi", build)
