"""Training of the benchmark's own experts: a U-Net, a Faster R-CNN, and what an encoder's vectors usually are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from benchmarks.experts.models import RCNN_SIDE, UNet, encoder_module, rcnn_module
from coarse2fine.bench.data import BenchScene
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.preprocess import as_channels
from coarse2fine.progress import Tick
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.writing.atomic import replacing_stream

_UNET_SIDE, _UNET_BATCH, _UNET_RATE = 64, 8, 2e-3
_RCNN_BATCH, _RCNN_RATE = 4, 1e-3
_DIGITS_SIDE, _PIXELS_PER_DIGIT = 2048, 18_000
# Share of crops that are centred near an object, and the quantile of vectors' lengths at which the unusual begins.
_CENTRED, _USUAL = 0.6, 0.9


@dataclass(frozen=True)
class Lesson:
    """A scene to learn from.

    Parameters
    ----------
    pixels : ndarray, uint8, (h, w, 3)
    boxes : ndarray, float32, (n, 4)
        Objects: x0, y0, x1, y1.
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float32]


def digit_lessons(side: int = _DIGITS_SIDE) -> list[Lesson]:
    """Two scenes of digits and look-alikes, denser than the demo's."""
    count, found = side**2 // _PIXELS_PER_DIGIT, []
    for seed in (401, 402):
        scene = DigitScene(side, side, digits=count // 2, clutter=count // 2, seed=seed, handwriting="train")
        boxes = [(o.full_box.x0, o.full_box.y0, o.full_box.x1, o.full_box.y1) for o in scene.objects]
        pixels = as_channels(scene.block(Box(0, 0, side, side)), 3)
        found.append(Lesson(pixels, np.array(boxes, np.float32).reshape(-1, 4)))
    return found


def annotated_lessons(scenes: Sequence[BenchScene], least: float = 0.0) -> list[Lesson]:
    """Annotated scenes with their objects of at least so many pixels in width."""
    found = []
    for scene in scenes:
        with open_image(scene.image) as image:
            pixels = as_channels(image.read(Box(0, 0, image.height, image.width)), 3)
        boxes = np.array([each.geometry.bounds for each in scene.truth.objects], np.float32).reshape(-1, 4)
        found.append(Lesson(pixels, boxes[boxes[:, 2] - boxes[:, 0] >= least]))
    return found


def train_unet(
    path: Path,
    lessons: Sequence[Lesson],
    *,
    steps: int,
    seed: int = 0,
    tick: Tick | None = None,
    name: str = "unet",
) -> Path:
    """Train the U-Net to mark objects as ellipses, unless its file is there.

    Parameters
    ----------
    path : Path
        File of weights; its folder must exist.
    lessons : sequence of Lesson
    steps : int
    seed : int
    tick : callable, optional
        Called with steps done and all steps.
    name : str
        Which U-Net.
    """
    masks = [_ellipses(lesson) for lesson in lessons]

    def loss(net: nn.Module, rng: np.random.Generator) -> torch.Tensor:
        pixels: list[NDArray[np.uint8]] = []
        wanted: list[NDArray[np.uint8]] = []
        for _ in range(_UNET_BATCH):
            number, y, x = _corner(lessons, _UNET_SIDE, rng)
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            for plane, into in ((lessons[number].pixels, pixels), (masks[number], wanted)):
                crop = np.rot90(plane[y : y + _UNET_SIDE, x : x + _UNET_SIDE], turns)
                into.append(np.ascontiguousarray(crop[::-1] if flip else crop))
        given = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        target = torch.from_numpy(np.stack(wanted)).float()[:, None]
        logits = net(given)
        shares = torch.sigmoid(logits)
        dice = 1 - (2 * (shares * target).sum() + 1) / (shares.sum() + target.sum() + 1)
        return functional.binary_cross_entropy_with_logits(logits, target) + dice

    return _trained(path, partial(UNet, name), loss, _UNET_RATE, steps, seed, tick)


def train_rcnn(path: Path, lessons: Sequence[Lesson], *, steps: int, seed: int = 0, tick: Tick | None = None) -> Path:
    """Train the Faster R-CNN on boxes, unless its file is there; parameters as of `train_unet`."""

    def loss(net: nn.Module, rng: np.random.Generator) -> torch.Tensor:
        images, targets = [], []
        for _ in range(_RCNN_BATCH):
            number, y, x = _corner(lessons, RCNN_SIDE, rng)
            crop = lessons[number].pixels[y : y + RCNN_SIDE, x : x + RCNN_SIDE]
            boxes = lessons[number].boxes - np.array([x, y, x, y], np.float32)
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            boxes = boxes[((centre >= 0) & (centre < RCNN_SIDE)).all(axis=1)].clip(0, RCNN_SIDE)
            boxes = boxes[(boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)]
            images.append(torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1).float() / 255)
            targets.append({"boxes": torch.from_numpy(boxes), "labels": torch.ones(len(boxes), dtype=torch.int64)})
        losses = net(images, targets)
        return torch.stack(list(losses.values())).sum()

    return _trained(path, rcnn_module, loss, _RCNN_RATE, steps, seed, tick)


