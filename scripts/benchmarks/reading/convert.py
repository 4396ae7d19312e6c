"""Conversion to OME-Zarr against the bare encoder, and its peak memory."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import zarr

from benchmarks.reading.memory import Peak, in_child, peak_table
from benchmarks.reading.speed import SIDE, Tick, in_threads
from benchmarks.report import Ratio, Section
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.opening import open_image

CHUNKS = 64
"""Different chunks that the bare encoder is given, over and over."""


def measure_conversion(
    source: Path,
    images: Mapping[float, Path],
    scratch: Path,
    baseline: int | None,
    *,
    threads: int,
    rounds: int,
    tick: Tick,
) -> Section:
    """Megapixels a second, in turn with the bare encoder, and peak memory by size of the image.

    Parameters
    ----------
    source : Path
        File whose speed is measured.
    images : mapping
        Files whose peak memory is measured, by their gigapixels.
    scratch : Path
        Folder for what is written and removed again.
    baseline : int, optional
        Bytes that a process needs for its imports; without it, memory is not measured.
    threads : int
    rounds : int
        Of speed.
    tick : callable
        Called with conversions done and conversions in all.

    Returns
    -------
    Section
    """
    total = rounds + len(images)
    target = scratch / "converted.zarr"
    with open_image(source) as image:
        count = ceil_div(image.height, SIDE) * ceil_div(image.width, SIDE)
        size = f"{image.height} x {image.width} pixels"
    megapixels = count * SIDE**2 / 1e6
    chunks = _raw_chunks(source)
    ours, bare = [], []
    for done in range(1, rounds + 1):
        seconds, level = _convert(source, target, threads)
        ours.append(megapixels / seconds)
        bare.append(_encode(chunks, count, level, threads))
        tick(done, total)
    peaks: dict[float, Peak] = {}
    for done, (gigapixels, path) in enumerate(images.items() if baseline else (), rounds + 1):
        peaks[gigapixels] = in_child("conversion", path, target, threads)
        shutil.rmtree(target)
        tick(done, total)
    lines, figures = peak_table("io.conversion", baseline, {"conversion": peaks}) if baseline else ((), {})
    ratio = Ratio.of(ours, bare)
    speeds = {"ours": float(np.median(ours)), "encoder": float(np.median(bare))}
    figures |= {f"io.conversion.{name}.mpx_per_s": speed for name, speed in speeds.items()}
    figures |= ratio.figures("io.conversion.ours_over_encoder")
    speed = f"convert {speeds['ours']:.1f} Mpx/s, bare encoder {speeds['encoder']:.1f} Mpx/s, ours over it {ratio}"
    title = f"conversion: JPEG TIFF without a pyramid to OME-Zarr 0.5, {threads} thread(s), zstd level {level}"
    return Section(title, (f"{speed} ({size})", *lines), figures)


def _convert(source: Path, target: Path, threads: int) -> tuple[float, int]:
    """Seconds, and the level of compression that was used."""
    from coarse2fine.tiling.conversion.convert import convert  # noqa: PLC0415

    begin = time.perf_counter()
    convert(source, target, workers=threads)
    seconds = time.perf_counter() - begin
    array: Any = zarr.open_array(target / "0", mode="r")
    shutil.rmtree(target)
    return seconds, int(array.compressors[0].level)


def _raw_chunks(source: Path) -> list[bytes]:
    """Some chunks as the conversion compresses them: (3, 512, 512)."""
    with open_image(source) as image:
        boxes = itertools.islice(blocks(image.height, image.width, SIDE), CHUNKS)
        return [np.moveaxis(image.read(box), -1, 0).tobytes() for box in boxes]


def _encode(chunks: Sequence[bytes], count: int, level: int, threads: int) -> float:
    """Megapixels a second of the codec alone, on `count` chunks."""
    given = [chunks[i % len(chunks)] for i in range(count)]
    begin = time.perf_counter()
    in_threads(lambda chunk: imagecodecs.zstd_encode(chunk, level), given, threads)
    return count * SIDE**2 / 1e6 / (time.perf_counter() - begin)
