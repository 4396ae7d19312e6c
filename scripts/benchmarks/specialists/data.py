"""Data of the specialists benchmark: labelled tiles of one size, from arrays or cut from annotated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from coarse2fine.annotations.read import AnnotationError
from coarse2fine.bench.data import BenchScene, load_scenes
from coarse2fine.tiling.errors import ImageError, MissingExtraError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

# Receptive field of one cell of the benchmark's nets.
SIDE = 38
TRAIN, HELD, TEST = 0, 1, 2
MIXED = "mixed"
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_SHARE, _FEWEST_UNITS = 0.25, 4
_MOST_LEARNED, _MOST_TESTED = 9_000, 4_000
_BLOCK = 500


@dataclass(frozen=True, eq=False)
class TileSet:
    """Tiles of one class each.

    Parameters
    ----------
    name : str
    tiles : ndarray, uint8, (n, SIDE, SIDE, c)
    labels, domains : ndarray, int64, (n,)
        Class, and data set of origin.
    units, groups : ndarray, int64, (n,)
        Tiles of one unit, such as an image, are never split between training and test; those of one group are not
        independent.
    test, turns : ndarray, bool, (n,)
        Tiles for the test figures only; tiles without a fixed orientation.
    classes : tuple of str
    """

    name: str
    tiles: NDArray[np.uint8]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    units: NDArray[np.int64]
    groups: NDArray[np.int64]
    test: NDArray[np.bool_]
    turns: NDArray[np.bool_]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def parts(self, seed: int) -> NDArray[np.int8]:
        """Part of each tile, (n,): training, held out, or test; the test is the same for all seeds."""
        held = np.zeros(len(self), bool)
        for domain in np.unique(self.domains):
            held |= _drawn(self.units, ~self.test & (self.domains == domain), seed + 1, _SHARE / (1 - _SHARE))
        return np.where(self.test, TEST, np.where(held, HELD, TRAIN)).astype(np.int8)


def _drawn(units: NDArray[np.int64], among: NDArray[np.bool_], seed: int, share: float) -> NDArray[np.bool_]:
    """A random share of the units of some tiles."""
    known = np.unique(units[among])
    chosen = np.random.default_rng(seed).permutation(known)[: max(1, round(share * len(known)))]
    return np.isin(units, chosen) & among


def tiles_of_digits() -> TileSet:
    """The 1,797 handwritten digits of scikit-learn, enlarged three times."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "drawing digits", "demo") from error

    digits = load_digits()
    large = [cv2.resize((d * 15.9).astype(np.uint8), (24, 24), interpolation=cv2.INTER_CUBIC) for d in digits.images]
    labels = digits.target.astype(np.int64)
    test = _drawn(np.arange(len(labels)), np.ones(len(labels), bool), 0, _SHARE)
    return _of_arrays("digits", np.stack(large), labels, test)


def load_tile_sets(folder: Path) -> tuple[list[TileSet], list[str]]:
    """Load a set from each subfolder, and one of all together.

    A folder holds a ``.npz`` of arrays x_train, y_train, x_test and y_test, or annotated images. Annotations of several
    classes give a tile for each; of one class, tiles with and without it. Returns a note on each folder left out, too;
    FileNotFoundError if there is no such folder, or nothing in it can be used.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected one that holds a folder for each data set")
    sets, notes = [], []
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        try:
            arrays = sorted(path.glob("*.npz"))
            sets.append(_read_arrays(path.name, arrays[0]) if arrays else _cut(path))
        except (AnnotationError, ImageError, FileNotFoundError) as error:
            notes.append(f"left out {path.name}: {error}")
    if not sets:
        raise FileNotFoundError(f"{folder} holds no data set: expected folders of .npz or of images with GeoJSON")
    return [*sets, mixed(sets)] if len(sets) > 1 else sets, notes


def mixed(sets: Sequence[TileSet]) -> TileSet:
    """Join all sets as domains of one, keeping their classes apart."""
    labels: list[NDArray[np.int64]] = []
    classes: list[str] = []
    for each in sets:
        labels.append(each.labels + len(classes))
        classes += [f"{each.name} {name}" for name in each.classes]
    return TileSet(
        MIXED,
        np.concatenate([np.broadcast_to(s.tiles, (len(s), SIDE, SIDE, 3)) for s in sets]),
        np.concatenate(labels),
        np.repeat(np.arange(len(sets)), [len(s) for s in sets]),
        _apart([s.units for s in sets]),
        _apart([s.groups for s in sets]),
        np.concatenate([s.test for s in sets]),
        np.concatenate([s.turns for s in sets]),
        tuple(classes),
    )


def _apart(tables: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Renumber tables so that no number occurs in two of them."""
    first = np.cumsum([0, *(int(table.max()) + 1 for table in tables[:-1])])
    return np.concatenate([table + start for table, start in zip(tables, first.tolist(), strict=True)])


