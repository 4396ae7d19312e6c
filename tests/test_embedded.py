"""The embedded models do what their cards say, on scenes they were not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coarse2fine import analyze
from coarse2fine.annotations.read import read_annotations
from coarse2fine.demo import letters
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.demo.gigapixel import run, score
from coarse2fine.demo.glyph_scene import GlyphScene
from coarse2fine.fitting.matching import match
from coarse2fine.tiling.geometry import Box

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def test_digits_are_found_and_told_from_clutter_at_a_fraction_of_the_cost() -> None:
    scene = DigitScene(2048, 2048, digits=30, clutter=90, seed=77, handwriting="held-out")
    pixels = scene.block(Box(0, 0, 2048, 2048))
    coarse = analyze(pixels, "digits")
    exhaustive = analyze(pixels, "digits", budget=1.0)
    ours, best = score(coarse, scene), score(exhaustive, scene)
    assert best.right >= 24
    assert ours.right >= 0.9 * best.right
    assert ours.found - ours.right <= 5
    assert ours.named >= 0.9 * ours.right
    assert coarse.cost.share < 0.2
    assert np.mean([bool(region.fired) for region in coarse.regions]) > 0.9


@pytest.mark.skipif(not (DATA / "mars").is_dir(), reason="the Mars scenes are not here")
def test_craters_are_found() -> None:
    # A scene of the training set: this tells that the model is whole, not how good it is.
    path = DATA / "mars" / "MC11E-B.png"
    true = np.array([a.full_bounds for a in read_annotations(path.with_suffix(".geojson")).objects])
    with analyze(path, "craters") as analysis:
        found = np.array([r.full_centre for r in analysis.regions])
        scores = np.array([r.score for r in analysis.regions], np.float32)
    reach = np.maximum(8, (true[:, 2:] - true[:, :2]).max(axis=1) / 2)
    right = (match(found, scores, (true[:, :2] + true[:, 2:]) / 2, reach) >= 0).sum()
    assert right >= 0.7 * len(found)
    assert right >= 0.4 * len(true)


def test_a_scratch_on_even_ground_is_unusual() -> None:
    rng = np.random.default_rng(3)
    pixels = rng.normal(128, 8, (1024, 1024)).clip(0, 255).astype(np.uint8)
    pixels[400:420, 600:700] = rng.choice([30, 220], (20, 100)).astype(np.uint8)
    analysis = analyze(pixels)
    y0, x0, y1, x1 = max(
        analysis.regions, key=lambda r: (r.full_box[2] - r.full_box[0]) * (r.full_box[3] - r.full_box[1])
    ).full_box
    assert Box(400, 600, 420, 700).intersect(Box(int(y0), int(x0), int(y1), int(x1))) is not None


def test_the_demo_runs_small_and_does_not_make_its_scene_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, 1024)
    first = capsys.readouterr()
    assert "1,024 x 1,024 px" in first.out
    assert "x less" in first.out
    made = (tmp_path / "digits-1024.zarr" / "zarr.json").stat().st_mtime_ns
    run(tmp_path, 1024)
    assert (tmp_path / "digits-1024.zarr" / "zarr.json").stat().st_mtime_ns == made
    for name in ("overview.png", "regions.geojson", "analysis.json", "digits-1024.geojson"):
        assert (tmp_path / name).is_file()


def test_letters_are_found_and_named() -> None:
    scene = GlyphScene(1536, 1536, letters=120, clutter=120, seed=78)
    pixels = scene.block(Box(0, 0, 1536, 1536))
    with analyze(pixels, "glyphs") as coarse, analyze(pixels, "glyphs", budget=1.0) as exhaustive:
        ours, best = score(coarse, scene), score(exhaustive, scene)
        assert best.right >= 0.85 * best.true
        assert ours.right >= 0.9 * best.right
        assert ours.named >= 0.85 * ours.right
        assert 0 < coarse.cost.classify_macs < 0.1 * coarse.cost.macs
        assert coarse.cost.share < 0.3


def test_the_demos_letters_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "_SIDE", 1024)
    monkeypatch.setattr(letters, "_LETTERS", 60)
    monkeypatch.setattr(letters, "_CLUTTER", 60)
    letters.run_letters(tmp_path)
    printed = capsys.readouterr().out
    assert "60 letters, of 730 classes in 13 scripts" in printed
    assert "in the right class" in printed
    for name in ("letters.png", "overview.png", "regions.geojson"):
        assert (tmp_path / name).is_file()
