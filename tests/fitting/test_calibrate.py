"""The threshold of the refine net's answer, from what was held back."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine.annotations.read import read_annotations
from coarse2fine.fitting import calibrate
from coarse2fine.fitting.calibrate import Finds, calibrate_level, calibrates_on_all, expected_quantile
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.teacher import Answers, _threshold
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.tiling.opening import open_image

SIDE, CELL = 256, 8


def box(label: str, x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": label}}}


def scene(model: Model, *features: dict[str, Any]) -> Scene:
    annotations = read_annotations({"type": "FeatureCollection", "features": list(features)}, full_shape=(SIDE, SIDE))
    image = open_image(np.zeros((SIDE, SIDE), np.uint8))
    return Scene(image, annotations, model.labels, fine_cell=CELL, largest=100, nominal=16)


def finds(*rows: tuple[int, int, float]) -> Candidates:
    """Finds of the first class at cells (y, x) with a score, two cells wide."""
    cells = np.array([row[:2] for row in rows], np.int32)
    centre = cells + 0.5
    boxes = np.concatenate([centre - 1, centre + 1], axis=1).astype(np.float32)
    return Candidates(
        cells,
        np.array([row[2] for row in rows], np.float32),
        np.zeros(len(rows), np.int16),
        boxes,
        np.zeros(len(rows), np.int32),
    )


OBJECTS = (box("left", 12, 12, 28, 28), box("left", 44, 44, 60, 60))
FOUND = finds((2, 2, 0.6), (6, 6, 0.4), (20, 20, 0.85), (24, 24, 0.8), (28, 28, 0.7))


def test_finds_where_nobody_has_annotated_are_no_false_alarms(detector: Model) -> None:
    plain = scene(detector, *OBJECTS)
    plain.held[:] = True
    assert _threshold(detector, [plain], [FOUND])[1] < 0.7
    for area in (box("Region*", 0, 0, 80, 80), box("Ignore*", 100, 100, 256, 256)):
        limited = scene(detector, *OBJECTS, area)
        limited.held[:] = True
        threshold, f1 = _threshold(detector, [limited], [FOUND])
        assert f1 == 1
        assert threshold == pytest.approx(0.25)  # between the least that is allowed and the least find


def test_objects_where_nothing_counts_are_not_missed(detector: Model) -> None:
    beyond = box("left", 200, 200, 216, 216)
    limited = scene(detector, *OBJECTS, beyond, box("Region*", 0, 0, 80, 80))
    limited.held[:] = True
    assert _threshold(detector, [limited], [FOUND])[1] == 1


def test_what_trained_says_nothing_of_how_well(detector: Model) -> None:
    threshold, f1 = _threshold(detector, [scene(detector, *OBJECTS)], [FOUND.take(np.arange(2))])
    assert threshold == pytest.approx(0.25)
    assert math.isnan(f1)


def test_finds_where_nobody_has_annotated_do_not_calibrate(detector: Model) -> None:
    answers = Answers((FOUND,), (np.zeros((SIDE // CELL, SIDE // CELL), np.float32),), 0.3, 1.0)
    for area, on_all in ((), False), ((box("Region*", 0, 0, 80, 80),), True):
        held = scene(detector, *OBJECTS, *area)
        held.held[:] = True
        assert calibrates_on_all([held], answers) == on_all


@given(st.integers(0, 10**6), st.integers(1, 200), st.floats(0.001, 0.5))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_few_finds_set_a_threshold_that_others_exceed_as_often_as_asked(seed: int, count: int, share: float) -> None:
    drawn = np.random.default_rng(seed).random((1500, count)).astype(np.float32)
    below = [expected_quantile(values, share) for values in drawn]  # the chance of a uniform value to lie below
    assert np.mean(below) <= share + 4 * np.std(below) / np.sqrt(len(below))
    assert np.mean(below) >= share * (1 - 1 / ((count + 1) * share) if (count + 1) * share > 1 else 0)
    assert all(value <= np.quantile(values, share) + 1e-6 for value, values in zip(below, drawn, strict=True))


def test_a_handful_of_held_out_finds_does_not_decide_alone(detector: Model) -> None:
    rng = np.random.default_rng(0)
    values = rng.random(100).astype(np.float32)
    held = np.arange(100) >= 95
    values[held] = 0.9
    none = np.zeros(100, bool)
    assert Finds((), none, held).threshold(values, 0.9) < 0.15
    assert Finds((), none, ~held).threshold(values, 0.9) < 0.15
    assert Finds((), none, ~none).threshold(np.full(100, 0.9, np.float32), 0.9) == pytest.approx(0.9, rel=2e-3)


def test_a_base_whose_reader_has_no_bias_is_calibrated_too(detector: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base = copy.deepcopy(detector.base)
    base.reader.bias = None
    there = (rng.random(4000) < 0.2).astype(np.float32)
    high = rng.random((4000, base.high_channels), np.float32) + there[:, None]
    cells = high, high[:, 0], there
    monkeypatch.setattr(calibrate, "scanned_cells", Mock(return_value=(cells, cells)))
    level, _ = calibrate_level(detector, Mock(), replace(detector.levels[-1], net=base))
    assert level.firing is not None
    assert level.firing.rule == "discriminant"
    planes = torch.from_numpy(high.T.copy())[None, :, :, None]
    with torch.inference_mode():
        chance = level.firing.probability(planes, level.net.head(planes))[0, :, 0].numpy()
    assert chance[there > 0].mean() > 0.8
    assert chance[there == 0].mean() < 0.1
