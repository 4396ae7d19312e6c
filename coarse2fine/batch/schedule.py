"""Send jobs to workers, a bounded number at a time, and yield their records."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from distributed import Client, Future, KilledWorker, wait

from coarse2fine.batch.dask_cluster import analyze_task, piece_task, prepare_task, revive
from coarse2fine.batch.job import Job, Record
from coarse2fine.batch.worker import failed

# Tasks per thread; more than 1, so that no worker waits for its next task to be sent.
_AHEAD = 1.5
_COUNT_SECONDS = 2.0
# Each stands for ten workers that died before they began; later deaths are counted by `Attempts`.
_MOST_KILLED = 3
_NEVER_BEGAN = (
    "workers died before they began (usually because each has too little memory): start fewer, such as with -n 1"
)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Unit:
    """A task: a job, or a part of it."""

    job: Job
    task: Callable[..., Record | int]
    arguments: tuple[Any, ...] = ()


def run_jobs(client: Client, jobs: Sequence[Job], *, split: bool) -> Generator[Record, None, None]:
    """Run all jobs, and yield the record of each when it is done.

    Parameters
    ----------
    client : Client
    jobs : sequence of Job
    split : bool
        Whether large images are refined by all workers together.
    """
    first = prepare_task if split else analyze_task
    schedule = _Schedule(client, [_Unit(job, first) for job in jobs])
    try:
        yield from schedule.records()
    finally:
        schedule.cancel()


class _Schedule:
    """Waiting and submitted tasks of a batch."""

    def __init__(self, client: Client, units: Sequence[_Unit]) -> None:
        self._client = client
        self._waiting = deque(units)
        self._submitted: dict[Future, _Unit] = {}
        self._pieces: dict[str, int] = {}
        self._finished: set[str] = set()
        self._killed: Counter[str] = Counter()
        self._number = count()
        self._threads, self._counted, self._warned = 0, -_COUNT_SECONDS, False

    def records(self) -> Iterator[Record]:
        while self._waiting or self._submitted:
            window = self._window()
            while self._waiting and len(self._submitted) < window:
                self._submit(self._waiting.popleft())
            if not self._submitted:
                continue
            try:
                done = wait(list(self._submitted), timeout=_COUNT_SECONDS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in done:
                record = self._next(self._submitted.pop(future), future)
                # Otherwise Dask would repeat the task if the worker that holds the record dies later.
                future.release()
                if record is not None:
                    yield record

    def cancel(self) -> None:
        """Cancel all tasks."""
        self._waiting.clear()
        self._client.cancel(list(self._submitted))
        self._submitted.clear()

    def _window(self) -> int:
        """Number of tasks to submit at a time, by the current number of workers."""
        if time.monotonic() - self._counted > _COUNT_SECONDS:
            self._counted = time.monotonic()
            self._threads = sum(self._client.nthreads().values())
            revive(self._client)
            if not (self._threads or self._warned or self._client.cluster):
                self._warned = True
                _LOG.warning("no worker is connected to %s yet: the batch waits", self._client.scheduler.address)
        return max(2, round(_AHEAD * self._threads))

    def _submit(self, unit: _Unit) -> None:
        if unit.job.item.name in self._finished:
            return
        key = f"image-{unit.job.run}-{next(self._number)}"
        self._submitted[self._client.submit(unit.task, unit.job, *unit.arguments, key=key, pure=False)] = unit

    def _next(self, unit: _Unit, future: Future) -> Record | None:
        """The record, if the image is finished; otherwise its next tasks are put first in the queue."""
        job = unit.job
        if job.item.name in self._finished:
            return None
        try:
            made = future.result()
        except KilledWorker:
            self._killed[job.item.name] += 1
            if self._killed[job.item.name] < _MOST_KILLED:
                self._waiting.append(unit)  # usually it was only queued at workers that died
                return None
            made = job.record("killed", _NEVER_BEGAN)
        except Exception as error:
            if future.status != "error":
                raise  # the scheduler is gone
            made = failed(job, "all", error, 0.0)  # the worker cannot begin, for example in another version
        if isinstance(made, Record):
            self._finished.add(job.item.name)
            return made
        if unit.task is prepare_task:
            self._pieces[job.item.name] = made
            self._waiting.extendleft(_Unit(job, piece_task, (n,)) for n in reversed(range(made)))
        else:
            self._pieces[job.item.name] -= 1
        if not self._pieces[job.item.name]:
            self._waiting.appendleft(_Unit(job, analyze_task))
        return None
