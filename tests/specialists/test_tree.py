"""Specialists in the product: windows against plain loops over cells, the account, model files, regions."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from coarse2fine import ModelError, analyze, load_model
from coarse2fine.fitting.specialists.first_stage import candidates
from coarse2fine.model import Model
from coarse2fine.models.box_head import BOX_CHANNELS, read_detections
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.column import Column
from coarse2fine.models.feature_groups import Groups
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.feature_tree import ROOT, FeatureTree
from coarse2fine.models.gate import Gate
from coarse2fine.models.routing import Specialists, features_at
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.detection import RunningDetection
from coarse2fine.refiners.protocol import RunningRefiner
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.tree import SpecialistTree
from coarse2fine.steps import refine
from coarse2fine.steps.plan import Plan, dense_plan
from coarse2fine.steps.scan import look
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from tests.refining import built_in, net, with_specialists

MakeImage = Callable[..., NDArray[np.uint8]]
GATE = Gate(0.2, 0.8)


def lively(spec: ColumnSpec, twins: FeatureMaps, count: int, parent: ColumnSpec | None, seed: int) -> list[Column]:
    torch.manual_seed(seed)
    columns = [Column(spec, twins, 2, parent=parent) for _ in range(count)]
    for p in (p for column in columns for p in column.parameters()):
        nn.init.normal_(p, std=0.1)
    return [column.eval() for column in columns]


def planted(model: Model, *, heads: bool) -> SpecialistTree:
    """A tree of depth 3 with random columns that begin at the first layer, of which some are pruned."""
    twins = FeatureMaps.of(net(model))
    spec = ColumnSpec.head(twins) if heads else candidates(twins, 6)[-1]
    specs = tuple(spec if heads else spec.narrowed(share) for share in (1, 0.5, 0.25))
    rng = np.random.default_rng(0)
    channels = twins.maps[-1].channels
    tree, _ = FeatureTree.root(300).split(
        ROOT, np.abs(rng.normal(0, 2, (300, channels))).astype(np.float32), 4, smallest=10, seed=0
    )
    columns = dict(enumerate(lively(spec, twins, 4, None, 1), start=1))
    for node, depth in ((1, 1), (2, 1), (5, 2), (7, 2)):
        above = None if heads else specs[depth - 1]
        width = channels + (above.stages[-1].channels if above else 0)
        points = np.abs(rng.normal(0, 2, (80, width))).astype(np.float32)
        tree, _ = tree.split(node, points, 2, smallest=2, seed=0, unread=channels if above else 0, scaled=not heads)
        below = lively(specs[depth], twins, 2, above, 10 + node)
        columns |= dict(zip(tree.children(node).tolist(), below, strict=True))
    kept = np.ones(len(tree), bool)
    kept[[3, 6]] = False
    shares = np.full((len(tree), 2), [0.7, 0.01], np.float32)
    tiles = {node: rng.integers(0, 255, (3, 12, 12, 3)).astype(np.uint8) for node in tree.leaves.tolist()}
    held = {node: column for node, column in columns.items() if kept[node]}
    return SpecialistTree(
        replace(tree, kept=kept), specs, held, GATE, 3.0 if heads else 400.0, ("left", "right"), shares, tiles
    )


def grouped(model: Model, block: int = 0) -> SpecialistGroups:
    """Random columns for groups of the refine net's features; with `block`, for groups of the scan's."""
    twins = FeatureMaps.of(net(model))
    spec = candidates(twins, 6)[-1 if block else 0]
    group = np.arange(model.base.high_channels if block else twins.maps[-1].channels) % 4 - 1
    groups = Groups(group.astype(np.int64), np.full(len(group), 1.2 if block else 0.4, np.float32))
    gate, macs = (Gate.always(), 400.0) if block else (GATE, 80.0)
    return SpecialistGroups(groups, spec, tuple(lively(spec, twins, 3, None, 5)), gate, macs, 2, block)


@pytest.fixture(scope="module", params=["tree", "heads", "groups", "scanned"])
def model(detector: Model, request: pytest.FixtureRequest) -> Model:
    tree = None if request.param == "groups" else planted(detector, heads=request.param == "heads")
    groups = {"groups": 0, "scanned": 3}.get(request.param)
    return with_specialists(detector, tree, None if groups is None else grouped(detector, groups))


def padded(pixels: NDArray[np.uint8], model: Model) -> NDArray[np.uint8]:
    """The image to whole cells and a halo, its edge repeated."""
    margin = model.refiner.margin
    cells = [-(-n // model.geometry.cell) for n in pixels.shape[:2]]
    ends = [(margin, c * 8 + margin - n) for c, n in zip(cells, pixels.shape[:2], strict=True)]
    return np.pad(pixels, (*ends, (0, 0)), mode="edge")


def dense_maps(pixels: NDArray[np.uint8], model: Model) -> tuple[Tensor, list[Tensor], Tensor]:
    """Input, features and answer of the whole, edge-padded image."""
    x = torch.from_numpy(
        ((padded(pixels, model) / 255 - np.array(model.mean)) / np.array(model.std)).astype(np.float32)
    )
    x = x.permute(2, 0, 1)[None]
    features = net(model).features(x)
    return x, features, net(model).head(features[-1])


def at_cell(layout: ColumnInputs, maps: list[Tensor], y: int, x: int) -> list[Tensor]:
    """What a column reads for one cell, by slices alone."""
    stride = layout.twins.stride
    found = []
    for m, twin, side in zip(maps, layout.maps, layout.sides(1), strict=True):
        top, left = y * stride // twin.jump, x * stride // twin.jump
        found.append(m[..., top : top + side, left : left + side])
    return found


def in_blocks(pixels: NDArray[np.uint8], model: Model, own: SpecialistGroups) -> NDArray[np.bool_]:
    """Which groups of the scan's features fire in each cell: those that fire anywhere in its block; by loops."""
    shape, spec = model.cell_shape(pixels.shape[:2]), model.base.spec
    box = Box(0, 0, *shape).scale(spec.stride).expand(spec.margin)
    seen = open_image(pixels).read_scaled(box, model.geometry.scan_downsample)
    x = torch.from_numpy(((seen / 255 - np.array(model.mean)) / np.array(model.std)).astype(np.float32))
    high = model.base.high(x.permute(2, 0, 1)[None])[0].numpy()
    fires = np.zeros((*shape, len(own.columns)), bool)
    for y, x_ in np.ndindex(*shape):
        top, left = y // own.block * own.block, x_ // own.block * own.block
        most = high[:, top : top + own.block, left : left + own.block].max(axis=(1, 2))
        above = most > own.groups.threshold
        fires[y, x_] = [above[own.groups.group == g].any() for g in range(len(own.columns))]
    return fires


