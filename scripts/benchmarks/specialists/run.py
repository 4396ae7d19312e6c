"""Benchmark of specialists: all variants against controls on labelled tiles, and novelty without labels."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.specialists.data import TRAIN, TileSet, load_tile_sets, tiles_of_digits
from benchmarks.specialists.experiment import Errors, Experiment
from benchmarks.specialists.novelty import measure_novelty
from benchmarks.specialists.report import EXPLAINED, section_of
from benchmarks.specialists.sparse import measure_sparse
from benchmarks.specialists.variants import FEW, VARIANTS
from coarse2fine.bench.sections import SectionReport
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.tiling.writing.atomic import replacing_stream

_OPTIONS = TrainingOptions()


@dataclass(frozen=True)
class SpecialistsScale:
    """Seeds, steps of each net trained end to end, and variants including "base"."""

    seeds: int
    steps: int
    variants: tuple[str, ...]
    options: TrainingOptions = _OPTIONS


FULL = SpecialistsScale(3, 4000, tuple(VARIANTS))
QUICK = SpecialistsScale(1, 300, FEW)


def benchmark_specialists(out: Path, *, data: Path | None = None, scale: SpecialistsScale = FULL) -> SectionReport:
    """Train all variants on each data set in `data` (see `load_tile_sets`; the digits) and seed, and compare them.

    The errors of each variant are stored in `out`, an existing folder, and a second run trains only missing variants.
    Data sets are identified by name: use another folder for other data of the same name.
    """
    if scale.seeds < 1 or scale.steps < 1:
        raise ValueError(f"expected at least one seed and one step, got {scale.seeds} and {scale.steps}")
    sets, notes = ([tiles_of_digits()], []) if data is None else load_tile_sets(data)
    home = out / "specialists"
    home.mkdir(exist_ok=True)
    sections = []
    for tiles in sets:
        runs = [_run(tiles, seed, home, scale) for seed in range(scale.seeds)]
        found = {name: [run[name] for run in runs] for name in runs[0]}
        sections.append(section_of(tiles.name, _described(tiles), tiles.groups[tiles.test], found))
    _say("timing sparse columns")
    sections.append(measure_sparse())
    _say("planting novelties")
    sections.append(measure_novelty(data, scale.seeds))
    parameters = {"data": data and data.name, **asdict(scale)}
    return SectionReport("specialists", sections, range(scale.seeds), parameters, EXPLAINED, notes)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _described(tiles: TileSet) -> str:
    tested, images = int(tiles.test.sum()), len(np.unique(tiles.units[tiles.test]))
    return (
        f"{len(tiles):,} tiles of {len(tiles.classes)} classes; {tested:,} of them, of {images:,} images, test; "
        f"{int((tiles.parts(0) == TRAIN).sum()):,} train"
    )


def _run(tiles: TileSet, seed: int, home: Path, scale: SpecialistsScale) -> dict[str, Errors]:
    """Errors on one data set with one seed by name; stored ones are read."""
    folder = home / f"{tiles.name}-{scale.steps}" / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(tiles, seed, folder, scale.steps, scale.options)
    found: dict[str, Errors] = {}
    for number, name in enumerate(scale.variants, 1):
        path = folder / f"{name}.npz"
        if not path.is_file():
            start = time.perf_counter()
            results = VARIANTS[name].run(experiment)
            table = {f"{suffix}.wrong": each.wrong for suffix, each in results.items()}
            costs = {f"{suffix}.cost": np.array([each.macs, each.columns_run]) for suffix, each in results.items()}
            with replacing_stream(path) as stream:
                np.savez_compressed(stream, **table, **costs)  # type: ignore[arg-type]
            errors = ", ".join(f"{each.wrong.mean():.2%}" for each in results.values())
            seconds = time.perf_counter() - start
            _say(f"{tiles.name} seed {seed}: {name} ({number}/{len(scale.variants)}), errors {errors}, {seconds:.0f} s")
        with np.load(path) as file:
            for suffix in (key.removesuffix(".wrong") for key in file.files if key.endswith(".wrong")):
                errors_there = Errors(file[f"{suffix}.wrong"], *file[f"{suffix}.cost"].tolist())
                found[f"{name}/{suffix}" if suffix else name] = errors_there
    # Stores and columns are large, and no longer needed.
    for items in folder.glob("items-*"):
        shutil.rmtree(items, ignore_errors=True)
    return found
