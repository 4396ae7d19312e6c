"""Tiles of an image and its overlays, drawn on request."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from coarse2fine.results.analysis import Analysis
from coarse2fine.results.colours import WINDOWS, label_colours
from coarse2fine.results.overlays import encoded, heat_pixels
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import salvage

TILE = 512
OVERLAP = 1
"""Pixels that tiles share with each neighbour, so that no seam shows when they are enlarged."""
CLOSER = 3
"""Levels beyond full resolution at which overlays are drawn, so that lines stay thin when pixels are enlarged."""
LAYERS = ("image", "interest", "windows", "regions")
_CACHE_BYTES = 64 * 2**20
_WINDOWS = (*WINDOWS[::-1], 255)  # blue, green, red, opacity
_DOT_BELOW = 3
_MOST_OUTLINES = 5000
_MOST_TOLD = 20
_DAMAGED = 64


class Shapes:
    """Boxes and outlines with a spatial index, drawn into tiles; safe to use from several threads.

    Parameters
    ----------
    boxes : ndarray, float64, (n, 4)
        (y0, x0, y1, x1) in full-resolution pixels, the most important first.
    kinds : ndarray, int64, (n,)
        Row in `colours` of each.
    colours : sequence of tuple
        Blue, green, red and opacity.
    outlines : mapping
        Corners (y, x) of outlines by index; other shapes are boxes.
    thickness : int
        Line width in pixels of a tile.
    """

    def __init__(
        self,
        boxes: NDArray[np.float64],
        kinds: NDArray[np.int64],
        colours: Sequence[tuple[int, int, int, int]],
        outlines: Mapping[int, NDArray[np.float64]],
        thickness: int,
    ) -> None:
        self._boxes, self._kinds, self._outlines = boxes, kinds, outlines
        self._colours = np.array(colours, np.uint8).reshape(-1, 4)
        self._thickness = thickness
        y0, x0, y1, x1 = boxes.T
        self._tree = shapely.STRtree(shapely.box(x0, y0, x1, y1))
        self._lock = threading.Lock()

    def touching(self, y0: float, x0: float, y1: float, x1: float) -> NDArray[np.int64]:
        """Indices of shapes whose box overlaps the given one, increasing."""
        with self._lock:
            return np.sort(self._tree.query(shapely.box(x0, y0, x1, y1)))

    def draw(self, box: Box, downsample: float, hidden: frozenset[int] = frozenset()) -> NDArray[np.uint8]:
        """Draw a box of the plane downsampled `downsample` times, (h, w, 4); hidden kinds are left out."""
        canvas = np.zeros((box.height, box.width, 4), np.uint8)
        seen = box.expand(self._thickness + 1)
        index = self.touching(*(v * downsample for v in (seen.y0, seen.x0, seen.y1, seen.x1)))
        index = index[~np.isin(self._kinds[index], list(hidden))]
        corners = self._boxes[index] / downsample - (box.y0, box.x0, box.y0, box.x0)
        small = (corners[:, 2:] - corners[:, :2]).max(axis=1, initial=0) < _DOT_BELOW
        self._dot(canvas, corners[small], index[small])
        for i in index[~small][:_MOST_OUTLINES][::-1].tolist():
            y0, x0, y1, x1 = self._boxes[i]
            outline = self._outlines.get(i, np.array([(y0, x0), (y0, x1), (y1, x1), (y1, x0)]))
            points = np.rint(outline / downsample - (box.y0, box.x0)).astype(np.int32)[:, ::-1]
            colour = self._colours[self._kinds[i]].tolist()
            cv2.polylines(canvas, [np.ascontiguousarray(points)], True, colour, self._thickness)
        return canvas

    def _dot(self, canvas: NDArray[np.uint8], corners: NDArray[np.float64], index: NDArray[np.int64]) -> None:
        """Mark shapes too small to be drawn to scale by 2 x 2 pixels; the most important last."""
        colours = self._colours[self._kinds[index]][::-1]
        centres = np.floor((corners[::-1, :2] + corners[::-1, 2:]) / 2).astype(np.int64)
        for step in np.ndindex(2, 2):
            places = centres + step
            inside = np.all((places >= 0) & (places < canvas.shape[:2]), axis=1)
            canvas[places[inside, 0], places[inside, 1]] = colours[inside]


class ImageTiles:
    """Draws the tiles of an image; safe to use from several threads.

    Parameters
    ----------
    image : Image
        Stays open.

    Attributes
    ----------
    last_level : int
        Level of the image's own resolution; level 0 fits into one tile. Overlays have `CLOSER` more.
    """

    def __init__(self, image: Image) -> None:
        self._pixels = image
        self.last_level = max(0, math.ceil(math.log2(max(image.shape[:2]) / TILE)))
        self._kept = _Kept(_CACHE_BYTES)

    def image_tile(self, level: int, row: int, column: int) -> bytes | None:
        """A tile as the bytes of a JPEG file; None if there is no such tile."""
        found = self._box(level, row, column, self.last_level)
        if found is None:
            return None
        box, downsample = found
        return self._kept.get((level, row, column), partial(self._image, box, int(downsample)))

    def _box(self, level: int, row: int, column: int, last: int) -> tuple[Box, float] | None:
        """Pixels of a tile in the plane of its level, and that plane's downsample."""
        if not 0 <= level <= last:
            return None
        downsample = 2.0 ** (self.last_level - level)
        height, width = (math.ceil(n / downsample) for n in self._pixels.shape[:2])
        plane, core = Box(0, 0, height, width), Box(row, column, row + 1, column + 1).scale(TILE)
        box = core.expand(OVERLAP).intersect(plane)
        return None if core.intersect(plane) is None or box is None else (box, downsample)

    def _image(self, box: Box, downsample: int) -> bytes:
        try:
            pixels = salvage(partial(self._pixels.read_scaled, downsample=downsample), box, fill=_DAMAGED)
        except ImageError:
            pixels = np.full((box.height, box.width, 1), _DAMAGED, np.uint8)
        colour = pixels.shape[2] == 3
        return encoded(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)) if colour else pixels, ".jpg", 90)


