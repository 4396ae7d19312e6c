"""Training of a detector on crops of annotated scenes for a given processor time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.detectors.nets import recalibrate
from coarse2fine.annotations.read import AnnotatedArea
from coarse2fine.bench.data import BenchScene
from coarse2fine.bench.score import object_boxes
from coarse2fine.model import Model
from coarse2fine.preprocess import as_channels
from coarse2fine.terminal import say
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.orientation import Turn

_BATCH, _RATE, _DECAY, _WARM, _CLIP = 4, 1e-3, 1e-2, 0.05, 5.0
# A pretrained backbone learns at a third of the rate, like a pretrained base in `fit`.
_SLOW = 1 / 3
_AROUND, _SPREAD = 0.5, 1 / 3
_FILL = 128
_SAID_EVERY = 60.0


@dataclass(frozen=True, eq=False)
class Lesson:
    """A scene to learn from.

    Parameters
    ----------
    image : Image
    boxes : ndarray, float64, (n, 4)
        Objects: y0, x0, y1, x1 in pixels.
    labels : ndarray, int64, (n,)
        Index of each one's class.
    annotated : AnnotatedArea or None
        The annotated part; None if it is the whole scene.
    """

    image: Image
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    annotated: AnnotatedArea | None

    def crop(self, y: int, x: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64]]:
        """Pixels (side, side, 3), and boxes and labels of the objects whose centre lies in them, cut to the crop.

        What is not annotated is grey, and its objects are left out.
        """
        pixels = as_channels(self.image.read_scaled(Box(y, x, y + side, x + side), 1), 3)
        centre = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        inside = ((centre >= (y, x)) & (centre < (y + side, x + side))).all(axis=1)
        if self.annotated is not None:
            inside &= self.annotated.contains(*centre.T)
            rows, columns = np.mgrid[y : y + side, x : x + side].reshape(2, -1) + 0.5
            pixels = pixels.copy()
            pixels[~self.annotated.contains(rows, columns).reshape(side, side)] = _FILL
        boxes = (self.boxes[inside] - (y, x, y, x)).clip(0, side)
        # A pixel at least, so that no box is empty.
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        return pixels, boxes, self.labels[inside]


@contextmanager
def lessons_of(scenes: Sequence[BenchScene], model: Model) -> Iterator[list[Lesson]]:
    """Open scenes as lessons; points have the size, and areas are left out, as in the fit of `model`."""
    numbers = {label.name: i for i, label in enumerate(label for label in model.labels if label.kind == "object")}
    with ExitStack() as stack:
        found = []
        for scene in scenes:
            known = np.array([a.label in numbers for a in scene.truth.objects], bool)
            labels = np.array([numbers[a.label] for a in scene.truth.objects if a.label in numbers], np.int64)
            partly = scene.truth.ignored or scene.truth.regions
            annotated = AnnotatedArea(scene.truth) if partly else None
            image = stack.enter_context(open_image(scene.image))
            found.append(Lesson(image, object_boxes(scene.truth, model)[known], labels, annotated))
        yield found


@dataclass(frozen=True)
class Drawing:
    """Draws crops as a fit does: half of them around an object, turned and in varied light.

    Parameters
    ----------
    lessons : sequence of Lesson
    side : int
        Of a crop, in pixels of the image.
    std : ndarray, float32, (3,)
        Standard deviations of the scenes' pixels, in 0..1: the unit in which brightness varies.
    first : int
        Number of the first class in the targets.
    """

    lessons: Sequence[Lesson]
    side: int
    std: NDArray[np.float32]
    first: int

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """An image (3, side, side), nearly in 0..1, and its target as torchvision's detectors take it."""
        lesson, y, x = self._place(rng)
        pixels, boxes, labels = lesson.crop(y, x, self.side)
        turn = Turn.random(rng)
        boxes = turned(boxes, turn, self.side)
        image = torch.from_numpy(np.ascontiguousarray(turn.apply(pixels))).permute(2, 0, 1).float() / 255
        gain, shift = rng.uniform(0.8, 1.25), rng.normal(0, 0.2)
        middle = image.mean()
        change = torch.from_numpy(shift * self.std).float()[:, None, None]
        image = (image - middle) * gain + middle + change
        xyxy = torch.from_numpy(boxes[:, [1, 0, 3, 2]]).float()
        return image, {"boxes": xyxy, "labels": torch.from_numpy(labels + self.first)}

    def _place(self, rng: np.random.Generator) -> tuple[Lesson, int, int]:
        lessons = self.lessons
        if rng.random() < _AROUND:
            # Classes by the root of their counts, then one of the objects.
            every = np.concatenate([each.labels for each in lessons])
            names, counts = np.unique(every, return_counts=True)
            name = rng.choice(names, p=counts**0.5 / (counts**0.5).sum())
            row = int(rng.choice(np.flatnonzero(every == name)))
            ends = np.cumsum([len(each.labels) for each in lessons])
            s = int(np.searchsorted(ends, row, side="right"))
            lesson = lessons[s]
            box = lesson.boxes[row - (ends[s] - len(lesson.labels))]
            middle = (box[:2] + box[2:]) / 2 + rng.uniform(-_SPREAD, _SPREAD, 2) * self.side
            corner = np.floor(middle - self.side / 2)
        else:
            area = np.array([each.image.height * each.image.width for each in lessons], np.float64)
            lesson = lessons[int(rng.choice(len(lessons), p=area / area.sum()))]
            corner = rng.uniform(-self.side / 4, (lesson.image.height, lesson.image.width))
        room = np.maximum(np.array([lesson.image.height, lesson.image.width]) - self.side, 0)
        y, x = np.minimum(corner.clip(min=0), room).astype(int).tolist()
        return lesson, y, x


