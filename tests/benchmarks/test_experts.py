"""The benchmark of experts: look-ups agree with real runs, and every tool is asked about the same tiles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from benchmarks.experts import run, training
from benchmarks.experts.models import UNet, unet, unusual
from benchmarks.experts.rivals import RIVALS, Part, compare_rivals, plain_loop, same_share
from benchmarks.experts.sheet import Sheet
from numpy.typing import NDArray

from coarse2fine import Expert, Geometry, Model, expert
from coarse2fine.bench.expert_answers import all_answers, metered, run_tiles
from coarse2fine.bench.expert_run import benchmark_own_expert, mean_figures, measure_expert, sections_of
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.firing import Curve, Firing
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from tests.fitting.discs import smaller

TILE, CONTEXT = 64, 16


def find_discs(pixels: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """Bright parts of each tile."""
    found = []
    for tile in pixels:
        stats = cv2.connectedComponentsWithStats((tile[..., 0] > 120).astype(np.uint8))[2][1:]
        # The whole disc scores higher than one that the border cuts.
        boxes = [(x, y, x + w, y + h, min(0.5 + area / 200, 1), 0) for x, y, w, h, area in stats.tolist()]
        found.append(np.array(boxes, np.float64).reshape(-1, 6))
    return found


def discs(seed: int, height: int = 256, width: int = 320, count: int = 12) -> NDArray[np.uint8]:
    """Bright discs of 9 px, none of which touches another."""
    rng, image = np.random.default_rng(seed), np.full((height, width, 3), 40, np.uint8)
    cells = rng.permutation(height // 20 * (width // 20))[:count]
    for cell in cells.tolist():
        y, x = divmod(cell, width // 20)
        cv2.circle(image, (20 * x + 10, 20 * y + 10), 4, (200, 200, 200), -1)
    return image


@pytest.fixture
def disc_expert() -> Expert:
    return replace(expert(find_discs, tile=TILE, context=CONTEXT, labels=["disc"], batch=4), tile_macs=10**6)


@pytest.fixture
def model(disc_expert: Expert) -> Model:
    """A scan that was not trained, before the expert."""
    torch.manual_seed(0)
    base = ConvStack(StackSpec.parse(3, "4/2:4 4/2:4 4/2:8 4/2:8 4/2:8 2/2:8 1:1"))
    curve = Curve(np.zeros(1, np.float32), np.array([0.1, 0.2], np.float32))
    firing = Firing("logit", 0.1, np.zeros(1, np.int64), (curve,), *np.array([[0, 1], [0, 1]], np.float32))
    return Model(
        "toy",
        Geometry(TILE, 1, 1, 1),
        (0.5,) * 3,
        (0.25,) * 3,
        base,
        ExpertRefiner(disc_expert),
        firing=firing,
        window=1,
        provenance={"taus": {"0.9": 1e-9, "0.95": 1e-9, "0.99": 1e-9}},
    )


def test_answers_are_what_each_tile_owns_and_are_asked_for_once(tmp_path: Path, disc_expert: Expert) -> None:
    pixels = discs(1)
    hashed = replace(disc_expert, sha256="ab")
    with open_image(pixels) as image, metered(hashed) as (timed, meter):
        first = all_answers(timed, image, tmp_path, "discs")
        again = all_answers(timed, image, tmp_path, "discs")
        all_answers(timed, image, tmp_path)
    assert first.counts.shape == (4, 5)
    assert first.total == 12
    assert (again.counts == first.counts).all()
    assert meter.tiles == 2 * 20
    for y, x in np.ndindex(4, 5):
        own = pixels[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE, 0]
        assert first.counts[y, x] <= cv2.connectedComponents((own > 120).astype(np.uint8))[0] - 1


def test_orders_reach_recalls_with_the_fewest_tiles(disc_expert: Expert) -> None:
    with open_image(discs(2, count=30)) as image:
        answers = all_answers(disc_expert, image)
    best, random = answers.best_first(), answers.random_first(3)
    counts = answers.counts.ravel()
    for goal in (0.5, 0.9, 1.0):
        for order in (best, random):
            least = answers.least(order, goal)
            assert counts[order[:least]].sum() >= goal * 30 > counts[order[: least - 1]].sum()
        assert answers.least(best, goal) <= answers.least(random, goal)
    assert answers.least(best, 1.0) == (counts > 0).sum()


def test_a_run_is_measured_beside_other_choices(model: Model) -> None:
    found = measure_expert(model, discs(1), seed=0)
    assert found["exhaustive/tiles"] == 20
    assert found["exhaustive/recall"] == found["with_find/recall"] == 1
    assert found["exhaustive/saving_macs"] == 1
    assert found["oracle@0.9/tiles"] <= found["oracle@0.99/tiles"] <= found["with_find/tiles"] <= 12
    # The thresholds let every tile pass.
    assert found["ours@0.95/tiles"] == 20
    assert found["ours@0.95/recall"] == 1
    assert found["ours@0.95/expert_seconds"] < found["ours@0.95/seconds"]
    assert found["random@0.9/recall"] >= 0.9
    assert found["with_find/saving_macs"] == pytest.approx(20 / found["with_find/tiles"])


def test_every_tool_finds_what_a_plain_loop_finds(model: Model, disc_expert: Expert) -> None:
    part = Part.of(disc_expert, discs(4, count=40))
    found, notes = compare_rivals(model, part)
    there = {name for name in RIVALS if f"{name}/tiles" in found}
    assert len(notes) == len(RIVALS) - len(there)
    for name in ("plain", "ours@1", *there):
        assert found[f"{name}/tiles"] == 20
        assert found[f"{name}/finds"] == 40
        assert found[f"{name}/same"] == 1


def test_tools_that_are_missing_or_do_not_fit_are_named(
    model: Model, disc_expert: Expert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.experts.rivals.RIVALS", {"a_tool_that_nobody_has": plain_loop})
    found, notes = compare_rivals(model, Part.of(disc_expert, discs(4)))
    assert notes == ["a_tool_that_nobody_has is left out: it is not installed"]
    assert {name.partition("/")[0] for name in found} == {"plain", "ours@1"}


def test_a_part_is_whole_tiles(disc_expert: Expert) -> None:
    with pytest.raises(ValueError, match="whole tiles of 64 px"):
        Part.of(disc_expert, discs(1)[:100])


def test_same_share_counts_both_ways() -> None:
    two = np.array([[0, 0, 10, 10, 0], [50, 50, 60, 60, 0]], np.float64)
    assert same_share(two, two) == 1
    assert same_share(two, two[:1]) == same_share(two[:1], two) == 0.5
    assert same_share(two, two + np.array([0, 0, 0, 0, 1])) == 0
    assert same_share(two[:0], two[:0]) == 1
    assert same_share(two, two[:0]) == 0


def test_a_sheet_is_the_same_in_any_blocks() -> None:
    sheet = Sheet(1024, 5)
    whole = sheet.block(Box(0, 0, 1024, 1024))
    assert {mark.kind for mark in sheet.marks} == {"paragraph", "caption", "stamp", "drawing"}
    assert (whole[300:700, 100:900] == sheet.block(Box(300, 100, 700, 900))).all()
    inked = [mark.full_box for mark in sheet.marks]
    dark = np.zeros((1024, 1024), bool)
    for box in inked:
        dark[box.y0 : box.y1, box.x0 : box.x1] = True
    assert whole[~dark].min() > 120
    assert whole[dark].min() < 120


def test_a_trained_net_is_kept_and_becomes_an_expert(tmp_path: Path) -> None:
    lesson = training.Lesson(discs(3), np.array([[6, 6, 15, 15]], np.float32))
    path = training.train_unet(tmp_path / "net.pt", [lesson], steps=2)
    stamp = path.stat().st_mtime_ns
    assert training.train_unet(path, [lesson], steps=2).stat().st_mtime_ns == stamp
    adapter = unet(str(path))
    answer = adapter.call(np.zeros((2, 96, 96, 3), np.uint8))
    assert answer.shape == (2, 1, 96, 96)
    assert ((answer >= 0) & (answer <= 1)).all()
    assert sum(p.numel() for p in UNet().parameters()) < 300_000


def test_interest_of_vectors() -> None:
    assert unusual(np.array([[0.0, 0.0], [0.6, 0.8], [30.0, 40.0]], np.float32)) == pytest.approx([0, 0.5, 50 / 51])


def test_means_and_deviations_over_runs() -> None:
    means, deviations = mean_figures([{"a": 1.0, "b": 2.0}, {"a": 3.0}])
    assert means == {"a": 2.0, "b": 2.0}
    assert deviations == {"a_sd": pytest.approx(2**0.5)}
    runs = [{"s/e/mask/tiles": 3.0, "s/e/part/sahi/tiles": 9.0, "s/e/fit/seconds": 1.0}]
    titles = [(section.title, list(section.figures)) for section in sections_of("all", runs)]
    assert titles == [
        ("all", ["s/e/mask/tiles"]),
        ("all: other tools", ["s/e/part/sahi/tiles"]),
        ("all: fits", ["s/e/fit/seconds"]),
    ]


@pytest.mark.slow
def test_a_users_own_model_is_measured(tmp_path: Path, disc_expert: Expert) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(3):
        image = discs(seed, 512, 640, count=20)
        cv2.imwrite(str(tmp_path / "in" / f"scene-{seed}.png"), image)
    with smaller():
        report = benchmark_own_expert(
            disc_expert, tmp_path / "in", seeds=1, watch=0.6, steps=20, cache=tmp_path / "answers"
        )
    figures: dict[str, Any] = json.loads(report.save(tmp_path / "experts.json").read_text("utf-8"))["figures"]
    assert figures["exhaustive/tiles"] == 80
    assert figures["fit/tiles"] > 0
    assert figures["with_find/forecast_share"] > 0
    assert "ours@0.95" in str(report)


def test_a_users_own_model_needs_two_images(tmp_path: Path, disc_expert: Expert) -> None:
    cv2.imwrite(str(tmp_path / "only.png"), discs(0))
    with pytest.raises(ValueError, match="at least two images"):
        benchmark_own_expert(disc_expert, tmp_path)


def test_an_unknown_pair_and_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pair of scene and expert is named digits/everything"):
        run.benchmark_experts(tmp_path, scale=replace(run.QUICK, pairs=("digits/everything",)))
    report = run.benchmark_experts(tmp_path, scale=replace(run.QUICK, pairs=("mars-dense/unet",)))
    assert any("mars-dense/unet is left out" in note and "--data" in note for note in report.all_notes())


def test_the_plain_loop_reads_each_tile_once(disc_expert: Expert) -> None:
    with open_image(discs(1)) as image:
        seen = np.concatenate([tiles for tiles, _ in run_tiles(disc_expert, image, np.array([3, 17, 0, 19, 8]))])
    assert sorted(seen.tolist()) == [0, 3, 8, 17, 19]
