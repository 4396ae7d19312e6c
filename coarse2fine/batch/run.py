"""The story of a batch: find the images, leave out what is done, analyse the rest, sum up."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Unpack

from coarse2fine.batch.inputs import Item, find_items, sharded, with_masks
from coarse2fine.batch.job import KEEP_FROM, Job, Opening, Record, cores, key_of, waiting
from coarse2fine.batch.lock import SINGLE, exclusive_lock
from coarse2fine.batch.store import reuse_result, warn_on_error
from coarse2fine.batch.summary import BatchResult
from coarse2fine.batch.worker import analyze_item, failed
from coarse2fine.bundle import ModelSpec
from coarse2fine.config import AnalysisOptions, Config, config_of, takes_options
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.paths import PathLike
from coarse2fine.progress import BatchProgress
from coarse2fine.report.batch_page import remove_shards, write_batch_report
from coarse2fine.terminal import printable
from coarse2fine.tiling.storage.remote import is_url

OnError = Literal["skip", "fail"]


@dataclass(frozen=True)
class Workers:
    """Who does the work of a batch.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine; by default one for each core, or a single one where there is an accelerator.
        0 is this process alone, which a bad file may take down with it.
    scheduler : str, optional
        Address of a Dask scheduler instead, such as ``tcp://host:8786``; its workers must see the same files.
    shard : (int, int), optional
        (I, N): only the I-th of N equal parts of the batch, counted from 1.
    split : bool
        Whether a very large image is refined by all workers together.
    time_limit : float, optional
        Seconds that an image may take.
    memory_limit : float, optional
        Bytes that a process may take; by default an equal share of the machine's memory.

    Raises
    ------
    ValueError
        If a number is out of range, or parameters contradict each other.
    """

    workers: int | None = None
    scheduler: str | None = None
    shard: tuple[int, int] | None = None
    split: bool = False
    time_limit: float | None = None
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be a number of processes, got {self.workers}")
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("the workers of a scheduler are started elsewhere: give workers or a scheduler, not both")
        for name in ("time_limit", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.workers == 0 and (self.split or self.time_limit or self.memory_limit):
            raise ValueError("split, time_limit and memory_limit need workers: give at least 1")


@takes_options
def analyze_folder(
    images: PathLike | Sequence[PathLike],
    out: PathLike,
    model: PathLike | Model = "generic",
    *,
    mpp: float | None = None,
    channels: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
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
    """Analyse many images; whatever happens to one of them, the others are done.

    What is done already, with the same model and parameters, is not done again: after a crash or Ctrl-C the same call
    goes on from there. Each image has a folder of its own in `out`, as `Analysis.save` writes it; ``batch.json`` and
    ``batch.csv`` say what became of each.

    Parameters
    ----------
    images : path, address or sequence of these
        Images, folders, globs, addresses, and lists: text with one image a line, or CSV with the columns path and,
        where wanted, mpp and model.
    out : path
        Folder of the results, made where needed.
    model : path, str or Model
        A fitted model, its file, or the name of an embedded one.
    budget, cells, seconds, recall, confidence, audit, cap, threshold, seed, device, precision, batch_size
        Of each image, as in `analyze`; so are `channels` and `value_range`.
    mpp : float, optional
        Microns per pixel, instead of what files say; that of a list comes first.
    mask : path, optional
        A folder or glob of masks of the images' names, or one for all of them; see `analyze`.
    workers : int, optional
        Processes on this machine, by default one for each core; 0 is this process alone.
    scheduler : str, optional
        Address of a Dask scheduler to use instead.
    split : bool
        Whether a very large image is refined by all workers together.
    time_limit : float, optional
        Seconds after which an image is given up.
    overwrite : bool
        Do again what is done already.
    report : bool
        Whether to write ``report.html``, of each image and of all.
    on_error : {"skip", "fail"}
        Whether to go on after an image that fails.
    progress : bool
        Whether to show progress.

    Returns
    -------
    BatchResult

    Raises
    ------
    FileNotFoundError
        If `images` leads to nothing.
    ModelError
        If a model cannot be loaded.
    TypeError
        If a parameter's name is unknown; the message lists those that there are.
    ValueError
        If a list cannot be read, or parameters are out of range or contradict each other.
    OSError
        If `out` cannot be written, another run is writing into it, or there is no such scheduler.
    """
    config = config_of(analyze_folder, options)
    items = find_items(images)
    return run_batch(
        items if mask is None else with_masks(items, mask),
        Path(out),
        model,
        config,
        Workers(workers, scheduler, None, split, time_limit),
        opening=Opening(mpp, None if channels is None else tuple(channels), value_range),
        overwrite=overwrite,
        report=report,
        on_error=on_error,
        progress=progress,
    )


def run_batch(
    items: Sequence[Item],
    out: Path,
    model: PathLike | Model,
    config: Config,
    crew: Workers,
    *,
    opening: Opening | None = None,
    flat: bool = False,
    overwrite: bool = False,
    report: bool = True,
    on_error: OnError = "skip",
    progress: bool = False,
) -> BatchResult:
    """Analyse the items of a batch; see `analyze_folder`.

    Parameters
    ----------
    items : sequence of Item
    out : Path
    model : path, str or Model
        For items without one of their own.
    config : Config
    crew : Workers
    opening : Opening, optional
    flat : bool
        Whether the results of a single item lie in `out` itself.
    overwrite, report : bool
    on_error : {"skip", "fail"}
    progress : bool

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C; says how far the batch is.
    OSError
        If `out` cannot be written, or another run is writing into it.
    """
    out.mkdir(parents=True, exist_ok=True)
    mine = sharded(items, crew.shard)
    jobs = make_jobs(mine, out, model, config, crew, opening or Opening(), flat=flat, report=report)
    with exclusive_lock(out, SINGLE if flat else _name(crew)):
        done = {} if overwrite else {job.item.name: r for job in jobs if (r := reuse_result(job)) is not None}
        before = len(done)
        try:
            _run(jobs, done, crew, on_error, progress=progress)
        finally:
            every = tuple(done.get(job.item.name) or waiting(job) for job in jobs)
            batch = BatchResult(every, out, before, _provenance(jobs, config))
            if not flat:
                _save(batch, crew)
        if report and jobs and not flat:
            with warn_on_error(f"the page of {out}"):
                write_batch_report(out)
    return batch


def _run(jobs: Sequence[Job], records: dict[str, Record], crew: Workers, on_error: OnError, *, progress: bool) -> None:
    """Add the records of the jobs that have none."""
    rest = [job for job in jobs if job.item.name not in records]
    try:
        with BatchProgress(len(rest), shown=progress) as bars, closing(_records(rest, crew, bars)) as made:
            for record in made:
                records[record.name] = record
                bars.finished(record.name, _line(record))
                if record.fatal or (on_error == "fail" and not record.has_result):
                    break
    except KeyboardInterrupt:
        left = len(jobs) - len(records)
        raise KeyboardInterrupt(f"; {left:,} image(s) are left: run the same command again to go on") from None


def _save(batch: BatchResult, crew: Workers) -> None:
    # A full disk is what a record tells of already.
    with suppress(OSError) if any(record.fatal for record in batch.records) else nullcontext():
        batch.save(_name(crew))
        if crew.shard is None:
            remove_shards(batch.out)


def _name(crew: Workers) -> str:
    return "batch" if crew.shard is None else f"batch-{crew.shard[0]}-of-{crew.shard[1]}"


def make_jobs(
    items: Sequence[Item],
    out: Path,
    model: PathLike | Model,
    config: Config,
    crew: Workers,
    opening: Opening,
    *,
    flat: bool = False,
    report: bool = True,
) -> list[Job]:
    """What is to be done of each item, in order.

    Parameters
    ----------
    items : sequence of Item
    out : Path
        Folder of the results.
    model : path, str or Model
        For items without one of their own.
    config : Config
    crew : Workers
    opening : Opening
    flat : bool
        Whether the results of a single item lie in `out` itself.
    report : bool
        Whether each image gets a page.

    Raises
    ------
    ModelError
        If a model cannot be loaded.
    OSError
        If `out` cannot be written.
    ValueError
        If results would lie in the place of an image.
    """
    out = out.absolute()
    specs = {name: ModelSpec.of(name) for name in {item.model for item in items} if name is not None}
    usual = None if all(item.model for item in items) else _spec(model, out)
    run, threads = uuid.uuid4().hex[:8], _threads(crew, len(items), config)
    jobs = []
    for item in items:
        spec = usual if item.model is None else specs[item.model]
        assert spec is not None
        opened = opening if item.mpp is None else replace(opening, mpp=item.mpp)
        key, folder = key_of(item, spec, config, opened), "" if flat else item.name
        limit = crew.time_limit
        jobs.append(Job(item, str(out), folder, spec, config, opened, key, run, threads, limit, KEEP_FROM, report))
        if not is_url(item.source) and jobs[-1].target == Path(item.source).absolute():
            raise ValueError(f"the results of {item.source} would lie in its own place; name another folder than {out}")
    return jobs


def _spec(model: PathLike | Model, out: Path) -> ModelSpec:
    """A model in memory is stored beside the results, where every worker finds it."""
    if not isinstance(model, Model):
        return ModelSpec.of(model)
    folder = out / ".batch"
    folder.mkdir(parents=True, exist_ok=True)
    spec = ModelSpec.of(model.save(folder / f"{uuid.uuid4().hex}.c2f"))
    named = ModelSpec(str(folder / f"{spec.sha256[:16]}.c2f"), spec.sha256)
    Path(spec.path).replace(named.path)
    return named


def _records(jobs: Sequence[Job], crew: Workers, bars: BatchProgress) -> Generator[Record, None, None]:
    """Each job's record when it is done, which the journal notes."""
    if not jobs:
        return
    with closing(_done_here(jobs, bars) if crew.workers == 0 else _done_by_workers(jobs, crew, bars)) as made:
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


