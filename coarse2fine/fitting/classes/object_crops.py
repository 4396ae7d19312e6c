"""Crops of annotated objects from which a classifier learns, as it will see finds: scaled to the object's box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from coarse2fine.fitting.classes.learner import Samples
from coarse2fine.fitting.scene import PART, Scene, is_held
from coarse2fine.steps.classify import Crop

CONTEXT = 1.5
"""Side of a crop as a multiple of the object's longer side."""
# Stored crops are larger than the net's input by this factor, so that they can be turned and moved.
_ROOM = 1.6
# Fewest scenes that count as groups.
_SCENES = 6
_MOST = 40_000
# Half ranges of what varies: the size and place of a box (a share of its side), tilt of upright objects in radians.
_SCALED, _MOVED, _TILT = 0.15, 0.08, 0.1
# As in the training of the refine net.
_LEAST_GAIN, _MOST_GAIN, _SHIFT, _TINT = 0.8, 1.25, 0.2, 0.1


@dataclass(frozen=True, eq=False)
class ObjectCrops:
    """Crops of objects, larger than the net's input.

    Parameters
    ----------
    pixels : ndarray, uint8, (n, h, h, channels)
    classes : ndarray, int64, (n,)
    groups : ndarray, int64, (n,)
        Groups of crops that may be alike: scenes, or a quarter of a part of one if they are few.
    side : int
        Pixels of the net's input.
    """

    pixels: NDArray[np.uint8]
    classes: NDArray[np.int64]
    groups: NDArray[np.int64]
    side: int

    @classmethod
    def of(
        cls,
        scenes: Sequence[Scene],
        names: Sequence[str],
        side: int,
        channels: int,
        seed: int,
        *,
        found: Sequence[NDArray[np.float64]] = (),
        held: bool = False,
    ) -> ObjectCrops:
        """Crops of the objects that are trained on; if they are very many, of some, rare classes first.

        An object that was found has two crops: around its annotation, and around its find.

        Parameters
        ----------
        scenes : sequence of Scene
        names : sequence of str
            The classes.
        side : int
            Pixels of the net's input.
        channels, seed : int
        found : sequence of ndarray, float64, (objects, 4), optional
            See `found_boxes`; by default none was found.
        held : bool
            Crops of the held-out objects instead: those of the finds, as an analysis reads them, and of the annotations
            of what was not found.
        """
        number = {name: i for i, name in enumerate(names)}
        mine = [scene.fits & (is_held(scene) == held) & scene.annotated(*scene.centre.T) for scene in scenes]
        squares = [_squares(scene, found[s] if found else None) for s, scene in enumerate(scenes)]
        rows = [
            (s, i, k)
            for s, those in enumerate(mine)
            for i in np.flatnonzero(those).tolist()
            for k in _used(squares[s][i], held=held)
        ]
        chosen = _some([number[scenes[s].names[i]] for s, i, _ in rows], np.random.default_rng((seed, 7)))
        room = math.ceil(side * _ROOM)
        pixels = np.empty((len(chosen), room, room, channels), np.uint8)
        classes = np.empty(len(chosen), np.int64)
        places = np.empty((len(chosen), 3), np.int64)
        for n, (s, i, k) in enumerate(rows[row] for row in chosen.tolist()):
            scene = scenes[s]
            y, x, longer = squares[s][i, k].tolist()
            full_side = CONTEXT * longer
            pixels[n] = Crop.around((y, x), full_side * room / side, room).read(scene.image, room, channels)
            classes[n] = number[scene.names[i]]
            places[n] = (s, *(int(at / (scene.fine_cell * PART / 2)) for at in (y, x)))
        alike = places[:, :1] if len(set(places[:, 0].tolist())) >= _SCENES else places
        groups = np.unique(alike, axis=0, return_inverse=True)[1].reshape(-1)
        return cls(pixels, classes, groups, side)

    @property
    def plain(self) -> NDArray[np.uint8]:
        """The crops as an analysis reads them, uint8, (n, side, side, channels)."""
        rim = (self.pixels.shape[1] - self.side) // 2
        return np.ascontiguousarray(self.pixels[:, rim : rim + self.side, rim : rim + self.side])


