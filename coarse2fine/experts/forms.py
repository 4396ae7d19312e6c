"""Forms in which libraries return objects: their parts under one set of names, without importing the libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coarse2fine.experts.errors import ExpertError

_PARTS = {
    "boxes": ("boxes", "xyxy", "bbox"),
    "scores": ("scores", "confidence"),
    "labels": ("labels", "class_id", "classes"),
    "masks": ("masks", "mask"),
    "polygons": ("polygons", "outlines"),
}
# Under this name supervision keeps the corners of oriented boxes.
_ORIENTED = "xyxyxyxy"


def is_one_answer(answer: Any) -> bool:
    """Whether an answer is that of one tile, not a sequence of answers."""
    return (
        isinstance(answer, Mapping) or not hasattr(answer, "__len__") or hasattr(answer, "xyxy") or _is_result(answer)
    )


def parts_of(item: Any) -> dict[str, Any] | None:
    """The parts of one tile's answer: boxes, scores, labels, masks and polygons, those that it has.

    Parameters
    ----------
    item : object
        A mapping or an object, see `coarse2fine.experts.answers.read_boxes`.

    Returns
    -------
    dict or None
        None if it is an array or a sequence.
    """
    if _is_result(item):
        return _of_result(item)
    if isinstance(item, Mapping):
        return _of_segments(item) if "segments_info" in item else _picked(item.get)
    if isinstance(item, (np.ndarray, list, tuple)) or hasattr(item, "detach"):
        return None
    found = _picked(lambda name: getattr(item, name, None))
    data = getattr(item, "data", None)
    if isinstance(data, Mapping) and data.get(_ORIENTED) is not None:
        found["polygons"] = data[_ORIENTED]
    return found


def _picked(get: Any) -> dict[str, Any]:
    """The first value that is there under the names of each part."""
    found = {part: next((v for name in names if (v := get(name)) is not None), None) for part, names in _PARTS.items()}
    return {part: value for part, value in found.items() if value is not None}


def _is_result(item: Any) -> bool:
    """Whether an answer is a result of Ultralytics: it has oriented boxes, or boxes with parts."""
    return hasattr(item, "orig_shape") and (hasattr(item, "obb") or hasattr(item, "boxes"))


def _of_result(item: Any) -> dict[str, Any]:
    oriented = getattr(item, "obb", None)
    boxes = item.boxes if oriented is None else oriented
    if boxes is None:
        raise ExpertError("the expert returned a result of Ultralytics without boxes: is it a classifier?")
    found = {"boxes": boxes.xyxy, "scores": boxes.conf, "labels": boxes.cls}
    if oriented is not None:
        found["polygons"] = oriented.xyxyxyxy
    elif item.masks is not None:
        found["polygons"] = item.masks.xy
    return found


def _of_segments(item: Mapping[str, Any]) -> dict[str, Any]:
    """Segments of transformers' instance and panoptic segmentation, as masks."""
    segments: Sequence[Mapping[str, Any]] = item["segments_info"]
    plane = item["segmentation"]
    numbers = np.asarray(plane.cpu() if hasattr(plane, "cpu") else plane)
    masks = np.array([numbers == each["id"] for each in segments], bool).reshape(-1, *numbers.shape)
    filled = [i for i, mask in enumerate(masks) if mask.any()]
    return {
        "boxes": np.array([_bounds(masks[i]) for i in filled], np.float32).reshape(-1, 4),
        "scores": np.array([segments[i].get("score", 1.0) for i in filled], np.float32),
        "labels": [segments[i]["label_id"] for i in filled],
        "masks": masks[filled],
    }


def _bounds(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[int, int, int, int]:
    """x0, y0, x1 and y1 of a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
