"""Search of a Zarr for its image, for other images, and for stored chunks."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from ..errors import ImageError
from ..geometry import ceil_div
from ..storage.byte_files import Keys, check_inside
from .zarr_array import ChunkPlan

MARKERS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
OURS = "coarse2fine"
"""Attribute by which images that `convert` wrote are known."""
_LOOKED_AT = (0.0, 0.5, 1.0, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875)
"""Chunks looked up on opening, as fractions of the range from first to last. The first hit ends the search."""
_ENTRIES = 1000
"""Most entries of a folder that are examined to find a chunk or an image."""
_NAMED = 3
"""Most images that a message names; the others are counted."""


def metadata_of(keys: Keys, prefix: str) -> dict[str, Any]:
    """Metadata of an array or a group, of either version, with its attributes.

    Raises
    ------
    ValueError
        If the prefix leads out of the Zarr, or the metadata are not a JSON object.
    """
    check_inside(prefix)
    text = get(keys, f"{prefix}zarr.json")
    if text is not None:
        return _object(text)
    attributes = _object(get(keys, f"{prefix}.zattrs") or b"{}")
    array = get(keys, f"{prefix}.zarray")
    return {**(_object(array) if array is not None else {}), "attributes": attributes}


def _object(text: bytes) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {type(found).__name__}")
    return cast("dict[str, Any]", found)


def get(keys: Keys, key: str) -> bytes | None:
    """Read a value that may be missing; some servers answer "not permitted" then."""
    try:
        return keys.get(key)
    except PermissionError:
        return None


def ome_of(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """OME-Zarr metadata of a group: below ``ome`` from version 0.5 on."""
    attributes = group.get("attributes") or {}
    ome = attributes.get("ome", attributes) if isinstance(attributes, Mapping) else {}
    return ome if isinstance(ome, Mapping) else {}


def find_image(keys: Keys, group: Mapping[str, Any], label: str) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Find the image of a group: its own, or the first of several.

    Parameters
    ----------
    keys : Keys
    group : mapping
        Metadata of the group.
    label : str
        Path or address, for messages.

    Returns
    -------
    dict
        The first entry of the image's ``multiscales``, with ``omero`` and this package's own attributes.
    str
        Path of the image among the keys: empty, or ending with a slash.
    tuple of str
        Notes on other images, with the paths to pass for them.

    Raises
    ------
    ImageError
        If there is no image, or a plate of many images.
    """
    ome, prefix = ome_of(group), ""
    notes: tuple[str, ...] = ()
    if "plate" in ome:
        raise ImageError(f"{label}: {_plate(keys, ome['plate'], label)}")
    if "bioformats2raw.layout" in ome:
        paths = _series(keys)
        prefix, notes = f"{paths[0]}/", _first_of(paths, label)
    elif "well" in ome and not ome.get("multiscales"):
        paths = _paths(ome["well"].get("images"))
        if paths:
            prefix, notes = f"{paths[0]}/", _first_of(paths, label)
    if prefix:
        group = metadata_of(keys, prefix)
        ome = ome_of(group)
    found = ome.get("multiscales")
    if not found:
        raise ImageError(
            f"{label}: the Zarr group has no 'multiscales' metadata; pass the path of an image inside it"
            f"{_such_as(_images_in(keys), label)}"
        )
    if len(found) > 1:
        notes = (*notes, f"first of {len(found)} multiscale images of the group used")
    beside = {"omero": ome.get("omero"), OURS: (group.get("attributes") or {}).get(OURS)}
    return {**found[0], **beside}, prefix, notes


def _series(keys: Keys) -> list[str]:
    """Paths of the images of a bioformats2raw folder: listed in the group OME, or numbered from 0."""
    listed = _paths(ome_of(metadata_of(keys, "OME/")).get("series"))
    if listed:
        return listed
    numbers = itertools.takewhile(lambda path: _is_group(keys, path), map(str, range(1, _ENTRIES)))
    # On a server, which cannot list names, only the next one is looked up.
    return ["0", *(numbers if keys.names("", 1) is not None else itertools.islice(numbers, 1))]


def _paths(entries: Any) -> list[str]:
    """Paths inside the Zarr named by a list, as text or as ``{"path": ...}``."""
    paths = [str(each["path"] if isinstance(each, Mapping) else each).strip("/") for each in entries or ()]
    for path in paths:
        check_inside(path)
    return paths


def _is_group(keys: Keys, path: str) -> bool:
    try:
        return any(keys.has(f"{path}/{marker}") for marker in ("zarr.json", ".zgroup", ".zarray"))
    except PermissionError:
        return False


