"""Local web server that shows a result: the image down to full resolution, with interest, windows and regions."""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from coarse2fine.report.local_server import CSS, HTML, JSON, OPENSEADRAGON, SCRIPT, TEXT, LocalHandler, LocalServer
from coarse2fine.report.viewer_tiles import CLOSER, LAYERS, OVERLAP, TILE, Tiles
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.colours import label_colours
from coarse2fine.results.folder import ANALYSIS, results_within
from coarse2fine.terminal import say
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.opening import ImageSource

_TILE_PATH = re.compile(rf"/tiles/({'|'.join(LAYERS)})/(\d{{1,3}})/(\d{{1,7}})/(\d{{1,7}})")
_CLASS = re.compile(r"[0-9]{1,9}")
_DRAWN_AT_ONCE = 4
_BEST_WINDOWS = 200


class ViewServer(LocalServer):
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

    def __init__(self, analysis: Analysis, folder: Path, host: str, port: int) -> None:
        super().__init__(_Handler, host, port)
        self.folder = folder.resolve()
        self.tiles = Tiles(analysis)
        self.info = json.dumps(_info(analysis, self.tiles, self.folder)).encode()
        self.drawing = threading.BoundedSemaphore(_DRAWN_AT_ONCE)


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
        server.run(open_browser=open_browser)


class _Handler(LocalHandler):
    server: ViewServer
    assets: ClassVar = {
        "/": ("view.html", HTML),
        "/view.css": ("view.css", CSS),
        "/view.js": ("view.js", SCRIPT),
        **OPENSEADRAGON,
    }

    def respond(self, path: str, query: dict[str, list[str]]) -> None:
        """Answer with a tile, the objects at a point, or a file of the result."""
        if path == "/info.json":
            self.answer(HTTPStatus.OK, self.server.info, JSON)
        elif found := _TILE_PATH.fullmatch(path):
            self._tile(found[1], int(found[2]), int(found[3]), int(found[4]), query)
        elif path == "/at.json":
            self._at(query)
        elif path.startswith("/files/"):
            self._file(unquote(path.removeprefix("/files/")))
        else:
            self.missing()

    def _tile(self, layer: str, level: int, row: int, column: int, query: dict[str, list[str]]) -> None:
        hidden = frozenset(int(i) for i in query.get("hidden", [""])[0].split(",") if _CLASS.fullmatch(i))
        with self.server.drawing:
            content = self.server.tiles.tile(layer, level, row, column, hidden)
        if content is None:
            self.missing()
            return
        kind = "image/jpeg" if layer == "image" else "image/png"
        self.answer(HTTPStatus.OK, content, kind, "private, max-age=86400")

    def _at(self, query: dict[str, list[str]]) -> None:
        try:
            y, x = (float(query[name][0]) for name in "yx")
            reply = json.dumps(self.server.tiles.at(y, x), allow_nan=False)
        except (KeyError, ValueError, OverflowError):
            self.answer(HTTPStatus.BAD_REQUEST, b"expected /at.json?y=NUMBER&x=NUMBER", TEXT)
            return
        self.answer(HTTPStatus.OK, reply.encode(), JSON)

    def _file(self, name: str) -> None:
        """Send a file of the result's folder, not of subfolders; hidden files and links are refused."""
        if name not in _files(self.server.folder):
            self.missing()
            return
        path = self.server.folder / name
        with path.open("rb") as file:
            self.head(HTTPStatus.OK, os.fstat(file.fileno()).st_size, "application/octet-stream", "no-store")
            if self.command == "GET":
                while part := file.read(2**20):
                    self.wfile.write(part)


def _info(analysis: Analysis, tiles: Tiles, folder: Path) -> dict[str, Any]:
    """Data of the page, as JSON values."""
    image, colours = analysis.image, label_colours(analysis.labels)
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
            f"{analysis.cost.share:.1%} of the compute of refining everything ({analysis.cost.saved_text})",
            *([] if analysis.audit is None else [str(analysis.audit)]),
            *analysis.failures,
            *_unreadable(analysis),
        ],
        "labels": [
            {"name": label, "count": count, "colour": "rgb({}, {}, {})".format(*colours[label])}
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
