"""Data of the scenes benchmark: annotated images, and their split into training and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotationError, Annotations, match_annotations, read_annotations
from coarse2fine.demo.digit_scene import DigitScene, Handwriting
from coarse2fine.paths import expand_paths
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

DIGIT_SIDE = 3072
_DIGITS, _CLUTTER = 280, 675


@dataclass(frozen=True, eq=False)
class BenchScene:
    """An image with its annotations.

    Parameters
    ----------
    name : str
        Unique within one benchmark.
    image : Path or ndarray
        As for `open_image`.
    annotations : Path or dict
        GeoJSON, as for `fit`.
    truth : Annotations
        The same, read and clipped to the image.
    """

    name: str
    image: Path | NDArray[np.uint8]
    annotations: Path | dict[str, Any]
    truth: Annotations


@dataclass(frozen=True)
class Split:
    """Scenes to fit on, and held-out scenes to test on."""

    train: tuple[BenchScene, ...]
    test: tuple[BenchScene, ...]


def load_scenes(folder: Path) -> tuple[list[BenchScene], list[str]]:
    """Open the images of a folder that have GeoJSON of the same name beside them.

    Parameters
    ----------
    folder : Path
        If it holds folders "images" and "annotations", these are used.

    Returns
    -------
    list of BenchScene
        In order of name.
    list of str
        A note on each image left out.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it holds no image.
    AnnotationError
        If an image has no annotations, they cannot be read, or all are empty.
    ImageError
        If an image cannot be opened.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected one of images with GeoJSON beside them")
    apart = (folder / "images").is_dir() and (folder / "annotations").is_dir()
    paths = expand_paths(folder / "images" if apart else folder)
    beside_them = match_annotations(paths, folder / "annotations" if apart else folder)
    scenes, notes = [], []
    for path, beside in zip(paths, beside_them, strict=True):
        with open_image(path) as image:
            truth = read_annotations(beside, full_shape=(image.height, image.width))
        if not (truth.objects or truth.regions or truth.ignored):
            notes.append(f"left out {path.name}: {beside.name} holds no annotation")
            continue
        scenes.append(BenchScene(path.stem, path, beside, truth))
    if not scenes:
        raise AnnotationError(f"no image in {folder} has an annotation: there is nothing to compare with")
    return scenes, notes


def digit_split(side: int = DIGIT_SIDE) -> Split:
    """Two synthetic scenes to fit on, and one with held-out handwriting and another background to test on."""
    return Split(
        (_digits("digits-1", 201, "train", side), _digits("digits-2", 202, "train", side)),
        (_digits("digits-test", 301, "held-out", side),),
    )


def _digits(name: str, seed: int, handwriting: Handwriting, side: int) -> BenchScene:
    share = (side / DIGIT_SIDE) ** 2
    scene = DigitScene(
        side,
        side,
        digits=round(_DIGITS * share),
        clutter=round(_CLUTTER * share),
        seed=seed,
        handwriting=handwriting,
    )
    annotations = scene.annotations()
    truth = read_annotations(annotations, full_shape=(side, side))
    return BenchScene(name, scene.block(Box(0, 0, side, side)), annotations, truth)


def splits(scenes: Sequence[BenchScene], test: Sequence[str], folds: int) -> list[Split]:
    """Split scenes into training and test: by the named test scenes, or by cross-validation.

    Parameters
    ----------
    scenes : sequence of BenchScene
    test : sequence of str
        Names of the test scenes; empty for folds.
    folds : int
        At least 2; if there are fewer scenes, each is a fold.

    Raises
    ------
    ValueError
        If a name is unknown, nothing is left to fit on, or there are too few scenes or folds.
    """
    names = [scene.name for scene in scenes]
    if test:
        chosen = named(scenes, test)
        rest = tuple(s for s in scenes if s.name not in test)
        if not rest:
            raise ValueError("all scenes are named as test scenes: nothing is left to fit on; name fewer")
        return [Split(rest, chosen)]
    if len(scenes) < 2:
        raise ValueError(
            f"leaving scenes out takes at least 2 annotated scenes, got {names}; add some, or name a model"
        )
    if folds < 2:
        raise ValueError(f"expected at least 2 folds, got {folds}")
    folds = min(folds, len(scenes))
    return [
        Split(tuple(s for i, s in enumerate(scenes) if i % folds != fold), tuple(scenes[fold::folds]))
        for fold in range(folds)
    ]


def named(scenes: Sequence[BenchScene], names: Sequence[str]) -> tuple[BenchScene, ...]:
    """The scenes with these names, in the order of `scenes`.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    known = [scene.name for scene in scenes]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"no annotated scene is named {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(scene for scene in scenes if scene.name in names)
