"""Pictures with planted novelties: small changes at known places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotationError
from coarse2fine.bench.data import load_scenes
from coarse2fine.preprocess import as_channels
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

Sort = Literal["texture", "blur", "line", "negative"]
SORTS: tuple[Sort, ...] = get_args(Sort)
_LEARNED = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "page", "coins", "moon")
_TESTED = ("grass", "gravel", "brick")
SIZES = 24, 96
_SIDE, _COUNT, _TRIES = 768, 5, 50
_LEAST_CHANGED = 1 / 8
_FOLDER_LEARNED, _FOLDER_TESTED = 4, 3
# Least side of a picture, and least share of a square's pixels that must change.
_LEAST = 128
_SEEN: dict[Sort, float] = {"texture": 0.5, "blur": 0.3, "line": 0.03, "negative": 0.5}


@dataclass(frozen=True, eq=False)
class Planted:
    """A picture and the cells of planted novelties.

    Parameters
    ----------
    pixels : ndarray, uint8, (h, w, 3)
    odd : ndarray, bool, (cell height, cell width)
        Cells with at least an eighth of their pixels changed.
    counts : ndarray, bool, (cell height, cell width)
        Cells that count in the figures: these, and cells outside the squares.
    """

    pixels: NDArray[np.uint8]
    odd: NDArray[np.bool_]
    counts: NDArray[np.bool_]


class Pictures(NamedTuple):
    """Pictures to learn from, and others to plant something in; (h, w, 3), uint8."""

    learned: tuple[NDArray[np.uint8], ...]
    tested: tuple[NDArray[np.uint8], ...]


def load_pictures(data: Path | None, seed: int) -> Pictures:
    """Pictures of scikit-image, and some of each folder of annotated images in `data`.

    The seed determines which of these are for training and which for the test. Pictures that are too small are left
    out.
    """
    learned, tested = ([p for name in names for p in _bundled(name)] for names in (_LEARNED, _TESTED))
    for folder in sorted(p for p in data.iterdir() if p.is_dir()) if data is not None else ():
        try:
            scenes, _ = load_scenes(folder)
        except (AnnotationError, FileNotFoundError, ImageError):
            continue
        order = np.random.default_rng(seed).permutation(len(scenes))[: _FOLDER_LEARNED + _FOLDER_TESTED]
        few = [_colour(_read(scenes[i].image)) for i in order.tolist()]
        tested += few[:_FOLDER_TESTED]
        learned += few[_FOLDER_TESTED:]
    return Pictures(*(tuple(p for p in each if min(p.shape[:2]) >= _LEAST) for each in (learned, tested)))


def _bundled(name: str) -> list[NDArray[np.uint8]]:
    """A picture of scikit-image; none if it would have to be downloaded."""
    try:
        return [_colour(getattr(skimage.data, name)())]
    except (OSError, RuntimeError, ImportError):
        return []


def _read(path: Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
    with open_image(path) as image:
        return image.read(Box(0, 0, min(image.height, _SIDE), min(image.width, _SIDE)))


def _colour(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = pixels[:_SIDE, :_SIDE]
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    return as_channels(planes[..., : 3 if planes.shape[2] >= 3 else 1], 3)


def plant(
    pixels: NDArray[np.uint8],
    sort: Sort,
    size: int,
    others: Sequence[NDArray[np.uint8]],
    cell: int,
    rng: np.random.Generator,
) -> Planted:
    """Change squares of `size` pixels in a picture (h, w, 3), and mark the cells of `cell` pixels that hold them.

    "texture" is a piece of one of `others`, of the same mean and contrast; "blur" is less sharp; "line" has a bright
    line; "negative" exchanges dark and bright.
    """
    found, inside = pixels.copy(), np.zeros(pixels.shape[:2], bool)
    planted = 0
    for _ in range(_TRIES):
        y, x = (int(rng.integers(cell, n - size - cell)) for n in pixels.shape[:2])
        where = np.s_[y : y + size, x : x + size]
        square = np.clip(_changed(pixels[where].astype(np.float64), sort, others, rng), 0, 255).astype(np.uint8)
        # In an area of one colour a change may not be visible.
        if inside[where].any() or (square != pixels[where]).any(axis=2).mean() < _SEEN[sort]:
            continue
        found[where], inside[where], planted = square, True, planted + 1
        if planted == _COUNT:
            break
    share, outside = (_by_cell(mask, cell) for mask in ((found != pixels).any(axis=2), ~inside))
    odd = share >= _LEAST_CHANGED
    return Planted(found, odd, odd | (outside == 1))


def _by_cell(mask: NDArray[np.bool_], cell: int) -> NDArray[np.float64]:
    """The share of each cell."""
    h, w = (n // cell * cell for n in mask.shape)
    return np.asarray(mask[:h, :w].reshape(h // cell, cell, w // cell, cell).mean(axis=(1, 3)))


def _changed(
    square: NDArray[np.float64], sort: Sort, others: Sequence[NDArray[np.uint8]], rng: np.random.Generator
) -> NDArray[np.float64]:
    if sort == "blur":
        return np.asarray(cv2.GaussianBlur(square, (0, 0), len(square) / 8), np.float64)
    if sort == "negative":
        return np.asarray(2 * square.mean(axis=(0, 1)) - square)
    if sort == "line":
        middle, half = len(square) // 2, max(1, len(square) // 24)
        square[middle - half : middle + half] = square.mean() + 2 * square.std() + 10
        return square
    other = others[int(rng.integers(len(others)))]
    y, x = (int(rng.integers(n - len(square) + 1)) for n in other.shape[:2])
    piece = other[y : y + len(square), x : x + len(square)].astype(np.float64)
    return np.asarray((piece - piece.mean()) / (piece.std() + 1) * square.std() + square.mean())