def usual_vectors(path: Path, weights: Path, lessons: Sequence[Lesson], tile: int) -> Path:
    """Store the mean of an encoder's vectors of tiles, and the distance from it within which most lie.

    Parameters
    ----------
    path : Path
        Target; kept if it is there.
    weights : Path
        Of the encoder.
    lessons : sequence of Lesson
    tile : int
        Side of the tiles in pixels.
    """
    if path.is_file():
        return path
    module, vectors = encoder_module(str(weights)), []
    with torch.inference_mode():
        for lesson in lessons:
            height, width = (n // tile * tile for n in lesson.pixels.shape[:2])
            tiles = lesson.pixels[:height, :width].reshape(height // tile, tile, width // tile, tile, 3)
            flat = np.ascontiguousarray(tiles.swapaxes(1, 2).reshape(-1, tile, tile, 3))
            vectors += [
                module(torch.from_numpy(batch)).numpy() for batch in np.array_split(flat, ceil_div(len(flat), 16))
            ]
    every = np.concatenate(vectors)
    mean = every.mean(axis=0)
    scale = np.quantile(np.linalg.norm(every - mean, axis=1), _USUAL)
    with replacing_stream(path) as file:
        np.savez(file, mean=mean.astype(np.float32), scale=np.array(scale, np.float32))
    return path


def _trained(
    path: Path,
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module, np.random.Generator], torch.Tensor],
    rate: float,
    steps: int,
    seed: int,
    tick: Tick | None,
) -> Path:
    if path.is_file():
        return path
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make().train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
        for step in range(steps):
            optimiser.zero_grad()
            loss(net, rng).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            if tick:
                tick(step + 1, steps)
    with replacing_stream(path) as file:
        torch.save(net.state_dict(), file)
    return path


def _corner(lessons: Sequence[Lesson], side: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Scene, y and x of a crop: of most crops the centre is near an object."""
    number = int(rng.integers(len(lessons)))
    lesson = lessons[number]
    most = np.array(lesson.pixels.shape[:2]) - side
    at = rng.integers(0, most + 1)
    if len(lesson.boxes) and rng.random() < _CENTRED:
        x0, y0, x1, y1 = lesson.boxes[rng.integers(len(lesson.boxes))].tolist()
        centre = np.array([(y0 + y1) / 2, (x0 + x1) / 2]) + rng.uniform(-side / 3, side / 3, 2)
        at = (centre - side / 2).round().astype(int).clip(0, most)
    return number, int(at[0]), int(at[1])


def _ellipses(lesson: Lesson) -> NDArray[np.uint8]:
    """Mask (h, w) of the objects, each a little smaller than its box, so that neighbours stay apart."""
    mask = np.zeros(lesson.pixels.shape[:2], np.uint8)
    for x0, y0, x1, y1 in lesson.boxes.tolist():
        axes = (max(1, round((x1 - x0) * 0.4)), max(1, round((y1 - y0) * 0.4)))
        cv2.ellipse(mask, (round((x0 + x1) / 2), round((y0 + y1) / 2)), axes, 0, 0, 360, 1, -1)
    return mask
