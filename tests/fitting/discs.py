"""Small scenes of discs, and how tests fit to them quickly."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine.fitting.geometry import NARROW_REFINER, WIDE_REFINER
from coarse2fine.fitting.rescaled import COPIES

SIDE, RADIUS = 512, 9
QUICK: dict[str, Any] = {"specialists": None, "precision": "fp32", "progress": False}
# Refine nets half as wide as in earnest.
_SLIM = {
    "WIDE_REFINER": "4/2:8 3:12 4/2:24 3:32 3:32 4/2:64 3:64 1:64 1:{out}",
    "NARROW_REFINER": "4/2:8 3:12 4/2:24 3:32 3:32 4/2:64 1:64 1:{out}",
}
_EARNEST = {"WIDE_REFINER": WIDE_REFINER, "NARROW_REFINER": NARROW_REFINER}
Scene = tuple[NDArray[np.uint8], dict[str, Any]]


def feature(label: str, ring: list[list[float]]) -> dict[str, Any]:
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    if len(ring) == 1:
        geometry = {"type": "Point", "coordinates": ring[0]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": label}}}


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def discs(seed: int, lake: bool = False) -> tuple[Scene, NDArray[np.float64]]:
    """Forty bright discs on noise, with their boxes; perhaps a large dark polygon."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 120, (SIDE, SIDE)).astype(np.uint8)
    features = []
    if lake:
        shore = np.array([[30, 60], [330, 20], [300, 200], [380, 330], [120, 350]])
        cv2.fillPoly(pixels, [shore.astype(np.int32)], 20)
        features.append(feature("lake", shore.astype(float).tolist()))
    grid = rng.permutation(100)[:40]
    centres = np.stack([grid // 10, grid % 10], axis=1) * 49.0 + 30 + rng.uniform(-8, 8, (40, 2))
    for y, x in centres.round().tolist():
        cv2.circle(pixels, (int(x), int(y)), RADIUS, 230, -1)
        y0, x0, y1, x1 = y - RADIUS, x - RADIUS, y + RADIUS + 1, x + RADIUS + 1
        features.append(feature("disc", [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))
    return (pixels, collection(*features)), centres.round() + 0.5


@contextmanager
def smaller(*, slim: bool = False) -> Iterator[None]:
    """Smaller batches and crops than in earnest, and perhaps smaller nets, for tests of how a fit works.

    With `slim`, refine nets are half as wide, and scenes are rescaled once. Constants are set in either case, so that a
    fixture of the session is the same whichever module asks for it first.
    """
    with pytest.MonkeyPatch.context() as patch:
        # The package's `fit` is the function; its module hides behind it.
        sizes: dict[str, dict[str, Any]] = {
            "geometry": _SLIM if slim else _EARNEST,
            "refiner": {"_CROP": 10, "_BATCH": 4, "_HELD_CROPS": 8},
            "rescaled": {"COPIES": 1 if slim else COPIES},
            "base": {"_BATCH": 8, "LONGER": 1, "_TUNED_BATCH": 8, "_LONGER_TUNED": 1},
            "distillation": {"_CROP": 24, "_SAMPLES": 60, "_HELD_SAMPLES": 8},
            "watching.scan": {"_BATCH_PIXELS": 60_000},
        }
        for module, constants in sizes.items():
            for name, value in constants.items():
                patch.setattr(sys.modules[f"coarse2fine.fitting.{module}"], name, value)
        yield
