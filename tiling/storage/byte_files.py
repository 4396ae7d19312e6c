"""Stored bytes: parts of a file, or values under keys, on this machine or at a URL."""

from __future__ import annotations

import io
import itertools
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from ..stats import ReadStats
from .regular import open_regular
from .remote import Remote

VALUE_BYTES = 2**25
"""Most bytes of a value of unknown size, such as metadata: consolidated metadata of a 384-well plate take about
2**24."""

_UP = re.compile(r"\s*\.\.[. ]*")  # Windows ignores dots and blanks at the end of a name
_DRIVE = re.compile(r"[A-Za-z]:")
_BLOCK = 2**16
_BLOCKS_KEPT = 64


class ByteFile(Protocol):
    """A file of which any part can be read, from several threads at once."""

    size: int

    def read_at(self, offset: int, count: int) -> bytes:
        """Read `count` bytes from `offset`; fewer at the end of the file."""

    def close(self) -> None: ...


class Keys(Protocol):
    """Values under keys, such as the files of a Zarr directory."""

    def get(self, key: str, start: int | None = None, stop: int | None = None, most: int = VALUE_BYTES) -> bytes | None:
        """Bytes ``[start, stop)`` of a value; a negative start counts from its end; None without such a key.

        Raises
        ------
        ValueError
            If they are more than `most`, before they take memory; or if the key leads out of the folder or address.
        OSError
            If they cannot be read.
        """

    def lend(
        self, key: str, start: int | None = None, stop: int | None = None, most: int = VALUE_BYTES
    ) -> bytes | memoryview | None:
        """Same as `get`, in memory that the next call from the same thread may overwrite."""

    def has(self, key: str) -> bool:
        """Whether there is such a key."""

    def names(self, prefix: str, most: int) -> list[str] | None:
        """At most `most` names directly under a prefix, folders with a slash; None if they cannot be listed."""


def check_inside(path: str) -> None:
    """Refuse a path from untrusted metadata that leads out of the folder or address that it is joined to.

    Raises
    ------
    ValueError
        If it is absolute, has a part ``..`` (encoded for URLs, too), a backslash or a drive letter, or would change
        the query of an address.
    """
    plain = unquote(path)
    leads_out = plain.startswith("/") or _DRIVE.match(plain) or any(_UP.fullmatch(part) for part in plain.split("/"))
    if leads_out or any(sign in plain for sign in ("\\?#\0:" if os.name == "nt" else "\\?#\0")):
        raise ValueError(f"the path {path!r} leads out of the Zarr, or is not valid in a Zarr; it is not followed")


class LocalFile:
    """A file on this machine.

    Parameters
    ----------
    path : Path
    stats : ReadStats
        Counts every read.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """

    def __init__(self, path: Path, stats: ReadStats) -> None:
        self._file = open_regular(path)
        self._stats = stats
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            data = os.pread(self._file.fileno(), count, offset)
        else:
            with self._lock:
                self._file.seek(offset)
                data = self._file.read(count)
        self._stats.fetch(len(data))
        return data

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        # Lazy images need not be closed explicitly: no ResourceWarning.
        if hasattr(self, "_file"):
            self._file.close()


