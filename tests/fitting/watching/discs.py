"""Experts that find dark discs, and the bright ground, also by texts."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def dark(pixels: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """Boxes of dark discs."""
    found = []
    for tile in pixels:
        _, _, stats, _ = cv2.connectedComponentsWithStats((tile[..., 0] < 60).astype(np.uint8))
        rows = [(x, y, x + w, y + h, 0.9, 0) for x, y, w, h, area in stats[1:].tolist() if area > 60]
        found.append(np.array(rows, np.float64).reshape(-1, 6))
    return found


def bright(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map of bright squares."""
    return np.stack([cv2.blur(tile[..., 0], (9, 9)) > 160 for tile in pixels])[:, None].astype(np.float32)


def make_dark() -> object:
    """The expert that finds dark discs."""
    return dark


def make_blind() -> object:
    """An alternative to it that finds nothing where something bright is near."""

    def find(pixels: NDArray[np.uint8]) -> list[NDArray[np.float64] | None]:
        return [rows if tile.max() < 165 else None for tile, rows in zip(pixels, dark(pixels), strict=True)]

    return find


def make_bright() -> object:
    """The expert that finds bright ground."""
    return bright
