"""Batches with an expert: in this process, in workers, split, and on the command line."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from coarse2fine import Analysis, analyze, analyze_folder, open_image
from coarse2fine.cli.main import main
from tests.experts.scenes import Finder, Pixels, boxes_of, disc_expert, model_of, scene
from tests.experts.test_expert import forget, named, package  # noqa: F401 (a fixture)
from tests.experts.test_refiner import Broken

pytestmark = pytest.mark.usefixtures("plain_pictures")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3):
        cv2.imwrite(str(folder / f"scene{n}.png"), scene(300 + 40 * n, 260, 40, seed=n))
    return folder


def regions(out: Path) -> dict[str, Any]:
    return {
        Path(path.parent.name).stem: Analysis.load(path.parent).regions for path in sorted(out.glob("*/analysis.json"))
    }


def test_the_expert_is_made_from_its_text(package: Path, images: Path, tmp_path: Path) -> None:  # noqa: F811
    model = model_of(named(floor=110))
    path = model.save(tmp_path / "m.c2f")
    wanted = {f"scene{n}": analyze(images / f"scene{n}.png", model, budget=0.7).regions for n in range(3)}
    assert all(wanted.values())
    forget(package)
    batch = analyze_folder(images, tmp_path / "out", path, expert="discs_here:build", workers=0, budget=0.7)
    assert batch.ok
    assert package.read_text() == "x"  # made once
    assert regions(tmp_path / "out") == wanted


def test_an_expert_that_is_missing_or_not_named(package: Path, images: Path, tmp_path: Path) -> None:  # noqa: F811
    path = model_of(named()).save(tmp_path / "m.c2f")
    forget(package)
    batch = analyze_folder(images, tmp_path / "a", path, workers=0)
    assert {record.status for record in batch.records} == {"failed"}
    assert "discs_here:build" in batch.records[0].error
    assert not package.exists()
    (package.parent / "discs_here.py").unlink()
    batch = analyze_folder(images, tmp_path / "b", path, expert="discs_here:build", workers=0)
    assert {record.status for record in batch.records} == {"failed"}
    assert "no module 'discs_here'" in batch.records[0].error


def test_live_objects_stay_in_this_process(images: Path, tmp_path: Path) -> None:
    made = disc_expert()
    model = model_of(made)
    path = model.save(tmp_path / "m.c2f")
    givens: tuple[dict[str, Any], ...] = ({"model": model}, {"model": path, "expert": made})
    for given in givens:
        out = tmp_path / f"out{len(given)}"
        with pytest.raises(ValueError, match="workers=0"):
            analyze_folder(images, out, **given, workers=2)
        batch = analyze_folder(images, out, **given, workers=0, budget=1.0)
        assert batch.ok
        for name, found in regions(out).items():
            assert found == analyze(images / f"{name}.png", model, budget=1.0).regions


def test_an_image_with_a_tile_that_fails_is_damaged(images: Path, tmp_path: Path) -> None:
    image = scene(300, 260, 40)
    image[100, 100] = 7
    cv2.imwrite(str(images / "scene0.png"), image)
    cv2.imwrite(str(images / "scene1.png"), np.full((300, 260, 3), 7, np.uint8))  # every tile fails
    model = model_of(disc_expert(Broken(RuntimeError("no such luck"))))
    batch = analyze_folder(images, tmp_path / "out", model, workers=0, budget=1.0)
    records = {Path(record.name).stem: record for record in batch.records}
    assert [records[f"scene{n}"].status for n in range(3)] == ["damaged", "failed", "done"]
    assert "y=64, x=64: RuntimeError: no such luck" in records["scene0"].error
    assert "RuntimeError: no such luck" in records["scene1"].error
    assert not Analysis.load(tmp_path / "out" / "scene0.png").complete


def test_running_out_of_memory_is_no_damage(images: Path, tmp_path: Path) -> None:
    def answer(pixels: Pixels) -> Any:
        if len(pixels) > 2:
            raise MemoryError
        return [boxes_of(tile) for tile in pixels]

    batch = analyze_folder(images, tmp_path / "out", model_of(disc_expert(answer)), workers=0, budget=1.0)
    assert [record.status for record in batch.records] == ["done"] * 3
    notes = Analysis.load(tmp_path / "out" / "scene0.png").notes
    assert any("out of memory" in note for note in notes)


def test_an_interrupted_batch_goes_on(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coarse2fine.batch.request.KEEP_FROM", 1)
    monkeypatch.setattr("coarse2fine.steps.pieces.PIECE_PIXELS", 8 * 80**2)
    monkeypatch.setattr("coarse2fine.steps.pieces.ROUND_PIXELS", 8 * 80**2)
    stop = [True]

    def answer(pixels: Pixels) -> Any:
        if len(calls.calls) == 3 and stop:
            stop.clear()
            raise KeyboardInterrupt
        return [boxes_of(tile) for tile in pixels]

    calls = Finder(answer)
    model = model_of(disc_expert(calls))
    with pytest.raises(KeyboardInterrupt):
        analyze_folder(images, tmp_path / "out", model, workers=0, budget=1.0)
    before = sum(shape[0] for shape in calls.calls)
    assert analyze_folder(images, tmp_path / "out", model, workers=0, budget=1.0).ok
    tiles = 5 * (5 + 6 + 6)
    assert sum(shape[0] for shape in calls.calls) == tiles + 8  # the batch in which it was stopped is asked again
    assert before == 24
    for name, found in regions(tmp_path / "out").items():
        assert found == analyze(images / f"{name}.png", model, budget=1.0).regions


@pytest.mark.slow
def test_workers_and_split_images_equal_one_process(
    package: Path,  # noqa: F811
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes make the expert from its text; both refine pieces of the larger image."""
    monkeypatch.setattr("coarse2fine.batch.request.KEEP_FROM", 2**18)
    for name in ("scene1", "scene2"):
        (images / f"{name}.png").unlink()
    cv2.imwrite(str(images / "large.png"), scene(525, 520, 50))  # 1,089 tiles, each read with much around it
    model = model_of(named(tile=16, context=120, batch=16, floor=110))
    file = model.save(tmp_path / "m.c2f")
    batch = analyze_folder(images, tmp_path / "out", model, workers=2, split=True, budget=1.0)
    assert batch.ok, [record.error for record in batch.records]
    found = regions(tmp_path / "out")
    assert len(found["large"]) > 20
    for name, each in found.items():
        assert each == analyze(images / f"{name}.png", file, expert="discs_here:build", budget=1.0).regions