def _first_of(paths: list[str], label: str) -> tuple[str, ...]:
    if len(paths) < 2:
        return ()
    more = f" and {len(paths) - 1 - _NAMED} more" if len(paths) - 1 > _NAMED else ""
    others = ", ".join(below(label, path) for path in paths[1 : 1 + _NAMED])
    return (f"image '{paths[0]}', the first of {len(paths)}, is read; pass {others}{more} for the others",)


def _plate(keys: Keys, plate: Any, label: str) -> str:
    wells = _paths(plate.get("wells"))
    examples = []
    for well in wells[:1]:
        fields = _paths((ome_of(metadata_of(keys, f"{well}/")).get("well") or {}).get("images")) or ["0"]
        examples = [f"{well}/{field}" for field in fields]
    hint = f", or a glob such as {below(label, '*/*/[0-9]*')} for all" if keys.names("", 1) is not None else ""
    return (
        f"it is a plate of {len(wells)} well(s), each with images of its own; pass one of these"
        f"{_such_as(examples, label)}{hint}"
    )


def _images_in(keys: Keys) -> list[str]:
    """Names of groups and arrays directly inside; empty if they cannot be listed."""
    names = keys.names("", _ENTRIES) or []
    folders = sorted(name.rstrip("/") for name in names if name.endswith("/"))
    return [name for name in folders if _is_group(keys, name)]


def _such_as(paths: list[str], label: str) -> str:
    return f", such as {', '.join(below(label, path) for path in paths[:_NAMED])}" if paths else ""


def below(label: str, path: str) -> str:
    """Path or address of a path inside a Zarr; the query of an address stays at its end."""
    place, mark, query = label.partition("?") if label.startswith(("http://", "https://")) else (label, "", "")
    return f"{place.rstrip('/')}/{path}{mark}{query}"


def check_chunks(keys: Keys, prefix: str, plan: ChunkPlan, label: str) -> tuple[str, ...]:
    """Look for a few chunks of an array.

    Parameters
    ----------
    keys : Keys
    prefix : str
        Path of the array among them: empty, or ending with a slash.
    plan : ChunkPlan
    label : str
        Path or address, for messages.

    Returns
    -------
    tuple of str
        A note if none is found: this is legal, and all pixels have the fill value.

    Raises
    ------
    ImageError
        If chunks are stored under keys with another separator than the metadata state: all would read as missing.
    """
    shards = [ceil_div(size, shard) for size, shard in zip(plan.shape, plan.shard, strict=True)]
    own, other = _shape_of_keys(plan), _shape_of_keys(plan, swapped=True)
    places = _places(shards)
    try:
        for position in places:
            key = plan.key(position)
            if keys.has(prefix + key):
                return ()
            wrong = _swapped(key)
            if wrong != key and keys.has(prefix + wrong):
                raise _wrong_separator(label, key, wrong)
    except PermissionError:  # some servers answer so for missing objects
        return ()
    for name in _files(keys, prefix):
        if own.fullmatch(name):
            return ()
        if other.fullmatch(name):
            raise _wrong_separator(label, plan.key(places[0]), name)
    where = "no chunk is stored" if keys.names(prefix, 1) is not None else f"none of {len(places)} chunks found"
    of = f" of level '{prefix.rstrip('/')}'" if prefix else ""
    return (f"{where}{of}: all pixels have the fill value {plan.fill}",)


def _wrong_separator(label: str, key: str, found: str) -> ImageError:
    return ImageError(
        f"{label}: by its metadata chunks are stored under keys such as '{key}', but there is '{found}'; "
        "correct the separator in the metadata (dimension_separator or chunk_key_encoding)"
    )


def _places(shards: list[int]) -> list[tuple[int, ...]]:
    """Positions that are looked up: the first, the middle, the last, and some between them."""
    places = (tuple(round(share * (count - 1)) for count in shards) for share in _LOOKED_AT)
    return list(dict.fromkeys(places))


def _swapped(key: str) -> str:
    return key.replace(".", "/") if "." in key else key.replace("/", ".")


def _shape_of_keys(plan: ChunkPlan, *, swapped: bool = False) -> re.Pattern[str]:
    """Pattern of the keys of an array."""
    key = plan.key((0,) * len(plan.shape))
    return re.compile(re.escape(_swapped(key) if swapped else key).replace("0", "[0-9]+"))


def _files(keys: Keys, prefix: str) -> Iterator[str]:
    """Files among a limited number of entries of an array's folder; empty if they cannot be listed."""
    folders, left = [""], _ENTRIES
    while folders and left > 0:
        folder = folders.pop()
        names = keys.names(prefix + folder, left) or []
        left -= 1 + len(names)
        folders += [folder + name for name in names if name.endswith("/")]
        yield from (folder + name for name in names if not name.endswith("/"))
