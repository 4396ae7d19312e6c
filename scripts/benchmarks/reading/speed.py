"""Reads per second, ours and others', on one file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.reading.readers import Opener, Subject
from benchmarks.report import Ratio, Section
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.grid import blocks

Item = TypeVar("Item")
Tick = Callable[[int, int], None]

SIDE = 512
MOST_DIFFERENCE = 1.0
"""Grey levels, in the mean, by which another reader's pixels may differ unremarked: JPEG decoders round differently."""
LARGE_BLOCK = 31 * 2**20
"""Bytes; glibc's allocator learns from freed blocks of up to 32 MiB."""
QUIET = 0.85
"""Share of its cores that the bare decoder keeps busy at least, where no other process wants them."""
_LINE = "{:<10} {:>7}  {:<12} {:>9} {:>6}  {}"


@dataclass(frozen=True)
class Run:
    """One method's turn: reads per second, and how many cores it kept busy."""

    per_second: float
    cores: float


def read_side(chunk: int) -> int:
    """Length of a read: about 512 pixels, in whole chunks."""
    return max(1, round(SIDE / chunk)) * chunk


def aligned(subject: Subject, most: int, rng: np.random.Generator) -> list[Box]:
    """Boxes of whole chunks inside the image, in random order; no chunk is in two."""
    height, width = (read_side(chunk) for chunk in subject.chunk)
    whole = [box for box in blocks(*subject.shape, (height, width)) if (box.height, box.width) == (height, width)]
    return _some(whole, most, rng)


def unaligned(subject: Subject, most: int, rng: np.random.Generator) -> list[Box]:
    """Boxes as large as `aligned` ones that begin inside a chunk, in random order; no chunk is touched by two."""
    height, width = (read_side(chunk) for chunk in subject.chunk)
    step = height + subject.chunk[0], width + subject.chunk[1]
    places = [box for box in blocks(*subject.shape, step) if (box.height, box.width) == step]
    boxes = []
    for place in _some(places, most, rng):
        y, x = (place.y0 + rng.integers(1, subject.chunk[0]), place.x0 + rng.integers(1, subject.chunk[1]))
        boxes.append(Box(int(y), int(x), int(y) + height, int(x) + width))
    return boxes


def _some(boxes: Sequence[Box], most: int, rng: np.random.Generator) -> list[Box]:
    return [boxes[i] for i in rng.permutation(len(boxes))[:most]]


def in_threads(work: Callable[[Item], object], items: Sequence[Item], threads: int) -> None:
    """Work through the items once; each thread takes the next that is left."""
    left = iter(items)

    def run() -> None:
        for item in left:
            work(item)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in [pool.submit(run) for _ in range(threads)]:
                done.result()
        except BaseException:
            # Else the rest would be done before the error, or Ctrl-C, comes through.
            for _ in left:
                pass
            raise


def timed(opener: Opener, boxes: Sequence[Box], threads: int, least: int) -> Run:
    """Read all boxes from a freshly opened file, as often as gives `least` reads; opening is not counted."""
    passes = ceil_div(least, len(boxes))
    seconds = busy = 0.0
    for _ in range(passes):
        with opener(threads) as read:
            cpu, begin = time.process_time(), time.perf_counter()
            in_threads(read, boxes, threads)
            seconds += time.perf_counter() - begin
            busy += time.process_time() - cpu
    return Run(passes * len(boxes) / seconds, busy / seconds)


def measure_speed(
    subject: Subject, *, threads: Sequence[int], rounds: int, reads: tuple[int, int], seed: int, tick: Tick
) -> Section:
    """Time all methods in turn, round after round, aligned and unaligned, on each number of threads.

    Parameters
    ----------
    subject : Subject
    threads : sequence of int
    rounds : int
    reads : tuple of int
        In a run: at least so many, reading a small image several times, and at most so many in one pass.
    seed : int
        Of the positions; all methods have the same.
    tick : callable
        Called with runs done and runs in all.

    Returns
    -------
    Section

    Raises
    ------
    ValueError
        If the image is too small to hold a read that is not aligned.
    """
    rng = np.random.default_rng(seed)
    patterns = {"aligned": aligned(subject, reads[1], rng), "unaligned": unaligned(subject, reads[1], rng)}
    if not patterns["unaligned"]:
        raise ValueError(f"{subject.title}: {subject.shape[0]} x {subject.shape[1]} pixels are too few to measure")
    stored = subject.load(sorted({cell for boxes in patterns.values() for box in boxes for cell in subject.cells(box)}))
    openers = dict(subject.openers)
    if subject.decode is not None:
        openers["limit"] = subject.limit(stored)
    _settle_allocator()
    notes = _warm_up(subject, openers, patterns)
    runs: dict[tuple[str, int, str], list[Run]] = {}
    keys = list(product(patterns, threads, range(rounds), openers))
    for done, (pattern, count, _, method) in enumerate(keys, 1):
        run = timed(openers[method], patterns[pattern], count, reads[0])
        runs.setdefault((pattern, count, method), []).append(run)
        tick(done, len(keys))
    compression = len(stored) * math.prod(subject.chunk) * 3 / sum(map(len, stored.values()))
    notes += _disturbed(subject.name, runs)
    return _section(subject, runs, {name: len(boxes) for name, boxes in patterns.items()}, compression, notes)


