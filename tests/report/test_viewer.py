"""The viewer's server: its tiles are the image and the result, and it gives away nothing else."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import Analysis, analyze
from coarse2fine.model import Model
from coarse2fine.region import Region
from coarse2fine.report.viewer import ViewServer, serve
from coarse2fine.report.viewer_tiles import TILE, Tiles, _Kept
from coarse2fine.results.colours import label_colours
from coarse2fine.tiling.geometry import Box

SIZE = (700, 1100)


@pytest.fixture(scope="module")
def analysis(detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Analysis]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = np.stack([y // 3 % 256, x // 5 % 256, (y + x) // 8 % 256], axis=-1).astype(np.uint8)
    path = tmp_path_factory.mktemp("view") / "bild.png"
    cv2.imwrite(str(path), pixels[..., ::-1])
    outline = ((600.0, 900.0), (690.0, 900.0), (690.0, 1000.0))
    with analyze(path, detector, budget=0.5, precision="fp32") as made:
        regions = (
            Region("<b>left</b>", 0.9, (100.0, 200.0, 140.0, 260.0), None, ("feature 3",)),
            Region("right", 0.8, (600.0, 900.0, 690.0, 1000.0), outline),
            Region("right", 0.7, (300.0, 300.0, 301.0, 301.0)),
        )
        yield replace(made, regions=regions)


@pytest.fixture(scope="module")
def result(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = analysis.save(tmp_path_factory.mktemp("view") / "out")
    (folder / ".hidden").write_text("secret")
    (folder.parent / "outside.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def server(result: Path) -> Iterator[ViewServer]:
    with Analysis.load(result) as loaded, ViewServer(loaded, result, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(
    server: ViewServer, path: str, method: str = "GET", host: str | None = None, secret: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Ask for a path as it stands; libraries would tidy it up."""
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        link.putrequest(method, f"/{server.secret if secret is None else secret}{path}", skip_host=host is not None)
        if host is not None:
            link.putheader("Host", host)
        link.endheaders()
        answer = link.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        link.close()


def decoded(content: bytes | None) -> NDArray[Any]:
    assert content is not None
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return np.asarray(pixels)


# Tiles


