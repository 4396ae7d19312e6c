"""What an interrupted conversion leaves for the next: of what it was, and what it found damaged."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import IO, Any

_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class Journal:
    """A file of one JSON value a line: a fingerprint of the work, then a record each of what went wrong.

    It is locked while it is open, so that two processes do not write the same target.

    Parameters
    ----------
    path : Path
        Made if need be.

    Attributes
    ----------
    fingerprint : object
        What the file said when it was opened; None if it is new or damaged.
    records : list
        Each once, in the order in which they were added.

    Raises
    ------
    BlockingIOError
        If another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._stream = path.open("a+b")
        try:
            _lock(self._stream, path)
            if not self._is_there():
                raise BlockingIOError(f"{path.parent} was finished by another process just now")
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
        """Forget everything and write the fingerprint."""
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
        """Lines up to the first that is damaged, where the process died while it wrote; the rest is cut off."""
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
        """Unlock the file and leave it for the next."""
        self._stream.close()

    def publish(self, target: Path) -> None:
        """Give the folder that the journal is in its final name, and remove the journal: the work is done.

        It stays locked until then, lest another process take the folder for its own and begin afresh in it.
        """
        if sys.platform == "win32":  # where what is open cannot be renamed
            self._stream.close()
            self._path.unlink()
            self._path.parent.rename(target)
        else:
            self._path.parent.rename(target)
            (target / self._path.name).unlink()
            self._stream.close()

    def _is_there(self) -> bool:
        """Whether the file that is open still has its name; when it has not, its work is done."""
        try:
            return os.path.samestat(os.fstat(self._stream.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


def _lock(stream: IO[bytes], path: Path) -> None:
    """Lock a file until it is closed or the process ends; file systems without locks are taken as they are."""
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 (there alone)

            stream.seek(0, os.SEEK_SET)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415 (not on Windows)

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise BlockingIOError(
                f"{path.parent} is being written by another process; wait for it, or end it"
            ) from None
