"""Nets in 8-bit integers beside the same nets in float32, and beside sums of integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coarse2fine.models import quantized
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.quantized import QuantizedStack, activation_ranges, can_quantize
from coarse2fine.models.threads import threads_here

pytestmark = pytest.mark.skipif(not can_quantize(), reason="torch computes no 8-bit convolutions here")

MEAN, STD = np.array([0.45, 0.5, 0.4], np.float32), np.array([0.2, 0.25, 0.3], np.float32)


def net_of(text: str, channels: int, seed: int = 0) -> ConvStack:
    torch.manual_seed(seed)
    return ConvStack(StackSpec.parse(channels, text)).eval()


def pixels_of(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def as_input(pixels: NDArray[np.uint8]) -> torch.Tensor:
    scaled = (pixels.astype(np.float32) / 255 - MEAN[: pixels.shape[-1]]) / STD[: pixels.shape[-1]]
    return torch.from_numpy(scaled).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("text", "channels"), [("4/2:12 4/2:24 3:32 1:32 1:1", 1), ("4/2:16 3:32 3:32 1:2", 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_near_those_in_float32(text: str, channels: int, dtype: torch.dtype) -> None:
    net, pixels = net_of(text, channels), pixels_of((3, 58, 74, channels))
    x = as_input(pixels)
    ranges = activation_ranges(net, x)
    with torch.inference_mode():
        plain = net.high(x.clone())
        expected = net.head(plain)
        fast = QuantizedStack(net.to(dtype), ranges, MEAN[:channels], STD[:channels])
        high, answer = fast(pixels)
    assert high.dtype == answer.dtype == dtype
    assert high.shape == plain.shape
    assert float((high.float() - plain).abs().mean()) < 0.05 * float(plain.std())
    assert np.corrcoef(answer.float().flatten(), expected.flatten())[0, 1] > 0.98


def test_answers_depend_on_no_batch_and_no_threads() -> None:
    net, pixels = net_of("4/2:16 3:32 1:1", 1), pixels_of((37, 22, 30, 1))
    fast = QuantizedStack(net, activation_ranges(net, as_input(pixels)), MEAN[:1], STD[:1])
    with torch.inference_mode():
        whole = fast(pixels)
        for first, last in ((0, 1), (3, 10), (30, 37)):
            for part, all_of_it in zip(fast(pixels[first:last]), whole, strict=True):
                torch.testing.assert_close(part, all_of_it[first:last], rtol=0, atol=0)
        with threads_here(3):
            torch.testing.assert_close(fast(pixels), whole, rtol=0, atol=0)


def test_sums_do_not_overflow() -> None:
    """The largest inputs and weights of one sign: sums of two products of 8 bits would exceed 16 bits."""
    net = net_of("3:8 1:1", 1)
    with torch.no_grad():
        weight, bias = next(iter(net.convs)).parameters()
        weight.fill_(0.7)
        bias.fill_(0.0)
    pixels = np.full((2, 9, 9, 1), 255, np.uint8)
    largest = float((1 - MEAN[0]) / STD[0])
    with torch.inference_mode():
        high, _ = QuantizedStack(net, [9 * 0.7 * largest], MEAN[:1], STD[:1])(pixels)
    np.testing.assert_allclose(high.numpy(), 9 * 0.7 * largest, rtol=0.02)


def test_activations_beyond_the_range_are_cut_off() -> None:
    net, pixels = net_of("4/2:16 3:32 1:1", 1), pixels_of((4, 40, 40, 1))
    ranges = [0.25 * each for each in activation_ranges(net, as_input(pixels))]
    with torch.inference_mode():
        high, _ = QuantizedStack(net, ranges, MEAN[:1], STD[:1])(pixels)
    assert 0 <= float(high.min()) <= float(high.max()) <= ranges[-1] * (1 + 1e-5)


def test_ranges_hold_nearly_all_activations() -> None:
    net, x = net_of("4/2:16 3:32 1:1", 1), as_input(pixels_of((2, 200, 200, 1)))
    with torch.inference_mode():
        for most, activations in zip(activation_ranges(net, x), net.features(x), strict=True):
            assert 0 < float((activations > most).float().mean()) < 1e-3


def test_an_operator_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions of torch take the inverse of a scale."""
    right = quantized._convolved

    def inverse(q: torch.Tensor, scale: float, zero: int, stage: quantized._Stage) -> torch.Tensor:
        return right(q, scale, zero, stage._replace(scale=1 / stage.scale))

    can_quantize.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            quantized, "_convolved", lambda q, s, z, stage: right(q, s, z, stage._replace(scale=1 / stage.scale))
        )
        assert not can_quantize()
        can_quantize.cache_clear()
        patch.setattr(torch.ops.onednn, "qconv_prepack", None)
        assert not can_quantize()
    can_quantize.cache_clear()
    assert can_quantize()
