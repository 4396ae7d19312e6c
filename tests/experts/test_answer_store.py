"""Stored answers of experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from coarse2fine import ExpertError, ModelError, analyze, analyze_folder, fit
from coarse2fine.experts.answer_store import AnswerStore
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.model import Model
from tests.experts.scenes import Pixels, boxes_of, disc_expert, model_of, scene
from tests.fitting.discs import smaller


class Counted:
    """Finds discs, and counts the tiles that it is asked for."""

    def __init__(self) -> None:
        self.tiles = 0

    def __call__(self, pixels: Pixels) -> list[Any]:
        self.tiles += len(pixels)
        return [boxes_of(tile) for tile in pixels]


def counted(**options: Any) -> tuple[Counted, Expert]:
    call = Counted()
    return call, replace(disc_expert(call, **options), sha256="5" * 64)


def stored_model(made: Expert, folder: Path) -> Model:
    return replace(model_of(made), refiner=ExpertRefiner(made, cache=folder))


def finds(model: Model, image: Pixels) -> list[tuple[Any, ...]]:
    return [(r.label, r.score, r.full_box, r.outline) for r in analyze(image, model, budget=1.0).regions]


def test_no_tile_is_run_twice_and_finds_are_the_same(tmp_path: Path) -> None:
    image = scene(333, 420, 60, seed=5)
    call, made = counted()
    plain = finds(model_of(made), image)
    call.tiles = 0
    model = stored_model(made, tmp_path)
    assert finds(model, image) == plain
    once = call.tiles
    assert once > 4
    assert finds(model, image) == plain
    assert call.tiles == once
    # Another process, with another batch, has the same answers.
    again, other = counted(batch=3)
    assert finds(stored_model(other, tmp_path), image) == plain
    assert again.tiles == 0


def test_costs_count_the_tiles_that_ran(tmp_path: Path) -> None:
    image = scene(333, 420, 60, seed=5)
    model = stored_model(replace(counted()[1], tile_macs=1000), tmp_path)
    first, second = (analyze(image, model, budget=1.0).cost for _ in range(2))
    assert first.exhaustive_macs == second.exhaustive_macs == 42 * 1000
    assert first.refine_macs == 41 * 1000  # two tiles of ground alone are equal, and of different batches
    assert second.refine_macs == 0


@pytest.mark.parametrize("change", [{"context": 16}, {"confidence": 0.9}, {"overlap": 0.7}, {"sha256": "6" * 64}])
def test_another_expert_is_asked_again(tmp_path: Path, change: dict[str, Any]) -> None:
    image = scene(333, 420, 60, seed=5)
    finds(stored_model(counted()[1], tmp_path), image)
    call, made = counted()
    changed = replace(made, **change)
    finds(stored_model(changed, tmp_path), image)
    assert call.tiles > 0


def test_tiles_at_an_edge_are_not_those_within(tmp_path: Path) -> None:
    """The same pixels everywhere: a disc that an edge cuts belongs to the tile at the edge alone."""
    call, made = counted()
    side = made.tile
    image = np.tile(scene(side, side, 1, seed=3), (4, 4, 1))
    assert finds(stored_model(made, tmp_path), image) == finds(model_of(made), image)
    assert call.tiles > 0


def test_failures_are_not_stored(tmp_path: Path) -> None:
    image = scene(333, 420, 60, seed=5)
    call, made = counted()
    failing = [True]

    def sometimes(pixels: Pixels) -> list[Any]:
        if failing[0] and pixels.max() > 190:
            raise RuntimeError("not now")
        return call(pixels)

    broken = replace(made, call=sometimes)
    model = stored_model(broken, tmp_path)
    assert not analyze(image, model, budget=1.0).complete
    failing[0] = False
    assert finds(model, image) == finds(model_of(made), image)


def test_experts_without_a_hash_are_not_stored(tmp_path: Path) -> None:
    assert AnswerStore.of(disc_expert(), tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_says_what_to_do(tmp_path: Path) -> None:
    _, made = counted()
    store = AnswerStore.of(made, tmp_path)
    assert store is not None
    store.path.write_bytes(b"no database" * 1000)
    with pytest.raises(ExpertError, match=r"delete .*sqlite"):
        finds(stored_model(made, tmp_path), scene(200, 200, 9, seed=1))


@pytest.mark.slow
def test_a_second_fit_asks_only_for_the_trial(tmp_path: Path) -> None:
    scenes = [scene(640, 640, 40, seed=s) for s in range(2)]
    call, made = counted()
    options: dict[str, Any] = {"watch": 0.5, "steps": 10, "progress": False, "cache": tmp_path}
    with smaller():
        first = fit(scenes, expert=made, **options)
        asked = call.tiles
        call.tiles = 0
        second = fit(scenes, expert=made, **options)
    assert call.tiles < asked / 2
    assert second.tau == first.tau


@pytest.mark.usefixtures("plain_pictures")
def test_a_model_file_uses_stored_answers(tmp_path: Path) -> None:
    image, cache = scene(333, 420, 60, seed=5), tmp_path / "answers"
    call, made = counted()
    path = model_of(made).save(tmp_path / "m.c2f")
    plain = analyze(image, path, expert=made, budget=1.0).regions
    asked = call.tiles
    assert analyze(image, path, expert=made, cache=cache, budget=1.0).regions == plain
    once = call.tiles
    assert asked < once < 2 * asked
    second = analyze(image, path, expert=made, cache=cache, budget=1.0)
    assert second.regions == plain
    assert call.tiles == once
    assert (second.cost.refine_macs, second.cost.exhaustive_macs) == (0, asked * made.tile_macs)
    assert "0.0% of the exhaustive pass" in str(second)
    batch = analyze_folder(
        _written(tmp_path / "a.png", image),
        tmp_path / "out",
        path,
        expert=made,
        cache=cache,
        workers=0,
        budget=1.0,
        report=False,
    )
    assert batch.ok
    assert call.tiles == once


@pytest.mark.usefixtures("plain_pictures")
def test_answers_of_the_fit_count_in_an_analysis(tmp_path: Path) -> None:
    ground = np.random.default_rng(0).integers(0, 9, (448, 448, 1), np.uint8)  # no two tiles are equal
    image, cache = np.minimum(scene(448, 448, 25, seed=3), 240) + ground, tmp_path / "answers"
    call, made = counted(tile_macs=10**9)
    with smaller():
        model = fit(image, expert=made, watch=1.0, steps=10, cache=cache, progress=False)
    path, asked = model.save(tmp_path / "m.c2f"), call.tiles
    assert isinstance(model.refiner, ExpertRefiner)
    assert model.refiner.forecast is not None
    assert analyze(image, path, expert=made, cache=cache, budget=1.0).regions
    every = asked + model.refiner.forecast.tiles - model.refiner.forecast.watched
    assert call.tiles == every
    batch = analyze_folder(
        _written(tmp_path / "a.png", image), tmp_path / "out", model, workers=0, budget=1.0, report=False
    )
    assert batch.ok
    assert call.tiles == every


def test_a_cache_needs_an_expert(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was not fitted with an expert: leave out cache"):
        analyze(scene(100, 100), "digits", cache=tmp_path)


def _written(path: Path, image: Pixels) -> Path:
    cv2.imwrite(str(path), image)
    return path
