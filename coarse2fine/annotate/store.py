"""The annotations of an image on disk, as GeoJSON for QuPath: each change is written before it is confirmed.

Rejected finds are kept in the collection's member ``coarse2fine``, which other programs ignore. Features that cannot be
drawn, such as lines, and all other members are kept as they are.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from coarse2fine.annotations.annotated import AnnotationError
from coarse2fine.annotations.files import load
from coarse2fine.annotations.geojson import is_geojson, named_crs, parse_geojson
from coarse2fine.tiling.writing.atomic import replacing_stream

Feature: TypeAlias = dict[str, Any]

MOST_FEATURES = 200_000
_OWN = "coarse2fine"
_REJECTED = "rejected"
_LONGEST_ID = 200


class StaleError(Exception):
    """A change was made to an older revision than the current one."""


class AnnotationStore:
    """The annotations in one file; safe to use from several threads.

    Parameters
    ----------
    path : Path
        GeoJSON file in full-resolution pixels, gzipped if its name ends in ``.gz``. It is made at the first change if
        it does not exist.

    Attributes
    ----------
    path : Path

    Raises
    ------
    AnnotationError
        If the file cannot be read, or is no GeoJSON in pixels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._revision = 1
        self._seen = self._signature()
        self._items: dict[str, Feature] = {}
        self._others: list[Any] = []
        self._members: dict[str, Any] = {}
        if self._seen is not None:
            self._read()

    def snapshot(self) -> tuple[int, list[Feature]]:
        """The current revision, and its features that can be drawn, with rejected finds."""
        with self._lock:
            self._follow()
            return self._revision, list(self._items.values())

    @property
    def revision(self) -> int:
        """Number of the current revision; it grows with every change."""
        with self._lock:
            self._follow()
            return self._revision

    def change(self, revision: int, put: Sequence[Feature], delete: Iterable[str]) -> int:
        """Add or replace features, delete others, and write the file; returns the new revision.

        Parameters
        ----------
        revision : int
            Revision that the change was made to.
        put : sequence of dict
            GeoJSON features with an ``id``.
        delete : iterable of str
            Identifiers; unknown ones are ignored.

        Raises
        ------
        StaleError
            If another revision is the current one; nothing is changed.
        AnnotationError
            If a feature cannot be used, or the file was changed and cannot be read any more.
        OSError
            If the file cannot be written; nothing is changed.
        """
        for feature in put:
            check_feature(feature)
        with self._lock:
            self._follow()
            if revision != self._revision:
                raise StaleError
            items = self._items | {feature["id"]: feature for feature in put}
            for identifier in delete:
                items.pop(identifier, None)
            if len(items) > MOST_FEATURES:
                raise AnnotationError(f"expected at most {MOST_FEATURES:,} annotations, got {len(items):,}")
            self._write(items)
            self._items = items
            self._seen = self._signature()
            self._revision += 1
            return self._revision

    def _follow(self) -> None:
        """Read the file again if another program has changed it; one that is gone is written at the next change."""
        found = self._signature()
        if found is not None and found != self._seen:
            self._read()
            self._seen = found
            self._revision += 1

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        payload = load(self.path).payload
        if not in_pixels(payload):
            raise AnnotationError(
                f"{self.path} is not GeoJSON in pixels: annotations cannot be saved there; name another file"
            )
        if not isinstance(payload, dict) or payload.get("type") == "Feature":
            payload = {"type": "FeatureCollection", "features": payload if isinstance(payload, list) else [payload]}
        items: dict[str, Feature] = {}
        others = []
        for feature in payload["features"]:
            for each in _single(feature):
                if _flaw(each) is None:
                    if each["id"] in items:
                        each["id"] = str(uuid.uuid4())
                    items[each["id"]] = each
                else:
                    others.append(feature)
        members = {key: value for key, value in payload.items() if key != "features"}
        own = members.get(_OWN)
        for each in own.pop(_REJECTED, []) if isinstance(own, dict) else []:
            if _flaw(each) is None and is_rejected(each):
                items[each["id"]] = each
        self._items, self._others, self._members = items, others, members

    def _write(self, items: Mapping[str, Feature]) -> None:
        rejected = [item for item in items.values() if is_rejected(item)]
        own = self._members.get(_OWN, {})
        members = {"type": "FeatureCollection", **self._members}
        if rejected or own:
            members[_OWN] = {**own, **({_REJECTED: rejected} if rejected else {})}
        kept = [item for item in items.values() if not is_rejected(item)]
        head = json.dumps(members, allow_nan=False)[:-1]
        lines = ",\n".join(json.dumps(feature, allow_nan=False) for feature in [*kept, *self._others])
        with replacing_stream(self.path, sync=True) as stream:
            stream.write(f'{head}, "features": [\n{lines}\n]}}\n'.encode())
        _sync(self.path.parent)


