"""What the base learns from: the refine net's answer to the very crop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import coarse2fine.fitting.distillation
import coarse2fine.fitting.teacher
from coarse2fine.annotations.read import read_annotations
from coarse2fine.fitting.calibrate import CalibrationSet, Price
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.distillation import DistillationSample, _crop, _places, make_samples
from coarse2fine.fitting.scene import PART, Scene, part_of, pooled
from coarse2fine.fitting.teacher import exhaustive_answer
from coarse2fine.model import Geometry, Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.net import net_of
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from tests.refining import net

MakeImage = Callable[..., NDArray[np.uint8]]
SIDE, COUNT = 768, 12


def teach(
    model: Model, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, zoom: float, *features: dict[str, Any]
) -> tuple[list[DistillationSample], list[Box], CalibrationSet, Recipe]:
    monkeypatch.setattr(coarse2fine.fitting.distillation, "_ZOOM", zoom)
    monkeypatch.setattr(coarse2fine.fitting.distillation, "_SAMPLES", COUNT)
    runtime = Runtime.choose("cpu", "fp32")
    collection = {"type": "FeatureCollection", "features": list(features)}
    annotations = read_annotations(collection, full_shape=(SIDE, SIDE))
    g = model.geometry
    scene = Scene(
        open_image(make_image(SIDE, SIDE)), annotations, model.labels, fine_cell=g.fine_cell, largest=99, nominal=16
    )
    scene.held[0, 0] = scene.held.size > 1
    answers = exhaustive_answer(model, [scene], runtime, 0)
    assert len(answers.found[0]) > 20
    model = replace(model, threshold=answers.threshold)
    setting = CalibrationSet((scene,), answers, 0.9, Price("macs"), runtime)
    mean, std = np.array(model.mean, np.float32), np.array(model.std, np.float32)
    recipe = Recipe(g, net(model).spec, 3, mean, std, True, 30, 5)
    samples = make_samples(recipe, model.base, model, setting)
    places = _places([scene], answers.targets)
    side = samples[0].target.shape[1]
    boxes = [_crop(places, side, g.fine, np.random.default_rng((5, n)))[1] for n in range(COUNT)]
    return samples, boxes, setting, recipe


def test_crops_of_one_scale_hold_the_exhaustive_answer(
    detector: Model, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which of several overlapping finds stays may be decided beyond a crop: here all stay.
    for module in (coarse2fine.fitting.distillation, coarse2fine.fitting.teacher):
        monkeypatch.setattr(module, "settle", lambda candidates, _: candidates)
    samples, boxes, setting, recipe = teach(detector, make_image, monkeypatch, 0.0)
    assert len(samples) == COUNT
    spec, there = detector.base.spec, 0
    scene = setting.scenes[0]
    for sample, box in zip(samples, boxes, strict=True):
        plain = scene.image.read_scaled(box.scale(spec.stride).expand(spec.margin), recipe.geometry.scan_downsample)
        inside = box.intersect(Box(0, 0, *scene.cell_shape)) == box
        if inside:  # beyond the edge an average of repeated pixels may round otherwise
            np.testing.assert_array_equal(sample.pixels, plain)
        target, valid = pooled(part_of(setting.answers.targets[0], box), scene.known(box), 1)
        np.testing.assert_array_equal(sample.valid[0], valid)
        np.testing.assert_allclose(sample.target[0][valid], target[valid], atol=2e-5)
        there += int((target[valid] > 0.2).sum())
    assert there > 5


def test_a_crop_of_another_scale_is_what_the_refine_net_sees_there(
    detector: Model, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = teach(detector, make_image, monkeypatch, 0.0)[0]
    samples = teach(detector, make_image, monkeypatch, 0.4)[0]
    assert {sample.pixels.shape for sample in samples} == {plain[0].pixels.shape}
    differ = [not np.array_equal(a.target, b.target) for a, b in zip(samples, plain, strict=True)]
    assert sum(differ) > COUNT // 2
    assert {sample.target.dtype for sample in samples} == {np.dtype(np.float32)}
    again = teach(detector, make_image, monkeypatch, 0.4)[0]
    for one, other in zip(samples, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.target, other.target)


def test_nothing_is_learned_from_what_is_held_back_or_not_annotated(
    detector: Model, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = [[0, 0], [SIDE, 0], [SIDE, 640], [0, 640], [0, 0]]
    region = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Region*"}},
    }
    samples, boxes, setting, _ = teach(detector, make_image, monkeypatch, 0.0, region)
    seen = np.zeros(setting.scenes[0].cell_shape, bool)
    for sample, box in zip(samples, boxes, strict=True):
        y, x = np.nonzero(sample.valid[0])
        seen[y + box.y0, x + box.x0] = True
    assert seen.any()
    assert not seen[:PART, :PART].any()
    assert not seen[640 // 8 :].any()


def test_planes_of_other_resolutions(detector: Model, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    refiner = DetectionRefiner(net_of(detector.refiner), detector.labels, 2)
    glance = replace(detector, geometry=Geometry(cell=16, scan_downsample=4, refine_downsample=2), refiner=refiner)
    samples = teach(glance, make_image, monkeypatch, 0.3)[0]
    assert samples[0].pixels.shape[0] == detector.base.spec.input_size(samples[0].target.shape[1])
