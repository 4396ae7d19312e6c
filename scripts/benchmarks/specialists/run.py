"""The benchmark of specialists: every kind of them beside honest controls, on labelled tiles, and what they cost."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.report import Section
from benchmarks.specialists.costs import measure_costs
from benchmarks.specialists.data import TEST, TRAIN, TileSet, load_tile_sets, tiles_of_digits
from benchmarks.specialists.oddities import digest_of, measure_oddities
from benchmarks.specialists.report import SetResult, SpecialistsReport
from benchmarks.specialists.runs import Outcome, Trial
from benchmarks.specialists.variants import FEW, VARIANTS
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.results.json_file import write_json
from coarse2fine.tiling.writing.atomic import replacing_stream


@dataclass(frozen=True)
class SpecialistsScale:
    """How much is measured.

    Parameters
    ----------
    seeds : int
    steps : int
        Of each net that is trained end to end, see `Trial`.
    variants : tuple of str
        Of `VARIANTS`, "base" among them.
    rounds : int
        Of each measurement of seconds.
    epochs : int
        Of a column's own training, where workers are timed.
    cells : int
        Side of the block on which activity is timed.
    options : TrainingOptions
        Of columns.
    """

    seeds: int
    steps: int
    variants: tuple[str, ...]
    rounds: int
    epochs: int
    cells: int
    options: TrainingOptions = field(default=TrainingOptions())


FULL = SpecialistsScale(3, 4000, tuple(VARIANTS), 9, 24, 512)
QUICK = SpecialistsScale(1, 300, FEW, 5, 6, 128)


def benchmark_specialists(
    out: Path, *, data: Path | None = None, scale: SpecialistsScale = FULL, progress: bool = True
) -> SpecialistsReport:
    """Train all variants on each data set and seed, but those that are in `out` already, and compare them.

    Parameters
    ----------
    out : Path
        Existing folder; each outcome is a file in it, and a second run does only what is missing.
    data : Path, optional
        Folder with one for each data set, see `load_tile_sets`; by default the digits of scikit-learn are used.
    scale : SpecialistsScale
    progress : bool

    Returns
    -------
    SpecialistsReport

    Raises
    ------
    FileNotFoundError
        If `data` holds no data set.
    ValueError
        If there is no seed, or too little to train on.
    """
    if scale.seeds < 1 or scale.steps < 1:
        raise ValueError(f"expected at least one seed and one step, got {scale.seeds} and {scale.steps}")
    sets, notes = ([tiles_of_digits()], []) if data is None else load_tile_sets(data)
    home = out / "specialists"
    home.mkdir(exist_ok=True)
    results = []
    for tiles in sets:
        runs = [_run(tiles, seed, home, scale, progress) for seed in range(scale.seeds)]
        outcomes = {name: [run[name] for run in runs] for name in runs[0]}
        group = tiles.groups[tiles.parts(0) == TEST]
        results.append(SetResult(tiles.name, _described(tiles), group, outcomes))
    parameters = {"data": data and data.name, **asdict(scale)}
    seeds = tuple(range(scale.seeds))
    more = (_oddities(home, data, scale, progress), _costs(home, scale, progress))
    return SpecialistsReport(tuple(results), more, seeds, parameters, tuple(notes))


def _described(tiles: TileSet) -> str:
    tested, images = int(tiles.test.sum()), len(np.unique(tiles.units[tiles.test]))
    return (
        f"{len(tiles):,} tiles of {len(tiles.classes)} classes; {tested:,} of them, of {images:,} images, test; "
        f"{int((tiles.parts(0) == TRAIN).sum()):,} train"
    )


def _run(tiles: TileSet, seed: int, home: Path, scale: SpecialistsScale, progress: bool) -> dict[str, Outcome]:
    """Outcomes of one data set and seed by name; those that are there are read."""
    key = json.dumps([tiles.digest(), scale.steps, asdict(scale.options)])
    folder = home / f"{tiles.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}" / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(tiles, seed, folder, scale.steps, scale.options)
    outcomes: dict[str, Outcome] = {}
    for number, name in enumerate(scale.variants, 1):
        path = folder / f"{name}.npz"
        if not path.is_file():
            start = time.perf_counter()
            found = VARIANTS[name].run(trial)
            _save(path, found)
            if progress:
                errors = ", ".join(f"{run.wrong.mean():.2%}" for run in found.values())
                print(
                    f"{tiles.name} seed {seed}: {name} ({number}/{len(scale.variants)}), errors {errors}, "
                    f"{time.perf_counter() - start:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
        for suffix, outcome in _load(path).items():
            outcomes[f"{name}/{suffix}" if suffix else name] = outcome
    # Stores and columns are large, and no longer needed; nets are kept.
    for items in folder.glob("items-*"):
        shutil.rmtree(items, ignore_errors=True)
    return outcomes


def _save(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write outcomes, whole or not at all."""
    arrays = {}
    for name, run in outcomes.items():
        arrays[f"{name}.wrong"] = run.wrong
        arrays[f"{name}.cost"] = np.array([run.macs, run.asked])
    with replacing_stream(path) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _load(path: Path) -> dict[str, Outcome]:
    with np.load(path) as file:
        names: Sequence[str] = [key.removesuffix(".wrong") for key in file.files if key.endswith(".wrong")]
        return {name: Outcome(file[f"{name}.wrong"], *file[f"{name}.cost"].tolist()) for name in names}


def _oddities(home: Path, data: Path | None, scale: SpecialistsScale, progress: bool) -> Section:
    name = f"oddities-{digest_of(data, scale.seeds)}-{scale.seeds}"

    def measure() -> Section:
        return measure_oddities(data, scale.seeds)

    return _once(home / f"{name}.json", measure, "planting oddities" if progress else None)


def _costs(home: Path, scale: SpecialistsScale, progress: bool) -> Section:
    def measure() -> Section:
        return measure_costs(home, rounds=scale.rounds, epochs=scale.epochs, cells=scale.cells)

    path = home / f"costs-{scale.rounds}-{scale.epochs}-{scale.cells}.json"
    return _once(path, measure, "timing workers, dispatch and activity" if progress else None)


def _once(path: Path, measure: Callable[[], Section], told: str | None) -> Section:
    """A section that is measured once and kept."""
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        return Section(held["title"], tuple(held["lines"]), held["figures"])
    if told:
        print(told, file=sys.stderr, flush=True)
    section = measure()
    write_json(path, {"title": section.title, "lines": list(section.lines), "figures": dict(section.figures)})
    return section
