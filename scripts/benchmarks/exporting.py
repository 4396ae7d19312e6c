"""Benchmark of merging, writing and drawing very many objects: time, and its growth with their number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.models.candidates import Candidates
from coarse2fine.refiners.suppress import suppress
from coarse2fine.region import Region
from coarse2fine.report.viewer_tiles import TILE, Shapes
from coarse2fine.results.geojson import read_regions, write_geojson
from coarse2fine.results.maps import Maps, write_maps
from coarse2fine.results.tables import tiles_table, write_parquet
from coarse2fine.steps.plan import Plan
from coarse2fine.tiling.geometry import Box, ceil_div

_CELL, _CLASSES = 16, 5
# Mean distance of objects in pixels, and the share that is found twice.
_SPACING, _DUPLICATES = 40, 0.3
_ENOUGH_SECONDS = 10.0
_EXPLAINED = (
    "Objects of 10 to 30 pixels lie at random in an image, one per 40 x 40 pixels in the mean; 30 % of them are found "
    "twice, as by neighbouring windows. Seconds are processor time of all cores. Growth is the exponent of time "
    "against the number of objects, from one size to the next: 1 is linear.",
)


def benchmark_export(folder: Path, *, sizes: Sequence[int], rounds: int, seed: int = 0) -> SectionReport:
    """Measure merging, writing, reading and drawing for growing numbers of objects.

    Files are made in `folder` and removed again. Times are medians of `rounds` rounds, or fewer if they take long.
    """
    seconds: dict[str, float] = {}
    space: dict[str, float] = {}
    for fewer, size in zip((0, *sizes), sizes, strict=False):
        with TemporaryDirectory(dir=folder, prefix=".export-", ignore_cleanup_errors=True) as scratch:
            for name, work in _work(size, seed, Path(scratch)).items():
                taken = seconds[f"{name}/seconds_{size}"] = _median_seconds(work, rounds)
                if fewer:
                    growth = math.log(taken / seconds[f"{name}/seconds_{fewer}"]) / math.log(size / fewer)
                    seconds[f"{name}/growth_{size}"] = growth
            for path in sorted(Path(scratch).iterdir()):
                files = path.rglob("*") if path.is_dir() else [path]
                space[f"{path.name}/bytes_{size}"] = sum(p.stat().st_size for p in files if p.is_file()) / size
    sections = (Section("processor time by number of objects", seconds), Section("size of files, by object", space))
    return SectionReport("export", sections, (seed,), {"sizes": list(sizes), "rounds": rounds}, _EXPLAINED)


def _work(size: int, seed: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Functions to measure, by name, on random objects and the plan that found them."""
    rng = np.random.default_rng(seed)
    side = int(_SPACING * math.sqrt(size))
    shape = (ceil_div(side, _CELL),) * 2
    low = rng.random((size, 2)) * (side - 32)
    boxes = np.concatenate([low, low + rng.uniform(10, 30, (size, 2))], axis=1)
    labels, scores = rng.integers(0, _CLASSES, size), np.sort(rng.random(size).astype(np.float32))[::-1]
    regions = tuple(
        Region(f"class {label}", score, (y0, x0, y1, x1), None, ("feature 3", "feature 17"))
        for label, score, (y0, x0, y1, x1) in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    )
    # Found in raster order, some of them twice, in fine cells of 8 pixels.
    twice = np.concatenate([np.arange(size), np.flatnonzero(rng.random(size) < _DUPLICATES)])
    found = (boxes[twice] + rng.uniform(-2, 2, (len(twice), 4))) / 8
    cells, none = ((found[:, :2] + found[:, 2:]) / 2).astype(np.int32), np.zeros(len(twice), np.int32)
    candidates = Candidates(cells, scores[twice], labels[twice].astype(np.int16), found.astype(np.float32), none)
    candidates = candidates.take(np.lexsort((cells[:, 1], cells[:, 0])))
    corners, fired = (low // _CELL).astype(np.int64), rng.integers(0, 40, (size, 3)).astype(np.uint8)
    plan = Plan(corners, np.full((size, 2), 2, np.int64), np.ascontiguousarray(scores), shape, fired)
    refined = plan.covered()
    maps = Maps("scene", (side, side), None, _CELL, rng.random(shape, np.float32), refined, regions)
    table = tiles_table(plan, _CELL, (side, side), refined, regions)
    colours = [(0, 0, 0, 255)] * _CLASSES
    shapes = Shapes(boxes, labels, colours, {}, 2)
    downsample = 2 ** max(0, math.ceil(math.log2(side / TILE)))
    plain, packed = folder / "regions.geojson", folder / "regions.geojson.gz"
    return {
        "merge_objects": lambda: suppress(candidates),
        "write_geojson": lambda: write_geojson(plain, regions),
        "write_geojson_gzipped": lambda: write_geojson(packed, regions),
        "read_geojson": lambda: read_regions(plain),
        "table_of_windows": lambda: tiles_table(plan, _CELL, (side, side), refined, regions),
        "write_parquet": lambda: write_parquet(folder / "tiles.parquet", table),
        "write_maps_and_labels": lambda: write_maps(folder / "maps.ome.zarr", maps),
        "index_for_the_viewer": lambda: Shapes(boxes, labels, colours, {}, 2),
        "draw_a_tile_of_all": lambda: shapes.draw(Box(0, 0, TILE, TILE), downsample),
    }


def _median_seconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
        if sum(taken) > _ENOUGH_SECONDS:
            break
    return float(np.median(taken))
