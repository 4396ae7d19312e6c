"""Composite scenes: tiles of annotated scenes, rotated or mirrored, on a background without objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import box, mapping

from coarse2fine.annotations.read import IGNORE, REGION, read_annotations
from coarse2fine.bench.cover import ASSUMED_CHUNK
from coarse2fine.bench.data import BenchScene
from coarse2fine.bench.ground import EmptyGround, fading, find_patches
from coarse2fine.preprocess import as_channels
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.orientation import Turn
from coarse2fine.tiling.writing.pyramid import write_pyramid

ORIENTATIONS = range(1, 9)
_RARE_SIDE = 512
_BLOCK = 2048
_FADE = 16


@dataclass(frozen=True)
class Composition:
    """Parameters of a composite.

    Parameters
    ----------
    megapixels : float
        Least size.
    density : float
        Share of the tiles that are scenes; the rest is background without objects.

    Raises
    ------
    ValueError
        If one is out of range.
    """

    megapixels: float
    density: float = 1.0

    def __post_init__(self) -> None:
        if not self.megapixels > 0:
            raise ValueError(f"a composite needs a size above 0 megapixels, got {self.megapixels}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density is the share of tiles that are scenes, above 0 and up to 1; got {self.density}")


@dataclass(frozen=True)
class Tile:
    """A square part of a scene in one of eight orientations.

    Parameters
    ----------
    scene : int
        Index of the scene.
    cut : Box
        Source, in the scene's pixels.
    orientation : int
        EXIF orientation, 1 to 8; 1 is upright.
    place : Box
        Target, in the composite's pixels.
    """

    scene: int
    cut: Box
    orientation: int
    place: Box

    def points(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n, 2) of the scene, (x, y), in the composite's pixels."""
        turn, side = Turn.of(self.orientation), self.cut.width
        x, y = (xy - (self.cut.x0, self.cut.y0)).T[:: -1 if turn.transpose else 1]
        x = side - x if turn.mirror_x else x
        y = side - y if turn.mirror_y else y
        return np.stack([x + self.place.x0, y + self.place.y0], axis=1)

    def pixels(self, scene: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels (side, side, channels) of the tile in its orientation; a view."""
        cut = self.cut
        return Turn.of(self.orientation).apply(scene[cut.slices])


def compose(
    scenes: Sequence[BenchScene],
    composition: Composition,
    path: Path,
    *,
    rotate: bool,
    seed: int,
    occupied: Sequence[NDArray[np.float64]] = (),
) -> BenchScene:
    """Write a composite as OME-Zarr in chunks of 256 pixels.

    Without background, tiles are as large as the smallest scene allows. On a background they have at most 512 pixels a
    side, so that objects are scattered, and fade into it. Fading borders, and objects of which a cut leaves less than
    half, are areas to ignore.

    Parameters
    ----------
    scenes : sequence of BenchScene
    composition : Composition
    path : Path
        Target; must not exist.
    rotate : bool
        Whether tiles may be rotated and mirrored.
    seed : int
    occupied : sequence of ndarray, float64, (n, 4)
        Boxes (y0, x0, y1, x1) of each scene to keep out of the background, besides its annotations.

    Returns
    -------
    BenchScene

    Raises
    ------
    ValueError
        If the scenes hold no place without objects for the background.
    """
    pixels = _read(scenes)
    side = min(min(p.shape[:2]) for p in pixels)
    side = side if composition.density == 1 else min(side, _RARE_SIDE)
    rng = np.random.default_rng([seed, 1])
    rows, columns, tiles = _lay(pixels, composition, side, rotate=rotate, rng=rng)
    shape = (rows * side, columns * side, pixels[0].shape[2])
    ground = None
    if composition.density < 1:
        patches = find_patches(pixels, [s.truth for s in scenes], occupied, rng)
        ground = EmptyGround(patches, ORIENTATIONS if rotate else range(1, 2), seed)
    write_pyramid(path, shape, _painter(tiles, pixels, ground), chunk=ASSUMED_CHUNK, block_size=_BLOCK)
    faded = 0 if ground is None else _FADE
    annotations = {"type": "FeatureCollection", "features": list(_features(tiles, scenes, shape[:2], faded))}
    truth = read_annotations(annotations, full_shape=shape[:2])
    names = "+".join(s.name for s in scenes) if len(scenes) <= 3 else f"{scenes[0].name}+{len(scenes) - 1} more"
    return BenchScene(f"composite of {names}", path, annotations, truth)


def _read(scenes: Sequence[BenchScene]) -> list[NDArray[np.uint8]]:
    """Pixels of all scenes, with the same number of channels."""
    pixels = []
    for scene in scenes:
        with open_image(scene.image) as image:
            pixels.append(image.read(Box(0, 0, image.height, image.width)))
    channels = max(p.shape[2] for p in pixels)
    return [as_channels(p, channels) for p in pixels]


def _lay(
    pixels: Sequence[NDArray[np.uint8]], composition: Composition, side: int, *, rotate: bool, rng: np.random.Generator
) -> tuple[int, int, list[Tile]]:
    """Rows and columns of the grid, and the tiles with scenes: all scenes equally often, cut at random."""
    wanted = composition.megapixels * 1e6
    rows = math.ceil(math.sqrt(wanted) / side)
    columns = math.ceil(wanted / (rows * side**2))
    count = max(1, round(composition.density * rows * columns))
    places = np.sort(rng.permutation(rows * columns)[:count])
    order = np.concatenate([rng.permutation(len(pixels)) for _ in range(ceil_div(count, len(pixels)))])[:count]
    tiles = []
    for slot, scene in zip(places.tolist(), order.tolist(), strict=True):
        height, width = pixels[scene].shape[:2]
        y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        orientation = int(rng.integers(1, 9)) if rotate else 1
        row, column = divmod(slot, columns)
        place = Box(row, column, row + 1, column + 1).scale(side)
        tiles.append(Tile(scene, Box(y, x, y + side, x + side), orientation, place))
    return rows, columns, tiles


def _painter(
    tiles: Sequence[Tile], pixels: Sequence[NDArray[np.uint8]], ground: EmptyGround | None
) -> Callable[[Box], NDArray[np.uint8]]:
    channels = pixels[0].shape[2]
    # Scenes fade into a background: a hard border would look like an object.
    weight = fading(tiles[0].cut.width, _FADE if ground is not None else 0)

    def paint(full_box: Box) -> NDArray[np.uint8]:
        whole = np.zeros((full_box.height, full_box.width, channels), np.uint8)
        if ground is not None:
            whole = ground.paint(full_box)
        for tile in tiles:
            common = tile.place.intersect(full_box)
            if common is not None:
                into = common.shift(-full_box.y0, -full_box.x0)
                of = common.shift(-tile.place.y0, -tile.place.x0)
                turned = tile.pixels(pixels[tile.scene])[of.slices]
                below = whole[into.slices]
                share = weight[of.slices]
                below[:] = np.rint(turned * share + below * (1 - share))
        return whole

    return paint


def _features(
    tiles: Sequence[Tile], scenes: Sequence[BenchScene], full_shape: tuple[int, int], faded: int
) -> Iterator[dict[str, Any]]:
    """Annotations of all tiles as GeoJSON; fading borders are areas to ignore."""
    limited = any(s.truth.regions for s in scenes)
    for tile in tiles:
        truth, cut = scenes[tile.scene].truth, tile.cut
        frame = box(cut.x0, cut.y0, cut.x1, cut.y1)
        for annotation in truth.objects:
            yield from _moved(tile, annotation.label, annotation.geometry, frame)
        for area in truth.ignored:
            yield from _moved(tile, IGNORE, area, frame)
        for area in truth.regions or ((frame,) if limited else ()):
            yield from _moved(tile, REGION, area, frame)
        if faded:
            yield from _moved(tile, IGNORE, frame.difference(frame.buffer(-faded, join_style="mitre")), frame)
    if limited:  # the background counts as annotated: it holds no object
        ground = box(0, 0, full_shape[1], full_shape[0])
        for tile in tiles:
            place = tile.place
            ground = ground.difference(box(place.x0, place.y0, place.x1, place.y1))
        if not ground.is_empty:
            yield _feature(REGION, ground)


def _moved(tile: Tile, label: str, geometry: Any, frame: Any) -> Iterator[dict[str, Any]]:
    """The part of an annotation inside a cut, in the composite's pixels."""
    if not geometry.intersects(frame):
        return
    inside = geometry.intersection(frame)
    if geometry.geom_type == "Point":
        x, y = geometry.x, geometry.y
        if not (tile.cut.x0 <= x < tile.cut.x1 and tile.cut.y0 <= y < tile.cut.y1):
            return
    elif inside.area <= 0:
        return
    elif label not in (IGNORE, REGION) and inside.area < geometry.area / 2:
        label = IGNORE
    for part in shapely.get_parts(inside):
        if part.geom_type == geometry.geom_type or part.area > 0:
            yield _feature(label, shapely.transform(part, tile.points))


def _feature(label: str, geometry: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": mapping(geometry), "properties": {"classification": {"name": label}}}
