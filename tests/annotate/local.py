"""A running server of one image, and requests to it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coarse2fine.annotate.serve import open_store
from coarse2fine.annotate.server import TOKEN, AnnotateServer
from coarse2fine.tiling.opening import open_image


@contextmanager
def serving(image: Path, classes: Sequence[str] = ("cell",)) -> Iterator[AnnotateServer]:
    with open_image(image) as opened, AnnotateServer(opened, open_store(opened, None), classes, "127.0.0.1", 0) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


@contextmanager
def viewing(image: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``coarse2fine view`` in a process of its own, and the address of its page."""
    command = [sys.executable, "-m", "coarse2fine.cli.main", "view", str(image), "--no-browser", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().split(" at ")[1].split()[0]
        finally:
            running.kill()


def send(
    server: AnnotateServer, method: str, path: str, content: bytes | None = None, **headers: str | None
) -> tuple[int, bytes]:
    """Send a request as it stands; a header that is None is left out, `_` in names stands for `-`."""
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    wanted: dict[str, str | None] = {"Content-Type": "application/json", TOKEN: server.token}
    if content is not None:
        wanted["Content-Length"] = str(len(content))
    wanted |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        link.putrequest(method, f"/{server.secret}{path}", skip_host="Host" in wanted)
        for name, value in wanted.items():
            if value is not None:
                link.putheader(name, value)
        link.endheaders(content)
        answer = link.getresponse()
        return answer.status, answer.read()
    finally:
        link.close()


def ask(server: AnnotateServer, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """A GET, or a POST of a body; the answer's JSON."""
    content = None if body is None else json.dumps(body).encode()
    status, found = send(server, "GET" if body is None else "POST", path, content)
    return status, json.loads(found)


def squares() -> list[tuple[int, int]]:
    """Left upper corners (x, y) of the picture's bright squares of 20 pixels, in reading order."""
    return [(x, y) for y in range(20, 280, 60) for x in range(20, 380, 60)]


def boxed(x0: float, y0: float, x1: float, y1: float, label: str = "cell", **properties: Any) -> dict[str, Any]:
    """A feature as the page makes it."""
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    made = {"objectType": "annotation", "classification": {"name": label, "color": [200, 0, 0]}, **properties}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "id": str(uuid.uuid4()), "geometry": geometry, "properties": made}
