"""Annotations of an image, read from GeoJSON as QuPath writes it, and their pairing with image files.

Files and the geometries made from them hold (x, y) in full-resolution pixels, y down; all else is (y, x).
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Point, Polygon, box, shape

from .paths import PathLike, expand_paths

__all__ = [
    "Annotation",
    "AnnotationError",
    "Annotations",
    "expand_paths",
    "match_annotations",
    "read_annotations",
]

IGNORE = "Ignore*"
REGION = "Region*"
_SUFFIXES = (".geojson", ".geojson.gz")
_GEOMETRIES = ("Point", "MultiPoint", "Polygon", "MultiPolygon")


class AnnotationError(ValueError):
    """Annotations cannot be read or paired; the message names the file, the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated object.

    Parameters
    ----------
    label : str
        Name of the class.
    geometry : Point, Polygon or MultiPolygon
        Where it is: (x, y) full-resolution pixels.
    measurements : dict of str to float
        Numbers that came with it.
    """

    label: str
    geometry: Point | Polygon | MultiPolygon
    measurements: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def full_bounds(self) -> tuple[float, float, float, float]:
        """Bounds (y0, x0, y1, x1) in full-resolution pixels; a point's are of no size."""
        x0, y0, x1, y1 = self.geometry.bounds
        return y0, x0, y1, x1

    @property
    def is_point(self) -> bool:
        """Whether the object is a single point."""
        return bool(self.geometry.geom_type == "Point")

    @property
    def is_box(self) -> bool:
        """Whether the object is an axis-aligned rectangle."""
        y0, x0, y1, x1 = self.full_bounds
        # Only a rectangle fills its bounds.
        return not self.is_point and math.isclose(self.geometry.area, (y1 - y0) * (x1 - x0), rel_tol=1e-9)


@dataclass(frozen=True, slots=True)
class Annotations:
    """What is known about one image.

    Parameters
    ----------
    path : Path or None
        The file read, if it was a file.
    objects : tuple of Annotation
        The classified annotations, in the file's order.
    ignored : tuple of Polygon or MultiPolygon
        Areas of class ``Ignore*``, to be left out of training; (x, y) full-resolution pixels.
    regions : tuple of Polygon or MultiPolygon
        Areas of class ``Region*``: only inside them has the image been annotated. Empty means everywhere.
    labels : tuple of str
        The classes of `objects`, sorted.
    """

    path: Path | None
    objects: tuple[Annotation, ...]
    ignored: tuple[Polygon | MultiPolygon, ...]
    regions: tuple[Polygon | MultiPolygon, ...]
    labels: tuple[str, ...]


