"""Distorted samples of glyphs: every call draws new ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.glyphs.fonts import Glyphs
from coarse2fine.fitting.classes.learner import Samples

SIDE = 24
"""Side of a sample."""
# Half ranges: radians, logarithms, shares of half the side; the standard deviation of the elastic shift is a share too.
_TILT, _SCALE, _ASPECT, _SHEAR, _MOVED, _ELASTIC = 0.25, 0.15, 0.12, 0.2, 0.12, 0.06
_GRID = 4  # nodes of the elastic shift along a side
_BLURS, _LEAST_CONTRAST, _SLOPE, _NOISE = 4, 0.35, 0.2, 0.14
# A neighbour's centre lies this many pixels from the tile's.
_NEAR, _FAR, _CLUTTERED = 15, 20, 0.6


class Sampler:
    """Draws classes by given weights, and distorts their glyphs.

    By rotation, size, shear, shift and elastic deformation; then parts of neighbours at the borders, blur, contrast, a
    gradient and noise.

    Parameters
    ----------
    glyphs : Glyphs
    seed : int
        Two samplers with one seed draw the same samples.
    """

    def __init__(self, glyphs: Glyphs, seed: int) -> None:
        ink = torch.from_numpy(glyphs.images)[:, None]
        blurs = [ink]
        for _ in range(_BLURS - 1):
            blurs.append(functional.avg_pool2d(functional.pad(blurs[-1], (1, 1, 1, 1), mode="replicate"), 3, 1))
        self._ink, self._classes = torch.cat(blurs), len(ink)
        # All places are linear in those of a few nodes, and so is an affine map: one product gives both.
        nodes = torch.eye(_GRID**2).reshape(-1, 1, _GRID, _GRID)
        self._spread = functional.interpolate(nodes, (SIDE, SIDE), mode="bilinear", align_corners=True).reshape(
            -1, SIDE**2
        )
        line = torch.linspace(-1, 1, _GRID)
        self._nodes = torch.stack([line.repeat(_GRID), line.repeat_interleave(_GRID), torch.ones(_GRID**2)])
        self._rng = torch.Generator().manual_seed(seed)

    def draw(self, count: int, weights: Tensor | None = None) -> Samples:
        """Samples of classes drawn by `weights`, float, (classes,); by default all alike."""
        weights = torch.ones(self._classes) if weights is None else weights
        classes = torch.multinomial(weights, count, replacement=True, generator=self._rng)
        blur = torch.randint(_BLURS, (count,), generator=self._rng)
        ink = functional.grid_sample(
            self._ink[classes + self._classes * blur], self._places(count), align_corners=False
        )
        return Samples(self._exposed(self._cluttered(ink)), classes)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._rng) * 2 - 1

    def _places(self, n: int) -> Tensor:
        """Where each pixel is read, (n, SIDE, SIDE, 2)."""
        angle, shear = self._uniform(n) * _TILT, self._uniform(n) * _SHEAR
        scale, aspect = torch.exp(self._uniform(n) * _SCALE), torch.exp(self._uniform(n) * _ASPECT)
        cos, sin, moved = torch.cos(angle) * scale, torch.sin(angle) * scale, self._uniform(2, n) * _MOVED
        rows = [
            cos * aspect,
            (shear * cos - sin) * aspect,
            moved[0],
            sin / aspect,
            (shear * sin + cos) / aspect,
            moved[1],
        ]
        theta = torch.stack(rows).reshape(2, 3, n).permute(2, 0, 1)
        places = theta.reshape(-1, 3) @ self._nodes + torch.randn((2 * n, _GRID**2), generator=self._rng) * _ELASTIC
        return (places @ self._spread).reshape(n, 2, SIDE, SIDE).permute(0, 2, 3, 1)

    def _cluttered(self, ink: Tensor) -> Tensor:
        """With parts of other samples' glyphs at the borders."""
        n = len(ink)
        for _ in range(2):
            far = int(torch.randint(_NEAR, _FAR + 1, (), generator=self._rng))
            along = int(torch.randint(-8, 9, (), generator=self._rng))
            sign = 1 if torch.rand((), generator=self._rng) < 0.5 else -1
            y, x = (sign * far, along) if torch.rand((), generator=self._rng) < 0.5 else (along, sign * far)
            order = torch.randperm(n, generator=self._rng)[: round(n * _CLUTTERED / 2)]
            into = torch.randperm(n, generator=self._rng)[: len(order)]
            h, w = SIDE - abs(y), SIDE - abs(x)
            to = (slice(max(y, 0), max(y, 0) + h), slice(max(x, 0), max(x, 0) + w))
            of = (slice(max(-y, 0), max(-y, 0) + h), slice(max(-x, 0), max(-x, 0) + w))
            pieces = ink[order][:, :, of[0], of[1]]
            ink[into, :, to[0], to[1]] = torch.maximum(ink[into, :, to[0], to[1]], pieces)
        return ink

    def _exposed(self, ink: Tensor) -> Tensor:
        """Blurred, with a contrast and a gradient of its own, and noisy."""
        n = len(ink)
        contrast = _LEAST_CONTRAST + (1 - _LEAST_CONTRAST) * torch.rand((n, 1, 1, 1), generator=self._rng)
        slope, line = self._uniform(n, 2, 1, 1) * _SLOPE, torch.linspace(-1, 1, SIDE)
        ground = slope[:, :1] * line[:, None] + self._uniform(n, 1, 1, 1) * 0.2 - contrast
        noise = torch.randn((n, 1, SIDE, SIDE), generator=self._rng)
        noise.mul_(_NOISE * torch.rand((n, 1, 1, 1), generator=self._rng)).add_(ground).add_(slope[:, 1:] * line)
        return noise.addcmul_(ink, 2 * contrast)
