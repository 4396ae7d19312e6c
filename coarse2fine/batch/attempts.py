"""How often an image was attempted, across runs."""

from __future__ import annotations

from coarse2fine.batch.job import Job
from coarse2fine.batch.store import tidy

MOST_TRIES = 2
_OURS = "coarse2fine"


class Attempts:
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
