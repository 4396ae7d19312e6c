"""Annotations as COCO JSON: one file for many images; boxes, polygons and run lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import box

from coarse2fine.annotations.annotated import (
    IGNORE,
    AnnotationError,
    Draft,
    Parsed,
    Stray,
    StrayError,
    collect,
    entry_of,
    label_of,
    left_out,
    number_of,
    numbers_of,
    of_another,
    shape_of,
    shown,
)
from coarse2fine.annotations.polygons import areas_of, polygon_of, repaired

# Most runs of a mask, after cutting them at column ends; joining 50,000 to one area takes a second.
_MOST_RUNS = 50_000
# Most characters of a count: 5 bits each keep it below 2**60, so that it and its sums fit int64.
_MOST_CHARACTERS = 12


def is_coco(payload: Any) -> bool:
    """Whether a JSON value is a COCO data set."""
    return isinstance(payload, dict) and all(isinstance(payload.get(key), list) for key in ("images", "annotations"))


def is_coco_results(payload: Any) -> bool:
    """Whether a JSON value is a list of COCO results, which has no meaning without its data set."""
    first = payload[0] if isinstance(payload, list) and payload else None
    return isinstance(first, dict) and "image_id" in first and ("category_id" in first or "score" in first)


def coco_images(payload: dict[str, Any]) -> list[str]:
    """Names of the images in a data set, in its order; empty for an image without a name."""
    return [_name(image) for image in payload["images"]]


class Grouped(NamedTuple):
    """Annotations of a data set, grouped by image."""

    own: dict[Any, list[tuple[int, Any]]]  # by image id: number in the file, counted from 1, and annotation
    lost: list[Stray]  # annotations without an image
    texts: list[str]  # notes on these


def by_image(payload: dict[str, Any]) -> Grouped:
    """Group the annotations of a data set by image."""
    images = [image.get("id") for image in payload["images"] if isinstance(image, dict)]
    known = {key for key in images if isinstance(key, str | int)}
    own: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    lost = []
    for number, annotation in enumerate(payload["annotations"], 1):
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(key, str | int) and key in known:
            own[key].append((number, annotation))
        else:
            lost.append(Stray(f"annotation {number}", _without_image(annotation)))
    return Grouped(own, lost, left_out(lost, len(payload["annotations"])))


def parse_coco(payload: dict[str, Any], grouped: Grouped, image: str | None, name: str) -> Parsed:
    """Annotations of one image from a COCO data set.

    Parameters
    ----------
    payload : dict
    grouped : Grouped
        Annotations of the data set; see `by_image`.
    image : str or None
        Path or name of the image; None if the set holds a single image.
    name : str
        Name of the file, for messages.

    Raises
    ------
    AnnotationError
        If the set does not hold the image, or holds it more than once.
    """
    names = coco_images(payload)
    index = entry_of(names, image, name)
    notes: tuple[str, ...] = ()
    if index is None and len(names) == 1:
        index, notes = 0, of_another(names[0], image, name)
    chosen = {} if index is None else payload["images"][index]
    if index is None or not isinstance(chosen, dict):
        raise AnnotationError(
            f"{name} holds {len(names):,} images, but none of the name of {shown(image)}; the first is "
            f"{shown(names[0]) if names else 'missing'}"
        )
    identity = chosen.get("id")
    classes = _classes(payload.get("categories"))
    own = grouped.own.get(identity, []) if isinstance(identity, str | int) else []
    found = collect((each for _, each in own), partial(_drafts, classes=classes), "annotation")
    places = {f"annotation {i}": f"annotation {n}" for i, (n, _) in enumerate(own, 1)}
    strays = [stray._replace(place=places[stray.place]) for stray in found.strays]
    if len(names) == 1 or not grouped.own:
        strays += grouped.lost
    else:  # these may belong to another image
        notes += tuple(f"{name}: {text}" for text in grouped.texts)
    return Parsed(
        [draft._replace(place=places[draft.place]) for draft in found.drafts],
        strays,
        shape_of(chosen.get("height"), chosen.get("width")),
        notes=notes,
    )


def _without_image(annotation: Any) -> str:
    """Reason why an annotation belongs to no image."""
    if not isinstance(annotation, dict):
        return "is not a JSON object"
    if not isinstance(annotation.get("image_id"), str | int):
        return "has no image_id"
    return "has an image_id that no image of the file has"


def _name(image: Any) -> str:
    found = image.get("file_name") if isinstance(image, dict) else None
    return found if isinstance(found, str) else ""


def _classes(categories: Any) -> dict[Any, str | None]:
    found = [each for each in categories if isinstance(each, dict)] if isinstance(categories, list) else []
    return {key: label_of(each.get("name")) for each in found if isinstance(key := each.get("id"), str | int)}


def _drafts(annotation: dict[str, Any], place: str, classes: dict[Any, str | None]) -> Iterator[Draft]:
    identity = annotation.get("category_id")
    # If the file names no categories, their numbers are the names.
    known = classes.get(identity) if isinstance(identity, str | int) else None
    label = known if classes else label_of(identity)
    if number_of(annotation.get("iscrowd")) == 1:
        label = IGNORE
    score = number_of(annotation.get("score"))
    yield Draft(place, label, _geometry(annotation), {} if score is None else {"score": score})


def _geometry(annotation: dict[str, Any]) -> Any:
    outline = annotation.get("segmentation")
    if isinstance(outline, dict) and outline:
        return _area_of_runs(outline)
    if isinstance(outline, list) and outline:
        return _area_of_rings(outline if isinstance(outline[0], list) else [outline])
    if annotation.get("bbox") is None:
        raise StrayError("has neither a bbox nor a segmentation")
    bounds = annotation["bbox"]
    if not isinstance(bounds, list) or len(bounds) != 4:
        raise StrayError("has a bbox that is not [x, y, width, height]")
    x, y, width, height = numbers_of(bounds, "numbers in its bbox")
    if width <= 0 or height <= 0:
        raise StrayError(f"has a bbox without area, {width:g} x {height:g}")
    return polygon_of([[x, y], [x, y + height], [x + width, y + height], [x + width, y]])


def _area_of_rings(rings: list[Any]) -> Any:
    polygons = []
    for ring in rings:
        if not isinstance(ring, list) or len(ring) % 2:
            raise StrayError("has a segmentation that is not a list of x1, y1, x2, y2, ...")
        if len(ring) < 6:
            raise StrayError(f"has a segmentation of {len(ring) // 2} corners, expected at least 3")
        corners = numbers_of(ring, "numbers in its segmentation")
        polygons.append(polygon_of(list(zip(corners[::2], corners[1::2], strict=True))))
    if len(polygons) == 1:
        return polygons[0]
    # Parts of one object, drawn separately: each is repaired before they are joined.
    try:
        parts = [part for polygon in polygons if (part := repaired(polygon)) is not None]
    except ValueError as error:
        raise StrayError(str(error)) from error
    whole = areas_of(shapely.union_all(parts)) if parts else None
    if whole is None:
        raise StrayError("has a segmentation without area")
    return whole


def _area_of_runs(outline: dict[str, Any]) -> Any:
    size = outline.get("size")
    shape = shape_of(*size) if isinstance(size, list) and len(size) == 2 else None
    if shape is None:
        raise StrayError("has a segmentation of run lengths whose size is not [height, width]")
    counts = outline.get("counts")
    runs = decoded_counts(counts) if isinstance(counts, str) else _plain_counts(counts)
    ends = np.cumsum(runs)
    if (runs < 0).any() or (len(ends) and (ends[-1] > shape[0] * shape[1] or (ends < 0).any())):
        raise StrayError("has run lengths that do not fit its size")
    starts, ends = ends[0:-1:2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    columns = (ends - 1) // shape[0] - starts // shape[0] + 1
    if columns.sum() > _MOST_RUNS:
        raise StrayError(f"has a mask of more than {_MOST_RUNS:,} runs; draw it as a polygon")
    if not len(starts):
        raise StrayError("has a mask without area")
    within = np.arange(columns.sum()) - np.repeat(np.cumsum(columns) - columns, columns)
    column = np.repeat(starts // shape[0], columns) + within
    top = np.maximum(np.repeat(starts, columns) - column * shape[0], 0)
    bottom = np.minimum(np.repeat(ends, columns) - column * shape[0], shape[0])
    return areas_of(shapely.union_all(shapely.box(column, top, column + 1, bottom))) or box(0, 0, 0, 0)


def _plain_counts(counts: Any) -> NDArray[np.int64]:
    if not isinstance(counts, list):
        raise StrayError("has run lengths that are neither a list nor a text")
    numbers = numbers_of(counts, "run lengths")
    if any(number > 2**53 or number % 1 for number in numbers):
        raise StrayError("has run lengths that are not whole")
    return np.array(numbers, np.int64)


def decoded_counts(text: str) -> NDArray[np.int64]:
    """Run lengths from COCO's compressed text.

    Each character holds five bits, the lowest first; its sixth bit says that the number continues, and the fifth bit
    of the last character is the sign. From the fourth number on, the difference to the number two before is stored.

    Parameters
    ----------
    text : str

    Returns
    -------
    ndarray, int64, (n,)
        Lengths of runs of zeros and ones in turn, down the columns.

    Raises
    ------
    StrayError
        If the text is not valid.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any() or (len(codes) and codes[-1] & 32):
        raise StrayError("has compressed run lengths that cannot be read")
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    characters = last - first + 1
    if (characters > _MOST_CHARACTERS).any():
        raise StrayError("has compressed run lengths that are too large")
    place = np.arange(len(codes)) - np.repeat(first, characters)
    numbers = np.add.reduceat((codes & 31) << (5 * place), first) if len(first) else np.zeros(0, np.int64)
    numbers -= np.where(codes[last] & 16, np.int64(1) << (5 * characters), 0)
    counts = numbers.copy()
    counts[1::2] = np.cumsum(numbers[1::2])
    counts[2::2] = np.cumsum(numbers[2::2])
    return counts
