"""A scan in several steps against looks at everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine import analyze, load_model
from coarse2fine.fitting.calibrate import Calibrated, CalibrationSet, Price, StageScan
from coarse2fine.fitting.cascade import EmptyGround, least_costs, scan_candidates, zoomed
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.geometry import base_spec
from coarse2fine.fitting.teacher import Answers
from coarse2fine.model import CascadeStage, Geometry, Model
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.models.firing import NO_FEATURE
from coarse2fine.models.runtime import Runtime
from coarse2fine.steps.scan import look, survey_level, zoom_plan
from coarse2fine.steps.scan_blocks import scan_macs
from coarse2fine.tiling.opening import open_image

MakeImage = Callable[..., NDArray[np.uint8]]
pytestmark = pytest.mark.usefixtures("squares_by_macs")


def with_tau(model: Model, tau: float) -> Model:
    return replace(model, cascade=tuple(replace(level, tau=tau) for level in model.cascade))


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.05, 0.6))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_closer_look_sees_what_a_look_at_everything_sees(
    make_image: MakeImage, zoom_detector: Model, runtime: Runtime, height: int, width: int, tau: float
) -> None:
    model = with_tau(zoom_detector, tau)
    image = open_image(make_image(height, width, seed=height))
    first, second = model.levels
    glance = survey_level(image, model, runtime, first)
    plan = zoom_plan(glance.interest, first, second)
    everything = survey_level(image, model, runtime, second, named=True)
    found = look(image, model, runtime)
    looked = plan.covered()[: found.interest.shape[0], : found.interest.shape[1]]
    # Every cell that the glance wants is looked at, and nothing else is of interest.
    wanted = np.kron(glance.interest > tau * 1.001, np.ones((4, 4), bool))[: looked.shape[0], : looked.shape[1]]
    assert (looked | ~wanted).all()
    np.testing.assert_allclose(found.interest[looked], everything.interest[looked], atol=1e-5)
    assert not found.interest[~looked].any()
    assert (found.fired[~looked] == NO_FEATURE).all()
    assert glance.fired.shape == (*glance.interest.shape, 0)
    assert (found.fired[looked] == everything.fired[looked]).mean() > 0.99 if looked.any() else True
    spec = second.net.spec
    assert found.macs == glance.macs + sum(spec.macs(*shape) for shape in plan.sides.tolist())
    assert scan_macs(model, (height, width)) == glance.macs


@given(st.integers(200, 900), st.integers(200, 900), st.floats(0.05, 0.5))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_a_zoom_is_priced_without_looking_again(
    make_image: MakeImage, zoom_detector: Model, runtime: Runtime, height: int, width: int, tau: float
) -> None:
    model = with_tau(zoom_detector, tau)
    image = open_image(make_image(height, width, seed=width))
    looks = [survey_level(image, model, runtime, level) for level in model.levels]
    interest, plans = zoomed(model.levels, [seen.interest for seen in looks])
    found = look(image, model, runtime)
    np.testing.assert_allclose(interest, found.interest, atol=1e-5)
    closer = zip(plans, model.levels[1:], strict=True)
    assert looks[0].macs + sum(plan.macs(level.net.spec.macs) for plan, level in closer) == found.macs


def finds_on(side: int, rows: int) -> Answers:
    """Answers of a square scene whose first rows of cells hold finds."""
    target = np.full((side, side), 0.1, np.float32)
    target[:rows] = 0.9
    return Answers((), (target,), 0.5, 1.0)


def test_a_perfect_glance_saves_the_scan_of_empty_ground_alone(
    make_image: MakeImage, detector: Model, runtime: Runtime
) -> None:
    model = replace(detector, tau=1e6)  # no windows
    scan = survey_level(open_image(make_image(512, 512)), model, runtime, model.levels[0])
    seen = StageScan((scan.interest,), scan.macs, 1.0)
    flat, fine = np.zeros(3, np.float32), model.geometry.fine
    spec = StackSpec.parse(3, "4/2:4 4/2:4 4/2:4 1:6")
    glance = Recipe(Geometry(32, 4, 1, 4 * fine), spec, 3, flat, flat, True, 10, 0)
    found = Calibrated(model, seen, 10.0 * scan.macs)

    def costs(rows: int) -> tuple[tuple[float, float], tuple[float, float]]:
        setting = CalibrationSet((), finds_on(64 * fine, rows * fine), 0.97, Price("macs"), runtime)
        ground = EmptyGround.of(setting.answers, 4 * fine)
        return ground.costs(found, [seen], setting), least_costs(found, glance, [seen], setting, ground)

    # All is empty: with ten times as much of it, the scan, a tenth of the cost, comes ten times.
    assert costs(0) == ((10 * scan.macs, 19 * scan.macs), (9 * scan.macs, 9 * scan.macs))
    # Of half of the ground, with the halo of squares; a row of cells of the glance beside the finds is not empty.
    (here, emptier), (least, least_emptier) = costs(32)
    assert (here, emptier) == (10 * scan.macs, 10 * scan.macs + 9 * scan.macs * 7 / 16)
    assert 9.5 * scan.macs < least == least_emptier < 9.8 * scan.macs
    (here, emptier), (least, least_emptier) = costs(64)
    assert here == emptier <= least == least_emptier
    # Measured seconds of the scan may be more than those of the whole: nothing costs less than nothing.
    found = Calibrated(model, StageScan(seen.interests, seen.macs, 3.0), 2.0)
    setting = CalibrationSet((), finds_on(64 * fine, 0), 0.97, Price("seconds", {fine * model.window: 1e-3}), runtime)
    ground = EmptyGround.of(setting.answers, 4 * fine)
    assert least_costs(found, glance, [found.seen], setting, ground) == (0.0, 0.0)


def test_ground_where_the_refine_net_did_not_run_is_not_empty() -> None:
    target = np.full((40, 40), np.nan, np.float32)
    target[:20] = 0.0
    target[3, 3] = 0.7
    ground = EmptyGround.of(Answers((), (target,), 0.5, 1.0), 4)
    assert ground.finds[0].sum() == 1
    expected = np.zeros((10, 10), bool)
    expected[:5] = True
    expected[:2, :2] = False
    np.testing.assert_array_equal(ground.empty[0], expected)


def test_empty_ground_is_paid_for_stage_by_stage(make_image: MakeImage, zoom_detector: Model, runtime: Runtime) -> None:
    """The cost of emptier scenes is that of the scene and of the empty part of it, analysed by itself."""
    model = replace(with_tau(zoom_detector, 0.2), tau=1e6)
    pixels = make_image(512, 512, seed=3)
    looks = [survey_level(open_image(pixels), model, runtime, level) for level in model.levels]
    views = [StageScan((each.interest,), each.macs, 1.0) for each in looks]
    interest, plans = zoomed(model.levels, [each.interest for each in looks])
    macs = plans[0].macs(model.levels[1].net.spec.macs)
    setting = CalibrationSet((), finds_on(64 * model.geometry.fine, 0), 0.97, Price("macs"), runtime)
    ground = EmptyGround.of(setting.answers, 4 * model.geometry.fine)
    here, emptier = ground.costs(Calibrated(model, views[1], 100.0), views, setting)
    assert (here, emptier) == (100.0, 100.0 + 9 * (looks[0].macs + macs))
    assert interest.any()


def test_candidates_keep_the_refine_nets_cells() -> None:
    spec = StackSpec.parse(1, "4/2:4 4/2:4 4/2:4 1:6")
    flat = np.zeros(1, np.float32)
    for geometry in (Geometry(8, 2, 1), Geometry(8, 4, 1), Geometry(8, 8, 1), Geometry(16, 4, 2), Geometry(32, 16, 4)):
        recipe = Recipe(geometry, spec, 1, flat, flat, False, 10, 0)
        found = scan_candidates(recipe)
        assert found[0] == recipe
        assert len({(r.geometry, r.width) for r in found}) == len(found) >= 3
        assert {r.geometry.fine_cell for r in found} == {geometry.cell}
        assert {r.width for r in scan_candidates(recipe, built_in=False)} == {1.0}
        wide, plain = (base_spec(1, geometry, width) for width in (2.0, 1.0))
        assert 2 < wide.macs_per_cell / plain.macs_per_cell < 4
        assert wide.stages[-1] == plain.stages[-1]
        # A feature's number is stored in a byte, beside that of no feature.
        assert max(stage.channels for stage in base_spec(1, geometry, 16.0).stages) < NO_FEATURE


def test_three_levels(make_image: MakeImage, zoom_detector: Model, runtime: Runtime) -> None:
    (glance,) = zoom_detector.cascade
    coarsest = replace(glance, cell=128, downsample=16)
    model = with_tau(replace(zoom_detector, cascade=(coarsest, glance)), 0.0)
    image = open_image(make_image(300, 420))
    found = look(image, model, runtime)
    np.testing.assert_allclose(
        found.interest, survey_level(image, model, runtime, model.levels[-1]).interest, atol=1e-5
    )
    assert str(model).count("then") == 2


def test_where_a_glance_sees_nothing_nothing_is_chosen(
    make_image: MakeImage, zoom_detector: Model, runtime: Runtime
) -> None:
    model = with_tau(zoom_detector, 1.0)
    found = look(open_image(make_image(200, 200)), model, runtime)
    assert not found.interest.any()
    with analyze(make_image(200, 200), model) as analysis:
        assert not analysis.regions
        assert analysis.cost.scan_macs == scan_macs(model, (200, 200))
        assert not len(analysis.plan)


def test_a_zoom_is_saved_whole(make_image: MakeImage, zoom_detector: Model, runtime: Runtime, tmp_path: Path) -> None:
    loaded = load_model(zoom_detector.save(tmp_path / "zoom.c2f"))
    assert str(loaded) == str(zoom_detector)
    assert [(level.cell, level.downsample, level.tau) for level in loaded.levels] == [
        (level.cell, level.downsample, level.tau) for level in zoom_detector.levels
    ]
    image = open_image(make_image(150, 200))
    np.testing.assert_array_equal(look(image, loaded, runtime).interest, look(image, zoom_detector, runtime).interest)


def test_damage_is_seen_as_grey(make_image: MakeImage, zoom_detector: Model, runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, make_image(512, 512), tile=(64, 64), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as opened:
        offset = opened.pages[0].dataoffsets[9]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 16)
    found = look(open_image(path), with_tau(zoom_detector, 0.0), runtime)
    assert found.failures
    assert (found.interest > 0).mean() > 0.9


def test_levels_that_do_not_fit_are_refused(zoom_detector: Model) -> None:
    (glance,) = zoom_detector.cascade
    with pytest.raises(ValueError, match="stride 8 does not make cells of 16 px"):
        replace(glance, cell=16)
    with pytest.raises(ValueError, match="cells of 8 px at 1/1 cannot come before 8 px at 1/2"):
        replace(zoom_detector, cascade=(CascadeStage(glance.net, 8, 1, glance.firing, 0.1),))
