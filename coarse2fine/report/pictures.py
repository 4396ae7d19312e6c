"""Parts of an image as pictures in a page."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.results.overlays import data_uri, encoded
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image


def bgr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels as OpenCV writes them."""
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)


def around(window: Box, image: Image, least: int) -> Box:
    """A square of at least `least` pixels around a window, shifted into the image, and clipped if it is larger."""
    side = max(least, window.height, window.width)
    height, width = min(side, image.height), min(side, image.width)
    y, x = (window.y0 + window.y1) / 2, (window.x0 + window.x1) / 2
    y0 = min(max(0, int(y) - height // 2), image.height - height)
    x0 = min(max(0, int(x) - width // 2), image.width - width)
    return Box(y0, x0, y0 + height, x0 + width)


def crop(image: Image, box: Box, most: int) -> str:
    """Pixels of a box as a data URI; at full resolution unless a side is longer than `most` pixels."""
    shrink = ceil_div(max(box.height, box.width), most)
    part = Box(box.y0 // shrink, box.x0 // shrink, ceil_div(box.y1, shrink), ceil_div(box.x1, shrink))
    try:
        pixels = image.read_scaled(part, shrink)
    except ImageError:  # listed among the failures already
        pixels = np.zeros((part.height, part.width, 3), np.uint8)
    return data_uri(encoded(bgr(pixels), ".jpg", 88), ".jpg")
