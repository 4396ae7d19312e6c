"""Images of another pixel size than those of a fit are read at the pixel size of the fit."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from coarse2fine import Analysis, Model, analyze, analyze_folder, open_image
from coarse2fine.annotations.read import read_annotations
from coarse2fine.bench.data import BenchScene
from coarse2fine.bench.expert_run import measure_expert
from coarse2fine.bench.measure import measure
from coarse2fine.pixel_size import _scaled, at_pixel_size
from coarse2fine.remembered import KEY, Remembered
from tests.experts.scenes import Finder, disc_expert, model_of, scene
from tests.fitting.discs import collection, feature

Pixels = NDArray[np.uint8]


def pixels(seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 255, (300, 340), np.uint8)


def larger(image: Pixels, factor: int = 2) -> Pixels:
    """Each pixel as a square: the mean over the squares is the image again."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def written(path: Path, image: Pixels, mpp: float) -> Path:
    axes = "YX" if image.ndim == 2 else "YXS"
    tifffile.imwrite(path, image, metadata={"axes": axes, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp})
    return path


def fitted_at(model: Model, mpp: float | None) -> Model:
    """The model with a record of images of this pixel size."""
    record = Remembered(None, False, None, None, None, mpp).to_json()
    return replace(model, provenance={**model.provenance, KEY: record})


def assert_same_finds(there: Analysis, here: Analysis, factor: int) -> None:
    """The same finds, in `there` this many times larger."""
    assert here.regions
    assert [r.label for r in there.regions] == [r.label for r in here.regions]
    for name, times in (("score", 1), ("full_box", factor)):
        theirs, ours = (np.array([getattr(r, name) for r in a.regions]) for a in (there, here))
        np.testing.assert_allclose(theirs, times * ours, rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", ["detector", "zoom_detector"])
def test_smaller_pixels_give_the_same_finds(request: pytest.FixtureRequest, name: str, factor: int) -> None:
    model = fitted_at(request.getfixturevalue(name), 0.5)
    options: dict[str, Any] = {"precision": "fp32", "audit": 0.05}
    here = analyze(open_image(pixels(), mpp=0.5), model, **options)
    there = analyze(open_image(larger(pixels(), factor), mpp=0.5 / factor), model, **options)
    assert_same_finds(there, here, factor)
    assert (there.cost.macs, there.cost.exhaustive_macs) == (here.cost.macs, here.cost.exhaustive_macs)
    assert there.cell == factor * here.cell
    np.testing.assert_array_equal(there.refined, here.refined)
    *others, note = there.notes
    assert tuple(others) == here.notes
    assert note.startswith(f"a pixel is {0.5 / factor:.3g} microns, 0.5 in the fit of the model")
    assert f"read at 1/{factor} of its resolution" in note


def test_experts_get_the_tiles_of_their_own_pixel_size() -> None:
    image = scene(256, 320, 12, seed=1)
    model = fitted_at(model_of(disc_expert(Finder(), tile=64)), 1.0)
    here = analyze(open_image(image, mpp=1.0), model, budget=1.0, audit=0)
    there = analyze(open_image(larger(image), mpp=0.5), model, budget=1.0, audit=0)
    assert_same_finds(there, here, 2)


@pytest.mark.parametrize("mpp", [0.5, 0.45, 0.37, 1.0, None])
def test_others_are_read_as_they_are(detector: Model, mpp: float | None) -> None:
    model, image = fitted_at(detector, 0.5), open_image(pixels(), mpp=mpp)
    assert at_pixel_size(model, image) is model
    assert at_pixel_size(fitted_at(detector, None), image).geometry == detector.geometry


@pytest.mark.parametrize(("fit", "mpp"), [(0.5, 1e-320), (0.5, 1e308), (5e-324, 0.5), (1e308, 1e-308)])
def test_absurd_sizes_change_nothing(detector: Model, fit: float, mpp: float) -> None:
    model = fitted_at(detector, fit)
    assert at_pixel_size(model, open_image(pixels(), mpp=mpp)) is model


def test_a_model_of_a_coarse_plane_reads_coarser_images(detector: Model) -> None:
    coarse = _scaled(detector, Fraction(2))
    assert coarse is not None
    here = analyze(open_image(larger(pixels()), mpp=1.0), fitted_at(coarse, 1.0), precision="fp32", audit=0)
    there = analyze(open_image(pixels(), mpp=2.0), fitted_at(coarse, 1.0), precision="fp32", audit=0)
    assert_same_finds(here, there, 2)
    assert "its planes are 2x finer" in there.notes[-1]
    assert _scaled(detector, Fraction(1, 2)) is None


def test_benchmarks_compare_at_the_size_of_the_fit(detector: Model, tmp_path: Path) -> None:
    found = analyze(pixels(), detector, budget=1.0, audit=0).regions
    model = fitted_at(replace(detector, threshold=found[40].score), 0.5)
    measured = {}
    for factor in (1, 2):
        path = written(tmp_path / f"{factor}.ome.tif", larger(pixels(), factor), 0.5 / factor)
        boxes = [[factor * max(0.0, side) for side in region.full_box] for region in found[:20]]
        rings = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for y0, x0, y1, x1 in boxes]
        truth = collection(*(feature(r.label, ring) for r, ring in zip(found, rings, strict=False)))
        shape = (300 * factor, 340 * factor)
        of = BenchScene("scene", path, truth, read_annotations(truth, full_shape=shape))
        measured[factor] = measure(model, of, 0, budgets=())
    assert measured[2].facts.finds == measured[1].facts.finds > 20
    assert measured[2].facts.label_recall == measured[1].facts.label_recall
    assert measured[2].facts.scan_share == measured[1].facts.scan_share


def test_benchmarks_of_experts_too(tmp_path: Path) -> None:
    image = scene(256, 320, 12, seed=1)
    model = fitted_at(model_of(disc_expert(Finder(), tile=64)), 1.0)
    model = replace(model, provenance={**model.provenance, "taus": {"0.95": 0.05}})
    here = measure_expert(model, written(tmp_path / "here.ome.tif", image, 1.0), seed=0)
    there = measure_expert(model, written(tmp_path / "there.ome.tif", larger(image), 0.5), seed=0)
    assert here["ours@0.95/tiles"] > 0
    for name in ("ours@0.95/tiles", "ours@0.95/recall", "exhaustive/tiles", "with_find/tiles"):
        assert there[name] == here[name]


def test_a_folder_of_both_sizes(detector: Model, tmp_path: Path) -> None:
    model = fitted_at(detector, 0.5)
    folder, results = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for name, image, mpp in (("a", pixels(), 0.5), ("b", larger(pixels()), 0.25)):
        written(folder / f"{name}.ome.tif", image, mpp)
    path = model.save(tmp_path / "m.c2f")
    assert analyze_folder(folder, results, path, workers=0, progress=False, precision="fp32").ok
    a, b = (Analysis.load(results / f"{name}.ome.tif") for name in "ab")
    assert_same_finds(b, a, 2)
    assert cv2.imread(str(results / "b.ome.tif" / "overview.png")) is not None
