"""Pixels, files and boxes: reading gigapixel images piece by piece, and writing them."""

from .errors import ImageError
from .geometry import Box, Level, ceil_div
from .grid import blocks
from .image import Image, ReadStats, open_image
from .pyramid import write_pyramid
from .reader import Batch, WindowReader

__all__ = [
    "Batch",
    "Box",
    "Image",
    "ImageError",
    "Level",
    "ReadStats",
    "WindowReader",
    "blocks",
    "ceil_div",
    "open_image",
    "write_pyramid",
]
