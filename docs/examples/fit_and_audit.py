"""Fit a model to annotated scenes, analyse another scene, and say how much was missed.

Run it as ``python docs/examples/fit_and_audit.py OUT``. The scenes are made on the spot: solder joints on a board, some
of them with a hole, which is what the model is to find. With your own files the call of `fit` is
``c2f.fit("boards/*.png", annotations="boards/*.geojson")``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import coarse2fine as c2f


def board(seed: int, side: int = 512, joints: int = 48) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """A picture of a board, and its annotations as GeoJSON: a point with a class for each joint with a hole."""
    rng = np.random.default_rng(seed)
    shade = cv2.GaussianBlur(rng.normal(0, 90, (side, side)), (0, 0), 9)
    pixels = 60 + rng.normal(0, 6, (side, side, 3)) + shade[..., None]
    features = []
    for number, (x, y) in enumerate(rng.integers(30, side - 30, (joints, 2)).tolist()):
        cv2.circle(pixels, (x, y), 14, (170, 175, 180), -1, cv2.LINE_AA)
        if number % 6 == 0:
            cv2.circle(pixels, (x + int(rng.integers(-4, 5)), y), 5, (40, 45, 50), -1, cv2.LINE_AA)
            box = [[x - 14, y - 14], [x + 14, y - 14], [x + 14, y + 14], [x - 14, y + 14], [x - 14, y - 14]]
            features.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [box]},
                    "properties": {"classification": {"name": "hole"}},
                }
            )
    return pixels.clip(0, 255).astype(np.uint8), {"type": "FeatureCollection", "features": features}


def main(out: Path, steps: int = 80) -> None:
    """Fit, analyse and audit; results are written to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    images, annotations = zip(*(board(seed) for seed in range(3)), strict=True)
    model = c2f.fit(list(images), list(annotations), rotate=True, steps=steps, specialists=None)
    model.save(out / "holes.c2f")
    print(model)

    unseen, truth = board(seed=9)
    analysis = c2f.analyze(unseen, model, audit=0.2)  # a fifth of the exhaustive pass goes into the sample
    print(analysis)
    print(analysis.audit)
    print(f"{len(analysis.regions)} found, {len(truth['features'])} are there")
    analysis.plot(out / "overview.png")
    analysis.to_geojson(out / "holes.geojson")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "holes"))
