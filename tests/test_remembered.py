"""What a model remembers of how its images were read, and what is said of others."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from coarse2fine import Analysis, analyze, analyze_folder, load_model, open_image
from coarse2fine.batch.inputs import Item
from coarse2fine.batch.job import Opening, key_of
from coarse2fine.bundle import ModelSpec
from coarse2fine.cli.main import main
from coarse2fine.config import Config
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.demo.gigapixel import score
from coarse2fine.fitting.pairs import load_pairs
from coarse2fine.model import Model
from coarse2fine.remembered import KEY, Remembered, open_alike, open_for
from coarse2fine.tiling.conversion.convert import convert
from coarse2fine.tiling.geometry import Box

SIDE = 1024


@pytest.fixture(scope="module")
def scene() -> DigitScene:
    return DigitScene(SIDE, SIDE, digits=24, clutter=40, seed=5, handwriting="held-out")


@pytest.fixture(scope="module")
def picture(scene: DigitScene) -> NDArray[np.int64]:
    return scene.block(Box(0, 0, SIDE, SIDE))[..., 0].astype(np.int64)


@pytest.fixture(scope="module")
def in_eight_bits(scene: DigitScene, picture: NDArray[np.int64]) -> int:
    return score(analyze(picture.astype("u1"), "digits"), scene).right


@pytest.mark.parametrize(("factor", "dtype"), [(257, "u2"), (16, "u2"), (16, "i2"), (100, "i4"), (1, "f4"), (1, "i8")])
def test_the_same_picture_is_found_in_whatever_samples(
    scene: DigitScene, picture: NDArray[np.int64], in_eight_bits: int, factor: int, dtype: str
) -> None:
    assert in_eight_bits >= 18
    found = score(analyze((picture * factor).astype(dtype), "digits"), scene)
    # Of 25,500 values in 15 bits the picture is darker by a fifth.
    assert found.right >= (0.75 if factor == 100 else 0.95) * in_eight_bits


def write(path: Path, pixels: NDArray[Any], mpp: float = 0.5) -> Path:
    """Planes (c, y, x) as an OME-TIFF with a pixel size."""
    metadata = {
        "axes": "CYX",
        **{f"PhysicalSize{axis}": mpp for axis in "XY"},
        **{f"PhysicalSize{axis}Unit": "µm" for axis in "XY"},
    }
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata=metadata, tile=(64, 64))
    return path


def planes(factor: int = 16, seed: int = 0) -> NDArray[np.uint16]:
    return (np.random.default_rng(seed).integers(0, 256, (5, 130, 150)) * factor).astype(np.uint16)


def remembering(model: Model, images: list[Any]) -> Model:
    return replace(model, provenance={**model.provenance, KEY: Remembered.of(images).to_json()})


def test_it_is_kept_in_the_file(tmp_path: Path, detector: Model) -> None:
    paths = [write(tmp_path / f"{mpp}.ome.tif", planes(), mpp) for mpp in (0.25, 0.5, 4.0)]
    known = Remembered.of(open_alike(paths, [3, 0, 1], None))
    assert known == Remembered((3, 0, 1), True, (0, 4095), "depth", "uint16", 0.5)
    model = replace(detector, provenance={KEY: known.to_json()})
    assert Remembered.by(load_model(model.save(tmp_path / "a.c2f"))) == known
    for damaged in (
        None,
        3,
        {},
        {**known.to_json(), "rule": "x"},
        {**known.to_json(), "mpp": 0},
        {**known.to_json(), "channels": ["a"]},
        {**known.to_json(), "value_range": [2, 1]},
    ):
        assert Remembered.by(replace(detector, provenance={KEY: damaged})) is None
    older = Path(__file__).parent / "fixtures" / "models" / "digits.c2f"
    assert Remembered.by(load_model(older)) is None


def test_what_differs_among_the_scenes_is_not_remembered() -> None:
    images = [open_image(np.zeros((9, 9, 3), np.uint8)), open_image(np.linspace(-5, 9, 81).reshape(9, 9), mpp=2)]
    assert Remembered.of(images) == Remembered(None, False, None, None, None, 2.0)


def test_scenes_of_one_camera_are_read_by_one_range(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{factor}.ome.tif", planes(factor)) for factor in (16, 3)]
    images = open_alike(paths, None, None)
    assert [image.value_range for image in images] == [(0, 4095)] * 2
    assert Remembered.of(images).rule == "depth"


def test_images_are_read_as_the_model_was_fitted(tmp_path: Path, detector: Model) -> None:
    bright, dark = write(tmp_path / "a.ome.tif", planes()), write(tmp_path / "b.ome.tif", planes(3, seed=1))
    model = remembering(detector, open_alike([bright], (3, 0, 1), None))
    with analyze(dark, model) as analysis, open_image(dark, channels=(3, 0, 1), value_range=(0, 4095)) as expected:
        box = Box(0, 0, 130, 150)
        seen = analysis.image.read(box)
        np.testing.assert_array_equal(seen, expected.read(box))
        assert analysis.notes == (
            "channels 3, 0, 1 are read, as in the fit of the model",
            "values 0..4095 are scaled, as in the fit of the model",
        )
        assert all(f"note   {note}" in str(analysis) for note in analysis.notes)
        analysis.save(tmp_path / "out")
        regions = analysis.regions
    record = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (record["image"]["value_range"], record["image"]["rule"]) == ([0, 4095], "given")
    with Analysis.load(tmp_path / "out") as loaded:
        assert loaded.notes == analysis.notes
        np.testing.assert_array_equal(loaded.image.read(box), seen)
        assert loaded.image.value_range == (0.0, 4095.0)
    with analyze(bright, model) as own:
        assert own.image.value_range == (0.0, 4095.0)
        assert own.image.scale.rule == "depth"
    convert(open_image(dark, channels=(3, 0, 1), value_range=(0, 4095)), tmp_path / "copy.zarr")
    with analyze(tmp_path / "copy.zarr", model) as copied:
        assert copied.image.picked is None
        assert copied.notes == analysis.notes
        assert len(copied.regions) == len(regions)


def test_what_differs_is_said_and_warned_of(tmp_path: Path, detector: Model) -> None:
    model = remembering(detector, open_alike([write(tmp_path / "a.ome.tif", planes())], None, None))
    path = write(tmp_path / "b.ome.tif", planes(), 1.25)
    with pytest.warns(UserWarning, match="b.ome: ") as warned, analyze(path, model, channels=(3, 0, 1)) as analysis:
        assert analysis.image.picked == (3, 0, 1)
    assert analysis.notes == (
        "channels 3, 0, 1 are read, but the model was fitted on channels 0, 1, 2",
        "a pixel is 1.25 microns, but the model was fitted at 0.5: objects look 2.5 times smaller than in the fit",
    )
    assert [str(each.message) for each in warned] == [f"b.ome: {note}" for note in analysis.notes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        analyze(write(tmp_path / "c.ome.tif", planes(), 0.6), model).image.close()
        analyze(planes()[:3].transpose(1, 2, 0) // 16, model)  # the same channels, a whole scale, no pixel size
        grey = analyze(planes()[0], model)
    assert grey.notes == ("the model reads 3 channel(s) and the image has 1: grey is repeated in each",)
    reals = np.random.default_rng(0).normal(0, 50, (130, 150, 3))
    with pytest.warns(UserWarning, match=r"\(percentiles\) are scaled, but the model was fitted on 0\.\.4095"):
        analyze(reals, model)


def test_a_range_that_a_fit_was_given_is_used(detector: Model) -> None:
    pixels = np.moveaxis(planes(), 0, -1)[..., :3]
    model = remembering(detector, [open_image(pixels, value_range=(100, 3000))])
    assert open_for(model, pixels // 4).value_range == (100.0, 3000.0)
    assert open_for(model, pixels, value_range=(0, 9)).value_range == (0.0, 9.0)
    with pytest.warns(UserWarning, match=r"values 0\.\.255 \(all of their type\) are scaled, but"):
        analyze((pixels // 16).astype(np.uint8), model)


def test_batches_and_the_command_line(tmp_path: Path, detector: Model, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "a.ome.tif", planes())
    write(tmp_path / "b.ome.tif", planes(3))
    file = remembering(detector, open_alike([first], (3, 0, 1), None)).save(tmp_path / "m.c2f")
    batch = analyze_folder(tmp_path / "*.tif", tmp_path / "out", file, workers=0, report=False)
    assert batch.ok
    assert "note   channels 3, 0, 1 are read, as in the fit of the model, 2 image(s)" in str(batch)
    with Analysis.load(tmp_path / "out" / "b.ome.tif") as found:
        assert (found.image.picked, found.image.value_range) == ((3, 0, 1), (0, 4095))
    command = ["analyze", str(first), "-o", str(tmp_path / "one"), "-m", str(file), "--value-range", "0", "3000", "-q"]
    assert main([*command, "--channels", "0", "1", "2", "--no-report"]) == 0
    assert "note   channels 0, 1, 2 are read, but the model was fitted on channels 3, 0, 1" in capsys.readouterr().out
    assert Analysis.load(tmp_path / "one").image.value_range == (0.0, 3000.0)
    item, spec, config = Item(str(first)), ModelSpec.of(file), Config()
    ways = (Opening(), Opening(channels=(0, 1, 2)), Opening(value_range=(0, 3000)), Opening(value_range=(0, 3001)))
    assert len({key_of(item, spec, config, way) for way in ways}) == 4  # another way of reading is another result


def test_a_fit_reads_the_channels_that_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write(tmp_path / "a.tif", planes())
    outline = {"type": "Polygon", "coordinates": [[[9, 9], [30, 9], [30, 30], [9, 30], [9, 9]]]}
    feature = {"type": "Feature", "geometry": outline, "properties": {"classification": {"name": "a"}}}
    annotations = tmp_path / "a.geojson"
    annotations.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    command = ["fit", str(image), str(annotations), "-o", str(tmp_path / "m.c2f"), "-q"]
    assert main([*command, "--channels", "5"]) == 1
    assert "a.tif: expected one or three of the channels 0 to 4, got 5" in capsys.readouterr().err
    assert main([*command, "--value-range", "5", "5"]) == 1
    assert "expected value_range as two numbers (low, high) with low < high" in capsys.readouterr().err
    ((opened, _),) = load_pairs(image, annotations, (3, 0, 1), (0, 3000))
    assert (opened.used, opened.value_range) == ((3, 0, 1), (0.0, 3000.0))


def test_an_analysis_of_an_image_without_any_value_says_so(detector: Model) -> None:
    analysis = analyze(np.full((60, 60), np.nan, np.float32), detector)
    assert "no pixel with data could be read: check the file" in analysis.notes
    assert "note   no pixel with data" in str(analysis)
    assert not analysis.regions
