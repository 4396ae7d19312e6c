"""Augmentation and normalisation of training crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Geometry
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.preprocess import as_channels
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.orientation import Turn


def turn_planes(planes: NDArray[np.float32], turn: Turn) -> NDArray[np.float32]:
    """Transform (c, h, w) planes."""
    return np.ascontiguousarray(turn.apply(planes, 1, 2))


def turn_boxes(planes: NDArray[np.float32], turn: Turn) -> NDArray[np.float32]:
    """Transform box planes (4, h, w): offsets and sizes change with the positions."""
    planes = turn_planes(planes, turn)
    if turn.transpose:
        planes = planes[[1, 0, 3, 2]]
    sign = np.array([-1 if turn.mirror_y else 1, -1 if turn.mirror_x else 1, 1, 1], np.float32)
    return planes * sign[:, None, None]


@dataclass(frozen=True)
class Recipe:
    """Settings shared by the training of both nets."""

    geometry: Geometry
    refiner: StackSpec
    channels: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    rotate: bool
    steps: int
    seed: int
    width: float = 1.0

    def turn(self, rng: np.random.Generator) -> Turn:
        """A random symmetry; the identity if objects have a right way up."""
        flags = rng.random(3) < 0.5
        return Turn(*flags.tolist()) if self.rotate else Turn(False, False, False)

    def planes(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise (h, w, c) pixels to (c, h, w) planes."""
        x = as_channels(pixels, self.channels).astype(np.float32) / 255
        return ((x - self.mean) / self.std).astype(np.float32).transpose(2, 0, 1)

    def relit(self, planes: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Vary contrast, brightness and, for colour images, tint."""
        tint = rng.normal(0, 0.1, (self.channels, 1, 1)) if self.channels > 1 else 0.0
        return (planes * rng.uniform(0.8, 1.25) + rng.normal(0, 0.2) + tint).astype(np.float32)


def normalisation(
    images: Sequence[Image], channels: int, downsample: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel, pixels in 0..1, from a 3 x 3 grid of blocks in each scene."""
    samples = []
    for image in images:
        height, width = ceil_div(image.height, downsample), ceil_div(image.width, downsample)
        side = min(512, height, width)
        for y in np.linspace(0, height - side, 3).astype(int).tolist():
            for x in np.linspace(0, width - side, 3).astype(int).tolist():
                block = image.read_scaled(Box(y, x, y + side, x + side), downsample)
                samples.append(as_channels(block, channels).reshape(-1, channels)[::7])
    pixels = np.concatenate(samples).astype(np.float32) / 255
    return pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 0.02)
