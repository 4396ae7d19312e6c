"""Specialists that the scan chooses: what they learn, and what is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from coarse2fine.annotations.read import read_annotations
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.specialists.activity import _Learning, _outputs, _trained
from coarse2fine.fitting.specialists.blocks import SIDE, block_side, read_blocks, see
from coarse2fine.fitting.specialists.first_stage import candidates
from coarse2fine.fitting.specialists.grow_groups import judge_groups
from coarse2fine.model import Model
from coarse2fine.models.box_head import BOX_CHANNELS
from coarse2fine.models.feature_groups import Groups
from coarse2fine.models.feature_maps import FeatureMaps
from coarse2fine.models.gate import Gate
from coarse2fine.models.runtime import Runtime
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from tests.refining import built_in, net


def square(name: str, x: int, y: int) -> dict[str, Any]:
    ring = [[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20], [x, y]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "properties": {"classification": {"name": name}}, "geometry": geometry}


SQUARES = [square("left", 40, 40), square("right", 600, 80), square("left", 300, 200)]
SCENE = {"type": "FeatureCollection", "features": SQUARES}


@pytest.fixture
def scene(detector: Model) -> Scene:
    rng = np.random.default_rng(0)
    image = open_image(rng.integers(0, 255, (1000, 1100, 3), dtype=np.uint8))
    scene = Scene(image, read_annotations(SCENE), detector.labels, fine_cell=8, largest=100.0, nominal=20.0)
    scene.held[0, 0] = scene.held[1, 1] = True
    return scene


def recipe(model: Model, steps: int = 40) -> Recipe:
    mean, std = (np.array(each, np.float32) for each in (model.mean, model.std))
    return Recipe(model.geometry, net(model).spec, 3, mean, std, rotate=True, steps=steps, seed=0)


def test_the_scan_is_seen_in_whole_blocks(detector: Model, scene: Scene, runtime: Runtime) -> None:
    seen = see(detector, [scene], runtime, 0)
    block = block_side(detector)
    assert block == SIDE == 8
    assert seen.held.sum() == 2 * (64 // SIDE) ** 2
    spec = detector.base.spec
    for row in (0, 77, 150):
        s, y, x, _ = seen.places[row].tolist()
        assert s == 0
        assert bool(scene.held[y // 64, x // 64]) == seen.held[row]
        box = Box(y, x, y + block, x + block).scale(spec.stride).expand(spec.margin)
        pixels = scene.image.read_scaled(box, detector.geometry.scan_downsample)
        x_ = torch.from_numpy(((pixels / 255 - detector.mean) / detector.std).astype(np.float32))
        most = detector.base.high(x_.permute(2, 0, 1)[None])[0].amax(dim=(1, 2)).detach().numpy()
        np.testing.assert_allclose(seen.high[row], most, rtol=1e-4, atol=1e-4)
    assert len(np.unique(seen.places[seen.held, 3])) == 8  # quarters, as there are few parts


def test_blocks_have_the_answers_of_the_net(detector: Model, scene: Scene, runtime: Runtime) -> None:
    seen = see(detector, [scene], runtime, 0)
    places = seen.places[~seen.held][:20]
    blocks = read_blocks(detector, recipe(detector), [scene], runtime, places, held=False)
    refiner = built_in(detector)
    with torch.inference_mode():
        for row in (0, 19):
            x = (blocks.pixels[row] / 255 - np.array(detector.mean)) / np.array(detector.std)
            out = refiner.net(torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None])[0, :-BOX_CHANNELS]
            torch.testing.assert_close(blocks.answers[row], out, rtol=1e-4, atol=1e-4)
    assert blocks.targets.shape == blocks.valid.shape == (20, 2, SIDE, SIDE)
    # Held-out blocks teach nothing.
    held = read_blocks(detector, recipe(detector), [scene], runtime, seen.places[seen.held][:5], held=False)
    assert not held.valid.any()


def test_columns_learn_where_their_features_fire(detector: Model, scene: Scene, runtime: Runtime) -> None:
    """In the blocks of one group the net's answer is too low by one, in those of the other too high."""
    learn = _Learning(detector, recipe(detector, 400), [scene], runtime)
    seen = see(detector, [scene], runtime, 0)
    groups = Groups(np.array([0, 0, 1, 1]), np.full(4, 0.5, np.float32))
    spec = candidates(FeatureMaps.of(net(detector)), 8)[-1]
    blocks = read_blocks(detector, learn.recipe, [scene], runtime, seen.places[:120], held=False)
    first = np.arange(120) % 2 == 0
    fires = np.stack([first, ~first], axis=1)
    shift = torch.from_numpy(np.where(first, 2.0, -2.0).astype(np.float32))[:, None, None, None]
    targets = torch.sigmoid(blocks.answers + shift)
    blocks = replace(blocks, targets=targets, valid=torch.ones_like(blocks.valid))
    columns = _trained(learn, spec, blocks, fires, None)
    grown, items = _outputs(learn, groups, columns, blocks, fires, np.arange(120) // 4)
    assert len(items) == 120 * SIDE**2
    share, kept, gate, verdict = judge_groups(grown, items, exclusive=False, gates=(Gate.always(),))
    assert kept.all()
    assert (share, gate) == (1.0, Gate.always())
    assert verdict.pays(5)
    assert verdict.share_run == 1.0
