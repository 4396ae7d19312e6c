"""The scan block by block against one pass over the whole image."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import Model
from coarse2fine.models.firing import FIRED, NO_FEATURE
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import as_channels
from coarse2fine.steps import scan, scan_blocks
from coarse2fine.steps.scan import look
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.opening import open_image

MakeImage = Callable[..., NDArray[np.uint8]]


def whole_pass(pixels: NDArray[np.uint8], model: Model) -> Tensor:
    """High-level activations (c, h, w) from one plain pass over the edge-padded, scaled image."""
    image = open_image(pixels)
    down = model.geometry.scan_downsample
    plane = image.read_scaled(Box(0, 0, ceil_div(image.height, down), ceil_div(image.width, down)), down)
    spec = model.base.spec
    shape = model.cell_shape((image.height, image.width))
    rows, columns = (ceil_div(n, spec.align) * spec.align for n in shape)
    wanted = rows * spec.stride + spec.margin, columns * spec.stride + spec.margin
    ends = [(spec.margin, n - have) for n, have in zip(wanted, plane.shape[:2], strict=True)]
    padded = np.pad(plane, (*ends, (0, 0)), mode="edge")
    if padded.shape[-1] != model.channels:
        padded = np.repeat(padded, model.channels, axis=-1)
    x = (padded / 255 - np.array(model.mean)) / np.array(model.std)
    with torch.inference_mode():
        high = model.base.features(torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None])[-1]
    return high[0, :, : shape[0], : shape[1]]


def interest_of(high: Tensor, model: Model) -> NDArray[np.float32]:
    assert model.firing is not None
    with torch.inference_mode():
        return model.firing.probability(high[None], model.base.head(high[None]))[0].numpy()


@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([(1, 1), (1, 3), (3, 3)]),
    st.sampled_from([32, 44, 64, 1024]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_blocks_equal_one_pass(
    make_image: MakeImage,
    detector: Model,
    grey_detector: Model,
    runtime: Runtime,
    height: int,
    width: int,
    channels: tuple[int, int],
    block: int,
) -> None:
    pixels = make_image(height, width, channels[0], seed=height)
    model = detector if channels[1] == 3 else grey_detector
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_blocks, "BLOCK_PIXELS", block)
        found = look(open_image(pixels), model, runtime)
    assert found.interest.shape == model.cell_shape((height, width))
    np.testing.assert_allclose(found.interest, interest_of(whole_pass(pixels, model), model), atol=1e-5)


@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([1, 3]), st.sampled_from([32, 44, 64, 1024]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_blocks_of_a_network_of_timm_equal_one_pass(
    make_image: MakeImage,
    timm_detector: Model,
    runtime: Runtime,
    height: int,
    width: int,
    channels: int,
    block: int,
) -> None:
    pixels = make_image(height, width, channels, seed=height)
    shape = timm_detector.cell_shape((height, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_blocks, "BLOCK_PIXELS", block)
        parts = list(scan.features(open_image(pixels), timm_detector, runtime))
        assert sum(macs for *_, macs in parts) == scan_blocks.scan_macs(timm_detector, (height, width))
    whole = whole_pass(pixels, timm_detector)
    with torch.inference_mode():
        answer = timm_detector.base.head(whole[None])[0]
    covered = np.zeros(shape, np.uint8)
    for box, high, logit, _ in parts:
        view = (slice(box.y0, box.y1), slice(box.x0, box.x1))
        covered[view] += 1
        # Not the interest: it rises in steps, which rounding may cross.
        torch.testing.assert_close(high, whole[:, *view], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logit, answer[:, *view], atol=1e-4, rtol=1e-4)
    assert (covered == 1).all()


def test_scan_counts_its_work_and_names_what_fired(
    make_image: MakeImage, detector: Model, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_blocks, "BLOCK_PIXELS", 32)
    ticks: list[tuple[int, int]] = []
    found = look(open_image(make_image(100, 150)), detector, runtime, lambda done, total: ticks.append((done, total)))
    blocks = ceil_div(13, 8) * ceil_div(19, 8)
    assert ticks == [(i + 1, blocks) for i in range(blocks)]
    assert 13 * 19 * detector.base.spec.macs_per_cell < found.macs <= blocks * detector.base.spec.macs(8, 8)
    assert found.fired.shape == (13, 19, FIRED)
    assert detector.firing is not None
    named = found.fired[found.interest > 1e-3]
    assert len(named)
    assert np.isin(named, [*detector.firing.features, NO_FEATURE]).all()
    assert (found.fired[found.interest <= 1e-3] == NO_FEATURE).all()


def test_channels_are_made_to_fit() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    grey = as_channels(rgb, 1)
    assert grey.shape == (2, 9, 7, 1)
    assert np.abs(grey[..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(as_channels(grey, 3), np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(as_channels(rgb, 3), rgb)
    assert cv2.cvtColor(rgb[0], cv2.COLOR_RGB2GRAY).tolist() == grey[0, ..., 0].tolist()
