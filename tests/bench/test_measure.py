"""What the scenes benchmark looks up, against real runs and plain counting."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry import box, mapping

import coarse2fine.bench.lookup
import coarse2fine.bench.measure
from coarse2fine import ImageError, Model, analyze, open_image
from coarse2fine.annotations.read import read_annotations
from coarse2fine.bench.cover import ASSUMED_CHUNK, chunk_shape, chunks_touched, touched
from coarse2fine.bench.data import BenchScene
from coarse2fine.bench.lookup import SceneLookup
from coarse2fine.bench.measure import measure
from coarse2fine.bench.methods import Sweep, gradient_interest, methods
from coarse2fine.bench.probe import Probe, fit_probe, statistics
from coarse2fine.bench.report import Report
from coarse2fine.bench.results import MEASURES, METHODS, RECALLS, Measurement, Outcome, RecallCurve
from coarse2fine.bench.table import WIDTH
from coarse2fine.models.runtime import Runtime
from coarse2fine.steps.choose import choose
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import Refinement, refine
from coarse2fine.steps.windows import best_windows
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image

MakeImage = Callable[..., NDArray[np.uint8]]
BUDGETS = (0.3, 0.6)


@pytest.fixture(scope="module")
def scene(sparse: Model, digits: BenchScene) -> BenchScene:
    """The digits' scene with labels of which the untrained model finds most."""
    found = [(r.label, r.full_box) for r in analyze(digits.image, sparse, budget=1.0).regions[::2]]
    found += [("2", (0.0, 0.0, 9.0, 9.0)), ("3", (500.0, 500.0, 509.0, 509.0))]
    features = [
        {
            "type": "Feature",
            "geometry": mapping(box(x0, y0, x1, y1)),
            "properties": {"classification": {"name": label}},
        }
        for label, (y0, x0, y1, x1) in found
    ]
    truth = read_annotations({"type": "FeatureCollection", "features": features}, full_shape=(512, 512))
    return replace(digits, truth=truth)


@pytest.fixture(scope="module")
def lookup(sparse: Model, scene: BenchScene) -> SceneLookup:
    return SceneLookup(sparse, open_image(scene.image), scene.truth, Runtime.choose())


@pytest.fixture(scope="module")
def probe(sparse: Model, scene: BenchScene) -> Probe:
    return fit_probe([open_image(scene.image)], sparse, Runtime.choose(), 0)


@pytest.fixture(scope="module")
def measured(sparse: Model, scene: BenchScene, probe: Probe) -> Measurement:
    return measure(sparse, scene, 0, budgets=BUDGETS, probe=probe)


@pytest.fixture(scope="module")
def report(measured: Measurement) -> Report:
    other = [replace(o, seed=1, recall_labels=math.nan) for o in measured.outcomes]
    again = replace(measured, facts=replace(measured.facts, seed=1), outcomes=tuple(other), audits=())
    return Report(
        measurements=(measured, again),
        notes=("a note",),
        folds=({"fit": ["a"], "test": ["b"]},),
        seeds=(0, 1),
        parameters={"steps": 10},
    )


def pick(measured: Measurement, method: str, key: str) -> Outcome:
    (found,) = [o for o in measured.outcomes if (o.method, o.key) == (method, key)]
    return found


@pytest.mark.parametrize("budget", [0.2, 0.35, 0.7])
def test_a_look_up_equals_a_real_run(lookup: SceneLookup, budget: float) -> None:
    real = analyze(lookup.image, lookup.model, budget=budget, audit=0)
    looked_up = lookup.regions(lookup.within(real.refined))
    assert [(r.label, r.full_box) for r in looked_up] == [(r.label, r.full_box) for r in real.regions]
    point = lookup.point(real.plan, real.cost.scan_macs)
    assert point.share == pytest.approx(real.cost.share)
    assert point.refined == real.refined.mean()
    assert vars(point) | vars(lookup.quality(real.regions)) == vars(point)


def test_a_threshold_is_looked_up_as_analyze_takes_it(lookup: SceneLookup) -> None:
    ours = next(methods(lookup, None, 0))
    for tau in (lookup.model.tau, lookup.model.tau / 3):
        real = analyze(lookup.image, replace(lookup.model, tau=tau), audit=0)
        assert ours.above(tau).share == pytest.approx(real.cost.share)
        assert ours.above(tau).refined == real.refined.mean()


