"""Polygons that strangers drew: repaired as shapely does, and never for long."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry import Polygon, box

from coarse2fine.annotations.polygons import TangledError, as_geometry, polygon_of, repaired
from coarse2fine.annotations.read import AnnotationError, read_annotations


def ring(corners: int, seed: int = 0) -> Polygon:
    return Polygon(np.random.default_rng(seed).random((corners, 2)) * 1000)


def circle(corners: int) -> NDArray[np.float64]:
    turns = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = 10_000 + np.random.default_rng(1).random(corners) * 0.01
    return np.stack([radius * np.cos(turns), radius * np.sin(turns)], axis=1)


def hatching(corners: int) -> Polygon:
    """Valid: long parallel slanted teeth, whose bounds all overlap."""
    step = np.arange(corners // 2) * 0.01
    near = np.stack([step, -step], axis=1)
    teeth = np.empty((len(step) * 2, 2))
    even = (np.arange(len(step)) % 2 == 0)[:, None]
    teeth[0::2], teeth[1::2] = np.where(even, near, near + 1000), np.where(even, near + 1000, near)
    return Polygon(np.concatenate([teeth, [[5000, -5000], [-5000, -5000]]]))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=3, max_size=12))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_what_is_repaired_is_valid_and_lies_within_the_crossing_lines(corners: list[tuple[int, int]]) -> None:
    polygon = Polygon(corners)
    whole = shapely.union_all(shapely.get_parts(shapely.polygonize([shapely.node(shapely.boundary(polygon))])))
    made = repaired(polygon)
    if made is None:
        assert whole.area == pytest.approx(0) or not shapely.make_valid(polygon).area
        return
    assert made.is_valid
    assert made.area > 0
    assert made.difference(whole.buffer(1e-9)).area == pytest.approx(0, abs=1e-9)
    if polygon.is_valid:
        assert made.equals(polygon)


@pytest.mark.parametrize("corners", [300, 4000, 30_000])
def test_a_random_ring_is_refused_at_once(corners: int) -> None:
    start = time.process_time()
    with pytest.raises(TangledError):
        repaired(ring(corners))
    assert time.process_time() - start < 3  # 0.02 to 0.3 s on an idle machine; `make_valid` takes 40 s for 300


def test_few_crossings_are_repaired_however_long_the_ring() -> None:
    corners = circle(30_000)
    kept = repaired(Polygon(corners))
    assert kept is not None
    assert kept.equals(Polygon(corners))
    corners[15_000], corners[7_500] = (-20_000, 9_999), (20_000, -9_999)
    crossed = Polygon(corners)
    assert not crossed.is_valid
    made = repaired(crossed)
    assert made is not None
    assert made.is_valid
    assert made.area == pytest.approx(np.pi * 1e8, rel=0.01)


def test_a_valid_ring_that_would_take_hours_to_check_is_refused() -> None:
    small = repaired(hatching(1000))
    assert small is not None
    assert small.equals(hatching(1000))
    with pytest.raises(TangledError, match="lie across each other"):
        repaired(hatching(30_000))


def test_a_tangled_ring_is_named_and_the_others_are_kept() -> None:
    tangled, plain = (
        {"type": "Feature", "geometry": shapely.geometry.mapping(p), "properties": {"classification": "a"}}
        for p in (ring(300), box(1, 1, 5, 5))
    )
    found = read_annotations({"type": "FeatureCollection", "features": [plain, tangled]})
    assert [o.full_bounds for o in found.objects] == [(1, 1, 5, 5)]
    assert len(found.notes) == 1
    assert "left out 1 of 2, feature 2: crosses itself more than 2,000 times" in found.notes[0]
    with pytest.raises(AnnotationError, match=r"feature 1 of .* crosses itself more than 2,000 times"):
        read_annotations(tangled)


@pytest.mark.parametrize("far", [1e9, 1e20, 3e38, 1e300])
def test_corners_that_lie_far_away(far: float) -> None:
    made = repaired(polygon_of([[-far, -far], [far, -far], [far, 200], [-far, 200]]))
    assert made is not None
    assert made.intersection(box(0, 0, 640, 400)).equals(box(0, 0, 640, 200))


@pytest.mark.parametrize(
    "coordinates",
    [None, 3, "1, 2", {}, [], [[]], [[1, 2], [3, 4]], [[[1, 2], [3], [4, 5]]], [[[1, None]] * 4], [[[10**400, 1]] * 4]],
)
def test_coordinates_that_make_no_polygon(coordinates: object) -> None:
    with pytest.raises(ValueError, match=r"expected|there are none|not a finite|corners"):
        as_geometry("Polygon", coordinates)
