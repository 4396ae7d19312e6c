"""Training samples of a scan, and how they are shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coarse2fine.fitting.watching.samples import TileSamples, padded_side, places
from coarse2fine.fitting.watching.scan import _Batches, plan_scan
from coarse2fine.models.pooled import PooledSpec

SPEC = PooledSpec.parse(1, "pooled:6 4/2:4 3:4 1:1")


@given(st.floats(-5.9, 5.9), st.floats(-5.9, 5.9), st.floats(0.1, 8), st.floats(0.1, 8))
def test_the_cell_of_a_finds_centre_is_positive_and_none_beyond_its_box(
    y: float, x: float, height: float, width: float
) -> None:
    box = np.array([[y - height / 2, x - width / 2, y + height / 2, x + width / 2]])
    cells = places(box, 2, 6)
    assert cells[int((y + 6) // 2), int((x + 6) // 2)]
    for row, column in np.argwhere(cells):
        low, high = np.array([row, column]) * 2 - 6, np.array([row, column]) * 2 - 4
        # A positive cell meets the box.
        assert low[0] <= box[0, 2] + 1e-6
        assert high[0] >= box[0, 0] - 1e-6
        assert low[1] <= box[0, 3] + 1e-6
        assert high[1] >= box[0, 1] - 1e-6


def test_finds_of_neighbours_are_left_out() -> None:
    assert not places(np.array([[-20.0, 0, -10, 1], [0, 7, 1, 9]]), 2, 6).any()


@pytest.mark.parametrize("rotate", [True, False])
def test_finds_lie_where_their_pixels_are_shown(rotate: bool) -> None:
    """A bright square in the middle of its box, in samples shown at any size, place and orientation."""
    rng = np.random.default_rng(0)
    side, middle = padded_side(SPEC), padded_side(SPEC) / 2
    pixels, boxes = np.zeros((20, side, side, 1), np.uint8), []
    for sample in range(20):
        y, x = rng.integers(-4, 3, 2)
        pixels[sample, int(middle + y) : int(middle + y) + 2, int(middle + x) : int(middle + x) + 2] = 255
        boxes.append(np.array([[y, x, y + 2, x + 2]], np.float64))
    samples = TileSamples(pixels, tuple(boxes), located=True)
    make = _Batches(samples, SPEC, np.zeros(1, np.float32), np.ones(1, np.float32), rotate=rotate)
    seen, finds, valid = make(np.random.default_rng(1))
    assert seen.shape[2:] == (SPEC.input_size(1), SPEC.input_size(1))
    assert finds.shape == valid.shape == (len(seen), 1, 6, 6)
    margin = SPEC.margin
    for image, cells, known in zip(seen[:, 0].numpy(), finds[:, 0].numpy(), valid[:, 0].numpy(), strict=True):
        core = image[margin : margin + 12, margin : margin + 12].reshape(6, 2, 6, 2).mean(axis=(1, 3))
        brightest = np.unravel_index(core.argmax(), core.shape)
        near = cells[max(0, brightest[0] - 1) : brightest[0] + 2, max(0, brightest[1] - 1) : brightest[1] + 2]
        assert near.any()
        assert known[2:4, 2:4].all()


def test_classes_of_tiles_hold_everywhere() -> None:
    samples = TileSamples(
        np.zeros((2, padded_side(SPEC), padded_side(SPEC), 1), np.uint8),
        (np.array([[-6.0, -6, 6, 6]]), np.zeros((0, 4))),
        located=False,
    )
    make = _Batches(samples, SPEC, np.zeros(1, np.float32), np.ones(1, np.float32), rotate=True)
    _, finds, valid = make(np.random.default_rng(0))
    assert valid.numpy().all()
    assert set(finds.numpy().mean(axis=(1, 2, 3)).tolist()) == {0.0, 1.0}


@given(
    st.sampled_from([64, 96, 224, 250, 256, 500, 640, 1024]),
    st.floats(1, 32),
    st.floats(1e6, 1e11),
    st.booleans(),
)
def test_planned_scans_divide_the_tile_within_the_cost(tile: int, downsample: float, most: float, close: bool) -> None:
    plan = plan_scan(tile, 3, downsample, most, close=close)
    assert tile % plan.downsample == 0
    assert plan.spec.stride * plan.downsample == tile
    cheapest = plan_scan(tile, 3, downsample, 1, close=close)
    assert plan.tile_macs <= max(most, cheapest.tile_macs)
