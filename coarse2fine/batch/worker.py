"""Analysis of one image in a worker; every outcome becomes a record."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import torch

from coarse2fine.analysis_run import AnalysisRun
from coarse2fine.batch.attempts import MOST_ATTEMPTS, Attempts
from coarse2fine.batch.job import Job, Record, Status, model_of
from coarse2fine.batch.store import commit, is_full, record_of
from coarse2fine.engine import run_analysis
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.progress import Steps
from coarse2fine.results.analysis import Analysis
from coarse2fine.steps.checkpoint import Checkpoint, StoredCheckpoint
from coarse2fine.tiling.image import Image

# The number of threads and the watchdog are global to the process.
_ONE_AT_A_TIME = threading.Lock()
_TIMED_OUT = "Timeout ("


def analyze_item(job: Job, steps: Steps) -> Record:
    """Analyse one image and write its results.

    Raises
    ------
    Exception
        Any error of the analysis.
    KeyboardInterrupt
        If Ctrl-C ended it early; partial work on a large image is kept.
    """
    start = time.perf_counter()
    with job.open() as image:
        analysis = analyze_opened(job, image, steps)
        if was_cut(job, analysis):
            raise KeyboardInterrupt
        steps.task("write")(0, 1)
        facts = commit(job, analysis)
    return record_of(job, facts, time.perf_counter() - start)


def analyze_opened(job: Job, image: Image, steps: Steps) -> Analysis:
    """Analyse a job's image; partial work of an earlier run is used."""
    return run_analysis(
        image,
        at_pixel_size(model_of(job), image),
        job.config,
        steps=steps,
        checkpoint=checkpoint_of(job, image),
        mask=job.item.mask,
        model_sha256=job.model.sha256,
    )


def was_cut(job: Job, analysis: Analysis) -> bool:
    """Whether Ctrl-C ended it; always False with a limit in seconds, which ends it too."""
    return not (analysis.complete or analysis.failures or job.config.seconds)


def checkpoint_of(job: Job, image: Image) -> Checkpoint:
    """Storage for partial work; only large images have it."""
    return StoredCheckpoint(job.work) if image.height * image.width >= job.keep_from else Checkpoint()


def guarded(job: Job, unit: str, work: Callable[[], Record | int]) -> Record | int:
    """Do work on an image in a worker; errors, and the deaths of earlier workers, become records.

    Parameters
    ----------
    job : Job
    unit : str
        Name of the part of the work on this image.
    work : callable
    """
    with _ONE_AT_A_TIME:
        start = time.perf_counter()
        set_threads(job.threads)
        try:
            attempts = Attempts(job, unit)
            before = attempts.begin()
            stacks = attempts.last_stacks()
            if stacks.startswith(_TIMED_OUT):
                return _lost(job, unit, "timeout", f"took more than {job.time_limit:g} s", stacks)
            if before >= MOST_ATTEMPTS:
                return _lost(job, unit, "killed", f"its worker died {MOST_ATTEMPTS} times{_why(stacks)}", stacks)
            with _watched(attempts.stacks, job.time_limit):
                made = work()
            attempts.end()
        except Exception as error:  # noqa: BLE001 (whatever it is, the other images are analysed)
            return failed(job, unit, error, time.perf_counter() - start)
    return made


def failed(job: Job, unit: str, error: Exception, seconds: float) -> Record:
    """The record of an error."""
    with contextlib.suppress(OSError):
        Attempts(job, unit).end()
    line = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, MemoryError):
        line = f"out of memory: {line}"
    if is_full(error):
        line = f"no space is left in {job.out}: make room and run the same command again ({line})"
    trace = "".join(traceback.format_exception(error))
    return job.record("failed", line, trace, seconds=seconds, fatal=is_full(error))


def prepare_item(job: Job, steps: Steps) -> Record | int:
    """Scan a large image and count the pieces of its refinement; analyse a smaller image completely."""
    with job.open() as image:
        if image.height * image.width >= job.keep_from and job.config.seconds is None:
            run = _stored_run(job, image)
            scans = [scan for scan, _ in run.look(steps.task("scan"))]
            return len(run.pieces(run.choose(scans)))
    return analyze_item(job, steps)


def refine_piece(job: Job, number: int) -> int:
    """Refine one piece of a large image and keep it; returns its number."""
    with job.open() as image:
        run = _stored_run(job, image)
        scans, learned = zip(*run.look(None), strict=True)
        plans = run.choose(scans)
        band, rows = run.pieces(plans)[number]
        run.bands[band].refine_piece(plans[band].take(rows), learned[band])
    return number


def _stored_run(job: Job, image: Image) -> AnalysisRun:
    return AnalysisRun(
        image, at_pixel_size(model_of(job), image), job.config, StoredCheckpoint(job.work), job.item.mask
    )


def set_threads(count: int) -> None:
    """Set the number of threads for arithmetic; images are decoded in other threads."""
    torch.set_num_threads(count)
    cv2.setNumThreads(0 if count == 1 else count)


def _lost(job: Job, unit: str, status: Status, error: str, stacks: str) -> Record:
    with contextlib.suppress(OSError):
        Attempts(job, unit).end()
    return job.record(status, error, stacks)


def _why(stacks: str) -> str:
    if stacks.startswith("Fatal Python error"):
        return f" ({stacks.partition(chr(10))[0]})"
    return " (usually because memory ran out)"


@contextlib.contextmanager
def _watched(stacks: Path, time_limit: float | None) -> Iterator[None]:
    """Write the threads' stacks when the process crashes, gets SIGTERM or exceeds the time limit, which ends it."""
    with stacks.open("w", encoding="utf-8") as file:
        faulthandler.enable(file)
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGTERM, file, chain=True)
        if time_limit is not None:
            faulthandler.dump_traceback_later(time_limit, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if hasattr(faulthandler, "unregister"):
                faulthandler.unregister(signal.SIGTERM)
            faulthandler.disable()
