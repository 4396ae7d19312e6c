"""Reading of an image's annotations from files of QuPath, GIS programs and annotation tools.

Files and the geometries made from them hold (x, y) in full-resolution pixels, y down; all else is (y, x).
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import box

from coarse2fine.annotations.annotated import (
    IGNORE,
    REGION,
    AnnotatedArea,
    Annotation,
    AnnotationError,
    Annotations,
    Draft,
    Parsed,
    Stray,
    Subject,
    left_out,
)
from coarse2fine.annotations.files import Content, load, parse
from coarse2fine.annotations.match import match_annotations
from coarse2fine.annotations.polygons import SMALL_RING, areas_of, repaired
from coarse2fine.annotations.world import in_pixels
from coarse2fine.paths import PathLike, expand_paths
from coarse2fine.tiling.geometry import GeoReference
from coarse2fine.tiling.image import Image

__all__ = [
    "IGNORE",
    "REGION",
    "AnnotatedArea",
    "Annotation",
    "AnnotationError",
    "Annotations",
    "expand_paths",
    "match_annotations",
    "read_annotations",
    "read_each",
]

DEFAULT_LABEL = "object"
"""Class of all annotations of a file in which none has one."""
# Most relative difference between the scales of height and width from a file's stated image size to the image's.
_SKEW = 0.01
_HOLDS = "has no class and only holds others"


def read_annotations(
    source: PathLike | dict[str, Any] | list[Any],
    *,
    full_shape: tuple[int, int] | None = None,
    image: str | None = None,
    geo: GeoReference | None = None,
) -> Annotations:
    """Read the annotations of an image.

    The content decides the format: GeoJSON (QuPath, GIS programs), COCO JSON, Label Studio exports, LabelMe files,
    YOLO text with ``classes.txt`` or ``data.yaml`` beside or above it. A GeoJSON collection without features means
    that the image has no objects. A MultiPoint becomes one object for each point; a MultiPolygon stays one object.
    Polygons that cross themselves are repaired.

    Features that cannot be used are left out and noted: without a geometry, with one of another type, without area,
    without a class, outside the image. If no feature has a class, all are of class "object".

    Parameters
    ----------
    source : path-like, dict or list
        A file, gzipped or not, or the JSON value that it holds.
    full_shape : tuple of int, optional
        Height and width of the image in full-resolution pixels: annotations are clipped to it.
    image : str, optional
        Path or name of the image; selects it in a file of several.
    geo : GeoReference, optional
        The image's; GeoJSON in its coordinate reference system is converted to pixels.

    Returns
    -------
    Annotations

    Raises
    ------
    AnnotationError
        If the file cannot be read or its format is unknown; if it does not hold the image, or states another shape
        of it; if its coordinate reference system is not the image's; if none of its annotations can be used; with
        `full_shape`, if most lie outside the image.
    """
    if isinstance(source, dict | list):
        return _read(Content(source), None, Subject(image, full_shape, geo))
    if not isinstance(source, str | os.PathLike):
        raise AnnotationError(
            f"cannot read annotations from a {type(source).__name__}: expected the path of a file, or the dict or list "
            "that its JSON holds"
        )
    path = Path(source)
    return _read(load(path), path, Subject(image, full_shape, geo))


def read_each(sources: Sequence[Path | dict[str, Any]], images: Sequence[Image]) -> list[Annotations]:
    """Read the annotations of each image, and warn of what was left out or assumed.

    Parameters
    ----------
    sources : sequence of Path or dict
        See `read_annotations`; a file that several images share is read once.
    images : sequence of Image

    Raises
    ------
    AnnotationError
        See `read_annotations`.
    """
    shared = {path for path, times in Counter(s for s in sources if isinstance(s, Path)).items() if times > 1}
    kept: dict[Path, Content] = {}
    found: list[Annotations] = []
    warned: set[str] = set()  # notes on a shared file are given once
    for source, image in zip(sources, images, strict=True):
        path = source if isinstance(source, Path) else None
        content = Content(source) if path is None else kept.get(path) or load(path)
        if path in shared and path is not None:
            kept[path] = content
        name = None if image.path is None else str(image.path)
        found.append(_read(content, path, Subject(name, (image.height, image.width), image.geo)))
        for note in found[-1].notes:
            if note not in warned:
                warnings.warn(note, stacklevel=3)
            warned.add(note)
    return found


def _read(content: Content, path: Path | None, subject: Subject) -> Annotations:
    name = "the given annotations" if path is None else str(path)
    parsed = parse(content, path, name, subject)
    total = len({draft.place for draft in parsed.drafts} | {stray.place for stray in parsed.strays})
    notes = list(parsed.notes)
    strays = list(parsed.strays)
    drafts, note = _classified(parsed.drafts, strays, name)
    notes += [note] if note else []
    geometries = np.array([draft.geometry for draft in drafts], dtype=object)
    geometries, note = _scaled(geometries, parsed, subject, name)
    notes += [note] if note else []
    geometries, note = in_pixels(geometries, parsed.crs, subject.geo, subject.full_shape, name)
    notes += [note] if note else []
    kept = _made_valid(drafts, geometries, strays)
    if not kept.any() and strays:
        raise _failure(strays[0], total, name)
    drafts, geometries = [draft for draft, keep in zip(drafts, kept, strict=True) if keep], geometries[kept]
    if subject.full_shape is not None and drafts:
        kept = _clipped(drafts, geometries, subject.full_shape, strays, name)
        drafts, geometries = [draft for draft, keep in zip(drafts, kept, strict=True) if keep], geometries[kept]
    notes += [f"{name}: {text}" for text in left_out(strays, total)]
    return _sorted(path, drafts, geometries, notes, name)


def _sorted(
    path: Path | None, drafts: list[Draft], geometries: NDArray[np.object_], notes: list[str], name: str
) -> Annotations:
    """Separate objects from areas to ignore and annotated regions."""
    found: dict[str, list[Any]] = {IGNORE: [], REGION: []}
    objects = []
    for draft, geometry in zip(drafts, geometries, strict=True):
        if draft.label in found:
            found[draft.label].append(geometry)
        else:
            objects.append(Annotation(draft.label or DEFAULT_LABEL, geometry, draft.measurements))
    labels = tuple(sorted({annotation.label for annotation in objects}))
    for special in (IGNORE, REGION):
        if any(label.casefold() == special.rstrip("*").casefold() for label in labels):
            plain = next(label for label in labels if label.casefold() == special.rstrip("*").casefold())
            notes.append(f"{name}: {plain!r} is taken as a class of objects; the area that QuPath means is {special!r}")
    return Annotations(path, tuple(objects), tuple(found[IGNORE]), tuple(found[REGION]), labels, tuple(notes))


def _classified(drafts: list[Draft], strays: list[Stray], name: str) -> tuple[list[Draft], str | None]:
    """Drafts with a class: "object" for all if none has one; otherwise those without are left out."""
    without = [draft for draft in drafts if draft.label is None]
    if not without:
        return drafts, None
    holding = _holding(without, drafts)
    strays += [Stray(place, _HOLDS) for place in holding]
    if any(draft.label not in (None, IGNORE, REGION) for draft in drafts):
        for place, of_qupath in {draft.place: bool(draft.kind) for draft in without}.items():
            hint = " (in QuPath: Set class)" if of_qupath else ""
            strays += [] if place in holding else [Stray(place, f"has no class; give it one{hint}")]
        return [draft for draft in drafts if draft.label is not None], None
    kept = [
        draft._replace(label=draft.label or DEFAULT_LABEL)
        for draft in drafts
        if draft.label is not None or draft.place not in holding
    ]
    return kept, f"{name}: no annotation has a class; all are taken as {DEFAULT_LABEL!r}"


def _holding(without: list[Draft], drafts: list[Draft]) -> list[str]:
    """Places of unclassed QuPath annotations that enclose classed objects, detections, or most other objects."""
    outer = [draft for draft in without if draft.kind == "annotation" and draft.geometry.geom_type != "Point"]
    drafts = [draft for draft in drafts if draft.label not in (IGNORE, REGION)]
    classed = [draft.label is not None for draft in drafts]
    if not outer or (len(drafts) < 3 and not any(classed)):
        return []
    middles = shapely.STRtree([shapely.centroid(draft.geometry) for draft in drafts])
    # Bounds suffice: they rarely contain the centre of an unrelated object by chance.
    around = [box(*draft.geometry.bounds) for draft in outer]
    pairs = middles.query(around, predicate="contains")
    real = np.array([has or d.kind not in ("annotation", "") for has, d in zip(classed, drafts, strict=True)])[pairs[1]]
    many = np.bincount(pairs[0], minlength=len(outer)) - 1 > len(drafts) / 2
    certain = np.bincount(pairs[0], weights=real, minlength=len(outer)) > 0
    return [draft.place for draft, is_outer in zip(outer, many | certain, strict=True) if is_outer]


def _scaled(
    geometries: NDArray[np.object_], parsed: Parsed, subject: Subject, name: str
) -> tuple[NDArray[np.object_], str | None]:
    """Scale geometries from the image size that the file states to the image's own."""
    stated, full_shape = parsed.stated_shape, subject.full_shape
    if stated is None or full_shape is None or stated == full_shape:
        return geometries, None
    scale = full_shape[0] / stated[0], full_shape[1] / stated[1]
    texts = f"{stated[1]:,} x {stated[0]:,}", f"{full_shape[1]:,} x {full_shape[0]:,}"
    rounding = max(1 / min(*stated), 1 / min(*full_shape))
    if abs(scale[0] / scale[1] - 1) > max(_SKEW, rounding):
        raise AnnotationError(
            f"{name} was made on an image of {texts[0]} pixels, which is not the shape of this one, {texts[1]}; "
            "do they belong together, and is neither rotated?"
        )
    scaled = shapely.transform(geometries, lambda corners: corners * (scale[1], scale[0]))
    return scaled, f"{name}: made on {texts[0]} pixels, scaled to the image's {texts[1]}"


