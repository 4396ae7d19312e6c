"""Opening files that strangers made: regular files only, never waited for, never larger than promised."""

from __future__ import annotations

import io
import os
import stat
import zlib
from pathlib import Path

# Opening a pipe would wait for its writer, and a terminal could become ours.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)


class FileTooLargeError(OSError):
    """A file, or what it unpacks to, is larger than its kind may be."""


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a regular file for reading, without a buffer.

    What is opened is what is checked, so that nothing can be exchanged in between.

    Parameters
    ----------
    path : path-like
        Links are followed.

    Raises
    ------
    FileNotFoundError, PermissionError
        If it cannot be opened.
    IsADirectoryError
        If it is a folder.
    OSError
        If it is a pipe, a socket or a device.
    """
    if os.name == "nt" and Path(path).is_dir():  # os.open says "permission denied" there
        raise IsADirectoryError(f"{path} is a folder, expected a file")
    number = os.open(path, _FLAGS)
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path} is a folder, expected a file")
        if not stat.S_ISREG(mode):
            raise OSError(f"{path} is a pipe or device, not a file")
        return io.FileIO(number, "rb", closefd=True)
    except BaseException:
        os.close(number)
        raise


def read_regular(path: str | os.PathLike[str], most_bytes: int, *, unzip: bool = False) -> bytes:
    """The whole content of a regular file of a bounded size.

    Parameters
    ----------
    path : path-like
    most_bytes : int
        More than this, stored or unpacked, is refused before it takes memory.
    unzip : bool
        Whether to unpack what is compressed with gzip.

    Raises
    ------
    FileTooLargeError
        If the file, or what it unpacks to, has more bytes.
    OSError
        As `open_regular`; or if the compressed data are damaged.
    """
    with io.BufferedReader(open_regular(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise FileTooLargeError(f"{path} has {size:,} bytes, expected at most {most_bytes:,}")
        # A file may grow while it is read.
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise FileTooLargeError(f"{path} has more than {most_bytes:,} bytes")
    if unzip and content.startswith(b"\x1f\x8b"):
        return _unzipped(content, most_bytes, str(path))
    return content


def _unzipped(content: bytes, most_bytes: int, name: str) -> bytes:
    """All members of a gzip file, one after the other."""
    parts: list[bytes] = []
    room = most_bytes
    while content.startswith(b"\x1f\x8b"):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            parts.append(unpacker.decompress(content, room + 1))
        except zlib.error as error:
            raise OSError(f"{name} is damaged where it is compressed ({error})") from error
        room -= len(parts[-1])
        if room < 0:
            raise FileTooLargeError(f"{name} unpacks to more than {most_bytes:,} bytes")
        if not unpacker.eof:
            raise OSError(f"{name} ends in the middle of its compressed data")
        content = unpacker.unused_data
    return b"".join(parts)
