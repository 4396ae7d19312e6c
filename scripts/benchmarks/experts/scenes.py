"""Scenes of the benchmark of experts, kept on disk: digits, a sheet of text, Mars and photographs of pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.experts.sheet import Sheet
from coarse2fine.bench.composite import Composition, compose
from coarse2fine.bench.data import BenchScene, load_scenes
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.demo.gigapixel import demo_scene
from coarse2fine.tiling.errors import MissingExtraError
from coarse2fine.tiling.opening import ImageSource
from coarse2fine.tiling.writing.pyramid import write_pyramid

MARS_TEST = 2
"""Scenes of Mars, the last by name, that only tests use."""
_PIXELS_PER_DIGIT, _PIXELS_PER_CLUTTER = 1.6e6, 0.7e6
_DENSITY, _TRAIN_SHEETS, _SHEET_SEED, _PAGE_SCALE = 0.03, 2, 77, 4


@dataclass(frozen=True)
class Sizes:
    """Sizes of scenes.

    Parameters
    ----------
    digits, sheet : int
        Sides of the scenes of digits and of text to test on.
    mars : float
        Megapixels of the composites of Mars to test on.
    watched : int
        Side of each scene to fit on.
    """

    digits: int
    sheet: int
    mars: float
    watched: int


@dataclass(frozen=True)
class ExpertScene:
    """A scene to test on, with scenes to fit on.

    Parameters
    ----------
    name : str
    test : Path or ndarray
    train : sequence of path or ndarray
    """

    name: str
    test: ImageSource
    train: Sequence[ImageSource]


def digits(folder: Path, sizes: Sizes, seed: int) -> ExpertScene:
    """The demo's scene; to fit on, two smaller ones of other handwriting, with digits twice as often."""
    path = folder / f"digits-{sizes.digits}.zarr"
    if not path.exists():
        scene = demo_scene(sizes.digits)
        write_pyramid(path, (scene.height, scene.width, 1), scene.block)
    side, train = sizes.watched, []
    for number in range(2):
        place = folder / f"digits-{side}-{seed}-{number}.zarr"
        if not place.exists():
            marks = {"digits": int(side**2 / _PIXELS_PER_DIGIT), "clutter": int(side**2 / _PIXELS_PER_CLUTTER)}
            scene = DigitScene(side, side, **marks, seed=1000 + 10 * seed + number, handwriting="train")
            write_pyramid(place, (side, side, 1), scene.block)
        train.append(place)
    return ExpertScene("digits", path, train)


def sheet(folder: Path, sizes: Sizes, seed: int) -> ExpertScene:
    """A sheet of text, and two others to fit on."""
    sides = {sizes.sheet: [_SHEET_SEED], sizes.watched: [1000 + 10 * seed + n for n in range(_TRAIN_SHEETS)]}
    paths = {(s, each): folder / f"sheet-{s}-{each}.zarr" for s, seeds in sides.items() for each in seeds}
    for (side, each), path in paths.items():
        if not path.exists():
            write_pyramid(path, (side, side, 1), Sheet(side, each).block)
    test, *train = paths.values()
    return ExpertScene("sheet", test, train)


def mars(folder: Path, sizes: Sizes, seed: int, data: Path, *, dense: bool) -> ExpertScene:
    """A composite of test scenes, dense or scattered on empty ground; to fit on, composites of the other scenes."""
    train, test = mars_scenes(data)
    name, density = ("mars-dense", 1.0) if dense else ("mars-sparse", _DENSITY)
    megapixels = sizes.watched**2 / 1e6
    wanted: dict[str, tuple[Sequence[BenchScene], float, int]] = {
        f"{name}-{sizes.mars:g}.zarr": (test, sizes.mars, 0),
        f"{name}-{megapixels:g}-{seed}-0.zarr": (train[::2], megapixels, 10 * seed + 1),
        f"{name}-{megapixels:g}-{seed}-1.zarr": (train[1::2], megapixels, 10 * seed + 2),
    }
    for file, (scenes, size, number) in wanted.items():
        if not (folder / file).exists():
            compose(scenes, Composition(size, density), folder / file, rotate=True, seed=number)
    first, *others = (folder / file for file in wanted)
    return ExpertScene(name, first, others)


def mars_scenes(data: Path) -> tuple[list[BenchScene], list[BenchScene]]:
    """Scenes of Mars to train on, and to test on.

    Raises
    ------
    FileNotFoundError
        If there is no folder "mars" in `data`.
    """
    scenes = load_scenes(data / "mars")[0]
    return scenes[:-MARS_TEST], scenes[-MARS_TEST:]


def pages() -> ExpertScene:
    """A photograph of a page, enlarged; to fit on, another one and its half."""
    test, other = _photograph("page"), _photograph("text")
    return ExpertScene("pages", test, [other, np.ascontiguousarray(other[:, : other.shape[1] // 2])])


def _photograph(name: str) -> NDArray[np.uint8]:
    try:
        from skimage import data  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingExtraError("scikit-image", "photographs of pages", "benchmark") from error
    pixels = getattr(data, name)()
    found = cv2.resize(pixels, None, fx=_PAGE_SCALE, fy=_PAGE_SCALE, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(found.astype(np.uint8)[..., None])