def test_more_windows_cost_and_find_more(lookup: SceneLookup) -> None:
    for method in methods(lookup, None, 0):
        found = [method.least("exhaustive", recall) for recall in np.linspace(0.1, 1, 10)]
        assert all(p.recall_exhaustive >= r - 1e-9 for p, r in zip(found, np.linspace(0.1, 1, 10), strict=True))
        assert [p.share for p in found] == sorted(p.share for p in found)
        curve = RecallCurve.of(method.name, method.points())
        assert list(curve.share) == sorted(curve.share)
        assert list(curve.recall) == sorted(curve.recall)
        assert curve.recall[-1] == 1.0
        assert np.isnan(curve.within(np.array([curve.share[0] / 2])))[0]
        for share, recall in ((p.share, p.recall_exhaustive) for points in method.points() for p in points):
            assert curve.within(np.array([share]))[0] >= recall
        assert curve.within(np.array([99.0]))[0] == 1.0


def test_the_least_cost_is_the_least_of_all_thresholds(lookup: SceneLookup, probe: Probe) -> None:
    model, interest = lookup.model, probe.interest(lookup.image, lookup.model)
    sweep = Sweep(lookup, interest, model.window, lookup.scan.macs)
    scores = best_windows(interest, model.window, 0.0)[1]
    every = [
        lookup.point(choose(interest, model.window, window_macs=model.window_macs, tau=float(t)), lookup.scan.macs)
        for t in np.quantile(scores, np.linspace(0, 1, 60))
    ]
    for recall in (0.3, 0.5, 0.8):
        plain = min((p.share for p in every if p.recall_exhaustive >= recall), default=math.inf)
        assert plain < 1
        assert sweep.least("exhaustive", recall).share <= plain * 1.02


def test_every_method_is_measured_at_every_cost(measured: Measurement) -> None:
    keys = {"0.30", "0.60", "default", "fixed@0.9", "fixed@0.95", "fixed@0.99"}
    keys |= {f"{reference}@{recall:g}" for reference in ("exhaustive", "labels") for recall in RECALLS}
    rows = {(o.method, o.key) for o in measured.outcomes}
    assert rows == {(m, key) for m in METHODS for key in keys} | {("ours", "1.00")}
    assert len(measured.outcomes) == len(rows)
    assert [c.method for c in measured.curves] == list(METHODS)
    assert measured.facts.agreement == 1.0
    assert measured.notes == ()


def test_the_exhaustive_pass_finds_itself(measured: Measurement) -> None:
    whole = pick(measured, "ours", "1.00")
    assert whole.recall_exhaustive == whole.refined == whole.chunks == 1.0
    assert whole.share == 1.0
    assert whole.measured


def test_costs_hold_what_they_promise(measured: Measurement) -> None:
    whole = pick(measured, "ours", "1.00")
    for o in measured.outcomes:
        kind, _, number = o.key.partition("@")
        if o.key in ("0.30", "0.60"):
            assert 0 < o.share <= float(o.key)
            assert 0 < o.refined < 1
        if kind == "exhaustive":
            assert o.recall_exhaustive >= float(number) - 1e-9
        if kind == "labels":
            assert o.recall_labels >= float(number) * whole.recall_labels - 1e-9
        if kind in ("fixed", "default") and o.method != "ours":
            assert o.recall_exhaustive >= pick(measured, "ours", o.key).recall_exhaustive - 1e-9
        assert o.seconds > 0
        assert o.measured == (o.method == "ours" and o.key in ("default", "1.00"))


def test_the_oracle_is_cheapest_and_chance_dearest(measured: Measurement) -> None:
    for recall in RECALLS:
        shares = {m: pick(measured, m, f"exhaustive@{recall:g}").share for m in METHODS}
        assert min(shares, key=lambda m: shares[m]) == "oracle"
        assert shares["random"] >= 0.9


def test_a_second_run_gives_the_same_numbers_and_ticks_to_the_total(
    sparse: Model, scene: BenchScene, probe: Probe, measured: Measurement
) -> None:
    ticks: list[tuple[int, int]] = []
    again = measure(sparse, scene, 0, budgets=BUDGETS, probe=probe, tick=lambda *each: ticks.append(each))
    assert [done for done, _ in ticks] == list(range(1, ticks[-1][1] + 1))
    first, second = ([str(replace(o, seconds=0.0)) for o in m.outcomes] for m in (measured, again))
    assert first == second  # as texts, in which NaN equals itself
    assert again.audits == measured.audits
    assert again.curves == measured.curves


def test_a_budget_below_the_scan_is_left_to_the_rivals(
    measured: Measurement, lookup: SceneLookup, probe: Probe
) -> None:
    assert all(method.within(1000) is not None for method in methods(lookup, probe, 0) if method.name != "ours")
    assert next(methods(lookup, probe, 0)).within(lookup.scan.macs - 1) is None


def test_audits_speak_true_and_find_what_they_certify(measured: Measurement) -> None:
    assert len(measured.audits) == 30
    for run in measured.audits:
        if run.kind == "sample":
            assert not run.reported  # some 40 finds are too few for one in a hundred cells
            assert run.share == pytest.approx(pick(measured, "ours", "default").share)
        else:
            assert run.reported
            assert run.least >= float(run.kind)
            assert run.held == (run.recall >= run.least - 1e-9)
    assert np.mean([run.held for run in measured.audits if run.reported]) >= 0.9


