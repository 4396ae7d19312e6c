"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give the path of a sibling to write, which takes the name `target` if all goes well and vanishes otherwise.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder does not exist, or `target` is a folder.
    """
    _check_folder(target)
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder; give the name of a file")
    temporary = _sibling(target)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_stream(target: Path) -> Iterator[BinaryIO]:
    """Like `replacing`, open for writing; compressed with gzip when the name ends in ``.gz``."""
    with replacing(target) as temporary, contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(temporary.open("wb"))
        if target.name.endswith(".gz"):
            # Neither name nor time inside, so that equal results are equal files.
            stream = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=3, fileobj=stream, mtime=0))
        yield stream


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder: the sibling is to be made by whoever writes it.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If the folder around it does not exist, or `target` is a file.
    """
    _check_folder(target)
    if target.is_file():
        raise NotADirectoryError(f"cannot write {target}: it is a file; give the name of a folder")
    temporary, old = _sibling(target), _sibling(target)
    try:
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def _check_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist; create it first")


def _sibling(target: Path) -> Path:
    return target.with_name(f".{uuid.uuid4().hex}.tmp")
