"""Results to files: regions as GeoJSON that QuPath opens, records as JSON; each whole or not at all."""

from __future__ import annotations

import colorsys
import contextlib
import dataclasses
import gzip
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .regions import Region

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "coarse2fine")
_LIGHTNESS = (0.36, 0.46, 0.56)  # readable on white paper as well as on a dark scene


def label_colour(label: str) -> tuple[int, int, int]:
    """Colour of a label: the same in every run and every place, whatever other labels there are.

    Parameters
    ----------
    label : str
        Name of the class.

    Returns
    -------
    tuple of int
        Red, green and blue, 0 to 255.
    """
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).digest()
    hue = int.from_bytes(digest[:4], "big") / 2**32
    red, green, blue = colorsys.hls_to_rgb(hue, _LIGHTNESS[digest[4] % len(_LIGHTNESS)], 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def write_geojson(
    path: str | os.PathLike[str], regions: Sequence[Region], *, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write regions as a GeoJSON FeatureCollection of detections, as QuPath opens it.

    Features are written one at a time. An identifier depends on label and coordinates only, so it is the same
    in the next run. An existing file is replaced once the new one is complete.

    Parameters
    ----------
    path : path-like
        File to write; compressed with gzip when the name ends in ``.gz``. Its folder must exist.
    regions : sequence of Region
        What to write; coordinates become (x, y) full-resolution pixels.
    metadata : mapping, optional
        Stored with the collection as the member ``coarse2fine``; see `write_json` for the values allowed.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder does not exist, or `path` is a folder.
    ValueError, TypeError
        If `metadata` holds NaN, infinity or something that is not JSON.
    """
    target = Path(path)
    head = '{"type": "FeatureCollection", '
    if metadata is not None:
        head += f'"coarse2fine": {_dumps(_plain(metadata, "metadata", target))}, '
    with _replacing(target) as stream:
        stream.write((head + '"features": [').encode())
        for index, region in enumerate(regions):
            separator = ",\n" if index else "\n"
            stream.write((separator + _dumps(_feature(region))).encode())
        stream.write(b"\n]}\n")
    return target


def write_json(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> Path:
    """Write a record as indented JSON; an existing file is replaced once the new one is complete.

    Parameters
    ----------
    path : path-like
        File to write; compressed with gzip when the name ends in ``.gz``. Its folder must exist.
    payload : mapping
        May hold, at any depth: mappings, lists, tuples, dataclasses, paths, NumPy scalars and arrays, texts,
        finite numbers, truth values and None.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder does not exist, or `path` is a folder.
    ValueError
        If a number is NaN or infinite; the message says where in the record.
    TypeError
        If a value is of another type; the message says where in the record.
    """
    target = Path(path)
    text = json.dumps(_plain(payload, "", target), allow_nan=False, ensure_ascii=False, indent=2)
    with _replacing(target) as stream:
        stream.write((text + "\n").encode())
    return target


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _feature(region: Region) -> dict[str, Any]:
    y0, x0, y1, x1 = region.full_box
    corners = region.outline if region.outline is not None else ((y0, x0), (y0, x1), (y1, x1), (y1, x0))
    ring = [[float(x), float(y)] for y, x in corners]
    ring.append(ring[0])
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, _dumps([region.label, ring]))),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": region.label, "color": label_colour(region.label)},
            "measurements": {"score": float(region.score)},
            "coarse2fine": {"fired": region.fired},
        },
    }


def _plain(value: Any, place: str, target: Path) -> Any:
    """Turn a value into JSON's own types; `place` is where it stands, for the message."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"cannot write {target}: {place} is {value}, but JSON has no NaN or infinity; "
                "leave the value out or give None"
            )
        return float(value)
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), place, target)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}".lstrip("."), target) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]", target) for index, item in enumerate(value)]
    raise TypeError(
        f"cannot write {target}: {place} is a {type(value).__name__}, expected numbers, texts, mappings, "
        "lists, tuples, dataclasses, paths or NumPy values; convert it first"
    )


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling that takes the name `target` if all goes well and vanishes otherwise."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist; create it first")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder; give the name of a file")
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with contextlib.ExitStack() as stack:
            stream: Any = stack.enter_context(temporary.open("wb"))
            if target.name.endswith(".gz"):
                # Neither name nor time inside, so that equal results are equal files.
                stream = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0))
            yield stream
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
