"""Conversion of pixels to a net's input: channels, scale, mean and standard deviation."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image


def fill_value(model: Model) -> int:
    """Grey level used for unreadable pixels: the model's mean."""
    return round(255 * float(np.mean(model.mean)))


def normalised(pixels: NDArray[np.uint8], model: Model, runtime: Runtime) -> Tensor:
    """Batch (n, h, w, c), uint8, with the model's channels and normalisation."""
    pixels = as_channels(pixels, model.channels)
    return runtime.pixels(pixels, np.array(model.mean, np.float32), np.array(model.std, np.float32))


_BLOCKS = 3


def sampled_blocks(image: Image, downsample: int, most: int) -> list[NDArray[np.uint8]]:
    """3 x 3 blocks (h, w, c) of a plane, at most `most` pixels a side.

    Raises
    ------
    ImageError
        If a block cannot be read.
    """
    height, width = ceil_div(image.height, downsample), ceil_div(image.width, downsample)
    side = min(most, height, width)
    ys, xs = (np.linspace(0, n - side, _BLOCKS).astype(int).tolist() for n in (height, width))
    return [image.read_scaled(Box(y, x, y + side, x + side), downsample) for y in ys for x in xs]


def sampled_pixels(image: Image, channels: int, downsample: int, most: int) -> list[NDArray[np.uint8]]:
    """Pixels (n, channels) of each of `sampled_blocks`; parameters and errors as there."""
    blocks = sampled_blocks(image, downsample, most)
    return [as_channels(block, channels).reshape(-1, channels) for block in blocks]


def as_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert grey to RGB, or RGB to grey by ITU-R 601 luma, if the number of channels differs."""
    found = pixels.shape[-1]
    if found == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    flat = pixels.reshape(-1, pixels.shape[-2], 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).reshape(*pixels.shape[:-1], 1)  # type: ignore[return-value]
