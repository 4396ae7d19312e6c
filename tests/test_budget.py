"""What an analysis may spend: shares, cells, seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import analyze
from coarse2fine import engine as module
from coarse2fine.budget import Budget
from coarse2fine.model import Model
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
