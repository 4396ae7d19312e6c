"""Run of a batch: find the images, skip finished ones, analyse the rest, summarise."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Unpack

from coarse2fine.batch.inputs import find_items, with_masks
from coarse2fine.batch.job import Job, Opening, Record
from coarse2fine.batch.lock import SINGLE, exclusive_lock
from coarse2fine.batch.request import BatchRequest, Workers
from coarse2fine.batch.store import reuse_result, warn_on_error
from coarse2fine.batch.summary import BatchResult
from coarse2fine.batch.worker import analyze_item, failed
from coarse2fine.config import AnalysisOptions, Config, config_of, takes_options
from coarse2fine.experts.again import GivenExperts
from coarse2fine.model import Model
from coarse2fine.paths import PathLike
from coarse2fine.progress import BatchProgress
from coarse2fine.report.batch_page import remove_shards, write_batch_report
from coarse2fine.terminal import printable

OnError = Literal["skip", "fail"]


@takes_options
def analyze_folder(
    images: PathLike | Sequence[PathLike],
    out: PathLike,
    model: PathLike | Model = "generic",
    *,
    mpp: float | None = None,
    channels: int | Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    expert: GivenExperts | None = None,
    cache: PathLike | None = None,
    mask: PathLike | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    split: bool = False,
    time_limit: float | None = None,
    overwrite: bool = False,
    report: bool = True,
    on_error: OnError = "skip",
    progress: bool = False,
    **options: Unpack[AnalysisOptions],
) -> BatchResult:
    """Analyse many images; a failure of one does not stop the others.

    Images already finished with the same model and parameters are skipped: after a crash or Ctrl-C the same call
    continues. Each image has its own folder in `out`, written by `Analysis.save`; ``batch.json`` and ``batch.csv``
    list the outcomes.

    Parameters
    ----------
    images : path, address or sequence of these
        Images, folders, globs, addresses, and lists: text with one image per line, or CSV with the columns path and,
        optionally, mpp and model.
    out : path
        Folder of the results, created if missing.
    model : path, str or Model
        A fitted model, its file, or the name of an embedded one.
    budget, cells, seconds, recall, confidence, audit, cap, threshold, seed, device, precision, batch_size
        See `analyze`; they apply to each image, as do `channels` and `value_range`.
    mpp : float, optional
        Microns per pixel, instead of the files'; a list's value takes precedence.
    expert : Expert, str, or sequence or mapping of these, optional
        Your own model that a model of `fit(..., expert=...)` runs, see `analyze`; workers make it from its text, and an
        object needs ``workers=0``.
    cache : path, optional
        Folder of an expert's stored answers, which every worker must have access to; see `analyze`.
    mask : path, optional
        A folder or glob of masks named as the images, or one for all of them; see `analyze`.
    workers : int, optional
        Processes on this machine, by default one per core; 0 is this process alone.
    scheduler : str, optional
        Address of a Dask scheduler to use instead.
    split : bool
        Whether a very large image is refined by all workers together.
    time_limit : float, optional
        Seconds after which an image is aborted.
    overwrite : bool
        Whether to analyse finished images again.
    report : bool
        Whether to write ``report.html`` for each image and for the batch.
    on_error : {"skip", "fail"}
        Whether to continue after a failure, or to stop.
    progress : bool
        Whether to show progress.

    Returns
    -------
    BatchResult

    Raises
    ------
    FileNotFoundError
        If `images` matches nothing.
    ModelError
        If a model cannot be loaded.
    TypeError
        If a parameter's name is unknown; the message lists the known ones.
    ValueError
        If a list cannot be read, or parameters are out of range or contradict each other.
    OSError
        If `out` cannot be written, another run is writing into it, or the scheduler cannot be reached.
    """
    config, items = config_of(analyze_folder, options), find_items(images)
    request = BatchRequest(
        items=items if mask is None else with_masks(items, mask),
        out=Path(out),
        model=model,
        config=config,
        workers=Workers(workers, scheduler, None, split, time_limit),
        opening=Opening(mpp, channels, value_range),
        report=report,
        expert=expert,
        cache=cache,
    )
    return run_batch(request, overwrite=overwrite, on_error=on_error, progress=progress)


def run_batch(
    request: BatchRequest, *, overwrite: bool = False, on_error: OnError = "skip", progress: bool = False
) -> BatchResult:
    """Analyse the items of a batch; see `analyze_folder`.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C; the message says how many images are left.
    OSError
        If `out` cannot be written, or another run is writing into it.
    """
    out, workers = request.out, request.workers
    out.mkdir(parents=True, exist_ok=True)
    jobs = request.jobs()
    with exclusive_lock(out, SINGLE if request.flat else workers.name):
        done = {} if overwrite else {job.item.name: r for job in jobs if (r := reuse_result(job)) is not None}
        before = len(done)
        try:
            _run(jobs, done, workers, on_error, progress=progress)
        finally:
            every = tuple(done.get(job.item.name) or job.record("waiting") for job in jobs)
            batch = BatchResult(every, out, before, _provenance(jobs, request.config))
            if not request.flat:
                _save(batch, workers)
        if request.report and jobs and not request.flat:
            with warn_on_error(f"the page of {out}"):
                write_batch_report(out)
    return batch


def _run(
    jobs: Sequence[Job], records: dict[str, Record], workers: Workers, on_error: OnError, *, progress: bool
) -> None:
    """Add the records of the jobs that have none."""
    rest = [job for job in jobs if job.item.name not in records]
    try:
        with BatchProgress(len(rest), shown=progress) as bars, closing(_records(rest, workers, bars)) as made:
            for record in made:
                records[record.name] = record
                bars.finished(record.name, _line(record))
                if record.fatal or (on_error == "fail" and not record.has_result):
                    break
    except KeyboardInterrupt:
        left = len(jobs) - len(records)
        raise KeyboardInterrupt(f"; {left:,} image(s) are left: run the same command again to go on") from None


def _save(batch: BatchResult, workers: Workers) -> None:
    # If the disk is full, a record says so already.
    with suppress(OSError) if any(record.fatal for record in batch.records) else nullcontext():
        batch.save(workers.name)
        if workers.shard is None:
            remove_shards(batch.out)


def _records(jobs: Sequence[Job], workers: Workers, bars: BatchProgress) -> Generator[Record, None, None]:
    """Yield each job's record when it is done, and log it."""
    if not jobs:
        return
    with closing(_done_here(jobs, bars) if workers.here else _done_by_workers(jobs, workers, bars)) as made:
        for record in made:
            _note(Path(jobs[0].out), record)
            yield record


