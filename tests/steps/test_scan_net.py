"""Scans in 8-bit integers: only where they are allowed, and nearly the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coarse2fine import analyze, open_image
from coarse2fine.model import Model
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.quantized import activation_ranges, can_quantize
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import normalised
from coarse2fine.steps import scan_net
from coarse2fine.steps.scan import look
from coarse2fine.steps.scan_net import KEY, in_integers, known_ranges
from coarse2fine.tiling.geometry import Box

MakeImage = Callable[..., NDArray[np.uint8]]
needs_integers = pytest.mark.skipif(not can_quantize(), reason="torch computes no 8-bit convolutions here")


@pytest.fixture
def ranged(detector: Model, make_image: MakeImage) -> Model:
    """The detector with ranges of its base's activations."""
    (level,) = detector.levels
    assert isinstance(level.net, ConvStack)
    with open_image(make_image(256, 256)) as image:
        height, width = (n // level.downsample for n in image.shape[:2])
        pixels = image.read_scaled(Box(0, 0, height, width), level.downsample)[None]
    x = normalised(pixels, detector, Runtime(torch.device("cpu"), torch.float32))
    known = {KEY: [activation_ranges(level.net, x)]}
    return replace(detector, provenance={**detector.provenance, **known})


@needs_integers
def test_a_scan_in_integers_is_nearly_the_same(
    ranged: Model, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(torch.device("cpu"), torch.float32, integers=True)
    with open_image(make_image(300, 500)) as image:
        plain = look(image, ranged, runtime)
        assert not in_integers(ranged.levels[0], ranged, runtime, image)
        monkeypatch.setattr(scan_net, "_LARGE", 1)
        assert in_integers(ranged.levels[0], ranged, runtime, image)
        whole = look(image, ranged, runtime)
    assert not np.array_equal(plain.interest, whole.interest)
    assert np.corrcoef(plain.interest.ravel(), whole.interest.ravel())[0, 1] > 0.98
    assert plain.macs == whole.macs


@needs_integers
def test_a_result_says_that_its_scan_computed_in_integers(
    ranged: Model, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_net, "_LARGE", 1)
    pixels = make_image(300, 500)
    names = {}
    for precision in ("auto", "fp32"):
        with analyze(pixels, ranged, budget=0.5, device="cpu", precision=precision) as analysis:
            names[precision] = analysis.provenance["parameters"]["runtime"]
    assert names["auto"].endswith(", scan int8")
    assert names["fp32"] == "cpu fp32"
    with analyze(pixels, ranged, cells=10**6, device="cpu") as everything:  # without a scan
        assert "int8" not in everything.provenance["parameters"]["runtime"]


@pytest.mark.parametrize(
    "record",
    [
        *(None, {}, [], [None], ["all"], [[1.0]], [[1.0] * 50], [[1.0] * 4, [1.0] * 4]),
        *([["1", None, [], {}]], [[float("nan")] * 4], [[0.0] * 4], [[-1.0] * 4], [[1e300] * 4], [[10**400] * 4]),
    ],
)
def test_records_of_strangers_that_do_not_fit_are_ignored(detector: Model, record: Any) -> None:
    (level,) = detector.levels
    assert isinstance(level.net, ConvStack)
    stages = len(level.net.convs) - 1
    if isinstance(record, list):  # as many stages as there are, if four
        record = [each[:1] * stages if isinstance(each, list) and len(each) == 4 else each for each in record]
    assert known_ranges(level, replace(detector, provenance={KEY: record})) is None
    good = replace(detector, provenance={KEY: [[2.0] * stages]})
    assert known_ranges(good.levels[0], good) == [2.0] * stages


@needs_integers
def test_pixels_far_from_the_normalisation_are_scanned_as_before(
    ranged: Model, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_net, "_LARGE", 1)
    runtime = Runtime(torch.device("cpu"), torch.float32, integers=True)
    with open_image(make_image(300, 500)) as image:
        for change in ({"mean": (1e30,) * 3}, {"std": (1e-6,) * 3}, {"std": (1e9,) * 3}):
            odd = replace(ranged, **change)  # type: ignore[arg-type]
            assert not in_integers(odd.levels[0], odd, runtime, image)
            look(image, odd, runtime)