def _squares(scene: Scene, found: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Middle (y, x) and longer side of each object by its annotation, and by its find; (objects, 2, 3)."""
    own = np.column_stack([scene.centre, scene.size.max(axis=1, initial=0)])
    if found is None:
        return np.stack([own, np.full_like(own, np.nan)], axis=1)
    middle, size = (found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]
    return np.stack([own, np.column_stack([middle, size.max(axis=1, initial=0)])], axis=1)


def _used(squares: NDArray[np.float64], *, held: bool) -> tuple[int, ...]:
    """Which of the two squares of an object are read."""
    if np.isnan(squares[1]).any():
        return (0,)
    return (1,) if held else (0, 1)


def _some(classes: Sequence[int], rng: np.random.Generator) -> NDArray[np.intp]:
    """Rows of at most `_MOST` crops, in order: as many of each class as there are or as each may have."""
    order = rng.permutation(len(classes))
    own = np.array(classes, np.int64)[order]
    # The how manieth of its class each is.
    turn = np.empty(len(own), np.int64)
    by_class = np.argsort(own, kind="stable")
    first = np.searchsorted(own[by_class], own[by_class])
    turn[by_class] = np.arange(len(own)) - first
    return np.sort(order[np.argsort(turn, kind="stable")[:_MOST]])


class Sampler:
    """Draws crops by class, rare ones more often, each time turned, scaled and moved anew and in another light.

    Parameters
    ----------
    crops : ObjectCrops
    mean, std : ndarray, float32, (channels,)
        Normalisation of pixels in 0..1.
    rotate : bool
        Whether objects keep their class when turned or mirrored.
    seed : int
    """

    def __init__(
        self, crops: ObjectCrops, mean: NDArray[np.float32], std: NDArray[np.float32], *, rotate: bool, seed: int
    ) -> None:
        self._crops, self._rotate = crops, rotate
        self._mean, self._std = (torch.from_numpy(np.asarray(each, np.float32)).view(-1, 1, 1) for each in (mean, std))
        counts = np.bincount(crops.classes)
        # Rare classes are oversampled, but not to the level of common ones.
        self._weights = torch.from_numpy(1 / np.sqrt(counts.clip(1))[crops.classes])
        self._rng = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> Samples:
        """Draw samples."""
        rows = torch.multinomial(self._weights, count, replacement=True, generator=self._rng).numpy()
        pixels = torch.from_numpy(self._crops.pixels[rows]).permute(0, 3, 1, 2).float() / 255
        side = self._crops.side
        grid = functional.affine_grid(self._places(count), [count, 1, side, side], align_corners=False)
        seen = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        return Samples(self._lit((seen - self._mean) / self._std), torch.from_numpy(self._crops.classes[rows]))

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._rng) * 2 - 1

    def _places(self, n: int) -> Tensor:
        """Affine maps from the net's input to the stored crop, (n, 2, 3)."""
        angle = self._uniform(n) * (math.pi if self._rotate else _TILT)
        mirror = self._uniform(n).sign() if self._rotate else torch.ones(n)
        scale = torch.exp(self._uniform(n) * _SCALED) * self._crops.side / self._crops.pixels.shape[1]
        moved = self._uniform(2, n) * _MOVED
        cos, sin = angle.cos() * scale, angle.sin() * scale
        return torch.stack([cos * mirror, -sin, moved[0], sin * mirror, cos, moved[1]]).view(2, 3, n).permute(2, 0, 1)

    def _lit(self, x: Tensor) -> Tensor:
        """With a contrast, brightness and tint of its own for each."""
        n, c = x.shape[:2]
        gain = torch.empty(n, 1, 1, 1).uniform_(_LEAST_GAIN, _MOST_GAIN, generator=self._rng)
        shift = torch.randn((n, 1, 1, 1), generator=self._rng) * _SHIFT
        tint = torch.randn((n, c, 1, 1), generator=self._rng) * (_TINT if c > 1 else 0.0)
        return x.mul_(gain).add_(shift + tint)
