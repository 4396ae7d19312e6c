"""The net of a cascade stage as a scan runs it: in the number format of the analysis, or in 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.cascade import CascadeStage
from coarse2fine.model import Model
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.quantized import QuantizedStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import as_channels, normalised
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.image import Image

ScanNet: TypeAlias = Callable[[NDArray[np.uint8]], tuple[Tensor, Tensor]]
"""From pixels, uint8, (n, h, w, c), to high-level activations (n, c, h, w) and answers (n, k, h, w)."""

KEY = "activation_ranges"
"""Key in a model's provenance: for each scan, the coarsest first, the largest activation of each stage but the last."""
# Pixels of a plane from which its scan computes in integers: below, there is no time to save.
_LARGE = 2**22
_MOST_MEAN, _LEAST_STD, _MOST_STD = 100.0, 1e-3, 1e3


def plain_net(level: CascadeStage, model: Model, runtime: Runtime) -> ScanNet:
    """The stage's net in the number format of the runtime."""
    net = runtime.place(level.net)

    def answer(pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        high = net.high(normalised(pixels, model, runtime))
        return high, net.head(high)

    return answer


def integer_net(level: CascadeStage, model: Model, runtime: Runtime, ranges: list[float]) -> ScanNet:
    """The stage's net in 8-bit integers, see `QuantizedStack`; its net must be a `ConvStack`."""
    net = runtime.place(level.net)
    assert isinstance(net, ConvStack)
    stack = QuantizedStack(net, ranges, np.array(model.mean, np.float32), np.array(model.std, np.float32))
    return lambda pixels: stack(as_channels(pixels, model.channels))


def scan_net(level: CascadeStage, model: Model, runtime: Runtime, image: Image) -> ScanNet:
    """The stage's net for an image: in integers if that saves time, and if fitting found that it chooses as well.

    A scan that chooses specialists or experts does not compute in integers: cells that it left out are scanned again
    when they are refined, and must get the same answer.
    """
    ranges = _ranges_for(level, model, runtime, image)
    return plain_net(level, model, runtime) if ranges is None else integer_net(level, model, runtime, ranges)


def in_integers(level: CascadeStage, model: Model, runtime: Runtime, image: Image) -> bool:
    """Whether the scan of a stage computes in integers, see `scan_net`."""
    return _ranges_for(level, model, runtime, image) is not None


def _ranges_for(level: CascadeStage, model: Model, runtime: Runtime, image: Image) -> list[float] | None:
    """Ranges of the activations of a stage, if it computes in integers."""
    routes = model.scan_groups is not None or model.refiner.routed
    # Normalisation that is far from any pixel leaves no integers for them.
    moderate = max(map(abs, model.mean)) < _MOST_MEAN and _LEAST_STD < min(model.std) <= max(model.std) < _MOST_STD
    allowed = runtime.integers and moderate and not (routes or model.refiner.learns)
    return known_ranges(level, model) if allowed and _is_large(image, level.downsample) else None


def known_ranges(level: CascadeStage, model: Model) -> list[float] | None:
    """Ranges of the activations of a stage in the model's provenance, if they fit its net."""
    known, levels = model.provenance.get(KEY), model.levels
    number = next((i for i, each in enumerate(levels) if each.net is level.net), None)
    if number is None or not isinstance(known, list) or len(known) != len(levels):
        return None
    found = known[number]
    if not isinstance(level.net, ConvStack) or not isinstance(found, list):
        return None
    fits = len(found) == len(level.net.convs) - 1 and all(isinstance(each, int | float) for each in found)
    return [float(each) for each in found] if fits and all(1e-9 < each < 1e9 for each in found) else None


def _is_large(image: Image, downsample: int) -> bool:
    return ceil_div(image.height, downsample) * ceil_div(image.width, downsample) >= _LARGE
