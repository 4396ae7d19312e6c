"""Search for windows: equal squares at the local maxima of the expected number of finds, best first."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.tiling.geometry import ceil_div

_BAND_CELLS = 2**20
_ROUNDS = 60


def best_windows(
    interest: NDArray[np.float32], side: int, tau: float, most: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Equal windows at the local maxima of the expected number of finds, best first, before any merging.

    Parameters
    ----------
    interest : ndarray, float32, (cell height, cell width)
    side : int
        Side of a window in cells; at most the image's.
    tau : float
        Expected finds that a window must exceed.
    most : int, optional
        Most windows to return.

    Returns
    -------
    cell_corners : ndarray, int64, (n, 2)
    scores : ndarray, float32, (n,)
        Expected finds, without the cells that windows of earlier rounds cover.
    """
    taken = np.zeros(interest.shape, bool)
    ripple = _ripple(interest.shape)
    floor = max(tau, 1e-7)
    corners: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    found = 0
    for _ in range(_ROUNDS):
        peaks, sums = _peaks(interest, taken, ripple, side, floor)
        if not len(peaks):
            break
        corners.append(peaks)
        scores.append(sums)
        found += len(peaks)
        for dy in range(side):
            for dx in range(side):
                taken[peaks[:, 0] + dy, peaks[:, 1] + dx] = True
        # Later rounds find only lower scores: a window must beat the `most`-th best so far.
        if most is not None and found > most:
            floor = max(floor, float(np.partition(np.concatenate(scores), -most)[-most]))
    else:
        rest, sums = _aligned(np.where(taken, np.float32(0), interest), side, floor)
        corners.append(rest)
        scores.append(sums)
    if not corners:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    all_corners, all_scores = np.concatenate(corners), np.concatenate(scores)
    order = np.argsort(-all_scores, kind="stable")[:most]
    return all_corners[order], all_scores[order]


def _ripple(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A slight fixed pattern that breaks ties: otherwise all cells of a flat area would be maxima."""
    tile = 1 + 1e-4 * np.random.default_rng(0).random((min(251, shape[0]), min(257, shape[1])), np.float32)
    return np.tile(tile, (1, ceil_div(shape[1], tile.shape[1])))[:, : shape[1]]


def _peaks(
    interest: NDArray[np.float32], taken: NDArray[np.bool_], ripple: NDArray[np.float32], side: int, floor: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """First cells and sums of the windows that are local maxima above a floor, without taken cells, in raster order.

    It works band by band: allocating maps as large as the image's takes longer than the sums.
    """
    height, width = (n - side + 1 for n in interest.shape)
    kernel = np.ones((2 * side - 1, 2 * side - 1), np.uint8)
    rows = max(4 * side, _BAND_CELLS // width)
    corners, scores = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for y in range(0, height, rows):
        end = min(y + rows, height)
        first, last = max(0, y - side + 1), min(end + side - 1, height)
        band, gone = np.asarray(interest[first : last + side - 1], np.float32), taken[first : last + side - 1]
        if gone.any():
            band = np.where(gone, np.float32(0), band)
        if float(band.max()) * side**2 * 1.001 <= floor:
            continue
        sums = cv2.boxFilter(band, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
        sums = (
            np.asarray(sums[: last - first, :width], np.float32) * ripple[np.arange(first, last) % len(ripple), :width]
        )
        own = slice(y - first, end - first)
        peaks = np.argwhere((sums[own] == cv2.dilate(sums, kernel)[own]) & (sums[own] > floor))
        scores.append(sums[own][peaks[:, 0], peaks[:, 1]])
        corners.append(peaks + np.array((y, 0)))
    return np.concatenate(corners), np.concatenate(scores)


def _aligned(left: NDArray[np.float32], side: int, floor: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Remaining windows above a floor, on a grid: a long smooth slope yields only one local maximum a round."""
    height, width = left.shape
    ys, xs = (np.minimum(np.arange(0, n, side), n - side) for n in (height, width))
    sums = cv2.boxFilter(left, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    table = np.asarray(sums, np.float32)[np.ix_(ys, xs)]
    row, column = np.nonzero(table > floor)
    return np.stack([ys[row], xs[column]], axis=1).astype(np.int64), table[row, column]
