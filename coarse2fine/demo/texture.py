"""Unbounded textured background, rendered block by block as a pure function of position."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.tiling.geometry import Box, ceil_div

_NODE = 64  # pixels between the nodes of the slowly varying fields
_NODES = 512  # their period, in nodes
_PATCH = (256, 512)  # rendered at once: fits the processor's cache
_ONE = 64  # fixed-point one of weights and grey levels
_STEP = 4  # the ground's grey levels are multiples of this, so that scenes compress


class Ground:
    """Background of paper, sand, cloth and wood textures with smooth transitions.

    Integer arithmetic on periodic tiles and on slowly varying fields that are interpolated exactly (every product
    fits the 24 bits of a float32), so that a pixel does not depend on the block in which it is rendered.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the textures and of their distribution.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        # Different periods, so that the sum does not repeat in practice.
        grounds = [_paper(rng, 1000), _sand(rng, 1125), _cloth(rng, 896), _wood(rng, 1024)]
        self._tiles = [_wrapped(g) for g in grounds]
        clouds = 8 * _noise(rng, 1296, shortest=16, longest=160)
        grain = 3.2 * rng.standard_normal((729, 729), np.float32)
        self._clouds, self._grain = _wrapped(clouds * _ONE), _wrapped(grain * _ONE)
        fields = np.stack([_noise(rng, _NODES, shortest=16, longest=48) for _ in grounds])
        share = np.exp(5.0 * fields)
        share /= share.sum(axis=0)
        self._weights = [np.round(s * _ONE).astype(np.int16) for s in share]
        light = 128 + 15 * _noise(rng, _NODES, shortest=10, longest=60)
        tone = light + np.tensordot((14.0, 2.0, -14.0, -2.0), share, axes=1)
        # Steps of half a grey level: few enough bits for exact interpolation.
        self._tone = (np.round(np.clip(tone, 75, 180) * 2) * (_ONE // 2)).astype(np.int16)

    def tone(self, y: int, x: int) -> int:
        """Mean grey level around one pixel."""
        return int(self._tone[y // _NODE % _NODES, x // _NODE % _NODES]) // _ONE

    def paint(self, full_box: Box) -> NDArray[np.uint8]:
        """Render any box of the plane.

        Returns
        -------
        ndarray of uint8, shape (height, width)
            Grey levels, all multiples of 4.
        """
        pixels = np.empty((full_box.height, full_box.width), np.uint8)
        for y in range(full_box.y0, full_box.y1, _PATCH[0]):
            for x in range(full_box.x0, full_box.x1, _PATCH[1]):
                patch = Box(y, x, min(y + _PATCH[0], full_box.y1), min(x + _PATCH[1], full_box.x1))
                to = patch.shift(-full_box.y0, -full_box.x0)
                pixels[to.slices] = self._paint_patch(patch)
        return pixels

    def _paint_patch(self, box: Box) -> NDArray[np.uint8]:
        total = _interpolate(_nodes(self._tone, box), box) + _view(self._clouds, box)
        total += _view(self._grain, box)
        for weights, tile in zip(self._weights, self._tiles, strict=True):
            nodes = _nodes(weights, box)
            if nodes.any():
                total += _interpolate(nodes, box) * _view(tile, box)
        np.clip(total, 0, (255 // _STEP) * _STEP * _ONE, out=total)
        levels = cv2.convertScaleAbs(total, alpha=1 / (_STEP * _ONE))
        return np.asarray(levels * np.uint8(_STEP), np.uint8)


def _wrapped(tile: NDArray[np.float32]) -> NDArray[np.int16]:
    """Repeat the start of a periodic tile at its end, so that any patch is a single view."""
    return np.pad(np.round(tile).astype(np.int16), ((0, _PATCH[0]), (0, _PATCH[1])), mode="wrap")


def _view(tile: NDArray[np.int16], box: Box) -> NDArray[np.int16]:
    y, x = box.y0 % (tile.shape[0] - _PATCH[0]), box.x0 % (tile.shape[1] - _PATCH[1])
    return tile[y : y + box.height, x : x + box.width]


def _nodes(field: NDArray[np.int16], box: Box) -> NDArray[np.int16]:
    """Nodes that a box touches, and one more on each side."""
    rows = np.arange(box.y0 // _NODE - 1, ceil_div(box.y1, _NODE) + 1)
    columns = np.arange(box.x0 // _NODE - 1, ceil_div(box.x1, _NODE) + 1)
    return field.take(rows, axis=0, mode="wrap").take(columns, axis=1, mode="wrap")


def _interpolate(nodes: NDArray[np.int16], box: Box) -> NDArray[np.int16]:
    full = cv2.resize(nodes, (nodes.shape[1] * _NODE, nodes.shape[0] * _NODE))
    y, x = box.y0 % _NODE + _NODE, box.x0 % _NODE + _NODE
    return np.asarray(full[y : y + box.height, x : x + box.width], np.int16)


def _noise(
    rng: np.random.Generator, period: int, *, shortest: float, longest: float, stretch: float = 1.0
) -> NDArray[np.float32]:
    """Periodic noise of unit variance with equal power in every octave between two wavelengths.

    `stretch` makes it that many times longer along x.
    """
    fy = np.fft.fftfreq(period).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(period).astype(np.float32)[None] * np.float32(stretch)
    f2 = np.maximum(fy * fy + fx * fx, np.float32(1e-12))
    band = np.exp(-(shortest**2) * f2) * (1 - np.exp(-(longest**2) * f2)) / np.sqrt(f2)
    spectrum = np.fft.rfft2(rng.standard_normal((period, period), np.float32)) * band
    noise = np.fft.irfft2(spectrum, s=(period, period))
    return np.asarray(noise / noise.std(), np.float32)


def _paper(rng: np.random.Generator, period: int) -> NDArray[np.float32]:
    fibres = np.zeros((period, period), np.float32)
    for _ in range(period * period // 6000):
        turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.25, 12))
        steps = rng.uniform(2, 7) * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        points = np.round(rng.uniform(90, period - 90, 2) + np.cumsum(steps, axis=0)).astype(np.int32)
        cv2.polylines(fibres, [points], False, float(rng.uniform(-40, 40)), int(rng.integers(1, 3)))
    return 6 * _noise(rng, period, shortest=3, longest=20) + cv2.GaussianBlur(fibres, (0, 0), 0.7)


def _sand(rng: np.random.Generator, period: int) -> NDArray[np.float32]:
    grains = _noise(rng, period, shortest=2.5, longest=8)
    pebbles = np.maximum(_noise(rng, period, shortest=6, longest=14) - 2.0, 0)
    return np.asarray(np.clip(12 * grains, -36, 36) - 32 * pebbles)


def _cloth(rng: np.random.Generator, period: int) -> NDArray[np.float32]:
    pitch = 7
    y, x = np.ogrid[:period, :period]
    sway = 1.2 * _noise(rng, period, shortest=30, longest=120)
    threads = rng.normal(0, 5, (2, period // pitch)).astype(np.float32)
    across, along = (np.sin((axis + sway) * np.float32(np.pi / pitch)) for axis in (x, y))
    weave = 15 * across * along + 5 * np.abs(across) + threads[0][y // pitch] + threads[1][x // pitch]
    return np.asarray(weave - weave.mean() + 3 * _noise(rng, period, shortest=2, longest=8), np.float32)


def _wood(rng: np.random.Generator, period: int) -> NDArray[np.float32]:
    veins = _noise(rng, period, shortest=3, longest=30, stretch=14)
    pores = np.maximum(_noise(rng, period, shortest=1.5, longest=5, stretch=6) - 1.8, 0)
    return np.asarray(11 * veins - 18 * pores)
