"""Fitting a model to annotated scenes.

The refine net is trained at full resolution on the annotations. The base is trained at low resolution on the refine
net's own answer to the same scenes (distillation, Hinton et al. 2015, arXiv:1503.02531): it learns where refining
would find something, not what a person marked. What is held back calibrates thresholds and trains nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.annotations import (
    AnnotationError,
    Annotations,
    expand_paths,
    match_annotations,
    read_annotations,
)
from coarse2fine.calibrate import calibrate, exhaustive_answer
from coarse2fine.model import Geometry, Model
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.heads import BOX_CHANNELS, detection_loss
from coarse2fine.models.runtime import Precision, Runtime
from coarse2fine.progress import Progress
from coarse2fine.scan import as_channels
from coarse2fine.shape import base_spec, choose_geometry, find_labels, measure, refiner_spec
from coarse2fine.targets import PART, Scene, check_objects, hold_back
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.training import train

_REFINE_CROP, _REFINE_BATCH = 24, 16
_BASE_CROP, _BASE_BATCH = 48, 16
_HELD_SHARE = 0.2
_PRIOR_LOGIT = -4.0

Sources = str | os.PathLike[str] | NDArray[Any] | Image | dict[str, Any] | Sequence[Any]


@dataclass(frozen=True)
class _Recipe:
    """What both training loops need to know."""

    geometry: Geometry
    refiner: StackSpec
    channels: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    rotate: bool
    steps: int
    seed: int


def fit(
    images: Sources,
    annotations: Sources,
    *,
    rotate: bool = True,
    object_size: float | None = None,
    recall: float = 0.97,
    steps: int = 1000,
    seed: int = 0,
    name: str = "model",
    device: str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> Model:
    """Fit a model to annotated scenes, in minutes on a laptop.

    Parameters
    ----------
    images : path, glob, folder, array, Image, or sequence of paths, arrays or Images
        The scenes.
    annotations : path, glob, folder, GeoJSON dict, or sequence of paths or GeoJSON dicts
        QuPath-style GeoJSON in full-resolution pixels, matched to image files by name: polygons, boxes and points,
        each with a class. Areas of class ``Ignore*`` are left out; where there are areas of class ``Region*``, only
        what lies inside them counts as annotated. Otherwise all that is not annotated counts as background. With
        images that are no files, one annotation for each, in order.
    rotate : bool
        Whether an object stays what it is when turned or mirrored, as in tissue and in views from above. False for
        writing, prints, and all that has a right way up.
    object_size : float, optional
        Side of a typical object in full-resolution pixels, for annotations that are points.
    recall : float
        Share of what the exhaustive pass finds that the default threshold is set to find again, on what was held back.
    steps : int
        Optimisation steps of each of the two nets.
    seed : int
        The same seed and data give the same model on the same machine.
    name : str
        Name that the model bears.
    device : str, optional
        A torch device; by default the best there is.
    precision : {"auto", "fp32", "bf16"}
        Number format; "auto" takes bfloat16 where the hardware has it.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Model

    Raises
    ------
    AnnotationError
        If annotations are missing, unreadable, outside their image, or hold no object at all.
    ImageError
        If an image cannot be read.
    ValueError
        If a parameter is out of range.
    """
    _check(recall, steps, object_size)
    runtime = Runtime.choose(device, precision)
    pairs = _load(images, annotations)
    labels = find_labels([a for _, a in pairs])
    sizes = measure([a for _, a in pairs], labels, object_size)
    geometry = choose_geometry(sizes, labels)
    channels = 1 if all(image.channels == 1 for image, _ in pairs) else 3
    spec = refiner_spec(channels, labels, sizes, geometry)
    largest = 1.25 * spec.field * geometry.refine_downsample
    scenes = [
        Scene(i, a, labels, fine_cell=geometry.fine_cell, largest=largest, nominal=sizes.nominal) for i, a in pairs
    ]
    check_objects(scenes, largest)
    hold_back(scenes, _HELD_SHARE, np.random.default_rng(seed))
    mean, std = _normalisation([image for image, _ in pairs], channels, geometry.scan_downsample)
    recipe = _Recipe(geometry, spec, channels, mean, std, rotate, steps, seed)
    with Progress(progress) as bars, torch.random.fork_rng(devices=[]):
        draft = Model(
            name=name,
            task="detect",
            geometry=geometry,
            mean=tuple(float(m) for m in mean),
            std=tuple(float(s) for s in std),
            base=ConvStack(base_spec(channels, geometry)).eval(),
            refiner=_train_refiner(recipe, scenes, runtime, bars),
            labels=labels,
        )
        answers = exhaustive_answer(draft, scenes, runtime, seed, bars.task("refine net's answer"))
        base = _train_base(recipe, scenes, answers.targets, runtime, bars)
        draft = replace(draft, threshold=answers.threshold, base=base)
        model = calibrate(draft, scenes, answers, recall, runtime, bars.task("calibrating"))
    return replace(
        model,
        provenance={
            **model.provenance,
            "scenes": [image.name for image, _ in pairs],
            "objects": int(sum(len(s.centre) for s in scenes)),
            "too_large": int(sum((~s.fits).sum() for s in scenes)),
            "median_size": sizes.median,
            "steps": steps,
            "seed": seed,
            "rotate": rotate,
            "runtime": runtime.name,
            "torch": str(torch.__version__),
        },
    )


def _check(recall: float, steps: int, object_size: float | None) -> None:
    if not 0 < recall < 1:
        raise ValueError(f"recall must lie between 0 and 1, got {recall}")
    if steps < 10:
        raise ValueError(f"steps must be at least 10, got {steps}; some hundreds are needed to learn anything")
    if object_size is not None and not 0 < object_size < np.inf:
        raise ValueError(f"object_size must be a positive number of pixels, got {object_size}")


def _load(images: Sources, annotations: Sources) -> list[tuple[Image, Annotations]]:
    """Images with their annotations; files are matched by name, all else by order."""
    images = [images] if isinstance(images, np.ndarray | Image) else images
    by_name = isinstance(images, str | os.PathLike) or all(isinstance(i, str | os.PathLike) for i in images)
    texts: Any = [annotations] if isinstance(annotations, dict) else annotations
    texts = texts if isinstance(texts, str | os.PathLike) else list(texts)
    named = by_name and not (isinstance(texts, list) and any(isinstance(t, dict) for t in texts))
    # A list keeps its order where only the order tells which annotation belongs to which image.
    expand = named or isinstance(images, str | os.PathLike)
    sources: list[Any] = list(expand_paths(images) if expand else images)  # type: ignore[arg-type]
    if named:
        matched: list[Any] = list(match_annotations(sources, texts))
    else:
        matched = [texts] if isinstance(texts, str | os.PathLike) else texts
    if len(matched) != len(sources):
        raise AnnotationError(f"expected one annotation for each image, got {len(matched)} for {len(sources)}")
    pairs = []
    for source, text in zip(sources, matched, strict=True):
        image = open_image(source)
        known = text if isinstance(text, dict) else Path(text)
        pairs.append((image, read_annotations(known, full_shape=(image.height, image.width))))
    if not any(annotated.objects for _, annotated in pairs):
        raise AnnotationError("the annotations hold no object of any class: there is nothing to learn from")
    return pairs


def _normalisation(
    images: Sequence[Image], channels: int, downsample: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, from the middle and corners of each scene."""
    samples = []
    for image in images:
        height, width = -(-image.height // downsample), -(-image.width // downsample)
        side = min(512, height, width)
        for y in np.linspace(0, height - side, 3).astype(int).tolist():
            for x in np.linspace(0, width - side, 3).astype(int).tolist():
                block = image.read_scaled(Box(y, x, y + side, x + side), downsample)
                samples.append(as_channels(block, channels).reshape(-1, channels)[::7])
    pixels = np.concatenate(samples).astype(np.float32) / 255
    return pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 0.02)


