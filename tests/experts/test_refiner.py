"""Analyses with an expert against a plain loop over its grid."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coarse2fine import ExpertError, analyze
from coarse2fine.audit import blocks as audit_blocks
from coarse2fine.audit.blocks import AuditState, Blocks
from coarse2fine.audit.certify import certify
from coarse2fine.band_run import BandRun
from coarse2fine.config import Config
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.results.analysis import Analysis
from coarse2fine.steps.checkpoint import Checkpoint, StoredCheckpoint
from coarse2fine.steps.plan import Plan, dense_plan
from coarse2fine.steps.refine import Refinement, refine
from coarse2fine.tiling.opening import open_image
from tests.experts.scenes import (
    LABELS,
    Find,
    Finder,
    Pixels,
    boxes_of,
    disc_expert,
    in_image,
    model_of,
    once,
    owned,
    scene,
)


def found(analysis: Analysis) -> list[Find]:
    return [(r.score, LABELS.index(r.label), r.full_box) for r in analysis.regions]


def same(got: list[Find], wanted: list[Find]) -> None:
    assert [each[1] for each in got] == [each[1] for each in wanted]
    np.testing.assert_allclose([each[0] for each in got], [each[0] for each in wanted], atol=1e-6)
    np.testing.assert_allclose([each[2] for each in got], [each[2] for each in wanted], atol=2e-2)


def tiles(state: Candidates) -> dict[tuple[int, int], list[tuple[Any, ...]]]:
    """Candidates by tile, with everything that is known of each."""
    made: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
    columns: list[NDArray[Any]] = [state.scores, state.labels, state.boxes, state.ranks, state.sizes]
    for (y, x), *row in zip(state.cells.tolist(), *(each.tolist() for each in columns), strict=True):
        made.setdefault((y, x), []).append(tuple(row))
    return made


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 64), (65, 63), (37, 400), (333, 291)])
@pytest.mark.parametrize("context", [0, 8])
def test_whole_budget_is_the_loop_over_the_grid(height: int, width: int, channels: int, context: int) -> None:
    image = scene(height, width, 1 + height * width // 1500, channels=channels)
    made = disc_expert(context=context)
    same(found(analyze(image, model_of(made), budget=1.0)), in_image(once(owned(image, made)), image))


@pytest.mark.parametrize("tile", [40, 100])
def test_downsample_and_tiles_of_any_size(tile: int) -> None:
    image = np.kron(scene(171, 140, 30), np.ones((2, 2, 1), np.uint8))[:341, :279]
    made = disc_expert(tile=tile, context=12, downsample=2)
    same(found(analyze(image, model_of(made), budget=1.0)), in_image(once(owned(image, made)), image, 2))


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_the_expert_gets_full_tiles_only(batch_size: int) -> None:
    call = Finder()
    made = disc_expert(call, context=5, batch=4)
    analyze(scene(333, 130), model_of(made), batch_size=batch_size, recall=0.8)
    assert {shape[1:] for shape in call.calls} == {(74, 74, 3)}
    assert max(shape[0] for shape in call.calls) <= min(4, batch_size)


@pytest.fixture(scope="module")
def crowded() -> Pixels:
    return scene(640, 520, 160, seed=3)


def refined(image: Pixels, made: Any, plan: Plan | None = None) -> Refinement:
    model = model_of(made)
    with open_image(image) as opened:
        plan = plan or dense_plan(model.cell_shape(opened.shape[:2]), 1)
        return refine(opened, plan, model, Runtime.choose("cpu", "fp32"), floor=0.5)


def test_a_tile_does_not_depend_on_the_others(crowded: Pixels) -> None:
    made = disc_expert()
    every = tiles(refined(crowded, made).candidates)
    assert {home: len(finds) for home, finds in every.items()} == {
        home: len(finds) for home, finds in owned(crowded, made).items() if finds
    }
    rng = np.random.default_rng(1)
    whole = dense_plan((10, 9), 1)
    for _ in range(5):
        rows = rng.choice(len(whole), 20, replace=False)
        part = tiles(refined(crowded, made, whole.take(rows)).candidates)
        homes = {(int(y), int(x)) for y, x in whole.cell_corners[rows]}
        assert part == {home: finds for home, finds in every.items() if home in homes}


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0.3},
        {"cells": 20},
        {"recall": 0.7},
        {"recall": 0.7, "cap": "certain"},
        {"audit": 0.2, "budget": 0.6},
    ],
)
def test_partial_plans_give_the_finds_of_their_tiles(crowded: Pixels, options: dict[str, Any]) -> None:
    made = disc_expert()
    analysis = analyze(crowded, model_of(made), **options)
    homes = {(int(y), int(x)) for y, x in np.argwhere(analysis.refined)}
    assert len(homes) < 90 or "recall" in options
    part = {home: finds for home, finds in owned(crowded, made).items() if home in homes}
    same(found(analysis), in_image(once(part), crowded))


def test_masks_leave_out_tiles(crowded: Pixels) -> None:
    made, mask = disc_expert(), np.zeros(crowded.shape[:2], bool)
    mask[128:300, 70:400] = True
    analysis = analyze(crowded, model_of(made), mask=mask, budget=1.0)
    part = {(y, x): finds for (y, x), finds in owned(crowded, made).items() if 2 <= y <= 4 and 1 <= x <= 6}
    same(found(analysis), in_image(once(part), crowded))


def state_of(image: Any, made: Any, covered: NDArray[np.bool_], cap: Any = "seen") -> AuditState:
    model = model_of(made)
    closely = partial(refine, image, model=model, runtime=Runtime.choose("cpu", "fp32"), floor=0.5)
    known = closely(Plan(np.argwhere(covered), np.ones((covered.sum(), 2), int), np.ones(covered.sum()), covered.shape))
    return AuditState(model, np.full(covered.shape, 0.3, np.float32), covered, known.candidates, 0.5, closely, cap)


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("cap", ["seen", "certain"])
def test_blocks_are_exact_sums(crowded: Pixels, monkeypatch: pytest.MonkeyPatch, side: int, cap: Any) -> None:
    monkeypatch.setattr(audit_blocks, "BLOCK_SIDES", (side,))
    made = disc_expert(most=30)
    counts = np.zeros((12, 12), int)
    for (y, x), finds in owned(crowded, made).items():
        counts[y, x] = len(finds)
    covered = np.random.default_rng(0).random((10, 9)) < 0.3
    with open_image(crowded) as image:
        blocks = Blocks(state_of(image, made, covered, cap))
        counts[:10, :9][covered] = 0
        sums = counts.reshape(12 // side, side, -1, side).sum((1, 3))[: -(-10 // side), : -(-9 // side)].ravel()
        skipped = np.pad(~covered, ((0, 2), (0, 3))).reshape(12 // side, side, -1, side).sum((1, 3))
        skipped = skipped[: -(-10 // side), : -(-9 // side)].ravel()
        sums, skipped = sums[skipped > 0], skipped[skipped > 0]
        index = np.random.default_rng(1).permutation(len(blocks))[: len(blocks) // 2 + 1]
        held = blocks.look(index)
        assert held is not None
        assert held[0].tolist() == sums[index].tolist()
        assert (blocks.caps[0] >= sums).all()
        assert (blocks.caps[0] <= 30 * skipped).all()
        if cap == "certain":
            assert blocks.caps[0].tolist() == (30 * skipped).tolist()
            assert blocks.certain == (True,)


def test_most_finds_of_a_tile_are_the_best() -> None:
    image = scene(200, 200, 80, radius=3)
    made = disc_expert(most=3)
    wanted = {home: finds[:3] for home, finds in owned(image, made).items()}
    analysis = analyze(image, model_of(made), budget=1.0)
    same(found(analysis), in_image(once(wanted), image))
    full = sum(len(finds) == 3 for finds in wanted.values())
    assert full
    assert any(f"{full} tiles hold 3 finds" in note for note in analysis.notes)
    every = {home: len(finds) for home, finds in tiles(refined(image, made).candidates).items()}
    assert every == {home: len(finds) for home, finds in wanted.items() if finds}


def in_world(counts: NDArray[np.int64]) -> Any:
    """Refinement of a world of which only the number of finds in each tile is known."""

    def refine_world(plan: Plan) -> Refinement:
        cells = np.argwhere(plan.covered())
        held = counts[tuple(cells.T)]
        cells, ranks = np.repeat(cells, held, axis=0), np.concatenate([np.arange(n) for n in held])
        low = cells + 0.2 * ranks[:, None]
        none = np.zeros(len(cells), np.int32)
        candidates = Candidates(
            cells.astype(np.int32),
            np.full(len(cells), 0.9, np.float32),
            none.astype(np.int16),
            np.concatenate([low, low + 0.19], axis=1).astype(np.float32),
            none,
            ranks.astype(np.int32),
        )
        return Refinement(candidates, np.arange(len(plan)), len(cells) * 10**7, ())

    return refine_world


@pytest.mark.parametrize(("runs", "least"), [(10, 7), pytest.param(20, 15, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cap", ["seen", "certain"])
def test_certified_recall_holds(cap: Any, runs: int, least: int) -> None:
    """Of statements with a confidence of 0.9 at least so many hold: fewer do in 1 of 100 cases."""
    held, shares = 0, []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        rate = np.where(rng.random((70, 70)) < 0.2, 1.5, rng.choice([0.02, 0.05, 0.08]))
        counts = np.minimum(rng.poisson(rate), 4)
        covered, refine_world = rate > 1, in_world(counts)
        ones = np.ones((covered.sum(), 2), np.int64)
        known = refine_world(Plan(np.argwhere(covered), ones, ones[:, 0].astype(np.float32), (70, 70))).candidates
        model = model_of(disc_expert(tile=16, most=4))
        interest = (rate / 6).astype(np.float32)
        state = AuditState(model, interest, covered, known, 0.5, refine_world, cap)
        done = certify(state, 0.75, confidence=0.9, seed=seed)
        (part,) = done.audit.kinds
        held += part.found + part.missed_interval[1] >= counts.sum()
        shares.append(done.refined.mean())
        assert done.refined.all() or part.cap <= 4 * done.audit.side**2
        assert done.refined.all() or part.certain or cap == "seen"
    assert held >= least
    assert np.median(shares) < 0.6  # it was not all refined


def test_recall_of_an_image_is_certified(crowded: Pixels) -> None:
    analysis = analyze(crowded, model_of(disc_expert(most=20)), recall=0.7, cap="certain")
    assert analysis.audit is not None
    every = sum(map(len, owned(crowded, disc_expert(most=20)).values()))
    assert analysis.audit.found >= 0.7 * every


class Broken(Finder):
    """It fails on tiles in whose core a pixel of this grey lies."""

    def __init__(self, error: Exception, grey: int = 7) -> None:
        super().__init__(self._answer)
        self.error, self.grey = error, grey

    def _answer(self, pixels: Pixels) -> Any:
        if (pixels[:, 8:-8, 8:-8] == self.grey).any():
            raise self.error
        return [boxes_of(tile) for tile in pixels]


@pytest.mark.parametrize("options", [{"budget": 1.0}, {"recall": 0.9}, {"recall": 0.9, "cap": "certain"}])
def test_a_tile_that_fails_is_named_and_the_run_goes_on(crowded: Pixels, options: dict[str, Any]) -> None:
    image = crowded.copy()
    image[200, 300] = 7
    made = disc_expert(Broken(RuntimeError("no such luck")))
    analysis = analyze(image, model_of(made), **options)
    assert not analysis.complete
    assert analysis.failures == ("the expert failed on the tile at y=192, x=256: RuntimeError: no such luck",)
    assert not analysis.refined[3, 4]
    homes = {(int(y), int(x)) for y, x in np.argwhere(analysis.refined)}
    part = {home: finds for home, finds in owned(image, made).items() if home in homes}
    same(found(analysis), in_image(once(part), image))
    if "budget" in options:
        assert analysis.refined.sum() == 89
    assert analysis.cost.cells_refined == analysis.refined.sum()


def test_a_block_keeps_the_finds_beside_a_tile_that_fails(crowded: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_blocks, "BLOCK_SIDES", (2,))
    image = crowded.copy()
    image[:3, :3] = 7
    made = disc_expert(Broken(ValueError("bad")))
    wanted = owned(image, made)
    with open_image(image) as opened:
        blocks = Blocks(state_of(opened, made, np.zeros((10, 9), bool)))
        held = blocks.look(np.array([0]))
        assert held is not None
        assert held[0, 0] == sum(len(wanted[home]) for home in ((0, 1), (1, 0), (1, 1)))
        assert len(blocks.failures) == 1
        rest = blocks.pieces(1)[0]
        assert len(rest) == 86  # the tile that failed is not tried again


def answer_with(change: Any) -> Any:
    return lambda pixels: change([boxes_of(tile) for tile in pixels], len(pixels))


def nan(boxes: list[Any], _: int) -> Any:
    return [
        np.where(np.arange(6) == 1, np.nan, each) if len(each) else np.array([[0, 0, 1, np.nan, 0.9, 0]])
        for each in boxes
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (nan, "NaN"),
        (lambda _, n: [np.zeros((2, 3))] * n, r"shape \(2, 3\)"),
        (lambda boxes, _: [*boxes, *boxes], "2 answers for 1 tiles"),
        (lambda _, __: [], "0 answers for 1 tiles"),
        (lambda _, n: [np.array([[9, 9, 3, 3, 0.9, 0]])] * n, "corners, not sizes"),
        (lambda _, n: [np.array([[1, 1, 3, 3, 90, 0]])] * n, "scores from 90"),
        (lambda _, n: [np.array([[1, 1, 3, 3, 0.9, 5]])] * n, "class 5"),
        (lambda _, n: ["boxes"] * n, "expected"),
    ],
)
def test_answers_of_the_wrong_form_name_what_came(change: Any, text: str) -> None:
    made = disc_expert(answer_with(change))
    with pytest.raises(ExpertError, match=text):
        analyze(scene(200, 200), model_of(made), budget=1.0)


def test_an_expert_that_always_fails_ends_early() -> None:
    calls = Finder(lambda _: 1 / 0)
    with pytest.raises(ExpertError, match="ZeroDivisionError"):
        analyze(np.zeros((16 * 40, 16 * 40, 3), np.uint8), model_of(disc_expert(calls, tile=16)), budget=1.0)
    assert len(calls.calls) < 400


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_batches_are_halved_if_memory_runs_out(error: Exception, crowded: Pixels) -> None:
    def answer(pixels: Pixels) -> Any:
        if len(pixels) > 2:
            raise error
        return [boxes_of(tile) for tile in pixels]

    call = Finder(answer)
    made = disc_expert(call, batch=8)
    analysis = analyze(crowded, model_of(made), budget=1.0)
    assert analysis.complete
    assert not analysis.failures
    assert [note for note in analysis.notes if "memory" in note] == [
        "the expert ran out of memory: batches of 4 tiles from there on",
        "the expert ran out of memory: batches of 2 tiles from there on",
    ]
    assert [shape[0] for shape in call.calls][:3] == [8, 4, 2]
    same(found(analysis), in_image(once(owned(crowded, made)), crowded))
    assert analysis.cost.refine_macs == analysis.cost.exhaustive_macs


def test_an_expert_that_takes_single_tiles_only(crowded: Pixels) -> None:
    call = Finder(lambda pixels: [boxes_of(pixels[0])])  # the others of a batch are left out
    made = disc_expert(call)
    analysis = analyze(crowded, model_of(made), budget=1.0)
    assert analysis.complete
    assert any("1 answers for 8 tiles" in note for note in analysis.notes)
    assert [shape[0] for shape in call.calls].count(8) == 1
    same(found(analysis), in_image(once(owned(crowded, made)), crowded))


def test_finds_cut_at_the_edge_of_what_was_read_are_noted() -> None:
    image = np.full((256, 256, 3), 30, np.uint8)
    image[70:90, 100:156] = 200  # across the border of two tiles of 128 px, beyond the context of each
    image[0:40, 40:60] = 200  # at the edge of the image: whole as far as anyone knows
    image[200:256, 200:210] = 200
    wide = analyze(image, model_of(disc_expert(tile=128, context=32)), budget=1.0)
    assert len(wide.regions) == 3
    assert not wide.notes
    narrow = analyze(image, model_of(disc_expert(tile=128, context=8)), budget=1.0)
    assert sum(note.startswith("2 of 4 finds touch the edge") for note in narrow.notes) == 1


def test_ctrl_c_keeps_what_was_done(crowded: Pixels) -> None:
    calls: list[int] = []

    def answer(pixels: Pixels) -> Any:
        calls.append(len(pixels))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return [boxes_of(tile) for tile in pixels]

    made = disc_expert(answer)
    analysis = analyze(crowded, model_of(made), budget=1.0)
    assert not analysis.complete
    assert not analysis.failures
    assert analysis.refined.sum() == 32
    homes = {(int(y), int(x)) for y, x in np.argwhere(analysis.refined)}
    same(found(analysis), in_image(once({h: f for h, f in owned(crowded, made).items() if h in homes}), crowded))


def polygons(pixels: Pixels) -> Any:
    """Boxes as mappings, with an outline of four corners within each box."""
    made = []
    for tile in pixels:
        rows = boxes_of(tile)
        outlines = [
            np.array([((a + c) / 2, b), (c, (b + d) / 2), ((a + c) / 2, d), (a, (b + d) / 2)])
            for a, b, c, d in rows[:, :4]
        ]
        made.append({"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5], "polygons": outlines})
    return made


def test_resume_equals_an_uninterrupted_run(crowded: Pixels, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coarse2fine.steps.pieces.PIECE_PIXELS", 20 * 80**2)
    monkeypatch.setattr("coarse2fine.steps.pieces.ROUND_PIXELS", 20 * 80**2)
    model = model_of(disc_expert(polygons))
    calls: list[int] = []

    def stopping(pixels: Pixels) -> Any:
        calls.append(len(pixels))
        if len(calls) == 8:
            raise KeyboardInterrupt
        if len(pixels) > 4:
            raise MemoryError
        return polygons(pixels)

    def run(given: Any, checkpoint: Checkpoint) -> tuple[BandRun, Refinement]:
        with open_image(crowded) as image:
            made = BandRun(image, given, Config(budget=1.0), checkpoint)
            return made, made.refine(made.choose(made.look(None)[0]), None)

    whole = run(model, Checkpoint())[1]
    first, part = run(model_of(disc_expert(stopping)), StoredCheckpoint(tmp_path))
    assert part.interrupted
    assert len(part.done) < 90
    stored = StoredCheckpoint(tmp_path)
    second, rest = run(model, stored)
    assert stored.reused
    assert sorted(rest.done.tolist()) == list(range(90))
    for name, value in vars(whole.candidates).items():
        np.testing.assert_array_equal(getattr(rest.candidates, name), value)
    assert whole.candidates.ranks.max() > 0
    assert whole.candidates.sizes.max() == 4
    assert first.notes(Candidates.empty()) == second.notes(Candidates.empty())  # kept with the pieces
    assert len(second.notes(Candidates.empty())) == 1


def test_outlines_of_finds(crowded: Pixels) -> None:
    analysis = analyze(crowded, model_of(disc_expert(polygons)), budget=1.0)
    assert len(analysis.regions) > 100
    for region in analysis.regions:
        assert region.outline is not None
        y0, x0, y1, x1 = region.full_box
        ys, xs = zip(*region.outline, strict=True)
        np.testing.assert_allclose((min(ys), min(xs), max(ys), max(xs)), (y0, x0, y1, x1), atol=0.02)


def test_models_whose_cells_are_no_tiles_are_refused() -> None:
    made = disc_expert()
    model = model_of(made)
    with pytest.raises(ValueError, match="tiles of 64 px"):
        replace(
            model,
            geometry=replace(model.geometry, cell=128, scan_downsample=16, fine=2),
        )
