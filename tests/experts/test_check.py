"""The trial of an expert."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine import ExpertError
from coarse2fine.experts import check
from tests.experts.scenes import Finder, Pixels, boxes_of, disc_expert, owned, scene


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_macs_per_second", lambda: 1e9)


def test_a_sound_expert() -> None:
    image = scene(400, 300, 60)
    made = replace(disc_expert(), tile_macs=0)
    found = made.check(image)
    assert found.repeatable
    assert found.batchable
    assert found.tiles == 16
    homes = sorted(owned(image, made))
    spread = np.unique(np.linspace(0, len(homes) - 1, 16).astype(int))
    assert found.finds == sum(len(owned(image, made)[homes[i]]) for i in spread)
    assert found.expert.estimated
    assert found.expert.tile_macs == pytest.approx(found.seconds * 1e9, rel=0.01)
    assert "WARNING" not in str(found)
    assert found.expert.call is made.call


def test_noise_without_an_image() -> None:
    call = Finder(lambda pixels: [None] * len(pixels))
    assert disc_expert(call).check().tiles == 4
    assert {shape[1:] for shape in call.calls} == {(80, 80, 3)}


def test_changing_answers_are_found() -> None:
    rng = np.random.default_rng(0)

    def changing(pixels: Pixels) -> Any:
        return [boxes_of(tile) - np.array([0, 0, 0, 0, rng.random() * 0.05, 0]) for tile in pixels]

    found = disc_expert(changing).check(np.pad(scene(60, 60, 20), ((0, 240), (0, 240), (0, 0))))
    assert not found.repeatable
    assert "another answer each time" in str(found)


def test_answers_that_depend_on_the_batch_are_found() -> None:
    def together(pixels: Pixels) -> Any:
        return [boxes_of(np.where(pixels > pixels.mean() + 60, 255, 0).astype(np.uint8)[i]) for i in range(len(pixels))]

    image = scene(300, 300, 60)
    image[:64] //= 3
    found = disc_expert(together).check(image)
    assert found.repeatable
    assert not found.batchable
    assert "give batch=1" in str(found)


def test_the_best_batch_is_measured() -> None:
    def slow(pixels: Pixels) -> Any:
        time.sleep(0.04 if len(pixels) <= 4 else 0.04 * len(pixels))
        return [None] * len(pixels)

    found = disc_expert(slow).check(scene(300, 300))
    assert found.expert.batch == 4
    assert 0.01 <= found.seconds < 0.04 <= found.seconds_alone


def test_multiply_adds_of_a_module_are_counted() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1), nn.Sigmoid()).eval()
    found = replace(disc_expert(net, kind="map", labels=["a"]), tile_macs=0).check(scene(200, 200))
    assert not found.expert.estimated
    assert found.expert.tile_macs == 80 * 80 * (9 * 3 * 4 + 4)


def test_boxes_as_shares_are_found() -> None:
    def shares(pixels: Pixels) -> Any:
        return [np.array([[0.1, 0.1, 0.3, 0.4, 0.9, 0]] * 2)] * len(pixels)

    with pytest.raises(ExpertError, match="shares of the tile; multiply by 80"):
        disc_expert(shares).check(scene(200, 200))


def test_errors_of_the_expert_are_shown() -> None:
    with pytest.raises(ZeroDivisionError):
        disc_expert(lambda _: 1 / 0).check()
    with pytest.raises(ExpertError, match="0 answers for 1 tiles"):
        disc_expert(lambda _: []).check()


def test_grey_images_and_small_ones() -> None:
    for image in (scene(30, 20, channels=1), np.zeros((1, 1), np.uint8)):
        assert disc_expert().check(image).tiles == 1
    assert torch.is_grad_enabled()


def test_multiply_adds_that_are_given_are_kept() -> None:
    found = disc_expert().check(scene(200, 200)).expert
    assert (found.tile_macs, found.estimated) == (10**7, False)