def _of_arrays(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], test: NDArray[np.bool_]) -> TileSet:
    """Grey images that are smaller than a tile, on black."""
    before = [(SIDE - side) // 2 for side in images.shape[1:3]]
    around = [(b, SIDE - side - b) for b, side in zip(before, images.shape[1:3], strict=True)]
    tiles = np.pad(images, ((0, 0), *around))[..., None]
    each, classes = np.arange(len(labels)), tuple(str(n) for n in range(int(labels.max()) + 1))
    return TileSet(name, tiles, labels, np.zeros_like(labels), each, each, test, np.zeros_like(test), classes)


def _read_arrays(name: str, path: Path) -> TileSet:
    with np.load(path) as file:
        missing = [key for key in _ARRAYS if key not in file]
        if missing:
            raise AnnotationError(f"{path} lacks {', '.join(missing)}; expected {', '.join(_ARRAYS)}")
        x, y, x_test, y_test = (file[key] for key in _ARRAYS)
    if x.ndim != 3 or max(x.shape[1:]) > SIDE:
        raise AnnotationError(f"{path}: expected grey images of at most {SIDE} px, (n, h, w), got {x.shape}")
    x, y, x_test, y_test = x[:_MOST_LEARNED], y[:_MOST_LEARNED], x_test[:_MOST_TESTED], y_test[:_MOST_TESTED]
    test = np.arange(len(y) + len(y_test)) >= len(y)
    return _of_arrays(name, np.concatenate([x, x_test]), np.concatenate([y, y_test]).astype(np.int64), test)


def _cut(folder: Path) -> TileSet:
    """Tiles around the annotated objects of a folder of images."""
    scenes, _ = load_scenes(folder)
    if len(scenes) < _FEWEST_UNITS:
        raise AnnotationError(f"expected at least {_FEWEST_UNITS} annotated images, which are split, got {len(scenes)}")
    names = sorted({label for scene in scenes for label in scene.truth.labels})
    side = _spacing(scenes)
    tiles, labels, units, groups = [], [], [], []
    for number, scene in enumerate(scenes):
        with open_image(scene.image) as image:
            pixels = image.read(Box(0, 0, image.height, image.width))
        boxes = np.array([a.full_bounds for a in scene.truth.objects], np.float64).reshape(-1, 4)
        if not len(boxes):
            continue
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        sides = np.maximum(side, 2 * np.ptp(boxes.reshape(-1, 2, 2), 1).max(1))
        own = np.array([names.index(a.label) for a in scene.truth.objects])
        if len(names) == 1:
            elsewhere = _elsewhere(pixels.shape[:2], centres, sides, number)
            own = np.repeat((1, 0), (len(own), len(elsewhere)))
            centres, sides = np.concatenate([centres, elsewhere]), np.concatenate([sides, sides[: len(elsewhere)]])
        tiles += [_crop(pixels, *each) for each in zip(centres, sides, strict=True)]
        labels.append(own)
        units.append(np.full(len(own), number))
        groups.append(number * 10_000 + (centres // _BLOCK @ (100, 1)).astype(np.int64))
    unit = np.concatenate(units)
    test = _drawn(unit, np.ones(len(unit), bool), 0, _SHARE)
    label = np.concatenate(labels).astype(np.int64)
    classes = tuple(names) if len(names) > 1 else ("nothing", *names)
    group = unit if len(scenes) > 8 * _FEWEST_UNITS else np.concatenate(groups)
    return TileSet(
        folder.name, np.stack(tiles), label, np.zeros_like(label), unit, group, test, np.ones_like(test), classes
    )


def _spacing(scenes: Sequence[BenchScene]) -> float:
    """Side of a tile around a point, by the distance to the nearest other; `SIDE` for boxes."""
    near = []
    for scene in scenes:
        points = [a.full_bounds[:2] for a in scene.truth.objects if a.is_point]
        if len(points) > 1:
            near.append(cKDTree(points).query(points, 2)[0][:, 1])
    return max(SIDE, 1.2 * float(np.median(np.concatenate(near)))) if near else SIDE


def _elsewhere(
    shape: Sequence[int], centres: NDArray[np.float64], sides: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Equally many places without the middle half of any object."""
    rng = np.random.default_rng(seed)
    found = rng.uniform(0, shape[:2], (4 * len(centres), 2))
    distance, nearest = cKDTree(centres).query(found)
    free: NDArray[np.float64] = found[distance > sides[nearest] / 2]
    return free[: len(centres)]


def _crop(pixels: NDArray[np.uint8], centre: NDArray[np.float64], side: float) -> NDArray[np.uint8]:
    """A square, mirrored at the image's border, as a tile."""
    half = round(side / 2)
    rows, columns = (
        _mirrored(np.arange(round(c) - half, round(c) + half), n) for c, n in zip(centre, pixels.shape[:2], strict=True)
    )
    square = np.ascontiguousarray(pixels[np.ix_(rows, columns)])
    return cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA).reshape(SIDE, SIDE, -1).astype(np.uint8)


def _mirrored(index: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.minimum(index % (2 * count), 2 * count - 1 - index % (2 * count))