def _done_by_workers(jobs: Sequence[Job], crew: Workers, bars: BatchProgress) -> Generator[Record, None, None]:
    # Dask takes a while to load, which a single image can do without.
    from coarse2fine.batch.dask_cluster import connected, topic  # noqa: PLC0415
    from coarse2fine.batch.schedule import run_jobs  # noqa: PLC0415

    def hear(event: tuple[float, dict[str, Any]]) -> None:
        warn_on_error = event[1]
        bars.running(warn_on_error["image"], warn_on_error["step"], warn_on_error["done"], warn_on_error["total"])

    with connected(crew.scheduler, processes(crew, len(jobs), jobs[0].config), crew.memory_limit) as client:
        client.subscribe_topic(topic(jobs[0].run), hear)
        with closing(run_jobs(client, jobs, split=crew.split)) as made:
            yield from made


def processes(crew: Workers, images: int, config: Config) -> int:
    """How many a local cluster has."""
    if crew.workers:
        return crew.workers
    if Runtime.choose(config.device, config.precision).device.type != "cpu":
        return 1
    return cores() if crew.split else min(cores(), images)


def _threads(crew: Workers, images: int, config: Config) -> int:
    """Threads of arithmetic of each worker; 0 for as many as a scheduler gives it."""
    if crew.scheduler is not None:
        return 0
    return max(1, cores() // max(1, crew.workers if crew.workers is not None else processes(crew, images, config)))


def _line(record: Record) -> str:
    if not record.has_result:
        return printable(f"{record.name}: {record.status}: {record.error}")
    facts, unwell = record.facts, f"; {record.error}" if record.error else ""
    return printable(f"{record.name}: {facts['regions']:,} found, {facts['share']:.1%} of the exhaustive pass{unwell}")


def _note(out: Path, record: Record) -> None:
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "image": record.name, "status": record.status}
    text = json.dumps({**entry, "seconds": round(record.seconds, 3)})
    with suppress(OSError):  # a full disk is told of elsewhere
        (out / ".batch").mkdir(exist_ok=True)
        with (out / ".batch" / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def _provenance(jobs: Sequence[Job], config: Config) -> dict[str, Any]:
    models = sorted({(Path(job.model.path).name, job.model.sha256) for job in jobs})
    return {
        "models": [{"file": name, "sha256": sha256} for name, sha256 in models],
        "parameters": {**config.parameters(), "device": config.device, "precision": config.precision},
    }
