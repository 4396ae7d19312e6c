"""The file of annotations: nothing that was confirmed is lost, nothing that is not ours is changed."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from coarse2fine.annotate.store import AnnotationStore, StaleError
from coarse2fine.annotations.annotated import AnnotationError
from coarse2fine.annotations.read import read_annotations
from tests.annotate.local import boxed


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    store = AnnotationStore(path)
    assert not path.exists()
    first, second = boxed(10, 20, 30, 50), boxed(1.5, 2.25, 3.75, 4, "Zelle \u2028ä")
    revision = store.change(store.revision, [first, second], [])
    revision = store.change(revision, [boxed(0, 0, 9, 9) | {"id": first["id"]}], ["unknown"])
    read = read_annotations(path)
    assert [(a.label, a.full_bounds, a.is_box) for a in read.objects] == [
        ("cell", (0, 0, 9, 9), True),
        ("Zelle \u2028ä", (2.25, 1.5, 4, 3.75), True),
    ]
    store.change(revision, [], [second["id"]])
    assert len(read_annotations(path).objects) == 1
    assert AnnotationStore(path).snapshot()[1] == store.snapshot()[1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"]


def test_rejected_finds_are_remembered_but_are_no_annotations(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a.geojson")
    rejected = boxed(5, 5, 9, 9, coarse2fine={"rejected": True})
    store.change(store.revision, [boxed(10, 20, 30, 50), rejected], [])
    assert len(read_annotations(store.path).objects) == 1
    again = AnnotationStore(store.path)
    assert rejected in again.snapshot()[1]
    again.change(again.revision, [], [rejected["id"]])
    assert "rejected" not in store.path.read_text("utf-8")


def test_features_and_members_of_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    line = {"type": "Feature", "id": "l", "geometry": {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}}
    line["properties"] = {"objectType": "annotation", "name": "scratch"}
    named = boxed(1, 2, 3, 4, name="mine", isLocked=True, measurements={"Area": 4.5})
    numbered = {**boxed(5, 6, 7, 8), "id": 7}
    points = {
        "type": "Feature",
        "geometry": {"type": "MultiPoint", "coordinates": [[1, 1], [2, 2]]},
        "properties": None,
    }
    payload = {"type": "FeatureCollection", "author": {"name": "Q"}, "features": [line, named, numbered, points, named]}
    path.write_text(json.dumps(payload), "utf-8")
    store = AnnotationStore(path)
    items = store.snapshot()[1]
    assert [item["geometry"]["type"] for item in items] == ["Polygon", "Polygon", "Point", "Point", "Polygon"]
    assert len({item["id"] for item in items}) == 5
    store.change(store.revision, [boxed(0, 0, 1, 1)], [])
    written = json.loads(path.read_text("utf-8"))
    assert written["author"] == {"name": "Q"}
    assert line in written["features"]
    assert named in written["features"]
    assert len(written["features"]) == 7


def test_a_stale_change_is_refused_whole(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a.geojson")
    old = store.revision
    store.change(old, [boxed(0, 0, 1, 1)], [])
    before = store.path.read_bytes()
    with pytest.raises(StaleError):
        store.change(old, [boxed(5, 5, 6, 6)], [])
    assert store.path.read_bytes() == before


def test_changes_of_other_programs_come_first(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    store = AnnotationStore(path)
    revision = store.change(store.revision, [boxed(0, 0, 1, 1)], [])
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [boxed(2, 2, 3, 3, "other")]}), "utf-8")
    with pytest.raises(StaleError):
        store.change(revision, [boxed(5, 5, 6, 6)], [])
    revision, items = store.snapshot()
    assert [item["properties"]["classification"]["name"] for item in items] == ["other"]
    store.change(revision, [boxed(5, 5, 6, 6)], [])
    assert len(read_annotations(path).objects) == 2


def test_a_damaged_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    store = AnnotationStore(path)
    revision = store.change(store.revision, [boxed(0, 0, 1, 1)], [])
    path.write_text("half a fi", "utf-8")
    with pytest.raises(AnnotationError, match="is not JSON"):
        store.change(revision, [boxed(5, 5, 6, 6)], [])
    assert path.read_text("utf-8") == "half a fi"


def test_a_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a.geojson")
    revision = store.change(store.revision, [boxed(0, 0, 1, 1)], [])
    store.path.unlink()
    store.change(revision, [boxed(5, 5, 6, 6)], [])
    assert len(read_annotations(store.path).objects) == 2


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AnnotationStore(tmp_path / "a.geojson")
    revision = store.change(store.revision, [boxed(0, 0, 1, 1)], [])
    before = store.path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("coarse2fine.tiling.writing.atomic.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.change(revision, [boxed(5, 5, 6, 6)], [])
    assert store.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"]
    assert store.change(revision, [boxed(5, 5, 6, 6)], []) > revision


def test_gzipped_files_stay_so(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson.gz"
    path.write_bytes(gzip.compress(json.dumps([boxed(0, 0, 1, 1)]).encode()))
    store = AnnotationStore(path)
    store.change(store.revision, [boxed(5, 5, 6, 6)], [])
    assert len(json.loads(gzip.decompress(path.read_bytes()))["features"]) == 2


@pytest.mark.parametrize(
    "payload",
    [
        {"images": [], "annotations": [], "categories": []},
        {"type": "FeatureCollection", "features": 5},
        {"type": "FeatureCollection", "features": [], "crs": {"type": "name", "properties": {"name": "EPSG:32618"}}},
        {"some": "thing"},
    ],
)
def test_other_formats_are_refused(tmp_path: Path, payload: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(payload), "utf-8")
    with pytest.raises(AnnotationError, match="is not GeoJSON in pixels"):
        AnnotationStore(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": None}, "needs an id"),
        ({"id": "x" * 201}, "needs an id"),
        ({"type": "Thing"}, "is not a GeoJSON Feature"),
        ({"properties": None}, "with properties"),
        ({"geometry": None}, "has no geometry"),
        ({"geometry": {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}}, "expected Point"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[0, 0], ["a", 1], [1, 1]]]}}, "coordinates"),
        ({"geometry": {"type": "Point", "coordinates": [1e400, 1]}}, "coordinates"),
        ({"geometry": {"type": "MultiPoint", "coordinates": [[1, 1], [2, 2]]}}, "not a single object"),
    ],
)
def test_features_that_cannot_be_read_back_are_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    store = AnnotationStore(tmp_path / "a.geojson")
    with pytest.raises(AnnotationError, match=why):
        store.change(store.revision, [boxed(0, 0, 1, 1), {**boxed(0, 0, 1, 1), **change}], [])
    assert not store.path.exists()


def test_eight_tabs_at_once_lose_nothing(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a.geojson")

    def draw(number: int) -> None:
        for i in range(10):
            made = boxed(number, i, number + 1, i + 1)
            while True:
                try:
                    store.change(store.revision, [made], [])
                    break
                except StaleError:
                    continue

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {a.full_bounds[:2] for a in read_annotations(store.path).objects}
    assert found == {(i, number) for number in range(8) for i in range(10)}
