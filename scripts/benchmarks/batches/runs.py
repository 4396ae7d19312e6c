"""The command line as users run it, for the benchmark of batches: in a process of its own, killed now and then."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.batches.data import MODEL

_VARYING, _PAGE = "timing.json", "report.html"
_LONGEST = 1800.0


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Parameters
    ----------
    status : int
        Its exit status.
    printed : str
        Standard output and standard error.
    seconds : float
    """

    status: int
    printed: str
    seconds: float


def command(images: Path, out: Path, *options: str) -> list[str]:
    """The command that analyses a folder."""
    return [
        sys.executable,
        "-m",
        "coarse2fine.cli.main",
        "analyze",
        str(images),
        "-o",
        str(out),
        "-m",
        MODEL,
        "-q",
        *options,
    ]


def run(arguments: Sequence[str]) -> Finished:
    """Run a command to its end."""
    start = time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=_LONGEST, check=False)
    return Finished(done.returncode, done.stdout + done.stderr, time.perf_counter() - start)


@dataclass
class Kills:
    """What was killed.

    Parameters
    ----------
    workers, drivers : int
    """

    workers: int = 0
    drivers: int = 0

    def __len__(self) -> int:
        return self.workers + self.drivers


def run_and_kill(
    arguments: Sequence[str], kills: Kills, most: int, rng: np.random.Generator, pause: float
) -> int | None:
    """Run a command, and kill it or one of its workers at random moments; the exit status, None where it was killed.

    Parameters
    ----------
    arguments : sequence of str
    kills : Kills
        Counted up.
    most : int
        Kills that are enough.
    rng : Generator
    pause : float
        Mean seconds between kills, once there are workers.
    """
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        due = time.monotonic() + _first(process) + rng.exponential(pause)
        while process.poll() is None:
            if time.monotonic() < due or len(kills) >= most:
                time.sleep(0.02)
                continue
            due = time.monotonic() + rng.exponential(pause)
            if workers := _workers(process):
                if rng.random() < 0.5:
                    workers[int(rng.integers(len(workers)))].kill()
                    kills.workers += 1
                else:
                    process.kill()
                    kills.drivers += 1
                    return None
        return process.wait()
    finally:
        process.kill()
        process.wait()


def _first(process: subprocess.Popen[bytes]) -> float:
    """Wait until there are workers."""
    while process.poll() is None and not _workers(process):
        time.sleep(0.05)
    return 1.0


def _workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    except psutil.Error:
        return []


def processor_seconds() -> float:
    """Processor time of all workers of this process so far; on a busy machine it tells more than time does."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return float(sum(each.user + each.system for each in times))


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a batch's results by its path in the folder, but for times, partial work and the batch's page."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != _VARYING and p != out / _PAGE]
    found = {path.relative_to(out): path for path in files}
    return {name.as_posix(): path.read_bytes() for name, path in sorted(found.items()) if name.parts[0] != ".batch"}


def summary(out: Path) -> dict[str, Any]:
    """What ``batch.json`` says."""
    found: dict[str, Any] = json.loads((out / "batch.json").read_text(encoding="utf-8"))
    return found


def whole_results(out: Path) -> list[str]:
    """Names of the images of which whole results are there."""
    return sorted(path.parent.name for path in out.glob("*/record.json"))
