"""Benchmark of batches: failures, scaling and overhead."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client

from benchmarks.batches.data import BROKEN, MODEL, write_bomb, write_broken, write_good, write_large, write_plain_tiffs
from coarse2fine.batch.dask_cluster import connected, shared
from coarse2fine.batch.inputs import find_items
from coarse2fine.batch.request import BatchRequest, Workers
from coarse2fine.batch.run import run_batch
from coarse2fine.batch.summary import BatchResult
from coarse2fine.bench.sections import Section, SectionReport, compared
from coarse2fine.config import Config
from coarse2fine.progress import Progress, Tick

_EXPLAINED = (
    "kills: after each the same command is run again; all files are compared, except timing.json, which holds "
    "seconds, and the batch's page, which names the folder. "
    "A run that finishes before there were enough kills is compared too, and started again.",
    "scaling: wall time of a batch by a running scheduler, alternately with one worker and with two. "
    "overhead: wall time of one worker minus the time of its images, per image.",
)
_SIDE, _SCALED_SIDE, _OTHERS = 512, 2048, 8
# Partial work is stored for images from 2^27 pixels on.
_LARGE_SIDE = 11_776
_BOMB_SIDE, _MEMORY = 26_000, 1.5e9
_SMALL_DISK, _LARGE_DISK = "3m", "256m"
_LONGEST = 1800.0


@dataclass(frozen=True)
class BatchScale:
    """Numbers of images in the parts of the benchmark: one in ten broken, under kills, by one worker and by two."""

    images: int
    kills: int
    killed_images: int
    scaled_images: int
    rounds: int


FULL = BatchScale(200, 20, 24, 24, 5)
QUICK = BatchScale(120, 4, 8, 8, 3)


def benchmark_batch(out: Path, *, scale: BatchScale = FULL, seed: int = 0) -> SectionReport:
    """Measure batches on generated images, in a temporary folder in `out`, which must exist.

    The seed determines the times and targets of kills. ValueError if results are wrong.
    """
    with Progress(True) as bars, tempfile.TemporaryDirectory(prefix="scratch-", dir=out) as scratch:
        place = Path(scratch).absolute()
        sections = (
            broken_files(place / "broken", scale.images),
            kills(place / "kills", scale.killed_images, scale.kills, seed, bars.task("kills")),
            scaling(place / "scaling", scale.scaled_images, scale.rounds, bars.task("scaling")),
            out_of_memory(place / "memory", _OTHERS),
            full_disk(place / "disk", _OTHERS),
        )
    return SectionReport("batch", sections, (seed,), asdict(scale), _EXPLAINED)


def broken_files(folder: Path, images: int) -> Section:
    """Analyse a folder in which one image in ten is broken: good ones must be done, and bad ones named."""
    bad = write_broken(folder / "in", images // 10)
    good = write_good(folder / "in", _SIDE, images - len(bad))
    start = time.perf_counter()
    code, printed = _analyze(folder / "in", folder / "out", "-n", "2")
    seconds = time.perf_counter() - start
    record: dict[str, Any] = json.loads((folder / "out" / "batch.json").read_text(encoding="utf-8"))
    status = {result["name"]: result["status"] for result in record["results"]}
    figures = {
        "broken/kinds": min(len(BROKEN), len(bad)),
        "broken/good": len(good),
        "broken/good_done": sum(status.get(name) == "done" for name in good),
        "broken/bad": len(bad),
        "broken/bad_named": sum(status.get(n) not in {None, "done"} and n in printed for n in bad),
        "broken/exit_status": code,
        "broken/seconds": seconds,
    }
    return Section(f"{images:,} images, one in ten broken", figures)


def kills(folder: Path, images: int, number: int, seed: int, tick: Tick) -> Section:
    """Kill workers and the command at random times, and run the command again until all images are done."""
    write_good(folder / "in", _SIDE, images)
    write_large(folder / "in" / "large.zarr", _LARGE_SIDE)
    options, start = ("-n", "2", "--budget", "1"), time.perf_counter()
    _analyze(folder / "in", folder / "calm", *options)
    pause = (time.perf_counter() - start) / 6
    expected, killed = contents(folder / "calm"), Counter[str]()
    rng, runs, rounds, status = np.random.default_rng(seed), 0, 0, None
    while status != 0 or killed.total() < number:
        if status == 0:  # finished before enough kills: start again
            if contents(folder / "out") != expected:
                raise ValueError("after kills the files are not those of an undisturbed run")
            shutil.rmtree(folder / "out")
            rounds += 1
        status = run_and_kill(_command(folder / "in", folder / "out", *options), killed, number, rng, pause)
        runs += 1
        tick(killed.total(), number)
    found = contents(folder / "out")
    figures = {
        "kills/workers": killed["worker"],
        "kills/drivers": killed["driver"],
        "kills/runs": runs,
        "kills/all_done_before": rounds,
        "kills/files": len(expected),
        "kills/identical": sum(found.get(name) == content for name, content in expected.items()),
        "kills/extra_files": len(found.keys() - expected.keys()),
    }
    return Section(f"{killed.total()} kills with SIGKILL, {images} images and one of 139 megapixels", figures)


def scaling(folder: Path, images: int, rounds: int, tick: Tick) -> Section:
    """Analyse the same images alternately by one worker and by two; overhead is time not spent on images."""
    write_plain_tiffs(folder / "in", _SCALED_SIDE, images)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    overheads = []
    with connected(None, 1) as one, connected(None, 2) as two:
        clients = {1: one, 2: two}
        for client in clients.values():
            _timed(folder, client)  # warms up: loads the model and libraries
        for number in range(rounds):
            for workers, client in clients.items():
                batch, taken = _timed(folder, client)
                seconds[workers].append(taken)
                if workers == 1:
                    overheads.append((taken - sum(record.seconds for record in batch.records)) / images)
            tick(number + 1, rounds)
    figures = {f"scaling/seconds_{workers}": statistics.median(found) for workers, found in seconds.items()}
    figures |= compared("scaling/speedup", seconds[1], seconds[2])
    figures["scaling/overhead_ms"] = 1000 * statistics.median(overheads)
    title = f"{images} images of {_SCALED_SIDE} x {_SCALED_SIDE} px, {rounds} rounds, one thread a worker"
    return Section(title, figures)


def _timed(folder: Path, client: Client) -> tuple[BatchResult, float]:
    with tempfile.TemporaryDirectory(dir=folder) as out, shared(client) as scheduler:
        start = time.perf_counter()
        items, workers = find_items(folder / "in"), Workers(scheduler=scheduler)
        batch = run_batch(BatchRequest(items, Path(out), MODEL, Config(budget=1.0), workers))
        taken = time.perf_counter() - start
    if not batch.ok:
        raise ValueError(f"good images were not done: {batch}")
    return batch, taken


def out_of_memory(folder: Path, images: int) -> Section:
    """Analyse a file that needs more memory than its worker has."""
    good = write_good(folder / "in", _SIDE, images)
    write_bomb(folder / "in" / "bomb.bmp", _BOMB_SIDE)
    workers = Workers(workers=2, memory_limit=_MEMORY)
    batch = run_batch(BatchRequest(find_items(folder / "in"), folder / "out", MODEL, Config(), workers))
    status = {record.name: record.status for record in batch.records}
    figures = {
        "memory/others": images,
        "memory/others_done": sum(status[name] == "done" for name in good),
        "memory/left_alone": status["bomb.bmp"] == "killed",
    }
    size = f"a file of {3 * _BOMB_SIDE**2 / 1e9:.1f} GB, workers of {_MEMORY / 1e9:.1f} GB"
    return Section(f"out of memory: {size}", figures)


def full_disk(folder: Path, images: int) -> Section:
    """Write results to a disk that is too small, and again when it is larger."""
    title = f"{images} images, a disk of {_SMALL_DISK}B for the results"
    write_good(folder / "in", _SIDE, images)
    with _small_disk(folder / "disk") as reason:
        if reason:
            return Section(title, {}, (f"full disk is left out: {reason}",))
        out = folder / "disk" / "out"
        first, printed = _analyze(folder / "in", out, "-n", "1")
        whole = {path.parent.name for path in out.glob("*/record.json")}
        half = {name: content for name, content in contents(out).items() if name.split("/")[0] in whole}
        if problem := _mount("-o", f"remount,size={_LARGE_DISK}", str(folder / "disk")):
            raise OSError(problem)
        second, _ = _analyze(folder / "in", out, "-n", "1")
        found = contents(out)
    _analyze(folder / "in", folder / "plain", "-n", "1")
    expected = contents(folder / "plain")
    figures = {
        "disk/first_status": first,
        "disk/named": "make room and run the same command again" in printed,
        "disk/whole_before": len(whole),
        "disk/these_are_right": all(expected.get(name) == content for name, content in half.items()),
        "disk/second_status": second,
        "disk/identical": found == expected,
    }
    return Section(title, figures)


@contextmanager
def _small_disk(place: Path) -> Iterator[str]:
    """Mount a small disk in memory; yields the reason if that cannot be done."""
    place.mkdir(parents=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        yield "mounting a small disk needs Linux and root"
    elif made := _mount("-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "tmpfs", str(place)):
        yield made
    else:
        try:
            yield ""
        finally:
            with suppress(OSError):
                subprocess.run(["umount", str(place)], capture_output=True, check=False)


def _mount(*arguments: str) -> str:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def _command(images: Path, out: Path, *options: str) -> list[str]:
    program = [sys.executable, "-m", "coarse2fine.cli.main", "analyze"]
    return [*program, str(images), "-o", str(out), "-m", MODEL, "-q", *options]


def _analyze(images: Path, out: Path, *options: str) -> tuple[int, str]:
    """Run the command line as users do; returns its exit status and output."""
    command = _command(images, out, *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=False)
    return done.returncode, done.stdout + done.stderr


def run_and_kill(
    arguments: Sequence[str], killed: Counter[str], most: int, rng: np.random.Generator, pause: float
) -> int | None:
    """Run a command, and kill it or one of its workers at random times, `pause` seconds apart in the mean.

    Counts in `killed` up to `most`. Returns the exit status, None if it was killed.
    """
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not _workers(process):
            time.sleep(0.05)
        due = time.monotonic() + 1 + rng.exponential(pause)
        while process.poll() is None:
            if time.monotonic() < due or killed.total() >= most:
                time.sleep(0.02)
                continue
            due = time.monotonic() + rng.exponential(pause)
            if workers := _workers(process):
                if rng.random() < 0.5:
                    workers[int(rng.integers(len(workers)))].kill()
                    killed["worker"] += 1
                else:
                    process.kill()
                    killed["driver"] += 1
                    return None
        return process.wait()
    finally:
        process.kill()
        process.wait()


def _workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    except psutil.Error:
        return []


def contents(out: Path) -> dict[str, bytes]:
    """Files of a batch's results by path in the folder, except times, partial work and the batch's page."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "timing.json" and p != out / "report.html"]
    found = {path.relative_to(out): path for path in files}
    return {name.as_posix(): path.read_bytes() for name, path in sorted(found.items()) if name.parts[0] != ".batch"}
