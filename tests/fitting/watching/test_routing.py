"""Choice between an expert and its alternatives, in worlds of which all is known, and from scenes to an analysis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import ExpertError, analyze, expert, fit, load_model
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.fitting.watching.calibrate import Screen, TriedTiles
from coarse2fine.fitting.watching.routing import Clusters, Given, Routed, choice_in, choose_routes
from tests.fitting.watching.discs import dark

Pixels = NDArray[np.uint8]
RECALL, PRICE = 0.9, 0.25
pytestmark = pytest.mark.usefixtures("small_steps")


@dataclass(frozen=True)
class World:
    """Tiles of two kinds; the alternative gives a share of the finds in each kind."""

    tiles: TriedTiles
    kind: NDArray[np.int64]
    screen: Screen
    given: Given
    vectors: NDArray[np.float32]
    folds: NDArray[np.int64]


def world(seed: int, shares: tuple[float, float], *, count: int = 1500, told: bool = True, extra: float = 0.0) -> World:
    rng = np.random.default_rng(seed)
    kind, finds, weight = rng.integers(0, 2, count), rng.poisson(0.4, count), rng.choice([1.0, 2.0], count)
    signal = ((finds > 0) * 3.0 + rng.normal(0, 1, count)).astype(np.float32)
    interest = ((np.argsort(np.argsort(signal)) + 1) / (count + 1)).astype(np.float32)
    tiles = TriedTiles(np.arange(count) // 20, weight, finds, ())
    kept = rng.binomial(finds, np.array(shares)[kind])
    more = rng.poisson(extra, count)
    given = Given(("large", "small"), np.stack([finds, kept]), np.stack([0 * more, more]), np.array([1, PRICE]))
    vectors = np.stack([kind * told + rng.normal(0, 0.2, count), rng.normal(0, 0.2, count)], axis=1)
    folds = tiles.block % 3
    return World(tiles, kind, Screen(tiles, interest, interest, 0.01), given, vectors.astype(np.float32), folds)


def chosen(made: World, seed: int = 0) -> Routed:
    parts = [made.vectors] * 3
    other = expert(lambda _: None, tile=64, tile_macs=10)
    vectors = (parts, made.vectors)
    return choose_routes(made.screen, made.given, vectors, made.folds, [other], recall=RECALL, gain=0.93, seed=seed)


def test_the_alternative_answers_for_the_clusters_in_which_it_is_as_good() -> None:
    made = world(0, (1.0, 0.5))
    found = chosen(made)
    assert found.routes is not None
    number = found.routes.choice[found.routes.leaf(made.vectors)]
    assert number[made.kind == 0].mean() > 0.95
    assert number[made.kind == 1].mean() < 0.05
    saving = {name: figures[1] for name, figures in found.figures.items()}
    assert saving["by clusters"] > 1.3 * saving["always large"]
    assert saving["always small"] == 0  # it does not give enough
    assert saving["by random clusters"] < 1.05 * saving["always large"]


def test_further_tiles_are_answered_to_the_recall() -> None:
    reached = []
    for seed in range(8):
        found, fresh = chosen(world(seed, (0.98, 0.4))), world(100 + seed, (0.98, 0.4), count=6000)
        _, tau, _, _ = found.screen.cautious(RECALL)
        assert found.routes is not None
        number = found.routes.choice[found.routes.leaf(fresh.vectors)]
        sent = fresh.screen.last > tau
        got = fresh.given.finds[number, np.arange(len(number))]
        weight = fresh.tiles.weight
        reached.append((weight * got)[sent].sum() / (weight * fresh.tiles.finds).sum())
    assert np.mean(reached) >= RECALL - 0.005
    assert min(reached) > RECALL - 0.05


@pytest.mark.parametrize("options", [{"shares": (0.6, 0.6)}, {"shares": (1.0, 0.5), "told": False}])
def test_without_clusters_that_differ_the_expert_answers_for_all(options: dict[str, object]) -> None:
    found = chosen(world(1, **options))  # type: ignore[arg-type]
    assert found.routes is None
    assert found.screen.given is None
    assert set(found.figures) == {"always large", "always small", "by clusters", "by random clusters"}


def test_an_alternative_that_is_as_good_everywhere_answers_for_all() -> None:
    made = world(2, (1.0, 1.0))
    found = chosen(made)
    assert found.routes is not None
    assert (found.routes.choice[found.routes.tree.leaves] == 1).all()
    assert found.figures["always small"][0] == 1.0
    assert found.figures["by clusters"] == pytest.approx(found.figures["always small"])


def test_false_finds_of_an_alternative_count_against_it() -> None:
    assert chosen(world(3, (1.0, 1.0), extra=0.3)).routes is None


@pytest.mark.parametrize(("count", "missed", "taken"), [(18, 0, False), (19, 0, True), (40, 1, True), (38, 1, False)])
def test_few_finds_are_judged_cautiously(count: int, missed: int, taken: bool) -> None:
    """At most one of 20 may be missed, one more that is missed included."""
    finds = np.ones(count, np.int64)
    kept = finds.copy()
    kept[:missed] = 0
    given = Given(("large", "small"), np.stack([finds, kept]), np.zeros((2, count), np.int64), np.array([1, PRICE]))
    tiles = TriedTiles(np.arange(count), np.ones(count), finds, ())
    clusters = Clusters.grown(np.zeros((count, 1), np.float32), np.arange(count), 0)
    assert choice_in(clusters, given, tiles, np.arange(count), 0.05, 0.05).tolist() == [int(taken)]


def test_tiles_in_which_nothing_is_found_are_checked_by_the_alternative() -> None:
    """If one more tile that is missed is a small part of all finds."""
    kind = np.repeat([0, 1], 60)
    tiles = TriedTiles(np.arange(120), np.ones(120), kind * 1, ())
    given = Given(("large", "small"), np.stack([kind, 0 * kind]), np.zeros((2, 120), np.int64), np.array([1, PRICE]))
    clusters = Clusters.grown(kind[:, None].astype(np.float32), np.arange(120), 0)
    for most, taken in ((0.02, 1), (0.01, 0)):
        choice = choice_in(clusters, given, tiles, np.arange(120), most, most)
        assert choice[clusters.leaf[kind == 0]].tolist() == [taken] * 60
        assert not choice[clusters.leaf[kind == 1]].any()


def scene(seed: int, side: int = 768) -> Pixels:
    """Dark discs on squares of smooth and of striped ground."""
    rng = np.random.default_rng(seed)
    image = rng.normal(120, 8, (side, side))
    for y, x in np.ndindex(side // 128, side // 128):
        if (y + x + seed) % 2:
            image[128 * y : 128 * (y + 1), 128 * x : 128 * (x + 1)] += 110 * (np.arange(128) // 8 % 2)
    image = image.clip(0, 255).astype(np.uint8)
    for y, x in rng.integers(12, side - 12, (70, 2)).tolist():
        cv2.circle(image, (x, y), 7, 20, -1)
    return np.repeat(image[..., None], 3, axis=2)


def smooth_only(pixels: Pixels) -> list[NDArray[np.float64] | None]:
    """The same, but blind on striped ground."""
    return [rows if tile[8:-8, 8:-8].max() < 165 else None for tile, rows in zip(pixels, dark(pixels), strict=True)]


def both() -> list[Expert]:
    options: dict[str, Any] = {"tile": 64, "context": 8, "labels": ["dark"], "batch": 16}
    return [expert(dark, **options, tile_macs=5 * 10**6), expert(smooth_only, **options, tile_macs=5 * 10**5)]


@pytest.mark.slow
def test_from_scenes_to_an_analysis(tmp_path: Path) -> None:
    scenes = [scene(s) for s in range(3)]
    # What a scan of ten steps finds elsewhere depends on the seed and on the processor.
    model = fit(scenes, expert=both(), watch=1.0, steps=10, recall=RECALL, precision="fp32", progress=False, seed=1)
    refiner = model.refiner
    assert isinstance(refiner, ExpertRefiner)
    assert refiner.routes is not None
    assert "choice between the experts at 90%" in str(model)
    image = scene(50)
    plain = analyze(image, model, budget=1.0)
    chosen = analyze(image, model)
    assert chosen.audit is None
    assert 0.75 * len(plain.regions) <= len(chosen.regions) <= len(plain.regions)
    assert chosen.cost.refine_macs < 0.95 * chosen.refined.sum() * 5 * 10**6
    assert set(model.provenance["leaves"].values()) == {"dark", "smooth_only"}
    assert {str(region.route[-1]) for region in chosen.regions} <= set(model.provenance["leaves"])
    again = analyze(image, load_model(model.save(tmp_path / "m.c2f")), expert=both())
    assert [r.full_box for r in again.regions] == [r.full_box for r in chosen.regions]


def test_alternatives_are_checked_before_the_fit() -> None:
    first, _ = both()
    with pytest.raises(ExpertError, match=r"same .*tile is 64"):
        fit(scene(0), expert=[first, expert(dark, tile=32, labels=["dark"])], progress=False)
