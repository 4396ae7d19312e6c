"""Locks of a folder of results: one run at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from coarse2fine.tiling.writing.lock import locked

SINGLE = "image"
"""Name of the run of a single image, whose results lie in the folder itself."""
# Other runs hold a lock briefly while they check whether it is free.
_LOCK_SECONDS = 1.0


@contextlib.contextmanager
def exclusive_lock(out: Path, name: str) -> Iterator[None]:
    """Lock a folder against other runs; the lock of a killed run is free.

    Shards of a batch may run at the same time; a shard and the whole batch may not.

    Parameters
    ----------
    out : Path
        Folder of the results; must exist.
    name : str
        Name of the run: that of its record, or `SINGLE`.

    Raises
    ------
    OSError
        If another run is writing into the folder, or it cannot be written.
    """
    folder = out / ".batch"
    folder.mkdir(exist_ok=True)
    own = folder / f"{name}.lock"
    busy = f"another run is writing into {out}: wait for its end, or name another folder"
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, folder)
        stack.enter_context(locked(own, busy, _LOCK_SECONDS))
        for other in sorted(folder.glob("*.lock")):
            if other != own and not _apart(other.stem, name):
                with locked(other, busy, _LOCK_SECONDS):
                    pass
        yield


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # there is more in it
        folder.rmdir()


def _apart(one: str, other: str) -> bool:
    """Whether two runs never share an image: different shards out of the same number."""
    _, shards, of = one.partition("-of-")
    return bool(shards) and other.partition("-of-")[2] == of
