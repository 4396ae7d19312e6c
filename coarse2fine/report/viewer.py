"""Local web server that shows a result: the image down to full resolution, with interest, windows and regions."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import socket
import threading
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from coarse2fine.report.templates import asset
from coarse2fine.report.viewer_tiles import CLOSER, LAYERS, OVERLAP, TILE, Tiles
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.colours import label_colour
from coarse2fine.results.folder import ANALYSIS, results_within
from coarse2fine.terminal import say
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.opening import ImageSource

_ASSETS = {
    "/": ("view.html", "text/html; charset=utf-8"),
    "/view.css": ("view.css", "text/css; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/openseadragon.min.js": ("openseadragon.min.js", "text/javascript; charset=utf-8"),
    "/openseadragon-LICENSE.txt": ("openseadragon-LICENSE.txt", "text/plain; charset=utf-8"),
}
_TILE_PATH = re.compile(rf"/tiles/({'|'.join(LAYERS)})/(\d{{1,3}})/(\d{{1,7}})/(\d{{1,7}})")
_CLASS = re.compile(r"[0-9]{1,9}")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DRAWN_AT_ONCE = 4
_BEST_WINDOWS = 200
_IDLE_SECONDS = 30
# Listen backlog; with the usual 5 some connections of a browser are dropped.
_WAITING = 1024
_LAST_PORT = 65535


class ViewServer(ThreadingHTTPServer):
    """Server of one result; a context manager.

    Parameters
    ----------
    analysis : Analysis
        Stays open.
    folder : Path
        Folder of the result; its files can be downloaded, those in subfolders cannot.
    host : str
    port : int
        0 for any that is free.
    """

    daemon_threads = True
    request_queue_size = _WAITING

    def __init__(self, analysis: Analysis, folder: Path, host: str, port: int) -> None:
        if not 0 <= port <= _LAST_PORT:
            raise ValueError(f"expected a port from 0, for any that is free, to {_LAST_PORT}, got {port}")
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise OSError(
                f"cannot listen at {host}, port {port} ({error.strerror}); leave the port out for any that is free, "
                "and the host for this machine alone"
            ) from error
        self.folder = folder.resolve()
        self.tiles = Tiles(analysis)
        self.info = json.dumps(_info(analysis, self.tiles, self.folder)).encode()
        self.drawing = threading.BoundedSemaphore(_DRAWN_AT_ONCE)
        self.names = _names(host)
        # Other users of this machine can connect too, but do not know the path.
        self.secret = secrets.token_urlsafe(16)

    @property
    def url(self) -> str:
        """Address of the page."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/{self.secret}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: browsers close connections for tiles that have left the screen."""


