"""Files of annotations: what they hold, by their content."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from coarse2fine.annotations.annotated import AnnotationError, Parsed, Subject, shown
from coarse2fine.annotations.coco import Grouped, by_image, coco_images, is_coco, is_coco_results, parse_coco
from coarse2fine.annotations.geojson import is_geojson, parse_geojson
from coarse2fine.annotations.labelling_tools import is_labelme, parse_labelme, parse_studio, studio_images, studio_tasks
from coarse2fine.annotations.yolo import parse_yolo, yolo_classes
from coarse2fine.tiling.storage.regular import read_regular

MOST_BYTES = 2**30
"""Of a file of annotations, unpacked."""
_EXPECTED = "GeoJSON, COCO JSON, Label Studio, LabelMe or YOLO text; in QuPath: File > Export objects as GeoJSON"
_NAMED = 3


@dataclass(frozen=True)
class Content:
    """What a file holds: a JSON value, or text that is none.

    Parameters
    ----------
    payload : JSON value
    text : str, optional
        Instead of it.
    """

    payload: Any
    text: str | None = None

    @cached_property
    def coco(self) -> Grouped:
        """Annotations of a COCO data set by their images."""
        return by_image(self.payload)


def load(path: Path) -> Content:
    """Read a file of annotations.

    Raises
    ------
    AnnotationError
        If it cannot be read, is too large, or is neither JSON nor text of numbers.
    """
    try:
        content = read_regular(path, MOST_BYTES, unzip=True)
    except FileNotFoundError:
        raise AnnotationError(f"there is no annotation file {path}; check the name and the folder") from None
    except IsADirectoryError:
        raise AnnotationError(f"{path} is a folder, expected an annotation file; name one file inside it") from None
    except OSError as error:
        raise AnnotationError(f"cannot read the annotation file {path}: {error}") from error
    try:
        if is_text := path.name.lower().endswith(".txt"):
            return Content(None, content.decode("utf-8-sig"))
        return Content(json.loads(content))
    except (ValueError, RecursionError) as error:
        kind = "UTF-8 text" if is_text else "JSON"
        raise AnnotationError(f"{path} is not {kind} ({error}), expected {_EXPECTED}") from error


def images_in(content: Content) -> list[str] | None:
    """Names of the images that a file of several holds; None if its kind is of one image alone."""
    if is_coco(content.payload):
        return coco_images(content.payload)
    if is_geojson(content.payload):
        return None
    tasks = studio_tasks(content.payload)
    return None if tasks is None else studio_images(tasks)


def parse(content: Content, path: Path | None, name: str, subject: Subject) -> Parsed:
    """What a file says of an image.

    Parameters
    ----------
    content : Content
    path : Path or None
        Of the file, beside which there may be names of classes.
    name : str
        For messages.
    subject : Subject

    Raises
    ------
    AnnotationError
        If it is of no known format, or does not hold the image.
    """
    payload = content.payload
    if content.text is not None:
        classes = {} if path is None else yolo_classes(path)
        found = parse_yolo(content.text, subject.full_shape, classes, name)
        if found is None:
            raise AnnotationError(f"{name} is text, but not YOLO's: expected lines of class x y width height")
        return found
    if is_coco(payload):
        return parse_coco(payload, content.coco, subject.name, name)
    if is_coco_results(payload):
        raise AnnotationError(
            f"{name} is a list of COCO results (finds with an image_id and a category_id), which names neither images "
            "nor classes; expected the data set: an object of JSON with 'images', 'annotations' and 'categories'"
        )
    if is_labelme(payload):
        return parse_labelme(payload, subject.name, name)
    tasks = None if is_geojson(payload) else studio_tasks(payload)
    if tasks is not None:
        return parse_studio(tasks, subject.name, name)
    found = parse_geojson(payload)
    if found is None:
        raise AnnotationError(
            f"{name} is not GeoJSON with features: expected a FeatureCollection, a list of features or a Feature; "
            f"found {_found(payload)}. What is read: {_EXPECTED}"
        )
    return found


def _found(payload: Any) -> str:
    """What a JSON value that is of no known format is, in a few words."""
    if not isinstance(payload, dict):
        return f"JSON {type(payload).__name__}"
    if isinstance(kind := payload.get("type"), str):
        return shown(kind)
    names = ", ".join(map(shown, list(payload)[:_NAMED])) + (" and more" if len(payload) > _NAMED else "")
    return f"an object of JSON with {names}" if payload else "an empty object of JSON"
