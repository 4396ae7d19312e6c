"""Measurements on large images: chunks decoded on a walk over tiles, conversion, and peak memory of both."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import zarr

from benchmarks.reading import child
from benchmarks.reading.child import TILE_SIDE, TILES
from benchmarks.reading.readers import touched
from benchmarks.reading.speed import SIDE, in_threads
from coarse2fine.bench.child_process import printed_json
from coarse2fine.bench.sections import Section, compared
from coarse2fine.tiling.conversion.convert import convert
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.window_reader import WindowReader

HALO = 32
CLUSTER_SIDES = (16, 8, 4, 1)
"""Tiles along the side of a cluster; each kind of walk has equally many tiles."""
_BATCH = 16
# Different chunks that the bare encoder compresses repeatedly; turns of a conversion and of the encoder.
_CHUNKS, _TURNS = 64, 3


def cluster(side: int, tiles: int, plane: tuple[int, int], rng: np.random.Generator) -> list[Box]:
    """Squares of neighbouring tiles that share no chunk with each other, all tiles in random order.

    A square has `side` tiles along its side, 1: tiles anywhere on the grid; `plane` is its height and width in tiles.
    There are `tiles`, or fewer if it is too small. Returns each tile with its halo, in pixels.
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


def measure_walk(path: Path, *, tiles: int, threads: int, seed: int) -> Section:
    """Count chunks decoded for a tile of an image in chunks of 512, for clusters of several sizes and scattered."""
    figures: dict[str, float] = {}
    with open_image(path) as image:
        level = image.levels[0]
    plane = level.height // SIDE, level.width // SIDE
    for side in (side for side in CLUSTER_SIDES if side + 2 <= min(plane)):
        boxes = cluster(side, tiles, plane, np.random.default_rng(seed))
        every = [cell for box in boxes for cell in touched(box, (level.height, level.width), level.chunk)]
        with open_image(path) as image, WindowReader(image, workers=threads) as reader:
            begin = time.perf_counter()
            for _ in reader.batches(boxes, _BATCH):
                pass
            speed, decoded = len(boxes) / (time.perf_counter() - begin), image.stats.chunks
        counts = {"least_chunks": len(set(every)), "decoded": decoded, "without_reader": len(every)}
        place = f"walk/{f'clusters of {side}' if side > 1 else 'scattered'}"
        figures |= {f"{place}/{name}": count / len(boxes) for name, count in counts.items()}
        figures[f"{place}/tiles_per_s"] = speed
    size = f"{level.height} x {level.width} pixels in chunks of {level.chunk[0]} x {level.chunk[1]}"
    title = f"walk: chunks a tile of {SIDE} with halo {HALO} on a JPEG TIFF, {size}, {threads} thread(s)"
    return Section(title, figures)


def in_child(task: str, *arguments: object) -> dict[str, float]:
    """Do a task of `child` in a fresh process; OSError with the last line that it printed if it fails."""
    # -P: do not import from the working directory.
    command = [sys.executable, "-P", child.__file__, task, *map(str, arguments)]
    return printed_json(command, f"the process that measures '{task}'")


def measure_memory(images: Mapping[float, Path], converted: Mapping[float, Path], scratch: Path) -> Section:
    """Peak memory of scattered tiles and of conversion, by gigapixels of images without a pyramid."""
    found = {"import": in_child("import")}
    found |= {f"tiles of {gigapixels:g} Gpx": in_child("tiles", path) for gigapixels, path in images.items()}
    for gigapixels, path in converted.items():
        found[f"conversion of {gigapixels:g} Gpx"] = in_child("conversion", path, scratch / "converted.zarr")
        shutil.rmtree(scratch / "converted.zarr")
    figures: dict[str, float] = {}
    for name, one in found.items():
        peak, above = one["peak"] / 1e6, (one["peak"] - found["import"]["peak"]) / 1e6
        figures |= {f"memory/{name}/peak_mb": peak, f"memory/{name}/above_import_mb": above}
        figures[f"memory/{name}/seconds"] = one["seconds"]
    title = f"memory: {TILES} scattered tiles of {TILE_SIDE}, and conversion, of a JPEG TIFF without a pyramid"
    return Section(title, figures)


def measure_conversion(source: Path, scratch: Path, *, threads: int) -> Section:
    """Megapixels per second of a conversion, alternating with the bare encoder."""
    target = scratch / "converted.zarr"
    with open_image(source) as image:
        count = ceil_div(image.height, SIDE) * ceil_div(image.width, SIDE)
        size = f"{image.height} x {image.width} pixels"
        # The shape of chunks in the conversion: (3, 512, 512).
        boxes = itertools.islice(blocks(image.height, image.width, SIDE), _CHUNKS)
        chunks = [np.moveaxis(image.read(box), -1, 0).tobytes() for box in boxes]
    megapixels = count * SIDE**2 / 1e6
    ours, bare = [], []
    for _ in range(_TURNS):
        begin = time.perf_counter()
        convert(source, target, workers=threads)
        ours.append(megapixels / (time.perf_counter() - begin))
        array: Any = zarr.open_array(target / "0", mode="r")
        level = int(array.compressors[0].level)
        shutil.rmtree(target)
        bare.append(megapixels / _encoding_seconds(chunks, count, level, threads))
    figures = {"conversion/mpx_per_s": float(np.median(ours)), "conversion/encoder_mpx_per_s": float(np.median(bare))}
    figures |= compared("conversion/ours_over_encoder", ours, bare)
    title = f"conversion: JPEG TIFF, {size}, to OME-Zarr 0.5, {threads} thread(s), zstd level {level}"
    return Section(title, figures)


def _encoding_seconds(chunks: Sequence[bytes], count: int, level: int, threads: int) -> float:
    """Seconds of the codec alone, on `count` chunks."""
    given = [chunks[i % len(chunks)] for i in range(count)]
    begin = time.perf_counter()
    in_threads(lambda chunk: imagecodecs.zstd_encode(chunk, level), given, threads)
    return time.perf_counter() - begin
