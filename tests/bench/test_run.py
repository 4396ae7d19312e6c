from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

import coarse2fine.bench.run
from coarse2fine import AnnotationError, Model, open_image
from coarse2fine.bench.data import BenchScene, digit_split, load_scenes, splits
from coarse2fine.bench.methods import filled, gradient_interest, oracle_interest
from coarse2fine.bench.results import Measurement, SceneFacts
from coarse2fine.bench.run import benchmark_scenes
from coarse2fine.bench.score import object_boxes
from coarse2fine.steps.choose import choose
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"


def feature(label: str, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": label}}}


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def test_gradient_is_the_plain_laplacian_of_the_whole(grey_detector: Model, make_image: Callable[..., Any]) -> None:
    image = open_image(make_image(64, 1100, 1, seed=4))  # wider than one block
    whole = image.read_scaled(Box(0, 0, 32, 550), 2)[..., 0].astype(np.float32)
    edges = np.abs(cv2.Laplacian(whole, cv2.CV_32F, borderType=cv2.BORDER_REPLICATE))
    padded = np.pad(edges, ((0, 0), (0, 2)))
    plain = padded.reshape(8, 4, 138, 4).max(axis=(1, 3))
    # The last column's cells reach beyond the image, where edge pixels repeat.
    np.testing.assert_array_equal(gradient_interest(image, grey_detector)[:, :-1], plain[:, :-1])


def test_mask_keeps_what_is_not_empty(grey_detector: Model) -> None:
    pixels = np.full((256, 256), 90, np.uint8)
    pixels[64:128, 64:128] = np.random.default_rng(0).integers(0, 256, (64, 64))
    mask = filled(open_image(pixels), grey_detector)
    assert mask[8:16, 8:16].all()
    assert not mask[:, 18:].any()


def test_nothing_interesting_is_an_empty_plan(grey_detector: Model) -> None:
    blank = open_image(np.full((160, 160), 90, np.uint8))
    maps = [filled(blank, grey_detector).astype(np.float32), oracle_interest(np.zeros((0, 2), np.int64), (20, 20))]
    for interest in maps:
        assert len(choose(interest, 2, window_macs=grey_detector.window_macs, budget_macs=10**9)) == 0


def write_scene(folder: Path, name: str, geojson: dict[str, Any] | None, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 96), np.uint8)
    assert cv2.imwrite(str(folder / f"{name}.png"), pixels)
    if geojson is not None:
        (folder / f"{name}.geojson").write_text(json.dumps(geojson))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        write_scene(tmp_path, f"s{i}", collection(feature("left", 20, 20, 40, 40)), i)
    write_scene(tmp_path, "void", collection())
    return tmp_path


def test_a_scene_without_annotations_is_skipped_with_a_note(folder: Path) -> None:
    scenes, notes = load_scenes(folder)
    assert [s.name for s in scenes] == [f"s{i}" for i in range(5)]
    assert notes == ["left out void.png: void.geojson holds no annotation"]


def test_images_and_annotations_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir()
    write_scene(tmp_path / "images", "a", collection(feature("left", 20, 20, 40, 40)))
    (tmp_path / "images" / "a.geojson").rename(tmp_path / "annotations" / "a.geojson")
    assert [s.name for s in load_scenes(tmp_path)[0]] == ["a"]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_scenes(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no file ending in"):
        load_scenes(tmp_path)
    write_scene(tmp_path, "void", collection())
    with pytest.raises(AnnotationError, match=r"no image in .* has an annotation"):
        load_scenes(tmp_path)
    write_scene(tmp_path, "bare", None)
    with pytest.raises(AnnotationError, match=r"bare\.png, named bare\.geojson"):
        load_scenes(tmp_path)
    (tmp_path / "bare.geojson").write_text("{")
    with pytest.raises(AnnotationError, match="is not JSON"):
        load_scenes(tmp_path)


@pytest.mark.parametrize("folds", [2, 3, 5, 9])
def test_folds_leave_every_scene_out_once(folder: Path, folds: int) -> None:
    scenes, _ = load_scenes(folder)
    parts = splits(scenes, (), folds)
    assert len(parts) == min(folds, 5)
    assert sorted(s.name for p in parts for s in p.test) == [s.name for s in scenes]
    assert all(sorted(s.name for s in p.train + p.test) == [s.name for s in scenes] for p in parts)


def test_splits_that_cannot_be_made(folder: Path) -> None:
    scenes, _ = load_scenes(folder)
    with pytest.raises(ValueError, match="no annotated scene is named void; there are s0, s1"):
        splits(scenes, ("s1", "void"), 4)
    with pytest.raises(ValueError, match="nothing is left to fit on"):
        splits(scenes, [s.name for s in scenes], 4)
    with pytest.raises(ValueError, match="at least 2 annotated scenes"):
        splits(scenes[:1], (), 4)
    with pytest.raises(ValueError, match="at least 2 folds, got 1"):
        splits(scenes, (), 1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Model]]:
    """What would be measured: scene, seed and model; the measurement itself takes seconds, and is replaced."""
    found: list[tuple[str, int, Model]] = []

    def measure(model: Model, scene: BenchScene, seed: int, **_: Any) -> Measurement:
        found.append((scene.name, seed, model))
        values: dict[str, Any] = {f.name: 0 for f in fields(SceneFacts)}
        return Measurement(SceneFacts(**values | {"scene": scene.name, "seed": seed}), (), (), (), ())

    monkeypatch.setattr(coarse2fine.bench.run, "measure", measure)
    return found


