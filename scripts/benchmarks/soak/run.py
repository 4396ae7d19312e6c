"""Benchmark of a worker that runs for long: its memory and open files while it analyses thousands of small images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.batches.data import MODEL, write_good
from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.progress import Progress, Tick

_EXPLAINED = (
    "One worker process analyses all images, which are PNG, tiled TIFF and Zarr in turn, and writes their results. Its "
    "resident memory, open files and threads are read about twice a second. Growth is the slope of a straight line "
    "through the second half of the images; the first half holds what is loaded once.",
)
_PAUSE = 0.5
_DISTINCT = 24
_BLUE, _ORANGE = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class SoakScale:
    """Number of images, and their side in pixels."""

    images: int
    side: int


FULL = SoakScale(2000, 128)
QUICK = SoakScale(60, 128)


@dataclass(frozen=True)
class Curve:
    """Measurements of the worker over time.

    Parameters
    ----------
    done : ndarray, int, (n,)
        Images finished.
    memory : ndarray, float, (n,)
        Resident memory in MB.
    files, threads : ndarray, int, (n,)
        Open files and sockets (on Windows handles), and threads.
    """

    done: NDArray[np.int64]
    memory: NDArray[np.float64]
    files: NDArray[np.int64]
    threads: NDArray[np.int64]

    def growth(self, values: NDArray[np.generic]) -> float:
        """Slope over the second half of the images, per thousand images."""
        late = self.done >= self.done[-1] / 2
        if len(set(self.done[late].tolist())) < 2:
            raise ValueError("the worker was seen too seldom for a slope: analyse more images")
        return float(np.polyfit(self.done[late] / 1000, values[late].astype(np.float64), 1)[0])

    def figures(self) -> dict[str, float]:
        """Figures of the benchmark."""
        found = {"soak/images": float(self.done[-1]), "soak/seconds_an_image": 0.0}
        for name, values in (("memory_mb", self.memory), ("open_files", self.files), ("threads", self.threads)):
            found |= {
                f"{name}/at_half": float(values[np.searchsorted(self.done, self.done[-1] / 2)]),
                f"{name}/at_end": float(values[-1]),
                f"{name}/most": float(values.max()),
                f"{name}/growth_per_1000": self.growth(values),
            }
        return found


def benchmark_soak(out: Path, *, scale: SoakScale = FULL) -> SectionReport:
    """Measure one worker; draws ``soak.png`` in `out`, which must exist.

    Raises
    ------
    ValueError
        If an image failed.
    """
    with Progress(True) as bars, tempfile.TemporaryDirectory(prefix="scratch-", dir=out) as scratch:
        start = time.perf_counter()
        curve = soak(Path(scratch).absolute(), scale, bars.task("images"))
        seconds = time.perf_counter() - start
    draw(curve, out / "soak.png")
    figures = curve.figures() | {"soak/seconds_an_image": seconds / scale.images}
    section = Section(
        f"{scale.images:,} images of {scale.side} px by one worker", figures, (f"curve: {out / 'soak.png'}",)
    )
    return SectionReport("soak", (section,), (0,), asdict(scale), _EXPLAINED)


def soak(folder: Path, scale: SoakScale, tick: Tick) -> Curve:
    """Analyse images in a new folder by one worker, and measure it."""
    write_images(folder / "in", scale)
    command = [sys.executable, "-m", "coarse2fine", "analyze", str(folder / "in"), "-o", str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows: list[tuple[int, float, int, int]] = []
    worker: psutil.Process | None = None
    with subprocess.Popen(
        [*command, "-m", MODEL, "-n", "1", "-q", "--no-report", "--budget", "0.5"], env=environment
    ) as running:
        while running.poll() is None:
            time.sleep(_PAUSE)
            done = sum(1 for _ in (folder / "out").glob("*/record.json"))
            worker = worker or (_worker(running.pid) if done else None)
            if worker is not None and done < scale.images:
                rows.append((done, *_measured(worker)))
                tick(done, scale.images)
    if running.returncode != 0:
        raise ValueError("an image failed, see the messages above; correct this first")
    table = np.array(rows)
    whole = table.astype(np.int64)
    return Curve(whole[:, 0], table[:, 1], whole[:, 2], whole[:, 3])


def write_images(folder: Path, scale: SoakScale) -> None:
    """Write some images, and copies of them."""
    names = write_good(folder, scale.side, min(scale.images, _DISTINCT))
    for number in range(len(names), scale.images):
        source = folder / names[number % len(names)]
        target = folder / f"copy-{number:05}{source.suffix}"
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def _worker(parent: int) -> psutil.Process | None:
    """The process below another that needs most memory; None as long as there is none."""
    try:
        return max(psutil.Process(parent).children(recursive=True), key=lambda process: process.memory_info().rss)
    except (psutil.Error, ValueError):
        return None


def _measured(worker: psutil.Process) -> tuple[float, int, int]:
    """Memory in MB, open files and threads; a worker that has died has none."""
    try:
        with worker.oneshot():
            files = worker.num_handles() if sys.platform == "win32" else worker.num_fds()
            return worker.memory_info().rss / 1e6, files, worker.num_threads()
    except psutil.NoSuchProcess as error:
        raise ValueError("the worker died; see the messages above") from error


def draw(curve: Curve, path: Path) -> None:
    """Draw memory and open files against images."""
    figure = Figure((7, 4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(curve.done, curve.memory, color=_BLUE)
    upper.set(ylabel="resident memory, MB", ylim=(0, curve.memory.max() * 1.1))
    lower.plot(curve.done, curve.files, color=_BLUE, label="open files")
    lower.plot(curve.done, curve.threads, color=_ORANGE, label="threads")
    lower.set(xlabel="images analysed", ylim=(0, max(curve.files.max(), curve.threads.max()) * 1.2))
    lower.legend(loc="lower right", frameon=False)
    figure.savefig(path)
