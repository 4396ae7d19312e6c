"""Files and folders that appear whole or not at all: written beside their target and renamed.

Temporary names are unpredictable and never opened if they exist, so that a link planted in a shared folder is not
followed.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp"
"""Suffix of unfinished files and folders."""


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield the path of a sibling to write, which is renamed to `target` on success and removed otherwise.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder does not exist, or `target` is a folder.
    """
    _check_folder(target)
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder; give the name of a file")
    temporary = sibling(target)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_stream(target: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Like `replacing`, but yield an open stream; compressed with gzip if the name ends in ``.gz``.

    Parameters
    ----------
    target : Path
    sync : bool
        Whether to wait until the content is on disk. Otherwise a power cut soon after may leave a file of the right
        length and wrong content.
    """
    with replacing(target) as temporary, contextlib.ExitStack() as stack:
        # Not by tempfile, which makes files private to their owner: this one gets the usual permissions.
        file = stack.enter_context(temporary.open("xb"))
        if sync:
            stack.callback(_flush, file)
        stream: Any = file
        if target.name.endswith(".gz"):
            # Without name and time in the header, so that equal results are equal files.
            stream = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=3, fileobj=file, mtime=0))
        yield stream


def replace_file(target: Path, content: bytes) -> None:
    """Write a file durably: it is on disk when this returns.

    Raises
    ------
    OSError
        If it cannot be written; an existing file is then unchanged.
    """
    with replacing_stream(target, sync=True) as stream:
        stream.write(content)


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder, which the caller creates.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If its parent folder does not exist, or `target` is a file.
    """
    _check_folder(target)
    if target.is_file():
        raise NotADirectoryError(f"cannot write {target}: it is a file; give the name of a folder")
    temporary, old = sibling(target), sibling(target)
    try:
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Like `replacing_folder`, for a folder that must not exist.

    Raises
    ------
    FileExistsError
        If `target` exists when the folder would be renamed.
    """
    temporary = sibling(target)
    try:
        yield temporary
        check_absent(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_absent(target: Path) -> None:
    """Refuse to overwrite.

    Raises
    ------
    FileExistsError
        If `target` exists.
    """
    if target.exists():
        raise FileExistsError(f"{target}: exists already; choose another path or remove it")


def sibling(target: Path, suffix: str = TEMPORARY) -> Path:
    """Unpredictable, hidden name beside a target, short enough for every file system."""
    return target.with_name(f".{uuid.uuid4().hex}{suffix}")


def sync_folder(folder: Path) -> None:
    """Wait until all files below a folder are on disk.

    Raises
    ------
    OSError
        If one of them could not be stored: some file systems report only now that they are full.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            with (Path(place) / name).open("r+b") as file:
                os.fsync(file.fileno())


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist; create it first")
