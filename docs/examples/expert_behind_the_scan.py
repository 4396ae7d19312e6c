"""Put a model of your own behind the scan: it then runs only on the tiles where it would find something.

Run it as ``python docs/examples/expert_behind_the_scan.py OUT``. The expert here is a function of scikit-image that
looks for blobs, slow enough to be worth saving; `c2f.expert` takes detectors, segmentation nets and ONNX files too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.feature import blob_log

import coarse2fine as c2f


def blobs(tiles: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """Boxes (x0, y0, x1, y1, score, label) of the dark blobs in each tile (n, h, w, 3)."""
    answers = []
    for tile in tiles:
        found = blob_log(255 - tile[..., 0], min_sigma=3, max_sigma=8, num_sigma=6, threshold=0.15)
        y, x, radius = found[:, 0], found[:, 1], found[:, 2] * 2**0.5
        columns = [x - radius, y - radius, x + radius, y + radius, np.full(len(found), 0.9), np.zeros(len(found))]
        answers.append(np.stack(columns, axis=1))
    return answers


def sample(seed: int, side: int = 1024) -> NDArray[np.uint8]:
    """A light sample with a few groups of dark cells."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 205, np.float32) + rng.normal(0, 4, (side, side, 1)).astype(np.float32)
    for y, x in rng.integers(150, side - 150, (3, 2)).tolist():
        for dy, dx in rng.normal(0, 55, (14, 2)).astype(int).tolist():
            cv2.circle(image, (x + dx, y + dy), int(rng.integers(6, 10)), (60, 50, 70), -1, cv2.LINE_AA)
    return image.clip(0, 255).astype(np.uint8)


def main(out: Path, steps: int = 100) -> None:
    """Watch the expert, print the forecast, and analyse a sample that it has not seen; results go to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    expert = c2f.expert(blobs, tile=128, context=16, labels=["cell"])
    images = [sample(seed) for seed in range(3)]
    model = c2f.fit(images, expert=expert, watch=0.5, steps=steps)
    print(model)  # what it will save at 90, 95 and 99 % of the expert's finds

    unseen = sample(9)
    analysis = c2f.analyze(unseen, model)
    everything = c2f.analyze(unseen, model, budget=1.0)
    print(analysis)
    print(f"{len(analysis.regions)} of the {len(everything.regions)} cells that the expert finds in every tile")
    analysis.plot(out / "overview.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "cells"))
