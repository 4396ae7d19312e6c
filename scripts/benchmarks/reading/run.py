"""Benchmark of reading: speed, chunks decoded, memory and conversion, against the bare codec and other readers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.reading.data import TILE, mosaic, photo_like, write_ome_zarr, write_svs, write_tiff, write_zarr
from benchmarks.reading.large import measure_conversion, measure_memory, measure_walk
from benchmarks.reading.readers import METHODS, Subject, missing_extras, tiff_subject, zarr_subject
from benchmarks.reading.speed import measure_speed
from coarse2fine.batch.job import cores
from coarse2fine.bench.peak import PEAK_IS_KNOWN
from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.paths import expand_paths
from coarse2fine.progress import Progress

_EXPLAINED = (
    "reads/s: median of interleaved turns (each method in turn, round after round), the file in the system's cache; "
    "each turn reopens the file, which is not counted, and touches no chunk twice. ours over it: ratio of the "
    "medians, with the quartiles of the rounds' ratios. "
    "The process has freed a large block before, as any process that handles batches of images; in others, cached "
    "chunks cost additional page faults.",
    *(f"{name}: {text}." for name, text in METHODS.items()),
    "walk: least chunks are those that the tiles and their halos touch, each counted once; without_reader is what "
    "reading tile by tile would decode.",
    "memory: peak resident memory of a fresh process for each task.",
    "conversion: convert also decodes the source and writes the smaller levels; the encoder only compresses the chunks "
    "of the full resolution, in memory.",
)


@dataclass(frozen=True)
class IoScale:
    """Extent of the measurements.

    Parameters
    ----------
    side : int
        Side of the images whose reads are timed, in pixels: a multiple of 512.
    rounds : int
        Turns of each method.
    reads : tuple of int
        Least and most reads in a turn.
    tiles : int
        Tiles of a walk.
    gigapixels : tuple of float
        Sizes of three images for peak memory of reading; a quarter of each for memory and speed of conversion.
    """

    side: int
    rounds: int
    reads: tuple[int, int]
    tiles: int
    gigapixels: tuple[float, float, float]


# Number of different tiles in the images.
_PHOTOS = 64
FULL = IoScale(8192, 7, (48, 256), 1024, (0.25, 1.0, 4.0))
QUICK = IoScale(4096, 5, (32, 256), 256, (0.06, 0.25, 1.0))


def benchmark_io(out: Path, *, data: Path | None = None, scale: IoScale = FULL, seed: int = 0) -> SectionReport:
    """Measure reading and conversion on generated images, and reading on the SVS files in `data`.

    Images are made in a temporary folder in `out`, which must exist. FileNotFoundError if `data` holds no SVS.
    """
    slides = [] if data is None else expand_paths(data, (".svs",))
    threads = sorted({1, cores()})
    tiles = photo_like(_PHOTOS, seed)
    notes = [f"{name} is not installed, and left out" for name in missing_extras()]
    with Progress(True) as bars:

        def speed(make: Callable[[], Subject]) -> Section:
            subject = make()
            tick = bars.task(subject.name)
            return measure_speed(subject, threads=threads, rounds=scale.rounds, reads=scale.reads, seed=seed, tick=tick)

        with tempfile.TemporaryDirectory(prefix="scratch-", dir=out) as folder:
            sections = [speed(make) for make in _made(Path(folder), tiles, scale.side, seed)]
        for path in slides:
            try:
                sections.append(speed(partial(tiff_subject, f"slide.{path.stem}", path.name, path)))
            except ValueError as error:
                notes.append(f"{path.name} is left out: {error}")
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=out) as folder:
            sections += _on_large_images(Path(folder), tiles, scale, threads[-1], seed)
    if not PEAK_IS_KNOWN:
        notes.append("peak memory is not measured on this system")
    return SectionReport("io", sections, (seed,), {"data": data and data.name, **asdict(scale)}, _EXPLAINED, notes)


def _made(folder: Path, tiles: NDArray[np.uint8], side: int, seed: int) -> list[Callable[[], Subject]]:
    """The same tiles in several containers, each written when it is needed."""
    pixels = mosaic(tiles, side, seed)

    def tiff() -> Subject:
        path = folder / "tiles.tif"
        write_tiff(path, tiles, side, seed)
        return tiff_subject("tiff_jpeg_512", "JPEG TIFF without a pyramid", path)

    def svs() -> Subject:
        path = folder / "slide.svs"
        write_svs(path, pixels)
        return tiff_subject("svs_jpeg_256", "JPEG TIFF as Aperio's, with a pyramid", path)

    def ome_zarr() -> Subject:
        path = folder / "image.ome.zarr"
        write_ome_zarr(path, pixels)
        return zarr_subject("ome_zarr", "OME-Zarr 0.5 in shards, zstd", path, "0")

    def plain(version: int) -> Subject:
        path = folder / f"plain{version}.zarr"
        write_zarr(path, pixels, version)
        return zarr_subject(f"zarr_v{version}", f"Zarr array of version {version}, zstd", path)

    return [tiff, svs, ome_zarr, partial(plain, 3), partial(plain, 2)]


def _on_large_images(
    folder: Path, tiles: NDArray[np.uint8], scale: IoScale, threads: int, seed: int
) -> Iterator[Section]:
    images: dict[float, Path] = {}
    quarters = [size / 4 for size in scale.gigapixels]
    for size in {*scale.gigapixels, *quarters}:
        images[size] = folder / f"{size:g}.tif"
        write_tiff(images[size], tiles, TILE * max(1, round((1e9 * size) ** 0.5 / TILE)), seed)
    middle = scale.gigapixels[1]
    yield measure_walk(images[middle], tiles=scale.tiles, threads=threads, seed=seed)
    if PEAK_IS_KNOWN:
        read, converted = ({size: images[size] for size in sizes} for sizes in (scale.gigapixels, quarters))
        yield measure_memory(read, converted, folder)
    yield measure_conversion(images[middle / 4], folder, threads=threads)
