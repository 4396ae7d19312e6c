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
from coarse2fine.demo.digit_scene import Handwriting
from coarse2fine.demo.gigapixel import DEMO_SEED, demo_scene
from coarse2fine.tiling.errors import MissingExtraError
from coarse2fine.tiling.opening import ImageSource
from coarse2fine.tiling.writing.pyramid import write_pyramid

MARS_TEST = 2
"""Scenes of Mars, the last by name, that only tests use."""
_FITTED, _DENSITY, _SHEET_SEED, _PAGE_SCALE = 2, 0.03, 77, 4


@dataclass(frozen=True)
class Sizes:
    """Sizes of scenes.

    Parameters
    ----------
    digits, sheet : (int, int)
        Sides of the scene to test on, and of each of the two to fit on.
    mars : (float, float)
        Megapixels of the composite to test on, and of each of the two to fit on.
    crowd : float
        Digits and look-alikes as a multiple of the demo's.
    """

    digits: tuple[int, int]
    sheet: tuple[int, int]
    mars: tuple[float, float]
    crowd: float = 1.0


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
    """The demo's scene, and two of other handwriting and the same density to fit on."""
    (side, watched), paths = sizes.digits, []
    wanted: list[tuple[int, int, Handwriting]] = [(side, DEMO_SEED, "held-out")]
    wanted += [(watched, 1000 + 10 * seed + number, "train") for number in range(_FITTED)]
    for length, number, handwriting in wanted:
        path = folder / f"digits-{length}-{sizes.crowd:g}-{number}.zarr"
        if not path.exists():
            scene = demo_scene(length, seed=number, handwriting=handwriting, crowd=sizes.crowd)
            write_pyramid(path, (length, length, 1), scene.block)
        paths.append(path)
    return ExpertScene("digits", paths[0], paths[1:])


def sheet(folder: Path, sizes: Sizes, seed: int) -> ExpertScene:
    """A sheet of text, and two others to fit on."""
    (side, watched), paths = sizes.sheet, []
    for length, number in [(side, _SHEET_SEED), *((watched, 1000 + 10 * seed + n) for n in range(_FITTED))]:
        path = folder / f"sheet-{length}-{number}.zarr"
        if not path.exists():
            write_pyramid(path, (length, length, 1), Sheet(length, number).block)
        paths.append(path)
    return ExpertScene("sheet", paths[0], paths[1:])


def mars(folder: Path, sizes: Sizes, seed: int, data: Path, *, dense: bool) -> ExpertScene:
    """A composite of test scenes, dense or scattered on empty ground; to fit on, composites of the other scenes."""
    train, test = mars_scenes(data)
    name, density = ("mars-dense", 1.0) if dense else ("mars-sparse", _DENSITY)
    size, watched = sizes.mars
    wanted: dict[str, tuple[Sequence[BenchScene], float, int]] = {
        f"{name}-{size:g}.zarr": (test, size, 0),
        f"{name}-{watched:g}-{seed}-0.zarr": (train[::2], watched, 10 * seed + 1),
        f"{name}-{watched:g}-{seed}-1.zarr": (train[1::2], watched, 10 * seed + 2),
    }
    for file, (scenes, megapixels, number) in wanted.items():
        if not (folder / file).exists():
            compose(scenes, Composition(megapixels, density), folder / file, rotate=True, seed=number)
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
    """The right half of a photograph of a page, enlarged; to fit on, the left half and another photograph."""
    page = _photograph("page")
    left, right = (np.ascontiguousarray(half) for half in np.array_split(page, 2, axis=1))
    return ExpertScene("pages", right, [left, _photograph("text")])


def _photograph(name: str) -> NDArray[np.uint8]:
    try:
        from skimage import data  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingExtraError("scikit-image", "photographs of pages", "benchmark") from error
    pixels = getattr(data, name)()
    found = cv2.resize(pixels, None, fx=_PAGE_SCALE, fy=_PAGE_SCALE, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(found.astype(np.uint8)[..., None])
