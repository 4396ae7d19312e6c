"""Results of a batch on disk: reused if they are complete, and moved into place when written."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coarse2fine.batch.job import Job, Record
from coarse2fine.report.image_page import write_report
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.folder import ANALYSIS, NOT_ALWAYS, REPORT, facts_of, read_record, state_of
from coarse2fine.results.json_file import write_json
from coarse2fine.terminal import printable
from coarse2fine.tiling.storage.redact import redact
from coarse2fine.tiling.storage.remote import is_url
from coarse2fine.tiling.writing.atomic import sync_folder

RECORD = "record.json"
"""Written last: a folder with it holds complete results."""
_LOG = logging.getLogger(__name__)
_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def done_before(job: Job) -> Record | None:
    """The record of an earlier run whose results exist; None if the image has to be analysed."""
    try:
        stored = json.loads((job.target / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.pop("key", None) != job.key:
        return None
    if stored["failures"] and is_url(job.item.source):  # network failures may be temporary
        return None
    return record_of(job, stored)


def reuse_result(job: Job) -> Record | None:
    """The record of `done_before`; if the image was moved since, its path in the results is updated."""
    record = done_before(job)
    if record is None or is_url(job.item.source):
        return record
    place = os.path.abspath(job.item.source)  # noqa: PTH100 (keeps links as they are)
    with warn_on_error(f"the place of {job.item.source}"):
        stored = read_record(job.target)
        if stored["image"]["path"] != place:
            write_json(job.target / ANALYSIS, {**stored, "image": {**stored["image"], "path": place}})
    return record


def record_of(job: Job, facts: Mapping[str, Any], seconds: float = 0.0) -> Record:
    """The record of an image that has results."""
    status, error = state_of(facts)
    return job.record(status, error, facts=facts, seconds=seconds)


def commit(job: Job, analysis: Analysis, *, whole: bool = True) -> dict[str, Any]:
    """Write the results to a temporary folder and move them into place; returns the facts.

    Parameters
    ----------
    job : Job
    analysis : Analysis
    whole : bool
        Whether the image is finished; otherwise partial work is kept.

    Raises
    ------
    OSError
        If they cannot be written; then no record marks the results as complete.
    """
    job.work.mkdir(parents=True, exist_ok=True)
    temporary = job.work / f"result-{uuid.uuid4().hex[:8]}"
    try:
        analysis.save(temporary)
        if job.report:
            with warn_on_error(f"the page of {job.item.source}", but=OSError):
                write_report(analysis, temporary / REPORT)
        facts = facts_of(analysis.summary())
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
def warn_on_error(what: str, *, but: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Log errors in something optional; only errors of the types `but` are raised."""
    try:
        yield
    except but:
        raise
    except Exception as error:  # noqa: BLE001
        text = printable(redact(str(error)))
        _LOG.warning("%s could not be written: %s: %s", printable(redact(what)), type(error).__name__, text)


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
    # This takes several steps, but a folder without these two files does not count as complete.
    last = (ANALYSIS, RECORD)
    for name in last + tuple(name for name in NOT_ALWAYS if not (temporary / name).exists()):
        (target / name).unlink(missing_ok=True)
    for new in sorted(temporary.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
        old = target / new.name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        new.replace(old)


def is_full(error: BaseException | None) -> bool:
    """Whether the disk is full, so that every other image would fail too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