def test_tiles_are_the_image_at_every_level(server: ViewServer, analysis: Analysis) -> None:
    assert server.tiles.last_level == 2
    for level, downsample in ((0, 4), (1, 2), (2, 1)):
        height, width = -(-SIZE[0] // downsample), -(-SIZE[1] // downsample)
        for row in range(-(-height // TILE)):
            for column in range(-(-width // TILE)):
                box = Box(row, column, row + 1, column + 1).scale(TILE).expand(1).intersect(Box(0, 0, height, width))
                assert box is not None
                status, headers, content = get(server, f"/tiles/image/{level}/{row}/{column}")
                assert (status, headers["Content-Type"]) == (200, "image/jpeg")
                expected = analysis.image.read_scaled(box, downsample)
                shown = cv2.cvtColor(decoded(content), cv2.COLOR_BGR2RGB)
                assert shown.shape == expected.shape
                assert np.abs(shown.astype(int) - expected).mean() < 4  # JPEG


@pytest.mark.parametrize(
    "path",
    [
        *("/tiles/image/3/0/0", "/tiles/image/2/2/0", "/tiles/image/2/0/3", "/tiles/regions/6/0/0"),
        *("/tiles/other/0/0/0", "/tiles/image/0/0/0.jpg", "/tiles/image/-1/0/0", "/tiles/image/0/0/" + "9" * 99),
    ],
)
def test_there_are_no_other_tiles(server: ViewServer, path: str) -> None:
    assert get(server, path)[0] == 404


@pytest.mark.parametrize("level", [0, 1, 2, 3, 5])
def test_interest_is_the_greatest_of_the_cells_beneath(analysis: Analysis, level: int) -> None:
    tiles = Tiles(analysis)
    downsample = 2.0 ** (tiles.last_level - level)
    shown = decoded(tiles.tile("interest", level, 0, 0))
    for y, x in np.random.default_rng(0).integers(0, min(shown.shape[:2]), (20, 2)).tolist():
        low, high = ((v * downsample, (v + 1) * downsample) for v in (y, x))
        cell = analysis.cell
        rows = slice(int(low[0] // cell), int(np.ceil(low[1] / cell)))
        columns = slice(int(high[0] // cell), int(np.ceil(high[1] / cell)))
        opacity = np.clip(3 * analysis.interest[rows, columns].max() / analysis.interest.max(), 0, 0.85) * 255
        assert shown[y, x, 3] == pytest.approx(opacity, abs=3.5)


def test_regions_are_drawn_where_they_are(analysis: Analysis) -> None:
    tiles = Tiles(analysis)
    shown = decoded(tiles.tile("regions", 2, 0, 0))
    assert shown[100, 230, 3] == 255  # the upper side of the first
    assert shown[120, 230, 3] == 0
    assert shown[300:302, 300:302, 3].all()  # the smallest is a dot
    assert not decoded(tiles.tile("regions", 2, 0, 0, frozenset({0, 1})))[..., 3].any()
    index = tiles.labels.index("<b>left</b>")
    assert decoded(tiles.tile("regions", 2, 0, 0, frozenset({1 - index})))[100, 230, 3] == 255
    slanted = decoded(tiles.tile("regions", 2, 1, 1))
    y, x = np.nonzero(slanted[..., 3])
    assert (y.min() + TILE - 1, x.min() + TILE - 1) == pytest.approx((600, 900), abs=2)
    assert slanted[644 - TILE + 1, 950 - TILE + 1, 3] == 255  # the diagonal
    closer = decoded(tiles.tile("regions", 5, 1, 3))  # eight pixels for one
    rows = np.nonzero(closer[:, 100, 3])[0]
    assert rows.tolist() == [800 - TILE, 800 - TILE + 1, 800 - TILE + 2] or len(rows) == 2


def test_windows_are_the_plan(analysis: Analysis) -> None:
    tiles = Tiles(analysis)
    whole = decoded(tiles.tile("windows", 2, 0, 0))[..., 3] > 0
    expected = np.zeros((TILE + 1, TILE + 1), bool)
    for row in analysis.tiles.itertuples():
        if row.full_y0 <= TILE and row.full_x0 <= TILE:
            expected[row.full_y0, row.full_x0] = True
    assert whole[expected].all()


def test_crowds_are_drawn_as_outlines_and_as_dots(analysis: Analysis) -> None:
    rng = np.random.default_rng(0)
    corners = (rng.random((20_000, 2)) * 600).tolist()
    many = tuple(Region("a", 0.5, (y, x, y + 9, x + 9)) for y, x in corners)
    tiles = Tiles(replace(analysis, regions=many))
    assert decoded(tiles.tile("regions", 2, 0, 0))[..., 3].any()
    assert decoded(tiles.tile("regions", 0, 0, 0))[..., 3].mean() > 50


def test_kept_tiles_are_bounded() -> None:
    kept = _Kept(10)
    assert [kept.get((0, 0, i % 3), lambda i=i: bytes([i] * 5)) for i in range(4)][3] == bytes([3] * 5)  # type: ignore[misc]
    assert kept.get((0, 0, 0), bytes) == bytes([3] * 5)


# Facts


def test_the_page_and_what_it_needs(server: ViewServer, result: Path) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/view.js", "text/javascript"),
        ("/view.css", "text/css"),
        ("/openseadragon.min.js", "text/javascript"),
        ("/openseadragon-LICENSE.txt", "text/plain"),
    ):
        status, headers, content = get(server, path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert len(content) == int(headers["Content-Length"])
        status, headers, nothing = get(server, path, "HEAD")
        assert (status, nothing, int(headers["Content-Length"])) == (200, b"", len(content))
    assert get(server, "/", "POST")[0] == 501
    info = json.loads(get(server, "/info.json")[2])
    assert (info["name"], info["width"], info["height"]) == ("bild", 1100, 700)
    assert {label["name"]: label["count"] for label in info["labels"]} == {"right": 2, "<b>left</b>": 1}
    assert info["files"] == sorted(p.name for p in result.iterdir() if p.is_file() and p.name != ".hidden")


def test_what_lies_under_a_point(server: ViewServer) -> None:
    found = json.loads(get(server, "/at.json?y=120&x=230")[2])
    (region,) = found["regions"]
    assert region == {
        "label": "<b>left</b>",
        "score": 0.9,
        "fired": "feature 3",
        "route": [],
        "box": [200.0, 100.0, 260.0, 140.0],
    }
    for query in ("", "?y=1", "?y=a&x=1"):
        assert get(server, f"/at.json{query}")[0] == 400
    assert json.loads(get(server, "/at.json?y=inf&x=nan")[2]) == {"regions": [], "windows": []}


def test_files_of_the_result_can_be_had(server: ViewServer, result: Path) -> None:
    status, headers, content = get(server, "/files/regions.geojson")
    assert (status, content) == (200, (result / "regions.geojson").read_bytes())
    assert headers["Content-Type"] == "application/octet-stream"


# What must not be given away


@pytest.mark.parametrize(
    "path",
    [
        *("/files/../outside.txt", "/files/..%2foutside.txt", "/files/%2e%2e/outside.txt", "/../outside.txt"),
        *("/files/..%5coutside.txt", "/files//etc/passwd", "/files/%2fetc%2fpasswd", "/etc/passwd", "/files/"),
        *("/files/.hidden", "/files/maps.ome.zarr", "/files/maps.ome.zarr/zarr.json", "/files/.", "/files/.."),
        *("/files/analysis.json%00.txt", "/files/" + "a" * 5000, "//evil.example/files/analysis.json", "/view.py"),
    ],
)
def test_nothing_outside_can_be_had(server: ViewServer, path: str) -> None:
    status, _, content = get(server, path)
    assert status == 404
    assert b"secret" not in content
    assert b"root:" not in content


def test_a_link_leads_nowhere(server: ViewServer, result: Path) -> None:
    link = result / "link.txt"
    try:
        link.symlink_to(result.parent / "outside.txt")
    except OSError:
        pytest.skip("links cannot be made here")
    try:
        assert get(server, "/files/link.txt")[0] == 404
    finally:
        link.unlink()


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:80", 200), ("localhost", 200), ("[::1]:8000", 200), ("evil.example", 403), ("", 403), ("a@b:c", 403)],
)
def test_another_site_cannot_pose_as_this_one(server: ViewServer, host: str, status: int) -> None:
    assert get(server, "/info.json", host=host)[0] == status


def test_odd_requests_are_answered(server: ViewServer) -> None:
    assert get(server, "/", host="[::1")[0] == 403
    assert get(server, f"/tiles/regions/1/0/0?hidden={'9' * 5000}")[0] == 200


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_cannot_be(result: Path, port: int) -> None:
    with pytest.raises(ValueError, match=f"expected a port from 0, for any that is free, to 65535, got {port}"):
        serve(result, port=port, open_browser=False)


def test_a_port_that_is_taken(server: ViewServer, result: Path) -> None:
    with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1, port {server.server_port} "):
        serve(result, port=server.server_port, open_browser=False)


def test_an_address_of_version_6(result: Path, analysis: Analysis) -> None:
    try:
        running = ViewServer(analysis, result, "::1", 0)
    except OSError as error:
        pytest.skip(f"there is none here: {error}")
    with running:
        assert running.url == f"http://[::1]:{running.server_port}/{running.secret}/"


def test_names_with_odd_letters(server: ViewServer, result: Path) -> None:
    odd = result / "ä #?%.txt"
    odd.write_text("here", encoding="utf-8")
    try:
        assert get(server, f"/files/{quote(odd.name)}")[2] == b"here"
    finally:
        odd.unlink()


def test_what_is_no_single_result_is_refused(result: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no complete result"):
        serve(tmp_path, open_browser=False)
    with pytest.raises(FileNotFoundError, match="holds 1 results; view one of them, such as"):
        serve(result.parent, open_browser=False)


def test_without_the_image_there_is_still_something_to_see(result: Path, analysis: Analysis) -> None:
    loaded = Analysis.load(result)
    assert loaded.image.location is not None
    moved = Path(loaded.image.location).rename(result.parent / "moved.png")
    try:
        tiles = Tiles(loaded)
        with ViewServer(loaded, result, "127.0.0.1", 0) as running:
            assert "The image is not shown: " in json.loads(running.info)["summary"][-1]
        assert decoded(tiles.tile("image", 0, 0, 0)).std() == 0
        assert decoded(tiles.tile("regions", 0, 0, 0))[..., 3].any()
    finally:
        moved.rename(loaded.image.location)


# In a browser

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (400, 800)])
def test_a_browser_shows_image_and_regions(
    server: ViewServer, analysis: Analysis, tmp_path: Path, width: int, height: int
) -> None:
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    options += [f"--window-size={width},{height}", "--virtual-time-budget=5000"]
    options += [f"--screenshot={tmp_path / 'shot.png'}", f"--user-data-dir={tmp_path / 'profile'}"]
    colours, missing = label_colours(analysis.labels), set(analysis.labels)
    for _ in range(3):  # a slow machine may take the picture before the last tile has come
        done = subprocess.run([BROWSER, *options, server.url], capture_output=True, text=True, timeout=120, check=True)
        assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        pixels = cv2.imread(str(tmp_path / "shot.png"))
        assert pixels is not None
        assert pixels.shape == (height, width, 3)
        shown = pixels[: 430 if width < 760 else height, : min(width, 960)].astype(int)
        missing = {label for label in missing if _pixels_of(shown, colours[label]) <= 20}
        if not missing:
            break
    assert not missing


def _pixels_of(shown: NDArray[Any], colour: tuple[int, int, int]) -> int:
    red, green, blue = colour
    return int((np.abs(shown - (blue, green, red)).max(axis=2) < 12).sum())


def test_who_was_not_told_the_address_sees_nothing(server: ViewServer) -> None:
    """Other users of the machine can connect to its loopback interface."""
    for path in ("/", "/info.json", "/files/analysis.json", "/tiles/image/0/0/0", "/at.json?y=1&x=1"):
        assert get(server, path)[0] == 200
        for secret in ("", "x", server.secret[:-1], f"{server.secret}x", f"{server.secret}%2f", "\xe9"):
            assert get(server, path, secret=quote(secret))[0] == 404
        assert get(server, "", secret=path.removeprefix("/"))[0] == 404


def test_two_hundred_requests_at_once_are_all_answered(server: ViewServer) -> None:
    """As many as several browsers ask for when they are moved; they connect before any of them is answered."""
    links = [http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20) for _ in range(200)]
    paths = ["/info.json", "/tiles/image/0/0/0", "/tiles/regions/2/0/0", "/at.json?y=1&x=1"]
    everyone = threading.Barrier(len(links))

    def ask(number: int) -> tuple[int, int]:
        everyone.wait()
        links[number].request("GET", f"/{server.secret}{paths[number % len(paths)]}")
        answer = links[number].getresponse()
        return answer.status, len(answer.read())

    with ThreadPoolExecutor(len(links)) as pool:
        answers = list(pool.map(ask, range(len(links))))
    for link in links:
        link.close()
    assert {status for status, _ in answers} == {200}
    assert all(length for _, length in answers)
