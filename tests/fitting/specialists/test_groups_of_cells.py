"""Groups of held-out cells, whose number limits what can be significant."""

from __future__ import annotations

import numpy as np
import pytest

from coarse2fine import open_image
from coarse2fine.annotations.read import read_annotations
from coarse2fine.fitting.scene import PART, Scene
from coarse2fine.fitting.specialists.unsure_cells import group_of, most_groups
from coarse2fine.refiners.protocol import Label
from tests.fitting.discs import discs


@pytest.mark.parametrize(
    ("count", "side", "groups"), [(1, 256, 1), (4, 256, 4), (4, 500, 16), (7, 256, 7), (2, 1500, 18)]
)
def test_groups_are_counted_before_cells_are_drawn(count: int, side: int, groups: int) -> None:
    known = read_annotations(discs(0)[0][1])
    image = open_image(np.zeros((side, side), np.uint8))
    scenes = [Scene(image, known, [Label("disc")], fine_cell=8, largest=40, nominal=20) for _ in range(count)]
    for scene in scenes:
        scene.held[:] = True
    assert most_groups(scenes) == groups
    parts = [(s, y, x) for s, scene in enumerate(scenes) for y, x in np.argwhere(scene.held).tolist()]
    found = set()
    for number, (s, y, x) in enumerate(parts):
        height, width = np.minimum(np.array(scenes[s].cell_shape) - np.array([y, x]) * PART, PART)
        low, right = np.mgrid[:height, :width] >= PART // 2
        found |= set(np.asarray(group_of([each for each, _, _ in parts], number, low, right)).ravel().tolist())
    assert len(found) == groups
