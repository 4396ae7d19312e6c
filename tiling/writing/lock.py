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
    """Hold a lock, which is free again at the end or if the process is killed.

    A file system without locks is taken as it is.

    Parameters
    ----------
    path : Path
        Made if need be, with its folder, and removed at the end.
    busy : str
        Message if another process holds it.
    seconds : float
        Time to wait for it.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    OSError
        If it cannot be made.
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
        # Removed while it is held: who waits for it finds it gone, and makes another. On Windows it vanishes by itself.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
