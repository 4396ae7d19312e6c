"""Small pictures of a large image: overview, interest overlay and thumbnail."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache, partial

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.region import Region
from coarse2fine.results.colours import label_colours
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import salvage

PAGE_SIDE = 1400
HEAT = "YlOrRd"
_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}
_THUMBNAIL_SIDE = 512
_LEAST_MARK = 3
_MOST_MARKS = 20_000


def read_overview(image: Image) -> tuple[NDArray[np.uint8], int]:
    """Overview of the image, (h, w) or (h, w, 3), at most `PAGE_SIDE` pixels, black where damaged; its downsample."""
    downsample = ceil_div(max(image.height, image.width), PAGE_SIDE)
    whole = Box(0, 0, ceil_div(image.height, downsample), ceil_div(image.width, downsample))
    pixels = salvage(partial(image.read_scaled, downsample=downsample), whole)
    return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels), downsample


def to_overview(
    cells: NDArray[np.float32], cell: int, downsample: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Largest cell value under each overview pixel, so that a single cell still shows."""
    ratio = downsample / cell
    if ratio > 1:
        reach = int(np.ceil(ratio))
        cells = np.asarray(cv2.dilate(cells, np.ones((reach, reach), np.uint8)), np.float32)
    y = np.minimum(((np.arange(shape[0]) + 0.5) * ratio).astype(int), cells.shape[0] - 1)
    x = np.minimum(((np.arange(shape[1]) + 0.5) * ratio).astype(int), cells.shape[1] - 1)
    return cells[np.ix_(y, x)]


def heat_pixels(values: NDArray[np.float32], highest: float) -> NDArray[np.uint8]:
    """Interest as coloured, partly transparent pixels.

    Parameters
    ----------
    values : ndarray, float32, (h, w)
    highest : float
        Value with the strongest colour.

    Returns
    -------
    ndarray, uint8, (h, w, 4)
        Blue, green, red and opacity, OpenCV's order.
    """
    scaled = np.clip(values / max(highest, 1e-6), 0, 1)
    coloured: NDArray[np.uint8] = _heat_table()[(scaled * 255).astype(np.uint8)]
    return coloured


def thumbnail(
    overview: NDArray[np.uint8], downsample: int, interest: NDArray[np.float32], cell: int, regions: Sequence[Region]
) -> NDArray[np.uint8]:
    """A small picture of image, interest and regions.

    Parameters
    ----------
    overview, downsample
        See `read_overview`.
    interest : ndarray, float32, (cell height, cell width)
        May be empty.
    cell : int
        Side of a cell in full-resolution pixels.
    regions : sequence of Region
        The highest score first.

    Returns
    -------
    ndarray, uint8, (h, w, 3)
        Blue, green, red; at most 512 pixels high and wide.
    """
    shrink = ceil_div(max(overview.shape[:2]), _THUMBNAIL_SIDE)
    size = max(1, overview.shape[1] // shrink), max(1, overview.shape[0] // shrink)
    small = cv2.resize(overview, size, interpolation=cv2.INTER_AREA)
    small = cv2.cvtColor(small, cv2.COLOR_GRAY2BGR if small.ndim == 2 else cv2.COLOR_RGB2BGR)
    if interest.size:
        values = to_overview(interest, cell, downsample * shrink, (size[1], size[0]))
        heat = heat_pixels(values, float(interest.max()))
        opacity = heat[..., 3:].astype(np.float32) / 255 * 0.8
        small = np.rint(small * (1 - opacity) + heat[..., :3] * opacity).astype(np.uint8)
    colours = label_colours(region.label for region in regions)
    for region in reversed(regions[:_MOST_MARKS]):
        corners = np.array(region.full_box) / (downsample * shrink)
        centre, half = (corners[:2] + corners[2:]) / 2, np.maximum(corners[2:] - corners[:2], _LEAST_MARK) / 2
        (y0, x0), (y1, x1) = (np.rint(v).astype(int).tolist() for v in (centre - half, centre + half))
        red, green, blue = colours[region.label]
        cv2.rectangle(small, (x0, y0), (x1, y1), (blue, green, red), 1)
    return np.asarray(small, np.uint8)


def encoded(pixels: NDArray[np.uint8], ending: str, quality: int = 85) -> bytes:
    """Pixels (blue, green, red) as the bytes of a ".jpg" or ".png" file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if ending == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return cv2.imencode(ending, pixels, options)[1].tobytes()


def data_uri(content: bytes, ending: str) -> str:
    """The bytes of a ".jpg" or ".png" file as a data URI, for pages."""
    return f"data:{_TYPES[ending]};base64,{base64.b64encode(content).decode()}"


@cache
def _heat_table() -> NDArray[np.uint8]:
    """Colour and opacity of 256 steps of interest."""
    import matplotlib as mpl  # noqa: PLC0415 (slow to import)

    steps = np.linspace(0, 1, 256)
    rgb = mpl.colormaps[HEAT](steps)[:, :3]
    table = np.concatenate([rgb[:, ::-1], np.clip(steps * 3, 0, 0.85)[:, None]], axis=1)
    rounded: NDArray[np.uint8] = np.rint(table * 255).astype(np.uint8)
    return rounded
