"""Annotations as GeoJSON, as QuPath and GIS programs write it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from coarse2fine.annotations.annotated import Draft, Parsed, StrayError, collect, label_of, number_of, shown
from coarse2fine.annotations.polygons import as_geometry

GEOMETRIES = ("Point", "MultiPoint", "Polygon", "MultiPolygon")
# QuPath also exports the cores of a tissue microarray, and the whole image, as objects.
_FRAMES = ("tma_core", "root")
_NOT_MANY = 50


def is_geojson(payload: Any) -> bool:
    """Whether a JSON value claims to be GeoJSON with features."""
    first = payload[0] if isinstance(payload, list) and payload else payload
    return isinstance(first, dict) and first.get("type") in ("Feature", "FeatureCollection")


def parse_geojson(payload: Any) -> Parsed | None:
    """Annotations from GeoJSON: a FeatureCollection, a bare list of features, or a single Feature.

    Parameters
    ----------
    payload : JSON value

    Returns
    -------
    Parsed or None
        None if it is no GeoJSON with features. Drafts without a class have the label None.
    """
    kind = payload.get("type") if isinstance(payload, dict) else None
    features, crs = payload, None
    if kind == "Feature":
        features = [payload]
    elif kind == "FeatureCollection":
        features = payload.get("features")
        crs = named_crs(payload)
    if not isinstance(features, list):
        return None
    return collect(features, _drafts, "feature")._replace(crs=crs)


def named_crs(payload: dict[str, Any]) -> str | None:
    """Coordinate reference system of the member ``crs``, such as "EPSG:32618"; longitude and latitude: EPSG:4326.

    GDAL and QGIS write ``{"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32618"}}``. None if
    there is no such member; empty if it has no name, as for a local system of the image.
    """
    if "crs" not in payload:
        return None
    found = payload["crs"]
    properties = found.get("properties") if isinstance(found, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    name = name if isinstance(name, str) else ""
    parts = [part for part in name.strip().upper().replace("/", ":").split(":") if part]
    if not parts:
        return ""
    if parts[-1] in ("CRS84", "4326"):
        return "EPSG:4326"
    return f"EPSG:{parts[-1]}" if "EPSG" in parts and parts[-1].isdecimal() else name[:_NOT_MANY]


def _drafts(feature: Any, place: str) -> Iterator[Draft]:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise StrayError("is not a GeoJSON Feature: expected an object of type 'Feature'")
    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else geometry
    if not isinstance(geometry, dict) or not isinstance(kind, str) or kind not in GEOMETRIES:
        what = "has no geometry" if kind is None else f"has the geometry {shown(kind)}"
        raise StrayError(f"{what}, expected Point, MultiPoint, Polygon or MultiPolygon")
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    role = properties.get("objectType")
    role = role.strip().lower().replace(" ", "_") if isinstance(role, str) else ""
    if role in _FRAMES:
        raise StrayError(f"is a {shown(role)} of QuPath, which holds objects and is none")
    label = _label(properties, named=not role)
    if geometry.get("coordinates") == []:
        raise StrayError(f"has an empty {kind}")
    try:
        made = as_geometry(kind, geometry.get("coordinates"))
    except ValueError as error:
        raise StrayError(f"has coordinates that do not make a {kind} ({error})") from error
    measurements = _measurements(properties.get("measurements"))
    for part in made if isinstance(made, list) else [made]:
        yield Draft(place, label, part, measurements, role)


def _label(properties: dict[str, Any], *, named: bool) -> str | None:
    """Class of a feature; `named`: whether the member "name" may be it (in QuPath's files it names the object)."""
    classification = _decoded(properties.get("classification"))
    candidates = [classification, properties.get("label"), properties.get("class")]
    if named:
        candidates.insert(1, properties.get("name"))
    if isinstance(classification, dict):
        names = classification.get("names")
        # QuPath joins the names of a derived class in this way.
        texts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        candidates[:1] = [classification.get("name"), ": ".join(texts[:_NOT_MANY]) or None]
    for candidate in candidates:
        if candidate is None or isinstance(candidate, dict | list | bool):
            continue
        return label_of(candidate)  # an empty class is a mistake that another member must not hide
    return None


def _decoded(value: Any) -> Any:
    """Decode an object or array of JSON that a table format has stored as text; any other value stays."""
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _measurements(found: Any) -> dict[str, float]:
    """Finite numbers of a dict, or of QuPath's older list of names and values."""
    found = _decoded(found)
    if isinstance(found, list):
        pairs = [(item.get("name"), item.get("value")) for item in found if isinstance(item, dict)]
        found = {name: value for name, value in pairs if isinstance(name, str)}
    if not isinstance(found, dict):
        return {}
    numbers = {key: number_of(value) for key, value in found.items()}
    return {key: number for key, number in numbers.items() if number is not None}