def _made_valid(drafts: list[Draft], geometries: NDArray[np.object_], strays: list[Stray]) -> NDArray[np.bool_]:
    """Repair self-crossing polygons in place; returns the mask of those that are kept."""
    kept = np.ones(len(drafts), bool)
    if not drafts:
        return kept
    areas, large = shapely.area(geometries), shapely.get_num_coordinates(geometries) > SMALL_RING
    small = geometries.copy()
    small[large] = None
    doubtful = ~shapely.is_valid(small) | (areas == 0)  # None, and so a large polygon, is not valid
    for i in np.flatnonzero(doubtful).tolist():
        if geometries[i].geom_type == "Point":
            continue
        try:
            area = repaired(geometries[i])
        except ValueError as error:
            strays.append(Stray(drafts[i].place, str(error)))
            kept[i] = False
            continue
        if area is None:
            strays.append(Stray(drafts[i].place, f"is a {geometries[i].geom_type} without area"))
            kept[i] = False
        geometries[i] = area
    return kept


def _clipped(
    drafts: list[Draft],
    geometries: NDArray[np.object_],
    full_shape: tuple[int, int],
    strays: list[Stray],
    name: str,
) -> NDArray[np.bool_]:
    """Clip areas to the image in place; returns the mask of the geometries inside it."""
    height, width = full_shape
    x0, y0, x1, y1 = shapely.bounds(geometries).T
    image = box(0, 0, width, height)
    kept = np.ones(len(drafts), bool)
    for i in np.flatnonzero((x0 < 0) | (y0 < 0) | (x1 > width) | (y1 > height)).tolist():
        clipped = None if geometries[i].geom_type == "Point" else areas_of(shapely.intersection(geometries[i], image))
        kept[i], geometries[i] = clipped is not None, clipped
    outside = np.flatnonzero(~kept).tolist()
    strays += [Stray(drafts[i].place, "lies outside the image") for i in outside]
    if len(outside) > len(drafts) / 2:
        i = outside[0]
        raise AnnotationError(
            f"{drafts[i].place} of {name} ({drafts[i].label!r}) lies outside the image"
            + (f", as do {len(outside) - 1:,} of {len(drafts) - 1:,} others" if len(outside) > 1 else "")
            + f": x {x0[i]:g} to {x1[i]:g}, y {y0[i]:g} to {y1[i]:g}, but the image is {width} wide and {height} high. "
            "Was it annotated at another resolution or in other coordinates, are x and y swapped, or does it belong "
            "to another image?"
        )
    return kept


def _failure(stray: Stray, total: int, name: str) -> AnnotationError:
    others = f"; none of {total:,} can be used" if total > 1 else ""
    return AnnotationError(f"{stray.place} of {name} {stray.reason}{others}; draw it again or remove it")
