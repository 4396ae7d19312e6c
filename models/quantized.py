"""Convolutions of a net in 8-bit integers, for scans of large images on CPUs.

Weights are quantised for each output channel, activations for each stage, by the range that they have in a sample
(Jacob et al. 2018, arXiv:1712.05877). Sums of integers are exact, so an answer does not depend on the batch or on the
number of threads. Activations take 7 bits: without VNNI instructions, sums of two products of 8 bits overflow.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .conv_stack import ConvStack, StackSpec

_LEVELS, _MOST_WEIGHT = 127, 127
# Activations above this share of a sample are cut off: a few large ones would make all others coarse.
_KEPT, _COUNTED = 0.9999, 2**20
# Mean error, as a share of the spread, up to which the operator computes what it should.
_NEAR = 0.1


class _Stage(NamedTuple):
    """Weights as oneDNN keeps them, their scales and zero points, and the scale of the output."""

    packed: Any
    scales: Tensor
    zeros: Tensor
    bias: Tensor
    stride: list[int]
    scale: float


class QuantizedStack:
    """A net whose stages but the last compute in 8-bit integers; the last, linear one, is that of the net.

    Parameters
    ----------
    net : ConvStack
        In evaluation mode, on the CPU, in any number format, which is that of the answers too.
    ranges : sequence of float
        Largest activation of each stage but the last; larger ones are cut off. See `activation_ranges`.
    mean, std : ndarray, float32, (c,)
        Normalisation of pixels in 0..1.
    """

    def __init__(
        self, net: ConvStack, ranges: Sequence[float], mean: NDArray[np.float32], std: NDArray[np.float32]
    ) -> None:
        self.spec: StackSpec = net.spec
        self._net, self._dtype = net, net.reader.weight.dtype
        values = np.arange(256, dtype=np.float32)[:, None] / (255.0 * std) - mean / std
        low = float(values.min())
        self._scale = float(values.max() - low) / _LEVELS
        self._zero = round(-low / self._scale)
        self._table = np.clip(np.round(values / self._scale) + self._zero, 0, _LEVELS).astype(np.uint8)[None]
        self._stages: list[_Stage] = []
        inputs = (self._scale, self._zero)
        for conv, most in zip(list(net.convs)[:-1], ranges, strict=True):
            self._stages.append(_packed(conv, inputs, most / _LEVELS))
            inputs = (self._stages[-1].scale, 0)

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """High-level activations (n, c, h, w), and answers (n, k, h, w).

        Parameters
        ----------
        pixels : ndarray, uint8, (n, h, w, c)
        """
        n, height, width, channels = pixels.shape
        levels = cv2.LUT(pixels.reshape(n * height, width, channels), self._table)
        q = torch.from_numpy(levels).view(n, height, width, channels).permute(0, 3, 1, 2)
        scale, zero = self._scale, self._zero
        for stage in self._stages:
            q = _convolved(q, scale, zero, stage)
            scale, zero = stage.scale, 0
        high = q.to(self._dtype).mul_(scale)
        return high, self._net.head(high)


def activation_ranges(net: ConvStack, x: Tensor) -> list[float]:
    """The largest activation of each stage but the last in a sample, without one in ten thousand.

    Parameters
    ----------
    net : ConvStack
    x : Tensor, float, (n, c, h, w)
    """
    plain = deepcopy(net).to("cpu", torch.float32)
    with torch.inference_mode():
        some = [h.flatten()[:: max(1, h.numel() // _COUNTED)] for h in plain.features(x.to("cpu", torch.float32))]
    return [max(float(torch.quantile(each, _KEPT)), 1e-6) for each in some]


@cache
def can_quantize() -> bool:
    """Whether this build of torch computes convolutions in 8-bit integers on this processor; on x86 that is faster.

    The operator has no stable interface: it is tried, and its answer compared.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    pixels = np.arange(512, dtype=np.uint8).reshape(2, 16, 16, 1)[:, :, ::-1].copy()
    mean, std = np.full(1, 0.4, np.float32), np.full(1, 0.3, np.float32)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.4) / 0.3
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        net = ConvStack(StackSpec.parse(1, "4/2:8 3:8 1:1")).eval()
        expected = net.high(x.clone())
        try:
            found, _ = QuantizedStack(net, activation_ranges(net, x), mean, std)(pixels)
        except (AttributeError, RuntimeError, TypeError):  # another version of torch
            return False
    return bool((found - expected).abs().mean() < _NEAR * expected.std())


def _packed(conv: Any, inputs: tuple[float, int], scale: float) -> _Stage:
    weight, bias, stride = conv.weight.detach().float(), conv.bias.detach().float(), list(conv.stride)
    scales = weight.abs().amax(dim=(1, 2, 3)).clamp_(min=1e-12) / _MOST_WEIGHT
    whole = (weight / scales[:, None, None, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qconv_prepack(whole, scales, *inputs, stride, [0, 0], [1, 1], 1, None)
    return _Stage(packed, scales, torch.zeros(len(scales), dtype=torch.int32), bias, stride, scale)


def _convolved(q: Tensor, scale: float, zero: int, stage: _Stage) -> Tensor:
    """Output of a stage after the ReLU, cut off at its range, uint8."""
    packed, scales, zeros, bias, stride, own = stage
    within = ("hardtanh", [0.0, own * _LEVELS], "")
    found: Tensor = torch.ops.onednn.qconv2d_pointwise(
        *(q, scale, zero, packed, scales, zeros, bias, stride, [0, 0], [1, 1], 1, own, 0, torch.uint8), *within
    )
    return found
