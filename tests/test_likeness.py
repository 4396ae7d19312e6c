"""Notes on images that look unlike those of the fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coarse2fine import analyze, load_model
from coarse2fine.likeness import unlike
from coarse2fine.model import Model
from coarse2fine.remembered import KEY
from coarse2fine.tiling.opening import open_image


@pytest.fixture(scope="module")
def model() -> Model:
    digits = load_model("digits")
    return replace(digits, mean=(0.4,), std=(0.1,), provenance={**digits.provenance, KEY: {}})


def pixels(mean: float, side: int = 700) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).normal(mean, 5, (side, side)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("mean", "told"), [(102, False), (160, False), (170, True), (30, True)])
def test_brightness_far_from_the_fits_is_told(model: Model, mean: float, told: bool) -> None:
    with open_image(pixels(mean)) as image:
        said = unlike(model, image)
    assert bool(said) == told
    assert all(f"brightness (mean {mean:.0f})" in text and "102 +- 26" in text for text in said)


def test_the_note_is_part_of_the_result(model: Model) -> None:
    for mean, told in ((200, True), (102, False)):
        with analyze(pixels(mean), model, precision="fp32") as analysis:
            assert any("differs from that of the fit" in note for note in analysis.notes) == told


def test_models_that_learn_from_the_image_or_remember_nothing_say_nothing() -> None:
    with open_image(pixels(250)) as image:
        assert unlike(load_model("generic"), image) == []
        forgetful = load_model("digits")
        bare = replace(forgetful, provenance={k: v for k, v in forgetful.provenance.items() if k != KEY})
        assert unlike(bare, image) == []