def _train_refiner(recipe: _Recipe, scenes: Sequence[Scene], runtime: Runtime, bars: Progress) -> ConvStack:
    torch.manual_seed(recipe.seed)
    net = ConvStack(recipe.refiner, batch_norm=True)
    bias = net.convs[-1].bias
    with torch.no_grad():
        bias[:-BOX_CHANNELS].fill_(_PRIOR_LOGIT)  # type: ignore[index]
        bias[-BOX_CHANNELS:].zero_()  # type: ignore[index]
    choose = _object_crops(scenes)

    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        rows = [_refine_sample(recipe, choose(rng), net, rng) for _ in range(_REFINE_BATCH)]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))

    train(net, make, detection_loss, runtime, steps=recipe.steps, seed=recipe.seed, tick=bars.task("refine net"))
    return net.folded()


def _object_crops(scenes: Sequence[Scene]) -> Any:
    """A sampler of (scene, cell box): half of them around an object of an evenly drawn class, half anywhere."""
    rows = [(s, i, int(scene.label[i])) for s, scene in enumerate(scenes) for i in np.flatnonzero(_trains(scene))]
    by_label = {k: [r for r in rows if r[2] == k] for k in sorted({r[2] for r in rows})}
    parts = [(s, y, x) for s, scene in enumerate(scenes) for y, x in np.argwhere(~scene.held).tolist()]
    side = _REFINE_CROP

    def choose(rng: np.random.Generator) -> tuple[Scene, Box]:
        if by_label and rng.random() < 0.5:
            # Rare classes are drawn more often than they occur, but not as often as common ones.
            weight = np.array([len(v) for v in by_label.values()]) ** 0.5
            label = list(by_label)[rng.choice(len(by_label), p=weight / weight.sum())]
            s, i, _ = by_label[label][rng.integers(len(by_label[label]))]
            middle = scenes[s].centre[i] / scenes[s].fine_cell + rng.uniform(-side / 3, side / 3, 2)
            corner = np.floor(middle - side / 2).astype(int)
        else:
            s, y, x = parts[rng.integers(len(parts))]
            corner = np.array([y, x]) * PART + rng.integers(-side // 2, PART - side // 2, 2)
        y, x = corner.tolist()
        return scenes[s], Box(y, x, y + side, x + side)

    return choose


def _trains(scene: Scene) -> NDArray[np.bool_]:
    """Objects that lie in parts that are not held back, and fit the net's field."""
    y, x = (scene.centre / scene.fine_cell // PART).astype(int).T
    held = scene.held[y.clip(0, scene.part_shape[0] - 1), x.clip(0, scene.part_shape[1] - 1)]
    trains: NDArray[np.bool_] = scene.fits & ~held
    return trains


def _refine_sample(
    recipe: _Recipe, place: tuple[Scene, Box], net: ConvStack, rng: np.random.Generator
) -> tuple[NDArray[Any], ...]:
    scene, cell_box = place
    spec = net.spec
    pixels = scene.image.read_scaled(cell_box.scale(spec.stride).expand(spec.margin), recipe.geometry.refine_downsample)
    t = scene.draw(cell_box)
    turn = _turn(recipe, rng)
    boxes = _turned_boxes(turn.maps(t.boxes), turn)
    return (
        _jitter(recipe, turn.maps(_planes(recipe, pixels)), rng),
        turn.maps(t.classes),
        turn.maps(t.valid),
        boxes,
        turn.maps(t.boxed[None])[0],
    )


@dataclass(frozen=True)
class _Turn:
    """One of the eight ways to lay a square: a transpose, then mirrors."""

    transpose: bool
    mirror_y: bool
    mirror_x: bool

    def maps(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """The (c, h, w) planes, turned."""
        if self.transpose:
            planes = planes.transpose(0, 2, 1)
        return np.ascontiguousarray(planes[:, :: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1])


def _turn(recipe: _Recipe, rng: np.random.Generator) -> _Turn:
    flags = rng.random(3) < 0.5
    return _Turn(*flags.tolist()) if recipe.rotate else _Turn(False, False, False)


def _turned_boxes(boxes: NDArray[np.float32], turn: _Turn) -> NDArray[np.float32]:
    """Offsets and sizes of turned maps: values change with the places."""
    if turn.transpose:
        boxes = boxes[[1, 0, 3, 2]]
    sign = np.array([-1 if turn.mirror_y else 1, -1 if turn.mirror_x else 1, 1, 1], np.float32)
    return boxes * sign[:, None, None]


def _planes(recipe: _Recipe, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normalised (c, h, w) planes."""
    x = as_channels(pixels, recipe.channels).astype(np.float32) / 255
    return ((x - recipe.mean) / recipe.std).astype(np.float32).transpose(2, 0, 1)


def _jitter(recipe: _Recipe, planes: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Other light: contrast, brightness and, of colour images, tint."""
    tint = rng.normal(0, 0.1, (recipe.channels, 1, 1)) if recipe.channels > 1 else 0.0
    return (planes * rng.uniform(0.8, 1.25) + rng.normal(0, 0.2) + tint).astype(np.float32)


def _train_base(
    recipe: _Recipe,
    scenes: Sequence[Scene],
    targets: Sequence[NDArray[np.float32]],
    runtime: Runtime,
    bars: Progress,
) -> ConvStack:
    torch.manual_seed(recipe.seed + 1)
    net = ConvStack(base_spec(recipe.channels, recipe.geometry), batch_norm=True)
    with torch.no_grad():
        net.convs[-1].bias.fill_(_PRIOR_LOGIT)  # type: ignore[operator]
    places = _answer_crops(scenes, targets)

    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        rows = [_base_sample(recipe, scenes, targets, places, net, rng) for _ in range(_BASE_BATCH)]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))

    train(net, make, _answer_loss, runtime, steps=recipe.steps, seed=recipe.seed + 1, tick=bars.task("base"))
    return net.folded()


def _answer_crops(scenes: Sequence[Scene], targets: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.int64], ...]:
    """Cells (scene, y, x) where the refine net found something, and all parts, as places to draw crops from."""
    found, parts = [], []
    for s, (scene, target) in enumerate(zip(scenes, targets, strict=True)):
        cells = np.argwhere(np.nan_to_num(target) > 0.2)
        cells = cells[~scene.held[cells[:, 0] // PART, cells[:, 1] // PART]]
        found.append(np.insert(cells, 0, s, axis=1))
        seen = [p for p in np.argwhere(~scene.held) if not np.isnan(target[p[0] * PART, p[1] * PART])]
        parts.append(np.insert(np.array(seen, np.int64).reshape(-1, 2), 0, s, axis=1))
    return np.concatenate(found), np.concatenate(parts)


def _base_sample(
    recipe: _Recipe,
    scenes: Sequence[Scene],
    targets: Sequence[NDArray[np.float32]],
    places: tuple[NDArray[np.int64], ...],
    net: ConvStack,
    rng: np.random.Generator,
) -> tuple[NDArray[Any], ...]:
    found, parts = places
    side, spec = _BASE_CROP, net.spec
    if len(found) and rng.random() < 0.5:
        s, *middle = found[rng.integers(len(found))].tolist()
        corner = np.array(middle) - rng.integers(4, side - 4, 2)
    else:
        s, *part = parts[rng.integers(len(parts))].tolist()
        corner = np.array(part) * PART + rng.integers(-side // 2, PART - side // 2, 2)
    y, x = corner.tolist()
    box = Box(y, x, y + side, x + side)
    pixels = scenes[s].image.read_scaled(box.scale(spec.stride).expand(spec.margin), recipe.geometry.scan_downsample)
    target = np.full((side, side), np.nan, np.float32)
    inner = box.intersect(Box(0, 0, *targets[s].shape))
    if inner is not None:
        view = (slice(inner.y0 - y, inner.y1 - y), slice(inner.x0 - x, inner.x1 - x))
        target[view] = targets[s][inner.y0 : inner.y1, inner.x0 : inner.x1]
    valid = scenes[s].known(box) & ~np.isnan(target)
    turn = _turn(recipe, rng)
    return (
        _jitter(recipe, turn.maps(_planes(recipe, pixels)), rng),
        turn.maps(np.nan_to_num(target)[None]),
        turn.maps(valid.astype(np.float32)[None]),
    )


def _answer_loss(out: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy with the refine net's answer, per find."""
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(out.float(), target, reduction="none")
    return (entropy * valid).sum() / (target * valid).sum().clamp(min=1.0)
