"""Scenes of the annotation benchmark: one to annotate and one to test on, of each data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.affinity import translate
from shapely.geometry import mapping

from coarse2fine.annotations.read import Annotations, read_annotations
from coarse2fine.bench.data import BenchScene, load_scenes
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

_FEWEST = 4


@dataclass(frozen=True, eq=False)
class Mosaic:
    """An image put together from parts of scenes, with their labels.

    Parameters
    ----------
    pixels : ndarray, uint8, (h, w) or (h, w, 3)
    truth : Annotations
    """

    pixels: NDArray[np.uint8]
    truth: Annotations


def data_sets(folder: Path) -> dict[str, list[BenchScene]]:
    """Annotated scenes of each subfolder that holds at least four, by its name.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            scenes, _ = load_scenes(part)
        except (OSError, ValueError):  # other data, without images or annotations
            continue
        if len(scenes) >= _FEWEST:
            found[part.name] = scenes
    if not found:
        raise ValueError(f"{folder} holds no folder of at least {_FEWEST} images with GeoJSON")
    return found


def split(scenes: list[BenchScene], side: int, seed: int) -> tuple[Mosaic, Mosaic]:
    """A mosaic to annotate and one to test on, of different scenes, both about `side` pixels a side."""
    order = np.random.default_rng(seed).permutation(len(scenes)).tolist()
    with open_image(scenes[0].image) as image:
        across = max(1, min(round(side / image.width), math.isqrt(len(scenes) // 2)))
        down = max(1, min(round(side / image.height), len(scenes) // 2 // across))
    first, second = order[: across * down], order[across * down : 2 * across * down]
    made = [_mosaic([scenes[i] for i in rows], across, side) for rows in (first, second)]
    return made[0], made[1]


def _mosaic(scenes: list[BenchScene], across: int, side: int) -> Mosaic:
    """Scenes beside each other; a scene larger than `side` is cut."""
    rows: list[list[NDArray[np.uint8]]] = []
    features: list[dict[str, Any]] = []
    y = 0
    for start in range(0, len(scenes), across):
        row: list[NDArray[np.uint8]] = []
        x = 0
        for scene in scenes[start : start + across]:
            with open_image(scene.image) as image:
                pixels = _read(image, side)
            features += _shifted(scene.truth, pixels.shape[:2], y, x)
            row.append(pixels)
            x += pixels.shape[1]
        rows.append(row)
        y += row[0].shape[0]
    whole = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    truth = read_annotations({"type": "FeatureCollection", "features": features}, full_shape=whole.shape[:2])
    return Mosaic(whole[..., 0] if whole.shape[2] == 1 else whole, truth)


def _read(image: Image, side: int) -> NDArray[np.uint8]:
    return image.read_scaled(Box(0, 0, min(image.height, side), min(image.width, side)), 1)


def _shifted(truth: Annotations, shape: tuple[int, ...], y: int, x: int) -> list[dict[str, Any]]:
    """GeoJSON features of the objects with their centre in the first rows and columns, moved."""
    features = []
    for annotation in truth.objects:
        centre = annotation.geometry.centroid
        if centre.y < shape[0] and centre.x < shape[1]:
            geometry = mapping(translate(annotation.geometry, x, y))
            properties = {"classification": {"name": annotation.label}}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return features