def test_no_scene_under_test_is_fitted_on(
    folder: Path, sparse: Model, measured: list[tuple[str, int, Model]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[list[str], int]] = []

    def fit(images: list[Path], annotations: list[Path], **options: Any) -> Model:
        assert [i.stem for i in images] == [a.stem for a in annotations]
        fitted.append(([i.stem for i in images], options["seed"]))
        assert options["rotate"] is True
        return sparse

    probed: list[list[str]] = []

    def fit_probe(images: Iterable[Image], *_: Any) -> None:
        probed.append([image.name for image in images])

    monkeypatch.setattr(coarse2fine.bench.run, "fit", fit)
    monkeypatch.setattr(coarse2fine.bench.run, "fit_probe", fit_probe)
    done = benchmark_scenes(folder, test=["s1", "s3"], seeds=2, progress=False)
    assert fitted == [(["s0", "s2", "s4"], 0), (["s0", "s2", "s4"], 1)]
    assert probed == [names for names, _ in fitted]
    assert [row[:2] for row in measured] == [("s1", 0), ("s3", 0), ("s1", 1), ("s3", 1)]
    assert done.notes[0].startswith("left out void.png")


def test_fitted_models_are_kept_and_found_again(
    folder: Path,
    sparse: Model,
    measured: list[tuple[str, int, Model]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    fitted: list[int] = []

    def fit(images: list[Path], _: list[Path], **options: Any) -> Model:
        fitted.append(options["seed"])
        origin = {"scenes": [i.stem for i in images], "steps": options["steps"], "seed": options["seed"]}
        return replace(sparse, provenance={**sparse.provenance, **origin})

    monkeypatch.setattr(coarse2fine.bench.run, "fit", fit)
    monkeypatch.setattr(coarse2fine.bench.run, "fit_probe", lambda *_: None)
    run = partial(benchmark_scenes, folder, test=["s1"], models=tmp_path / "kept", progress=False)
    run(seeds=1)
    assert fitted == [0]
    run(seeds=2)
    assert fitted == [0, 1]
    assert [model.provenance["seed"] for _, _, model in measured] == [0, 0, 1]
    run(seeds=1, steps=20)
    assert fitted == [0, 1, 0]


def test_a_given_model_is_not_fitted_and_its_own_scenes_are_told(
    folder: Path, sparse: Model, measured: list[tuple[str, int, Model]]
) -> None:
    path = replace(sparse, provenance={"scenes": ["s2"]}).save(folder / "known.c2f")
    done = benchmark_scenes(folder, test=["s1", "s2"], seeds=1, model=str(path), progress=False)
    assert "NOT A TEST: tiny was fitted on scenes of these names: s2" in done.notes
    assert [row[:2] for row in measured] == [("s1", 0), ("s2", 0)]


def test_unusable_parameters() -> None:
    with pytest.raises(ValueError, match="at least 1 seed, got 0"):
        benchmark_scenes(seeds=0)
    with pytest.raises(ValueError, match="can be named only in a folder"):
        benchmark_scenes(test=["a"])


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "scenes", *map(str, arguments)])
    return int(script.main())


def test_the_script_prints_a_table_and_writes_both_files(
    script: ModuleType,
    folder: Path,
    sparse: Model,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = sparse.save(folder / "known.c2f")
    out = folder / "results"
    code = run(script, monkeypatch, "--data", folder, "--test", "s1", "--model", model, "--quick", "--out", out)
    assert code == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "1 run(s): 1 scene(s) x 1 seed(s)"
    assert any(line.startswith("probe ") for line in printed)
    assert "note: images that are stored whole count as if in chunks of 256 x 256 pixels" in printed
    assert sorted(p.name for p in out.iterdir()) == ["scenes.json", "scenes.png"]
    assert json.loads((out / "scenes.json").read_text())["seeds"] == [0]


@pytest.mark.slow
def test_a_composite_stands_in_for_the_scenes_of_a_fold_and_is_removed(
    script: ModuleType, folder: Path, sparse: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = sparse.save(folder / "known.c2f")
    out = folder / "results"
    monkeypatch.setattr(coarse2fine.bench.run, "_occupied", lambda scene, model: object_boxes(scene.truth, model))
    made = ("--composite", "0.1", "--density", "0.5")
    code = run(script, monkeypatch, "--data", folder, "--model", model, "--quick", "--out", out, *made)
    assert code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "is a COMPOSITE, not a real scene: tiles cut from the test scenes at random, rotated, on 50.0%" in printed
    assert "the rival probe is left out: there is no scene to fit it on" in printed
    assert sorted(p.name for p in out.iterdir()) == ["scenes.json", "scenes.png"]
    record = json.loads((out / "scenes.json").read_text())
    assert record["figures"]["scenes/megapixels"] >= 0.1
    assert 0 < record["figures"]["scenes/chunks_decoded"] < 3
    assert "chunks for each stored at full resolution" in printed
    assert record["parameters"]["composite"] == {"megapixels": 0.1, "density": 0.5}
    assert [s["scene"] for s in record["scenes"]] == ["composite of s0+4 more"]


def test_a_density_without_a_composite_is_refused(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, monkeypatch, "--data", folder, "--density", "0.5", "--out", folder) == 1
    assert "--density applies to a composite" in capsys.readouterr().err


def test_a_bad_folder_gives_one_clear_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, monkeypatch, "--data", tmp_path / "nowhere", "--out", tmp_path) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("benchmark: there is no folder")


def test_synthetic_scenes_to_fit_and_to_test_differ_in_handwriting_and_ground() -> None:
    part = digit_split(256)
    assert [s.name for s in part.test] == ["digits-test"]
    images = [np.asarray(s.image) for s in (*part.train, *part.test)]
    assert all(i.shape == (256, 256, 1) for i in images)
    assert not any(np.array_equal(a, images[-1]) for a in images[:-1])
    assert {a.label for a in part.train[0].truth.objects} <= set("0123456789")
