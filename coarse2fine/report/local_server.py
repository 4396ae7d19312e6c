"""Local web server of a page: refuses other hosts and unknown addresses, and sends files of the package."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import webbrowser
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from coarse2fine.report.templates import asset

HTML, CSS, SCRIPT = (f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript"))
JSON, TEXT = "application/json", "text/plain"
OPENSEADRAGON = {
    "/openseadragon.min.js": ("openseadragon.min.js", SCRIPT),
    "/openseadragon-LICENSE.txt": ("openseadragon-LICENSE.txt", "text/plain; charset=utf-8"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_IDLE_SECONDS = 30
# Listen backlog; with the usual 5 some connections of a browser are dropped.
_WAITING = 1024
_LAST_PORT = 65535


class LocalServer(ThreadingHTTPServer):
    """Server of one page, at an address that cannot be guessed; a context manager.

    Parameters
    ----------
    handler : type of LocalHandler
    host : str
    port : int
        0 for any that is free.

    Attributes
    ----------
    names : frozenset of str or None
        Allowed hosts in requests; None, any, if the server listens to other machines.
    secret : str
        First part of every path: other users of this machine can connect too, but do not know it.

    Raises
    ------
    OSError
        If the port is taken, or there is no such host here.
    ValueError
        If there is no such port.
    """

    daemon_threads = True
    request_queue_size = _WAITING

    def __init__(self, handler: type[LocalHandler], host: str, port: int) -> None:
        if not 0 <= port <= _LAST_PORT:
            raise ValueError(f"expected a port from 0, for any that is free, to {_LAST_PORT}, got {port}")
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            raise OSError(
                f"cannot listen at {host}, port {port} ({error.strerror}); leave the port out for any that is free, "
                "and the host for this machine alone"
            ) from error
        self.names = _names(host)
        self.secret = secrets.token_urlsafe(16)

    @property
    def url(self) -> str:
        """Address of the page."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/{self.secret}/"

    def run(self, *, open_browser: bool) -> None:
        """Answer until Ctrl-C; `open_browser` shows the page."""
        if open_browser:
            webbrowser.open(self.url)
        with contextlib.suppress(KeyboardInterrupt):
            self.serve_forever()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: browsers close connections for tiles that have left the screen."""


class LocalHandler(BaseHTTPRequestHandler):
    """Answers requests that have the right host and address.

    Attributes
    ----------
    assets : mapping
        Name in the package, and media type, of the files that are sent, by path.
    """

    server: LocalServer
    protocol_version = "HTTP/1.1"
    server_version = "coarse2fine"
    sys_version = ""
    timeout = _IDLE_SECONDS
    assets: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def do_GET(self) -> None:
        """Answer with a file of the package, or as `respond` says."""
        admitted = self.admitted()
        if admitted is None:
            return
        path, query = admitted
        if path in self.assets:
            name, kind = self.assets[path]
            self.answer(HTTPStatus.OK, asset(name).encode(), kind)
        else:
            self.respond(path, query)

    do_HEAD = do_GET  # noqa: N815

    def admitted(self) -> tuple[str, dict[str, list[str]]] | None:
        """Path after the secret, and query; None, answered, if host or secret are wrong."""
        parts = urlsplit(self.path)
        secret, _, rest = parts.path.removeprefix("/").partition("/")
        # DNS rebinding: another site's name may resolve to this address; the Host header still has that name.
        if self.server.names is not None and _host_of(self.headers.get("Host", "")) not in self.server.names:
            self.answer(HTTPStatus.FORBIDDEN, b"wrong host", TEXT)
            return None
        if not secrets.compare_digest(secret.encode(), self.server.secret.encode()):
            self.missing()
            return None
        return f"/{rest}", parse_qs(parts.query)

    def respond(self, path: str, query: dict[str, list[str]]) -> None:  # noqa: ARG002 (for subclasses)
        """Answer a request for anything but a file of the package."""
        self.missing()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the terminal quiet."""

    def missing(self) -> None:
        """Answer that there is nothing."""
        self.answer(HTTPStatus.NOT_FOUND, b"there is nothing here", TEXT)

    def answer(self, status: HTTPStatus, content: bytes, kind: str, cache: str = "no-store") -> None:
        """Send an answer."""
        self.head(status, len(content), kind, cache)
        if self.command != "HEAD":
            self.wfile.write(content)

    def head(self, status: HTTPStatus, length: int, kind: str, cache: str) -> None:
        """Send the head of an answer."""
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
