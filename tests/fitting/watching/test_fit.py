"""Fitting by watching an expert, from scenes to an analysis."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import ExpertError, Model, analyze, expert, fit, load_model
from coarse2fine.experts.expert import Expert
from tests.fitting.watching.discs import dark

Pixels = NDArray[np.uint8]
pytestmark = pytest.mark.usefixtures("small_steps")


TILE, SIDE, DISCS = 64, 768, 36


def scene(seed: int, discs: int = DISCS, side: int = SIDE) -> Pixels:
    """Dark discs, which the expert finds, among bright ones, on a noisy ground."""
    rng = np.random.default_rng(seed)
    image = np.repeat(rng.normal(120, 10, (side, side, 1)), 3, axis=2)
    for shade, count in ((20, discs), (230, 3 * discs)):
        for y, x in rng.integers(12, side - 12, (count, 2)).tolist():
            cv2.circle(image, (x, y), 8, (shade,) * 3, -1)
    return image.clip(0, 255).astype(np.uint8)


def watched() -> Expert:
    return expert(dark, tile=TILE, context=8, labels=["dark"], batch=16, tile_macs=10**8)


@pytest.fixture(scope="module")
def model(small_steps: None) -> Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.fitting.watching.scan._BATCH_PIXELS", 30_000)  # as small as the scenes
        return fit([scene(s) for s in range(3)], expert=watched(), watch=0.5, steps=60, recall=0.9, progress=False)


def boxes(result: object) -> set[tuple[float, ...]]:
    return {tuple(round(v, 2) for v in region.full_box) for region in result.regions}  # type: ignore[attr-defined]


def test_the_expert_runs_on_a_few_tiles_and_finds_most_of_what_it_would(model: Model) -> None:
    image = scene(100)
    whole, chosen = analyze(image, model, budget=1.0), analyze(image, model, audit=0)
    assert boxes(chosen) <= boxes(whole)
    assert len(boxes(chosen)) >= 0.75 * len(boxes(whole))
    assert chosen.refined.mean() < 0.6
    holding = {(int(r.full_centre[0]) // TILE, int(r.full_centre[1]) // TILE) for r in whole.regions}
    assert chosen.refined.sum() >= 0.75 * len(holding)


def test_the_forecast_is_stated_and_kept_in_the_file(model: Model, tmp_path: Path) -> None:
    again = load_model(model.save(tmp_path / "m.c2f"))
    assert str(again).splitlines()[-4:] == str(model).splitlines()[-4:]
    assert "forecast from" in str(again)
    with pytest.raises(ExpertError, match="give it again"):
        analyze(scene(101, 5, 300), again)
    image = scene(101, 30)
    ours, theirs = analyze(image, model, audit=0), analyze(image, again, expert=watched(), audit=0)
    assert boxes(ours) == boxes(theirs)
    assert any("it was" in note for note in ours.notes)


def test_share_of_tiles_with_finds_is_near_the_truth(model: Model) -> None:
    refiner = model.refiner
    share, low, high = refiner.forecast.with_finds  # type: ignore[attr-defined]
    holding, tiles = 0, 3 * (SIDE // TILE) ** 2
    for seed in range(3):
        whole = analyze(scene(seed), model, budget=1.0)
        holding += len({(int(r.full_centre[0]) // TILE, int(r.full_centre[1]) // TILE) for r in whole.regions})
    assert low <= holding / tiles <= high
    assert abs(share - holding / tiles) < 0.08


@pytest.mark.slow
def test_the_same_seed_watches_and_learns_the_same() -> None:
    scenes = [scene(s, 12, 768) for s in range(2)]
    one, two = (fit(scenes, expert=watched(), watch=1.0, steps=10, progress=False) for _ in range(2))
    weights = [{k: v.numpy() for k, v in m.base.state_dict().items()} for m in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][k] == weights[1][k]).all() for k in weights[0])
    assert one.tau == two.tau


def test_an_expert_that_finds_nothing_teaches_nothing() -> None:
    with pytest.raises(ValueError, match=r"found nothing in .* tiles"):
        fit(np.full((600, 600), 120, np.uint8), expert=watched(), progress=False)


@pytest.mark.slow
def test_finds_in_every_tile_leave_nothing_to_choose() -> None:
    found = fit([scene(s, 400, 640) for s in range(2)], expert=watched(), watch=1.0, steps=10, progress=False)
    assert "no use here" in str(found)
    result = analyze(scene(9, 400, 640), found, audit=0)
    assert result.refined.all()


@pytest.mark.parametrize("watch", [0, 2.0, "never"])
def test_watch_is_checked_before_the_expert_runs(watch: float | str) -> None:
    with pytest.raises(ValueError, match="watch must be"):
        fit(scene(0, 3, 300), expert=expert(lambda _: 1 / 0, tile=64), watch=watch)


def test_without_annotations_or_an_expert_there_is_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        fit(scene(0, 3, 300))
