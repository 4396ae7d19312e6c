"""What an analysis may spend: shares, cells, seconds."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from inspect import Parameter, getdoc, signature
from typing import Any, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import analyze, analyze_folder, fit
from coarse2fine.config import AnalysisOptions, Config
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.model import Model, load_model
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.runtime import Runtime
from coarse2fine.steps.mask import cells_inside
from coarse2fine.steps.plan import dense_plan
from coarse2fine.steps.scan import look
from coarse2fine.steps.scan_blocks import scan_macs
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

MakeImage = Callable[..., NDArray[np.uint8]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": 0.0}, "budget must be a positive share"),
        ({"budget": float("nan")}, "budget must be a positive share"),
        ({"budget": float("inf")}, "budget must be a positive share"),
        ({"cells": 0}, "at least 1; got 0"),
        ({"cells": 2.5}, "a whole number of cells"),
        ({"cells": float("inf")}, "a whole number of cells"),
        ({"seconds": 0.0}, "seconds must be positive"),
    ],
)
def test_limits_are_positive(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**values)


def test_parameters_are_those_of_the_config() -> None:
    assert get_type_hints(AnalysisOptions) == get_type_hints(Config)
    config = signature(Config).parameters
    for function in (analyze, analyze_folder):
        shown = signature(function).parameters
        assert {name: shown[name].default for name in config} == {name: p.default for name, p in config.items()}
        assert {shown[name].kind for name in config} == {Parameter.KEYWORD_ONLY}
        assert "options" not in shown
        described = getdoc(function) or ""
        assert [name for name in shown if not re.search(rf"\b{name}\b", described)] == []
    assert list(signature(analyze).parameters)[:3] == ["image", "model", "budget"]
    assert signature(analyze).parameters["progress"].default is False


def test_what_is_stored_of_parameters_stays() -> None:
    config = Config(budget=0.5, confidence=0.9, threshold=0.3, seed=7, batch_size=4)
    stated: dict[str, Any] = {"budget": 0.5, "cells": None, "seconds": None, "recall": None, "confidence": 0.9}
    stated |= {"audit": None, "cap": "seen", "threshold": 0.3, "seed": 7}
    assert list(config.parameters().items()) == list(stated.items())
    # Results of a batch are found again by these.
    assert asdict(config) == {**stated, "device": None, "precision": "auto", "batch_size": 4}


def test_a_wrong_name_is_answered_with_the_right_ones(make_image: MakeImage) -> None:
    wrong: dict[str, Any] = {"bugdet": 0.1}
    with pytest.raises(TypeError, match=r"analyze\(\) has no parameter 'bugdet'; .* budget, .* channels, .* progress$"):
        analyze(make_image(40, 40), **wrong)
    with pytest.raises(TypeError, match=r"analyze_folder\(\) has no parameter 'bugdet'; .* budget, .* time_limit"):
        analyze_folder("images", "out", **wrong)
    with pytest.raises(TypeError, match=r"fit\(\) has no parameter 'step'; did you mean steps\? .* progress$"):
        fit("images", step=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"did you mean threshold\? Its parameters"):
        analyze(make_image(40, 40), treshold=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("cells", [1, 3, 4, 50, 400])
def test_no_more_cells_than_allowed(make_image: MakeImage, detector: Model, cells: int) -> None:
    image = make_image(200, 260)
    result = analyze(image, detector, cells=cells, threshold=0.3)
    everything = result.cost.cells
    assert result.cost.cells_refined <= min(cells, everything)
    # Windows of 2 x 2 cells: less than one of them is left over.
    assert result.cost.cells_refined >= max(1, min(cells, everything) - detector.window**2)
    assert result.provenance["parameters"]["cells"] == cells


def test_more_cells_hold_the_better_ones(make_image: MakeImage, detector: Model) -> None:
    image = make_image(200, 260)
    few, many = (analyze(image, detector, cells=n, threshold=0.3) for n in (40, 160))
    assert few.interest[few.refined].mean() > few.interest[~few.refined].mean()
    assert few.plan.scores.min() >= many.plan.scores.min()


def test_time_ends_the_refinement(make_image: MakeImage, detector: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(400, 520)
    monkeypatch.setattr("coarse2fine.steps.refine.HURRIED_PIXELS", 20_000)
    result = analyze(image, detector, budget=1.0, seconds=1e-6, threshold=0.3)
    assert not result.complete
    assert 0 < result.cost.cells_refined < result.cost.cells
    assert "planned were refined" in str(result)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        analyze(image, detector, seed=-1)
    whole = analyze(image, detector, budget=0.5, seconds=1e6, threshold=0.3)
    assert whole.complete
    np.testing.assert_array_equal(whole.refined, analyze(image, detector, budget=0.5, threshold=0.3).refined)


def test_a_budget_below_the_scan_is_refused_before_it(
    make_image: MakeImage, detector: Model, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(200, 260)
    with open_image(image) as opened:
        shape = detector.cell_shape(opened.shape[:2])
        least = scan_macs(detector, opened.shape[:2])
        assert least == look(opened, detector, runtime).macs
    monkeypatch.setattr("coarse2fine.steps.strategy.look", None)  # would fail if it were called
    with pytest.raises(ValueError, match="does not pay for the scan"):
        analyze(image, detector, budget=0.5 * least / dense_plan(shape).macs(detector.refiner_macs))


@pytest.mark.usefixtures("squares_by_macs")
def test_a_larger_limit_looks_closer_at_more_of_the_scene(make_image: MakeImage, zoom_detector: Model) -> None:
    """The first look hides most of the image; what a limit pays for is refined all the same."""
    first = replace(zoom_detector.cascade[0], tau=0.9)
    pixels, model = make_image(800, 800, seed=7), replace(zoom_detector, cascade=(first,))
    seen = [analyze(pixels, model, budget=budget, precision="fp32") for budget in (0.2, 0.4, 0.8)]
    usual = analyze(pixels, model, precision="fp32").cost
    for budget, found in zip((0.2, 0.4, 0.8), seen, strict=True):
        assert 0.7 * budget < found.cost.share <= budget
    assert seen[2].cost.scan_macs > usual.scan_macs
    assert usual.cells_refined < seen[0].cost.cells_refined < seen[1].cost.cells_refined < seen[2].cost.cells_refined
    few = analyze(pixels, model, cells=2000, precision="fp32").cost
    assert usual.cells_refined < 1000 < few.cells_refined <= 2000


@functools.cache
def _embedded(name: str) -> Model:
    return load_model(name)


@pytest.mark.parametrize("name", ["craters", "digits"])
@pytest.mark.parametrize("shape", [(40, 64), (96, 160), (200, 200)])
@pytest.mark.parametrize("tau", [1e-6, 1e-3, 0.02])
def test_a_default_analysis_of_a_crowded_image_costs_the_scan_more_than_the_exhaustive_pass_at_most(
    make_image: MakeImage, name: str, shape: tuple[int, int], tau: float
) -> None:
    model, pixels = replace(_embedded(name), tau=tau), make_image(*shape, seed=3)
    everything = analyze(pixels, model, budget=1.0, precision="fp32").cost
    found = analyze(pixels, model, precision="fp32")
    assert everything.macs == everything.exhaustive_macs == found.cost.exhaustive_macs
    # A cascade's second stage scans whole cells of the first, in squares with halos.
    cell = model.levels[0].cell
    whole = (-(-shape[0] // cell) * cell, -(-shape[1] // cell) * cell)
    later = 1.1 * scan_macs(replace(model, cascade=()), whole) if model.cascade else 0
    assert found.cost.macs <= everything.macs + scan_macs(model, shape) + later
    if tau < 1e-5:  # every window is worth refining
        assert found.refined.all()
        assert found.cost.share <= 1.05


@pytest.mark.parametrize("cells", [30, 200, 500, 10**6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["craters", "digits"])
def test_a_number_of_cells_costs_no_more_than_all_of_them(
    make_image: MakeImage, name: str, masked: bool, cells: int
) -> None:
    pixels, mask = make_image(200, 210, seed=4), None
    if masked:
        mask = np.zeros((200, 210), bool)
        mask[:90, 40:150] = True
    found = analyze(pixels, _embedded(name), cells=cells, mask=mask, precision="fp32")
    assert found.cost.share <= 1.03
    assert 0 < found.cost.cells_refined <= cells
    if cells >= found.cost.cells:
        assert found.cost.share == 1.0
        assert found.cost.cells_refined == found.cost.cells


def test_cells_that_cost_too_much_one_by_one_are_refined_in_larger_windows(
    make_image: MakeImage, detector: Model
) -> None:
    found = analyze(make_image(400, 400, seed=4), detector, cells=2000, precision="fp32")
    assert found.cost.share <= 1.03
    assert found.cost.cells_refined > 1500


@pytest.mark.parametrize("name", ["craters", "digits"])
def test_a_scan_of_scattered_places_leaves_out_what_lies_between(make_image: MakeImage, name: str) -> None:
    # Without a first look, after which the squares that are scanned depend on those beside them.
    pixels, model = make_image(1000, 1000, seed=5), replace(load_model(name), cascade=())
    mask = np.zeros((1000, 1000), bool)
    mask[:60, :60] = mask[-60:, -60:] = True
    part = analyze(pixels, model, cells=1, mask=mask, precision="fp32")
    whole = analyze(pixels, model, cells=1, precision="fp32")
    assert part.cost.scan_macs < 0.2 * whole.cost.scan_macs
    inside = cells_inside(mask, part.image, part.cell)
    np.testing.assert_allclose(part.interest[inside], whole.interest[inside], atol=1e-6)
    # The exhaustive pass leaves it out too.
    assert part.cost.exhaustive_macs <= 4 * dense_plan(model.cell_shape((60, 60))).macs(model.refiner_macs)


def test_a_budget_is_shared_by_windows_and_the_audit_that_certifies_them() -> None:
    scene = DigitScene(1024, 1024, digits=150, clutter=0, seed=5, handwriting="held-out")
    pixels = scene.block(Box(0, 0, 1024, 1024))
    model = replace(load_model("digits"), tau=1e-3)  # windows above it cost 0.7 of the exhaustive pass
    found = analyze(pixels, model, recall=0.4, budget=0.5, precision="fp32")
    assert found.cost.share <= 0.5
    assert found.audit is not None
    assert found.audit.certified
    everything = analyze(pixels, model, budget=1.0, precision="fp32")
    assert len(found.regions) >= 0.4 * len(everything.regions)


def test_a_scan_that_costs_more_than_the_exhaustive_pass_is_left_out(make_image: MakeImage, detector: Model) -> None:
    heavy = ConvStack(StackSpec.parse(detector.channels, "4/2:64 4/2:64 3:64 1:4 1:1"))
    model = replace(detector, base=heavy.eval())
    pixels = make_image(60, 90, seed=1)
    assert scan_macs(model, (60, 90)) > dense_plan(model.cell_shape((60, 90))).macs(model.refiner_macs)
    found = analyze(pixels, model, precision="fp32")
    assert found.cost.scan_macs == 0
    assert found.cost.share == 1.0
    assert found.regions == analyze(pixels, model, budget=1.0, precision="fp32").regions


@pytest.mark.parametrize(("shape", "masked"), [((30, 40), False), ((200, 330), False), ((200, 330), True)])
def test_shares_of_the_generic_model_are_of_what_its_exhaustive_pass_takes(
    make_image: MakeImage, shape: tuple[int, int], masked: bool
) -> None:
    pixels = make_image(*shape, seed=2)
    mask = None
    if masked:
        mask = np.zeros(shape, bool)
        mask[: shape[0] // 2, : shape[1] // 3] = True
    whole = analyze(pixels, "generic", budget=1.0, mask=mask, precision="fp32").cost
    assert whole.share == 1.0
    assert whole.cells_refined == whole.cells
    usual = analyze(pixels, "generic", mask=mask, precision="fp32").cost
    # What was spent, columns included, is what was expected before.
    assert usual.exhaustive_macs == pytest.approx(whole.macs, rel=0.005)
    assert usual.share <= 1.0
    assert analyze(pixels, "generic", budget=0.9, mask=mask, precision="fp32").cost.share <= 0.905


@pytest.mark.parametrize("name", ["budget", "cells", "seconds", "threshold", "seed", "batch_size"])
@pytest.mark.parametrize("value", ["0.1", True])
def test_a_number_is_expected_of_a_number(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number"):
        Config(**{name: value})  # type: ignore[arg-type]
