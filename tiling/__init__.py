"""Pixels, files and boxes: reading gigapixel images piece by piece, and writing them."""

from .canvas import Canvas
from .convert import Conversion, convert
from .errors import ImageError
from .geometry import Box, GeoReference, Level, PixelSize, ceil_div
from .grid import Tile, TileGrid, blocks
from .image import Image
from .opening import open_image
from .pyramid import write_pyramid
from .reader import Batch, WindowReader
from .stats import ReadStats

__all__ = [
    "Batch",
    "Box",
    "Canvas",
    "Conversion",
    "GeoReference",
    "Image",
    "ImageError",
    "Level",
    "PixelSize",
    "ReadStats",
    "Tile",
    "TileGrid",
    "WindowReader",
    "blocks",
    "ceil_div",
    "convert",
    "open_image",
    "write_pyramid",
]
