"""The simulated annotator: what it draws, what it costs, and how its curves are compared."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from benchmarks.annotate.annotator import Annotator
from benchmarks.annotate.data import data_sets, split
from benchmarks.annotate.run import f1_of, share_of_clicks

from coarse2fine.annotate.training import training_annotations
from coarse2fine.annotations.read import read_annotations
from coarse2fine.bench.score import LabelScore
from coarse2fine.region import Region

SQUARES = [(10, 10), (30, 30), (60, 10), (90, 90)]


def features(places: list[tuple[int, int]]) -> list[dict[str, object]]:
    return [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x, y], [x + 8, y], [x + 8, y + 8], [x, y + 8], [x, y]]],
            },
            "properties": {"classification": {"name": "cell"}},
        }
        for x, y in places
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five scenes of 100 x 100 pixels whose grey is their number, and a folder of something else."""
    (tmp_path / "cells").mkdir()
    (tmp_path / "notes").mkdir()
    for number in range(5):
        path = tmp_path / "cells" / f"{number}.png"
        assert cv2.imwrite(str(path), np.full((100, 100), 10 * number, np.uint8))
        payload = {"type": "FeatureCollection", "features": features(SQUARES[: number % 4 + 1])}
        path.with_suffix(".geojson").write_text(json.dumps(payload), "utf-8")
    return tmp_path


def test_a_click_is_an_object_or_the_end_of_a_place() -> None:
    annotator = Annotator(read_annotations(features(SQUARES)))
    annotator.annotate((0, 0, 50, 50))
    assert (annotator.objects, annotator.clicks, len(annotator.areas)) == (2, 3, 1)
    annotator.annotate((0, 0, 50, 50))
    assert (annotator.objects, annotator.clicks) == (2, 4)
    queue = iter([(0, 50, 50, 100), (50, 50, 100, 100), (50, 0, 100, 50)])
    annotator.follow(queue, 6)
    assert (annotator.objects, annotator.clicks) == (3, 6)
    annotator.follow(queue, 99)
    assert (annotator.objects, annotator.clicks) == (4, 9)
    made = read_annotations(training_annotations(annotator.items, (100, 100)), full_shape=(100, 100))
    assert len(made.objects) == 4
    assert len(made.regions) == 5 + 4  # the places, and what is known of each object


def test_right_finds_are_accepted_with_their_place_and_wrong_ones_are_clicks() -> None:
    annotator = Annotator(read_annotations(features(SQUARES)))
    finds = [
        Region("cell", 0.9, (10, 10, 18, 19)),  # right
        Region("cell", 0.8, (28, 28, 33, 33)),  # the second object, but its box is poor
        Region("cell", 0.7, (2, 40, 10, 48)),  # nothing is there
        Region("cell", 0.9, (90, 90, 98, 98)),  # in another place
    ]
    annotator.annotate((0, 0, 50, 50), finds)
    assert (annotator.objects, annotator.clicks, len(annotator.areas)) == (2, 4, 1)  # two wrong, one drawn, the place
    made = read_annotations(training_annotations(annotator.items, (100, 100)), full_shape=(100, 100))
    assert sorted(each.geometry.bounds for each in made.objects) == [(10, 10, 19, 18), (30, 30, 38, 38)]
    # What is decided is not asked again.
    annotator.annotate((0, 0, 50, 50), finds)
    assert (annotator.objects, annotator.clicks) == (2, 5)
    annotator.annotate((50, 50, 100, 100), finds)
    assert (annotator.objects, annotator.clicks) == (3, 6)


def test_scenes_to_test_on_are_others(folder: Path) -> None:
    sets = data_sets(folder)
    assert list(sets) == ["cells"]
    for seed in range(5):
        train, test = split(sets["cells"], 200, seed)
        assert train.pixels.shape == test.pixels.shape == (200, 100)
        assert not set(np.unique(train.pixels)) & set(np.unique(test.pixels))
        numbers = np.array([train.pixels[0, 0], train.pixels[-1, 0]]) // 10
        assert len(train.truth.objects) == sum(int(n) % 4 + 1 for n in numbers)
    cut, _ = split(sets["cells"], 50, 0)
    assert cut.pixels.shape == (50, 50)
    assert len(cut.truth.objects) <= 2


def test_a_folder_without_scenes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no folder of at least 4 images"):
        data_sets(tmp_path)


def test_f1_and_shares() -> None:
    assert f1_of(LabelScore(hits=6, false_alarms=2, objects=10)) == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert f1_of(LabelScore(0, 0, 0)) == 0
    clicks = (50, 100, 200)
    assert share_of_clicks([0.2, 0.6, 0.7], [0.2, 0.3, 0.4], clicks) == pytest.approx(75 / 200)
    assert share_of_clicks([0.5, 0.6, 0.7], [0.2, 0.5, 0.4], clicks) == pytest.approx(50 / 100)
    assert share_of_clicks([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], clicks) is None
    assert share_of_clicks([0, 0, 0], [0, 0, 0], clicks) is None