def serve(
    result: str | os.PathLike[str],
    *,
    image: ImageSource | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
) -> None:
    """Show a result in the browser until Ctrl-C.

    Parameters
    ----------
    result : path-like
        Folder that `Analysis.save` wrote.
    image : path, ndarray or Image, optional
        The image, if it was moved.
    host : str
        Address to listen at; by default only this machine can connect. There is no password: access needs the printed
        address, which cannot be guessed.
    port : int
        0 for any that is free.
    open_browser : bool

    Raises
    ------
    FileNotFoundError
        If the folder holds no complete result.
    OSError
        If the port is taken, or there is no such host here.
    ValueError
        If there is no such port, or the result is damaged.
    """
    folder = Path(result)
    parts = results_within(folder)
    if parts and not (folder / ANALYSIS).is_file():
        raise FileNotFoundError(f"{folder} holds {len(parts):,} results; view one of them, such as {parts[0]}")
    with Analysis.load(folder, image) as analysis, ViewServer(analysis, folder, host, port) as server:
        say(f"{analysis.image.name} is shown at {server.url} (Ctrl-C to end)")
        for line in _unreadable(analysis):
            say(line)
        if open_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = "coarse2fine"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Answer with a page, a tile, the objects at a point, or a file of the result."""
        parts = urlsplit(self.path)
        secret, _, rest = parts.path.removeprefix("/").partition("/")
        path = f"/{rest}"
        # DNS rebinding: another site's name may resolve to this address; the Host header still has that name.
        if self.server.names is not None and _host_of(self.headers.get("Host", "")) not in self.server.names:
            self._answer(HTTPStatus.FORBIDDEN, b"wrong host", "text/plain")
        elif not secrets.compare_digest(secret.encode(), self.server.secret.encode()):
            self._missing()
        elif path in _ASSETS:
            name, kind = _ASSETS[path]
            self._answer(HTTPStatus.OK, asset(name).encode(), kind)
        elif path == "/info.json":
            self._answer(HTTPStatus.OK, self.server.info, "application/json")
        elif found := _TILE_PATH.fullmatch(path):
            self._tile(found[1], int(found[2]), int(found[3]), int(found[4]), parse_qs(parts.query))
        elif path == "/at.json":
            self._at(parse_qs(parts.query))
        elif path.startswith("/files/"):
            self._file(unquote(path.removeprefix("/files/")))
        else:
            self._missing()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the terminal quiet."""

    def _tile(self, layer: str, level: int, row: int, column: int, query: dict[str, list[str]]) -> None:
        hidden = frozenset(int(i) for i in query.get("hidden", [""])[0].split(",") if _CLASS.fullmatch(i))
        with self.server.drawing:
            content = self.server.tiles.tile(layer, level, row, column, hidden)
        if content is None:
            self._missing()
            return
        kind = "image/jpeg" if layer == "image" else "image/png"
        self._answer(HTTPStatus.OK, content, kind, "private, max-age=86400")

    def _at(self, query: dict[str, list[str]]) -> None:
        try:
            y, x = (float(query[name][0]) for name in "yx")
            reply = json.dumps(self.server.tiles.at(y, x), allow_nan=False)
        except (KeyError, ValueError, OverflowError):
            self._answer(HTTPStatus.BAD_REQUEST, b"expected /at.json?y=NUMBER&x=NUMBER", "text/plain")
            return
        self._answer(HTTPStatus.OK, reply.encode(), "application/json")

    def _file(self, name: str) -> None:
        """Send a file of the result's folder, not of subfolders; hidden files and links are refused."""
        if name not in _files(self.server.folder):
            self._missing()
            return
        path = self.server.folder / name
        with path.open("rb") as file:
            self._head(HTTPStatus.OK, os.fstat(file.fileno()).st_size, "application/octet-stream", "no-store")
            if self.command == "GET":
                while part := file.read(2**20):
                    self.wfile.write(part)

    def _missing(self) -> None:
        self._answer(HTTPStatus.NOT_FOUND, b"there is nothing here", "text/plain")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str, cache: str = "no-store") -> None:
        self._head(status, len(content), kind, cache)
        if self.command == "GET":
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, length: int, kind: str, cache: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(length)),
            ("Cache-Control", cache),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()


def _info(analysis: Analysis, tiles: Tiles, folder: Path) -> dict[str, Any]:
    """Data of the page, as JSON values."""
    image = analysis.image
    return {
        "name": image.name,
        "width": image.width,
        "height": image.height,
        "tile": TILE,
        "overlap": OVERLAP,
        "lastLevel": tiles.last_level,
        "closer": CLOSER,
        "version": secrets.token_hex(4),  # keeps the browser from showing cached tiles of another result
        "mpp": image.mpp[1] if image.mpp is not None else None,
        "scanned": bool(analysis.interest.size),
        "summary": [
            f"{image.width:,} x {image.height:,} px, {image.format}",
            f"{analysis.cost.share:.1%} of the compute of refining everything ({analysis.cost.speedup:.1f}x less)",
            *([] if analysis.audit is None else [str(analysis.audit)]),
            *analysis.failures,
            *_unreadable(analysis),
        ],
        "labels": [
            {"name": label, "count": count, "colour": "rgb({}, {}, {})".format(*label_colour(label))}
            for label, count in analysis.labels.items()
        ],
        "windows": len(analysis.plan),
        "best": [tiles.window(i) for i in range(min(_BEST_WINDOWS, len(analysis.plan)))],
        "files": sorted(_files(folder)),
    }


def _unreadable(analysis: Analysis) -> list[str]:
    """Reason why the image cannot be shown, if there is one."""
    try:
        analysis.image.array()
    except ImageError as error:
        return [f"The image is not shown: {error}"]
    return []


def _files(folder: Path) -> set[str]:
    """Names of a result's files, without hidden files and links, which may lead anywhere."""
    return {p.name for p in folder.iterdir() if p.is_file() and not p.is_symlink() and not p.name.startswith(".")}


def _names(host: str) -> frozenset[str] | None:
    """Allowed values of the Host header; None, any, if the server listens to other machines."""
    local = host == "localhost"
    if not local:
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            return None
    return frozenset({host, "localhost", "127.0.0.1", "::1"}) if local else None


def _host_of(header: str) -> str:
    """The host in a ``Host`` header, without port and brackets."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