def turned(boxes: NDArray[np.float64], turn: Turn, side: int) -> NDArray[np.float64]:
    """Boxes (n, 4) of a square, y0, x0, y1, x1, turned with it."""
    low, high = boxes[:, :2], boxes[:, 2:]
    if turn.transpose:
        low, high = low[:, ::-1], high[:, ::-1]
    mirrored = np.array([turn.mirror_y, turn.mirror_x])
    return np.concatenate([np.where(mirrored, side - high, low), np.where(mirrored, side - low, high)], axis=1)


def train(net: nn.Module, drawing: Drawing, seconds: float, seed: int, *, pretrained: bool) -> int:
    """Train a detector for so many seconds of processor time; returns the number of steps.

    The rate of AdamW rises, then falls as a cosine of the time.

    Parameters
    ----------
    net : Module
        Changed in place; left in evaluation mode.
    drawing : Drawing
    seconds : float
    seed : int
    pretrained : bool
        Whether the backbone's body has weights of another training.
    """
    rng, start, steps, said = np.random.default_rng(seed), time.process_time(), 0, 0.0
    if pretrained:
        recalibrate(net, [drawing.draw(rng)[0] for _ in range(4 * _BATCH)])
    inner: Any = net
    slowly = {id(p) for p in inner.backbone.body.parameters()} if pretrained else set()
    groups = [
        {"params": [p for p in net.parameters() if (id(p) in slowly) == slow], "lr": rate, "most": rate}
        for slow, rate in ((False, _RATE), (True, _SLOW * _RATE))
    ]
    optimiser = torch.optim.AdamW([each for each in groups if each["params"]], weight_decay=_DECAY)
    net.train()
    while (spent := time.process_time() - start) < seconds:
        done = spent / seconds
        share = (done + 0.001) / _WARM if done < _WARM else (1 + math.cos(math.pi * (done - _WARM) / (1 - _WARM))) / 2
        for group in optimiser.param_groups:
            group["lr"] = min(share, 1.0) * group["most"]
        images, targets = zip(*(drawing.draw(rng) for _ in range(_BATCH)), strict=True)
        losses = net(list(images), list(targets))
        loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), _CLIP)
        optimiser.step()
        steps += 1
        if spent - said > _SAID_EVERY:
            said = spent
            say(f"step {steps}: loss {float(loss.detach()):.3f}, {spent:.0f} of {seconds:.0f} s", file=sys.stderr)
    net.eval()
    return steps
