"""Ways to read boxes of one file: coarse2fine, the bare decoder, and other common readers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import imagecodecs
import numpy as np
import tifffile
import zarr

from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.opening import open_image

Read: TypeAlias = Callable[[Box], Any]
Opener: TypeAlias = Callable[[int], AbstractContextManager[Read]]
"""Opens a file for reading from a number of threads."""

METHODS = {
    "ours": "open_image, one Image for all threads, Image.read: (h, w, 3) uint8",
    "limit": "the codec alone (imagecodecs) on the chunks that a read touches, from bytes in memory, without a cache",
    "tifffile": "zarr.open(page.aszarr(maxworkers=threads)), one slice a read",
    "zarr": "zarr-python, one slice a read; chunk-wise concurrency 1 with one thread, else its default",
    "openslide": "read_region; its RGBA is not converted",
    "tensorstore": "one request a read, its cache off (on, it was slower), its pools limited to the threads",
}
_JPEG, _JPEG2000 = 7, (33003, 33005, 34712)
_ZSTD_LEVEL = 3


class Subject(NamedTuple):
    """A file under test.

    Parameters
    ----------
    name, title : str
        Part of the figures' names, and description.
    shape, chunk : tuple of int
        Height and width in pixels, of the full resolution and of its chunks.
    openers : mapping
        By method, ours first; each file is opened anew for each turn.
    """

    name: str
    title: str
    shape: tuple[int, int]
    chunk: tuple[int, int]
    openers: dict[str, Opener]


def touched(box: Box, shape: tuple[int, int], chunk: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of the chunks that a box touches in an image of that height and width."""
    rows = range(max(0, box.y0) // chunk[0], ceil_div(min(box.y1, shape[0]), chunk[0]))
    columns = range(max(0, box.x0) // chunk[1], ceil_div(min(box.x1, shape[1]), chunk[1]))
    return [(row, column) for row in rows for column in columns]


def missing_extras() -> list[str]:
    """Names of optional readers that are not installed here."""
    return [name for name in ("openslide", "tensorstore") if _optional(name) is None]


def tiff_subject(name: str, title: str, path: Path) -> Subject:
    """Full resolution of a tiled TIFF, its first page; ValueError if it is not tiled, or we cannot open it."""
    open_image(path).close()
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if not page.is_tiled:
            raise ValueError(f"{path}: expected a tiled TIFF, got strips; convert it, or leave it out")
        openers: dict[str, Opener] = {"ours": partial(_ours, path), "tifffile": partial(_tifffile, path)}
        openslide = _optional("openslide")
        if openslide is not None and openslide.OpenSlide.detect_format(path):
            openers["openslide"] = partial(_openslide, openslide, path)
        shape, chunk = (page.imagelength, page.imagewidth), (page.tilelength, page.tilewidth)
        subject, decode = Subject(name, title, shape, chunk, openers), _tiff_decoder(page)
        offsets, sizes, columns = page.dataoffsets, page.databytecounts, ceil_div(shape[1], chunk[1])

    def stored(row: int, column: int) -> bytes:
        with path.open("rb") as stream:
            stream.seek(offsets[row * columns + column])
            return stream.read(sizes[row * columns + column])

    if decode is not None:
        openers["limit"] = _limit(subject, stored, decode)
    return subject


def zarr_subject(name: str, title: str, path: Path, level: str = "") -> Subject:
    """A Zarr array, or one level of an OME-Zarr image, compressed by zstd alone."""
    place = path / level if level else path
    array: Any = zarr.open_array(place, mode="r")
    planes = array.shape[0] <= 4
    y, x = (1, 2) if planes else (0, 1)
    openers: dict[str, Opener] = {"ours": partial(_ours, path), "zarr": partial(_zarr, place, planes)}
    tensorstore = _optional("tensorstore")
    if tensorstore is not None:
        driver = "zarr" if array.metadata.zarr_format == 2 else "zarr3"
        openers["tensorstore"] = partial(_tensorstore, tensorstore, driver, place, planes)
    subject = Subject(name, title, (array.shape[y], array.shape[x]), (array.chunks[y], array.chunks[x]), openers)

    def encoded(row: int, column: int) -> bytes:
        """The chunk as it is stored, with its pixels in stored order."""
        (height, width), whole = subject.chunk, Box(0, 0, *subject.chunk)
        pixels = _slice(array, planes, whole.shift(row * height, column * width))
        return bytes(imagecodecs.zstd_encode(np.ascontiguousarray(pixels).tobytes(), _ZSTD_LEVEL))

    openers["limit"] = _limit(subject, encoded, imagecodecs.zstd_decode)
    return subject


def _optional(name: str) -> ModuleType | None:
    """A package of an extra; None if it, or the library it needs, is not installed."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def _limit(subject: Subject, load: Callable[[int, int], bytes], decode: Callable[[bytes], Any]) -> Opener:
    """The bare decoder, on bytes that are kept in memory once read."""
    stored: dict[tuple[int, int], bytes] = {}

    def read(box: Box) -> list[Any]:
        decoded = []
        for cell in touched(box, subject.shape, subject.chunk):
            if cell not in stored:
                stored[cell] = load(*cell)
            decoded.append(decode(stored[cell]))
        return decoded

    return lambda _: nullcontext(read)


@contextmanager
def _ours(path: Path, _threads: int) -> Iterator[Read]:
    with open_image(path) as image:
        yield image.read


@contextmanager
def _tifffile(path: Path, threads: int) -> Iterator[Read]:
    with tifffile.TiffFile(path) as file:
        array: Any = zarr.open_array(store=file.pages[0].aszarr(maxworkers=threads), mode="r")
        yield lambda box: array[box.slices]


@contextmanager
def _openslide(openslide: ModuleType, path: Path, _threads: int) -> Iterator[Read]:
    with openslide.OpenSlide(path) as slide:
        yield lambda box: np.asarray(slide.read_region((box.x0, box.y0), 0, (box.width, box.height)))


@contextmanager
def _zarr(path: Path, planes: bool, threads: int) -> Iterator[Read]:
    array: Any = zarr.open_array(path, mode="r")
    with zarr.config.set({"async.concurrency": 1}) if threads == 1 else nullcontext():
        yield partial(_slice, array, planes)


@contextmanager
def _tensorstore(tensorstore: ModuleType, driver: str, path: Path, planes: bool, threads: int) -> Iterator[Read]:
    limit = {"limit": threads}
    context = tensorstore.Context(
        {"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": limit, "file_io_concurrency": limit}
    )
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": path.as_posix()}}
    array = tensorstore.open(spec, context=context, open=True, read=True).result()
    yield lambda box: _slice(array, planes, box).read().result()


def _slice(array: Any, planes: bool, box: Box) -> Any:
    return array[:, *box.slices] if planes else array[box.slices]


def _tiff_decoder(page: Any) -> Callable[[bytes], Any] | None:
    """None for codecs that are not compared."""
    if page.compression == _JPEG:
        # Aperio stores RGB where a JPEG without a header of its own would be taken for YCbCr.
        colorspace = "rgb" if page.photometric == 2 and not page.is_jfif else None
        return partial(imagecodecs.jpeg8_decode, tables=page.jpegtables, colorspace=colorspace, outcolorspace="rgb")
    return imagecodecs.jpeg2k_decode if page.compression in _JPEG2000 else None
