"""Stored bytes: parts of a file, or values under keys, on this machine or behind a URL."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from .regular import open_regular
from .remote import Remote
from .stats import ReadStats

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

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """Bytes ``[start, stop)`` of a value, where a negative start counts from its end; None without such a key."""

    def lend(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | memoryview | None:
        """As `get`, in memory that the next call from the same thread may use again."""


class LocalFile:
    """A file on this machine.

    Parameters
    ----------
    path : Path
    stats : ReadStats
        Told of every read.

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
        # Lazy images live as long as they are needed; forgetting one is no fault to warn of.
        if hasattr(self, "_file"):
            self._file.close()


class RemoteFile:
    """A file behind a URL, read by ranges.

    Parameters
    ----------
    remote : Remote
        Its address.
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
        Told of every read.
    """

    def __init__(self, root: Path, stats: ReadStats) -> None:
        self._root = str(root)
        self._stats = stats
        self._own = threading.local()

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        try:
            with open(f"{self._root}/{key}", "rb", buffering=0) as file:  # noqa: PTH123 (a third faster than Path.open)
                # Not beyond the end: memory is taken for all that is asked for.
                low, high, _ = slice(start, stop).indices(os.fstat(file.fileno()).st_size)
                file.seek(low)
                data = file.read() if stop is None else file.read(max(high - low, 0))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        self._stats.fetch(len(data))
        return data

    def lend(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | memoryview | None:
        # Fresh memory for every chunk costs as much as reading it.
        try:
            with open(f"{self._root}/{key}", "rb", buffering=0) as file:  # noqa: PTH123 (as above)
                low, high, _ = slice(start, stop).indices(os.fstat(file.fileno()).st_size)
                if low:
                    file.seek(low)
                room = self._room(max(high - low, 0))
                size = file.readinto(room)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        self._stats.fetch(size)
        return room[:size]

    def _room(self, size: int) -> memoryview:
        room: bytearray | None = getattr(self._own, "room", None)
        if room is None or len(room) < size:
            room = self._own.room = bytearray(size + size // 4)
        return memoryview(room)[:size]


class RemoteKeys:
    """Objects whose addresses begin with a URL.

    Parameters
    ----------
    remote : Remote
        Their common address.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        try:
            return self._remote.fetch(key, start, stop)
        except FileNotFoundError:
            return None

    lend = get


class FileStream(io.RawIOBase):
    """A `ByteFile` as a seekable stream for libraries that parse headers; keeps the blocks it has read.

    Parameters
    ----------
    file : ByteFile
        Is not closed with the stream.
    name : str
        Path or URL; libraries show it in their messages.
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
        """Read neighbouring blocks at once: a long table of offsets is one request."""
        data = self._file.read_at(first * _BLOCK, (last - first + 1) * _BLOCK)
        for index in range(first, last + 1):
            begin = (index - first) * _BLOCK
            self._blocks[index] = data[begin : begin + _BLOCK]
            self._blocks.move_to_end(index)
