"""The command line: what it writes, and one clear line for each kind of bad input."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from coarse2fine import ImageError, __version__, fit
from coarse2fine.bundle import embedded_names
from coarse2fine.cli import doctor
from coarse2fine.cli.main import main
from coarse2fine.model import Model
from coarse2fine.progress import Progress
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 255, (200, 320, 3), dtype=np.uint8)
    path = tmp_path / "grün (1).png"
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


@pytest.fixture
def model_file(tmp_path: Path, detector: Model) -> Path:
    return detector.save(tmp_path / "tiny.c2f")


def test_analyze_writes_what_it_says(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["analyze", str(picture), "-o", str(out), "-q"]) == 0
    printed = capsys.readouterr().out
    assert "320 x 200 px" in printed
    assert {p.name for p in out.iterdir()} >= {"analysis.json", "overview.png", "record.json", "regions.geojson"}
    summary = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    features = json.loads((out / "regions.geojson").read_text(encoding="utf-8"))["features"]
    assert summary["regions"] == len(features)
    assert summary["model"]["name"] == "generic"
    assert cv2.imread(str(out / "overview.png")) is not None


def test_analyze_takes_a_model_file_and_a_budget(picture: Path, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["analyze", str(picture), "-o", str(out), "-q", "-m", str(model_file), "--budget", "0.5"]
    assert main(command) == 0
    summary = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    assert summary["cost"]["share"] <= 0.5
    assert summary["parameters"]["budget"] == 0.5


def test_convert_writes_what_it_says(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out" / "grün.zarr"
    assert main(["convert", str(picture), "-o", str(target), "--mpp", "0.5"]) == 0
    captured = capsys.readouterr()
    assert "320 x 200 px, 3 channel(s), 1 level(s)" in captured.out
    assert captured.out.endswith(f"written {target}\n")
    assert captured.err == "converting: 1 of 1\n"
    with open_image(target) as image, open_image(picture) as expected:
        assert image.mpp == (0.5, 0.5)
        whole = Box(0, 0, 200, 320)
        np.testing.assert_array_equal(image.read(whole), expected.read(whole))
    assert main(["convert", str(picture), "-o", str(target), "-q"]) == 1
    assert capsys.readouterr().err == f"coarse2fine: {target}: exists already; choose another path or remove it\n"


def test_an_interrupted_convert_says_how_to_go_on(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(self: Progress, name: str) -> Callable[[int, int], None]:
        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        return interrupt

    command = ["convert", str(picture), "-o", str(tmp_path / "a.zarr"), "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "task", task)
        assert main(command) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "coarse2fine: interrupted; run the same command again to continue\n"
    assert main(command) == 0
    assert "1 of 1 shards were kept from an earlier run" in capsys.readouterr().out


def test_info_and_models(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(picture)]) == 0
    assert "png, 320 x 200 px, 3 channel(s)" in capsys.readouterr().out
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in embedded_names())


def test_doctor_tests_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("torch ", "cores usable", "codecs", "GB free", "self-test  passed"))


def test_doctor_names_every_extra_that_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor, "_self_test", lambda: 0)
    assert main(["doctor"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("extras "))
    assert set(line.partition(": ")[2].split(", ")) == set(project["optional-dependencies"]) - {
        "dev",
        "docs",
        "notebook",
    }


def test_train_is_fit(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = []
    for command in ("fit", "train"):
        assert main([command, str(picture), str(tmp_path / "none.geojson"), "-o", str(tmp_path / "m.c2f")]) == 1
        errors.append(capsys.readouterr().err)
    assert errors[0] == errors[1]
    assert "none.geojson" in errors[0]


@pytest.mark.parametrize(("flags", "mode"), [([], "auto"), (["--specialists", "none"], None)])
def test_specialists_are_tried_unless_told_otherwise(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], mode: str | None
) -> None:
    fitted = Mock(side_effect=ImageError("enough"))
    monkeypatch.setattr("coarse2fine.fitting.fit.fit", fitted)
    assert main(["fit", str(picture), str(picture), "-o", str(tmp_path / "m.c2f"), *flags]) == 1
    assert fitted.call_args.kwargs["specialists"] == mode
    assert inspect.signature(fit).parameters["specialists"].default == "auto"


def test_the_script_is_the_command(picture: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "analyze_folder.py"
    command = [sys.executable, str(script), str(picture.parent), str(tmp_path / "out"), "--dry-run", "-m", "digits"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert "1 image(s) to do" in done.stdout
    assert "320 x 200 px" in done.stdout


def test_the_command_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "coarse2fine", "--version"]
    assert __version__ in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_embedded_models_are_small() -> None:
    folder = Path(__file__).resolve().parents[2] / "models" / "embedded"
    assert embedded_names() == ["craters", "digits", "generic", "glyphs"]
    for name in embedded_names():
        assert (folder / f"{name}.c2f").stat().st_size < 3e6
        assert (folder / f"{name}.md").is_file()


def _missing(folder: Path) -> Path:
    return folder / "missing.tif"


def _directory(folder: Path) -> Path:
    path = folder / "plain"
    path.mkdir()
    return path


def _empty(folder: Path) -> Path:
    path = folder / "empty.tif"
    path.touch()
    return path


def _text(folder: Path) -> Path:
    path = folder / "text.tif"
    path.write_text("this is no image\n" * 40, encoding="utf-8")
    return path


@pytest.mark.parametrize("make", [_missing, _directory, _empty, _text])
def test_a_bad_image_is_one_line_that_names_it(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path)
    assert main(["analyze", str(path), "-o", str(tmp_path / "out"), "-q"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("coarse2fine: ")
    assert captured.err.count("\n") == 1
    assert path.name in captured.err
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_version_is_refused(
    picture: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps({"format": 99, "written_by": "coarse2fine 9.0"})
    save_file(load_file(model_file), model_file, metadata={"coarse2fine": text})
    assert main(["analyze", str(picture), "-o", str(tmp_path / "out"), "-q", "-m", str(model_file)]) == 1
    message = capsys.readouterr().err
    assert "tiny.c2f has model format 99" in message
    assert "coarse2fine 9.0" in message


def _annotation(geometry: dict[str, Any], label: str) -> dict[str, Any]:
    properties = {"classification": {"name": label}}
    return {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "geometry": geometry, "properties": properties}],
    }


@pytest.mark.parametrize(
    ("geometry", "label", "message"),
    [
        ({"type": "Circle", "coordinates": [9, 9]}, "cell", "Circle"),
        ({"type": "Point", "coordinates": [900, 900]}, "cell", "outside"),
        ({"type": "Point", "coordinates": []}, "cell", "Point"),
    ],
)
def test_a_bad_annotation_is_one_line_that_names_it(
    geometry: dict[str, Any],
    label: str,
    message: str,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    annotation = picture.with_suffix(".geojson")
    annotation.write_text(json.dumps(_annotation(geometry, label)), encoding="utf-8")
    assert main(["fit", str(picture), str(annotation), "-o", str(tmp_path / "m.c2f"), "-q"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed
    assert annotation.name in printed


def test_a_result_folder_that_is_a_file_is_refused_before_the_work(
    picture: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(picture), "-o", str(model_file), "-q"]) == 1
    assert "expected a folder" in capsys.readouterr().err


def test_a_place_that_cannot_take_the_result_is_refused_before_the_work(
    picture: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotation = picture.with_suffix(".geojson")
    point = {"type": "Point", "coordinates": [9, 9]}
    annotation.write_text(json.dumps(_annotation(point, "cell")), encoding="utf-8")
    assert main(["fit", str(picture), str(annotation), "-o", str(tmp_path), "-q"]) == 1
    assert "is a folder, expected the model file" in capsys.readouterr().err
    assert main(["analyze", str(picture), "-o", str(model_file / "out"), "-q"]) == 1
    assert "tiny.c2f is a file, expected a folder" in capsys.readouterr().err


def test_a_base_that_cannot_be_is_one_line(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotation = picture.with_suffix(".geojson")
    square = {"type": "Polygon", "coordinates": [[[9, 9], [29, 9], [29, 29], [9, 29], [9, 9]]]}
    annotation.write_text(json.dumps(_annotation(square, "cell")), encoding="utf-8")
    command = ["fit", str(picture), str(annotation), "-o", str(tmp_path / "m.c2f"), "-q", "--base", "timm:resnet18"]
    assert main([*command, "--base-weights", str(tmp_path / "missing.pth")]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("coarse2fine: no weights at ")
    assert "missing.pth" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("budget", ["0", "-1", "0.0001"])
def test_a_budget_that_cannot_be(
    budget: str, picture: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", str(picture), "-o", str(tmp_path / "out"), "-q", "-m", str(model_file), "--budget", budget]
    assert main(command) == 1
    assert "budget" in capsys.readouterr().err


def test_a_place_that_cannot_hold_results_is_named_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, blocked = tmp_path / "a.png", tmp_path / "file"
    cv2.imwrite(str(image), np.zeros((40, 40), np.uint8))
    blocked.write_text("in the way")
    for command in ("convert", "analyze"):
        assert main([command, str(image), "-o", str(blocked / "out")]) == 1
        assert f"{blocked} is a file, expected a folder for the results" in capsys.readouterr().err
