"""Locks between processes."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(path: Path, busy: str, seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock, which is released at the end or if the process is killed.

    On a file system without locks, nothing is locked.

    Parameters
    ----------
    path : Path
        Lock file, created if needed, with its folder, and removed at the end.
    busy : str
        Message of the error if another process holds the lock.
    seconds : float
        Time to wait for the lock.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.
    OSError
        If the file cannot be created.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(busy) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    try:
        yield
    finally:
        # Removed while held: a waiting process finds it gone and creates another. On Windows it disappears by itself.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
