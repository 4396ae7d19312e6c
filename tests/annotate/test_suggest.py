"""Places to annotate next, and what a fit learns from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine.annotate.suggest import Evidence, places, suggest, unsureness
from coarse2fine.annotate.training import training_annotations
from coarse2fine.annotations.annotated import AnnotatedArea, AnnotationError
from coarse2fine.annotations.read import read_annotations
from tests.annotate.local import boxed

SHAPE = (400, 600)


def evidence(finds: list[tuple[float, float, float]], skips: dict[tuple[int, int], float]) -> Evidence:
    """Finds (y, x, score), and interest of skipped cells of 10 pixels; the threshold is 0.5."""
    table = np.array(finds, np.float64).reshape(-1, 3)
    skipped = np.zeros((40, 60), np.float32)
    for cell, value in skips.items():
        skipped[cell] = value
    return Evidence(table[:, :2], table[:, 2], 0.5, skipped, 10)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_places_cover_the_image_once(height: int, width: int, side: int) -> None:
    count = np.zeros((height, width), int)
    for y0, x0, y1, x1 in places((height, width), side).tolist():
        assert 0 < y1 - y0 <= side
        assert 0 < x1 - x0 <= side
        count[y0:y1, x0:x1] += 1
    assert (count == 1).all()


def test_unsure_finds_and_skips_come_first() -> None:
    told = evidence([(50, 50, 0.52), (250, 350, 0.99), (350, 550, 0.3)], {(15, 5): 0.4, (25, 25): 0.1})
    found = suggest(SHAPE, 100, [], told, count=24)
    assert [place.kind for place in found[:4]] == ["find", "skip", "find", "random"]
    assert found[0].full_box == (0, 0, 100, 100)  # 0.52 is next to the threshold
    assert found[1].full_box == (100, 0, 200, 100)
    assert found[2].full_box == (300, 500, 400, 600)  # 0.3 is nearer to the threshold than 0.99
    assert sorted(place.full_box for place in found) == sorted(map(tuple, places(SHAPE, 100).tolist()))
    assert found == suggest(SHAPE, 100, [], told, count=24)


def test_many_unsure_finds_outweigh_one() -> None:
    told = evidence([(50, 50, 0.5), *((250, 250, 0.6),) * 3], {})
    assert suggest(SHAPE, 100, [], told, count=1)[0].full_box == (200, 200, 300, 300)


def test_what_is_done_is_left_out() -> None:
    told = evidence([(50, 50, 0.5), (150, 50, 0.5)], {})
    done = [shapely.box(0, 0, 100, 100), shapely.box(0, 100, 40, 200)]  # all of one place, 40% of another
    found = {place.full_box for place in suggest(SHAPE, 100, done, told, count=99)}
    assert (0, 0, 100, 100) not in found
    assert (100, 0, 200, 100) in found
    assert suggest(SHAPE, 100, [shapely.box(0, 0, 600, 400)], told, count=5) == []


def test_without_a_model_places_are_random_and_even() -> None:
    first = Counter(suggest(SHAPE, 100, [], None, count=1, seed=seed)[0].full_box for seed in range(1200))
    assert len(first) == 24
    # 1200 draws of 24 places: 50 each, with a standard deviation of 7
    assert all(20 < count < 85 for count in first.values())
    assert {place.kind for place in suggest(SHAPE, 100, [], None, count=9)} == {"random"}


def test_unsureness_is_symmetric_in_odds() -> None:
    at, above, below = unsureness(np.array([0.2, 0.5, 0.0588235]), 0.2)
    assert at == 1
    assert above == pytest.approx(below, rel=1e-4)  # odds of 1 and 1/16, around 1/4
    assert np.isfinite(unsureness(np.array([0.0, 1.0]), 0.5)).all()


# Training


def test_without_regions_everything_counts() -> None:
    items = [boxed(10, 10, 20, 20), boxed(50, 50, 60, 60, coarse2fine={"rejected": True})]
    made = read_annotations(training_annotations(items, SHAPE), full_shape=SHAPE)
    assert len(made.objects) == 1
    assert not made.regions


def test_with_regions_only_they_and_decided_places_count() -> None:
    point = {**boxed(0, 0, 1, 1), "geometry": {"type": "Point", "coordinates": [300, 300]}}
    items = [
        boxed(0, 0, 100, 100, "Region*"),
        boxed(10, 10, 30, 30),
        boxed(200, 200, 220, 220),
        point,
        boxed(500, 50, 520, 70, coarse2fine={"rejected": True}),
    ]
    made = read_annotations(training_annotations(items, SHAPE), full_shape=SHAPE)
    assert len(made.objects) == 3
    known = AnnotatedArea(made).contains
    ys, xs = np.array([(50, 50), (210, 210), (300, 300), (60, 510), (150, 150), (250, 500)], np.float64).T
    assert known(ys, xs).tolist() == [True, True, True, True, False, False]


def test_nothing_drawn_is_told() -> None:
    with pytest.raises(AnnotationError, match="nothing is drawn yet"):
        training_annotations([boxed(0, 0, 50, 50, "Region*")], SHAPE)