@pytest.mark.parametrize(
    ("fault", "error"), [({"done": np.zeros(0, np.intp)}, KeyboardInterrupt), ({"failures": ("torn",)}, ImageError)]
)
def test_a_run_cut_short_is_no_measurement(
    sparse: Model,
    digits: BenchScene,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, Any],
    error: type[BaseException],
) -> None:
    def cut_short(*arguments: Any, **options: Any) -> Refinement:
        return replace(refine(*arguments, **options), **fault)

    monkeypatch.setattr(coarse2fine.bench.lookup, "refine", cut_short)
    with pytest.raises(error):
        measure(sparse, digits, 0)


def test_a_look_up_that_differs_is_noted(sparse: Model, digits: BenchScene, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*arguments: Any, **options: Any) -> Any:
        analysis = analyze(*arguments, **options)
        return replace(analysis, regions=analysis.regions[1:])

    monkeypatch.setattr(coarse2fine.bench.measure, "analyze", forgetful)
    monkeypatch.setattr(coarse2fine.bench.measure, "_CHECKED_SHARE", 0.8)
    found = measure(sparse, digits, 0, budgets=())
    assert 0.5 < found.facts.agreement < 1
    assert "a real run found" in found.notes[0]
    assert "probe" not in {o.method for o in found.outcomes}  # none was given


def test_a_scene_without_finds_has_no_recall(sparse: Model, digits: BenchScene) -> None:
    found = measure(replace(sparse, threshold=0.9999), digits, 0, budgets=())
    assert found.notes == ("the exhaustive pass found nothing in digits-test: no recall against it",)
    assert found.audits == ()
    assert {o.key for o in found.outcomes} == {"default", "1.00", "fixed@0.9", "fixed@0.95", "fixed@0.99"}


def test_an_explore_model_is_refused(explorer: Model, digits: BenchScene) -> None:
    with pytest.raises(ValueError, match="expected a detect model, got tiny explorer"):
        measure(explorer, digits, 0)


def test_figures_are_flat_finite_and_named_by_method_and_key(report: Report) -> None:
    figures = json.loads(json.dumps(report.summary(), allow_nan=False))["figures"]
    assert all(isinstance(v, float) and math.isfinite(v) for v in figures.values())
    for method in METHODS:
        assert {f"{method}/{key}/{m}" for key in ("0.30", "exhaustive@0.95") for m in MEASURES} <= set(figures)
    assert figures["ours/0.30/recall_exhaustive_sd"] == 0.0
    assert "ours/0.30/recall_labels_sd" not in figures  # defined in one run of two
    assert figures["ours/default/times_fewer_macs"] > 1
    assert figures["ours/fixed@0.95/times_fewer"] == pytest.approx(1 / figures["ours/fixed@0.95/share"])
    assert figures["best_rival/fixed@0.95/share"] <= figures["random/fixed@0.95/share"]
    assert figures["certified@0.95/runs"] == 10
    assert figures["certified@0.95/recall_least"] <= figures["certified@0.95/recall"]
    assert figures["sample/reported"] == 0
    assert "sample/held" not in figures
    assert 0 < figures["scenes/finds_cover"] < 1


def test_the_record_says_what_is_needed_to_repeat_it(report: Report, tmp_path: Path) -> None:
    paths = report.save(tmp_path, tmp_path / "figures.json")
    record = json.loads((tmp_path / "figures.json").read_text())
    assert record["seeds"] == [0, 1]
    assert record["notes"] == ["a note"]
    assert record["runs"][-1]["recall_labels"] is None
    assert {"cpu", "cores", "runtime"} <= set(record["machine"])
    assert {"torch", "coarse2fine"} <= set(record["versions"])
    assert cv2.imread(str(paths[1])) is not None


def test_the_tables_fit_a_terminal_and_have_all_methods(report: Report) -> None:
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= WIDTH
    heads = [line.split(maxsplit=1)[0] for line in lines if line]
    assert all(heads.count(method) == 3 for method in METHODS if method != "ours")  # budgets and two recalls
    assert [h for h in heads if h.startswith("0.9")] == ["0.9", "0.95", "0.99"]
    assert lines[-1] == "note: a note"


boxes = st.tuples(st.integers(-40, 140), st.integers(-40, 190), st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(boxes, max_size=6), st.tuples(st.integers(1, 130), st.integers(1, 170)), st.integers(1, 50))
def test_squares_touched_are_those_that_share_a_pixel(
    rows: list[tuple[int, int, int, int]], shape: tuple[int, int], step: int
) -> None:
    table = np.array([(y, x, y + h, x + w) for y, x, h, w in rows], np.float64).reshape(-1, 4)
    found = touched(table, shape, (step, step + 3))
    marked = np.zeros(shape, bool)
    for y, x, h, w in rows:
        marked[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = True
    for row, column in np.ndindex(found.shape):
        square = marked[row * step : (row + 1) * step, column * (step + 3) : (column + 1) * (step + 3)]
        assert found[row, column] == square.any()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 30))
