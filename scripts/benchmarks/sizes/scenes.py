"""Scenes with objects of 8, 30, 100 and 400 px among other shapes of the same sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

COUNTS: Mapping[int, int] = {400: 2, 100: 6, 30: 16, 8: 40}
"""Objects of a scene by their size in pixels; there are as many other shapes."""
SIDE = 1792
SHAPES = ("disc", "square")
_OTHER = "cross"
_VARIED, _APART = 0.15, 1.2


@dataclass(frozen=True)
class SizesScene:
    """A scene and its objects.

    Parameters
    ----------
    pixels : ndarray, uint8, (side, side)
    boxes : ndarray, float64, (n, 4)
        y0, x0, y1, x1 in pixels.
    shapes : tuple of str
        Class of each.
    sizes : ndarray, int64, (n,)
        Nominal size of each in pixels.
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    shapes: tuple[str, ...]
    sizes: NDArray[np.int64]

    def annotations(self, sizes: tuple[int, ...] = tuple(COUNTS)) -> dict[str, Any]:
        """GeoJSON of the objects of these nominal sizes; all others are areas to ignore."""
        names = [
            name if size in sizes else "Ignore*" for name, size in zip(self.shapes, self.sizes.tolist(), strict=True)
        ]
        features = [_feature(box, name) for box, name in zip(self.boxes.tolist(), names, strict=True)]
        return {"type": "FeatureCollection", "features": features}


def make_scene(seed: int, counts: Mapping[int, int] = COUNTS, side: int = SIDE) -> SizesScene:
    """A square scene: discs and squares, and as many crosses that are not annotated, on a soft uneven ground.

    Parameters
    ----------
    seed : int
    counts : mapping of int to int
        Objects by their size in pixels, which varies by 15 %.
    side : int
    """
    rng = np.random.default_rng(seed)
    pixels = cv2.resize(rng.normal(120, 12, (side // 64, side // 64)).astype(np.float32), (side, side))
    taken: list[tuple[float, float, float]] = []
    boxes, shapes, sizes = [], [], []
    for size in sorted(counts, reverse=True):
        for number in range(2 * counts[size]):
            shape = _OTHER if number % 2 else SHAPES[number // 2 % 2]
            extent = round(size * rng.uniform(1 - _VARIED, 1 + _VARIED))
            place = _free(rng, taken, extent, side)
            if place is None:
                continue
            y, x = place
            taken.append((y + extent / 2, x + extent / 2, extent))
            mask = _drawn(shape, extent) * rng.choice([-1, 1]) * rng.uniform(35, 80)
            pixels[y : y + extent, x : x + extent] += mask
            if shape != _OTHER:
                boxes.append((y, x, y + extent, x + extent))
                shapes.append(shape)
                sizes.append(size)
    noisy = pixels + rng.normal(0, 6, pixels.shape)
    return SizesScene(noisy.clip(0, 255).astype(np.uint8), np.array(boxes, np.float64), tuple(shapes), np.array(sizes))


def _free(rng: np.random.Generator, taken: list[tuple[float, float, float]], extent: int, side: int) -> Any:
    """A place (y, x) for a square of this extent that touches no other; None if none was found."""
    others = np.array(taken).reshape(-1, 3)
    for _ in range(200):
        y, x = rng.integers(0, side - extent, 2).tolist()
        far = np.abs(others[:, :2] - (y + extent / 2, x + extent / 2)).max(axis=1, initial=0)
        if (far > _APART * (others[:, 2] + extent) / 2 + 4).all():
            return y, x
    return None


def _drawn(shape: str, extent: int) -> NDArray[np.float32]:
    """Mask of a shape, (extent, extent)."""
    y, x = (np.indices((extent, extent)) + 0.5 - extent / 2) / (extent / 2)
    inside = np.ones((extent, extent), bool)
    if shape == "disc":
        inside = np.hypot(y, x) <= 1
    elif shape == _OTHER:
        inside = np.minimum(np.abs(y), np.abs(x)) <= 0.3
    return np.asarray(inside, np.float32)


def _feature(box: list[float], name: str) -> dict[str, Any]:
    y0, x0, y1, x1 = box
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}
