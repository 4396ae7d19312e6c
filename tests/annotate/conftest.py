"""An image to annotate, its server, and a model that was fitted on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from documents.browser import wait_for

from coarse2fine.annotate.server import AnnotateServer
from tests.annotate.local import ask, boxed, serving, squares

SIZE = (300, 400)
ROOT = Path(__file__).resolve().parents[2]


def draw_picture(folder: Path) -> Path:
    """A grey slope of 300 x 400 pixels with bright squares, alone in a folder."""
    folder.mkdir()
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = ((y + x) // 8 + 40).astype(np.uint8)
    for left, top in squares():
        pixels[top : top + 20, left : left + 20] = 230
    path = folder / "scene.png"
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return draw_picture(tmp_path / "scene")


@pytest.fixture
def server(picture: Path) -> Iterator[AnnotateServer]:
    with serving(picture, ("cell", "dust")) as running:
        yield running


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnnotateServer]:
    """A server after a short fit of the left half of the picture."""
    path = draw_picture(tmp_path_factory.mktemp("fitted") / "scene")
    half = [boxed(x, y, x + 20, y + 20) for x, y in squares() if x < 190]
    payload = {"type": "FeatureCollection", "features": [*half, boxed(0, 0, 190, 300, "Region*")]}
    path.with_suffix(".geojson").write_text(json.dumps(payload), "utf-8")
    with serving(path, ()) as running, pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.annotate.fit_job._WORKER", "tests.annotate.small_fit")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        status, told = ask(running, "/fit.json", {"steps": 40})
        assert (status, told["status"]) == (202, "running")
        shares = []

        def over() -> bool:
            fit = ask(running, "/state.json")[1]["fit"]
            shares.append(fit["share"])
            return bool(fit["status"] != "running")

        wait_for(over, "the fit", 400)
        assert ask(running, "/state.json")[1]["fit"]["status"] == "done"
        assert shares == sorted(shares)
        assert len(set(shares)) > 3
        yield running
