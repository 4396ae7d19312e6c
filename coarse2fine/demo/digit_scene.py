"""Synthetic scenes of handwritten digits and of marks that look like digits from afar."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.demo.ink_scene import CANVAS, Alphabet, InkScene
from coarse2fine.tiling.errors import MissingExtraError

Handwriting = Literal["train", "held-out"]

_TRAIN_IMAGES = 1300


class DigitScene(InkScene):
    """A textured scene with digits and clutter.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    digits, clutter : int
        Number of marks of each sort, see `InkScene`.
    seed : int
        Seed of the scene: the same arguments give the same pixels.
    handwriting : {"train", "held-out"}
        Which of two disjoint sets of handwritten digits to use.

    Raises
    ------
    ImportError
        If scikit-learn, which brings the handwriting, is missing.
    ValueError
        If a size or number is out of its range, or the marks do not fit.
    """

    def __init__(
        self, height: int, width: int, *, digits: int, clutter: int, seed: int, handwriting: Handwriting
    ) -> None:
        if handwriting not in get_args(Handwriting):
            raise ValueError(f"expected handwriting 'train' or 'held-out', got {handwriting!r}")
        images, labels = _handwriting(handwriting) if digits + clutter > 0 else (np.zeros((0, 8, 8)), np.zeros(0))
        alphabet = Alphabet([str(label) for label in labels.tolist()], lambda index: _field(images[index]))
        super().__init__(height, width, alphabet, marks=digits, clutter=clutter, seed=seed)


@lru_cache(maxsize=2)
def _handwriting(which: Handwriting) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (n, 8, 8) in 0-1 and their digits; the two sets are disjoint and fixed."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  (only scenes need it)
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "drawing digits", "demo") from error
    data = load_digits()
    order = np.random.default_rng(1797).permutation(len(data.target))
    chosen = np.sort(order[:_TRAIN_IMAGES] if which == "train" else order[_TRAIN_IMAGES:])
    images = data.images[chosen].astype(np.float32)
    return images / images.max(axis=(1, 2), keepdims=True), data.target[chosen].astype(np.int64)


def _field(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Enlarge an 8 x 8 digit smoothly to the canvas, with room to rotate it."""
    field = cv2.resize(np.pad(image, 1), (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.GaussianBlur(field, (0, 0), 2.0), np.float32)
