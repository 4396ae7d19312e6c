"""What is on disk of a batch: results that are whole, the journal, and how often an image was tried."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from coarse2fine.analysis import Analysis
from coarse2fine.batch.job import Job, Record, Status
from coarse2fine.export import write_json
from coarse2fine.report_html import write_report
from coarse2fine.stored import ANALYSIS, NOT_ALWAYS, REPORT, audit_json, read_record
from coarse2fine.terminal import printable
from coarse2fine.tiling.atomic import sync_folder
from coarse2fine.tiling.redact import redact
from coarse2fine.tiling.remote import is_url

RECORD = "record.json"
"""Written last: a folder with it holds whole results."""
MOST_TRIES = 2
SINGLE = "image"
"""Name of a run whose results lie in the folder itself."""
# Others hold a lock for a moment, when they look whether it is free.
_LOCK_SECONDS = 1.0
_OURS = "coarse2fine"
_LOG = logging.getLogger(__name__)
_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def facts_of(analysis: Analysis) -> dict[str, Any]:
    """Figures of an analysis that a batch adds up; no times."""
    cost, audit = analysis.cost, analysis.audit
    counts: dict[str, int] = {}
    for region in analysis.regions:
        counts[region.label] = counts.get(region.label, 0) + 1
    facts: dict[str, Any] = {
        "shape": list(analysis.image.shape),
        "regions": len(analysis.regions),
        "labels": dict(sorted(counts.items())),
        "macs": cost.macs,
        "exhaustive_macs": cost.exhaustive_macs,
        "share": cost.share,
        "cells": cost.cells,
        "cells_refined": cost.cells_refined,
        "complete": analysis.complete,
        "failures": list(analysis.failures),
    }
    if analysis.notes:
        facts["notes"] = list(analysis.notes)
    if audit is not None:
        facts["audit"] = audit_json(audit)
    return facts


def done_before(job: Job) -> Record | None:
    """The record of an earlier run whose results are there; None where there is anything to do."""
    try:
        stored = json.loads((job.target / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.pop("key", None) != job.key:
        return None
    if stored["failures"] and is_url(job.item.source):  # a network may do better next time
        return None
    return record_of(job, stored)


def found_again(job: Job) -> Record | None:
    """What `done_before` says; results that there are then say where their image lies now, if it was moved since."""
    record = done_before(job)
    if record is None or is_url(job.item.source):
        return record
    place = os.path.abspath(job.item.source)  # noqa: PTH100 (keeps links as they are)
    with told(f"the place of {job.item.source}"):
        stored = read_record(job.target)
        if stored["image"]["path"] != place:
            write_json(job.target / ANALYSIS, {**stored, "image": {**stored["image"], "path": place}})
    return record


def record_of(job: Job, facts: Mapping[str, Any], seconds: float = 0.0) -> Record:
    """The record of an image that has results."""
    failures = facts["failures"]
    error = "" if not failures else f"parts cannot be read: {failures[0]}"
    status: Status = "damaged" if failures else "done"
    return Record(job.item.name, job.item.source, status, error, facts=facts, seconds=seconds)


def commit(job: Job, analysis: Analysis, *, whole: bool = True) -> dict[str, Any]:
    """Write the results to a temporary place and give them their own; returns the facts.

    Parameters
    ----------
    job : Job
    analysis : Analysis
    whole : bool
        Otherwise there is more to do: what is kept of the work stays.

    Raises
    ------
    OSError
        If they cannot be written; then nothing of them is in their place, or no record says that they are whole.
    """
    job.work.mkdir(parents=True, exist_ok=True)
    temporary = job.work / f"result-{uuid.uuid4().hex[:8]}"
    try:
        analysis.save(temporary)
        if job.report:
            with told(f"the page of {job.item.source}", but=OSError):
                write_report(analysis, temporary / REPORT)
        facts = facts_of(analysis)
        if whole:
            write_json(temporary / RECORD, {"key": job.key, **facts})
        sync_folder(temporary)
        _move(temporary, job.target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if whole:
        shutil.rmtree(job.work.parent, ignore_errors=True)
    tidy(job)
    return facts


@contextlib.contextmanager
def alone(out: Path, name: str) -> Iterator[None]:
    """Keep other runs away, which would take this one's work for their own; the lock of a run that was killed is free.

    Shards of a batch may run at the same time; shards and the whole of it may not.

    Parameters
    ----------
    out : Path
        Folder of the results; must exist.
    name : str
        Of the run: that of its record, or `SINGLE`.

    Raises
    ------
    OSError
        If another run is writing into the folder, or it cannot be written.
    """
    folder = out / ".batch"
    folder.mkdir(exist_ok=True)
    own = folder / f"{name}.lock"
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, folder.rmdir)
        stack.enter_context(_locked(own, out))
        stack.callback(_remove, own.unlink)
        for other in sorted(folder.glob("*.lock")):
            if other != own and not _apart(other.stem, name):
                with _locked(other, out):
                    pass
        yield


def _remove(remove: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):  # a folder with more in it; on Windows a lock, which vanishes by itself
        remove()


@contextlib.contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"another run is writing into {out}: wait for its end, or name another folder") from None
    try:
        yield
    finally:
        lock.release()


def _apart(one: str, other: str) -> bool:
    """Whether two runs never have an image in common: different shards of as many."""
    _, shards, of = one.partition("-of-")
    return bool(shards) and other.partition("-of-")[2] == of


@contextlib.contextmanager
def told(what: str, *, but: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """An error in something that a result can do without is told, and ends nothing; those of the kinds `but` do."""
    try:
        yield
    except but:
        raise
    except Exception as error:  # noqa: BLE001
        told = printable(redact(str(error)))
        _LOG.warning("%s could not be written: %s: %s", printable(redact(what)), type(error).__name__, told)


def tidy(job: Job) -> None:
    """Remove the folders of partial work that are empty."""
    for folder in (job.work, job.work.parent, job.work.parent.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _move(temporary: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(target)
        return
    # Not in one step; but without these the folder does not count as whole.
    last = (ANALYSIS, RECORD)
    for name in last + tuple(name for name in NOT_ALWAYS if not (temporary / name).exists()):
        (target / name).unlink(missing_ok=True)
    for new in sorted(temporary.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
        old = target / new.name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        new.replace(old)


class Tries:
    """How often a part of a job was begun in this run, and what was left when its worker died."""

    def __init__(self, job: Job, unit: str) -> None:
        self._job = job
        self._path = job.work / f"tries-{job.run}-{unit}"
        self.stacks = job.work / f"stacks-{job.run}-{unit}"

    def begin(self) -> int:
        """Count this try; returns those before it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            before = file.tell()
            file.write(b"x")
        return before

    def end(self) -> None:
        """The worker lives: this try cannot have killed it."""
        for path in (self._path, self.stacks):
            path.unlink(missing_ok=True)
        tidy(self._job)

    def last_words(self) -> str:
        """Stacks of the worker's threads when it was ended, where it could still write them."""
        try:
            text = self.stacks.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""
        head, *threads = text.split("\n\n")
        return "\n\n".join([head, *(thread for thread in threads if _OURS in thread)])


def is_full(error: BaseException | None) -> bool:
    """Whether the disk is full: then every other image would fail too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
