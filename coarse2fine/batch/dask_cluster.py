"""Workers: a cluster of processes on this machine, or those of any Dask scheduler."""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dask
from distributed import Client, LocalCluster, Security, WorkerPlugin, get_worker

from coarse2fine.batch.job import Job, Record
from coarse2fine.batch.worker import analyze_item, guarded, prepare_item, refine_piece

_SETTINGS = {
    # Dask cannot spill memory that a task holds, and a pause would not reduce it; beyond the limit the worker ends.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # `Attempts` counts instead: Dask also counts tasks that were only queued at a worker that dies.
    "distributed.scheduler.allowed-failures": 10,
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.comm.timeouts.connect": "60s",
    # On a busy machine a worker restarts slowly; `revive` replaces one that does not.
    "distributed.deploy.lost-worker-timeout": "60s",
    # A worker keeps the stacks of its last hour, sampled each 10 ms: tens of MB that nobody looks at.
    "distributed.worker.profile.enabled": False,
    # Scheduler and workers serve web pages, which every user of this machine could read: none are served.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
_EVENT_SECONDS = 0.5
CONNECTION_SECONDS = 10.0


def topic(run: str) -> str:
    """Name under which the workers of a run send their progress."""
    return f"coarse2fine-{run}"


@contextlib.contextmanager
def connected(scheduler: str | None, workers: int, memory_limit: str | float | None = None) -> Iterator[Client]:
    """Connect to a scheduler, or to a local cluster, which ends with the context.

    Whoever can connect to a scheduler or a worker can run code in it. Those of a local cluster listen on the loopback
    interface, which every user of the machine can reach, so they use TLS and accept only the holder of a key that is
    made for the cluster and never written to disk.

    Parameters
    ----------
    scheduler : str or None
        Address, such as ``tcp://host:8786``; for ``tls://`` Dask's own configuration names the certificates.
    workers : int
        Processes of a local cluster.
    memory_limit : str or float, optional
        Memory of each of them; by default an equal share of the machine's memory.

    Raises
    ------
    OSError
        If there is no scheduler at the address.
    """
    if scheduler is not None:
        with Client(scheduler, timeout=CONNECTION_SECONDS) as client:
            yield client
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        stack.enter_context(_quiet())
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="coarse2fine-", ignore_cleanup_errors=True))
        cluster = stack.enter_context(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                security=Security.temporary(),
                dashboard_address="127.0.0.1:0",  # any free port
                scheduler_kwargs={"dashboard": False},
                memory_limit=memory_limit or "auto",
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
            )
        )
        client = stack.enter_context(Client(cluster))
        client.register_plugin(IgnoreSigint())
        yield client


@contextlib.contextmanager
def shared(client: Client) -> Iterator[str]:
    """Address of a client's scheduler, to which this process can open more connections within the context."""
    own = client.security
    held = {"ca-file": own.tls_ca_file, "client.cert": own.tls_client_cert, "client.key": own.tls_client_key}
    with dask.config.set({f"distributed.comm.tls.{name}": value for name, value in held.items()}):
        yield client.scheduler.address


def revive(client: Client) -> None:
    """Replace workers of a local cluster that died and did not restart."""
    if isinstance(client.cluster, LocalCluster):
        client.cluster.scale(len(client.cluster.worker_spec))


class IgnoreSigint(WorkerPlugin):  # type: ignore[misc]
    """Leave Ctrl-C to the process that runs the batch, which ends its workers itself."""

    name = "coarse2fine-ignore-sigint"

    def setup(self, worker: Any) -> None:  # noqa: ARG002 (Dask's interface)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's messages on workers that die, which records report."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.nanny", "tornado.application")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def analyze_task(job: Job) -> Record | int:
    """Task: one image."""
    return guarded(_threaded(job), "all", lambda: analyze_item(job, _StepEvents(job)))


def prepare_task(job: Job) -> Record | int:
    """Task: one image, or only the scan of a large one, whose pieces are tasks of their own."""
    return guarded(_threaded(job), "scan", lambda: prepare_item(job, _StepEvents(job)))


def piece_task(job: Job, number: int) -> Record | int:
    """Task: one piece of a large image."""
    return guarded(_threaded(job), f"piece-{number}", lambda: refine_piece(job, number))


def _threaded(job: Job) -> Job:
    """The job, with the worker's number of threads if it has none."""
    return job if job.threads else replace(job, threads=get_worker().state.nthreads)


class _StepEvents:
    """Progress of an image, sent to the scheduler as events, at most two a second."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker = get_worker()
        self._last = 0.0

    def task(self, name: str) -> Callable[[int, int], None]:
        def tick(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self._last >= _EVENT_SECONDS:
                self._last = now
                message = {"image": self._job.item.name, "step": name, "done": done, "total": total}
                self._worker.log_event(topic(self._job.run), message)

        return tick
