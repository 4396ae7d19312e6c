"""Whether the scans of a model may compute in 8-bit integers, and the ranges that they need for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.cascade import CascadeStage
from coarse2fine.fitting.calibrate import CalibrationSet, scanned_cells
from coarse2fine.fitting.scene import Scene
from coarse2fine.model import Model
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.firing import area_for_recall
from coarse2fine.models.quantized import activation_ranges, can_quantize
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import as_channels, normalised, sampled_blocks
from coarse2fine.steps.scan_net import integer_net
from coarse2fine.tiling.errors import ImageError

# Integers may need so much more area for these shares of the finds, in the mean and for each: few finds decide one.
_MORE_AREA, _MOST_AREA, _RECALLS = 1.03, 1.1, (0.9, 0.95, 0.99)
_SCENES, _SIDE = 16, 256


def integer_ranges(model: Model, setting: CalibrationSet) -> list[list[float] | None]:
    """For each stage the ranges of its activations, if it chooses as well in 8-bit integers; empty if none does.

    A stage does if it needs hardly more area of the held-out cells for a share of the finds.

    Parameters
    ----------
    model : Model
        With its firing rules.
    setting : CalibrationSet
    """
    if not can_quantize():
        return []
    found: list[list[float] | None] = []
    for level in model.levels:
        ranges = _ranges(level, model, setting.scenes)
        agrees = ranges is not None and _agrees(level, model, setting, ranges)
        found.append([round(each, 4) for each in ranges] if ranges is not None and agrees else None)
    return found if any(found) else []


def _ranges(level: CascadeStage, model: Model, scenes: Sequence[Scene]) -> list[float] | None:
    """Largest activations in blocks of the scenes; None for other nets."""
    if not isinstance(level.net, ConvStack):
        return None
    runtime, side = Runtime(torch.device("cpu"), torch.float32), level.net.spec.input_size(1)
    every = []
    for scene in scenes[:_SCENES]:
        for block in _blocks(scene, level.downsample):
            if min(block.shape[:2]) >= side:
                pixels = as_channels(block[None], model.channels)
                every.append(activation_ranges(level.net, normalised(pixels, model, runtime)))
    return np.max(every, axis=0).tolist() if every else None


def _blocks(scene: Scene, downsample: int) -> list[NDArray[np.uint8]]:
    """Blocks of a scene; none if one cannot be read, which the other scenes make up for."""
    try:
        return sampled_blocks(scene.image, downsample, _SIDE)
    except ImageError:
        return []


def _agrees(level: CascadeStage, model: Model, setting: CalibrationSet, ranges: list[float]) -> bool:
    cpu = Runtime(torch.device("cpu"), torch.float32)
    _, (_, plain, target) = scanned_cells(model, setting, level)
    _, (_, whole, _) = scanned_cells(model, setting, level, integer_net(level, model, cpu, ranges))
    if not target.sum() > 0:
        return False
    areas = np.array([[area_for_recall(logit, target, r) for r in _RECALLS] for logit in (plain, whole)])
    more = areas[1] / areas[0]
    return bool(more.mean() <= _MORE_AREA and more.max() <= _MOST_AREA)
