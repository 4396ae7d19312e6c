"""Disk cache of files that can only be decoded whole: pixels are kept as pyramids, so that they are decoded once.

An entry is a folder whose name is derived from the file's path, size and time of change. It appears whole, by a
rename, and records its last use; if all entries together exceed the bound, the least recently used are removed, but
never within an hour of their use, so the bound is soft. Several processes may share the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from ..geometry import Box, PixelSize
from ..grid import blocks
from ..samples import PixelArray
from ..source import Source
from ..stats import ReadStats
from ..storage.byte_files import VALUE_BYTES, LocalKeys
from ..storage.regular import read_regular
from ..value_range import Origin
from ..writing.atomic import sibling
from ..writing.pyramid import write_pyramid
from .ome_zarr import open_zarr

FOLDER_VARIABLE = "COARSE2FINE_CACHE"
BYTES_VARIABLE = "COARSE2FINE_CACHE_BYTES"
DEFAULT_BYTES = 20 * 10**9
"""Bound of the cache, unless the environment variable says otherwise."""

KEEP_SECONDS = 3600.0
"""Entries used within this time are kept, whatever the bound."""

STALE_SECONDS = 86400.0
"""Age at which unfinished entries count as left by a process that died."""

_LAYOUT = "4"
"""Version of the content of entries, so that older ones are not mistaken for newer ones."""

_CONVERTED_SIDE = 1024
"""Side of the blocks in which pixels are converted: compositing on white takes 20 bytes of scratch per pixel."""

_MOST_ABOUT = 2**20
_PIXELS, _MASK, _ABOUT, _STAMP, _SCRATCH = "pixels", "mask", "about.json", "used", ".partial"


@dataclass(frozen=True)
class CacheEntry:
    """The place of one file's pixels in the cache.

    Parameters
    ----------
    folder : Path
        May or may not exist.
    limit : int
        Most bytes that the cache should take.
    """

    folder: Path
    limit: int

    @classmethod
    def of(cls, path: Path, given: tuple[float, float] | None = None) -> CacheEntry:
        """Entry for a file in its present state, read by its own value range or a given one.

        Raises
        ------
        OSError
            If there is no such file.
        ValueError
            If the environment variable of the bound is not an integer.
        """
        found = path.resolve()
        state = found.stat()
        key = "\0".join([_LAYOUT, str(found), str(state.st_size), str(state.st_mtime_ns), str(given)])
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return cls(_root() / name, _limit())

    def open(self, stats: ReadStats) -> Source | None:
        """Lazy pixels of the entry; None if there are none or some of its files are missing."""
        try:
            about: dict[str, Any] = json.loads(read_regular(self.folder / _ABOUT, _MOST_ABOUT))
            if [*_measure(self.folder)] != about["files_and_bytes"]:
                return None
            pixels = self._part(_PIXELS, stats)
            mask = self._part(_MASK, stats) if about["masked"] else None
            if pixels is None or (about["masked"] and mask is None):
                return None
            origin = Origin.parse(about["origin"], pixels.samples)
            if origin is None:
                return None
            size = about["pixel_size"]
            # No note if no chunk is stored: a black picture stores none.
            source = dataclasses.replace(
                pixels,
                format=about["format"],
                origin=origin,
                pixel_size=None if size is None else PixelSize(**size),
                notes=tuple(map(str, about["notes"])),
            )
            return source if mask is None else _masked(source, mask)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _part(self, name: str, stats: ReadStats) -> Source | None:
        return open_zarr(_EntryKeys(self.folder, name, stats), str(self.folder / name))

    def keep(self, source: Source, stats: ReadStats) -> Source:
        """Store decoded pixels and open them from there.

        Parameters
        ----------
        source : Source
            One level in memory, whose pixels without data are white.
        stats : ReadStats
            Counts later reads.

        Returns
        -------
        Source
            With the same pixels and mask at level 0, and with coarser levels; or `source` with a note that says
            why it could not be stored.
        """
        height, width = source.size(0)
        if height * width * (source.channels + source.masked) > self.limit:
            return _noted(source, f"its pixels exceed the {self.limit} bytes of {BYTES_VARIABLE}")
        scratch = sibling(self.folder, _SCRATCH)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _write(scratch, source)
            kept = self._publish(scratch, stats)
        except OSError as error:
            return _noted(source, f"the cache {self.folder.parent} cannot be written: {error.strerror or error}")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # other processes tidy up too
            _tidy(self.folder.parent, self.limit)
        return kept

    def _publish(self, scratch: Path, stats: ReadStats) -> Source:
        """Give a finished entry its name, unless another process was faster."""
        try:
            scratch.rename(self.folder)
        except OSError:
            theirs = self.open(stats)
            if theirs is not None:
                return theirs
            _remove(self.folder)  # damaged
            scratch.rename(self.folder)
        kept = self.open(stats)
        if kept is None:
            raise OSError("what was written there cannot be read")
        return kept


class _EntryKeys(LocalKeys):
    """Files of one part of an entry; every read records that the entry is in use.

    Parameters
    ----------
    folder : Path
        The entry.
    part : str
        Name of the folder in it.
    stats : ReadStats
        Counts every read.
    """

    def __init__(self, folder: Path, part: str, stats: ReadStats) -> None:
        super().__init__(folder / part, stats)
        self._folder, self._stamp = folder, str(folder / _STAMP)

    def get(self, key: str, start: int | None = None, stop: int | None = None, most: int = VALUE_BYTES) -> bytes | None:
        self._use()
        return super().get(key, start, stop, most)

    def lend(
        self, key: str, start: int | None = None, stop: int | None = None, most: int = VALUE_BYTES
    ) -> bytes | memoryview | None:
        self._use()
        return super().lend(key, start, stop, most)

    def _use(self) -> None:
        try:
            os.utime(self._stamp)
        except FileNotFoundError:
            # Chunks without a file read as black, and so would a removed entry.
            raise OSError(f"the cached pixels in {self._folder} were removed; open the image again") from None
        except OSError:
            pass  # a read-only cache


@dataclass(frozen=True)
class _MaskedLevel:
    """Colour and opacity of one level as one array (c, y, x), opacity last."""

    colour: PixelArray
    opacity: PixelArray

    @property
    def shape(self) -> tuple[int, ...]:
        return (1 + (self.colour.shape[0] if self._coloured else 1), *self.opacity.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.opacity.dtype

    @property
    def _coloured(self) -> bool:
        return len(self.colour.shape) == 3

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[np.uint8]:
        place = key[1:]
        colour = np.asarray(self.colour[(slice(None), *place)] if self._coloured else self.colour[place][None])
        return np.concatenate([colour, np.asarray(self.opacity[place])[None]])[key[0]]


def _masked(pixels: Source, mask: Source) -> Source:
    """Join colour and mask, which `_write` stores apart, as premultiplied colour: zeros if there is no data."""
    levels = tuple(_MaskedLevel(*pair) for pair in zip(pixels.arrays, mask.arrays, strict=True))
    return dataclasses.replace(pixels, arrays=levels, axes="cyx", alpha="premultiplied")


def _write(folder: Path, source: Source) -> None:
    """Write the content of an entry under a temporary name."""
    height, width = source.size(0)

    def pixels(box: Box) -> NDArray[np.uint8]:
        read = source.read(0, box)
        return np.where(source.read_mask(0, box)[..., None], read, 0).astype(np.uint8) if source.masked else read

    def opacity(box: Box) -> NDArray[np.uint8]:
        return source.read_mask(0, box)[..., None] * np.uint8(255)

    folder.mkdir()
    write_pyramid(folder / _PIXELS, (height, width, source.channels), _in_blocks(pixels, source.channels))
    if source.masked:
        write_pyramid(folder / _MASK, (height, width, 1), _in_blocks(opacity, 1))
    about = {
        "format": source.format,
        "origin": Origin(source.scale).to_json(),
        "masked": source.masked,
        "notes": source.notes,
        "pixel_size": None if source.pixel_size is None else dataclasses.asdict(source.pixel_size),
        "files_and_bytes": _measure(folder),
    }
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    (folder / _STAMP).touch()


def _in_blocks(read: Callable[[Box], NDArray[np.uint8]], channels: int) -> Callable[[Box], NDArray[np.uint8]]:
    """Function that reads a large box in blocks."""

    def assembled(box: Box) -> NDArray[np.uint8]:
        out = np.empty((box.height, box.width, channels), dtype=np.uint8)
        for part in blocks(box.height, box.width, _CONVERTED_SIDE):
            out[part.slices] = read(part.shift(box.y0, box.x0))
        return out

    return assembled


def _noted(source: Source, reason: str) -> Source:
    return dataclasses.replace(source, notes=(*source.notes, f"pixels kept in memory, not on disk: {reason}"))


def _root() -> Path:
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).absolute() if given else platformdirs.user_cache_path("coarse2fine", appauthor=False)


def _limit() -> int:
    given = os.environ.get(BYTES_VARIABLE)
    if given is None:
        return DEFAULT_BYTES
    if not given.isdecimal():
        raise ValueError(f"expected {BYTES_VARIABLE} to be a whole number of bytes, got {given!r}")
    return int(given)


def _measure(folder: Path) -> tuple[int, int]:
    """Number and bytes of the files in the parts of an entry."""
    sizes = [
        os.stat(os.path.join(place, name)).st_size  # noqa: PTH116, PTH118 (entries have thousands of files)
        for part in (_PIXELS, _MASK)
        for place, _, names in os.walk(folder / part)
        for name in names
    ]
    return len(sizes), sum(sizes)


def _tidy(root: Path, limit: int) -> None:
    """Remove stale unfinished entries, then the least recently used ones, down to the bound."""
    now = time.time()
    entries = []
    for folder in root.iterdir():
        if folder.name.endswith(_SCRATCH):
            if now - _changed(folder) > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        elif (folder / _PIXELS).is_dir():
            entries.append((_changed(folder / _STAMP), _measure(folder)[1], folder))
    total = sum(size for _, size, _ in entries)
    for used, size, folder in sorted(entries):
        if total <= limit or now - used < KEEP_SECONDS:
            return
        _remove(folder)
        total -= size


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(folder: Path) -> None:
    """Remove an entry if possible; it disappears at once, not file by file."""
    doomed = sibling(folder, _SCRATCH)
    with contextlib.suppress(OSError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
