"""Adapter for Ultralytics models. Ultralytics is under the AGPL: it is imported only if the user names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.experts.adapter import Adapter, Pixels, register_expert
from coarse2fine.experts.adapters.weights import file_hash, library, weights_hash
from coarse2fine.experts.errors import ExpertError

_CONFIDENCE = 0.25
_CONFIGURATIONS = (".yaml", ".yml")


def build(path: str, *, task: str | None = None, confidence: float | None = None, **predict: Any) -> Adapter:
    """Adapter of a file of weights, or of the YAML of an architecture, whose weights are then random.

    Parameters
    ----------
    path : str
        A local file, such as ``best.pt`` or an export; a ``.pt`` is a pickle, which runs code as it is loaded.
    task : str, optional
        Of Ultralytics, for exports that do not tell.
    confidence, **predict
        See `adapt`.

    Raises
    ------
    ExpertError
        If Ultralytics or the file is missing.
    """
    yolo = library("ultralytics", "ultralytics").YOLO
    configured = Path(path).suffix in _CONFIGURATIONS
    if not configured and not Path(path).exists():
        raise ExpertError(
            f"there is no file {path!r}; nothing is downloaded for ultralytics:PATH: give the path of your weights"
        )
    made = adapt(yolo(path, task=task), confidence=confidence, **predict)
    return made if configured or Path(path).is_dir() else replace(made, sha256=file_hash(path))


def adapt(model: Any, *, confidence: float | None = None, **predict: Any) -> Adapter:
    """Adapter of an ``ultralytics`` model: boxes with masks or oriented boxes as polygons, or classes.

    Parameters
    ----------
    model : ultralytics.engine.model.Model
    confidence : float, optional
        Taken as ``conf`` if that is not among the options.
    **predict
        Options of its ``predict``, such as ``conf``, ``iou``, ``classes``, ``max_det``, ``half`` and ``device``.
        ``imgsz`` is the side of the tiles unless given; Ultralytics rounds it up to a multiple of its stride, 32, so
        take tiles whose side with context is one, or they are enlarged.
    """
    least = predict.pop("conf", None) or confidence or model.overrides.get("conf") or _CONFIDENCE
    classifies = model.task == "classify"

    def call(pixels: Pixels) -> Any:
        tiles = [np.ascontiguousarray(tile[..., ::-1]) for tile in pixels]  # Ultralytics takes BGR
        found = model.predict(tiles, **{"imgsz": pixels.shape[1], "verbose": False, "conf": least, **predict})
        return np.stack([each.probs.data.float().cpu().numpy() for each in found]) if classifies else found

    net = getattr(model, "model", None)
    net = net if hasattr(net, "state_dict") else None
    return Adapter(
        call,
        kind="classes" if classifies else "boxes",
        labels=tuple(str(name) for _, name in sorted(model.names.items())),
        sha256="" if net is None else weights_hash(net),
        module=net,
        confidence=None if classifies else least,
    )


register_expert("ultralytics", build)
