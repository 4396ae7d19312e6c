"""Take the screenshots of the documents.

Goes the way of docs/getting-started.md in a headless Chromium: the page's code writes the images, boxes are drawn with
the mouse, a model is fitted, and the other image is analysed. Prints the seconds of each step. It takes some minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from documents.browser import Browser

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "getting-started.md"
SCREENS = ROOT / "docs" / "screens"
_INK = 90  # grey value below which a pixel belongs to a cell or a rod

_ENDED = "document.getElementById('cancel').hidden"
_FITTED = "!document.getElementById('results').hidden"


def take_screens() -> None:
    """Take all screenshots."""
    SCREENS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _timed("two images", lambda: _run(sys.executable, "-c", _code(), folder=folder))
        with _viewing(folder, "scene-1.png", "--classes", "cell") as url:
            _timed("annotate and fit", lambda: _annotate(url, folder))
            _shoot(url, folder, "annotate", 400)
        model = "scene-1.fit/model.c2f"
        _timed("analyse", lambda: _coarse2fine("analyze", "scene-2.png", "-m", model, "-o", "out", "-q", folder=folder))
        with _viewing(folder, "out") as url:
            _shoot(url, folder, "result", 1280)
            _shoot(url, folder, "result", 400)


def _code() -> str:
    found = re.search(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def _timed(step: str, run: Callable[[], None]) -> None:
    begin = time.perf_counter()
    run()
    print(f"{step}: {time.perf_counter() - begin:.0f} s", flush=True)


def _run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True)


def _coarse2fine(*arguments: str, folder: Path) -> None:
    _run(sys.executable, "-m", "coarse2fine", *arguments, folder=folder)


@contextmanager
def _viewing(folder: Path, *arguments: str) -> Iterator[str]:
    """``coarse2fine view`` in a process of its own; gives the page's address."""
    command = [sys.executable, "-m", "coarse2fine", "view", *arguments, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().split(" at ")[1].split()[0]
        finally:
            running.kill()


def _annotate(url: str, folder: Path) -> None:
    """Draw a box around each cell, take a picture, fit, and take another."""
    with Browser(folder / "drawing") as browser:
        browser.open(url)
        left, top, scale = browser.value(
            "(() => { const s = document.getElementById('stage').getBoundingClientRect();"
            f"const n = {_side(folder / 'scene-1.png')}, k = Math.min(s.width, s.height) / n;"
            "return [s.x + (s.width - n * k) / 2, s.y + (s.height - n * k) / 2, k] })()"
        )
        browser.press("b")
        cells = _cells(folder / "scene-1.png")
        for x0, y0, x1, y1 in cells:
            ends = [(left + x * scale, top + y * scale) for x, y in ((x0, y0), ((x0 + x1) / 2, y1), (x1, y1))]
            browser.mouse(*ends)
        browser.until("document.getElementById('saved').textContent.startsWith('Saved in ')")
        time.sleep(2)
        print(f"{len(cells)} cells: {browser.text('itemCount')}", flush=True)
        browser.screenshot(SCREENS / "annotate-1280.png")
        browser.value("document.getElementById('steps').value = '150'")
        browser.click("#fit")
        browser.until("!document.getElementById('cancel').hidden")
        while not browser.value(_ENDED):
            time.sleep(1)
        if not browser.value(_FITTED):
            raise RuntimeError(f"the fit failed: {browser.text('fitMessage')}")
        time.sleep(2)
        browser.screenshot(SCREENS / "fitted-1280.png")


def _side(path: Path) -> int:
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return int(pixels.shape[0])


def _cells(path: Path) -> list[tuple[float, float, float, float]]:
    """Boxes (x0, y0, x1, y1) of the round marks of an image of the page's code."""
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    ink = (np.asarray(pixels) < _INK).astype(np.uint8)
    discs = cv2.morphologyEx(ink, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11)))
    _, _, stats, _ = cv2.connectedComponentsWithStats(discs)
    return [(x - 2, y - 2, x + w + 2, y + h + 2) for x, y, w, h, _ in stats[1:].tolist()]


def _shoot(url: str, folder: Path, name: str, width: int) -> None:
    with Browser(folder / f"{name}-{width}", width, 800 if width > 500 else 760, touch=width <= 500) as browser:
        browser.call("Page.navigate", url=url)
        browser.until("document.readyState === 'complete'")
        time.sleep(3)
        browser.screenshot(SCREENS / f"{name}-{width}.png")
