"""A walk over tiles with a halo: how many chunks are decoded for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.reading.speed import SIDE, Tick, in_threads
from benchmarks.report import Section
from coarse2fine.tiling.geometry import Box, Level, ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.window_reader import WindowReader

HALO = 32
CLUSTER_SIDES = (16, 8, 4, 1)
"""Tiles along the side of a cluster; there are as many tiles of each kind."""
_BATCH = 16
_LINE = "{:<17} {:<10} {:>5} {:>7} {:>14} {:>9} {:>8}"


def cluster(side: int, tiles: int, plane: tuple[int, int], rng: np.random.Generator) -> list[Box]:
    """Squares of neighbouring tiles that share no chunk with each other, all tiles in random order.

    Parameters
    ----------
    side : int
        Tiles along the side of a square; 1: tiles anywhere on the grid.
    tiles : int
        Wanted in all; fewer where the plane is too small.
    plane : tuple of int
        Height and width in tiles.
    rng : numpy Generator

    Returns
    -------
    list of Box
        Each tile with its halo, in pixels.
    """
    # A square's halo reaches into one more tile on every side.
    step = side + 2 if side > 1 else 1
    rows, columns = plane[0] // step, plane[1] // step
    places = rng.permutation(rows * columns)[: max(1, tiles // side**2)]
    inset = (step - side) // 2
    cells = [
        (place // columns * step + inset + i, place % columns * step + inset + j)
        for place in places.tolist()
        for i in range(side)
        for j in range(side)
    ]
    return [
        Box(y * SIDE, x * SIDE, (y + 1) * SIDE, (x + 1) * SIDE).expand(HALO) for y, x in rng.permutation(cells).tolist()
    ]


def touched(box: Box, level: Level) -> list[tuple[int, int]]:
    """Chunks of a level that a box needs."""
    inner = box.intersect(Box(0, 0, level.height, level.width))
    assert inner is not None
    (step_y, step_x) = level.chunk
    rows = range(inner.y0 // step_y, ceil_div(inner.y1, step_y))
    return [(row, column) for row in rows for column in range(inner.x0 // step_x, ceil_div(inner.x1, step_x))]


def measure_walk(path: Path, *, tiles: int, threads: int, seed: int, tick: Tick) -> Section:
    """Count chunks decoded per tile, for clusters of several sizes and for scattered tiles.

    Parameters
    ----------
    path : Path
        An image in chunks of 512.
    tiles : int
        In each walk.
    threads : int
    seed : int
    tick : callable
        Called with walks done and walks in all.

    Returns
    -------
    Section
    """
    figures: dict[str, float] = {}
    head = ("tiles", "way", "tiles", "chunks", "chunks decoded", "decoded", "tiles/s")
    units = ("", "", "", "needed", "per needed", "per tile", "")
    lines = [_LINE.format(*head), _LINE.format(*units)]
    with open_image(path) as image:
        level = image.levels[0]
    plane = level.height // SIDE, level.width // SIDE
    sides = [side for side in CLUSTER_SIDES if side + 2 <= min(plane)]
    done = 0
    for side in sides:
        boxes = cluster(side, tiles, plane, np.random.default_rng(seed))
        every = [cell for box in boxes for cell in touched(box, level)]
        needed, name = len(set(every)), f"clusters of {side}x{side}" if side > 1 else "scattered"
        place = f"io.walk.{f'clustered_{side}' if side > 1 else 'scattered'}"
        figures[f"{place}.least_per_tile"] = needed / len(boxes)
        figures[f"{place}.without_cache_per_tile"] = len(every) / len(boxes)
        for way in _WAYS:
            decoded, seconds = _walk(path, boxes, threads, way)
            tick(done := done + 1, len(_WAYS) * len(sides))
            each = decoded / needed, decoded / len(boxes), len(boxes) / seconds
            names = (f"{way}_per_needed", f"{way}_per_tile", f"{way}_tiles_per_s")
            figures |= {f"{place}.{key}": value for key, value in zip(names, each, strict=True)}
            shown = (f"{each[0]:.3f}", f"{each[1]:.3f}", f"{each[2]:.0f}")
            lines.append(_LINE.format(name, way, len(boxes), needed, *shown))
            name = ""
        without = f"{len(every) / needed:.3f}", f"{len(every) / len(boxes):.3f}"
        lines.append(_LINE.format("", "no cache", len(boxes), needed, *without, "-"))
    size = f"{level.height} x {level.width} pixels in chunks of {level.chunk[0]} x {level.chunk[1]}"
    title = f"walk: tiles of {SIDE} with halo {HALO} on a JPEG TIFF, {size}, {threads} thread(s)"
    return Section(title, tuple(lines), figures)


def _walk(path: Path, boxes: Sequence[Box], threads: int, way: str) -> tuple[int, float]:
    """Chunks decoded and seconds."""
    with open_image(path) as image:
        begin = time.perf_counter()
        _WAYS[way](image, boxes, threads)
        return image.stats.chunks, time.perf_counter() - begin


def _with_reader(image: Image, boxes: Sequence[Box], threads: int) -> None:
    with WindowReader(image, workers=threads) as reader:
        for _ in reader.batches(boxes, _BATCH):
            pass


def _shuffled(image: Image, boxes: Sequence[Box], threads: int) -> None:
    in_threads(image.read, boxes, threads)


_WAYS: dict[str, Callable[[Image, Sequence[Box], int], None]] = {"reader": _with_reader, "shuffled": _shuffled}
