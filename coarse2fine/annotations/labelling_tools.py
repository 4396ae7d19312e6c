"""Annotations as Label Studio and LabelMe export them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote

import numpy as np
from shapely.geometry import Point

from coarse2fine.annotations.annotated import (
    AnnotationError,
    Draft,
    Parsed,
    StrayError,
    collect,
    entry_of,
    label_of,
    number_of,
    numbers_of,
    of_another,
    shape_of,
    shown,
)
from coarse2fine.annotations.polygons import polygon_of

_CORNERS_OF_A_CIRCLE = 64
# Label Studio puts eight hexadecimal digits before the name of an uploaded file.
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
_PER_CENT = 100.0


def is_labelme(payload: Any) -> bool:
    """Whether a JSON value is a LabelMe file."""
    return isinstance(payload, dict) and isinstance(payload.get("shapes"), list)


def parse_labelme(payload: dict[str, Any], image: str | None, name: str) -> Parsed:
    """Annotations from a LabelMe file, with a note if it names another image."""
    found = collect(payload["shapes"], _of_labelme, "shape")
    return found._replace(
        stated_shape=shape_of(payload.get("imageHeight"), payload.get("imageWidth")),
        notes=of_another(payload.get("imagePath"), image, name),
    )


def _of_labelme(item: Any, place: str) -> Iterator[Draft]:
    if not isinstance(item, dict) or not isinstance(item.get("points"), list):
        raise StrayError("has no points")
    kind = item.get("shape_type") or "polygon"
    corners = [_pair(point) for point in item["points"]]
    label = label_of(item.get("label"))
    if kind in ("point", "points"):
        for corner in corners:
            yield Draft(place, label, Point(corner), {})
        return
    if kind in ("rectangle", "circle", "mask") and len(corners) != 2 and not (kind == "rectangle" and len(corners) > 2):
        raise StrayError(f"is a {kind} of {len(corners)} points, expected 2")
    if kind == "circle":
        (x, y), rim = corners
        radius = math.dist((x, y), rim)
        corners = _ellipse(x, y, radius, radius)
    elif kind in ("rectangle", "mask") and len(corners) == 2:
        (x0, y0), (x1, y1) = corners
        corners = [(x0, y0), (x0, y1), (x1, y1), (x1, y0)]
    elif kind not in ("polygon", "rectangle"):
        raise StrayError(f"is a {shown(kind)}, expected a polygon, rectangle, circle or point")
    yield Draft(place, label, _polygon(corners), {})


def studio_tasks(payload: Any) -> list[dict[str, Any]] | None:
    """Tasks of a Label Studio export, JSON or JSON-MIN; None if it is none."""
    tasks = [payload] if isinstance(payload, dict) else payload
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        return None
    known = [task for task in tasks if _results(task) is not None]
    return tasks if known else None


def studio_images(tasks: list[dict[str, Any]]) -> list[str]:
    """Image name of each task, in order."""
    return [_image_of(task) for task in tasks]


def parse_studio(tasks: list[dict[str, Any]], image: str | None, name: str) -> Parsed:
    """Annotations of one image from a Label Studio export: the first version of its task that was not cancelled.

    Raises
    ------
    AnnotationError
        If no task is about the image, or more than one is; if the image's size is missing.
    """
    names = studio_images(tasks)
    index = entry_of(names, image, name)
    notes: tuple[str, ...] = ()
    if index is None:
        names = [_UPLOADED.sub("", each) for each in names]
        index = entry_of(names, image, name)
    if index is None and len(names) == 1:
        index, notes = 0, of_another(names[0], image, name)
    if index is None:
        raise AnnotationError(f"{name} holds {len(names):,} tasks, but none about {shown(image)}")
    results = _results(tasks[index]) or []
    labels: dict[str, str | None] = {}
    for result in results:  # a label may be a result of its own, with the id of its shape
        if isinstance(result, dict) and isinstance(key := result.get("id"), str):
            labels[key] = labels.get(key) or _studio_label(result)
    shapes = [result for result in results if _is_place(result)]
    stated = [
        shape_of(each.get("original_height"), each.get("original_width")) for each in shapes if isinstance(each, dict)
    ]
    size = next((each for each in stated if each is not None), None)
    if shapes and size is None:
        raise AnnotationError(f"{name} does not say how large {shown(names[index])} is; export it as JSON again")
    return collect(shapes, partial(_of_studio, labels=labels, size=size or (1, 1)), "result")._replace(
        stated_shape=size, notes=notes
    )


def _results(task: dict[str, Any]) -> list[Any] | None:
    for key in ("annotations", "completions"):
        versions = task.get(key)
        if isinstance(versions, list) and "data" in task:
            kept = [v for v in versions if isinstance(v, dict) and not v.get("was_cancelled")]
            found = kept[0].get("result") if kept else []
            return found if isinstance(found, list) else []
    shapes = [value for value in task.values() if isinstance(value, list) and any(map(_has_size, value))]
    return [shape for value in shapes for shape in value] if shapes else None


def _has_size(item: Any) -> bool:
    return isinstance(item, dict) and "original_width" in item


def _image_of(task: dict[str, Any]) -> str:
    data = task.get("data")
    values = (data if isinstance(data, dict) else task).values()
    paths = [value for value in values if isinstance(value, str) and "." in value.rpartition("/")[2]]
    return unquote(paths[0].rpartition("?d=")[2].partition("?")[0]) if paths else ""


def _value(result: dict[str, Any]) -> dict[str, Any]:
    found = result.get("value")
    return found if isinstance(found, dict) else result


def _is_place(result: Any) -> bool:
    """Whether a result is a shape: not a choice, a text, or only labels."""
    if not isinstance(result, dict):
        return True
    value = _value(result)
    is_shape = "points" in value or "x" in value or "rle" in value
    return is_shape and result.get("type") != "labels"


def _studio_label(result: dict[str, Any]) -> str | None:
    for key, names in _value(result).items():
        if key.endswith("labels") and isinstance(names, list) and names:
            return label_of(names[0])
    return None


def _of_studio(result: Any, place: str, labels: dict[str, str | None], size: tuple[int, int]) -> Iterator[Draft]:
    if not isinstance(result, dict):
        raise StrayError("is not a JSON object")
    value, key = _value(result), result.get("id")
    label = _studio_label(result) or (labels.get(key) if isinstance(key, str) else None)
    height, width = size[0] / _PER_CENT, size[1] / _PER_CENT
    if isinstance(points := value.get("points"), list):
        corners = [(x * width, y * height) for x, y in map(_pair, points)]
        yield Draft(place, label, _polygon(corners), {})
        return
    if "x" not in value or "y" not in value:
        raise StrayError("is painted with a brush; draw it as a polygon or rectangle")
    x, y = numbers_of([value["x"], value["y"]], "places")
    x, y = x * width, y * height
    turn = math.radians(number_of(value.get("rotation")) or 0.0)
    if "radiusX" in value:
        radii = numbers_of([value["radiusX"], value.get("radiusY")], "radii")
        corners = _ellipse(x, y, radii[0] * width, radii[1] * height)
    elif "height" in value:
        w, h = numbers_of([value.get("width"), value["height"]], "sizes")
        w, h = w * width, h * height
        corners = [(x, y), (x, y + h), (x + w, y + h), (x + w, y)]
    else:
        yield Draft(place, label, Point(x, y), {})
        return
    yield Draft(place, label, _polygon(_turned(corners, (x, y), turn)), {})


def _turned(corners: list[tuple[float, float]], about: tuple[float, float], turn: float) -> list[tuple[float, float]]:
    """Corners rotated by `turn` radians, clockwise on the screen since y points down."""
    if not turn:
        return corners
    sine, cosine = math.sin(turn), math.cos(turn)
    x0, y0 = about
    return [(x0 + cosine * (x - x0) - sine * (y - y0), y0 + sine * (x - x0) + cosine * (y - y0)) for x, y in corners]


def _pair(point: Any) -> tuple[float, float]:
    if not isinstance(point, list) or len(point) < 2:
        raise StrayError("has points that are not pairs of numbers")
    x, y = numbers_of(point[:2], "points")
    return x, y


def _polygon(corners: list[tuple[float, float]]) -> Any:
    try:
        return polygon_of(corners)
    except ValueError as error:
        raise StrayError(f"makes no polygon ({error})") from error


def _ellipse(x: float, y: float, radius_x: float, radius_y: float) -> list[tuple[float, float]]:
    turns = np.arange(_CORNERS_OF_A_CIRCLE) * (2 * math.pi / _CORNERS_OF_A_CIRCLE)
    corners = np.stack([x + radius_x * np.cos(turns), y + radius_y * np.sin(turns)], axis=1)
    return [(float(a), float(b)) for a, b in corners]
