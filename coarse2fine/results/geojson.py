"""Regions as GeoJSON: in pixels for QuPath, or in world coordinates for GIS programs; both streamed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from coarse2fine.region import Region
from coarse2fine.results.colours import label_colour
from coarse2fine.results.json_file import NOT_UNICODE, compact
from coarse2fine.tiling.geometry import GeoReference
from coarse2fine.tiling.storage.regular import open_regular
from coarse2fine.tiling.writing.atomic import replacing_stream

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "coarse2fine").bytes
_LON_LAT = "EPSG:4326"
_WRITTEN_AT_ONCE = 4096
_HEAD = '{"type": "Feature", '

# Corners (x, y).
Ring = list[tuple[float, float]]


def write_geojson(path: str | os.PathLike[str], regions: Sequence[Region]) -> Path:
    """Write regions as a GeoJSON FeatureCollection of detections, for QuPath.

    Features are written one per line, a few thousand at a time. An identifier depends on label and coordinates only, so
    it is the same in the next run. An existing file is replaced once the new one is complete.

    Parameters
    ----------
    path : path-like
        File to write; gzipped if the name ends in ``.gz``. Its folder must exist.
    regions : sequence of Region
        Coordinates are written as (x, y) in full-resolution pixels.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder does not exist, or `path` is a folder.
    """
    return _write(Path(path), "", map(_detection, regions))


def write_world_geojson(path: str | os.PathLike[str], regions: Sequence[Region], geo: GeoReference) -> Path:
    """Write regions as GeoJSON in world coordinates, for QGIS, GDAL and other GIS programs.

    GeoJSON's default is longitude and latitude (EPSG:4326). Other coordinates are written in the image's system, with
    the member ``crs`` that GDAL writes and reads; it is null if the image defines its own system.

    Parameters
    ----------
    path : path-like
        File to write; gzipped if the name ends in ``.gz``. Its folder must exist.
    regions : sequence of Region
    geo : GeoReference
        Georeference of the image.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder does not exist, or `path` is a folder.
    """
    system = "null" if geo.crs is None else compact({"type": "name", "properties": {"name": _urn(geo.crs)}})
    more = "" if geo.crs == _LON_LAT else f'"crs": {system}, '
    return _write(Path(path), more, map(partial(_on_the_map, geo=geo), regions))


def read_regions(path: str | os.PathLike[str]) -> tuple[Region, ...]:
    """Read regions that `write_geojson` wrote, exactly.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    ValueError
        If the file was written by another program; `coarse2fine.annotations.read` reads any GeoJSON.
    """
    source = Path(path)
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(io.BufferedReader(open_regular(source)))
        if source.name.endswith(".gz"):
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        lines = stack.enter_context(io.TextIOWrapper(stream, encoding="utf-8", newline="\n"))
        try:
            return tuple(_region(json.loads(line.rstrip("\n,"))) for line in lines if line.startswith(_HEAD))
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"the regions in {source} were not written by coarse2fine ({error}); save them again"
            ) from None


def world_ring(region: Region, geo: GeoReference) -> Ring:
    """Closed ring of a region's corners (x, y) in world coordinates, counter-clockwise with y pointing up."""
    a, b, c, d, e, f = geo.transform
    ring = [(a * x + b * y + c, d * x + e * y + f) for x, y in _ring(region)]
    if _turns_clockwise(ring):
        ring.reverse()
    return ring


def _write(target: Path, more: str, features: Iterable[str]) -> Path:
    with replacing_stream(target) as stream:
        stream.write(f'{{"type": "FeatureCollection", {more}"features": ['.encode("utf-8", NOT_UNICODE))
        separator = "\n"
        features = iter(features)
        while part := list(itertools.islice(features, _WRITTEN_AT_ONCE)):
            stream.write((separator + ",\n".join(part)).encode("utf-8", NOT_UNICODE))
            separator = ",\n"
        stream.write(b"\n]}\n")
    return target


@lru_cache(maxsize=4096)
def _class(label: str) -> str:
    return compact({"name": label, "color": label_colour(label)})


@lru_cache(maxsize=4096)
def _notes(fired: tuple[str, ...], route: tuple[int, ...], outlined: bool) -> str:
    notes = {"fired": fired} | ({"route": route} if route else {}) | ({"outline": True} if outlined else {})
    return compact(notes)


def _detection(region: Region) -> str:
    # Formatted by hand with repeated parts cached: several times as fast as `json.dumps`.
    ring = _text(_ring(region))
    notes = _notes(region.fired, region.route, region.outline is not None)
    return (
        f'{_HEAD}"id": "{_identifier(region.label, ring)}", '
        f'"geometry": {{"type": "Polygon", "coordinates": [{ring}]}}, '
        f'"properties": {{"objectType": "detection", "classification": {_class(region.label)}, '
        f'"measurements": {{"score": {float(region.score)!r}}}, "coarse2fine": {notes}}}}}'
    )


def _on_the_map(region: Region, geo: GeoReference) -> str:
    ring = world_ring(region, geo)
    properties = {"label": region.label, "score": float(region.score), "fired": "; ".join(region.fired)}
    return (
        f'{_HEAD}"id": "{_identifier(region.label, _text(_ring(region)))}", '
        f'"geometry": {{"type": "Polygon", "coordinates": [{_text(ring)}]}}, "properties": {compact(properties)}}}'
    )


def _ring(region: Region) -> Ring:
    """Closed ring of corners (x, y)."""
    ring = [(float(x), float(y)) for y, x in region.full_corners]
    return [*ring, ring[0]]


def _text(ring: Ring) -> str:
    """The ring as `json.dumps` writes it."""
    return f"[{', '.join([f'[{x!r}, {y!r}]' for x, y in ring])}]"


def _identifier(label: str, ring: str) -> str:
    """UUID, version 5, of label and coordinates; equal to `uuid.uuid5`, but faster."""
    name = f"[{compact(label)}, {ring}]".encode("utf-8", NOT_UNICODE)
    digest = hashlib.sha1(_NAMESPACE + name, usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def _turns_clockwise(ring: Ring) -> bool:
    """Whether a closed ring is clockwise with y pointing up, by twice its signed area."""
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in itertools.pairwise(ring)) < 0


def _urn(crs: str) -> str:
    return f"urn:ogc:def:crs:{crs.replace(':', '::')}"


def _region(feature: Mapping[str, Any]) -> Region:
    properties = feature["properties"]
    notes = properties["coarse2fine"]
    (ring,) = feature["geometry"]["coordinates"]
    y, x = [y for _, y in ring], [x for x, _ in ring]
    outline = tuple((y, x) for x, y in ring[:-1]) if notes.get("outline") else None
    return Region(
        label=properties["classification"]["name"],
        score=properties["measurements"]["score"],
        full_box=(min(y), min(x), max(y), max(x)),
        outline=outline,
        fired=tuple(notes["fired"]),
        route=tuple(notes.get("route", ())),
    )
