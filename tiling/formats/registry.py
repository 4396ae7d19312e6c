"""Formats of image files: the built-in ones, and those of other packages.

Libraries that a format needs are imported when one of its files is opened.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..stats import ReadStats
from ..storage.byte_files import ByteFile, Keys, LocalFile, LocalKeys, RemoteFile, RemoteKeys
from ..storage.redact import redact
from ..storage.regular import open_regular
from ..storage.remote import Remote

if TYPE_CHECKING:
    from ..source import Source

Reader: TypeAlias = Literal["tensorstore"]

GROUP = "coarse2fine.formats"
"""Entry points under which installed packages offer a `Format` each."""

HEAD_BYTES = 256
"""First bytes of a file that formats are given to recognise it."""

PICTURE_BYTES = 2**30
"""Most bytes of a picture at an address, which is read whole."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Location:
    """Path or address of an image, and options that a format may use.

    Parameters
    ----------
    path : Path, optional
        File or folder on this machine; None for an address.
    url : str, optional
        Address; None for a path.
    value_range : (float, float), optional
        Stored values that become black and white, if the caller gave them.
    reader : "tensorstore", optional
        Library that reads the chunks of a local Zarr.
    stats : ReadStats
        Counters of reads.
    """

    path: Path | None = None
    url: str | None = None
    value_range: tuple[float, float] | None = None
    reader: Reader | None = None
    stats: ReadStats = field(default_factory=ReadStats)

    @property
    def label(self) -> str:
        """Path, or address without its secrets, for messages."""
        return str(self.path) if self.url is None else redact(self.url)

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.path is not None and self.path.is_dir()

    @cached_property
    def remote(self) -> Remote:
        """Connection to the address."""
        assert self.url is not None
        return Remote(self.url, self.stats)

    @cached_property
    def head(self) -> bytes:
        """First `HEAD_BYTES` bytes of the file; empty for a folder."""
        if self.path is None:
            return self.remote.fetch("", 0, HEAD_BYTES)
        if self.is_folder:
            return b""
        with open_regular(self.path) as file:
            head = file.read(HEAD_BYTES)
        self.stats.fetch(len(head))
        return head

    def file(self) -> ByteFile:
        """The file, open for reading parts of it; the caller closes it."""
        return RemoteFile(self.remote) if self.path is None else LocalFile(self.path, self.stats)

    def keys(self) -> Keys:
        """Values under keys: files below the folder, or objects whose addresses begin with this one."""
        return RemoteKeys(self.remote) if self.path is None else LocalKeys(self.path, self.stats)


@dataclass(frozen=True)
class Format:
    """A format of image files.

    Parameters
    ----------
    name : str
        A format registered later under the same name replaces this one.
    matches : callable
        Returns whether a file is of this format, given its first 256 bytes (fewer for a shorter file, none for a
        folder) and its `Location`. Called for every image that is opened, so it should be quick.
    open : callable
        Returns the `Source` at a `Location`, or None if the content turns out to be of another format, so that the
        next one is tried. Raises `ImageError` for a damaged file. Import heavy libraries here.
    suffixes : tuple of str
        Name endings, in lower case, of the files that are taken from a folder of images.

    Raises
    ------
    TypeError
        If `matches` or `open` cannot be called, or `suffixes` is not a tuple of texts.
    """

    name: str
    matches: Callable[[bytes, Location], bool]
    open: Callable[[Location], Source | None]
    suffixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (callable(self.matches) and callable(self.open)):
            raise TypeError(
                f"the format {self.name} needs two functions, matches(head, location) and open(location), got "
                f"{self.matches!r} and {self.open!r}"
            )
        if not isinstance(self.suffixes, tuple) or not all(isinstance(suffix, str) for suffix in self.suffixes):
            raise TypeError(
                f"the format {self.name} needs a tuple of suffixes such as ('.npy',), got {self.suffixes!r}"
            )


_registered: dict[str, Format] = {}


def register_format(fmt: Format) -> None:
    """Add a format of image files, for this process.

    It is tried before those registered earlier, before those of installed packages (entry points of the group
    ``coarse2fine.formats``, each a `Format`, in the order of their names), and before the built-in ones. Worker
    processes know only the built-in formats and those of installed packages.

    Parameters
    ----------
    fmt : Format

    Raises
    ------
    TypeError
        If it is not a `Format`.
    """
    if not isinstance(fmt, Format):
        raise TypeError(f"expected a Format, got a {type(fmt).__name__}")
    _registered.pop(fmt.name, None)
    _registered[fmt.name] = fmt


def known_formats() -> tuple[Format, ...]:
    """All formats in the order in which they are tried; see `register_format`."""
    return (*reversed(_registered.values()), *_installed(), *_BUILT_IN)


@functools.cache
def _installed() -> tuple[Format, ...]:
    """Formats of installed packages; one that cannot be loaded is left out with a warning."""
    from importlib.metadata import entry_points  # noqa: PLC0415 (slow)

    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            fmt = point.load()
        except Exception as error:  # noqa: BLE001 (other people's code)
            _LOG.warning("the format %s (%s) cannot be loaded: %s", point.name, point.value, error)
            continue
        if isinstance(fmt, Format):
            found.append(fmt)
        else:
            _LOG.warning("the format %s (%s) is not a Format, but a %s", point.name, point.value, type(fmt).__name__)
    return tuple(found)


def _is_tiff(head: bytes, _: Location) -> bool:
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _open_tiff(location: Location) -> Source:
    from .tiff import open_tiff  # noqa: PLC0415

    return open_tiff(location.file(), location.label)


def _is_slide(head: bytes, location: Location) -> bool:
    from .slide import is_slide  # noqa: PLC0415

    return location.path is not None and is_slide(location.path, head)


def _open_slide(location: Location) -> Source:
    from .slide import open_slide  # noqa: PLC0415

    assert location.path is not None
    return open_slide(location.path)


def _is_raster(head: bytes, _: Location) -> bool:
    from .raster_header import kind_of  # noqa: PLC0415

    return kind_of(head) is not None


def _open_raster(location: Location) -> Source:
    from .raster import open_raster, open_raster_file  # noqa: PLC0415
    from .raster_header import kind_of  # noqa: PLC0415

    kind = kind_of(location.head)
    assert kind is not None
    if location.path is None:
        return open_raster(location.remote.fetch("", most=PICTURE_BYTES), kind, location.label)
    return open_raster_file(location.path, kind, location.stats, location.value_range)


def _may_be_zarr(_: bytes, location: Location) -> bool:
    return location.is_folder or location.url is not None


def _open_zarr(location: Location) -> Source | None:
    from .ome_zarr import open_zarr  # noqa: PLC0415

    return open_zarr(location.keys(), location.label, folder=None if location.reader is None else location.label)


_BUILT_IN = (
    Format("tiff", _is_tiff, _open_tiff, (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".qptiff", ".bif")),
    Format("slide", _is_slide, _open_slide, (".mrxs", ".dcm")),
    Format("raster", _is_raster, _open_raster, (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2")),
    Format("zarr", _may_be_zarr, _open_zarr, (".zarr",)),
)
