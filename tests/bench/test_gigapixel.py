"""Benchmark of huge scenes, on small ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coarse2fine import analyze, load_model
from coarse2fine.bench import gigapixel, in_process
from coarse2fine.bench.gigapixel import HugeScenes, benchmark_gigapixel
from coarse2fine.cli.main import main
from coarse2fine.tiling.opening import open_image

GIGAPIXELS = 0.001


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> HugeScenes:
    return HugeScenes(tmp_path_factory.mktemp("scenes"), objects=12_000)


def in_this_process(task: str, **given: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(in_process, task)(**given)
    return found


def test_figures_of_a_small_scene(scenes: HugeScenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gigapixel, "run_apart", in_this_process)
    monkeypatch.setattr(HugeScenes, "objects", scenes.objects)
    report = benchmark_gigapixel(scenes, sizes=(GIGAPIXELS,), progress=False)
    figures = report.figures()
    for method in ("ours", "gradient", "mask", "random", "oracle"):
        by_recall = [figures[f"{method}/{recall} %"] for recall in ("95", "99", "99.5")]
        assert by_recall == sorted(by_recall)
        assert 0 < by_recall[0] <= 1.3
    assert figures["oracle/95 %"] < figures["ours/95 %"] + 0.05
    # With a threshold set for more recall, at least as much is found, for at least as much.
    rows = [f"0.001 Gpx, {recall} %" for recall in ("95", "99", "99.5")]
    assert sorted(figures[f"{row}/recall"] for row in rows) == [figures[f"{row}/recall"] for row in rows]
    assert all(0 <= figures[f"{row}/labels"] <= 1 for row in rows)
    assert figures["0.001 Gpx, exhaustive/sampled"] == 1


@pytest.mark.slow
def test_a_sample_of_the_exhaustive_pass_holds_its_finds_there(scenes: HugeScenes) -> None:
    path, model = str(scenes.make(4 * GIGAPIXELS, 1).image), load_model("digits")
    part = in_process.exhaustive(path, "digits", 0.5)
    assert part["blocks"] < part["all"]
    with analyze(path, model, budget=1.0) as whole:
        everywhere = {(r.label, r.full_box) for r in whole.regions}
    assert {(r.label, r.full_box) for r in in_process.regions_from(part["regions"])} <= everywhere
    assert 0 < len(part["regions"]) < len(everywhere)


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same(scenes: HugeScenes) -> None:
    path = str(scenes.make(GIGAPIXELS, 1).image)
    here, apart = in_process.analysis(path, "digits"), in_process.run_apart("analysis", path=path, model="digits")
    same = ("macs", "exhaustive_macs", "bytes", "refined")
    assert {name: here[name] for name in same} == {name: apart[name] for name in same}
    assert np.allclose([row[2:] for row in here["regions"]], [row[2:] for row in apart["regions"]])
    assert apart.get("peak", 2e7) > 1e7
    with pytest.raises(OSError, match=r"the process that measures the analysis failed: .*nowhere"):
        in_process.run_apart("analysis", path="nowhere.tif", model="digits")


def test_scenes_have_the_objects_asked_for(scenes: HugeScenes) -> None:
    few = replace(scenes, objects=0.5)
    assert len(few.make(GIGAPIXELS, 3).truth.objects) == 1
    made = scenes.make(GIGAPIXELS, 3)
    with open_image(made.image) as image:
        assert image.height * image.width >= GIGAPIXELS * 1e9
        assert len(made.truth.objects) == round(12_000 * image.height * image.width / 1e9)


@pytest.mark.parametrize(("sizes", "seeds"), [((), 1), ((0.0,), 1), ((0.1,), 0)])
def test_wrong_extents_are_refused(scenes: HugeScenes, sizes: tuple[float, ...], seeds: int) -> None:
    with pytest.raises(ValueError, match="expected sizes above 0"):
        benchmark_gigapixel(scenes, sizes=sizes, seeds=seeds)


def test_composites_need_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "gigapixel", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "name the model" in capsys.readouterr().err