def _settle_allocator() -> None:
    """Free a large block, as every process that handles batches of images does before long.

    Until then glibc takes each chunk from the system and gives it back, at a page fault for every 4 KiB; how much was
    freed before would otherwise depend on the size of the images made here.
    """
    np.ones(LARGE_BLOCK, np.uint8)


def _warm_up(subject: Subject, openers: dict[str, Opener], patterns: Mapping[str, Sequence[Box]]) -> tuple[str, ...]:
    """Read all once, so that the system holds the file in memory; drop methods that fail, compare pixels with ours."""
    few = [box for boxes in patterns.values() for box in boxes[:2]]
    notes = []
    with openers["ours"](1) as read:
        expected = [read(box) for box in few]
    for method, opener in list(openers.items()):
        try:
            with opener(1) as read:
                for boxes in patterns.values():
                    in_threads(read, boxes, 1)
                found = [read(box) for box in few]
        except Exception as error:
            if method == "ours":
                raise
            del openers[method]
            notes.append(f"{subject.name}: {method} cannot read it ({type(error).__name__}: {error})")
            continue
        worst = 0.0 if method == "limit" else max(map(_difference, found, expected))
        if worst > MOST_DIFFERENCE:
            notes.append(f"{subject.name}: the pixels of {method} differ from ours by {worst:.1f} in the mean")
    return tuple(notes)


def _disturbed(name: str, runs: Mapping[tuple[str, int, str], Sequence[Run]]) -> tuple[str, ...]:
    """Say if other processes took the processor: the bare decoder keeps busy all the cores it gets."""
    shares = [
        float(np.median([run.cores for run in found])) / threads
        for (_, threads, method), found in runs.items()
        if method == "limit"
    ]
    if min(shares, default=1.0) >= QUIET:
        return ()
    return (f"{name}: the machine was busy, the bare decoder got {min(shares):.0%} of its cores; measure again",)


def _difference(theirs: Any, ours: NDArray[np.uint8]) -> float:
    pixels = np.asarray(theirs)
    if pixels.shape[0] == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels.reshape(*ours.shape[:2], -1)[..., : ours.shape[2]]
    return float(np.abs(pixels.astype(np.float64) - ours).mean())


def _section(
    subject: Subject,
    runs: Mapping[tuple[str, int, str], Sequence[Run]],
    reads: Mapping[str, int],
    compression: float,
    notes: tuple[str, ...],
) -> Section:
    name = f"io.{subject.name}"
    figures = {f"{name}.compression": compression}
    lines = [_LINE.format("reads", "threads", "method", "reads/s", "cores", "ours over it [quartiles]")]
    for (pattern, threads, method), found in runs.items():
        place = f"{name}.{pattern}.t{threads}"
        rates = [run.per_second for run in found]
        rate, cores = float(np.median(rates)), float(np.median([run.cores for run in found]))
        figures |= {f"{place}.{method}.reads_per_s": rate, f"{place}.{method}.cores": cores}
        against = ""
        if method != "ours":
            ratio = Ratio.of([run.per_second for run in runs[pattern, threads, "ours"]], rates)
            figures |= ratio.figures(f"{place}.ours_over_{method}")
            against = str(ratio)
        lead = (pattern, threads) if method == "ours" else ("", "")
        lines.append(_LINE.format(*lead, method, f"{rate:.1f}", f"{cores:.2f}", against).rstrip())
    (height, width), (chunk_y, chunk_x) = subject.shape, subject.chunk
    title = (
        f"{subject.name}: {subject.title}, {height} x {width} pixels in chunks of {chunk_y} x {chunk_x}, compressed "
        f"{compression:.1f}:1; {reads['aligned']} aligned or {reads['unaligned']} unaligned reads of "
        f"{read_side(chunk_y)} x {read_side(chunk_x)} in a run"
    )
    return Section(title, tuple(lines), figures, notes)
