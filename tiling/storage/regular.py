"""Safe opening of untrusted files: regular files only, without waiting, of bounded size."""

from __future__ import annotations

import io
import os
import stat
import zlib
from pathlib import Path

# Opening a pipe would wait for its writer, and a terminal could become the controlling one.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)


class FileTooLargeError(OSError):
    """A file, or its unpacked content, is larger than allowed."""


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a regular file for reading, without a buffer.

    The check is made on the opened file, so that the path cannot be exchanged in between.

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
    """Whole content of a regular file of bounded size.

    Parameters
    ----------
    path : path-like
    most_bytes : int
        Most bytes, stored or unpacked; more are refused before they take memory.
    unzip : bool
        Whether to unpack content compressed with gzip.

    Raises
    ------
    FileTooLargeError
        If the file, or its unpacked content, has more bytes.
    OSError
        If `open_regular` fails, or the compressed data are damaged.
    """
    with io.BufferedReader(open_regular(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise FileTooLargeError(f"{path} has {size:,} bytes, expected at most {most_bytes:,}")
        # The file may grow while it is read.
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise FileTooLargeError(f"{path} has more than {most_bytes:,} bytes")
    if unzip and content.startswith(b"\x1f\x8b"):
        return _unzipped(content, most_bytes, str(path))
    return content


def _unzipped(content: bytes, most_bytes: int, name: str) -> bytes:
    """Content of all members of a gzip file, concatenated."""
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