def test_chunks_touched_are_those_that_windows_read(grey_detector: Model, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    image = open_image(np.zeros((900, 700), np.uint8))
    shape = grey_detector.cell_shape((900, 700))
    corners = np.stack([rng.integers(0, n - 1, count) for n in shape], axis=1)
    sides = rng.choice([2, 8], count)
    plan = Plan(corners, np.stack([sides, sides], axis=1), np.ones(count, np.float32), shape)
    margin, cell = grey_detector.refiner.margin, grey_detector.geometry.cell
    chunks = set()
    for (y, x), side in zip((corners * cell).tolist(), (sides * cell).tolist(), strict=True):
        read = Box(y, x, y + side, x + side).expand(margin).intersect(Box(0, 0, 900, 700))
        assert read is not None
        ys, xs = range(read.y0 // 256, -(-read.y1 // 256)), range(read.x0 // 256, -(-read.x1 // 256))
        chunks |= {(i, j) for i in ys for j in xs}
    assert chunks_touched(plan, grey_detector, image) == len(chunks) / (4 * 3)


def test_images_without_chunks_count_as_if_they_had_some(tmp_path: Path, make_image: MakeImage) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), make_image(300, 700))
    with open_image(tmp_path / "a.png") as image:
        assert chunk_shape(image) == (ASSUMED_CHUNK, ASSUMED_CHUNK)


def _far(image: Image, model: Model) -> NDArray[np.float32]:
    """Statistics of each cell by plain loops, without logarithms; (h, w, 12)."""
    ds, side = model.geometry.scan_downsample, model.geometry.cell // model.geometry.scan_downsample
    rows, columns = model.cell_shape((image.height, image.width))
    grey = image.read_scaled(Box(0, 0, rows, columns).scale(side).expand(side + 1), ds)[..., 0].astype(np.float32)
    slope = np.hypot(*(cv2.Sobel(grey, cv2.CV_32F, d, 1 - d, scale=1 / 8) for d in (0, 1)))
    curve = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    table = np.zeros((rows, columns, 12), np.float32)
    for y, x in np.ndindex(rows, columns):
        for wide in (0, 1):
            start = 1 + side - wide * side
            reach = side * (1 + 2 * wide)
            view = (
                slice(y * side + start, y * side + start + reach),
                slice(x * side + start, x * side + start + reach),
            )
            p = grey[view]
            table[y, x, wide * 6 : wide * 6 + 6] = (
                *(p.mean(), p.std(), p.min(), p.max()),
                *(slope[view].max(), curve[view].max()),
            )
    return table


def test_statistics_are_those_of_the_cell_and_its_surroundings(grey_detector: Model, make_image: MakeImage) -> None:
    image = open_image(make_image(120, 90, 1, seed=3))
    plain = _far(image, grey_detector)
    rows, columns = plain.shape[:2]
    for part in (Box(0, 0, rows, columns), Box(3, 2, 9, 7)):
        found = statistics(image, grey_detector, part)
        np.testing.assert_allclose(found[..., :12], plain[part.y0 : part.y1, part.x0 : part.x1], rtol=1e-3, atol=0.02)
        np.testing.assert_allclose(found[..., 12:], np.log1p(found[..., :12]))


def test_the_probe_learns_what_statistics_tell(
    grey_detector: Model, probe: Probe, lookup: SceneLookup, make_image: MakeImage
) -> None:
    interest = probe.interest(lookup.image, lookup.model)
    finds = lookup.candidates.cells
    assert interest.shape == lookup.cell_shape
    assert ((interest >= 0) & (interest <= 1)).all()
    at_finds = interest[finds[:, 0], finds[:, 1]].mean()
    assert at_finds > 5 * interest.mean()
    assert interest.sum() == pytest.approx(len(np.unique(finds, axis=0)), rel=0.5)
    chance, edges = (
        Sweep(lookup, m, 2, 0).least("exhaustive", 0.8).share
        for m in (
            np.random.default_rng(0).random(interest.shape, np.float32),
            gradient_interest(lookup.image, lookup.model),
        )
    )
    assert Sweep(lookup, interest, 2, 0).least("exhaustive", 0.8).share < min(chance, edges)
    colour = replace(grey_detector)  # a scene of three channels is seen in grey by a grey model
    assert statistics(open_image(make_image(64, 64)), colour, Box(0, 0, 8, 8)).shape == (8, 8, 24)
