"""Windows, budgets and the whole story against one plain dense pass."""

from __future__ import annotations

import functools
import gc
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from torch.utils.flop_counter import FlopCounterMode

from coarse2fine import ImageError, analyze
from coarse2fine.model import Geometry, Model, load_model
from coarse2fine.models.box_head import read_detections
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.refiners.protocol import Label
from coarse2fine.refiners.suppress import merged
from coarse2fine.steps import plan as planning
from coarse2fine.steps import refine
from coarse2fine.steps.plan import Plan, dense_plan
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.opening import open_image
from tests.refining import built_in, net, relabelled

MakeImage = Callable[..., NDArray[np.uint8]]
WriteImage = Callable[[Path, NDArray[np.uint8]], None]
Found = tuple[float, str, tuple[float, ...]]


def dense(pixels: NDArray[np.uint8], model: Model) -> NDArray[np.float32]:
    """The refine net's whole output map: one call on the edge-padded image."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[-1] != model.channels:
        pixels = np.repeat(pixels, model.channels, axis=-1)
    spec = net(model).spec
    cells = [ceil_div(n, model.geometry.cell) for n in pixels.shape[:2]]
    ends = [
        (spec.margin, c * model.geometry.cell + spec.margin - n) for c, n in zip(cells, pixels.shape[:2], strict=True)
    ]
    padded = np.pad(pixels, (*ends, (0, 0)), mode="edge")
    x = ((padded / 255 - np.array(model.mean)) / np.array(model.std)).astype(np.float32)
    with torch.inference_mode():
        return net(model)(torch.from_numpy(x).permute(2, 0, 1)[None])[0].numpy()  # type: ignore[no-any-return]


def plain_answer(pixels: NDArray[np.uint8], model: Model, threshold: float) -> list[Found]:
    """Loops over all cells, then merging (which has oracles of its own), then clipping."""
    out = dense(pixels, model)
    score = 1 / (1 + np.exp(-out[:-4].max(axis=0)))
    label, cell = out[:-4].argmax(axis=0), model.geometry.fine_cell
    found = []
    for y, x in np.ndindex(score.shape):
        if score[y, x] >= threshold:
            dy, dx, log_h, log_w = out[-4:, y, x].astype(float)
            h, w = (math.exp(min(max(v, -4), 6)) for v in (log_h, log_w))
            cy, cx = y + 0.5 + dy, x + 0.5 + dx
            box = tuple(v * cell for v in (cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2))
            found.append((float(score[y, x]), model.labels[label[y, x]].name, box))
    names = [label.name for label in model.labels]
    boxes = np.array([box for *_, box in found], np.float32).reshape(-1, 4) / np.float32(cell)
    cells = np.arange(len(found), dtype=np.int32)[:, None].repeat(2, axis=1)
    scores = np.array([s for s, *_ in found], np.float32)
    labels = np.array([names.index(k) for _, k, _ in found], np.int16)
    once = merged(Candidates(cells, scores, labels, boxes, np.zeros(len(found), np.int32)))
    rows = zip(once.cells[:, 0].tolist(), (once.boxes.astype(float) * cell).tolist(), strict=True)
    kept = sorted(((*found[i][:2], tuple(box)) for i, box in rows), reverse=True)
    high = pixels.shape[:2] * 2
    clipped = [(s, k, tuple(min(max(v, 0), n) for v, n in zip(b, high, strict=True))) for s, k, b in kept]
    return [(s, k, b) for s, k, b in clipped if b[2] > b[0] and b[3] > b[1]]


def assert_same(analysis: Any, expected: list[Found]) -> None:
    found = [(r.score, r.label, r.full_box) for r in analysis.regions]
    assert [k for _, k, _ in found] == [k for _, k, _ in expected]
    np.testing.assert_allclose([s for s, *_ in found], [s for s, *_ in expected], atol=1e-5)
    np.testing.assert_allclose([b for *_, b in found], [b for *_, b in expected], atol=1e-2)


@given(st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_windows_equal_the_dense_pass(
    make_image: MakeImage, detector: Model, explorer: Model, runtime: Runtime, data: st.DataObject
) -> None:
    model = data.draw(st.sampled_from([detector, explorer]))
    height, width = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    pixels = make_image(height, width, data.draw(st.sampled_from([1, 3])), seed=width)
    shape, fine = model.cell_shape((height, width)), model.geometry.fine
    windows = data.draw(
        st.lists(
            st.tuples(*(st.integers(0, n - 1) for n in shape), *[st.sampled_from([1, 2, 3, 8])] * 2),
            min_size=1,
            max_size=6,
        )
    )
    rows = np.array(windows, np.int64)
    plan = Plan(rows[:, :2], rows[:, 2:], np.ones(len(rows), np.float32), shape)
    whole, seen = dense(pixels, model), []

    def read(out: torch.Tensor, corners: NDArray[np.int64], *_: object) -> Candidates:
        for answer, (y, x) in zip(out.numpy(), corners.tolist(), strict=True):
            inside = whole[:, y : y + answer.shape[1], x : x + answer.shape[2]]
            np.testing.assert_allclose(answer[:, : inside.shape[1], : inside.shape[2]], inside, atol=1e-4)
            seen.append((y // fine, x // fine, *(n // fine for n in answer.shape[1:])))
        return Candidates.empty()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.refiners.detection.read_detections", read)
        patch.setattr("coarse2fine.refiners.novelty.read_novelties", read)
        fine_result = refine.refine(open_image(pixels), plan, model, runtime, floor=0.0)
    assert sorted(seen) == sorted(windows)
    assert sorted(fine_result.done.tolist()) == list(range(len(windows)))
    assert fine_result.macs == sum(model.window_macs(*window[2:]) for window in windows)


@pytest.mark.parametrize("dense_side", [3, 128])
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(131, 97, 3), (64, 120, 1), (1, 1, 3), (9, 50, 3), (40, 7, 3)]
)
def test_the_exhaustive_pass_equals_a_plain_loop(
    make_image: MakeImage,
    detector: Model,
    monkeypatch: pytest.MonkeyPatch,
    height: int,
    width: int,
    channels: int,
    dense_side: int,
) -> None:
    monkeypatch.setattr(planning, "DENSE_SIDE", dense_side)
    pixels = make_image(height, width, channels, seed=3)
    analysis = analyze(pixels, detector, budget=1.0, precision="fp32")
    expected = plain_answer(pixels, detector, detector.threshold)
    assert len(expected) > 5 or height * width < 1000
    assert_same(analysis, expected)
    assert analysis.refined.all()
    assert analysis.complete
    assert analysis.cost.scan_macs == 0
    assert analysis.interest.size == 0


@pytest.mark.parametrize(("height", "width"), [(1000, 130), (131, 1048), (1040, 1040), (1, 700), (640, 768)])
def test_the_exhaustive_pass_costs_what_one_call_on_the_whole_image_does(
    make_image: MakeImage, detector: Model, height: int, width: int
) -> None:
    pixels = make_image(height, width, seed=3)
    with FlopCounterMode(display=False) as counter:
        analysis = analyze(pixels, detector, budget=1.0, precision="fp32")
    spent = counter.get_total_flops() // 2
    assert analysis.cost.macs == spent == analysis.cost.exhaustive_macs
    with FlopCounterMode(display=False) as counter:
        dense(pixels, detector)
    assert spent <= 1.03 * counter.get_total_flops() // 2


@functools.cache
def _embedded(name: str) -> Model:
    return load_model(name)


@pytest.mark.parametrize(("name", "most"), [("craters", 1.03), ("digits", 1.045), ("generic", 1.003)])
@given(
    st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, 3000) | st.integers(n, n + 9))),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_exhaustive_pass_of_any_shape_costs_little_more_than_one_window(
    name: str, most: float, shape: tuple[int, int]
) -> None:
    model = _embedded(name)  # the wider the field, the more halos cost
    for cells in (shape, shape[::-1]):
        one_window = model.refiner.macs(*(n * model.geometry.fine for n in cells))
        assert dense_plan(cells).macs(model.refiner_macs) <= most * one_window


def test_coarser_planes_equal_a_plain_loop_on_a_smaller_image(make_image: MakeImage, detector: Model) -> None:
    small = make_image(120, 84, seed=9)
    coarse = replace(built_in(detector), downsample=2)
    model = replace(detector, geometry=Geometry(16, 4, 2), refiner=coarse)
    expected = plain_answer(small, detector, detector.threshold)
    assert len(expected) > 5
    twice = [(s, k, tuple(2 * v for v in b)) for s, k, b in expected]
    assert_same(analyze(np.kron(small, np.ones((2, 2, 1), np.uint8)), model, budget=1.0, precision="fp32"), twice)


def test_a_partial_pass_finds_what_the_dense_pass_finds_there(make_image: MakeImage, detector: Model) -> None:
    pixels = make_image(150, 170, seed=4)
    out = dense(pixels, detector)
    analysis = analyze(pixels, detector, budget=0.5, precision="fp32")
    assert 0.1 < analysis.refined.mean() < 0.6
    assert len(analysis.regions) > 5
    sure = {}
    with torch.inference_mode():
        every = read_detections(torch.from_numpy(out)[None], np.zeros((1, 2), np.int64), detector.threshold)
    for (y, x), score in zip(every.cells.tolist(), every.scores.tolist(), strict=True):
        if analysis.refined[y, x]:
            sure[round(score, 4)] = True
    assert all(round(r.score, 4) in sure for r in analysis.regions)


@pytest.mark.parametrize("budget", [0.1, 0.2, 0.4, 0.6, 0.9])
def test_a_budget_holds_and_is_used(make_image: MakeImage, detector: Model, budget: float) -> None:
    pixels = make_image(320, 400, seed=5)
    analysis = analyze(pixels, detector, budget=budget, precision="fp32")
    assert analysis.cost.share <= budget
    assert analysis.cost.share > 0.8 * budget - 0.02
    assert len(analysis.plan) > 0
    assert np.all(np.diff(analysis.plan.scores) <= 0)
    assert analysis.cost.cells_refined == analysis.refined.sum()
    assert analysis.cost.scan_macs + analysis.cost.refine_macs == analysis.cost.macs


def test_more_budget_refines_more(make_image: MakeImage, detector: Model) -> None:
    pixels = make_image(240, 240, seed=6)
    maps = [analyze(pixels, detector, budget=b, precision="fp32").refined for b in (0.1, 0.2, 0.35, 0.5, 0.7)]
    for less, more in itertools.pairwise(maps):
        assert more[less].all()
        assert more.sum() > less.sum()


def test_a_budget_below_the_scan_is_refused_and_leaves_no_open_file(
    tmp_path: Path, make_image: MakeImage, detector: Model
) -> None:
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, make_image(160, 160), tile=(64, 64))
    with pytest.raises(ValueError, match=r"does not pay for the scan, which alone costs 0\.\d+"):
        analyze(path, detector, budget=0.01)
    gc.collect()  # an open file would warn here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "budget must be a positive share"),
        ({"budget": -1.0}, "budget must be a positive share"),
        ({"budget": math.nan}, "budget must be a positive share"),
        ({"threshold": 0.0}, "threshold must be a probability"),
        ({"threshold": 1.0}, "threshold must be a probability"),
        ({"precision": "fp8"}, "precision must be"),
        ({"device": "abacus"}, "cannot be used here"),
    ],
)
def test_parameters_out_of_range(detector: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze(np.zeros((20, 20), np.uint8), detector, **options)


def test_the_answer_does_not_depend_on_batches_or_rounds(
    make_image: MakeImage, detector: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = make_image(200, 180, seed=7)
    first = analyze(pixels, detector, budget=0.5, precision="fp32")
    assert analyze(pixels, detector, budget=0.5, precision="fp32").regions == first.regions
    plain: list[Found] = [(r.score, r.label, r.full_box) for r in first.regions]
    assert len(plain) > 5
    for pixels_at_once, in_round in ((1, 2**26), (10**8, 2**26), (5000, 8000), (600_000, 1)):
        monkeypatch.setattr(refine, "_BATCH_PIXELS", pixels_at_once)
        monkeypatch.setattr(refine, "ROUND_PIXELS", in_round)
        again = analyze(pixels, detector, budget=0.5, precision="fp32")
        assert_same(again, plain)
        assert again.cost.refine_macs == first.cost.refine_macs


def test_low_precision_does_not_wear_off_on_the_model(make_image: MakeImage, detector: Model) -> None:
    pixels = make_image(120, 120, seed=8)
    before = analyze(pixels, detector, precision="fp32").regions
    low = analyze(pixels, detector, precision="bf16")
    assert low.provenance["parameters"]["runtime"] == "cpu bf16"
    assert analyze(pixels, detector, precision="fp32").regions == before


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C comes in the refinement, when so many windows are done."""

    def tick(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    def task(_: object, name: str) -> Callable[[int, int], None]:
        return tick if name == "refine" else lambda *_: None

    monkeypatch.setattr(Progress, "task", task)


def test_an_interruption_leaves_the_best_for_what_was_paid(
    make_image: MakeImage, detector: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pixels = make_image(200, 180, seed=7)
    monkeypatch.setattr(refine, "_BATCH_PIXELS", 1)
    whole = analyze(pixels, detector, budget=0.5, precision="fp32")
    (each,) = set(refine.window_pixels(whole.plan, detector).tolist())
    monkeypatch.setattr(refine, "ROUND_PIXELS", 4 * each)
    interrupt(monkeypatch, after=12)  # the second round is twice the first
    part = analyze(pixels, detector, budget=0.5, precision="fp32")
    assert whole.complete
    assert not part.complete
    assert "incomplete" in str(part)
    assert 0 < part.cost.refine_macs < whole.cost.refine_macs
    np.testing.assert_array_equal(part.refined, part.plan.take(np.arange(12)).covered())
    assert 0 < len(part.regions) < len(whole.regions)
    part.save(tmp_path)


def test_an_interruption_at_once_is_no_error(
    make_image: MakeImage, detector: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refine, "_windows", at_once)
    part = analyze(make_image(50, 50), detector, budget=1.0)
    assert not part.complete
    assert part.regions == ()
    assert not part.refined.any()
    assert part.summary()["cost"]["share"] == 0
    assert str(part)


def test_areas_become_outlines(make_image: MakeImage, detector: Model) -> None:
    model = relabelled(detector, Label("left"), Label("right", "area"))
    pixels = make_image(130, 100, seed=2)
    out = dense(pixels, model)
    mask = (1 / (1 + np.exp(-out[:-4].max(axis=0))) >= model.threshold) & (out[:-4].argmax(axis=0) == 1)
    found = [r for r in analyze(pixels, model, budget=1.0, precision="fp32").regions if r.label == "right"]
    assert len(found) == ndimage.label(mask)[1] > 3
    covered = np.zeros_like(mask)
    ys, xs = (np.arange(n) * 8 + 1 for n in mask.shape)  # inside the image even in the clipped last cells
    for region in found:
        assert region.outline is not None
        polygon = shapely.Polygon([(x, y) for y, x in region.outline])
        assert polygon.is_valid
        y0, x0, y1, x1 = region.full_box
        assert polygon.bounds == (x0, y0, x1, y1)
        assert 0 <= y0 < y1 <= 130
        assert 0 <= x0 < x1 <= 100
        covered |= shapely.contains_xy(polygon, xs[None], ys[:, None])
    np.testing.assert_array_equal(covered, ndimage.binary_fill_holes(mask, np.ones((3, 3))))


def test_a_damaged_chunk_is_told(
    tmp_path: Path, make_image: MakeImage, detector: Model, write_damaged: WriteImage
) -> None:
    path = tmp_path / "scene.tif"
    write_damaged(path, make_image(256, 256))
    with analyze(path, detector, budget=1.0) as analysis:
        assert analysis.failures
        assert not analysis.complete
        assert "cannot be decoded" in str(analysis)
        assert analysis.refined.all()
        found = {(r.label, r.full_box) for r in analysis.regions}
    # What lies far from the damaged tile is found as ever, though one window covers all.
    with analyze(make_image(256, 256), detector, budget=1.0) as whole:
        far = {(r.label, r.full_box) for r in whole.regions if min(r.full_box[:2]) > 160 or r.full_box[0] > 160}
    assert len(far) > 10
    assert far <= found
    # Damage does not pass for a look at everything where time ended the work.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.steps.refine.HURRIED_PIXELS", 1)
        patch.setattr("coarse2fine.steps.refine._BATCH_PIXELS", 1)
        corners, sides, scores = np.array([[10, 10], [20, 20]]), np.full((2, 2), 2), np.array([1, 0.5], np.float32)
        with open_image(path) as image:
            plan = Plan(corners, sides, scores, detector.cell_shape(image.shape[:2]))
            hurried = refine.refine(image, plan, detector, Runtime.choose("cpu"), floor=0.3, deadline=0.0)
        assert hurried.failures
        assert hurried.cut
    # One damaged tile costs what lies on it, not the whole block of the scan, and the picture is drawn all the same.
    with analyze(path, detector) as analysis:
        assert analysis.failures
        assert not analysis.complete
        assert (analysis.interest > 0).mean() > 0.6
        assert analysis.save(tmp_path / "out").joinpath("overview.png").is_file()
    with open_image(path) as closed:
        pass
    with pytest.raises(ImageError, match="closed"):
        analyze(closed, detector)
