"""Bands of object sizes: how they are chosen, and what one model of several of them finds."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from benchmarks.sizes.scenes import SizesScene, make_scene
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine import analyze, fit
from coarse2fine.annotations.read import AnnotationError, read_annotations
from coarse2fine.fitting.bands import SizeBand, check_left_out, choose_bands
from coarse2fine.fitting.geometry import Sizes, choose_geometry, find_labels, measure
from coarse2fine.model import Geometry, Model
from coarse2fine.refiners.protocol import Label
from tests.fitting.discs import collection, feature

LABELS = (Label("a"), Label("b"))


def of(*sides: float, names: str = "a") -> Sizes:
    return Sizes(np.repeat(np.array(sides, float)[:, None], 2, axis=1), np.resize(list(names), len(sides)), 16.0)


def planes(bands: tuple[SizeBand, ...]) -> list[int]:
    return [band.geometry.refine_downsample for band in bands]


def test_sizes_that_one_plane_takes_are_one_band() -> None:
    sizes = of(*[10.0] * 50, *[40.0] * 50)
    bands = choose_bands(sizes, LABELS)
    assert bands == (SizeBand(choose_geometry(sizes, LABELS), LABELS, sizes),)
    assert bands[0].alone


def test_few_objects_of_other_sizes_make_no_band() -> None:
    assert len(choose_bands(of(*[10.0] * 100, *[400.0] * 19), LABELS)) == 1
    assert len(choose_bands(of(*[10.0] * 100, *[400.0] * 20), LABELS)) == 2


def test_four_sizes_are_two_bands_and_none_is_left_out() -> None:
    sizes = of(*[8.0] * 40, *[30.0] * 40, *[100.0] * 40, *[400.0] * 40)
    bands = choose_bands(sizes, LABELS)
    assert [sorted(set(band.sizes.sides[:, 1])) for band in bands] == [[8, 30], [100, 400]]
    assert bands[0].high == bands[1].low == pytest.approx(np.sqrt(30 * 100))
    assert planes(bands) == [1, 8]
    # The coarse band costs a sixty-fourth, and its scan resolves its smallest objects.
    assert 100 / bands[1].geometry.scan_downsample >= 5
    assert check_left_out(bands, 1e4, 0) == ()


def test_sizes_from_4_to_4000_px_are_three_bands() -> None:
    sizes = of(*np.geomspace(4, 4000, 600))
    bands = choose_bands(sizes, LABELS)
    assert len(bands) == 3
    assert planes(bands) == sorted(planes(bands))
    assert check_left_out(bands, 1e4, 0) == ()


@given(st.lists(st.floats(2, 3000), min_size=40, max_size=200), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_bands_divide_the_objects_and_never_leave_out_more_than_one(sides: list[float], seed: int) -> None:
    sides = np.random.default_rng(seed).choice(sides, 150).tolist()
    sizes = of(*sides)
    bands = choose_bands(sizes, LABELS)
    assert sorted(np.concatenate([band.sizes.sides[:, 1] for band in bands])) == sorted(sides)
    if len(bands) > 1:
        assert all(len(band.sizes.sides) >= 20 for band in bands)
        assert all(a < b for a, b in zip(planes(bands), planes(bands)[1:], strict=False))
        for band in bands:
            assert (band.sizes.sides[:, 1] >= band.low).all()
            assert (band.sizes.sides[:, 1] < band.high).all()


def test_classes_are_in_the_bands_of_their_objects() -> None:
    small, large = of(*[8.0] * 30), of(*[300.0] * 30, names="b")
    sizes = Sizes(np.concatenate([small.sides, large.sides]), np.concatenate([small.labels, large.labels]), 16.0)
    lake = Label("lake", "area")
    first, second = choose_bands(sizes, (*LABELS, lake))
    assert first.labels == (LABELS[0],)
    assert second.labels == (LABELS[1], lake)  # an area needs no fine plane


def test_objects_of_other_bands_are_background_and_those_near_the_border_undecided() -> None:
    sides = [8] * 30 + [30] * 30 + [100] * 30 + [400] * 30 + [50]
    squares = [feature("a", [[0, 0], [s, 0], [s, s], [0, s]]) for s in sides]
    annotations = read_annotations(collection(*squares))
    labels = find_labels([annotations])
    first, second = choose_bands(measure([annotations], labels, None), labels)
    kept = [{round(a.full_bounds[2]) for a in band.of(annotations).objects} for band in (first, second)]
    # The border lies between 50 and 100 px, both of which are within a factor of 1.8 of it.
    assert first.high == pytest.approx(np.sqrt(50 * 100))
    assert kept == [{8, 30, 50, 100}, {50, 100, 400}]
    # At most a factor of 1.2 beyond the border an object is one of both bands.
    assert first.largest == pytest.approx(84.9, abs=0.1)
    assert second.smallest == pytest.approx(58.9, abs=0.1)


def test_a_class_that_no_band_takes_is_refused() -> None:
    sizes = of(*[8.0] * 30, *[300.0] * 30)
    bands = choose_bands(sizes, LABELS)
    tiny = Sizes(np.full((5, 2), 1e5), np.array(["b"] * 5), 16.0)
    lost = SizeBand(bands[1].geometry, LABELS, tiny, bands[1].low, bands[1].high)
    with pytest.raises(AnnotationError, match="5 of 5 b"):
        check_left_out([bands[0], lost], 600, 0)


COUNTS = {240: 3, 24: 14}


@pytest.fixture(scope="module")
def scenes() -> list[SizesScene]:
    return [make_scene(seed, COUNTS, 896) for seed in range(9)]


@pytest.fixture(scope="module")
def fitted(small_steps: None, scenes: list[SizesScene]) -> Model:
    images, texts = [each.pixels for each in scenes], [each.annotations((240, 24)) for each in scenes]
    return fit(images, texts, steps=60, specialists=None, precision="fp32", progress=False)


@pytest.mark.slow
def test_a_fit_finds_objects_of_both_sizes(fitted: Model) -> None:
    assert len(fitted.bands) == 2
    assert fitted.provenance["left_out"] == {}
    assert [band.provenance["band"][1] < 300 for band in fitted.bands] == [True, True]
    near: dict[int, list[bool]] = {size: [] for size in COUNTS}
    for scene in (make_scene(seed, COUNTS, 896) for seed in range(50, 54)):
        found = analyze(scene.pixels, fitted, budget=1.0, precision="fp32").regions
        centres = np.array([region.full_centre for region in found]).reshape(-1, 2)
        for size, found_near in near.items():
            own = scene.boxes[scene.sizes == size]
            away = np.abs((own[:, None, :2] + own[:, None, 2:]) / 2 - centres).max(axis=2).min(axis=1)
            found_near.extend((away < size / 4).tolist())
    assert {size: np.mean(each) > 0.5 for size, each in near.items()} == dict.fromkeys(COUNTS, True)


@pytest.mark.slow
def test_a_geometry_means_one_band(small_steps: None, scenes: list[SizesScene]) -> None:
    scene = scenes[0]
    images, texts, mine = [scene.pixels], [scene.annotations((240, 24))], Geometry(8, 4, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = fit(images, texts, geometry=mine, steps=10, specialists=None, precision="fp32", progress=False)
    assert any("left out" in str(each.message) for each in caught)
    assert len(model.bands) == 1
    assert "band" not in model.provenance