class RemoteFile:
    """A file at a URL, read by ranges.

    Parameters
    ----------
    remote : Remote
        Address of the file.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.size = remote.size()

    def read_at(self, offset: int, count: int) -> bytes:
        stop = min(offset + count, self.size)
        return self._remote.fetch("", offset, stop) if stop > offset else b""

    def close(self) -> None:
        """Connections are shared and stay open."""


class LocalKeys:
    """Files under a folder of this machine.

    Parameters
    ----------
    root : Path
    stats : ReadStats
        Counts every read.
    """

    def __init__(self, root: Path, stats: ReadStats) -> None:
        self._root = str(root)
        self._stats = stats
        self._own = threading.local()

    def get(self, key: str, start: int | None = None, stop: int | None = None, most: int = VALUE_BYTES) -> bytes | None:
        file = self._open(key)
        if file is None:
            return None
        with file:
            room = bytearray(_seek(file, key, start, stop, most))
            size = _fill(file, memoryview(room))
        self._stats.fetch(size)
        return bytes(room[:size])

    def lend(
        self, key: str, start: int | None = None, stop: int | None = None, most: int = VALUE_BYTES
    ) -> bytes | memoryview | None:
        # New memory for every chunk would cost as much as reading it.
        file = self._open(key)
        if file is None:
            return None
        with file:
            room = self._room(_seek(file, key, start, stop, most))
            size = _fill(file, room)
        self._stats.fetch(size)
        return room[:size]

    def has(self, key: str) -> bool:
        if ".." in key:
            check_inside(key)
        return os.path.exists(f"{self._root}/{key}")  # noqa: PTH110 (hundreds are asked for)

    def names(self, prefix: str, most: int) -> list[str] | None:
        try:
            with os.scandir(f"{self._root}/{prefix}") as entries:
                return [entry.name + "/" * entry.is_dir() for entry in itertools.islice(entries, most)]
        except OSError:
            return []

    def _open(self, key: str) -> io.FileIO | None:
        if ".." in key:
            check_inside(key)
        try:
            return open_regular(f"{self._root}/{key}")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _room(self, size: int) -> memoryview:
        room: bytearray | None = getattr(self._own, "room", None)
        if room is None or len(room) < size:
            room = self._own.room = bytearray(size + size // 4)
        return memoryview(room)[:size]


def _seek(file: io.FileIO, key: str, start: int | None, stop: int | None, most: int) -> int:
    """Go to the start of a part; returns its number of bytes, clipped to the end of the file."""
    low, high, _ = slice(start, stop).indices(os.fstat(file.fileno()).st_size)
    size = max(high - low, 0)
    check_value(key, size, most)
    if low:
        file.seek(low)
    return size


def check_value(key: str, size: int, most: int) -> None:
    """Refuse a value of more than `most` bytes.

    Raises
    ------
    ValueError
        If it has more.
    """
    if size > most:
        raise ValueError(f"'{key}' holds {size:,} bytes, expected at most {most:,}")


def _fill(file: io.FileIO, room: memoryview) -> int:
    """Read into memory; returns the bytes read, fewer only at the end. One call on Linux reads at most 2 GiB."""
    done = 0
    while done < len(room) and (count := file.readinto(room[done:])):
        done += count
    return done


class RemoteKeys:
    """Objects whose addresses begin with a URL.

    Parameters
    ----------
    remote : Remote
        Common address of the objects.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def get(self, key: str, start: int | None = None, stop: int | None = None, most: int = VALUE_BYTES) -> bytes | None:
        if ".." in key or "?" in key or "#" in key:
            check_inside(key)
        try:
            return self._remote.fetch(key, start, stop, most)
        except FileNotFoundError:
            return None

    lend = get

    def has(self, key: str) -> bool:
        return self.get(key, 0, 1) is not None

    def names(self, prefix: str, most: int) -> list[str] | None:  # noqa: ARG002 (few servers list)
        return None


class FileStream(io.RawIOBase):
    """A `ByteFile` as a seekable stream for libraries that parse headers; keeps the blocks it has read.

    Parameters
    ----------
    file : ByteFile
        Not closed with the stream.
    name : str
        Path or URL, which libraries show in their messages.
    """

    def __init__(self, file: ByteFile, name: str) -> None:
        super().__init__()
        self.name = name
        self._file = file
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._read(self._position, min(len(view), max(0, self._file.size - self._position)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, offset: int, count: int) -> bytes:
        if not count:
            return b""
        first, last = offset // _BLOCK, (offset + count - 1) // _BLOCK
        missing = [block for block in range(first, last + 1) if block not in self._blocks]
        if missing:
            self._fetch(missing[0], missing[-1])
        data = b"".join(self._blocks[block] for block in range(first, last + 1))
        while len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        begin = offset - first * _BLOCK
        return data[begin : begin + count]

    def _fetch(self, first: int, last: int) -> None:
        """Read neighbouring blocks at once, so that a long table of offsets is one request."""
        data = self._file.read_at(first * _BLOCK, (last - first + 1) * _BLOCK)
        for index in range(first, last + 1):
            begin = (index - first) * _BLOCK
            self._blocks[index] = data[begin : begin + _BLOCK]
            self._blocks.move_to_end(index)
