"""Fits with very many classes: objects are found as one class, and each find is named by a classifier."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coarse2fine import Model, analyze, fit, open_image
from coarse2fine.annotations.read import AnnotationError, read_annotations
from coarse2fine.fitting.classes import fit_classifier, object_crops
from coarse2fine.fitting.classes.fit_classifier import Judges, TrunkPlan, learn_classes, one_class
from coarse2fine.fitting.classes.found_boxes import found_boxes
from coarse2fine.fitting.classes.learner import Samples
from coarse2fine.fitting.classes.object_crops import CONTEXT, ObjectCrops, Sampler
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.scene import PART, Scene, is_held
from coarse2fine.fitting.teacher import Answers
from coarse2fine.model import Geometry
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.refiners.protocol import Label
from coarse2fine.region import Region
from coarse2fine.steps.classify import Crop
from tests.fitting.discs import QUICK, smaller

KINDS = 28
"""Bars of as many directions."""


def bars(seed: int, side: int = 512, count: int = 90) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """A noisy grey scene of bars, annotated by boxes; the class is the direction."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(110, 8, (side, side)).clip(0, 255).astype(np.uint8)
    places = [(y, x) for y in range(24, side - 23, 48) for x in range(24, side - 23, 48)]
    features = []
    for place in rng.permutation(len(places))[:count].tolist():
        (y, x), kind = places[place], int(rng.integers(KINDS))
        away = 14 * np.array([np.cos(np.pi * kind / KINDS), np.sin(np.pi * kind / KINDS)])
        (x0, y0), (x1, y1) = (np.round((x, y) + sign * away).astype(int).tolist() for sign in (-1, 1))
        cv2.line(pixels, (x0, y0), (x1, y1), 220, 5)
        ring = [[x - 16, y - 16], [x + 16, y - 16], [x + 16, y + 16], [x - 16, y + 16], [x - 16, y - 16]]
        name = {"classification": {"name": f"bar {kind:02}"}}
        features.append({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": name})
    return pixels, {"type": "FeatureCollection", "features": features}


def scene_of(pixels: NDArray[np.uint8], collection: dict[str, Any]) -> Scene:
    image = open_image(pixels)
    ((image, known),), many = one_class([(image, read_annotations(collection))])
    assert many
    return Scene(image, known, [Label("object")], fine_cell=8, largest=40, nominal=32)


@pytest.fixture
def recipe() -> Recipe:
    one = np.ones(1, np.float32)
    spec = StackSpec.parse(1, "4/2:8 4/2:8 4/2:8 1:5")
    return Recipe(Geometry(8, 1, 1, 1), spec, 1, 0.45 * one, 0.1 * one, rotate=False, steps=10, seed=0)


def gratings(kinds: int, side: int, seed: int) -> Callable[[int], Samples]:
    """Draws noisy gratings, (n, 1, side, side); the class is their direction."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:side, :side] - side / 2).astype(np.float32)

    def draw(count: int) -> Samples:
        classes = rng.integers(kinds, size=count)
        angle, phase = np.pi * classes / kinds, rng.uniform(0, 6.28, count)
        wave = np.sin(np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y + phase[:, None, None])
        noisy = wave + rng.normal(0, 0.3, wave.shape)
        return Samples(torch.from_numpy(noisy[:, None].astype(np.float32)), torch.from_numpy(classes))

    return draw


def test_many_classes_become_one_that_keeps_their_names() -> None:
    pixels, collection = bars(0)
    few = {
        **collection,
        "features": [f for f in collection["features"] if f["properties"]["classification"]["name"] < "bar 10"],
    }
    image = open_image(pixels)
    known = read_annotations(few)
    same, many = one_class([(image, known)])
    assert (same, many) == ([(image, known)], False)
    scene = scene_of(pixels, collection)
    assert scene.names == tuple(f["properties"]["classification"]["name"] for f in collection["features"])
    assert set(scene.label.tolist()) == {0}


def test_crops_are_those_that_an_analysis_reads() -> None:
    pixels, collection = bars(1)
    scene = scene_of(pixels, collection)
    scene.held[0, 0] = True  # all of it: the scene has one part
    assert scene.part_shape == (1, 1)
    assert PART == 64
    names = tuple(sorted(set(scene.names)))
    crops = ObjectCrops.of([scene], names, 30, 1, 0, held=True)
    assert len(ObjectCrops.of([scene], names, 30, 1, 0).classes) == 0
    assert len(crops.classes) == is_held(scene).sum() == len(scene.names)
    assert [names[k] for k in crops.classes] == list(scene.names)
    assert len(set(crops.groups.tolist())) == 4  # quarters of its part
    for plain, centre, size in zip(crops.plain, scene.centre, scene.size, strict=True):
        read = Crop.around(tuple(centre.tolist()), CONTEXT * float(size.max()), 30).read(scene.image, 30, 1)
        # Both reduce 48 px to 30, from grids that differ by less than a pixel.
        assert np.corrcoef(plain.ravel().astype(float), read.ravel())[0, 1] > 0.85


def test_finds_are_learned_from_and_judged_as_they_are_read() -> None:
    pixels, collection = bars(1)
    scene = scene_of(pixels, collection)
    count, cell = len(scene.centre), scene.fine_cell
    # Finds of all objects but one, each smaller and off its centre; and false alarms, faint ones and one of an area.
    rng = np.random.default_rng(0)
    middle, half = scene.centre[1:] + rng.uniform(-4, 4, (count - 1, 2)), rng.uniform(8, 14, count - 1)
    true = np.column_stack([middle - half[:, None], middle + half[:, None]])
    boxes = np.concatenate([true, [[0, 0, 9, 9]], true[:1] + 1, true[:1] + 2]) / cell
    cells = boxes[:, :2].astype(np.int32)
    scores = np.array([0.9] * count + [0.4, 0.95], np.float32)
    labels = np.array([0] * (count + 1) + [1], np.int16)
    finds = Candidates(cells, scores, labels, boxes.astype(np.float32), np.zeros(count + 2, np.int32))
    (own,) = found_boxes([scene], Answers((finds,), (), 0.5, 1.0), np.array([False, True]))
    assert np.isnan(own[0]).all()
    np.testing.assert_allclose(own[1:], true, atol=1e-3)

    names = tuple(sorted(set(scene.names)))
    crops = ObjectCrops.of([scene], names, 30, 1, 0, found=[own])
    assert len(crops.classes) == 2 * count - 1  # around each annotation, and around each find
    scene.held[0, 0] = True
    judged = ObjectCrops.of([scene], names, 30, 1, 0, found=[own], held=True)
    assert [names[k] for k in judged.classes] == list(scene.names)
    for plain, y0, x0, y1, x1 in zip(judged.plain[1:], *true.T, strict=True):
        region = Region("object", 0.9, (y0, x0, y1, x1))
        side = CONTEXT * max(y1 - y0, x1 - x0)
        read = Crop.around(region.full_centre, side, 30).read(scene.image, 30, 1)
        assert np.corrcoef(plain.ravel().astype(float), read.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("rotate", [False, True])
def test_samples_are_turned_only_if_objects_may_be(recipe: Recipe, rotate: bool) -> None:
    ramp = np.broadcast_to(np.linspace(20, 235, 48).astype(np.uint8)[:, None, None], (4, 48, 48, 1))
    crops = ObjectCrops(np.ascontiguousarray(ramp), np.arange(4) % 2, np.zeros(4, np.int64), 30)
    x, classes = Sampler(crops, recipe.mean, recipe.std, rotate=rotate, seed=1).draw(64)
    assert x.shape == (64, 1, 30, 30)
    assert set(classes.tolist()) == {0, 1}
    down = (x[:, 0, -1].mean(dim=1) - x[:, 0, 0].mean(dim=1)).numpy()
    assert ((down > 0).all()) != rotate


def test_forks_stay_only_if_they_name_more_held_out_crops(recipe: Recipe) -> None:
    kinds, plan = 12, TrunkPlan("4/2:8 4/2:12", 1, 3, 4096, 2048)
    side = plan.spec(1, kinds).input_size(1)
    x, classes = gratings(kinds, side, 1)(600)
    pixels = (255 * (0.45 + 0.1 * x.numpy())).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    judges = Judges(pixels, classes.numpy(), np.arange(600) % 10)
    names = tuple(f"kind {k}" for k in range(kinds))
    ticks: list[tuple[int, int]] = []
    found, known = learn_classes(
        names, gratings(kinds, side, 0), pixels[:50], judges, plan, recipe, lambda *done: ticks.append(done)
    )
    assert ticks[-1] == (6144, 6144)
    assert known["held_objects"] == 600
    assert known["right"] > 3 / kinds
    gained = known["right_with_forks"] > known["right"] and known["p"] <= 0.05
    assert known["forks"] == (len(found.tree) - 1 if gained else 0)
    assert bool(found.tree.children(0).size) == gained
    right = (found(pixels).labels == classes.numpy()).mean()
    assert right == pytest.approx(known["right_with_forks" if gained else "right"], abs=1e-4)
    assert found.shares.sum(axis=1) == pytest.approx(1, abs=1e-3)


@pytest.fixture(scope="module")
def of_bars() -> Model:
    """A model of bars, fitted in seconds."""
    scenes = [bars(seed) for seed in (2, 3, 4)]
    usual = TrunkPlan.usual
    plan = replace(usual(KINDS, 1000), samples=8_000, more=1_000)
    with smaller(slim=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_classifier.TrunkPlan, "usual", lambda *_: plan)
        return fit([p for p, _ in scenes], [a for _, a in scenes], **{**QUICK, "rotate": False}, steps=40)


@pytest.mark.filterwarnings("ignore:hardly anything was found")
def test_a_model_of_many_classes_finds_and_names(of_bars: Model) -> None:
    assert [label.name for label in of_bars.labels] == ["object"]
    assert of_bars.classifier is not None
    assert of_bars.classifier.labels == tuple(f"bar {kind:02}" for kind in range(KINDS))
    pixels, collection = bars(5)
    true = {
        tuple(np.mean(f["geometry"]["coordinates"][0][:4], axis=0)): f["properties"]["classification"]["name"]
        for f in collection["features"]
    }
    near, named = 0, 0
    for region in analyze(pixels, of_bars, budget=1.0).regions:
        y, x = region.full_centre
        place = min(true, key=lambda p: np.hypot(p[0] - x, p[1] - y))
        if np.hypot(place[0] - x, place[1] - y) < 12:
            near += 1
            named += true[place] == region.label
    assert near > 0.7 * len(true)
    assert named > 5 * near / KINDS  # by chance a twenty-eighth


def test_going_on_keeps_the_classes(of_bars: Model) -> None:
    pixels, collection = bars(6)
    some = [f for f in collection["features"] if f["properties"]["classification"]["name"] < "bar 09"]
    plan = replace(TrunkPlan.usual(KINDS, 1000), samples=1024, more=512)
    with smaller(slim=True), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "hardly anything was found", UserWarning)
        patch.setattr(fit_classifier.TrunkPlan, "usual", lambda *_: plan)
        given = {**QUICK, "rotate": False, "steps": 40, "model": of_bars}
        on = fit([pixels], [{**collection, "features": some}], **given)
        assert on.classifier is not None
        assert on.classifier.labels == of_bars.classifier.labels  # type: ignore[union-attr]
        other = json.loads(json.dumps(collection).replace("bar 00", "disc"))
        with pytest.raises(AnnotationError, match="does not know disc: its classes are bar 00, "):
            fit([pixels], [other], **given)


def test_an_interrupted_naming_leaves_the_rest_unnamed(of_bars: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Crop, "read", stopped)
    analysis = analyze(bars(5)[0], of_bars, budget=1.0)
    assert not analysis.complete
    assert {region.label for region in analysis.regions} == {"object"}


def test_naming_costs_no_budget(of_bars: Model) -> None:
    analysis = analyze(bars(5)[0], of_bars, budget=0.5)
    assert analysis.cost.share <= 0.5
    assert analysis.cost.classify_macs > 0
    assert "GMAC for names" in str(analysis.cost)


def test_of_very_many_objects_rare_classes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_crops, "_MOST", 50)
    classes = [0] * 500 + [1] * 30 + [2] * 4
    rows = object_crops._some(classes, np.random.default_rng(0))
    assert np.bincount(np.array(classes)[rows]).tolist() == [23, 23, 4]
    assert (np.diff(rows) > 0).all()
