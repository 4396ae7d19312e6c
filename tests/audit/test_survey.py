"""Audits against worlds whose every object is known, and against the exhaustive pass itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from coarse2fine import Audit, analyze
from coarse2fine.audit.blocks import AuditState, Blocks
from coarse2fine.audit.caps import fullest, object_cap, packed, spacing
from coarse2fine.audit.certify import certify
from coarse2fine.audit.pilot import MOST_OVER, Pilot, affordable
from coarse2fine.audit.result import Audited, Part
from coarse2fine.audit.survey import survey
from coarse2fine.config import Cap
from coarse2fine.fitting.matching import match
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.refiners.protocol import Label
from coarse2fine.refiners.suppress import suppress
from coarse2fine.results.folder import pooled_audit
from coarse2fine.steps.choose import choose
from coarse2fine.steps.plan import Plan, dense_plan
from coarse2fine.steps.refine import Refinement
from tests.refining import relabelled

MakeImage = Callable[..., NDArray[np.uint8]]
THRESHOLD = 0.5
CAPS: tuple[Cap, ...] = ("seen", "certain")


class World:
    """Objects on a grid of cells, a scan that sees some of them, and what refining any window finds."""

    def __init__(self, model: Model, seed: int, *, side: int = 160, objects: int = 400, blind: float = 0.1) -> None:
        rng = np.random.default_rng(seed)
        self.model = model
        cells = np.unique(rng.integers(0, side, (objects, 2)), axis=0).astype(np.int32)
        half = rng.uniform(0.2, 0.9, (len(cells), 2))
        boxes = np.hstack([cells + 0.5 - half, cells + 0.5 + half]).astype(np.float32)
        scores = rng.uniform(0.3, 1, len(cells)).astype(np.float32)
        self.every = Candidates(cells, scores, np.zeros(len(cells), np.int16), boxes, np.zeros(len(cells), np.int32))
        self.interest = rng.uniform(0, 2e-3, (side, side)).astype(np.float32)
        seen = rng.random(len(cells)) >= blind
        self.interest[tuple(cells[seen].T)] = rng.uniform(0.05, 1, int(seen.sum()))
        self.looks = 0

    def refine(self, plan: Plan) -> Refinement:
        self.looks += 1
        covered = plan.covered()
        found = self.every.take(covered[tuple(self.every.cells.T)])
        return Refinement(found, np.arange(len(plan)), plan.macs(self.model.window_macs), ())

    def state(self, tau: float = 0.1) -> AuditState:
        model = self.model
        plan = choose(self.interest, model.window, window_macs=model.window_macs, tau=tau)
        fine = self.refine(plan)
        return AuditState(model, self.interest, plan.covered(), fine.candidates, THRESHOLD, self.refine)

    def total(self) -> int:
        """What the exhaustive pass finds."""
        return len(suppress(self.every.take(self.every.scores >= THRESHOLD)))

    @property
    def exhaustive(self) -> int:
        return dense_plan(self.interest.shape).macs(self.model.refiner_macs)


@given(st.integers(0, 10**6), st.integers(5, 90), st.integers(0, 400), st.floats(0, 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_a_block_holds_depends_on_nothing_else(
    detector: Model, seed: int, side: int, objects: int, blind: float
) -> None:
    world = World(detector, seed, side=side, objects=objects, blind=blind)
    state = world.state()
    rng = np.random.default_rng(seed)
    blocks = Blocks(state)
    whole = blocks.look(np.arange(len(blocks)))
    assert whole is not None
    assert whole.max(initial=0) <= blocks.side**2
    assert whole.shape == (1, len(blocks))
    # With objects at the borders of blocks counted twice at most, nothing that the exhaustive pass finds is left out.
    assert len(state.finds()) + whole.sum() >= world.total()
    assert blocks.refined.all()
    assert blocks.finds() == (world.total(),)
    pieces, again = np.array_split(rng.permutation(len(blocks)), 4), Blocks(state)
    for piece in pieces:
        found = again.look(piece)
        assert found is not None
        np.testing.assert_array_equal(found, whole[:, piece])
    assert again.rest_macs == 0
    wide = Blocks(state)
    plan, costs, shares = wide.pieces(16)
    assert plan.macs(detector.window_macs) == costs.sum()
    assert len(plan) == 0 or shares.sum() == pytest.approx(1)
    seen = []
    for piece in np.array_split(np.arange(len(plan)), 2):
        looked = wide.look_widely(plan.take(piece))
        assert looked is not None
        index, found = looked
        np.testing.assert_array_equal(found, whole[:, index])
        seen.append(index)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(blocks)))
    assert wide.exhausted


def test_the_rest_is_all_that_was_not_refined(detector: Model) -> None:
    world = World(detector, 1)
    blocks = Blocks(world.state())
    blocks.look(np.arange(len(blocks))[::3])
    assert 0 < blocks.rest_macs <= world.exhaustive * 1.2
    blocks.look_at_rest()
    assert blocks.exhausted
    assert blocks.refined.all()
    assert blocks.finds() == (world.total(),)


def within(world: World, state: AuditState, recall: float, *, seed: int, confidence: float) -> Audited:
    """A certification that may cost 1.03 of the exhaustive pass, what came before included."""
    model = world.model
    before = (
        Plan.empty(state.cell_shape)
        if not state.covered.any()
        else choose(world.interest, model.window, window_macs=model.window_macs, tau=0.1)
    )
    left = int(MOST_OVER * dense_plan(state.cell_shape).macs(model.window_macs)) - before.macs(model.window_macs)
    result = certify(state, recall, confidence=confidence, seed=seed, most_macs=left)
    assert result.macs <= left
    return result


@pytest.mark.parametrize(("recall", "blind"), [(0.7, 0.05), (0.6, 0.2), (0.8, 1.0)])
def test_what_is_certified_is_true(detector: Model, recall: float, blind: float) -> None:
    runs, false, certified = 16, 0, 0
    for seed in range(runs):
        world = World(detector, seed, side=64, objects=400, blind=blind)
        result = within(world, world.state(), recall, seed=seed, confidence=0.8)
        assert result.audit.found == len(AuditState(*_outcome(world, result.candidates)).finds())
        certified += result.audit.certified
        false += result.audit.certified and result.audit.found < recall * world.total() * (1 - 1e-9)
    assert binomtest(false, runs, 0.2, alternative="less").pvalue < 0.05  # surely less often than stated
    assert certified > runs // 2


def test_what_many_blocks_hide_is_looked_for_in_large_pieces(detector: Model) -> None:
    """Of blocks that cost over five times their share one by one: half of the rest is cheaper as one piece."""
    side, band, squares, rng = 96, 48, 30, np.random.default_rng(0)
    world = World(detector, 0, side=side)
    seen = np.argwhere(np.ones((side, band), bool))[rng.random(side * band) < 0.7]
    corners = np.stack(np.divmod(rng.choice(24 * 12, squares, replace=False), 12), axis=1) * 4 + [0, band]
    hidden = (corners[:, None] + np.indices((4, 4)).reshape(2, -1).T).reshape(-1, 2)
    cells = np.concatenate([seen, hidden]).astype(np.int32)
    count, boxes = len(cells), np.hstack([cells + 0.1, cells + 0.9]).astype(np.float32)
    scores, nothing = np.full(count, 0.9, np.float32), np.zeros(count, np.int32)
    world.every = Candidates(cells, scores, nothing.astype(np.int16), boxes, nothing).distinct(side)
    world.interest[:] = 1e-3
    world.interest[:, :band] = 0.7
    state = world.state()
    assert len(state.finds()) < 0.9 * world.total()
    result = certify(state, 0.9, confidence=0.8, seed=0)
    assert result.audit.certified
    assert result.audit.found >= 0.9 * world.total()
    # Block by block it takes 1.36 of the exhaustive pass.
    assert result.macs < 0.8 * world.exhaustive


@pytest.mark.parametrize("draws", [0.02, 0.1, 0.4])
def test_a_dear_plan_leaves_enough_for_the_audit_of_what_it_leaves_out(detector: Model, draws: float) -> None:
    dense = dense_plan((1000, 1000))
    whole = dense.macs(detector.window_macs)
    pilot = replace(Pilot.none((1000, 1000)), macs=1, draws_macs=draws * whole)
    plan = affordable(dense, pilot, 0.06 * whole, dense, detector.window_macs)
    left = MOST_OVER * whole - 0.06 * whole - plan.macs(detector.window_macs)
    assert left >= draws * whole * (~plan.covered()).mean()
    assert plan.covered().mean() > 0.9


def test_a_sample_tells_recall(detector: Model) -> None:
    outside, errors, runs = 0, [], 40
    for seed in range(runs):
        world = World(detector, seed, side=64, objects=400, blind=0.2)
        result = survey(world.state(), world.exhaustive // 10, confidence=0.8, seed=seed)
        audit = result.audit
        # What is missed by the count of blocks: objects on the border of two count twice, which is the safe side.
        blocks = Blocks(world.state())
        every = blocks.look(np.arange(len(blocks)))
        assert every is not None
        drawn = audit.found - len(world.state().finds())
        left = int(every.sum()) - drawn
        low, high = audit.missed_interval
        outside += not low <= left <= high + drawn
        errors.append(audit.missed - left)
        assert result.macs == pytest.approx(world.exhaustive / 10, rel=0.5)
        assert low <= audit.missed <= high
        assert audit.recall_interval[0] <= audit.recall <= audit.recall_interval[1]
    assert binomtest(outside, runs, 0.2, alternative="greater").pvalue > 0.05
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(runs) + 5


def mixed(detector: Model, seed: int, blind: float = 0.6) -> tuple[World, NDArray[np.int32]]:
    """A lake that the scan sees whole, and discs beside it of which it is blind to a share."""
    model = relabelled(detector, Label("disc"), Label("lake", "area"))
    world = World(model, seed, side=120, objects=500, blind=blind)
    lake = np.argwhere(np.add.outer((np.arange(120) - 40) ** 2, (np.arange(120) - 40) ** 2) < 30**2).astype(np.int32)
    beside = world.every.take(((world.every.cells - 40) ** 2).sum(axis=1) > 34**2)
    count = len(lake)
    water = Candidates(
        lake,
        np.full(count, 0.9, np.float32),
        np.ones(count, np.int16),
        np.hstack([lake, lake + 1]).astype(np.float32),
        np.zeros(count, np.int32),
    )
    world.every = Candidates.concatenate([beside, water]).distinct(120)
    world.interest[tuple(lake.T)] = 0.9
    return world, lake


@pytest.mark.parametrize(("blind", "recall", "least"), [(0.6, 0.8, 0), (0.2, 0.4, 3)])
def test_an_area_certifies_nothing_of_the_objects_beside_it(
    detector: Model, blind: float, recall: float, least: int
) -> None:
    false, certified, runs = 0, 0, 5
    for seed in range(runs):
        world, lake = mixed(detector, seed, blind)
        result = within(world, world.state(), recall, seed=seed, confidence=0.8)
        sure = world.every.take((world.every.labels == 0) & (world.every.scores >= THRESHOLD))
        discs, found = len(suppress(sure)), {part.kind: part.found for part in result.audit.kinds}
        assert found["area"] <= len(lake)
        certified += result.audit.certified
        false += result.audit.certified and found["object"] < recall * discs
        worse = min(part.recall_interval[0] for part in result.audit.kinds)
        assert result.audit.recall_interval[0] == worse
        assert [part.confidence for part in result.audit.kinds] == pytest.approx([0.9, 0.9])
    assert certified >= least
    assert not false
    assert "objects at least" in str(result.audit)
    assert "cells of areas at least" in str(result.audit)


def test_samples_of_two_kinds_are_pooled_by_kind(detector: Model) -> None:
    audits, missed = [], np.zeros(2, np.int64)
    for seed in range(5):
        world, _ = mixed(detector, seed)
        state = world.state()
        result = survey(state, world.exhaustive // 8, confidence=0.9, seed=seed)
        audits.append(result.audit)
        every = replace(state, candidates=world.every).counts()
        missed += np.array(every) - [part.found for part in result.audit.kinds]
    whole = Audit.pooled(audits, confidence=0.9)
    assert [part.kind for part in whole.kinds] == ["object", "area"]
    for part, left in zip(whole.kinds, missed, strict=True):
        # Objects that two blocks share count in both.
        assert left <= part.missed_interval[1]
    assert whole.recall == min(part.recall for part in whole.kinds)
    assert "objects" in str(whole)


@pytest.mark.parametrize(("size", "step"), [(0.9, 1), (1.9, 2), (2.8, 3)])
def test_no_block_holds_more_than_its_cap_where_blind_spots_are_full(detector: Model, size: float, step: int) -> None:
    """What is seen lies far apart; what is hidden lies side by side."""
    rng = np.random.default_rng(step)
    side, hidden = 96, np.stack(np.meshgrid(np.arange(60, 92, step), np.arange(60, 92, step)), -1).reshape(-1, 2)
    seen = np.stack(np.meshgrid(np.arange(3, 50, 7), np.arange(3, 95, 7)), -1).reshape(-1, 2)
    cells = np.concatenate([seen, hidden]).astype(np.int32)
    half = size / 2 * rng.uniform(0.97, 1.03, (len(cells), 1))
    world = World(detector, 0, side=side)
    boxes = np.hstack([cells + 0.5 - half, cells + 0.5 + half]).astype(np.float32)
    count = len(cells)
    world.every = Candidates(
        cells, np.full(count, 0.9, np.float32), np.zeros(count, np.int16), boxes, np.zeros(count, np.int32)
    ).distinct(side)
    world.interest[:] = 0
    world.interest[tuple(seen.T)] = 0.9
    state = world.state()
    assert len(state.finds()) == len(seen)
    for cap in CAPS:
        blocks = Blocks(replace(state, cap=cap))
        holds = blocks.look(np.arange(len(blocks)))
        assert holds is not None
        assert holds.sum() >= len(hidden)
        assert (holds <= blocks.caps).all()
        assert cap == "seen" or all(blocks.certain)
    for block in (4, 8, 16):
        assert object_cap(state.finds(), block, spacing(state.finds())) >= fullest(world.every, block)


def test_points_in_a_square_are_no_more_than_packed() -> None:
    for side, distance in ((4.0, 1.0), (5.0, 2.0), (10.0, 3.0), (1.0, 5.0)):
        rows = int(side / (distance * math.sqrt(3) / 2) + 1e-9) + 1
        hexagonal = sum(int((side - (row % 2) * distance / 2) / distance + 1e-9) + 1 for row in range(rows))
        square = (int(side / distance + 1e-9) + 1) ** 2
        assert packed(side, distance) >= max(hexagonal, square)
        assert packed(side, distance) < 2 * max(hexagonal, square) + 2
    assert packed(4, 0) == math.inf


def test_the_cap_is_said_if_it_is_assumed() -> None:
    part = Part("object", 95, 1.0, (0, 4), 0.95, 6.0, certain=False)
    assumed = Audit((part,), 0.95, 100, 40, 4, 0.9)
    assert "with 95% confidence if no block of 4 x 4 cells holds more than 6 finds" in str(assumed)
    assert "if no block" not in str(replace(assumed, kinds=(replace(part, certain=True),)))
    assert assumed.to_json()["certain"] is False


def test_audits_are_pooled(detector: Model) -> None:
    audits, found, missed = [], 0, 0
    for seed in range(12):
        world = World(detector, seed, objects=800, blind=0.05)
        result = survey(world.state(), world.exhaustive // 10, confidence=0.95, seed=seed)
        audits.append(result.audit)
        found += result.audit.found
        missed += world.total() - result.audit.found
    whole = Audit.pooled(audits, target=0.7)
    assert whole.found == found
    assert whole.blocks == sum(a.blocks for a in audits)
    assert whole.missed == pytest.approx(sum(a.missed for a in audits))
    low, high = whole.missed_interval
    assert low <= missed <= high
    assert whole.recall_interval[0] > max(a.recall_interval[0] for a in audits) - 0.02
    assert whole.certified
    assert "recall at least" in str(whole)
    world = World(detector, 0, objects=800)
    single = certify(world.state(), 0.9, confidence=0.95, seed=0).audit
    with pytest.raises(ValueError, match=r"only random samples can be pooled: analyse every image with audit=0\.01"):
        Audit.pooled([*audits, single])
    assert Audit.pooled([None, *audits, None], target=0.7) == whole
    with pytest.raises(ValueError, match="only random samples can be pooled"):
        Audit.pooled([None])


def test_audits_of_version_0_1_are_read(detector: Model) -> None:
    record = {
        "found": 61,
        "missed": 2.5,
        "missed_interval": [0, 9],
        "recall": 0.96,
        "recall_interval": [0.87, 1.0],
        "confidence": 0.95,
        "cap": 3,
        "blocks": 256,
        "audited": 20,
        "side": 8,
        "target": None,
        "certified": False,
        "sample": None,
    }
    audit = Audit.from_json(record)
    assert (audit.found, audit.missed, audit.missed_interval, audit.cap) == (61, 2.5, (0, 9), 3)
    assert Audit.from_json(audit.to_json()) == audit


def test_too_few_objects_end_at_the_exhaustive_pass(detector: Model) -> None:
    world = World(detector, 3, objects=12)
    result = certify(world.state(), 0.95, confidence=0.95, seed=0)
    assert result.refined.all()
    assert result.audit.certified
    assert result.audit.recall_interval == (1.0, 1.0)
    assert result.audit.found == world.total()
    assert "nothing was skipped" in str(result.audit)
    silent = survey(world.state(), world.exhaustive // 50, confidence=0.95, seed=0, if_telling=True)
    assert silent.macs == 0
    assert math.isnan(silent.audit.recall)
    assert "recall unknown" in str(silent.audit)
    drawn = survey(world.state(), world.exhaustive // 50, confidence=0.95, seed=0)
    assert drawn.macs > 0
    assert "too few finds for so small a sample" in str(drawn.audit)


def test_a_limit_ends_a_certification(detector: Model) -> None:
    world = World(detector, 4, objects=300, blind=0.5)
    state = world.state()
    before = len(state.finds())
    for share in (0.0, 0.02, 0.2):
        result = certify(state, 0.95, confidence=0.95, seed=0, most_macs=int(share * world.exhaustive))
        assert result.macs <= share * world.exhaustive
        assert not result.audit.certified
        assert result.audit.recall_interval[0] < 0.95
        assert result.audit.found >= before
        assert "95% is not certified" in str(result.audit)
        # Where nothing was drawn, nothing is known of what was missed; it is not none.
        assert math.isnan(result.audit.recall) == (result.audit.audited == 0)
    spent = certify(state, 0.95, confidence=0.999, seed=0, most_macs=-world.exhaustive)
    assert spent.macs == 0
    assert "with 99.9% confidence" in str(spent.audit)


def test_interrupted_work_is_kept_and_claims_nothing(detector: Model) -> None:
    world = World(detector, 5, objects=600)
    state = world.state()

    def broken(plan: Plan) -> Refinement:
        fine = world.refine(plan.take(np.arange(len(plan) // 2)))
        return replace(fine, interrupted=True)

    for result in (
        survey(replace(state, refine=broken), world.exhaustive // 10, confidence=0.95, seed=0),
        certify(replace(state, refine=broken), 0.9, confidence=0.95, seed=0),
    ):
        assert result.interrupted
        assert result.audit.audited == 0
        assert not result.audit.certified
        assert result.audit.found >= len(state.finds())
        assert result.refined.sum() > state.covered.sum()


def test_what_cannot_be_read_is_not_missed(detector: Model) -> None:
    world = World(detector, 6, objects=600)
    state = world.state()

    def damaged(plan: Plan) -> Refinement:
        good = np.flatnonzero(plan.cell_corners[:, 0] >= 16)
        fine = world.refine(plan.take(good))
        return replace(fine, done=good, failures=("chunk (0, 0) is damaged",) if len(good) < len(plan) else ())

    result = certify(replace(state, refine=damaged), 0.9, confidence=0.95, seed=0)
    assert result.audit.certified
    assert not result.interrupted
    assert set(result.failures) <= {"chunk (0, 0) is damaged"}


def test_the_same_seed_gives_the_same_audit(detector: Model) -> None:
    results = [certify(World(detector, 7, objects=1500).state(), 0.7, confidence=0.9, seed=s) for s in (1, 1, 2)]
    assert results[0].audit == results[1].audit
    np.testing.assert_array_equal(results[0].refined, results[1].refined)
    assert not np.array_equal(results[0].refined, results[2].refined)


def test_a_certified_analysis_against_the_exhaustive_pass(make_image: MakeImage, detector: Model) -> None:
    pixels, picky = make_image(900, 1100), replace(detector, tau=1.5)
    with (
        analyze(pixels, picky, budget=1.0, precision="fp32") as whole,
        analyze(pixels, picky, recall=0.8, confidence=0.9, precision="fp32") as part,
    ):
        pass
    mine, theirs = (np.array([r.full_box for r in a.regions]) for a in (part, whole))
    centres = (mine[:, :2] + mine[:, 2:]) / 2, (theirs[:, :2] + theirs[:, 2:]) / 2
    scores = np.array([r.score for r in part.regions], np.float32)
    owner = match(centres[0], scores, centres[1], np.full(len(theirs), 4.0))
    assert part.audit is not None
    assert part.audit.certified
    assert (owner >= 0).sum() >= 0.8 * len(whole.regions)
    # Boxes wholly beyond the border are no regions, nor are means of boxes that overlap where finds crowd.
    assert part.audit.found == pytest.approx(len(part.regions), rel=0.04)
    assert part.cost.audit_macs > 0
    assert part.cost.cells_refined == part.refined.sum()
    assert part.cost.macs == part.cost.scan_macs + part.cost.refine_macs + part.cost.audit_macs
    assert part.complete
    record = part.summary()
    assert record["audit"]["target"] == 0.8
    assert record["audit"]["certified"] is True
    assert record["parameters"]["recall"] == 0.8
    assert "audit  recall at least" in str(part)
    assert whole.audit is None


def test_an_exhaustive_analysis_needs_no_audit_to_be_certain(make_image: MakeImage, detector: Model) -> None:
    with analyze(make_image(200, 240), detector, budget=1.0, recall=0.99) as analysis:
        assert analysis.audit is not None
        assert analysis.audit.recall_interval == (1.0, 1.0)
        assert analysis.cost.audit_macs == 0
        assert "nothing was skipped" in str(analysis)


def test_a_sample_is_part_of_the_budget(make_image: MakeImage, detector: Model) -> None:
    pixels = make_image(800, 800)
    with analyze(pixels, detector, budget=0.4, audit=0.1) as sampled, analyze(pixels, detector, budget=0.4) as plain:
        assert plain.audit is None
        assert sampled.audit is not None
        assert sampled.audit.audited > 0
        assert sampled.cost.refine_macs < plain.cost.refine_macs
        assert sampled.cost.share <= 0.42  # the sample's size is right in the mean
        json = sampled.summary()["audit"]
        assert json["audited"] == sampled.audit.audited
        assert json["recall_interval"][0] <= json["recall"]


def test_cells_of_areas_count_one_by_one(make_image: MakeImage, detector: Model) -> None:
    model = relabelled(detector, *(Label(label.name, "area") for label in detector.labels))
    with analyze(make_image(300, 300), model, recall=0.9) as analysis:
        assert analysis.audit is not None
        assert analysis.audit.certified


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recall": 1.0}, r"recall must be a share of the finds, such as 0\.95; got 1\.0"),
        ({"recall": 0.9, "confidence": 1}, "confidence must be a probability"),
        ({"audit": 1.0}, "audit must be a share of the exhaustive pass's cost"),
        ({"audit": -0.1}, "audit must be a share"),
        ({"recall": 0.9, "audit": 0.1}, "give recall or audit, not both"),
        ({"recall": 0.9, "cells": 10}, "recall and cells exclude each other"),
        ({"audit": 0.1, "seconds": 10}, "a random sample has a fixed size"),
        ({"audit": 0.5, "budget": 0.4}, "does not pay for the scan and the audit"),
    ],
)
def test_demands_that_contradict_each_other(
    make_image: MakeImage, detector: Model, parameters: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        analyze(make_image(100, 100), detector, **parameters)  # type: ignore[arg-type]


def test_a_model_that_seeks_nothing_has_no_recall(make_image: MakeImage, explorer: Model) -> None:
    for parameters in ({"recall": 0.9}, {"audit": 0.01}):
        with pytest.raises(ValueError, match="tiny explorer was not fitted to anything"):
            analyze(make_image(100, 100), explorer, **parameters)  # type: ignore[arg-type]
    with analyze(make_image(100, 100), explorer) as analysis:
        assert analysis.audit is None


def _outcome(
    world: World, candidates: Candidates
) -> tuple[Model, NDArray[np.float32], NDArray[np.bool_], Candidates, float, Callable[[Plan], Refinement]]:
    covered = np.ones(world.interest.shape, bool)
    return world.model, world.interest, covered, candidates, THRESHOLD, world.refine


MARS = Path(__file__).resolve().parents[3] / "shared" / "data" / "mars" / "MC11E-A.png"


@pytest.mark.skipif(not MARS.is_file(), reason="the Mars scenes are not there")
@pytest.mark.parametrize(("side", "recall"), [(800, 0.9), (1400, 0.8), (1400, 0.95)])
def test_a_certification_costs_no_more_than_the_exhaustive_pass(side: int, recall: float) -> None:
    pixels = np.asarray(cv2.imread(str(MARS), cv2.IMREAD_GRAYSCALE), np.uint8)[:side, :side]
    with analyze(pixels, "craters", budget=1.0) as whole, analyze(pixels, "craters", recall=recall) as part:
        pass
    assert part.audit is not None
    assert part.audit.certified
    assert part.cost.macs <= 1.03 * whole.cost.macs
    assert len(part.regions) >= recall * len(whole.regions)


def test_images_refined_whole_say_nothing_of_others(detector: Model) -> None:
    world = World(detector, 0, side=40, objects=60)
    sampled = {"audit": survey(world.state(), world.exhaustive // 10, confidence=0.95, seed=0).audit.to_json()}
    done = replace(world.state(), covered=np.ones((40, 40), bool))
    whole = {"audit": survey(done, 0, confidence=0.95, seed=0).audit.to_json()}
    assert pooled_audit([whole, {"audit": None}]) is None
    assert pooled_audit([{}, {}]) is None
    for facts, number in (([whole, whole], 2), ([whole, sampled, {}], 2)):
        pooled = pooled_audit(facts)
        assert pooled is not None
        assert pooled[1] == number


def test_nothing_is_said_of_recall_where_nobody_asked(make_image: MakeImage, detector: Model) -> None:
    with analyze(make_image(300, 300), replace(detector, threshold=0.99, tau=3.9)) as analysis:
        assert analysis.audit is None
        assert "recall" not in str(analysis)


def test_an_area_that_was_found_hides_no_object_beside_it(detector: Model) -> None:
    """Eight boats along a known shore, each of about a fine cell: a look at their blocks finds all of them."""
    model = relabelled(detector, Label("boat"), Label("lake", "area"))
    rows = np.arange(8, dtype=np.int32) * 2
    shore, boats = (np.stack([rows, np.full(8, x, np.int32)], axis=1) for x in (7, 8))

    def of(cells: NDArray[np.int32], label: int, left: float) -> Candidates:
        y = cells[:, :1].astype(np.float32)
        boxes = np.hstack([y + 0.05, np.full_like(y, left), y + 0.95, np.full_like(y, left + 0.95)])
        count = len(cells)
        scores, labels = np.full(count, 0.9, np.float32), np.full(count, label, np.int16)
        return Candidates(cells, scores, labels, boxes, np.zeros(count, np.int32))

    lake, found = of(shore, 1, 7.0), of(boats, 0, 7.1)
    covered = np.zeros((16, 16), bool)
    covered[:, :8] = True

    def refine(plan: Plan) -> Refinement:
        return Refinement(found, np.arange(len(plan)), plan.macs(model.window_macs), ())

    state = AuditState(model, np.full((16, 16), 0.01, np.float32), covered, lake, 0.5, refine)
    blocks = Blocks(state)
    seen = blocks.look(np.arange(len(blocks)))
    assert seen is not None
    assert seen.sum(axis=1).tolist() == [8, 0]
