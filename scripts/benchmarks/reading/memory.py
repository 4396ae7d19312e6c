"""Peak memory of reading, by size of the image."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.reading import child
from benchmarks.reading.child import OVERVIEW_SIDE, TILE_SIDE, TILES
from benchmarks.report import Section

Tick = Callable[[int, int], None]

_LINE = "{:<12} {:>10} {:>9} {:>19} {:>9}"
_HEAD = ("task", "gigapixels", "peak, MB", "above import, MB", "seconds")


@dataclass(frozen=True)
class Peak:
    """What one task in a process of its own took: bytes of memory at most, and seconds."""

    peak: int
    seconds: float


def in_child(task: str, *arguments: object) -> Peak:
    """Do a task of `io_child` in a fresh process.

    Raises
    ------
    OSError
        If it fails; the message has the last line that it printed.
    """
    # -P: the working directory is no place to import from.
    command = [sys.executable, "-P", child.__file__, task, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, encoding="utf-8", errors="replace")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise OSError(f"the process that measures '{task}' failed: {reason}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def measure_memory(images: Mapping[float, Path], baseline: int, *, tick: Tick) -> Section:
    """Peak memory of an overview and of scattered tiles.

    Parameters
    ----------
    images : mapping
        Files by their gigapixels, none with a pyramid.
    baseline : int
        Bytes that a process needs for its imports.
    tick : callable
        Called with processes done and processes in all.

    Returns
    -------
    Section
    """
    peaks: dict[str, dict[float, Peak]] = {"overview": {}, "tiles": {}}
    done = 0
    for gigapixels, path in images.items():
        for task, found in peaks.items():
            found[gigapixels] = in_child(task, path)
            tick(done := done + 1, len(peaks) * len(images))
    lines, figures = peak_table("io.memory", baseline, peaks)
    title = (
        f"memory: overview (longer side at most {OVERVIEW_SIDE} pixels) and {TILES} scattered tiles of {TILE_SIDE}, of "
        "a JPEG TIFF without a pyramid"
    )
    return Section(title, lines, figures)


def peak_table(
    name: str, baseline: int, peaks: Mapping[str, Mapping[float, Peak]]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Lines and figures of peaks by task and gigapixels, against a process that imports only."""
    figures = {f"{name}.import_mb": baseline / 1e6}
    lines = [_LINE.format(*_HEAD), _LINE.format("import", "-", f"{baseline / 1e6:.0f}", "-", "-")]
    for task, found in peaks.items():
        for gigapixels, one in found.items():
            place = f"{name}.{task}.{gigapixels:g}gpx"
            peak, above = one.peak / 1e6, (one.peak - baseline) / 1e6
            figures |= {f"{place}.peak_mb": peak, f"{place}.above_import_mb": above, f"{place}.seconds": one.seconds}
            lines.append(_LINE.format(task, f"{gigapixels:g}", f"{peak:.0f}", f"{above:.0f}", f"{one.seconds:.1f}"))
        heights = np.array([one.peak for one in found.values()], dtype=np.float64)
        place = f"{name}.{task}"
        figures[f"{place}.largest_over_smallest"] = whole = float(heights.max() / heights.min())
        heights -= baseline
        figures[f"{place}.above_largest_over_smallest"] = above = float(heights.max() / max(heights.min(), 1.0))
        lines.append(f"{task}: largest over smallest {whole:.3f}, above import {above:.2f}")
    return tuple(lines), figures
