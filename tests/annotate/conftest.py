"""An image to annotate, its server, and a model that was fitted on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from coarse2fine.annotate.server import AnnotateServer
from coarse2fine.bench.data import BenchScene
from tests.annotate.browser import wait_for
from tests.annotate.local import ask, serving

SIZE = (300, 400)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A grey slope of 300 x 400 pixels with bright squares, alone in a folder."""
    folder = tmp_path / "scene"
    folder.mkdir()
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = ((y + x) // 8 + 40).astype(np.uint8)
    for row in range(20, 280, 60):
        for column in range(20, 380, 60):
            pixels[row : row + 20, column : column + 20] = 230
    path = folder / "scene.png"
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def server(picture: Path) -> Iterator[AnnotateServer]:
    with serving(picture, ("cell", "dust")) as running:
        yield running


@pytest.fixture(scope="module")
def fitted(digits: BenchScene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnnotateServer]:
    """A server after a short fit of half of the digits of a scene."""
    path = tmp_path_factory.mktemp("fitted") / "digits.png"
    assert isinstance(digits.image, np.ndarray)
    assert isinstance(digits.annotations, dict)
    assert cv2.imwrite(str(path), digits.image)
    half = digits.annotations["features"][::2]
    path.with_suffix(".geojson").write_text(json.dumps({"type": "FeatureCollection", "features": half}), "utf-8")
    with serving(path, ()) as running:
        status, told = ask(running, "/fit.json", {"steps": 20})
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