def in_pixels(payload: Any) -> bool:
    """Whether a JSON value is GeoJSON without a coordinate reference system."""
    if not is_geojson(payload):
        return False
    if isinstance(payload, dict) and payload["type"] == "FeatureCollection":
        return isinstance(payload.get("features"), list) and named_crs(payload) is None
    return True


def is_rejected(feature: Feature) -> bool:
    """Whether a feature is a find that was rejected."""
    own = feature["properties"].get(_OWN)
    return isinstance(own, dict) and own.get(_REJECTED) is True


def label_in(feature: Feature) -> str | None:
    """Class of a feature that `check_feature` accepts."""
    parsed = parse_geojson([feature])
    return parsed.drafts[0].label if parsed is not None and parsed.drafts else None


def new_feature(geometry: Mapping[str, Any], label: str, colour: Sequence[int], more: Mapping[str, Any]) -> Feature:
    """A GeoJSON feature as QuPath writes annotations; `more` are further properties."""
    classification = {"name": label, "color": list(colour)}
    properties = {"objectType": "annotation", "classification": classification, **more}
    return {"type": "Feature", "id": str(uuid.uuid4()), "geometry": dict(geometry), "properties": properties}


def check_feature(feature: Any) -> None:
    """Raise an AnnotationError if a feature cannot be drawn and read back."""
    flaw = _flaw(feature)
    if flaw is not None:
        raise AnnotationError(f"an annotation cannot be saved: it {flaw}")


def _flaw(feature: Any) -> str | None:
    """Reason why a feature cannot be drawn and read back."""
    if not isinstance(feature, dict) or not isinstance(feature.get("properties"), dict):
        return "is no GeoJSON Feature with properties"
    identifier = feature.get("id")
    if not isinstance(identifier, str) or not 0 < len(identifier) <= _LONGEST_ID:
        return f"needs an id of 1 to {_LONGEST_ID} characters"
    parsed = parse_geojson([feature])
    if parsed is None:
        return "is no GeoJSON Feature"
    if parsed.strays:
        return parsed.strays[0].reason
    return None if len(parsed.drafts) == 1 else "is not a single object"


def _single(feature: Any) -> list[Any]:
    """The feature with an identifier and properties; several features for a MultiPoint."""
    if not isinstance(feature, dict):
        return [feature]
    geometry, properties = feature.get("geometry"), feature.get("properties")
    made = {**feature, "properties": properties if isinstance(properties, dict) else {}}
    identifier = feature.get("id")
    made["id"] = str(identifier) if isinstance(identifier, str | int) and identifier != "" else str(uuid.uuid4())
    if not isinstance(geometry, dict) or geometry.get("type") != "MultiPoint":
        return [made]
    points = geometry.get("coordinates")
    if not isinstance(points, list) or not points:
        return [made]
    return [{**made, "id": str(uuid.uuid4()), "geometry": {"type": "Point", "coordinates": point}} for point in points]


def _sync(folder: Path) -> None:
    """Wait until a rename in a folder is on disk, if the system can."""
    if hasattr(os, "O_DIRECTORY"):
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
