"""Benchmark of forks on glyphs of many scripts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.glyphs.experiment import GlyphScale, Result, run_seed, run_wide
from benchmarks.glyphs.fonts import Glyphs, load_glyphs
from benchmarks.glyphs.pictures import save_picture
from benchmarks.glyphs.report import EXPLAINED, section_of
from benchmarks.glyphs.variants import FEW, VARIANTS, WIDE
from coarse2fine.bench.sections import SectionReport
from coarse2fine.tiling.writing.atomic import replacing_stream

FULL = GlyphScale(40, 4_000_000, 10_000_000, 60_000, 40_000, 3, tuple(VARIANTS))
QUICK = GlyphScale(8, 40_000, 40_000, 10_000, 10_000, 1, FEW)


def benchmark_glyphs(out: Path, *, data: Path | None = None, scale: GlyphScale = FULL) -> SectionReport:
    """Train the trunk, forks and controls for each seed, and compare them.

    Results of each seed are stored in `out`, an existing folder, beside the picture "glyphs.png": a second run with the
    same scale trains only the missing seeds. Use another folder for other fonts.

    Parameters
    ----------
    out : Path
    data : Path, optional
        Folder of fonts; by default the system's.
    scale : GlyphScale
    """
    if scale.seeds < 1:
        raise ValueError(f"expected at least one seed, got {scale.seeds}")
    glyphs = load_glyphs(data, most=scale.letters)
    home = out / "glyphs"
    home.mkdir(exist_ok=True)
    runs = [_stored(glyphs, seed, scale, home) for seed in range(scale.seeds)]
    found = {name: [run[name] for run in runs if name in run] for name in runs[0]}
    section = section_of(_described(glyphs, scale), found)
    save_picture(found, out / "glyphs.png")
    parameters = {"data": data and data.name, **asdict(scale)}
    return SectionReport("glyphs", [section], range(scale.seeds), parameters, EXPLAINED)


def _described(glyphs: Glyphs, scale: GlyphScale) -> str:
    return (
        f"glyphs: {len(glyphs):,} classes of {len(glyphs.names)} scripts; {scale.trunk_samples:,} samples for the "
        f"trunk, {scale.fork_samples:,} for all forks of a tree together, {scale.test_samples:,} test"
    )


def _stored(glyphs: Glyphs, seed: int, scale: GlyphScale, home: Path) -> dict[str, Result]:
    """Results of one seed; stored ones are read."""
    numbers = len(glyphs), scale.trunk_samples, scale.fork_samples, scale.test_samples, seed
    found: dict[str, Result] = {}
    for word, trained in (("forks", run_seed), ("wide", run_wide)):
        path = home / f"{word}-{'-'.join(map(str, numbers))}.npz"
        if word == "wide" and WIDE not in scale.names:
            continue
        if not path.is_file():
            results = trained(glyphs, seed, scale)
            wrong = {f"{name}.wrong": each.wrong for name, each in results.items()}
            costs = {f"{name}.cost": np.array(each[1:], np.float64) for name, each in results.items()}
            with replacing_stream(path) as stream:
                np.savez_compressed(stream, **wrong, **costs)  # type: ignore[arg-type]
        with np.load(path) as file:
            names = [key.removesuffix(".wrong") for key in file.files if key.endswith(".wrong")]
            found |= {name: Result(file[f"{name}.wrong"], *file[f"{name}.cost"].tolist()) for name in names}
    return found
