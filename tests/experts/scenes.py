"""Scenes of bright discs, experts that find them, and a loop over the grid that says what should be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.experts.expert import Expert, expert
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.model import Geometry, Model
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.firing import Curve, Firing

Pixels = NDArray[np.uint8]
Find = tuple[float, int, tuple[float, float, float, float]]
"""Score, label and y0, x0, y1, x1 in pixels of the plane."""
LABELS = ("dim", "bright")
_STRIDE = 8


def scene(height: int, width: int, discs: int = 40, *, seed: int = 0, channels: int = 3, radius: int = 6) -> Pixels:
    """Discs of two kinds of grey on a dark ground; (h, w) or (h, w, 3)."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width), 30, np.uint8)
    for _ in range(discs):
        y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
        cv2.circle(image, (x, y), int(rng.integers(2, radius + 1)), int(rng.integers(110, 256)), -1)
    return image if channels == 1 else np.repeat(image[..., None], 3, axis=2)


def boxes_of(tile: Pixels) -> NDArray[np.float64]:
    """Connected bright parts as x0, y0, x1, y1, score and label; score and label by the mean grey."""
    grey = tile[..., 0]
    _, parts, stats, _ = cv2.connectedComponentsWithStats((grey > 100).astype(np.uint8))
    rows = []
    for part, (x, y, w, h, _) in enumerate(stats.tolist()):
        if part:
            mean = float(grey[parts == part].mean())
            rows.append((x, y, x + w, y + h, 0.5 + mean / 512, int(mean > 180)))
    return np.array(rows, float).reshape(-1, 6)


@dataclass
class Finder:
    """An expert's call that remembers the shapes it was given."""

    answer: Callable[[Pixels], Any] = lambda pixels: [boxes_of(tile) for tile in pixels]
    calls: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, pixels: Pixels) -> Any:
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        self.calls.append(pixels.shape)
        return self.answer(pixels)


def disc_expert(call: Callable[[Pixels], Any] | None = None, **options: Any) -> Expert:
    """An expert with a number of multiply-adds, as if it had been tried."""
    usual: dict[str, Any] = {"tile": 64, "context": 8, "labels": LABELS, "batch": 8}
    return replace(expert(call or Finder(), **(usual | options)), tile_macs=10**7)


def model_of(made: Expert, **more: Any) -> Model:
    """A model whose scan gives bright cells a high probability."""
    cell = made.tile * made.downsample
    net = ConvStack(StackSpec.parse(3, f"{_STRIDE}/{_STRIDE}:1 1:1"))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1 / parameter[0].numel() if parameter.ndim > 1 else 0.0)
    knots = np.array([0.117, 0.2], np.float32), np.array([0.0, 0.9], np.float32)
    curve = Curve(np.array([0.15], np.float32), np.array([0.05, 0.5], np.float32))
    defaults: dict[str, Any] = {
        "name": "toy",
        "geometry": Geometry(cell, cell // _STRIDE, made.downsample, made.tile // made.cell),
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "base": net.eval(),
        "refiner": ExpertRefiner(made),
        "firing": Firing("logit", 0.1, np.zeros(1, np.int64), (curve,), *knots),
        "window": 1,
    }
    return Model(**(defaults | more))


def crops(image: Pixels, made: Expert) -> dict[tuple[int, int], Pixels]:
    """Each tile of the grid with its context, by its row and column; edges are padded with the nearest pixel.

    The image must have equal pixels in squares of `downsample`.
    """
    plane = image[:: made.downsample, :: made.downsample]
    plane = plane if plane.ndim == 3 else np.repeat(plane[..., None], 3, axis=2)
    height, width = plane.shape[:2]
    rows, columns = -(-height // made.tile), -(-width // made.tile)
    around = [(made.context, made.context + n * made.tile - m) for n, m in ((rows, height), (columns, width))]
    plane = np.pad(plane, [*around, (0, 0)], mode="edge")
    side = made.tile + 2 * made.context
    return {
        (y, x): plane[y * made.tile : y * made.tile + side, x * made.tile : x * made.tile + side]
        for y in range(rows)
        for x in range(columns)
    }


def owns(made: Expert, place: tuple[int, int], last: tuple[int, int], centre: tuple[float, float]) -> bool:
    """Whether a tile owns a find by its centre in pixels of the core; tiles at the edge own what lies beyond it."""
    sides = zip(place, last, centre, strict=True)
    return all((at >= 0 or row == 0) and (at < made.tile or row == end) for row, end, at in sides)


def owned(image: Pixels, made: Expert) -> dict[tuple[int, int], list[Find]]:
    """Finds of each tile whose centre lies in its half-open core, in pixels of the plane, best first.

    Centres beyond the image's edges belong to the tiles at the edge.
    """
    found = {}
    every = crops(image, made)
    last = max(every)
    for (row, column), crop in every.items():
        mine: list[Find] = []
        for x0, y0, x1, y1, score, label in boxes_of(crop).tolist():
            y, x = (y0 + y1) / 2 - made.context, (x0 + x1) / 2 - made.context
            if owns(made, (row, column), last, (y, x)):
                top, left = row * made.tile - made.context, column * made.tile - made.context
                mine.append((score, int(label), (y0 + top, x0 + left, y1 + top, x1 + left)))
        found[row, column] = sorted(mine, key=lambda find: -find[0])
    return found


def once(tiles: dict[tuple[int, int], list[Find]], overlap: float = 0.5) -> list[Find]:
    """The finds of tiles, the best of those of one class in different tiles that overlap; best first."""
    every = [(find, home) for home in sorted(tiles) for find in tiles[home]]
    kept: list[tuple[Find, tuple[int, int]]] = []
    for find, home in sorted(every, key=lambda each: -each[0][0]):
        rivals = (other for other, where in kept if where != home and other[1] == find[1])
        if not any(_share(find[2], other[2]) > overlap for other in rivals):
            kept.append((find, home))
    return [find for find, _ in kept]


def in_image(finds: list[Find], image: Pixels, downsample: int = 1) -> list[Find]:
    """Finds in full-resolution pixels, clipped to the image, in the order of a result."""
    height, width = image.shape[:2]
    clipped = []
    for score, label, box in finds:
        y0, x0, y1, x1 = (n * downsample for n in box)
        full = (max(0.0, y0), max(0.0, x0), min(float(height), y1), min(float(width), x1))
        if full[2] > full[0] and full[3] > full[1]:
            clipped.append((score, label, full))
    return sorted(clipped, key=lambda find: (-np.float32(find[0]), find[2]))


def _share(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(0.0, sides[0]) * max(0.0, sides[1]) / min(areas) if min(areas) > 0 else 0.0
