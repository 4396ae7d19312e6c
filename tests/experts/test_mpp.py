"""Experts that expect a pixel size, on images of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import ExpertError, analyze, expert, fit, load_model, open_image
from coarse2fine.experts.again import again
from coarse2fine.experts.answer_store import AnswerStore
from coarse2fine.experts.expert import Expert
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.remembered import KEY, Remembered
from coarse2fine.tiling.image import Image
from tests.experts.scenes import Finder, disc_expert, model_of, scene
from tests.fitting.discs import smaller

Pixels = NDArray[np.uint8]


def at(mpp: float | None, side: int = 512, seed: int = 0) -> Image:
    """A scene at 0.5 microns a pixel, or with each pixel as a square of smaller ones."""
    factor = 1 if mpp is None else max(1, round(0.5 / mpp))
    pixels = scene(side, side, seed=seed).repeat(factor, axis=0).repeat(factor, axis=1)
    return open_image(pixels, mpp=mpp)


@pytest.mark.parametrize(("size", "downsample"), [(0.5, 1), (0.55, 1), (0.25, 2), (0.24, 2), (0.125, 4), (0.17, 3)])
def test_the_plane_follows_from_the_pixel_size(size: float, downsample: int) -> None:
    made = disc_expert(mpp=0.5)
    assert made.on(open_image(np.zeros((9, 9, 3), np.uint8), mpp=size)).downsample == downsample
    assert disc_expert(downsample=3).on(open_image(np.zeros((9, 9, 3), np.uint8), mpp=size)).downsample == 3


@pytest.mark.parametrize(
    ("size", "message"), [(None, "does not say its pixel size"), (1.0, "no whole number"), (0.35, "no whole number")]
)
def test_images_of_no_suitable_size_are_refused(size: float | None, message: str) -> None:
    with pytest.raises(ExpertError, match=message):
        disc_expert(mpp=0.5).on(open_image(np.zeros((9, 9, 3), np.uint8), mpp=size))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ExpertError, match="got both"):
        expert(Finder(), mpp=0.5, downsample=2)
    for wrong in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ExpertError, match="mpp in microns"):
            expert(Finder(), mpp=wrong)


def test_a_check_reads_the_plane() -> None:
    checked = disc_expert(mpp=0.5).check(at(0.25)).expert
    assert checked.downsample == 2
    assert checked.mpp == 0.5


def test_a_file_keeps_the_size_and_takes_the_expert_again() -> None:
    known = disc_expert(mpp=0.5).on(at(0.25))
    stored = Expert.described(known.describe())
    assert (stored.mpp, stored.downsample) == (0.5, 2)
    assert again(stored, disc_expert(mpp=0.5)).downsample == 2
    for other in (disc_expert(downsample=2), disc_expert(mpp=0.4)):
        with pytest.raises(ExpertError, match="mpp"):
            again(stored, other)
    older = {name: value for name, value in known.describe().items() if name != "mpp"}
    assert Expert.described(older).mpp == 0


def test_answers_do_not_depend_on_how_the_plane_was_named(tmp_path: Path) -> None:
    named, given = disc_expert(mpp=0.5).on(at(0.25)), disc_expert(downsample=2)
    stores = [AnswerStore.of(replace(each, sha256="f" * 64), tmp_path) for each in (named, given)]
    assert stores[0] == stores[1]


@pytest.mark.parametrize(("fitted", "downsample"), [(0.25, 1), (0.25, 2), (0.5, 1)])
def test_larger_pixels_than_the_plane_are_read_as_they_are(fitted: float, downsample: int) -> None:
    """No plane is finer than the image: a model of the fit's plane has no other."""
    model = model_of(disc_expert(downsample=downsample))
    record = Remembered(None, False, None, None, None, fitted).to_json()
    model = replace(model, provenance={**model.provenance, KEY: record})
    image = open_image(scene(400, 400), mpp=4 * fitted)
    assert at_pixel_size(model, image) is model
    with pytest.warns(UserWarning, match="4 times smaller"), analyze(image, model, budget=1.0) as found:
        assert found.refined.all()


def test_images_to_fit_on_have_one_pixel_size() -> None:
    with pytest.raises(ExpertError, match="different pixel sizes"):
        fit([at(0.25), at(0.5)], expert=disc_expert(mpp=0.5), progress=False)


def test_from_slides_of_one_size_to_one_of_another(tmp_path: Path) -> None:
    with smaller():
        made = disc_expert(mpp=0.5)
        model = fit([at(0.25, 768, s) for s in range(2)], expert=made, watch=1.0, steps=10, progress=False)
    assert model.geometry.refine_downsample == 2
    stored = load_model(model.save(tmp_path / "m.c2f"))
    sizes = (0.5, 0.25)
    found = [analyze(at(size, 768, 9), stored, expert=disc_expert(mpp=0.5), budget=1.0) for size in sizes]
    one, two = ([np.array(r.full_box) for r in a.regions] for a in found)
    assert len(one) == len(two) > 10
    np.testing.assert_allclose(np.array(two), 2 * np.array(one))
