"""How long it takes to merge, write and show very many objects, and how that grows with their number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import IoReport, Section
from coarse2fine.models.candidates import Candidates
from coarse2fine.region import Region
from coarse2fine.report.viewer_tiles import TILE, Shapes
from coarse2fine.results.geojson import read_regions, write_geojson
from coarse2fine.results.maps import Maps, write_maps
from coarse2fine.results.tables import tiles_frame, write_csv, write_parquet
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.suppress import clusters, suppress
from coarse2fine.tiling.geometry import Box

_CELL = 16
_SPACING = 40
"""Pixels of image side that each object has to itself, in the mean."""
_DUPLICATES = 0.3
_CLASSES = 5
_ENOUGH_SECONDS = 10.0
_PACKAGES = ("numpy", "shapely", "zarr", "pyarrow", "pandas")

EXPLAINED = (
    "Objects of 10 to 30 pixels lie at random in an image with one in every 40 x 40 pixels; 30 % of them are found "
    "twice, as by neighbouring windows. Seconds are those of all cores together. Growth is the power of the number "
    "with which the time goes, from one size to the next: 1 is linear.",
)


@dataclass(frozen=True)
class Scale:
    """Numbers of objects, and rounds of a measurement, of which the median counts; fewer where they take long."""

    sizes: tuple[int, ...]
    rounds: int


FULL = Scale((10_000, 100_000, 1_000_000), 3)
QUICK = Scale((1_000, 10_000, 100_000), 1)


def benchmark_export(folder: Path, *, scale: Scale = FULL, seed: int = 0) -> IoReport:
    """Measure merging, writing, reading and drawing for growing numbers of objects.

    Parameters
    ----------
    folder : Path
        Files are made in it and removed again.
    scale : Scale
    seed : int
        Of the objects.
    """
    seconds: dict[str, list[float]] = {}
    bytes_each: dict[str, list[float]] = {}
    for size in scale.sizes:
        scene = _Scene(size, seed)
        with TemporaryDirectory(dir=folder, prefix=".export-", ignore_cleanup_errors=True) as scratch:
            for name, work in _work(scene, Path(scratch)).items():
                seconds.setdefault(name, []).append(_median_seconds(work, scale.rounds))
            for path in sorted(Path(scratch).iterdir()):
                bytes_each.setdefault(path.name, []).append(_size(path) / size)
    sections = (_times(scale, seconds), _sizes(scale, bytes_each))
    parameters = {"sizes": list(scale.sizes), "rounds": scale.rounds}
    return IoReport(sections, seed, parameters, EXPLAINED, benchmark="export", packages=_PACKAGES)


class _Scene:
    """Objects at random, and a plan that found them."""

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.side = int(_SPACING * math.sqrt(size))
        self.shape = (-(-self.side // _CELL),) * 2
        low = rng.random((size, 2)) * (self.side - 32)
        boxes = np.concatenate([low, low + rng.uniform(10, 30, (size, 2))], axis=1)
        labels = rng.integers(0, _CLASSES, size)
        scores = np.sort(rng.random(size).astype(np.float32))[::-1]
        self.boxes, self.kinds = boxes, labels
        self.regions = tuple(
            Region(f"class {label}", score, (y0, x0, y1, x1), None, ("feature 3", "feature 17"))
            for label, score, (y0, x0, y1, x1) in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
        )
        self.candidates = _candidates(boxes, labels, scores, rng)
        self.cells = _raster(np.unique((boxes[:, :2] // _CELL).astype(np.int32), axis=0))
        corners = (low // _CELL).astype(np.int64)
        fired = rng.integers(0, 40, (size, 3)).astype(np.uint8)
        self.plan = Plan(corners, np.full((size, 2), 2, np.int64), np.ascontiguousarray(scores), self.shape, fired)
        self.refined = self.plan.covered()
        self.interest = rng.random(self.shape, np.float32)


def _candidates(
    boxes: NDArray[np.float64], labels: NDArray[np.int64], scores: NDArray[np.float32], rng: np.random.Generator
) -> Candidates:
    """The objects in raster order, some of them twice, in fine cells of 8 pixels."""
    twice = np.concatenate([np.arange(len(boxes)), np.flatnonzero(rng.random(len(boxes)) < _DUPLICATES)])
    found = (boxes[twice] + rng.uniform(-2, 2, (len(twice), 4))) / 8
    cells = ((found[:, :2] + found[:, 2:]) / 2).astype(np.int32)
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    none = np.zeros(len(twice), np.int32)
    rows = Candidates(cells, scores[twice], labels[twice].astype(np.int16), found.astype(np.float32), none)
    return rows.take(order)


def _raster(cells: NDArray[np.int32]) -> Candidates:
    count = len(cells)
    boxes = np.concatenate([cells, cells + 1], axis=1).astype(np.float32)
    return Candidates(cells, np.ones(count, np.float32), np.zeros(count, np.int16), boxes, np.zeros(count, np.int32))


def _work(scene: _Scene, folder: Path) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    make_frame = partial(tiles_frame, scene.plan, _CELL, (scene.side, scene.side), scene.refined, scene.regions)
    frame = make_frame()
    maps = Maps("scene", (scene.side,) * 2, None, _CELL, scene.interest, scene.refined, scene.regions)
    colours = [(0, 0, 0, 255)] * _CLASSES
    shown = Shapes(scene.boxes, scene.kinds, colours, {}, 2)
    downsample = 2 ** max(0, math.ceil(math.log2(scene.side / TILE)))
    plain, packed = folder / "regions.geojson", folder / "regions.geojson.gz"
    return {
        "merge objects": lambda: suppress(scene.candidates),
        "merge areas": lambda: clusters(scene.cells, scene.shape[1]),
        "write GeoJSON": lambda: write_geojson(plain, scene.regions),
        "write GeoJSON, gzipped": lambda: write_geojson(packed, scene.regions),
        "read GeoJSON": lambda: read_regions(plain),
        "table of windows": make_frame,
        "write Parquet": lambda: write_parquet(folder / "tiles.parquet", frame),
        "write CSV": lambda: write_csv(folder / "tiles.csv", frame),
        "write maps and labels": lambda: write_maps(folder / "maps.ome.zarr", maps),
        "index for the viewer": lambda: Shapes(scene.boxes, scene.kinds, colours, {}, 2),
        "draw a tile of all": lambda: shown.draw(Box(0, 0, TILE, TILE), downsample),
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


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _times(scale: Scale, seconds: dict[str, list[float]]) -> Section:
    head = (
        f"{'CPU seconds':<26}" + "".join(f"{size:>12,}" for size in scale.sizes) + f"{'growth':>16}{'us an object':>14}"
    )
    lines = [head]
    figures: dict[str, float] = {}
    for name, taken in seconds.items():
        steps = zip(taken, taken[1:], scale.sizes, scale.sizes[1:], strict=False)
        growth = [math.log(after / before) / math.log(more / fewer) for before, after, fewer, more in steps]
        each = taken[-1] / scale.sizes[-1] * 1e6
        grown = ", ".join(f"{g:.2f}" for g in growth)
        lines.append(f"{name:<26}" + "".join(f"{t:>12.3f}" for t in taken) + f"{grown:>16}{each:>14.2f}")
        key = name.lower().replace(",", "").replace(" ", "_")
        figures |= {f"{key}_seconds_{size}": t for size, t in zip(scale.sizes, taken, strict=True)}
        figures |= {f"{key}_growth_{size}": g for size, g in zip(scale.sizes[1:], growth, strict=True)}
    return Section("time by number of objects", tuple(lines), figures)


def _sizes(scale: Scale, bytes_each: dict[str, list[float]]) -> Section:
    lines = [f"{'bytes an object':<26}" + "".join(f"{size:>12,}" for size in scale.sizes)]
    figures: dict[str, float] = {}
    for name, sizes in bytes_each.items():
        lines.append(f"{name:<26}" + "".join(f"{each:>12.1f}" for each in sizes))
        figures |= {f"{name}_bytes_{size}": each for size, each in zip(scale.sizes, sizes, strict=True)}
    return Section("size of files", tuple(lines), figures)
