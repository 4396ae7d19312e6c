"""Images behind addresses, against a server of our own that counts what it sends and fails on demand."""

from __future__ import annotations

import builtins
import contextlib
import gc
import itertools
import json
import pickle
import re
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.results.recorded_image import RecordedImage, record_of
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.stats import ReadStats
from coarse2fine.tiling.storage import remote
from coarse2fine.tiling.storage.remote import is_url
from coarse2fine.tiling.window_reader import WindowReader

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

SVS = Path(__file__).resolve().parents[4] / "shared" / "data" / "formats" / "cmu-1-small-region.svs"
CHUNK = 128
SENT_AT_ONCE = 2**16
NO_SUCH_KEY = b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>'


@dataclass
class Site:
    """Files of a server, what it has sent, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    sent: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ranges: bool = True
    status: dict[str, int] = field(default_factory=dict)  # by path
    missing: int = 404
    failures: int = 0  # requests that are yet to be answered by 503
    cut: int | None = None  # bodies end after so many bytes
    stall: float = 0.0  # seconds before they do
    drip: float = 0.0  # seconds after each byte
    shift: int = 0  # parts begin so much later than asked for
    endless: str = ""  # path whose body never ends
    pause: float = 0.0
    token: str | None = None
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, folder: Path, under: str) -> str:
        """Serve all files of a folder; returns its address."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"/{under}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
        return f"{self.url}/{under}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    site: Site

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site = self.site
        path, _, query = self.path.partition("?")
        site.requests.append((self.command, path))
        site.headers.append(dict(self.headers))
        time.sleep(site.pause)
        status = site.status.get(path, 200 if path in site.files else site.missing)
        if site.token is not None and query != f"token={site.token}":
            status = 403
        if site.failures:
            site.failures -= 1
            status = 503
        if status != 200:
            self.answer(status, NO_SUCH_KEY if status == 404 else b"")
            return
        body = site.files[path]
        if path == site.endless:
            self.send_endlessly()
            return
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")) if site.ranges else None
        if found is None:
            self.answer(200, body)
            return
        first, last = found.groups()
        start = int(first) if first else max(len(body) - int(last), 0)
        start += site.shift
        stop = min(int(last) + 1 + site.shift, len(body)) if first and last else len(body)
        if start >= len(body):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        else:
            self.answer(206, body[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        common = {"Content-Length": str(len(body)), "ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        for name, value in {**common, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.site.drip:
            with contextlib.suppress(OSError):
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(self.site.drip)
            self.close_connection = True
            return
        cut = self.site.cut
        if cut is not None and len(body) > cut:
            body, self.close_connection = body[:cut], True
        try:
            for begin in range(0, len(body), SENT_AT_ONCE):
                part = body[begin : begin + SENT_AT_ONCE]
                if status in (200, 206):
                    with self.site.lock:
                        self.site.sent += len(part)
                self.wfile.write(part)
            if self.close_connection:
                self.wfile.flush()
                time.sleep(self.site.stall)
        except OSError:
            self.close_connection = True  # the client has heard enough

    def send_endlessly(self) -> None:
        ranged = "Range" in self.headers
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes 0-{2**50}/{2**50 + 1}")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while self.site.sent < 2**28:
                self.wfile.write(bytes(SENT_AT_ONCE))
                self.site.sent += SENT_AT_ONCE

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's signature)
        """Keep quiet."""


@pytest.fixture(scope="module", autouse=True)
def _connections() -> Iterator[None]:
    """Close the connections at the end, as fsspec does when its filesystems are collected."""
    yield
    for protocol in fsspec.registry.values():
        protocol.clear_instance_cache()
    gc.collect()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def noise(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 255, shape, endpoint=True).astype(dtype)


def whole(image: Image, level: int = 0) -> NDArray[np.uint8]:
    this = image.levels[level]
    return image.read(Box(0, 0, this.height, this.width), level)


def write_tiff(path: Path) -> NDArray[np.uint8]:
    pixels = noise(8 * CHUNK, 8 * CHUNK)
    tifffile.imwrite(path, pixels, tile=(CHUNK, CHUNK))
    return pixels


def write_zarr(path: Path, *, shard: int | None = None, form: Any = 3) -> NDArray[np.uint8]:
    """An uncompressed image of 8 x 8 chunks."""
    pixels = noise(8 * CHUNK, 8 * CHUNK)
    group = zarr.open_group(path, mode="w", zarr_format=form)
    array = group.create_array(
        "0",
        shape=pixels.shape,
        chunks=(CHUNK, CHUNK),
        shards=None if shard is None else (shard, shard),
        dtype="u1",
        compressors=None,
    )
    array[...] = pixels
    image: Any = {"multiscales": [{"axes": [{"name": "y"}, {"name": "x"}], "datasets": [{"path": "0"}]}]}
    group.attrs.update(image if form == 2 else {"ome": {"version": "0.5", **image}})
    return pixels


def served(site: Site, folder: Path, kind: str) -> tuple[str, NDArray[np.uint8]]:
    """Address and pixels of an image of a kind: "tiff", "zarr", "zarr 2" or "shards"."""
    folder.mkdir(exist_ok=True)
    if kind == "tiff":
        pixels = write_tiff(folder / "a.tif")
        return site.add(folder, "tiff") + "/a.tif", pixels
    form = 2 if kind == "zarr 2" else 3
    pixels = write_zarr(folder / "a.zarr", shard=4 * CHUNK if kind == "shards" else None, form=form)
    return site.add(folder / "a.zarr", "a.zarr"), pixels


KINDS = ("tiff", "zarr", "zarr 2", "shards")


@pytest.mark.parametrize("kind", KINDS)
def test_addresses_read_as_paths_do(site: Site, tmp_path: Path, kind: str) -> None:
    url, pixels = served(site, tmp_path, kind)
    with open_image(url) as image:
        assert (image.name, image.path, image.location) == ("a", None, url)
        np.testing.assert_array_equal(image.read(Box(-9, 70, 130, 210)), image.read(Box(-9, 70, 130, 210)))
        np.testing.assert_array_equal(whole(image)[..., 0], pixels)
        np.testing.assert_array_equal(np.asarray(image.array()[...])[..., 0], pixels)
        assert image.stats.fetched == site.sent
        assert {command for command, _ in site.requests} == {"GET"}
        again = pickle.loads(pickle.dumps(image))
        np.testing.assert_array_equal(whole(again)[..., 0], pixels)


def test_slide_of_a_scanner(site: Site, tmp_path: Path) -> None:
    if not SVS.is_file():
        pytest.skip("the shared data is not here")
    site.files["/a.svs"] = SVS.read_bytes()
    box = Box(1000, 700, 1240, 940)
    with open_image(f"{site.url}/a.svs") as image, open_image(SVS) as local:
        assert (image.format, image.mpp, image.shape) == (local.format, local.mpp, local.shape)
        np.testing.assert_array_equal(image.read(box), local.read(box))
        assert image.stats.fetched == site.sent < SVS.stat().st_size / 4


@pytest.mark.parametrize("kind", KINDS)
def test_few_tiles_cost_few_bytes(site: Site, tmp_path: Path, kind: str) -> None:
    url, pixels = served(site, tmp_path, kind)
    size = sum(map(len, site.files.values()))
    with open_image(url) as image:
        before = image.stats.snapshot()
        for row, column in ((1, 2), (0, 0), (2, 3)):
            y, x = row * CHUNK, column * CHUNK
            box = Box(y, x, y + CHUNK, x + CHUNK)
            np.testing.assert_array_equal(image.read(box)[..., 0], pixels[y : box.y1, x : box.x1])
        index = 16 * 16 + 4 if kind == "shards" else 0
        assert image.stats.fetched - before.fetched == 3 * CHUNK**2 + index
        assert image.stats.requests - before.requests == 3 + (kind == "shards")
        assert image.stats.fetched == site.sent
        assert before.fetched < 0.1 * size
        assert before.requests <= 10


def test_windows_behind_an_address(site: Site, tmp_path: Path) -> None:
    url, pixels = served(site, tmp_path, "shards")
    boxes = [Box(y, x, y + 40, x + 40) for y, x in itertools.product(range(0, 980, 140), repeat=2)]
    with open_image(url) as image, WindowReader(image) as reader:
        for batch in reader.batches(boxes, 4):
            assert not batch.failed.any()
            for i, window in zip(batch.index, batch.pixels, strict=True):
                box = boxes[i]
                np.testing.assert_array_equal(window[..., 0], pixels[box.y0 : box.y1, box.x0 : box.x1])
        assert image.stats.fetched == site.sent


@pytest.mark.parametrize("kind", KINDS)
def test_query_goes_with_every_request(site: Site, tmp_path: Path, kind: str) -> None:
    url, pixels = served(site, tmp_path, kind)
    site.token = "a.b"
    with open_image(f"{url}?token=a.b") as image:
        np.testing.assert_array_equal(whole(image)[..., 0], pixels)
        assert image.name == "a"
    with pytest.raises(ImageError, match=r"reading is not permitted .*403"):
        open_image(url)


@pytest.mark.parametrize("kind", KINDS)
def test_failures_that_pass_are_overcome(site: Site, tmp_path: Path, kind: str) -> None:
    url, pixels = served(site, tmp_path, kind)
    site.failures = remote.ATTEMPTS - 1
    with open_image(url) as image:
        site.failures = remote.ATTEMPTS - 1
        np.testing.assert_array_equal(image.read(Box(0, 0, 64, 64))[..., 0], pixels[:64, :64])
    site.failures = 10**6
    with pytest.raises(ImageError, match=r"cannot be read \(.*503.*\); check the path") as caught:
        open_image(url)
    assert str(caught.value).startswith(f"{url}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_address_that_dies_half_way(site: Site, tmp_path: Path, kind: str) -> None:
    url, pixels = served(site, tmp_path, kind)
    boxes = [Box(y, 0, y + 32, 32) for y in range(64, 192, 32)]
    with open_image(url) as image:
        image.read(Box(0, 0, 9, 9))
        site.cut, before = 1000, len(site.requests)
        message = r"level 0, chunk at y=128, x=0 \(128 x 128 pixels\) cannot be read \(.*check the disk or the network"
        with pytest.raises(ImageError, match=message) as caught:
            image.read(Box(CHUNK, 0, CHUNK + 9, 9))
        assert str(caught.value).startswith(f"{url}: ")
        assert len(site.requests) - before == remote.ATTEMPTS
        with WindowReader(image) as reader:
            failed = {int(i): bool(f) for b in reader.batches(boxes, 2) for i, f in zip(b.index, b.failed, strict=True)}
        assert failed == {0: False, 1: False, 2: True, 3: True}
        assert len(reader.failures) == 1
        site.cut = None
        np.testing.assert_array_equal(whole(image)[..., 0], pixels)


def test_server_that_is_gone(site: Site, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/a.tif"
    with pytest.raises(ImageError, match="cannot be read") as caught:
        open_image(url)
    assert str(caught.value).startswith(f"{url}: ")


def test_server_that_falls_silent(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = served(site, tmp_path, "tiff")
    monkeypatch.setattr(remote, "TIMEOUT", 0.05)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    site.pause = 0.3
    with pytest.raises(ImageError, match=r"a\.tif: cannot be read \(.*[Tt]imeout"):
        open_image(url)


@pytest.mark.parametrize("kind", ["tiff", "shards"])
def test_server_that_ignores_ranges_is_not_drained(site: Site, tmp_path: Path, kind: str) -> None:
    url, _ = served(site, tmp_path, kind)
    name = url.removeprefix(site.url) + ("/0/c/0/0" if kind == "shards" else "")
    site.files[name] += bytes(2**26)
    site.ranges = False
    if kind == "tiff":
        with pytest.raises(ImageError, match="the server ignores ranges"):
            open_image(url)
    else:
        with open_image(url) as image, pytest.raises(ImageError, match="the server ignores ranges"):
            image.read(Box(0, 0, 64, 64))
    assert sum(path == name for _, path in site.requests) <= 2
    assert site.sent < 2**25


@pytest.mark.parametrize("kind", ["zarr", "zarr 2"])
def test_chunks_need_no_ranges(site: Site, tmp_path: Path, kind: str) -> None:
    """Of a Zarr without shards whole files are read; its folder may answer with a list of what it holds."""
    url, pixels = served(site, tmp_path, kind)
    site.ranges = False
    site.files["/a.zarr"] = b"<!DOCTYPE html><ul><li>zarr.json" + b"<li>" * 1000
    with open_image(url) as image:
        np.testing.assert_array_equal(whole(image)[..., 0], pixels)
    np.testing.assert_array_equal(whole(open_image(f"{url}/"))[..., 0], pixels)


@pytest.mark.parametrize("missing", [403, 404, 410])
def test_servers_that_hide_what_is_missing(site: Site, tmp_path: Path, missing: int) -> None:
    """Object stores whose lists are not public answer 403 for what they do not hold."""
    url, pixels = served(site, tmp_path, "zarr 2")
    site.missing = missing
    np.testing.assert_array_equal(whole(open_image(url))[..., 0], pixels)
    message = "reading is not permitted" if missing == 403 else "there is no such file"
    for other in (f"{site.url}/b.tif", f"{site.url}/b.zarr"):
        with pytest.raises(ImageError, match=message) as caught:
            open_image(other)
        assert str(caught.value).startswith(f"{other}: ")


def test_missing_chunks_are_not_confused_with_refused_ones(site: Site, tmp_path: Path) -> None:
    url, _ = served(site, tmp_path, "zarr")
    del site.files["/a.zarr/0/c/1/1"]
    site.status["/a.zarr/0/c/2/2"] = 403
    with open_image(url) as image:
        assert not image.read(Box(CHUNK, CHUNK, 2 * CHUNK, 2 * CHUNK)).any()
        with pytest.raises(ImageError, match="403"):
            image.read(Box(2 * CHUNK, 2 * CHUNK, 3 * CHUNK, 3 * CHUNK))


def test_content_that_is_no_image(site: Site) -> None:
    site.files.update({"/empty.tif": b"", "/a.html": b"<!DOCTYPE html>", "/cut.tif": b"II*\0\x08\0\0\0"})
    for name, message in (("empty.tif", "is empty"), ("a.html", "begins with"), ("cut.tif", "TIFF")):
        with pytest.raises(ImageError, match=message) as caught:
            open_image(f"{site.url}/{name}")
        assert str(caught.value).startswith(f"{site.url}/{name}: ")


def test_png_behind_an_address(site: Site) -> None:
    pixels = noise(90, 70, 3)
    site.files["/a.png"] = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    with open_image(f"{site.url}/a.png") as image:
        np.testing.assert_array_equal(whole(image), pixels)
        assert (image.format, image.name, image.stats.fetched) == ("png", "a", site.sent)
    site.ranges = False
    np.testing.assert_array_equal(whole(open_image(f"{site.url}/a.png")), pixels)
    site.files["/a.png"] = site.files["/a.png"][:500]
    with pytest.raises(ImageError, match="cut off or damaged"):
        open_image(f"{site.url}/a.png")


@pytest.mark.parametrize("kind", KINDS)
def test_object_store(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    pytest.importorskip("s3fs")
    _, pixels = served(site, tmp_path, kind)
    site.files = {f"/bucket{path}": body for path, body in site.files.items()}
    settings = {"anon": True, "endpoint_url": site.url, "client_kwargs": {"region_name": "us-east-1"}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    with open_image("s3://bucket/tiff/a.tif" if kind == "tiff" else "s3://bucket/a.zarr") as image:
        before = image.stats.fetched
        np.testing.assert_array_equal(image.read(Box(0, 0, 64, 64))[..., 0], pixels[:64, :64])
        assert image.stats.fetched - before == CHUNK**2 + (16 * 16 + 4 if kind == "shards" else 0)
        np.testing.assert_array_equal(whole(image)[..., 0], pixels)
        assert image.stats.fetched == site.sent
    with pytest.raises(ImageError, match=r"s3://bucket/b\.tif: there is no such file"):
        open_image("s3://bucket/b.tif")


def test_ranges_at_the_edges(site: Site) -> None:
    site.files["/a"] = bytes(range(100))
    stats = ReadStats()
    there = remote.Remote(f"{site.url}/a", stats)
    assert there.size() == 100
    for start, stop in (
        (0, 0),
        (5, 5),
        (0, 1),
        (90, 100),
        (90, 200),
        (100, 200),
        (-1, None),
        (-100, None),
        (-300, None),
    ):
        assert there.fetch("", start, stop) == site.files["/a"][start:stop]
    assert there.fetch("") == site.files["/a"]
    assert stats.fetched == site.sent
    site.files["/a"] = b""
    assert there.size() == 0
    assert there.fetch("", 0, 9) == there.fetch("", -9) == there.fetch("") == b""


def test_any_protocol_of_fsspec(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    pixels = write_zarr(tmp_path / "a.zarr", shard=4 * CHUNK)
    write_tiff(tmp_path / "a.tif")
    files.put(str(tmp_path), "/images", recursive=True)
    for name in ("a.zarr", "a.tif"):
        with open_image(f"memory://images/{name}") as image:
            np.testing.assert_array_equal(whole(image)[..., 0], pixels)
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"memory://images/b\.tif: there is no such file"):
        open_image("memory://images/b.tif")
    assert time.monotonic() - started < remote.FIRST_PAUSE  # asking again would change nothing
    files.rm("/images", recursive=True)


def test_settings_of_fsspec_are_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = served(site, tmp_path, "tiff")
    settings = {"headers": {"X-One": "1"}, "client_kwargs": {"headers": {"X-Two": "2"}}}
    monkeypatch.setitem(fsspec.config.conf, "http", settings)
    with open_image(url) as image:
        image.read(Box(0, 0, 9, 9))
    assert all((headers["X-One"], headers["X-Two"]) == ("1", "2") for headers in site.headers)


def test_missing_packages_and_unknown_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"nowhere://a/b\.tif: cannot be read .*nowhere.*; check the address"):
        open_image("nowhere://a/b.tif")
    real = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name == "fsspec":
            raise ImportError("No module named 'fsspec'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImageError, match=r'https://a/b\.tif: .*pip install "coarse2fine\[remote\]"'):
        open_image("https://a/b.tif")


def test_what_is_an_address(tmp_path: Path) -> None:
    for url in ("http://a/b", "https://a/b", "s3://a/b", "memory://b", "abfs+x://a"):
        assert is_url(url)
    for path in (
        "a.tif",
        "/a/b.tif",
        "C:\\a\\b.tif",
        "C:/a/b.tif",
        "C://a/b.tif",
        "a:b",
        "\\\\host\\a",
        Path("http://a"),
    ):
        assert not is_url(path)
    with pytest.raises(ImageError, match="there is no such file"):
        open_image("C:\\images\\a.tif")
    pixels = write_tiff(tmp_path / "a b.tif")
    address = (tmp_path / "a b.tif").as_uri()
    for same in (address, address.replace("file://", "file://localhost")):
        np.testing.assert_array_equal(whole(open_image(same))[..., 0], pixels)
    for empty in ("", "file://"):
        with pytest.raises(ImageError, match="got an empty text"):
            open_image(empty)


@pytest.mark.parametrize(("status", "repeated"), [(429, True), (500, True), (502, True), (408, True), (400, False)])
def test_what_is_asked_again(site: Site, status: int, repeated: bool) -> None:
    site.files["/a"] = b"0123"
    site.status["/a"] = status
    with pytest.raises(OSError, match=str(status)):
        remote.Remote(f"{site.url}/a", ReadStats()).fetch("")
    assert len(site.requests) == (remote.ATTEMPTS if repeated else 1)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_asked_again(site: Site, status: int) -> None:
    site.files["/a"] = b"0123"
    site.status["/a"] = status
    with pytest.raises(FileNotFoundError if status in (404, 410) else PermissionError):
        remote.Remote(f"{site.url}/a", ReadStats()).fetch("")
    assert len(site.requests) == 1


def test_pauses_grow_and_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def fail() -> None:
        raise ConnectionError("gone")

    for _ in range(50):
        with pytest.raises(OSError, match="gone"):
            remote._again(fail)
    each = np.reshape(pauses, (50, remote.ATTEMPTS - 1))
    expected = remote.FIRST_PAUSE * 4.0 ** np.arange(remote.ATTEMPTS - 1)
    assert (each >= expected / 2).all()
    assert (each <= expected * 3 / 2).all()
    assert (each.std(axis=0) > expected / 10).all()


@pytest.mark.parametrize("how", ["stall", "drip"])
def test_bodies_that_do_not_come(site: Site, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A byte now and then is no progress."""
    monkeypatch.setattr(remote, "TIMEOUT", 0.15)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    site.files["/a"] = bytes(1000)
    if how == "stall":
        site.cut, site.stall = 100, 0.6
    else:
        site.drip = 0.01
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        remote.Remote(f"{site.url}/a", ReadStats()).fetch("", 0, 1000)
    assert time.monotonic() - began < 1.5


def test_truncated_bodies_are_asked_for_again(site: Site) -> None:
    site.files["/a"] = noise(10_000).tobytes()
    site.cut = 5000
    there = remote.Remote(f"{site.url}/a", ReadStats())
    for part in ((None, None), (0, 9000), (500, None), (-7000, None)):
        before = len(site.requests)
        with pytest.raises(OSError, match=r"[Pp]ayload"):
            there.fetch("", *part)
        assert len(site.requests) - before == remote.ATTEMPTS


def test_parts_from_elsewhere_are_not_taken(site: Site) -> None:
    site.files["/a"] = noise(10_000).tobytes()
    site.shift = 16
    there = remote.Remote(f"{site.url}/a", ReadStats())
    for part in ((100, 200), (0, 100), (5000, None)):
        with pytest.raises(OSError, match="were asked for and the server sends 'bytes"):
            there.fetch("", *part)
    assert len(site.requests) == 3


def test_endless_bodies_are_left(site: Site, tmp_path: Path) -> None:
    """Of a chunk, of metadata and of a picture no more is taken than there may be."""
    url, _ = served(site, tmp_path, "zarr")
    site.endless = "/a.zarr/0/c/1/1"
    with open_image(url) as image, pytest.raises(ImageError, match="more than the 20,480 bytes that were expected"):
        image.read(Box(CHUNK, CHUNK, CHUNK + 9, CHUNK + 9))
    for name, message in (("zarr.json", "more than the 33,554,432 bytes"), ("0/zarr.json", "more than the 33,554,432")):
        site.endless = f"/a.zarr/{name}"
        with pytest.raises(ImageError, match=message):
            open_image(url)
    site.files["/b.tif"] = b""
    site.endless = "/b.tif"
    with pytest.raises(ImageError, match="more than the 256 bytes"):
        open_image(f"{site.url}/b.tif")
    assert site.sent < 2**28


def test_objects_larger_than_promised(site: Site, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    url, _ = served(site, tmp_path, "zarr")
    site.files["/a.zarr/0/c/1/1"] = bytes(10**6)
    files.put(str(tmp_path / "a.zarr"), "/large.zarr", recursive=True)
    files.pipe("/large.zarr/0/c/1/1", bytes(10**6))
    for address in (url, "memory://large.zarr"):
        with open_image(address) as image:
            with pytest.raises(ImageError, match=r"expected at most"):
                image.read(Box(CHUNK, CHUNK, CHUNK + 9, CHUNK + 9))
            assert image.read(Box(0, 0, 9, 9)).any()
    files.rm("/large.zarr", recursive=True)


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_are_not_told(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    url, _ = served(site, tmp_path, kind)
    site.token = "5ecret"
    caplog.set_level("DEBUG")
    secret = f"{url}?token=5ecret"
    with open_image(secret) as image:
        assert (image.location, image.name) == (f"{url}?token=***", "a")
        assert "5ecret" not in json.dumps(record_of(image), default=str)
        site.cut = 1000
        with pytest.raises(ImageError) as caught:
            whole(image)
        site.cut = None
        texts = ["".join(traceback.format_exception(caught.value))]
        assert f"{url}?token=***: level 0" in texts[0]
        again = RecordedImage(json.loads(json.dumps(record_of(image))))
        with pytest.raises(ImageError, match="its password or signature is not stored"):
            whole(again)
    for status in (400, 403, 404, 500):
        site.missing, site.files = status, {}
        with pytest.raises(ImageError, match=r"token=\*\*\*: ") as caught:
            open_image(secret)
        texts.append("".join(traceback.format_exception(caught.value)))
    gone = "http://me:5ecret@127.0.0.1:9/a.tif?X-Amz-Signature=5ecret"
    with pytest.raises(ImageError) as caught:
        open_image(gone)
    texts.append("".join(traceback.format_exception(caught.value)))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("coarse2fine")]
    assert not [text for text in (*texts, *ours) if "5ecret" in text]
