"""Journal of a conversion, from which it is resumed: its source, and damage found so far."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


class Journal:
    """A file with one JSON value per line: a fingerprint of the work, then a record of each failure.

    Parameters
    ----------
    path : Path
        Journal file, created if needed.

    Attributes
    ----------
    fingerprint : object
        Fingerprint in the file when it was opened; None if it is new or damaged.
    records : list
        Records without repeats, in the order in which they were added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._stream = path.open("a+b")
        try:
            lines = self._read()
        except BaseException:
            self._stream.close()
            raise
        self.fingerprint: Any = json.loads(lines[0]) if lines else None
        self._lines = dict.fromkeys(lines[1:])

    @property
    def records(self) -> list[Any]:
        return [json.loads(line) for line in self._lines]

    def begin(self, fingerprint: Any) -> None:
        """Clear the journal and write the fingerprint."""
        self._stream.truncate(0)
        self.fingerprint = fingerprint
        self._lines = {}
        self._append(json.dumps(fingerprint))

    def add(self, record: Any) -> None:
        """Add a record, unless it is there already; it is on disk when this returns."""
        line = json.dumps(record)
        with self._mutex:
            if line not in self._lines:
                self._lines[line] = None
                self._append(line)

    def _append(self, line: str) -> None:
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _read(self) -> list[str]:
        """Lines before the first damaged one, which a killed process may leave; the file is truncated there."""
        self._stream.seek(0)
        lines, size = [], 0
        for line in self._stream.read().splitlines(keepends=True):
            try:
                json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            lines.append(line.decode().rstrip("\n"))
            size += len(line)
        self._stream.truncate(size)
        return lines

    def close(self) -> None:
        """Close the file and keep it for the next run."""
        self._stream.close()

    def publish(self, target: Path) -> None:
        """Rename the journal's folder to its final name and remove the journal: the work is done."""
        self.close()
        self._path.parent.rename(target)
        (target / self._path.name).unlink()
