"""The benchmark of reading: speed, chunks decoded, memory and conversion, beside the bare codec and other readers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.reading.child import PEAK_IS_KNOWN
from benchmarks.reading.convert import measure_conversion
from benchmarks.reading.data import (
    TILE,
    mosaic,
    photo_like,
    write_big_tiff,
    write_ome_zarr,
    write_svs,
    write_tiff,
    write_zarr,
)
from benchmarks.reading.memory import in_child, measure_memory
from benchmarks.reading.readers import METHODS, Subject, missing_extras, tiff_subject, zarr_subject
from benchmarks.reading.speed import measure_speed
from benchmarks.reading.walk import measure_walk
from benchmarks.report import IoReport, Section
from coarse2fine.batch.job import cores
from coarse2fine.paths import expand_paths
from coarse2fine.progress import Progress

_EXPLAINED = (
    "reads/s: median of interleaved runs (each method in turn, round after round), the file in the system's cache; "
    "each run opens the file anew, which is not counted, and touches no chunk twice. ours over it: ratio of the "
    "medians, with the quartiles of the rounds' ratios. cores: processor time over wall time. "
    "The process has freed a large block before, as any has that handles batches of images; in one that has not, "
    "chunks that are kept cost page faults besides.",
    *(f"{name}: {text}." for name, text in METHODS.items()),
    "walk: needed are the chunks that the tiles and their halos touch, each counted once; no cache is what reading "
    "tile by tile would decode.",
    "memory: peak resident memory of a fresh process for each task.",
    "conversion: convert also decodes the source and writes the smaller levels; the encoder only compresses the chunks "
    "of the full resolution, in memory.",
)


@dataclass(frozen=True)
class IoScale:
    """How much is measured.

    Parameters
    ----------
    side : int
        Of the images whose reads are timed, in pixels: a multiple of 512.
    rounds : int
        Runs of each method.
    reads : tuple of int
        In a run, at least and at most.
    tiles : int
        Different tiles that the images are made of.
    walk : float
        Gigapixels of the image that is walked over.
    walk_tiles : int
        Tiles of a walk.
    memory : tuple of float
        Gigapixels of the images whose peak memory is measured.
    converted : float
        Gigapixels of the image whose conversion is timed.
    conversion : tuple of float
        Gigapixels of the images whose conversion's peak memory is measured.
    """

    side: int
    rounds: int
    reads: tuple[int, int]
    tiles: int
    walk: float
    walk_tiles: int
    memory: tuple[float, ...]
    converted: float
    conversion: tuple[float, ...]


CONVERSIONS = 3
FULL = IoScale(8192, 7, (48, 256), 64, 1.0, 1024, (0.25, 1.0, 4.0), 0.25, (0.06, 0.25, 1.0))
QUICK = IoScale(4096, 5, (32, 256), 64, 0.25, 256, (0.06, 0.25, 1.0), 0.25, (0.015, 0.06, 0.25))


def benchmark_io(
    out: Path, *, data: Path | None = None, scale: IoScale = FULL, seed: int = 0, progress: bool = True
) -> IoReport:
    """Measure reading and conversion on images made on the spot, and reading on real slides.

    Parameters
    ----------
    out : Path
        Existing folder; the images are made in a folder in it, which is removed at the end.
    data : Path, optional
        Folder of real slides; the SVS files in it are read too.
    scale : IoScale
    seed : int
        Of pixels and positions.
    progress : bool

    Returns
    -------
    IoReport

    Raises
    ------
    FileNotFoundError
        If `data` holds no SVS.
    OSError
        If the images cannot be written.
    """
    slides = [] if data is None else expand_paths(data, (".svs",))
    threads = sorted({1, cores()})
    tiles = photo_like(scale.tiles, seed)
    notes = [f"{name} is not installed, and left out" for name in missing_extras()]
    with Progress(progress) as bars:
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=out) as folder:
            subjects = _made(Path(folder), mosaic(tiles, scale.side, seed))
            sections = [_speed(make, scale, threads, seed, bars) for make in subjects]
        for path in slides:
            try:
                sections.append(_speed(partial(_slide, path), scale, threads, seed, bars))
            except ValueError as error:
                notes.append(f"{path.name} is left out: {error}")
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=out) as folder:
            sections += _big(Path(folder), tiles, scale, threads[-1], seed, bars)
    if not PEAK_IS_KNOWN:
        notes.append("peak memory is not measured on this system")
    parameters = {"data": data and data.name, **asdict(scale)}
    return IoReport(tuple(sections), seed, parameters, _EXPLAINED, tuple(notes))


def _speed(make: Callable[[], Subject], scale: IoScale, threads: Sequence[int], seed: int, bars: Progress) -> Section:
    subject = make()
    tick = bars.task(subject.name)
    return measure_speed(subject, threads=threads, rounds=scale.rounds, reads=scale.reads, seed=seed, tick=tick)


def _made(folder: Path, pixels: NDArray[np.uint8]) -> list[Callable[[], Subject]]:
    """The same pixels in several containers, each written when it is its turn."""

    def tiff() -> Subject:
        write_tiff(folder / "tiles.tif", pixels)
        return tiff_subject("tiff_jpeg_512", "JPEG TIFF without a pyramid", folder / "tiles.tif")

    def svs() -> Subject:
        write_svs(folder / "slide.svs", pixels)
        return tiff_subject("svs_jpeg_256", "JPEG TIFF as Aperio's, with a pyramid", folder / "slide.svs")

    def ome_zarr() -> Subject:
        write_ome_zarr(folder / "image.ome.zarr", pixels)
        return zarr_subject("ome_zarr", "OME-Zarr 0.5 in shards, zstd", folder / "image.ome.zarr", "0")

    def plain(version: int) -> Subject:
        path = folder / f"plain{version}.zarr"
        write_zarr(path, pixels, version)
        return zarr_subject(f"zarr_v{version}", f"Zarr array of version {version}, zstd", path)

    return [tiff, svs, ome_zarr, partial(plain, 3), partial(plain, 2)]


def _slide(path: Path) -> Subject:
    return tiff_subject(f"slide.{path.stem}", path.name, path)


def _big(
    folder: Path, tiles: NDArray[np.uint8], scale: IoScale, threads: int, seed: int, bars: Progress
) -> Iterator[Section]:
    """What is measured on large images."""
    images: dict[float, Path] = {}
    sizes = sorted({scale.walk, scale.converted, *scale.memory, *scale.conversion})
    tick = bars.task("large images")
    for done, size in enumerate(sizes, 1):
        images[size] = folder / f"{size:g}.tif"
        write_big_tiff(images[size], tiles, TILE * max(1, round((1e9 * size) ** 0.5 / TILE)), seed)
        tick(done, len(sizes))
    yield measure_walk(images[scale.walk], tiles=scale.walk_tiles, threads=threads, seed=seed, tick=bars.task("walk"))
    baseline = in_child("import").peak if PEAK_IS_KNOWN else None
    if baseline:
        yield measure_memory({size: images[size] for size in scale.memory}, baseline, tick=bars.task("memory"))
    yield measure_conversion(
        images[scale.converted],
        {size: images[size] for size in scale.conversion},
        folder,
        baseline,
        threads=threads,
        rounds=CONVERSIONS,
        tick=bars.task("conversion"),
    )
