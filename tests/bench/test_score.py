from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine import Model, Region
from coarse2fine.annotations.read import read_annotations
from coarse2fine.bench.score import Labelled, against_exhaustive
from coarse2fine.refiners.protocol import Label
from tests.refining import relabelled


def region(y: float, x: float, side: float, label: str = "a", score: float = 0.9) -> Region:
    return Region(label, score, (y - side / 2, x - side / 2, y + side / 2, x + side / 2))


@pytest.mark.parametrize(("shift", "same"), [(3.9, 1.0), (4.0, 1.0), (4.1, 0.0)])
def test_small_finds_are_the_same_up_to_half_a_cell(shift: float, same: float) -> None:
    assert against_exhaustive([region(20, 20 + shift, 4)], [region(20, 20, 4)], 8) == same


@pytest.mark.parametrize(("shift", "same"), [(33.0, 1.0), (34.0, 0.0)])
def test_large_finds_are_the_same_above_half_overlap(shift: float, same: float) -> None:
    assert against_exhaustive([region(200, 200 + shift, 100)], [region(200, 200, 100)], 8) == same


def test_a_find_of_another_class_or_counted_already_is_not_the_same() -> None:
    assert against_exhaustive([region(20, 20, 9, "b")], [region(20, 20, 9)], 8) == 0.0
    assert against_exhaustive([region(20, 20, 9)], [region(20, 20, 9), region(21, 20, 30)], 8) == 0.5
    assert against_exhaustive([], [region(20, 20, 9)], 8) == 0.0
    assert math.isnan(against_exhaustive([region(20, 20, 9)], [], 8))


sizes = st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from([6, 20]), st.sampled_from("ab"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(sizes, max_size=7), st.lists(sizes, min_size=1, max_size=7))
def test_matching_equals_trying_everything(found: list[Any], there: list[Any]) -> None:
    a, b = ([region(*row) for row in rows] for rows in (found, there))
    assert against_exhaustive(a, b, 8) == pytest.approx(_most_pairs(a, b) / len(b))


def _most_pairs(found: list[Region], there: list[Region]) -> int:
    if not there:
        return 0
    first, rest = there[0], there[1:]
    best = _most_pairs(found, rest)
    for i, other in enumerate(found):
        (y, x), (v, u) = first.full_centre, other.full_centre
        p, q = first.full_box, other.full_box
        common = max(0, min(p[2], q[2]) - max(p[0], q[0])) * max(0, min(p[3], q[3]) - max(p[1], q[1]))
        union = sum((r[2] - r[0]) * (r[3] - r[1]) for r in (p, q)) - common
        if first.label == other.label and (math.hypot(y - v, x - u) <= 4 or common > 0.5 * union):
            best = max(best, 1 + _most_pairs(found[:i] + found[i + 1 :], rest))
    return best


def feature(label: str, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": label}}}


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def test_labels_are_reached_within_a_cell_or_half_the_longer_side(grey_detector: Model) -> None:
    truth = read_annotations(collection(feature("left", 100, 96, 104, 104), feature("left", 200, 0, 300, 20)))
    near = [region(100, 110, 6, "left"), region(10, 299, 6, "left")]
    assert Labelled(truth, grey_detector).score(near).recall == 1.0
    far = [region(100, 110.1, 6, "left"), region(10, 301, 6, "left"), region(100, 102, 6, "right")]
    score = Labelled(truth, grey_detector).score(far)
    assert (score.hits, score.false_alarms, score.objects) == (0, 3, 2)


def test_nothing_counts_where_nobody_has_looked(grey_detector: Model) -> None:
    truth = read_annotations(
        collection(
            feature("Region*", 0, 0, 200, 200),
            feature("Ignore*", 0, 0, 50, 50),
            feature("left", 10, 10, 30, 30),
            feature("left", 100, 100, 120, 120),
        )
    )
    places = [(20, 20), (110, 110), (40, 10), (150, 150), (300, 300)]
    score = Labelled(truth, grey_detector).score([region(y, x, 9, "left") for y, x in places])
    assert (score.hits, score.false_alarms, score.objects) == (1, 1, 1)


def test_areas_are_left_out_and_points_have_the_typical_size(grey_detector: Model) -> None:
    point = feature("left", 0, 0, 1, 1) | {"geometry": {"type": "Point", "coordinates": [50, 50]}}
    truth = read_annotations(collection(feature("right", 0, 0, 40, 40), point))
    model = relabelled(replace(grey_detector, provenance={"median_size": 60.0}), Label("left"), Label("right", "area"))
    score = Labelled(truth, model).score([region(50, 79, 9, "left"), region(20, 20, 40, "right")])
    assert (score.hits, score.false_alarms, score.objects) == (1, 0, 1)
    assert Labelled(truth, grey_detector).score([]).recall == 0.0
    assert math.isnan(Labelled(truth, grey_detector).score([]).precision)
