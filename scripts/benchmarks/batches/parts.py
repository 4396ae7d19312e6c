"""The parts of the benchmark of batches: broken files, kills, scaling, memory, and a full disk."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from distributed import Client

from benchmarks.batches.data import BROKEN, MODEL, write_bomb, write_broken, write_good, write_large, write_plain_tiffs
from benchmarks.batches.runs import (
    Kills,
    command,
    contents,
    processor_seconds,
    run,
    run_and_kill,
    summary,
    whole_results,
)
from benchmarks.report import Section
from coarse2fine.batch.dask_cluster import connected, shared
from coarse2fine.batch.inputs import find_items
from coarse2fine.batch.run import Workers, run_batch
from coarse2fine.batch.summary import BatchResult
from coarse2fine.config import Config

Tick = Callable[[int, int], None]

_SIDE = 512
# Work is kept of images from 2^27 pixels on.
_LARGE_SIDE = 11_776
_BOMB_SIDE, _MEMORY = 26_000, 1.5e9
_SMALL_DISK, _LARGE_DISK = "3m", "256m"


def broken_files(folder: Path, images: int, tick: Tick) -> Section:
    """One image in ten is broken; all good ones are to be done, and all bad ones named."""
    bad = write_broken(_made(folder / "in"), images // 10)
    good = write_good(folder / "in", _SIDE, images - len(bad))
    done = run(command(folder / "in", folder / "out", "-n", "2"))
    tick(1, 1)
    status = {record["name"]: record["status"] for record in summary(folder / "out")["results"]}
    figures = {
        "broken.images": images,
        "broken.kinds": min(len(BROKEN), len(bad)),
        "broken.good_done": sum(status.get(name) == "done" for name in good) / len(good),
        "broken.bad_named": sum(status.get(n) not in {None, "done"} and n in done.printed for n in bad) / len(bad),
        "broken.exit_status": done.status,
        "broken.seconds": done.seconds,
    }
    lines = (
        f"{len(good):,} good: {figures['broken.good_done']:.1%} done",
        f"{len(bad):,} broken in {figures['broken.kinds']} ways: {figures['broken.bad_named']:.1%} named",
        f"exit status {done.status}; {done.seconds:,.0f} s",
    )
    return Section(f"{images:,} images, one in ten broken", lines, figures)


def kills(folder: Path, images: int, number: int, seed: int, tick: Tick) -> Section:
    """Workers and the command itself are killed at random moments, and the command is run again until all is done."""
    write_good(folder / "in", _SIDE, images)
    write_large(folder / "in" / "large.zarr", _LARGE_SIDE)
    options = ("-n", "2", "--budget", "1")
    calm = run(command(folder / "in", folder / "calm", *options))
    expected = contents(folder / "calm")
    rng, killed, runs, status = np.random.default_rng(seed), Kills(), 0, None
    rounds = 0
    while status != 0 or len(killed) < number:
        if status == 0:  # all is done before it was killed often enough: begin anew
            _check(contents(folder / "out"), expected)
            shutil.rmtree(folder / "out")
            rounds += 1
        pause = calm.seconds / 6
        status = run_and_kill(command(folder / "in", folder / "out", *options), killed, number, rng, pause)
        runs += 1
        tick(len(killed), number)
    found = contents(folder / "out")
    same = sum(found.get(name) == content for name, content in expected.items())
    figures = {
        "kills.workers": killed.workers,
        "kills.drivers": killed.drivers,
        "kills.runs": runs,
        "kills.files": len(expected),
        "kills.identical": same / len(expected),
        "kills.extra_files": len(found.keys() - expected.keys()),
    }
    lines = (
        f"{killed.workers} workers and {killed.drivers} drivers killed; {runs} runs, of which {rounds} had all done",
        f"{same:,} of {len(expected):,} files are those of an undisturbed run, byte for byte; "
        f"{figures['kills.extra_files']} more than it has",
    )
    return Section(f"{len(killed)} kills with SIGKILL, {images} images and one of 139 megapixels", lines, figures)


def _check(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ValueError(f"after kills {len(wrong)} files are not those of an undisturbed run, such as {wrong[0]}")


def scaling(folder: Path, images: int, side: int, rounds: int, tick: Tick) -> Section:
    """The same images by one worker and by two, in turn; what a worker does not spend on images is overhead."""
    write_plain_tiffs(folder / "in", side, images)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    busy: dict[int, list[float]] = {1: [], 2: []}
    overheads = []
    with connected(None, 1) as one, connected(None, 2) as two:
        clients = {1: one, 2: two}
        for client in clients.values():
            _timed(folder, client)  # loads the model, and all else
        for number in range(rounds):
            for workers, client in clients.items():
                before = processor_seconds()
                batch, taken = _timed(folder, client)
                seconds[workers].append(taken)
                busy[workers].append((processor_seconds() - before) / images)
                if workers == 1:
                    overheads.append((taken - sum(record.seconds for record in batch.records)) / images)
            tick(number + 1, rounds)
    ratios = [a / b for a, b in zip(seconds[1], seconds[2], strict=True)]
    medians = {workers: statistics.median(times) for workers, times in seconds.items()}
    figures = {
        "scaling.images": images,
        "scaling.one_worker_seconds": medians[1],
        "scaling.two_workers_seconds": medians[2],
        "scaling.speedup": medians[1] / medians[2],
        "scaling.one_worker_processor_seconds": statistics.median(busy[1]),
        "scaling.two_workers_processor_seconds": statistics.median(busy[2]),
        "scaling.overhead_ms": 1000 * statistics.median(overheads),
    }
    low, high = np.percentile(ratios, (25, 75))
    lines = (
        f"1 worker {medians[1]:.1f} s, 2 workers {medians[2]:.1f} s: {figures['scaling.speedup']:.2f} times as fast "
        f"[{low:.2f}, {high:.2f}]",
        f"processor time {figures['scaling.one_worker_processor_seconds']:.2f} and "
        f"{figures['scaling.two_workers_processor_seconds']:.2f} s an image; "
        f"overhead {figures['scaling.overhead_ms']:.1f} ms an image",
    )
    return Section(f"{images} images of {side} x {side} px, {rounds} rounds, one thread a worker", lines, figures)


def _timed(folder: Path, client: Client) -> tuple[BatchResult, float]:
    with tempfile.TemporaryDirectory(dir=folder) as out, shared(client) as scheduler:
        start = time.perf_counter()
        batch = run_batch(find_items(folder / "in"), Path(out), MODEL, Config(budget=1.0), Workers(scheduler=scheduler))
        taken = time.perf_counter() - start
    if not batch.ok:
        raise ValueError(f"images that are good were not done: {batch}")
    return batch, taken


def out_of_memory(folder: Path, images: int, tick: Tick) -> Section:
    """A file that needs more memory than its worker has."""
    good = write_good(folder / "in", _SIDE, images)
    write_bomb(folder / "in" / "bomb.bmp", _BOMB_SIDE)
    start = time.perf_counter()
    batch = run_batch(
        find_items(folder / "in"), folder / "out", MODEL, Config(), Workers(workers=2, memory_limit=_MEMORY)
    )
    tick(1, 1)
    status = {record.name: record for record in batch.records}
    figures = {
        "memory.others_done": sum(status[name].status == "done" for name in good) / len(good),
        "memory.quarantined": float(status["bomb.bmp"].status == "killed"),
        "memory.seconds": time.perf_counter() - start,
    }
    bomb = status["bomb.bmp"]
    lines = (
        f"a file of {3 * _BOMB_SIDE**2 / 1e9:.1f} GB, workers of {_MEMORY / 1e9:.1f} GB: {bomb.status}, {bomb.error}",
        f"{images} others: {figures['memory.others_done']:.1%} done; {figures['memory.seconds']:,.0f} s",
    )
    return Section("out of memory", lines, figures)


def full_disk(folder: Path, images: int, tick: Tick) -> Section:
    """Results go to a disk that is too small, which is then made larger."""
    title = f"{images} images, a disk of {_SMALL_DISK}B for the results"
    write_good(folder / "in", _SIDE, images)
    with _small_disk(folder / "disk") as reason:
        if reason:
            return Section(title, (f"not measured: {reason}",), {}, (f"full disk is left out: {reason}",))
        out = folder / "disk" / "out"
        first = run(command(folder / "in", out, "-n", "1"))
        whole = whole_results(out)
        half = {name: content for name, content in contents(out).items() if name.split("/")[0] in whole}
        _remount(folder / "disk")
        second = run(command(folder / "in", out, "-n", "1"))
        found = contents(out)
        tick(1, 2)
        run(command(folder / "in", folder / "plain", "-n", "1"))
        expected = contents(folder / "plain")
        tick(2, 2)
    figures = {
        "disk.first_exit_status": first.status,
        "disk.named": float("make room and run the same command again" in first.printed),
        "disk.whole_before": len(whole),
        "disk.whole_are_right": float(all(expected.get(name) == content for name, content in half.items())),
        "disk.second_exit_status": second.status,
        "disk.identical": float(found == expected),
    }
    lines = (
        f"first run: exit status {first.status}, {len(whole)} results whole and right, the cause "
        f"{'named' if figures['disk.named'] else 'NOT NAMED'}",
        f"with more room: exit status {second.status}, results "
        f"{'are those of an undisturbed run' if figures['disk.identical'] else 'DIFFER'}",
    )
    return Section(title, lines, figures)


@contextmanager
def _small_disk(place: Path) -> Iterator[str]:
    """Mount a small disk in memory; the reason where that cannot be done."""
    place.mkdir(parents=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        yield "mounting a small disk takes Linux and its administrator"
        return
    made = _mount("-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "tmpfs", str(place))
    if made:
        yield made
        return
    try:
        yield ""
    finally:
        with suppress(OSError):
            subprocess.run(["umount", str(place)], capture_output=True, check=False)


def _remount(place: Path) -> None:
    if problem := _mount("-o", f"remount,size={_LARGE_DISK}", str(place)):
        raise OSError(problem)


def _mount(*arguments: str) -> str:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
