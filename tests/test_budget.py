"""What an analysis may spend: shares, cells, seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import analysis_run as module
from coarse2fine import analyze
from coarse2fine.budget import Budget
from coarse2fine.model import Model, load_model
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.runtime import Runtime
from coarse2fine.scan import look, scan_macs
from coarse2fine.tiling import open_image

MakeImage = Callable[..., NDArray[np.uint8]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0.0}, "budget must be a positive share"),
        ({"share": float("nan")}, "budget must be a positive share"),
        ({"share": float("inf")}, "budget must be a positive share"),
        ({"cells": 0}, "at least 1; got 0"),
        ({"cells": 2.5}, "a whole number of cells"),
        ({"cells": float("inf")}, "a whole number of cells"),
        ({"seconds": 0.0}, "seconds must be positive"),
    ],
)
def test_limits_are_positive(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**values)


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
    monkeypatch.setattr("coarse2fine.refine.HURRIED_PIXELS", 20_000)
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
    monkeypatch.setattr(module, "look", None)  # would fail if it were called
    with pytest.raises(ValueError, match="does not pay for the scan"):
        analyze(image, detector, budget=0.5 * least / detector.exhaustive_macs(shape))


@pytest.mark.parametrize("name", ["craters", "digits"])
@pytest.mark.parametrize("shape", [(40, 64), (96, 160), (200, 200)])
def test_a_default_analysis_of_a_small_crowded_image_is_the_exhaustive_pass(
    make_image: MakeImage, name: str, shape: tuple[int, int]
) -> None:
    # Every window is worth refining.
    model = replace(load_model(name), tau=1e-6)
    found = analyze(make_image(*shape, seed=3), model, precision="fp32")
    assert found.refined.all()
    assert found.cost.refine_macs + found.cost.audit_macs <= found.cost.exhaustive_macs
    assert found.cost.share <= 1.05  # with the scan that told so


def test_a_scan_that_costs_more_than_the_exhaustive_pass_is_left_out(make_image: MakeImage, detector: Model) -> None:
    heavy = ConvStack(StackSpec.parse(detector.channels, "4/2:64 4/2:64 3:64 1:4 1:1"))
    model = replace(detector, base=heavy.eval())
    pixels = make_image(60, 90, seed=1)
    assert scan_macs(model, (60, 90)) > model.exhaustive_macs(model.cell_shape((60, 90)))
    found = analyze(pixels, model, precision="fp32")
    assert found.cost.scan_macs == 0
    assert found.cost.share == 1.0
    assert found.regions == analyze(pixels, model, budget=1.0, precision="fp32").regions


@pytest.mark.parametrize("side", [200, 300, 420])
def test_the_generic_model_costs_less_than_the_exhaustive_pass(make_image: MakeImage, side: int) -> None:
    assert analyze(make_image(side, side, seed=2), "generic", precision="fp32").cost.share <= 1.0
