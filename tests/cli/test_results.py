"""The commands for results that are there, on the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import Analysis, analyze
from coarse2fine.annotations.read import read_annotations
from coarse2fine.cli.main import main
from coarse2fine.model import Model

MakeImage = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def result(tmp_path: Path, make_image: MakeImage, detector: Model, plain_pictures: None) -> Path:
    path = tmp_path / "grün (1).png"
    path.write_bytes(cv2.imencode(".png", make_image(200, 320))[1].tobytes())
    detector.save(tmp_path / "tiny.c2f")
    with analyze(path, detector, budget=0.5) as analysis:
        return analysis.save(tmp_path / "out")


def test_report(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(result)]) == 0
    assert capsys.readouterr().out == f"written {result / 'report.html'}\n"
    assert main(["report", str(result.parent)]) == 0
    assert (result.parent / "report.html").is_file()
    assert main(["report", str(result / "maps.ome.zarr" / "0")]) == 1
    assert "holds no results" in capsys.readouterr().err


def test_an_image_that_was_moved(
    result: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    moved = (result.parent / "grün (1).png").rename(result.parent / "anders.png")
    assert main(["report", str(result)]) == 0
    assert "has no pictures: " in caplog.text
    assert "if it was moved, pass it: --image PATH" in caplog.text
    assert main(["report", str(result), "--image", str(moved)]) == 0
    assert "data:image/jpeg" in (result / "report.html").read_text("utf-8")
    assert main(["report", str(result.parent), "--image", str(moved)]) == 1
    assert "is no single result" in capsys.readouterr().err


def test_tiles(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5py = pytest.importorskip("h5py")
    path = result.parent / "tiles.h5"
    command = ["tiles", str(result), "-o", str(path), "-m", str(result.parent / "tiny.c2f"), "--tile", "64"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"written {path}\n"
    with h5py.File(path) as file:
        assert set(file) == {"coords", "features"}
    assert main([*command[:-1], "63"]) == 1
    assert "expected tiles of a multiple of 8 px" in capsys.readouterr().err


def test_coco(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = result.parent / "finds.json"
    with Analysis.load(result) as analysis:
        regions = analysis.regions
        one = analysis.to_coco(result.parent / "one.json").read_bytes()
    assert regions
    for folder in (result, result.parent):  # of an image, and of a batch
        assert main(["coco", str(folder), "-o", str(path)]) == 0
        assert capsys.readouterr().out == f"written {path}\n"
        assert path.read_bytes() == one
        found = read_annotations(path, full_shape=(200, 320), image="grün (1).png").objects
        # What reaches beyond the image is cut off when it is read.
        assert [o.label for o in found] == [region.label for region in regions]
        read = read_annotations(path, image="grün (1).png").objects
        assert [o.full_bounds for o in read] == [region.full_box for region in regions]
    assert main(["coco", str(result / "maps.ome.zarr"), "-o", str(path)]) == 1
    assert "holds no results" in capsys.readouterr().err


@pytest.mark.slow
def test_view_until_interrupted(result: Path) -> None:
    command = [sys.executable, "-m", "coarse2fine.cli.main", "view", str(result), "--no-browser"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment) as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        try:
            assert said.startswith("grün (1) is shown at http://127.0.0.1:")
            url = said.split(" at ")[1].split()[0]
            with urllib.request.urlopen(f"{url}info.json", timeout=60) as answer:
                assert answer.status == 200
            if os.name == "posix":
                running.send_signal(signal.SIGINT)
                assert running.wait(60) == 0
        finally:
            running.kill()


def test_view_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path)]) == 1
    assert "holds no complete result" in capsys.readouterr().err


def test_view_tells_images_from_results(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[tuple[str, dict[str, object]]] = []
    for module, name in (("report.viewer", "serve"), ("annotate.serve", "serve_image")):
        monkeypatch.setattr(
            f"coarse2fine.{module}.{name}", lambda place, name=name, **given: shown.append((name, {"": place, **given}))
        )
    picture, pyramid = tmp_path / "a.png", tmp_path / "a.ome.zarr"
    picture.write_bytes(b"")
    pyramid.mkdir()
    (pyramid / "zarr.json").write_text("{}", "utf-8")
    for place in (result, picture, pyramid, "https://example.org/a.tif"):
        assert main(["view", str(place)]) == 0
    assert main(["view", str(picture), "--classes", "a", "b c", "--annotations", "x.geojson", "--port", "5"]) == 0
    assert main(["view", str(result), "--image", str(picture)]) == 0
    assert [name for name, _ in shown] == ["serve", *("serve_image",) * 4, "serve"]
    assert shown[4][1] == {
        "": str(picture),
        "classes": ["a", "b c"],
        "annotations": Path("x.geojson"),
        "host": "127.0.0.1",
        "port": 5,
        "open_browser": True,
    }
    assert main(["view", str(picture), "--image", str(picture), "--classes", "a"]) == 1
    assert "view IMAGE alone" in capsys.readouterr().err


def test_view_of_what_cannot_be_annotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path / "no.png")]) == 1
    assert "no.png" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("no image", "utf-8")
    assert main(["view", str(tmp_path / "text.txt")]) == 1
    assert "text.txt" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.geojson"))
