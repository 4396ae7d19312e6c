"""A Chromium without a window, driven through its debugging protocol; no package is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_PATIENCE = 60.0


class Browser:
    """One page; a context manager.

    Parameters
    ----------
    profile : Path
        A new folder.
    width, height : int
        Of the page, in CSS pixels.
    touch : bool
        Whether it is a telephone's.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 800, *, touch: bool = False) -> None:
        assert CHROMIUM is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += ["--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        self._process = subprocess.Popen(
            [CHROMIUM, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port_file = profile / "DevToolsActivePort"
        wait_for(lambda: port_file.is_file() and port_file.read_text().count("\n") == 1, "Chromium's port")
        port = int(port_file.read_text().splitlines()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=_PATIENCE) as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        self._socket = _Socket(target["webSocketDebuggerUrl"])
        self._number = 0
        self.problems: list[str] = []
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        if touch:
            self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; what the page complains of meanwhile is kept in `problems`."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            found = json.loads(self._socket.receive())
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])
            if found.get("method") == "Runtime.exceptionThrown":
                details = found["params"]["exceptionDetails"]
                self.problems.append(str(details.get("exception", {}).get("description", details["text"])))
            elif found.get("method") == "Log.entryAdded" and found["params"]["entry"]["level"] == "error":
                self.problems.append(f"{found['params']['entry']['text']} {found['params']['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.body && document.body.dataset.ready === 'yes'")

    def value(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        wait_for(lambda: bool(self.value(expression)), expression)

    def text(self, identifier: str) -> str:
        return str(self.value(f"document.getElementById('{identifier}').textContent"))

    def press(self, key: str, *, control: bool = False, shift: bool = False) -> None:
        """Press and release a key; `key` is what a browser calls it, such as "a" or "Delete"."""
        code = {"Delete": 46, "Enter": 13, "Escape": 27}.get(key, ord(key.upper()[0]))
        more = {"modifiers": 2 * control + 8 * shift, "windowsVirtualKeyCode": code, "key": key}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **more)

    def mouse(self, *points: tuple[float, float], clicks: int = 1) -> None:
        """Press at the first point, move along the others, and release."""
        button = {"button": "left", "clickCount": clicks}
        (x, y), *others = points
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, buttons=1, **button)
        for x, y in others:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1, button="left")
            time.sleep(0.02)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **button)
        time.sleep(0.05)

    def touch(self, *points: tuple[float, float]) -> None:
        """Put a finger on the first point, move it along the others, and lift it."""
        for kind, place in (("touchStart", points[0]), *(("touchMove", each) for each in points[1:])):
            finger = {"x": place[0], "y": place[1]}
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[finger])
            time.sleep(0.05)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        time.sleep(0.1)

    def click(self, identifier: str) -> None:
        """Click an element where it is on the screen, so that one that is covered is not clicked."""
        place = "(e => { e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
        place += f"return [b.x + b.width / 2, b.y + b.height / 2] }})(document.querySelector('{identifier}'))"
        x, y = self.value(place)
        self.mouse((x, y))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class _Socket:
    """As much of a WebSocket as the protocol needs: text both ways, in pieces if long (RFC 6455)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._link = socket.create_connection((parts.hostname or "", parts.port or 0), _PATIENCE)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self._link.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self._stream = self._link.makefile("rb")
        while self._stream.readline().strip():
            pass

    def send(self, text: str) -> None:
        content = text.encode()
        length = len(content)
        size = struct.pack("!B", 128 + length) if length < 126 else struct.pack("!BQ", 128 + 127, length)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(content))
        self._link.sendall(b"\x81" + size + mask + masked)

    def receive(self) -> str:
        content = b""
        while True:
            first, size = self._stream.read(2)
            length = size & 127
            if length >= 126:
                kind = "!H" if length == 126 else "!Q"
                length = struct.unpack(kind, self._stream.read(struct.calcsize(kind)))[0]
            part = self._stream.read(length)
            if first & 15 in (0, 1):
                content += part
                if first & 128:
                    return content.decode()

    def close(self) -> None:
        self._stream.close()
        self._link.close()


def wait_for(holds: Callable[[], bool], what: str, seconds: float = _PATIENCE) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)