@torch.inference_mode()
def plain(pixels: NDArray[np.uint8], model: Model) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The corrected answer of every cell, and its node, by loops."""
    x, features, out = dense_maps(pixels, model)
    nodes = np.zeros(out.shape[2:], np.int64)
    groups = built_in(model).groups
    scanned = in_blocks(pixels, model, groups) if groups and groups.block else None
    for cy, cx in np.ndindex(*out.shape[2:]):
        own = out[0, :-BOX_CHANNELS, cy, cx].clone()
        later = torch.zeros_like(own)
        if groups is not None and (groups.block or GATE.unsure(own[None])):
            high = features[-1][0, :, cy, cx].numpy()
            if scanned is None:
                fire = [g for g in range(3) if (high > groups.groups.threshold)[groups.groups.group == g].any()]
            else:
                fire = np.flatnonzero(scanned[cy, cx]).tolist()
            layout = groups.columns[0].layout
            parts = [groups.columns[g](at_cell(layout, layout.read(x, features), cy, cx))[0].flatten() for g in fire]
            added = torch.stack(parts).mean(dim=0) if parts else later
            own, later = (own + added, later) if scanned is None else (own, added)
        if (tree := model.tree) is not None:
            inputs = at_cell(tree.layout, tree.layout.read(x, features), cy, cx)
            stages: list[Tensor] = []
            node = ROOT
            while GATE.unsure(own[None]) and any(tree.clusters.kept[n] for n in tree.clusters.children(node)):
                node = int(tree.clusters.step(node, features_at(inputs[-1], stages))[0])
                if not tree.clusters.kept[node]:
                    break
                added, stages = tree.columns[node](inputs, stages)
                own = own + added.flatten()
            nodes[cy, cx] = node
        out[0, :-BOX_CHANNELS, cy, cx] = own + later
    return out[0].numpy(), nodes


def run(pixels: NDArray[np.uint8], model: Model, plan: Plan, runtime: Runtime, **options: object) -> refine.Refinement:
    image = open_image(pixels)
    learned = look(image, model, runtime).groups if model.scan_groups else None
    return refine.refine(image, plan, model, runtime, floor=0.3, **{"learned": learned, **options})  # type: ignore[arg-type]


def started(model: Model, runtime: Runtime) -> RunningRefiner:
    """Ready for an image of 10 by 10 cells."""
    return model.refiner.start(refine.context_of(model, runtime, (10, 10), 0.0))


def whole_plan(pixels: NDArray[np.uint8], model: Model, side: int = 0) -> Plan:
    shape = model.cell_shape(pixels.shape[:2])
    plan = dense_plan(shape)
    if side:
        corners = np.stack(np.meshgrid(*(np.arange(0, n, side) for n in shape), indexing="ij"), axis=-1).reshape(-1, 2)
        plan = Plan(corners, np.full((len(corners), 2), side), np.ones(len(corners), np.float32), shape)
    return plan


def assert_equal(found: Candidates, expected: Candidates) -> None:
    np.testing.assert_array_equal(found.cells, expected.cells)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.nodes, expected.nodes)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([0, 1, 2, 3]), st.integers(0, 3))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_windows_give_what_loops_over_all_cells_give(
    make_image: MakeImage, model: Model, runtime: Runtime, height: int, width: int, side: int, seed: int
) -> None:
    pixels = make_image(height, width, 3, seed=seed)
    out, nodes = plain(pixels, model)
    every = read_detections(torch.from_numpy(out)[None], np.zeros((1, 2), np.int64), 0.3)
    y, x = every.cells.T
    fine = run(pixels, model, whole_plan(pixels, model, side), runtime)
    assert_equal(fine.candidates, replace(every, nodes=nodes[y, x].astype(np.int32)))
    assert len(fine.done) == len(whole_plan(pixels, model, side))


@pytest.mark.parametrize("known", [0.0, 0.5])
def test_cells_that_the_base_did_not_scan_are_scanned_when_they_are_refined(
    make_image: MakeImage, detector: Model, runtime: Runtime, known: float
) -> None:
    model = with_specialists(detector, None, grouped(detector, 3))
    pixels = make_image(150, 130, seed=3)
    groups = look(open_image(pixels), model, runtime).groups
    assert groups is not None
    assert len(np.unique(groups)) > 2
    some = np.where(np.random.default_rng(0).random(groups.shape) < known, groups, 0).astype(np.uint16)
    plan = whole_plan(pixels, model, 2)
    whole, found = (run(pixels, model, plan, runtime, learned=each) for each in (groups, some))
    assert_equal(found.candidates, whole.candidates)
    assert found.macs > whole.macs


@pytest.mark.usefixtures("squares_by_macs")
def test_a_cascade_leaves_the_answer_of_what_is_refined_as_it_is(
    make_image: MakeImage, zoom_detector: Model, runtime: Runtime
) -> None:
    model = with_specialists(zoom_detector, None, grouped(zoom_detector, 3))
    model = replace(model, cascade=(replace(model.cascade[0], tau=0.5),))
    pixels = make_image(200, 200, seed=4)
    scan = look(open_image(pixels), model, runtime)
    assert scan.groups is not None
    assert 0 < (scan.groups > 0).mean() < 1
    plan = whole_plan(pixels, model, 2)
    plain_model = replace(model, cascade=())
    assert_equal(run(pixels, model, plan, runtime).candidates, run(pixels, plain_model, plan, runtime).candidates)
    for budget in (0.3, 0.6):
        assert analyze(pixels, model, budget=budget, precision="fp32").cost.share <= budget


def test_what_the_scan_chooses_keeps_to_a_mask_and_its_budget(make_image: MakeImage, detector: Model) -> None:
    model = with_specialists(detector, None, grouped(detector, 8))
    pixels, mask = make_image(400, 400, seed=5), np.zeros((400, 400), bool)
    mask[100:300, 60:200] = mask[350:380, 320:390] = True
    for budget in (0.3, 0.8):
        assert analyze(pixels, model, budget=budget, mask=mask, precision="fp32").cost.share <= budget
    options: dict[str, Any] = {"mask": mask, "precision": "fp32"}
    whole, again = (analyze(pixels, model, budget=b, **options) for b in (1.0, 1.9))
    assert whole.regions == again.regions


def test_the_exhaustive_pass_with_specialists_is_all_of_itself(
    make_image: MakeImage, detector: Model, model: Model
) -> None:
    pixels = make_image(160, 120, seed=1)
    bare, cost = (analyze(pixels, each, budget=1.0, precision="fp32").cost for each in (detector, model))
    assert cost.macs > bare.macs  # specialists ran
    assert cost.saved == 0


def test_specialists_change_answers_and_are_in_the_account(
    make_image: MakeImage, detector: Model, model: Model, runtime: Runtime
) -> None:
    pixels = make_image(160, 120, seed=1)
    plan = whole_plan(pixels, model, 4)
    bare, fine = run(pixels, detector, plan, runtime), run(pixels, model, plan, runtime)
    assert not np.array_equal(bare.candidates.scores, fine.candidates.scores)
    assert fine.macs > bare.macs == plan.macs(model.refiner_macs)
    assert model.window_macs(4, 4) > detector.window_macs(4, 4) == model.refiner_macs(4, 4)
    for batch_size in (1, 3):
        again = run(pixels, model, plan, runtime, batch_size=batch_size)
        assert_equal(again.candidates, fine.candidates)
        assert again.macs == fine.macs


def test_low_precision_runs_too(make_image: MakeImage, model: Model) -> None:
    pixels = make_image(160, 120, seed=1)
    low = analyze(pixels, model, budget=1.0, precision="bf16")
    full = analyze(pixels, model, budget=1.0, precision="fp32")
    assert low.cost.refine_macs == pytest.approx(full.cost.refine_macs, rel=0.05)
    assert abs(len(low.regions) - len(full.regions)) < 0.2 * len(full.regions)


def test_a_budget_holds_with_specialists(make_image: MakeImage, model: Model) -> None:
    pixels = make_image(320, 400, seed=5)
    for budget in (0.15, 0.5):
        assert analyze(pixels, model, budget=budget, precision="fp32").cost.share <= budget


def test_what_is_set_aside_for_specialists_is_not_exceeded(
    make_image: MakeImage, detector: Model, model: Model, runtime: Runtime
) -> None:
    pixels = make_image(160, 120, seed=1)
    plan = whole_plan(pixels, model, 4)
    capped, free = run(pixels, model, plan, runtime, capped=True), run(pixels, model, plan, runtime)
    assert plan.macs(model.refiner_macs) < capped.macs <= plan.macs(model.window_macs) < free.macs
    again = run(pixels, model, plan, runtime, capped=True, batch_size=2)
    assert_equal(again.candidates, capped.candidates)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_answer_within_a_budget_does_not_depend_on_chunks_and_batches(
    make_image: MakeImage, model: Model, tmp_path: Path, seed: int
) -> None:
    pixels = make_image(200, 264, seed=seed)
    sources: list[Any] = [pixels]
    for tile in (64, 208):
        sources.append(tmp_path / f"{tile}.tif")
        tifffile.imwrite(sources[-1], pixels, tile=(tile, tile), photometric="rgb")
    sources.append(tmp_path / "a.zarr")
    zarr.create_array(sources[-1], data=pixels, chunks=(96, 112, 3))
    found = [
        analyze(source, model, budget=0.4, threshold=0.3, precision="fp32", batch_size=batch_size)
        for source, batch_size in zip([*sources, pixels], (None, 1, None, 1, 1), strict=True)
    ]
    free = analyze(pixels, with_specialists(model), budget=0.4, threshold=0.3, precision="fp32")
    assert found[0].cost.refine_macs > 0
    assert found[0].regions != free.regions  # specialists were asked
    for other in found[1:]:
        assert other.regions == found[0].regions
        assert other.cost.refine_macs == found[0].cost.refine_macs


def test_after_an_interruption_waiting_cells_have_the_nets_own_answer(
    make_image: MakeImage, detector: Model, model: Model, runtime: Runtime
) -> None:
    if model.tree is None:
        pytest.skip("groups do not wait")
    pixels = make_image(80, 80, seed=2)
    _, _, out = dense_maps(pixels, model)
    running = started(with_specialists(model, tree=model.tree), runtime)
    running(padded(pixels, model)[None], np.zeros((1, 2), np.int64))
    late = running.abandon()
    cells, scores = late.cells, late.scores
    best = torch.sigmoid(out[0, :-BOX_CHANNELS].amax(dim=0)).detach().numpy()
    known = scores > 0  # cells that wait are read as impossible first
    np.testing.assert_allclose(scores[known], best[cells[known, 0], cells[known, 1]], atol=1e-5)
    assert len(np.unique(cells[known], axis=0)) == known.sum() == 100
    assert not model.tree.clusters.kept[late.nodes[late.nodes > 0]].any()


def test_a_model_with_specialists_survives_its_file(make_image: MakeImage, model: Model, tmp_path: Path) -> None:
    # Weights are saved in half precision, and stay what they are from then on.
    saved = load_model(model.save(tmp_path / "first.c2f"))
    again = load_model(saved.save(tmp_path / "second.c2f"))
    assert str(again) == str(saved) == str(model)
    assert "run where" in str(model)
    pixels = make_image(150, 130)
    first, second = (analyze(pixels, m, budget=1.0, precision="fp32") for m in (saved, again))
    assert first.regions == second.regions
    assert first.cost.macs == second.cost.macs
    if model.tree is not None and again.tree is not None:
        assert str(again.tree) == str(model.tree)
        for node, tiles in model.tree.tiles.items():
            np.testing.assert_array_equal(again.tree.tiles[node], tiles)


def test_regions_tell_their_way(make_image: MakeImage, detector: Model) -> None:
    model = replace(with_specialists(detector, planted(detector, heads=False)), threshold=0.3)
    assert model.tree is not None
    regions = analyze(make_image(150, 130), model, budget=1.0, precision="fp32").regions
    routes = {region.route for region in regions}
    assert any(len(route) == 3 for route in routes)
    for route in routes - {()}:
        assert model.tree.route(route[-1]) == route
        assert model.tree.clusters.parent[route[0]] == ROOT


def test_a_tree_prints_and_plots_itself(detector: Model, tmp_path: Path) -> None:
    tree = planted(detector, heads=False)
    text = str(tree).splitlines()
    assert text[0] == "10 of 12 specialists, run where a class has a probability of 0.2 to 0.8"
    assert len(text) == len(tree.clusters)
    assert "left 70%" in text[1]
    assert "right" not in text[1]
    assert sum("not run" in line for line in text) == 2
    assert tree.plot(tmp_path / "tree.png").stat().st_size > 5000


def test_columns_begin_where_the_net_last_becomes_coarser(detector: Model) -> None:
    twins = FeatureMaps.of(net(detector))
    specs = candidates(twins, 8)
    assert str(specs[0]) == "@4 4:8"
    assert specs[-1].first == 1
    assert all(ColumnInputs.of(spec, twins).border == 0 for spec in specs)


def test_an_interruption_at_the_very_end_is_told(
    make_image: MakeImage, detector: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Specialists) -> None:
        raise KeyboardInterrupt

    model = with_specialists(detector, planted(detector, heads=False))
    pixels = make_image(120, 120)
    assert analyze(pixels, model, budget=1.0).complete
    monkeypatch.setattr(Specialists, "flush", interrupt)
    assert not analyze(pixels, model, budget=1.0).complete


def test_only_what_was_refined_is_told_after_an_interruption(
    make_image: MakeImage, detector: Model, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes within the third batch, when its cells wait already."""
    model = with_specialists(detector, planted(detector, heads=False))
    pixels = make_image(160, 160)
    whole, calls = RunningDetection.__call__, Mock()

    def interrupted(running: RunningDetection, *args: Any) -> Candidates:
        found = whole(running, *args)
        calls()
        if calls.call_count == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(RunningDetection, "__call__", interrupted)
    plan = whole_plan(pixels, model, 2)
    fine = run(pixels, model, plan, runtime, batch_size=2)
    assert fine.interrupted
    assert len(fine.done) == 4
    covered = plan.take(fine.done).covered()
    assert len(fine.candidates.cells)
    assert covered[tuple(fine.candidates.cells.T // model.geometry.fine)].all()


def test_no_cell_is_lost_where_its_delivery_is_interrupted(
    make_image: MakeImage, detector: Model, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_specialists(detector, planted(detector, heads=False))
    interrupts: list[int] = []

    def read(*arguments: Any) -> Candidates:
        if interrupts and interrupts.pop():
            raise KeyboardInterrupt
        return read_detections(*arguments)

    monkeypatch.setattr("coarse2fine.refiners.detection.read_detections", read)
    running = started(model, runtime)
    running(padded(make_image(80, 80, seed=2), model)[None], np.zeros((1, 2), np.int64))
    interrupts.append(1)
    with pytest.raises(KeyboardInterrupt):
        running.flush()
    late = running.abandon()
    assert len(np.unique(late.cells[late.scores > 0], axis=0)) == 100


def test_memory_does_not_wait_for_the_garbage_collector(detector: Model, runtime: Runtime) -> None:
    gc.disable()
    try:
        model = with_specialists(detector, planted(detector, heads=False))
        running = started(model, runtime)
        assert model.tree is not None
        runner = model.tree.runner(runtime, lambda _: None)
        held = [weakref.ref(each) for each in (running, runner, runner.dispatch)]
        del running, runner
        assert [each() for each in held] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: replace(tree, specs=(tree.specs[0], ColumnSpec.parse("@2 3:4 3:4"))),
        lambda tree: replace(tree, columns={}),
        lambda tree: replace(tree, columns=dict(list(tree.columns.items())[1:])),
        lambda tree: replace(tree, specs=tree.specs[:1]),
        lambda tree: replace(tree, shares=tree.shares[1:]),
        lambda tree: replace(tree, clusters=replace(tree.clusters, kept=tree.clusters.kept[1:])),
    ],
)
def test_a_damaged_tree_is_refused(
    detector: Model, tmp_path: Path, damage: Callable[[SpecialistTree], SpecialistTree]
) -> None:
    broken = damage(planted(detector, heads=False))
    path = with_specialists(detector, broken).save(tmp_path / "broken.c2f")
    with pytest.raises(ModelError, match="does not describe a whole model"):
        load_model(path)