class Tiles(ImageTiles):
    """Draws the tiles of one result; safe to use from several threads.

    Parameters
    ----------
    analysis : Analysis
        Stays open.

    Attributes
    ----------
    labels : tuple of str
        Classes, the most frequent first.
    """

    def __init__(self, analysis: Analysis) -> None:
        super().__init__(analysis.image)
        self._analysis = analysis
        self._table = analysis.tiles_table
        self._highest = float(analysis.interest.max(initial=0))
        self.labels = tuple(analysis.labels)
        self._shapes = {"windows": self._windows(), "regions": self._regions()}

    def tile(self, layer: str, level: int, row: int, column: int, hidden: frozenset[int] = frozenset()) -> bytes | None:
        """A tile as the bytes of a JPEG (for the image) or PNG file; None if there is no such tile.

        Parameters
        ----------
        layer : str
            One of `LAYERS`.
        level : int
        row, column : int
        hidden : frozenset of int
            Classes whose regions are left out, as indices of `labels`.
        """
        if layer == "image":
            return self.image_tile(level, row, column)
        found = self._box(level, row, column, self.last_level + CLOSER)
        if found is None:
            return None
        box, downsample = found
        if layer == "interest":
            return encoded(self._interest(box, downsample), ".png")
        return encoded(self._shapes[layer].draw(box, downsample, hidden), ".png")

    def at(self, y: float, x: float) -> dict[str, Any]:
        """Regions and windows at a point in full-resolution pixels, at most 20 of each, as JSON values."""
        regions, windows = (self._shapes[name].touching(y, x, y, x)[:_MOST_TOLD] for name in ("regions", "windows"))
        return {
            "regions": [self._told(i) for i in regions.tolist()],
            "windows": [{"rank": i + 1, **self.window(i)} for i in windows.tolist()],
        }

    def window(self, index: int) -> dict[str, Any]:
        """One window of the plan, as JSON values; its box is (x0, y0, x1, y1) in full-resolution pixels."""
        row = {name: column[index] for name, column in self._table.items()}
        box = [int(row[name]) for name in ("full_x0", "full_y0", "full_x1", "full_y1")]
        return {"box": box, "score": float(row["score"]), "fired": str(row["fired"]), "finds": int(row["finds"])}

    def _told(self, index: int) -> dict[str, Any]:
        region = self._analysis.regions[index]
        y0, x0, y1, x1 = region.full_box
        route = list(region.route)
        described = {"label": region.label, "score": region.score, "fired": ", ".join(region.fired), "route": route}
        return {**described, "box": [x0, y0, x1, y1]}

    def _windows(self) -> Shapes:
        names = ("full_y0", "full_x0", "full_y1", "full_x1")
        boxes = np.stack([self._table[name] for name in names], axis=1).astype(np.float64)
        return Shapes(boxes, np.zeros(len(boxes), np.int64), [_WINDOWS], {}, 1)

    def _regions(self) -> Shapes:
        regions, number = self._analysis.regions, {label: i for i, label in enumerate(self.labels)}
        boxes = np.array([region.full_box for region in regions], np.float64).reshape(-1, 4)
        kinds = np.array([number[region.label] for region in regions], np.int64)
        named = label_colours(self.labels)
        colours = [(*named[label][::-1], 255) for label in self.labels]
        outlines = {i: np.array(r.outline, np.float64) for i, r in enumerate(regions) if r.outline is not None}
        return Shapes(boxes, kinds, colours, outlines, 2)

    def _interest(self, box: Box, downsample: float) -> NDArray[np.uint8]:
        """Maximum interest of the cells under each pixel, as colours (h, w, 4)."""
        cells, side = self._analysis.interest, self._analysis.cell
        if not cells.size:
            return np.zeros((box.height, box.width, 4), np.uint8)
        rows, columns = (
            (np.arange(low, high) * downsample // side).astype(np.int64)
            for low, high in ((box.y0, box.y1), (box.x0, box.x1))
        )
        y1, x1 = (math.ceil(high * downsample / side) for high in (box.y1, box.x1))
        # `reduceat` gives each of several pixels in one cell that cell's value.
        by_row = np.maximum.reduceat(cells[rows[0] : y1, columns[0] : x1], rows - rows[0], axis=0)
        return heat_pixels(np.maximum.reduceat(by_row, columns - columns[0], axis=1), self._highest)


class _Kept:
    """Cache of the most recently used tiles, up to a number of bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._tiles: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int, int], make: Callable[[], bytes]) -> bytes:
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        made = make()
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = made
                self._bytes += len(made)
            while self._bytes > self._most:
                self._bytes -= len(self._tiles.popitem(last=False)[1])
        return made
