"""Conversion of pixels to a net's input: channels, scale, mean and standard deviation."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime


def fill_value(model: Model) -> int:
    """Grey level used for unreadable pixels: the model's mean."""
    return round(255 * float(np.mean(model.mean)))


def normalised(pixels: NDArray[np.uint8], model: Model, runtime: Runtime) -> Tensor:
    """Batch (n, h, w, c), uint8, with the model's channels and normalisation."""
    pixels = as_channels(pixels, model.channels)
    return runtime.pixels(pixels, np.array(model.mean, np.float32), np.array(model.std, np.float32))


def as_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert grey to RGB, or RGB to grey by ITU-R 601 luma, if the number of channels differs."""
    found = pixels.shape[-1]
    if found == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    flat = pixels.reshape(-1, pixels.shape[-2], 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).reshape(*pixels.shape[:-1], 1)  # type: ignore[return-value]
