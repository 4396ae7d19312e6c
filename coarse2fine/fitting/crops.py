"""Augmentation and normalisation of training crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import Geometry, Model
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.preprocess import as_channels, sampled_pixels
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.orientation import Turn


def turn_planes(planes: NDArray[Any], turn: Turn) -> NDArray[Any]:
    """Transform planes (..., h, w)."""
    return np.ascontiguousarray(turn.apply(planes, -2, -1))


def turn_boxes(planes: NDArray[np.float32], turn: Turn) -> NDArray[np.float32]:
    """Transform box planes (..., 4, h, w): offsets and sizes change with the positions."""
    planes = turn_planes(planes, turn)
    if turn.transpose:
        planes = planes[..., [1, 0, 3, 2], :, :]
    sign = np.array([-1 if turn.mirror_y else 1, -1 if turn.mirror_x else 1, 1, 1], np.float32)
    return planes * sign[:, None, None]


def within(corner: NDArray[np.int64], side: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """The corner (y, x) moved so that a square lies in a map of this shape; if it does not fit, in its middle."""
    room = np.array(shape) - side
    least = np.minimum(room, 0) // 2
    return np.clip(corner, least, np.maximum(room, least))


@dataclass(frozen=True)
class Recipe:
    """Settings shared by the training of both nets; `start` is a model to go on from."""

    geometry: Geometry
    refiner: StackSpec
    channels: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    rotate: bool
    steps: int
    seed: int
    width: float = 1.0
    start: Model | None = None

    def turn(self, rng: np.random.Generator) -> Turn:
        """A random symmetry; the identity if objects have a right way up."""
        turn = Turn.random(rng)
        return turn if self.rotate else Turn(False, False, False)

    def batch(self, pixels: NDArray[np.uint8], turn: Turn, rng: np.random.Generator, grain: float = 0.0) -> Tensor:
        """A net's input (n, c, h, w) from pixels (n, h, w, c): turned, with varied light, and noise.

        Contrast, brightness and, for colour images, tint vary from crop to crop.

        Parameters
        ----------
        pixels : ndarray, uint8, (n, h, w, channels)
        turn : Turn
        rng : Generator
        grain : float
            Largest added noise, in standard deviations of the scenes' pixels.
        """
        n, c = len(pixels), self.channels
        gain = rng.uniform(0.8, 1.25, (n, 1))
        shift = rng.normal(0, 0.2, (n, 1)) + (rng.normal(0, 0.1, (n, c)) if c > 1 else 0.0)
        # One multiplication and one addition for each pixel.
        factor, added = (
            torch.from_numpy(each.astype(np.float32)).view(n, 1, 1, c)
            for each in (gain / (255 * self.std), shift - gain * self.mean / self.std)
        )
        x = torch.from_numpy(np.ascontiguousarray(turn.apply(pixels, 1, 2))).float().mul_(factor).add_(added)
        if grain:
            noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
            x.add_(noise.mul_(torch.from_numpy(rng.uniform(0, grain, (n, 1, 1, 1)).astype(np.float32))))
        return x.permute(0, 3, 1, 2)

    def plain(self, pixels: NDArray[np.uint8]) -> Tensor:
        """A net's input (n, c, h, w) from pixels (n, h, w, c) as they are."""
        return torch.from_numpy(np.stack([self.planes(each) for each in pixels]))

    def planes(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise (h, w, c) pixels to (c, h, w) planes."""
        x = as_channels(pixels, self.channels).astype(np.float32) / 255
        return ((x - self.mean) / self.std).astype(np.float32).transpose(2, 0, 1)


def normalisation(
    images: Sequence[Image], channels: int, downsample: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel, pixels in 0..1, from a 3 x 3 grid of blocks in each scene."""
    samples = [block[::7] for image in images for block in sampled_pixels(image, channels, downsample, 512)]
    pixels = np.concatenate(samples).astype(np.float32) / 255
    return pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 0.02)
