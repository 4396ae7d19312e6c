"""The annotating page's server: what is asked is done, and nothing else can be done."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from coarse2fine.annotate.serve import open_store
from coarse2fine.annotate.server import MOST_BYTES, TOKEN, AnnotateServer
from coarse2fine.annotations.annotated import AnnotationError
from coarse2fine.annotations.read import read_annotations
from coarse2fine.tiling.opening import open_image
from tests.annotate.local import ask, boxed, send, serving, viewing

WRITES = ("/annotations.json", "/brush.json", "/fit.json", "/cancel.json")


def files(picture: Path) -> list[str]:
    return sorted(path.relative_to(picture.parent.parent).as_posix() for path in picture.parent.parent.rglob("*"))


# Saving


def test_a_change_is_on_disk_when_it_is_confirmed(server: AnnotateServer, picture: Path) -> None:
    _, found = ask(server, "/annotations.json")
    assert found["items"] == []
    status, told = ask(
        server, "/annotations.json", {"revision": found["revision"], "put": [boxed(10, 20, 30, 50)], "delete": []}
    )
    assert status == 200
    (only,) = read_annotations(picture.with_suffix(".geojson")).objects
    assert (only.label, only.full_bounds) == ("cell", (20, 10, 50, 30))
    _, again = ask(server, "/annotations.json")
    assert again["revision"] == told["revision"] > found["revision"]
    assert again["labels"] == ["cell"]
    assert files(picture) == ["scene", "scene/scene.geojson", "scene/scene.png"]


def test_a_stale_change_gets_the_current_annotations(server: AnnotateServer) -> None:
    start = ask(server, "/annotations.json")[1]["revision"]
    first, second = boxed(0, 0, 9, 9), boxed(20, 20, 29, 29)
    assert ask(server, "/annotations.json", {"revision": start, "put": [first], "delete": []})[0] == 200
    status, found = ask(server, "/annotations.json", {"revision": start, "put": [second], "delete": []})
    assert status == 409
    assert found["items"] == [first]
    status, _ = ask(server, "/annotations.json", {"revision": found["revision"], "put": [second], "delete": []})
    assert status == 200
    assert ask(server, "/annotations.json")[1]["items"] == [first, second]


def test_existing_annotations_are_opened(picture: Path) -> None:
    payload = {"type": "FeatureCollection", "features": [boxed(1, 2, 30, 40, "old"), boxed(0, 0, 99, 99, "Region*")]}
    picture.with_name("scene.png.geojson").write_text(json.dumps(payload), "utf-8")
    with serving(picture, ("new", "old")) as server:
        info = ask(server, "/info.json")[1]
        assert info["classes"] == ["new", "old"]
        assert info["file"] == "scene.png.geojson"
        assert ask(server, "/annotations.json")[1]["items"] == payload["features"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"revision": "x"},
        {"revision": True, "put": []},
        {"revision": -1},
        {"revision": 1, "put": {}},
        {"revision": 1, "put": [5]},
        {"revision": 1, "delete": [5]},
        {"revision": 1, "put": [{**boxed(0, 0, 1, 1), "geometry": {"type": "Polygon", "coordinates": [[[0]]]}}]},
    ],
)
def test_changes_that_make_no_sense_are_refused(server: AnnotateServer, picture: Path, body: dict[str, Any]) -> None:
    status, found = ask(server, "/annotations.json", body)
    assert status == 400
    assert "expected" in found["error"] or "cannot be saved" in found["error"]
    assert files(picture) == ["scene", "scene/scene.png"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"revision": NaN}', {}, 400),
        (b"[]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 200_000, {}, 400),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"{}", {"Content_Type": None}, 415),
        (None, {"Content_Length": None}, 411),
        (None, {"Content_Length": "-5"}, 411),
        (None, {"Content_Length": "x"}, 411),
        (None, {"Content_Length": str(MOST_BYTES + 1)}, 413),
        (b"{}", {TOKEN: None}, 403),
        (b"{}", {TOKEN: "wrong"}, 403),
        (b"{}", {TOKEN: ""}, 403),
        (b"{}", {"Host": "evil.example"}, 403),
    ],
)
@pytest.mark.parametrize("path", WRITES)
def test_requests_that_are_no_page_of_ours_are_refused(
    server: AnnotateServer, picture: Path, path: str, content: bytes | None, headers: dict[str, str | None], status: int
) -> None:
    if path == "/cancel.json" and content == b"[]":
        status = 400
    found = send(server, "POST", path, content, **headers)
    assert found[0] == status, found
    assert files(picture) == ["scene", "scene/scene.png"]


def test_reading_changes_nothing_and_needs_the_address(server: AnnotateServer, picture: Path) -> None:
    for path in ("/brush.json", "/fit.json", "/cancel.json"):
        assert send(server, "GET", path)[0] == 404
    for path in ("/info.json", "/annotations.json", "/state.json", "/finds.json", "/places.json"):
        assert send(server, "GET", path)[0] == 200
        assert send(server, "GET", path, Host="evil.example")[0] == 403
    secret, server.secret = server.secret, "guess"
    assert send(server, "GET", "/info.json")[0] == 200
    server.secret = secret
    assert send(server, "GET", f"/../{secret}x/info.json")[0] == 404
    assert files(picture) == ["scene", "scene/scene.png"]


@pytest.mark.parametrize(
    "path",
    [
        *("/files/scene.png", "/scene.geojson", "/../scene.png", "/..%2fscene.png", "/%2e%2e/scene.png"),
        *("//etc/passwd", "/etc/passwd", "/annotate.py", "/view.js", "/tiles/regions/0/0/0", "/tiles/image/9/0/0"),
        *("/tiles/interest/0/0/0", "/annotate.js/../../server.py", "/web/annotate.js"),
    ],
)
def test_nothing_else_can_be_had(server: AnnotateServer, path: str) -> None:
    for method in ("GET", "POST"):
        status, content = send(server, method, path, b"{}" if method == "POST" else None)
        assert (status, content) == (404, b"there is nothing here")


def test_the_page_and_its_parts(server: AnnotateServer) -> None:
    page = send(server, "GET", "/")[1].decode()
    assert "<script>" not in page
    assert " style=" not in page
    for name in ("view.css", "annotate.css", "annotate.js", "openseadragon.min.js", "openseadragon-LICENSE.txt"):
        assert send(server, "GET", f"/{name}")[0] == 200
    script = send(server, "GET", "/annotate.js")[1].decode()
    for name in ("annotate-canvas.js", "annotate-model.js", "annotate-state.js", "annotate-tools.js"):
        assert f'"./{name}"' in script
        assert send(server, "GET", f"/{name}")[0] == 200


def test_tiles_are_the_image(server: AnnotateServer, picture: Path) -> None:
    status, content = send(server, "GET", "/tiles/image/0/0/0")
    assert status == 200
    shown = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    stored = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
    assert shown is not None
    assert stored is not None
    assert np.abs(shown.astype(int) - stored).mean() < 4  # JPEG


# Other answers


def test_a_brush_paints_joins_and_erases(server: AnnotateServer) -> None:
    stroke = {"stroke": [[50, 50], [150, 50]], "radius": 10, "geometry": None}
    painted = ask(server, "/brush.json", stroke)[1]["geometry"]
    area = read_annotations([{**boxed(0, 0, 1, 1), "geometry": painted}]).objects[0].geometry
    assert area.area == pytest.approx(100 * 20 + np.pi * 100, rel=0.02)
    joined = ask(server, "/brush.json", {**stroke, "stroke": [[100, 20], [100, 90]], "geometry": painted})[1][
        "geometry"
    ]
    cross = read_annotations([{**boxed(0, 0, 1, 1), "geometry": joined}]).objects[0].geometry
    assert cross.area == pytest.approx(area.area + 70 * 20 + np.pi * 100 - 400, rel=0.02)
    cut = ask(server, "/brush.json", {**stroke, "stroke": [[100, 0], [100, 99]], "geometry": painted, "erase": True})[1]
    assert cut["geometry"]["type"] == "MultiPolygon"
    gone = ask(server, "/brush.json", {**stroke, "radius": 90, "geometry": painted, "erase": True})[1]
    assert gone == {"geometry": None}
    at_edge = ask(server, "/brush.json", {"stroke": [[0, 0]], "radius": 10, "geometry": None})[1]["geometry"]
    assert np.min(at_edge["coordinates"][0]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"stroke": []},
        {"stroke": [[1]]},
        {"stroke": [["a", 1]]},
        {"stroke": [[1, 1]] * 20_001},
        {"radius": 0},
        {"radius": "9"},
        {"radius": 1e6},
        {"geometry": {"type": "Point", "coordinates": [1, 1]}},
        {"geometry": {"type": "Polygon"}},
        {"geometry": 5},
    ],
)
def test_strokes_that_make_no_sense_are_refused(server: AnnotateServer, change: dict[str, Any]) -> None:
    body = {"stroke": [[50, 50]], "radius": 10, "geometry": None, **change}
    assert ask(server, "/brush.json", body)[0] == 400


def test_places_without_a_model(server: AnnotateServer) -> None:
    found = ask(server, "/places.json?count=3")[1]["places"]
    assert [place["kind"] for place in found] == ["random"] * 3
    assert len(ask(server, "/places.json?count=50")[1]["places"]) == 4  # two rows and two columns of 256 pixels
    for query in ("?count=0", "?count=51", "?count=x", "?seed=-1", "?count=" + "9" * 5000):
        assert ask(server, f"/places.json{query}")[0] == 400


def test_places_leave_out_what_is_done(server: AnnotateServer) -> None:
    revision = ask(server, "/annotations.json")[1]["revision"]
    put = [boxed(0, 0, 400, 290, "Region*"), boxed(5, 5, 25, 25)]
    ask(server, "/annotations.json", {"revision": revision, "put": put, "delete": []})
    assert ask(server, "/places.json")[1]["places"] == []


def test_colours(server: AnnotateServer) -> None:
    assert len(ask(server, "/colour.json?label=cell")[1]["colour"]) == 3
    for query in ("", "?label=", "?label=" + "x" * 201):
        assert ask(server, f"/colour.json{query}")[0] == 400


# Which file


def test_another_format_is_copied_beside_the_image(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = {
        "images": [{"id": 1, "file_name": "scene.png", "width": 400, "height": 300}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}],
    }
    path = picture.with_name("coco.json")
    path.write_text(json.dumps(coco), "utf-8")
    with open_image(picture) as image:
        store = open_store(image, path)
        assert store.path == picture.with_suffix(".geojson")
        assert read_annotations(store.path).objects[0].full_bounds == (20, 10, 60, 40)
        assert json.loads(path.read_text("utf-8")) == coco
        with pytest.raises(AnnotationError, match="is not GeoJSON in pixels"):
            open_store(image, path)


def test_files_that_cannot_be(picture: Path) -> None:
    with open_image(picture) as image:
        with pytest.raises(AnnotationError, match=r"must end in .geojson"):
            open_store(image, picture.with_name("new.txt"))
        with pytest.raises(FileNotFoundError, match="make it first"):
            open_store(image, picture.parent / "no" / "new.geojson")
        other = picture.with_name("other.geojson")
        assert open_store(image, other).path == other
    with open_image(np.zeros((50, 50), np.uint8)) as image, pytest.raises(AnnotationError, match="--annotations"):
        open_store(image, None)


# The command


@pytest.mark.slow
def test_a_killed_server_loses_nothing(picture: Path) -> None:
    with viewing(picture, "--classes", "cell", "ä b") as (running, url):
        remote = Remote(url)
        info = remote.ask("info.json")
        assert info["classes"] == ["cell", "ä b"]
        remote.token = info["token"]
        found = remote.ask("annotations.json")
        assert found["items"] == []
        for i in range(3):
            change = {"revision": found["revision"], "put": [boxed(i, 0, i + 9, 9)], "delete": []}
            found = remote.ask("annotations.json", change)
        running.kill()
    with serving(picture) as again:
        found = ask(again, "/annotations.json")[1]
        assert len(found["items"]) == 3
        more = [boxed(i, 1, i + 9, 9) for i in range(3)]
        assert ask(again, "/annotations.json", {"revision": found["revision"], "put": more, "delete": []})[0] == 200
    assert len(read_annotations(picture.with_suffix(".geojson")).objects) == 6
    assert files(picture) == ["scene", "scene/scene.geojson", "scene/scene.png"]


class Remote:
    """A server of another process."""

    token = ""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", TOKEN: self.token}
        with urllib.request.urlopen(urllib.request.Request(self._url + path, content, headers), timeout=60) as answer:
            return dict(json.load(answer))
