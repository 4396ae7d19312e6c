"""The benchmark of objects of many sizes: its scenes, and how finds are counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarks.sizes import run
from benchmarks.sizes.scenes import SizesScene, make_scene

from coarse2fine.annotations.read import read_annotations
from coarse2fine.model import Model
from coarse2fine.region import Region

COUNTS = {100: 2, 20: 8}


@pytest.fixture(scope="module")
def scene() -> SizesScene:
    return make_scene(3, COUNTS, 512)


def test_objects_lie_apart_where_their_boxes_say(scene: SizesScene) -> None:
    assert (np.bincount(scene.sizes)[[20, 100]] == [8, 2]).all()
    ground = np.median(scene.pixels)
    taken = np.zeros(scene.pixels.shape, int)
    for (y0, x0, y1, x1), size in zip(scene.boxes.astype(int).tolist(), scene.sizes.tolist(), strict=True):
        assert abs(y1 - y0 - size) <= 0.16 * size
        inner = scene.pixels[y0 + size // 4 : y1 - size // 4, x0 + size // 4 : x1 - size // 4]
        assert abs(np.median(inner) - ground) > 15
        taken[y0:y1, x0:x1] += 1
    assert taken.max() == 1
    np.testing.assert_array_equal(scene.pixels, make_scene(3, COUNTS, 512).pixels)


def test_objects_of_other_sizes_are_ignored(scene: SizesScene) -> None:
    read = read_annotations(scene.annotations((20,)))
    assert len(read.objects) == 8
    assert len(read.ignored) == 2
    assert len(read_annotations(scene.annotations((20, 100))).objects) == 10


def test_finds_are_counted_by_size(scene: SizesScene, monkeypatch: pytest.MonkeyPatch, detector: Model) -> None:
    boxes = [tuple(box) for box in scene.boxes.tolist()]
    finds = [Region(shape, 0.9, box) for shape, box in zip(scene.shapes, boxes, strict=True)]
    small = int(np.argmax(scene.sizes == 20))
    wrong = Region("square" if scene.shapes[small] == "disc" else "disc", 0.9, boxes[small])
    finds[small] = wrong
    finds += [finds[0], Region("disc", 0.5, (0.0, 0.0, 3.0, 3.0))]  # again, and nothing

    class Given(SimpleNamespace):
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

    result = Given(regions=tuple(finds), cost=SimpleNamespace(macs=2e9))
    monkeypatch.setattr(run, "analyze", lambda *_, **__: result)
    found = run.measured(detector, [scene], (100, 20))
    assert found == {"recall": {"100": 1.0, "20": 7 / 8}, "false": 3.0, "GMAC": 2.0}
    # Finds of objects of other sizes are not false: the first object is one of 100 px.
    assert run.measured(detector, [scene], (20,))["false"] == 2.0
