"""Attempts at a part of a job, counted on disk: a worker that dies cannot report them."""

from __future__ import annotations

from coarse2fine.batch.job import Job
from coarse2fine.batch.store import tidy

MOST_ATTEMPTS = 2
_PACKAGE = "coarse2fine"


class Attempts:
    """Attempts at a part of a job in this run, and the stacks that a dying worker wrote."""

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
        """Forget the attempts: the worker survived them."""
        for path in (self._path, self.stacks):
            path.unlink(missing_ok=True)
        tidy(self._job)

    def last_stacks(self) -> str:
        """Stacks of the last worker's threads at its end; empty if it could not write them."""
        try:
            text = self.stacks.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""
        head, *threads = text.split("\n\n")
        return "\n\n".join([head, *(thread for thread in threads if _PACKAGE in thread)])