def test_the_command_line(
    package: Path,  # noqa: F811
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = model_of(named())
    path = model.save(tmp_path / "m.c2f")
    forget(package)
    image, given = str(images / "scene0.png"), ["-m", str(path), "-q", "--budget", "1"]
    assert main(["info", str(path)]) == 0
    assert "expert discs_here:build: tiles of 64 px" in capsys.readouterr().out
    assert main(["analyze", image, "-o", str(tmp_path / "none"), *given]) == 1
    assert "--expert" in capsys.readouterr().err
    assert main(["analyze", image, "-o", str(tmp_path / "none"), "--dry-run", *given]) == 1
    assert "--expert" in capsys.readouterr().err
    assert not package.exists()
    given += ["--expert", "discs_here:build"]
    assert main(["analyze", image, "-o", str(tmp_path / "dry"), "--dry-run", *given]) == 0
    # 25 tiles of 0.01 GMAC
    assert "0.2 GMAC (upper bound)" in capsys.readouterr().out.replace("0.3 GMAC", "0.2 GMAC")
    assert main(["analyze", image, "-o", str(tmp_path / "one"), *given]) == 0
    assert Analysis.load(tmp_path / "one").regions == analyze(image, model, budget=1.0).regions
    assert main(["analyze", str(images), "-o", str(tmp_path / "all"), "-n", "0", *given]) == 0
    assert len(regions(tmp_path / "all")) == 3
    assert json.loads((tmp_path / "all" / "batch.json").read_text())


def test_the_expert_does_not_wait(tmp_path: Path) -> None:
    """Tiles are read, cut and batched while the expert works: it is busy at least 0.9 of the time."""
    image = np.random.default_rng(0).integers(0, 90, (2560, 2560, 3), np.uint8)
    path = tmp_path / "noise.tif"
    tifffile.imwrite(path, image, tile=(256, 256), compression="zlib", photometric="rgb")
    spans: list[tuple[float, float]] = []

    def slow(pixels: Pixels) -> Any:
        start = time.perf_counter()
        time.sleep(0.02 * len(pixels))
        spans.append((start, time.perf_counter()))
        return [None] * len(pixels)

    model = model_of(disc_expert(slow, tile=256, context=32, batch=4))
    threads = threading.active_count()
    with open_image(path) as opened:
        analyze(opened, model, budget=1.0)
    print(f"busy {sum(b - a for a, b in spans) / (spans[-1][1] - spans[0][0]):.3f}")
    busy = sum(end - start for start, end in spans)
    assert len(spans) == 25
    assert busy / (spans[-1][1] - spans[0][0]) >= 0.9
    assert threading.active_count() <= threads + 1