def _done_here(jobs: Sequence[Job], bars: BatchProgress) -> Generator[Record, None, None]:
    for job in jobs:
        start = time.perf_counter()
        try:
            yield analyze_item(job, bars.image(job.item.name))
        except Exception as error:  # noqa: BLE001 (whatever it is, the other images are analysed)
            yield failed(job, "all", error, time.perf_counter() - start)


def _done_by_workers(jobs: Sequence[Job], workers: Workers, bars: BatchProgress) -> Generator[Record, None, None]:
    # Dask is slow to import, and this process alone does not need it.
    from coarse2fine.batch.dask_cluster import connected, topic  # noqa: PLC0415
    from coarse2fine.batch.schedule import run_jobs  # noqa: PLC0415

    def hear(event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        bars.running(message["image"], message["step"], message["done"], message["total"])

    with connected(workers.scheduler, workers.processes(len(jobs), jobs[0].config), workers.memory_limit) as client:
        client.subscribe_topic(topic(jobs[0].run), hear)
        with closing(run_jobs(client, jobs, split=workers.split)) as made:
            yield from made


def _line(record: Record) -> str:
    if not record.has_result:
        return printable(f"{record.name}: {record.status}: {record.error}")
    facts, problem = record.facts, f"; {record.error}" if record.error else ""
    return printable(f"{record.name}: {facts['regions']:,} found, {facts['share']:.1%} of the exhaustive pass{problem}")


def _note(out: Path, record: Record) -> None:
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "image": record.name, "status": record.status}
    text = json.dumps({**entry, "seconds": round(record.seconds, 3)})
    with suppress(OSError):  # a full disk is reported elsewhere
        (out / ".batch").mkdir(exist_ok=True)
        with (out / ".batch" / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def _provenance(jobs: Sequence[Job], config: Config) -> dict[str, Any]:
    models = sorted({(Path(job.model.path).name, job.model.sha256) for job in jobs})
    return {
        "models": [{"file": name, "sha256": sha256} for name, sha256 in models],
        "parameters": {**config.parameters(), "device": config.device, "precision": config.precision},
    }
