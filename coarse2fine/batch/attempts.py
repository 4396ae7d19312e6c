"""Attempts at a part of a job, counted on disk: a worker that dies cannot tell of its own."""

from __future__ import annotations

from coarse2fine.batch.job import Job
from coarse2fine.batch.store import tidy

MOST_ATTEMPTS = 2
_PACKAGE = "coarse2fine"


class Attempts:
    """Attempts at a part of a job in this run, and the stacks left by a worker that died of it."""

    def __init__(self, job: Job, unit: str) -> None:
        self._job = job
        self._path = job.work / f"tries-{job.run}-{unit}"
        self.stacks = job.work / f"stacks-{job.run}-{unit}"

    def begin(self) -> int:
        """Count this attempt; returns the number of those before it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            before = file.tell()
            file.write(b"x")
        return before

    def end(self) -> None:
        """Forget the attempts: the worker lives, so they cannot have killed it."""
        for path in (self._path, self.stacks):
            path.unlink(missing_ok=True)
        tidy(self._job)

    def last_stacks(self) -> str:
        """Stacks of the worker's threads when it was ended; empty if it could not write them."""
        try:
            text = self.stacks.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""
        head, *threads = text.split("\n\n")
        return "\n\n".join([head, *(thread for thread in threads if _PACKAGE in thread)])
