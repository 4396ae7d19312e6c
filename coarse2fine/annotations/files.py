"""Annotation files: loading, detection of the format by content, parsing."""

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
"""Largest annotation file, unpacked."""
_EXPECTED = "GeoJSON, COCO JSON, Label Studio, LabelMe or YOLO text; in QuPath: File > Export objects as GeoJSON"
_NAMED = 3


@dataclass(frozen=True)
class Content:
    """Content of an annotation file: a JSON value, or plain text.

    Parameters
    ----------
    payload : JSON value
        None for plain text.
    text : str, optional
        The plain text.
    """

    payload: Any
    text: str | None = None

    @cached_property
    def coco(self) -> Grouped:
        """Annotations of a COCO data set, grouped by image."""
        return by_image(self.payload)


def load(path: Path) -> Content:
    """Read an annotation file.

    Raises
    ------
    AnnotationError
        If it cannot be read, is too large, or is neither JSON nor, with the suffix ``.txt``, UTF-8 text.
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
    """Names of the images in a file; None if its format is for a single image."""
    if is_coco(content.payload):
        return coco_images(content.payload)
    if is_geojson(content.payload):
        return None
    tasks = studio_tasks(content.payload)
    return None if tasks is None else studio_images(tasks)


def parse(content: Content, path: Path | None, name: str, subject: Subject) -> Parsed:
    """Parse the annotations of one image.

    Parameters
    ----------
    content : Content
    path : Path or None
        The file, beside which YOLO's class names may lie.
    name : str
        Name of the file, for messages.
    subject : Subject

    Raises
    ------
    AnnotationError
        If the format is unknown, or the file does not hold the image.
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
            "nor classes; expected the data set: a JSON object with 'images', 'annotations' and 'categories'"
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
    """Short description of a JSON value of unknown format."""
    if not isinstance(payload, dict):
        return f"JSON {type(payload).__name__}"
    if isinstance(kind := payload.get("type"), str):
        return shown(kind)
    names = ", ".join(map(shown, list(payload)[:_NAMED])) + (" and more" if len(payload) > _NAMED else "")
    return f"a JSON object with {names}" if payload else "an empty JSON object"
