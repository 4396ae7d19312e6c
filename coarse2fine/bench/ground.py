"""Background without objects, of any size, made of empty places of scenes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotatedArea, Annotations
from coarse2fine.bench.cover import touched
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.orientation import Turn
from coarse2fine.tiling.summed_area import summed_area

# Sides of patches, the largest first: they have the fewest borders. A side is taken if it gives `_LEAST_PATCHES`.
_SIDES = (256, 192, 128, 96, 64, 48, 32)
_LEAST_PATCHES = 64
_MOST_PATCHES = 400
_GRID = 8


def find_patches(
    pixels: Sequence[NDArray[np.uint8]],
    truths: Sequence[Annotations],
    occupied: Sequence[NDArray[np.float64]],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Annotated squares of the scenes that hold no object.

    Parameters
    ----------
    pixels : sequence of ndarray, uint8, (h, w, c)
    truths : sequence of Annotations
    occupied : sequence of ndarray, float64, (n, 4)
        Further boxes (y0, x0, y1, x1) to avoid in each scene; may be empty.
    rng : numpy Generator

    Returns
    -------
    ndarray, uint8, (n, side, side, c)
        The largest side with at least 64 patches, or else the one with most; at most 400 patches.

    Raises
    ------
    ValueError
        If there is no such square.
    """
    boxes = occupied or [np.zeros((0, 4))] * len(pixels)
    free = [~_taken(p.shape[:2], t, b) for p, t, b in zip(pixels, truths, boxes, strict=True)]
    best: tuple[int, NDArray[np.int64]] | None = None
    for side in _SIDES:
        corners = _empty_squares(free, side // _GRID, rng)
        if len(corners) and (best is None or len(best[1]) < min(len(corners), _LEAST_PATCHES)):
            best = side, corners
        if len(corners) >= _LEAST_PATCHES:
            break
    if best is None:
        raise ValueError(
            f"the scenes hold no place of {_SIDES[-1]} x {_SIDES[-1]} px without objects to make a background of; "
            "leave out the density"
        )
    side, corners = best
    patches = np.stack([pixels[s][y : y + side, x : x + side] for s, y, x in corners[:_MOST_PATCHES].tolist()])
    return _evened(patches)


def _evened(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Patches shifted to one mean colour: steps between them would look like objects."""
    means = patches.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    shifted = patches + (np.median(means, axis=0) - means)
    evened: NDArray[np.uint8] = np.rint(shifted).clip(0, 255).astype(np.uint8)
    return evened


def _taken(shape: tuple[int, ...], truth: Annotations, boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Squares of `_GRID` pixels (whole ones only) that hold, or border on, an object or an unannotated place."""
    height, width = shape[0] // _GRID * _GRID, shape[1] // _GRID * _GRID
    bounds = np.array([a.full_bounds for a in truth.objects], np.float64).reshape(-1, 4)
    around = np.concatenate([bounds, boxes]) + np.array([-_GRID, -_GRID, _GRID, _GRID])
    taken = touched(around, (height, width), (_GRID, _GRID))
    y, x = (np.indices(taken.shape).reshape(2, -1) + 0.5) * _GRID
    unknown = ~AnnotatedArea(truth).contains(y, x).reshape(taken.shape)
    around_unknown: NDArray[np.bool_] = cv2.dilate(unknown.astype(np.uint8), np.ones((3, 3))) > 0
    return taken | around_unknown


def _empty_squares(free: Sequence[NDArray[np.bool_]], side: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Free squares (scene, y, x), in pixels, in random order; they overlap by half at most."""
    found = []
    for scene, there in enumerate(free):
        if min(there.shape) < side:
            continue
        sums = summed_area(there)
        count = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        left = count == side**2
        for y, x in rng.permutation(np.argwhere(left)).tolist():
            if left[y, x]:
                reach = max(1, side // 2)
                left[max(0, y - reach + 1) : y + reach, max(0, x - reach + 1) : x + reach] = False
                found.append((scene, y * _GRID, x * _GRID))
    return rng.permutation(np.array(found, np.int64).reshape(-1, 3))


def fading(side: int, fade: int) -> NDArray[np.float32]:
    """Weights (side, side, 1) that rise from 0 to 1 over the first `fade` pixels from each border."""
    ramp = np.minimum(1, (np.arange(side) + 0.5) / max(fade, 0.5))
    ramp = np.minimum(ramp, ramp[::-1])
    weights: NDArray[np.float32] = (ramp[:, None] * ramp)[..., None].astype(np.float32)
    return weights


class EmptyGround:
    """Random patches on an unbounded grid, blended with their neighbours; a pure function of position.

    Parameters
    ----------
    patches : ndarray, uint8, (n, side, side, c)
    orientations : sequence of int
        EXIF orientations to choose from.
    seed : int
    """

    def __init__(self, patches: NDArray[np.uint8], orientations: Sequence[int], seed: int) -> None:
        self._patches, self._orientations, self._seed = patches, orientations, seed
        side = patches.shape[1]
        fade = max(4, side // 8)
        self._step = side - fade
        self._weight = fading(side, fade)

    def paint(self, full_box: Box) -> NDArray[np.uint8]:
        """The pixels (h, w, c) of a box whose corners are not below 0."""
        side, step = self._patches.shape[1], self._step
        total = np.zeros((full_box.height, full_box.width, self._patches.shape[3]), np.float32)
        for row in range(full_box.y0 // step, full_box.y1 // step + 2):
            for column in range(full_box.x0 // step, full_box.x1 // step + 2):
                # Neighbours overlap by the width of the fade, where their weights add up to 1.
                place = Box(0, 0, side, side).shift((row - 1) * step, (column - 1) * step)
                common = place.intersect(full_box)
                if common is not None:
                    into, of = common.shift(-full_box.y0, -full_box.x0), common.shift(-place.y0, -place.x0)
                    patch = self._patch(row, column)[of.slices]
                    total[into.slices] += patch * self._weight[of.slices]
        return np.rint(total).clip(0, 255).astype(np.uint8)

    def _patch(self, row: int, column: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng([self._seed, row, column])
        patch = self._patches[rng.integers(len(self._patches))]
        return Turn.of(self._orientations[int(rng.integers(len(self._orientations)))]).apply(patch)