class AnnotatedArea:
    """Where the annotations of an image hold: inside its regions, if there are any, and not where it is ignored.

    Parameters
    ----------
    annotations : Annotations
    """

    def __init__(self, annotations: Annotations) -> None:
        kinds = ((annotations.regions, True), (annotations.ignored, False))
        self._rules = [(shapely.union_all(list(areas)), sense) for areas, sense in kinds if areas]
        for geometry, _ in self._rules:
            shapely.prepare(geometry)

    def contains(self, full_y: NDArray[np.float64], full_x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the points (n,), in full-resolution pixels, lie there."""
        there = np.ones(len(full_y), bool)
        for geometry, sense in self._rules:
            there &= shapely.contains_xy(geometry, full_x, full_y) == sense
        return there


class _Draft(NamedTuple):
    place: str  # "feature 3 of scene.geojson"; features are counted from 1
    label: str
    geometry: Any
    measurements: dict[str, float]


def read_annotations(source: PathLike | dict[str, Any], *, full_shape: tuple[int, int] | None = None) -> Annotations:
    """Read QuPath-style GeoJSON: a FeatureCollection, a bare list of features, or a single Feature.

    A collection without features says that there is nothing in the image. A MultiPoint becomes one object for each
    point; a MultiPolygon stays one object. Polygons that cross themselves are repaired.

    Parameters
    ----------
    source : path-like or dict
        A file, gzipped or not, or its content.
    full_shape : tuple of int, optional
        Height and width of the image in full-resolution pixels: annotations are clipped to it.

    Returns
    -------
    Annotations

    Raises
    ------
    AnnotationError
        If the file cannot be read or is not GeoJSON; if a feature has no class, or is neither points nor polygons;
        with `full_shape`, if a feature lies wholly outside the image.
    """
    path = None if isinstance(source, dict) else Path(source)
    name = "the given GeoJSON" if path is None else str(path)
    features = _features(source if path is None else _load(path), name)
    drafts = [draft for i, feature in enumerate(features) for draft in _parse(feature, f"feature {i + 1} of {name}")]
    geometries = np.array([draft.geometry for draft in drafts], dtype=object)
    _make_valid(drafts, geometries)
    if full_shape is not None:
        _clip(drafts, geometries, full_shape)
    found: dict[str, list[Any]] = {IGNORE: [], REGION: []}
    objects = []
    for draft, geometry in zip(drafts, geometries, strict=True):
        if draft.label in found:
            found[draft.label].append(geometry)
        else:
            objects.append(Annotation(draft.label, geometry, draft.measurements))
    labels = tuple(sorted({annotation.label for annotation in objects}))
    return Annotations(path, tuple(objects), tuple(found[IGNORE]), tuple(found[REGION]), labels)


def _load(path: Path) -> Any:
    if path.is_dir():
        raise AnnotationError(f"{path} is a folder, expected a GeoJSON file; name one file inside it")
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise AnnotationError(f"there is no annotation file {path}; check the name and the folder") from None
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(f"cannot read the annotation file {path}: {error}") from error
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"{path} is not JSON ({error}), expected GeoJSON; in QuPath: File > Export objects as GeoJSON"
        ) from error


def _features(payload: Any, name: str) -> list[Any]:
    kind = payload.get("type") if isinstance(payload, dict) else f"JSON {type(payload).__name__}"
    features = payload
    if kind == "Feature":
        features = [payload]
    elif kind == "FeatureCollection":
        features = payload.get("features")
    if not isinstance(features, list):
        raise AnnotationError(
            f"{name} is not GeoJSON with features: expected a FeatureCollection, a list of features or a "
            f"Feature; found {kind}"
        )
    return features


def _parse(feature: Any, place: str) -> Iterator[_Draft]:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise AnnotationError(f"{place} is not a GeoJSON Feature: expected an object of type 'Feature'")
    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else geometry
    if kind not in _GEOMETRIES:
        raise AnnotationError(
            f"unknown geometry: expected Point, MultiPoint, Polygon or MultiPolygon; found {kind} in {place}"
        )
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    label = _label(properties, place)
    if label in (IGNORE, REGION) and kind in ("Point", "MultiPoint"):
        raise AnnotationError(f"{place} is a {kind} of class {label}: expected an area; draw it as a polygon")
    try:
        parsed = shape(geometry)
    except (ValueError, TypeError, LookupError, AttributeError, shapely.errors.ShapelyError) as error:
        raise AnnotationError(f"the coordinates of {place} do not make a {kind}: {error}") from error
    if parsed.is_empty:
        raise AnnotationError(f"{place} has an empty {kind}; draw it again or remove it")
    measurements = _measurements(properties.get("measurements"))
    for part in parsed.geoms if kind == "MultiPoint" else (parsed,):
        yield _Draft(place, label, part, measurements)


def _label(properties: dict[str, Any], place: str) -> str:
    classification = properties.get("classification")
    candidates = [classification, properties.get("name"), properties.get("label"), properties.get("class")]
    if isinstance(classification, dict):
        names = classification.get("names")
        # QuPath joins the names of a derived class in this way.
        joined = ": ".join(map(str, names)) if isinstance(names, list) else None
        candidates[:1] = [classification.get("name"), joined]
    for candidate in candidates:
        if candidate is None or isinstance(candidate, dict | list | bool):
            continue
        if label := str(candidate).strip():
            return label
        break  # an empty name is a slip; the name of something else must not stand in for it
    raise AnnotationError(
        f"{place} has no class name: expected a text in properties.classification.name, or in "
        "classification, name, label or class; give it a class (in QuPath: Set class) or remove it"
    )


def _measurements(found: Any) -> dict[str, float]:
    """Keep the finite numbers of a dict or of QuPath's old list of names and values."""
    if isinstance(found, list):
        found = {item.get("name"): item.get("value") for item in found if isinstance(item, dict)}
    if not isinstance(found, dict):
        return {}
    return {
        str(key): float(value)
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _make_valid(drafts: Sequence[_Draft], geometries: NDArray[np.object_]) -> None:
    """Repair, in place, the polygons that cross themselves."""
    coordinates, owners = shapely.get_coordinates(geometries, return_index=True)
    for i in owners[~np.isfinite(coordinates).all(axis=1)].tolist():
        raise AnnotationError(f"{drafts[i].place} has a coordinate that is not a finite number; draw it again")
    for i in np.flatnonzero(~shapely.is_valid(geometries)).tolist():
        repaired = _areas(shapely.make_valid(geometries[i]))
        if repaired is None:
            raise AnnotationError(
                f"{drafts[i].place} is a {geometries[i].geom_type} without area; draw it again or remove it"
            )
        geometries[i] = repaired


def _clip(drafts: Sequence[_Draft], geometries: NDArray[np.object_], full_shape: tuple[int, int]) -> None:
    """Cut, in place, the areas down to the image."""
    height, width = full_shape
    x0, y0, x1, y1 = shapely.bounds(geometries).T
    image = box(0, 0, width, height)
    for i in np.flatnonzero((x0 < 0) | (y0 < 0) | (x1 > width) | (y1 > height)).tolist():
        clipped = _areas(shapely.intersection(geometries[i], image))
        if clipped is None:
            raise AnnotationError(
                f"{drafts[i].place} ({drafts[i].label!r}) lies outside the image: x {x0[i]:g} to {x1[i]:g}, "
                f"y {y0[i]:g} to {y1[i]:g}, but the image is {width} wide and {height} high. Was it "
                "annotated at another resolution, are x and y swapped, or does it belong to another image?"
            )
        geometries[i] = clipped


def _areas(geometry: Any) -> Polygon | MultiPolygon | None:
    """Drop stray points and lines; None if no polygon is left."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    polygons = [part for part in parts if part.geom_type == "Polygon" and part.area > 0]
    if len(polygons) == 1:
        return polygons[0]
    return MultiPolygon(polygons) if polygons else None


def match_annotations(images: Sequence[Path], annotations: PathLike | Sequence[PathLike]) -> list[Path]:
    """Find the annotation file of each image by its name.

    ``huge.ome.tif`` pairs with ``huge.ome.tif.geojson`` or ``huge.ome.geojson``, or else with the file that
    shares its name up to the first dot, ``huge.geojson``, if no other image does. One image and one file that
    is named outright pair whatever their names.

    Parameters
    ----------
    images : sequence of Path
        Image files.
    annotations : path-like or sequence of path-like
        A GeoJSON file, a folder of them, a glob, or a list of as many files as there are images.

    Returns
    -------
    list of Path
        The annotation files, in the order of `images`.

    Raises
    ------
    AnnotationError
        If an image has no partner or several, if two images share one, or if a list is of another length.
    """
    try:
        files = expand_paths(annotations, _SUFFIXES)
    except FileNotFoundError as error:
        raise AnnotationError(f"no annotations: {error}") from error
    listed = not isinstance(annotations, str | os.PathLike)
    if listed and len(files) != len(images):
        raise AnnotationError(f"expected one annotation file for each image; got {len(files)} for {len(images)}")
    if len(images) == len(files) == 1 and (listed or Path(str(annotations)).is_file()):
        return files
    by_name, by_stem = _grouped(files, _annotated_name), _grouped(files, _first_part)
    same_stem = _grouped(images, _first_part)
    owners: dict[Path, Path] = {}
    for image in images:
        stem = _first_part(image)
        found = by_name.get(image.name) or by_name.get(image.stem) or by_stem.get(stem, [])
        if len(same_stem[stem]) > 1:  # the first part alone does not tell these images apart
            stem, found = image.stem, by_name.get(image.name) or by_name.get(image.stem, [])
        if len(found) != 1:
            names = ", ".join(map(str, found)) or f"none in {annotations}"
            raise AnnotationError(
                f"expected one annotation file for the image {image}, named {stem}.geojson; found {names}"
            )
        if found[0] in owners:
            raise AnnotationError(
                f"the images {owners[found[0]]} and {image} would share the annotation file {found[0]}; "
                "name one file after each image"
            )
        owners[found[0]] = image
    return list(owners)


def _grouped(paths: Sequence[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return groups


def _first_part(path: Path) -> str:
    return path.name.split(".", 1)[0]


def _annotated_name(path: Path) -> str:
    """Name of an annotation file without what makes it one: ``a.tif`` for ``a.tif.geojson.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".json").removesuffix(".geojson")
