"""Reads per second of coarse2fine and other readers on one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.reading.readers import Opener, Subject
from coarse2fine.bench.sections import Section, compared
from coarse2fine.progress import Tick
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.grid import blocks

Item = TypeVar("Item")

SIDE = 512
MOST_DIFFERENCE = 1.0
"""Mean difference of another reader's pixels in grey levels that causes no note: JPEG decoders round differently."""


def read_side(chunk: int) -> int:
    """Length of a read: about 512 pixels, in whole chunks."""
    return max(1, round(SIDE / chunk)) * chunk


def aligned(subject: Subject, most: int, rng: np.random.Generator) -> list[Box]:
    """Boxes of whole chunks inside the image, in random order; no chunk is in two."""
    height, width = (read_side(chunk) for chunk in subject.chunk)
    whole = [box for box in blocks(*subject.shape, (height, width)) if (box.height, box.width) == (height, width)]
    return [whole[i] for i in rng.permutation(len(whole))[:most]]


def unaligned(subject: Subject, most: int, rng: np.random.Generator) -> list[Box]:
    """Boxes as large as `aligned` ones that begin inside a chunk, in random order; no chunk is touched by two."""
    (step_y, step_x), (height, width) = subject.chunk, (read_side(chunk) for chunk in subject.chunk)
    step = height + step_y, width + step_x
    places = [box for box in blocks(*subject.shape, step) if (box.height, box.width) == step]
    boxes = []
    for i in rng.permutation(len(places))[:most]:
        y, x = places[i].y0 + int(rng.integers(1, step_y)), places[i].x0 + int(rng.integers(1, step_x))
        boxes.append(Box(y, x, y + height, x + width))
    return boxes


def in_threads(work: Callable[[Item], object], items: Sequence[Item], threads: int) -> None:
    """Work through the items once; each thread takes the next that is left."""
    left = iter(items)

    def run() -> None:
        for item in left:
            work(item)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run) for _ in range(threads)]:
            done.result()


def reads_per_second(opener: Opener, boxes: Sequence[Box], threads: int, least: int) -> float:
    """Read all boxes from a freshly opened file, repeatedly up to `least` reads; opening is not counted."""
    passes, seconds = ceil_div(least, len(boxes)), 0.0
    for _ in range(passes):
        with opener(threads) as read:
            begin = time.perf_counter()
            in_threads(read, boxes, threads)
            seconds += time.perf_counter() - begin
    return passes * len(boxes) / seconds


def measure_speed(
    subject: Subject, *, threads: Sequence[int], rounds: int, reads: tuple[int, int], seed: int, tick: Tick
) -> Section:
    """Time all methods in turn, round after round, aligned and unaligned, on each number of threads.

    A turn has at least `reads[0]` reads, for which a small image is read several times, and at most `reads[1]` in one
    pass; all methods read at the same positions. ValueError if the image holds no read that is not aligned.
    """
    rng = np.random.default_rng(seed)
    patterns = {"aligned": aligned(subject, reads[1], rng), "unaligned": unaligned(subject, reads[1], rng)}
    if not patterns["unaligned"]:
        raise ValueError(f"{subject.title}: {subject.shape[0]} x {subject.shape[1]} pixels are too few to measure")
    # glibc's allocator adapts to a freed block, as in every process that handles batches of images; before that
    # each chunk costs page faults, and how much was freed depends on what was made here.
    np.ones(31 * 2**20, np.uint8)
    openers = dict(subject.openers)
    notes = _warm_up(subject.name, openers, patterns)
    rates: dict[tuple[str, int, str], list[float]] = {}
    turns = list(product(patterns, threads, range(rounds), openers))
    for done, (pattern, count, _, method) in enumerate(turns, 1):
        rate = reads_per_second(openers[method], patterns[pattern], count, reads[0])
        rates.setdefault((pattern, count, method), []).append(rate)
        tick(done, len(turns))
    figures = {}
    for (pattern, count, method), found in rates.items():
        place = f"{subject.name}/{pattern}/t{count}/{method}"
        figures[f"{place}/reads_per_s"] = float(np.median(found))
        if method != "ours":
            figures |= compared(f"{place}/ours_over_it", rates[pattern, count, "ours"], found)
    (height, width), (chunk_y, chunk_x) = subject.shape, subject.chunk
    title = (
        f"{subject.name}: {subject.title}, {height} x {width} pixels in chunks of {chunk_y} x {chunk_x}; "
        f"{len(patterns['aligned'])} aligned or {len(patterns['unaligned'])} unaligned reads of "
        f"{read_side(chunk_y)} x {read_side(chunk_x)} in a turn"
    )
    return Section(title, figures, notes)


def _warm_up(name: str, openers: dict[str, Opener], patterns: Mapping[str, Sequence[Box]]) -> list[str]:
    """Read everything once to fill the system's cache; drop methods that fail, compare pixels with ours."""
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
            notes.append(f"{name}: {method} cannot read it ({type(error).__name__}: {error})")
            continue
        worst = 0.0 if method == "limit" else max(map(_difference, found, expected))
        if worst > MOST_DIFFERENCE:
            notes.append(f"{name}: the pixels of {method} differ from ours by {worst:.1f} in the mean")
    return notes


def _difference(theirs: Any, ours: NDArray[np.uint8]) -> float:
    pixels = np.asarray(theirs)
    if pixels.shape[0] == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels.reshape(*ours.shape[:2], -1)[..., : ours.shape[2]]
    return float(np.abs(pixels.astype(np.float64) - ours).mean())
