"""Ways to read boxes of one file: ours, the bare decoder, and the readers that people use now."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import imagecodecs
import numpy as np
import tifffile
import zarr

from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.opening import open_image

Read: TypeAlias = Callable[[Box], Any]
Opener: TypeAlias = Callable[[int], AbstractContextManager[Read]]
"""Opens a file to be read from so many threads."""
Cell: TypeAlias = tuple[int, int]
"""Row and column of a chunk."""

METHODS = {
    "ours": "open_image, one Image for all threads, Image.read: (h, w, 3) uint8",
    "limit": "the codec alone (imagecodecs) on the chunks that a read touches, from bytes in memory; nothing is kept",
    "tifffile": "zarr.open(page.aszarr(maxworkers=threads)), one slice a read",
    "zarr": "zarr-python, one slice a read; chunk-wise concurrency 1 with one thread, else its default",
    "openslide": "read_region; its RGBA is not converted",
    "tensorstore": "one request a read, its cache off (on, it was slower), its pools limited to the threads",
}
_JPEG, _JPEG2000 = 7, (33003, 33005, 34712)


@dataclass(frozen=True)
class Subject:
    """A file under test.

    Parameters
    ----------
    name : str
        Part of the figures' names.
    title : str
        What it is.
    shape, chunk : tuple of int
        Height and width in pixels, of the full resolution and of its chunks.
    openers : mapping
        By method, ours first; each file is opened anew for each run.
    load : callable
        Gives the compressed bytes of chunks.
    decode : callable, optional
        The bare decoder of such bytes; None for codecs that are not compared.
    """

    name: str
    title: str
    shape: tuple[int, int]
    chunk: tuple[int, int]
    openers: Mapping[str, Opener]
    load: Callable[[Sequence[Cell]], dict[Cell, bytes]]
    decode: Callable[[bytes], Any] | None

    def cells(self, box: Box) -> list[Cell]:
        """Chunks that a box touches."""
        (step_y, step_x) = self.chunk
        rows = range(box.y0 // step_y, ceil_div(box.y1, step_y))
        columns = range(box.x0 // step_x, ceil_div(box.x1, step_x))
        return [(row, column) for row in rows for column in columns]

    def limit(self, stored: Mapping[Cell, bytes]) -> Opener:
        """The bare decoder, on bytes that lie in memory."""

        def read(box: Box) -> None:
            assert self.decode is not None
            for cell in self.cells(box):
                self.decode(stored[cell])

        return lambda _: nullcontext(read)


def missing_extras() -> list[str]:
    """Names of optional readers that are not installed here."""
    return [name for name in ("openslide", "tensorstore") if _optional(name) is None]


def tiff_subject(name: str, title: str, path: Path) -> Subject:
    """Full resolution of a tiled TIFF: its first page.

    Raises
    ------
    ImageError
        If we cannot open it ourselves.
    ValueError
        If the page is not tiled.
    """
    open_image(path).close()
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if not page.is_tiled:
            raise ValueError(f"{path}: expected a tiled TIFF, got strips; convert it, or leave it out")
        openers: dict[str, Opener] = {"ours": partial(_ours, path), "tifffile": partial(_tifffile, path)}
        openslide = _optional("openslide")
        if openslide is not None and openslide.OpenSlide.detect_format(path):
            openers["openslide"] = partial(_openslide, openslide, path)
        return Subject(
            name,
            title,
            (page.imagelength, page.imagewidth),
            (page.tilelength, page.tilewidth),
            openers,
            partial(_tiff_bytes, path),
            _tiff_decoder(page),
        )


def zarr_subject(name: str, title: str, path: Path, level: str = "") -> Subject:
    """A Zarr array, or one level of an OME-Zarr image, compressed by zstd alone."""
    place = path / level if level else path
    array = zarr.open_array(place, mode="r")
    planes = array.shape[0] <= 4
    y, x = (1, 2) if planes else (0, 1)
    openers: dict[str, Opener] = {"ours": partial(_ours, path), "zarr": partial(_zarr, place, planes)}
    tensorstore = _optional("tensorstore")
    if tensorstore is not None:
        driver = "zarr" if array.metadata.zarr_format == 2 else "zarr3"
        openers["tensorstore"] = partial(_tensorstore, tensorstore, driver, place, planes)
    return Subject(
        name,
        title,
        (array.shape[y], array.shape[x]),
        (array.chunks[y], array.chunks[x]),
        openers,
        partial(_zarr_bytes, place),
        imagecodecs.zstd_decode,
    )


def _optional(name: str) -> ModuleType | None:
    """A package of an extra; None where it, or the library it needs, is not installed."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


@contextmanager
def _ours(path: Path, _threads: int) -> Iterator[Read]:
    with open_image(path) as image:
        yield image.read


@contextmanager
def _tifffile(path: Path, threads: int) -> Iterator[Read]:
    with tifffile.TiffFile(path) as file:
        array: Any = zarr.open_array(store=file.pages[0].aszarr(maxworkers=threads), mode="r")
        yield lambda box: array[box.y0 : box.y1, box.x0 : box.x1]


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
    rows, columns = slice(box.y0, box.y1), slice(box.x0, box.x1)
    return array[:, rows, columns] if planes else array[rows, columns]


def _tiff_bytes(path: Path, cells: Sequence[Cell]) -> dict[Cell, bytes]:
    stored = {}
    with tifffile.TiffFile(path) as file:
        page, stream = file.pages[0], file.filehandle
        columns = ceil_div(page.imagewidth, page.tilewidth)
        for row, column in cells:
            index = row * columns + column
            stream.seek(page.dataoffsets[index])
            stored[row, column] = stream.read(page.databytecounts[index])
    return stored


def _tiff_decoder(page: Any) -> Callable[[bytes], Any] | None:
    if page.compression == _JPEG:
        # Aperio stores RGB where a JPEG without a header of its own would be taken for YCbCr.
        colorspace = "rgb" if page.photometric == 2 and not page.is_jfif else None
        return partial(imagecodecs.jpeg8_decode, tables=page.jpegtables, colorspace=colorspace, outcolorspace="rgb")
    return imagecodecs.jpeg2k_decode if page.compression in _JPEG2000 else None


def _zarr_bytes(path: Path, cells: Sequence[Cell]) -> dict[Cell, bytes]:
    array: Any = zarr.open_array(path, mode="r")
    if array.metadata.zarr_format == 2:
        return {(row, column): (path / f"{row}.{column}.0").read_bytes() for row, column in cells}
    if array.shards is None:
        return {(row, column): (path / "c" / f"{row}" / f"{column}" / "0").read_bytes() for row, column in cells}
    inside = array.shards[1] // array.chunks[1], array.shards[2] // array.chunks[2]
    return {cell: _from_shard(path / "c" / "0", cell, inside) for cell in cells}


def _from_shard(path: Path, cell: Cell, inside: tuple[int, int]) -> bytes:
    """One chunk of a shard: an index of (offset, size) and a checksum of 4 bytes end the file."""
    (row, in_row), (column, in_column) = (divmod(i, n) for i, n in zip(cell, inside, strict=True))
    with (path / f"{row}" / f"{column}").open("rb") as stream:
        stream.seek(-16 * math.prod(inside) - 4, 2)
        index = np.frombuffer(stream.read(16 * math.prod(inside)), "<u8").reshape(*inside, 2)
        offset, size = (int(v) for v in index[in_row, in_column])
        stream.seek(offset)
        return stream.read(size)
