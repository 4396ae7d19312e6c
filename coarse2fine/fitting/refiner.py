"""Training of the refine net at full resolution on the annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coarse2fine.fitting.base import PRIOR_LOGIT
from coarse2fine.fitting.crops import Recipe, turn_boxes, turn_planes, within
from coarse2fine.fitting.optimise import RATE, outputs, train
from coarse2fine.fitting.resume import GENTLE, unfolded
from coarse2fine.fitting.scene import PART, Scene, is_held
from coarse2fine.models.box_head import BOX_CHANNELS, detection_loss
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import as_channels
from coarse2fine.progress import Tick
from coarse2fine.refiners.net import net_of
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.orientation import Turn

_UPRIGHT = Turn(transpose=False, mirror_y=False, mirror_x=False)
_CROP, _BATCH = 24, 8
# Crops are drawn once and used several times, each time turned and in another light.
_CROPS_A_STEP, _MOST_CROPS, _HELD_CROPS = 2, 2000, 32


def train_refiner(
    recipe: Recipe, scenes: Sequence[Scene], runtime: Runtime, tick: Tick | None = None
) -> tuple[ConvStack, int]:
    """Train the refine net on the annotations; the net, and the steps that it took.

    Parameters
    ----------
    recipe : Recipe
    scenes : sequence of Scene
    runtime : Runtime
    tick : callable, optional
        Called with the numbers of steps done and of all steps.
    """
    torch.manual_seed(recipe.seed)
    count = min(_CROPS_A_STEP * recipe.steps, _MOST_CROPS)  # bounded: they are kept in memory
    crops = _drawn(recipe, _Places(scenes), max(_BATCH, count))
    net = _begun(recipe, crops)

    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        return crops.take(rng.integers(len(crops.pixels), size=_BATCH)).batch(recipe, rng)

    check = _held_loss(recipe, scenes, runtime)
    rate = RATE if recipe.start is None else GENTLE * RATE
    options: dict[str, Any] = {"steps": recipe.steps, "seed": recipe.seed, "rate": rate, "check": check, "tick": tick}
    trained = train(net, make, detection_loss, runtime, orthogonal=True, **options)
    return net.folded(), trained.steps


def _begun(recipe: Recipe, crops: _Crops) -> ConvStack:
    """A new net, or that of the model to go on from."""
    if recipe.start is not None:
        return unfolded(net_of(recipe.start.refiner), recipe.plain(crops.pixels[:: max(1, len(crops.pixels) // 16)]))
    net = ConvStack(recipe.refiner, batch_norm=True)
    bias = net.convs[-1].bias
    with torch.no_grad():
        bias[:-BOX_CHANNELS].fill_(PRIOR_LOGIT)  # type: ignore[index]
        bias[-BOX_CHANNELS:].zero_()  # type: ignore[index]
    return net


def batch_macs(recipe: Recipe) -> int:
    """Multiply-adds of the refine net for a batch of crops."""
    return _BATCH * recipe.refiner.macs(_CROP, _CROP)


@dataclass(frozen=True)
class _Crops:
    """Crops of scenes with their targets, see `Targets`.

    Parameters
    ----------
    pixels : ndarray, uint8, (n, h, w, channels)
    classes, valid : ndarray, bool, (n, k, cell height, cell width)
    boxes : ndarray, float32, (n, 4, cell height, cell width)
    boxed : ndarray, bool, (n, cell height, cell width)
    """

    pixels: NDArray[np.uint8]
    classes: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    boxed: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> _Crops:
        """Some of the crops."""
        return _Crops(self.pixels[rows], self.classes[rows], self.valid[rows], self.boxes[rows], self.boxed[rows])

    def targets(self, turn: Turn = _UPRIGHT) -> tuple[Tensor, ...]:
        """What `detection_loss` takes besides the net's output."""
        planes = [turn_planes(each, turn).astype(np.float32) for each in (self.classes, self.valid, self.boxed)]
        classes, valid, boxed = (torch.from_numpy(each) for each in planes)
        return classes, valid, torch.from_numpy(turn_boxes(self.boxes, turn)), boxed

    def batch(self, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """The crops with their targets, turned and in varied light."""
        turn = recipe.turn(rng)
        return recipe.batch(self.pixels, turn, rng), *self.targets(turn)


def batches(
    recipe: Recipe, scenes: Sequence[Scene], around: float = 0.5
) -> Callable[[np.random.Generator], tuple[Tensor, ...]]:
    """A sampler of batches of crops with their targets, as `detection_loss` takes them; held-out parts do not count.

    Parameters
    ----------
    recipe : Recipe
    scenes : sequence of Scene
    around : float
        Share of crops around an object, of classes drawn by the root of their counts; the others may lie anywhere.
    """
    places = _Places(scenes, around)

    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        return _cut(recipe, places, [places.draw(rng) for _ in range(_BATCH)]).batch(recipe, rng)

    return make


def _drawn(recipe: Recipe, places: _Places, count: int) -> _Crops:
    """Crops that follow the seed."""
    rng = np.random.default_rng((recipe.seed, 4))
    # In the order of their places, so that chunks that are read for one crop serve the next.
    return _cut(recipe, places, sorted(places.draw(rng) for _ in range(count)))


def _cut(recipe: Recipe, places: _Places, drawn: Sequence[tuple[int, int, int]]) -> _Crops:
    """Crops at places (scene, y, x), in fine cells."""
    spec, n, k = recipe.refiner, len(drawn), len(places.scenes[0].labels)
    crops = _Crops(
        np.empty((n, *(spec.input_size(_CROP),) * 2, recipe.channels), np.uint8),
        np.empty((n, k, _CROP, _CROP), bool),
        np.empty((n, k, _CROP, _CROP), bool),
        np.empty((n, 4, _CROP, _CROP), np.float32),
        np.empty((n, _CROP, _CROP), bool),
    )
    for i, (s, y, x) in enumerate(drawn):
        scene, box = places.scenes[s], Box(y, x, y + _CROP, x + _CROP)
        full = box.scale(spec.stride).expand(spec.margin)
        pixels = scene.image.read_scaled(full, recipe.geometry.refine_downsample)
        t = scene.draw(box, held=places.held)
        crops.pixels[i] = as_channels(pixels, recipe.channels)
        crops.classes[i], crops.valid[i], crops.boxes[i], crops.boxed[i] = t.classes, t.valid, t.boxes, t.boxed
    return crops


def _held_loss(recipe: Recipe, scenes: Sequence[Scene], runtime: Runtime) -> Callable[[nn.Module], float]:
    """Loss of a net on crops of held-out parts as they are, or of all parts if no held-out part holds an object."""
    places = _Places(scenes, held=any((scene.fits & is_held(scene)).any() for scene in scenes))
    crops = _drawn(recipe, places, _HELD_CROPS)
    x, targets = recipe.plain(crops.pixels), crops.targets()

    def loss(net: nn.Module) -> float:
        return float(detection_loss(outputs(net, x, _BATCH, runtime), *targets))

    return loss


class _Places:
    """Draws places of crops.

    Parameters
    ----------
    scenes : sequence of Scene
    around : float
        Share of crops around an object.
    held : bool
        Whether to draw from the held-out parts instead of the others.
    """

    def __init__(self, scenes: Sequence[Scene], around: float = 0.5, *, held: bool = False) -> None:
        self.scenes, self.held, self._around = scenes, held, around
        mine = [scene.fits & (is_held(scene) == held) for scene in scenes]
        rows = [(s, i, int(scenes[s].label[i])) for s, those in enumerate(mine) for i in np.flatnonzero(those)]
        self._by_label = [[row for row in rows if row[2] == k] for k in sorted({row[2] for row in rows})]
        self._parts = [(s, y, x) for s, scene in enumerate(scenes) for y, x in np.argwhere(scene.held == held).tolist()]
        # Rare classes are oversampled, but not to the level of common ones.
        weight = np.array([len(each) for each in self._by_label]) ** 0.5
        self._weight = weight / weight.sum()

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """A scene and the first fine cell of a crop, which lies in the scene as far as it fits."""
        if self._by_label and rng.random() < self._around:
            own = self._by_label[rng.choice(len(self._by_label), p=self._weight)]
            s, i, _ = own[rng.integers(len(own))]
            middle = self.scenes[s].centre[i] / self.scenes[s].fine_cell + rng.uniform(-_CROP / 3, _CROP / 3, 2)
            corner = np.floor(middle - _CROP / 2).astype(int)
        else:
            s, y, x = self._parts[rng.integers(len(self._parts))]
            corner = np.array([y, x]) * PART + rng.integers(-_CROP // 2, PART - _CROP // 2, 2)
        y, x = within(corner, _CROP, self.scenes[s].cell_shape).tolist()
        return s, y, x
