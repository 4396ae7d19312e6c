"""Slices of TIFF pages, decoded segment (strip or tile) by segment.

Most images are single pages or stacks of pages: reading a segment's bytes at its offset and decoding them takes
several times less per tile than tifffile's Zarr store, which reads the rest. Uncompressed pages are read row by row,
however large their strips are.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import Box, ceil_div
from ..quiet import quiet
from ..storage.byte_files import ByteFile
from .tiff_limits import check_claim
from .tiff_tags import nodata_of


class PageArray:
    """An array-like view of a page; safe to slice from several threads.

    Parameters
    ----------
    page : tifffile.TiffPage or TiffFrame
        Page with axes "YX", "YXS" or "SYX".
    file : ByteFile
        File that holds the page.
    """

    def __init__(self, page: Any, file: ByteFile) -> None:
        key = page.keyframe
        self.shape: tuple[int, ...] = tuple(key.shape)
        self.dtype: np.dtype[Any] = np.dtype(key.dtype)
        self._file = file
        self._offsets, self._counts = page.dataoffsets, page.databytecounts
        self._height, self._width = key.imagelength, key.imagewidth
        self.chunk: tuple[int, int] = page_chunk(key)
        self._rows = ceil_div(self._height, self.chunk[0])
        self._columns = ceil_div(self._width, self.chunk[1])
        self._grid: NDArray[np.bool_] | None = None
        self._planar = key.axes == "SYX"
        self._samples = key.samplesperpixel
        nodata = nodata_of(key)
        self._fill = 0 if nodata is None else nodata
        self.leaves_out = 0 in self._offsets or 0 in self._counts
        self._segment_bytes = math.prod(self.chunk) * (1 if self._planar else self._samples) * self.dtype.itemsize
        # Segments of NDPI have no header of their own.
        self._compression = int(key.compression) if key.jpegheader is None else None
        self._decode = key.decode
        self._tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}

    def __getitem__(self, key: tuple[Any, ...], /) -> NDArray[Any]:
        """Decode the part under slices, one for each axis of the page; a view if it lies in one segment."""
        if len(self.shape) == 2:
            rows, columns, samples = (*key, slice(0, 1))
        elif self._planar:
            samples, rows, columns = key
        else:
            rows, columns, samples = key
        wanted = range(*samples.indices(self._samples))
        box = Box(*(part[i] for i in (0, 1) for part in (_ends(rows, self._height), _ends(columns, self._width))))
        if self._planar:
            return np.stack([self._plane(box, sample, slice(0, 1))[..., 0] for sample in wanted])
        pixels = self._plane(box, 0, slice(wanted.start, wanted.stop))
        return pixels[..., 0] if len(self.shape) == 2 else pixels

    def absent(self, box: Box) -> NDArray[np.bool_]:
        """Pixels (h, w) of a box inside the page that are stored in no plane."""
        missing = self._missing(box)
        rows, columns = (
            np.arange(begin, end) // step - begin // step
            for begin, end, step in ((box.y0, box.y1, self.chunk[0]), (box.x0, box.x1, self.chunk[1]))
        )
        return missing[rows[:, None], columns]

    def is_blank(self, box: Box) -> bool:
        """Whether nothing is stored under a box inside the page."""
        return bool(self._missing(box).all())

    def _missing(self, box: Box) -> NDArray[np.bool_]:
        """Segments under a box that are stored in no plane."""
        if self._grid is None:
            places = np.minimum(np.asarray(self._offsets, np.uint64), np.asarray(self._counts, np.uint64))
            planes = self._samples if self._planar else 1
            segments = planes * self._rows * self._columns
            self._grid = (places[:segments].reshape(planes, self._rows, self._columns) == 0).all(axis=0)
        (step_y, step_x), grid = self.chunk, self._grid
        return grid[box.y0 // step_y : ceil_div(box.y1, step_y), box.x0 // step_x : ceil_div(box.x1, step_x)]

    def count_missing(self) -> tuple[int, int]:
        """Number of segments that are not stored, and of all."""
        missing = self._missing(Box(0, 0, self._height, self._width))
        return int(missing.sum()), missing.size

    def _plane(self, box: Box, plane: int, samples: slice) -> NDArray[Any]:
        step_y, step_x = self.chunk
        rows = range(box.y0 // step_y, ceil_div(box.y1, step_y))
        columns = range(box.x0 // step_x, ceil_div(box.x1, step_x))
        if len(rows) == len(columns) == 1:
            return self._part(box, plane, rows[0], columns[0])[..., samples]
        out = np.empty((box.height, box.width, samples.stop - samples.start), dtype=self.dtype)
        for row, column in itertools.product(rows, columns):
            y, x = row * step_y, column * step_x
            inside = Box(y, x, y + step_y, x + step_x).intersect(box)
            assert inside is not None
            into = inside.shift(-box.y0, -box.x0)
            out[into.slices] = self._part(inside, plane, row, column)[..., samples]
        return out

    def _part(self, box: Box, plane: int, row: int, column: int) -> NDArray[Any]:
        """Part of a segment, all samples; the file's no-data value if the segment is not stored."""
        index = (plane * self._rows + row) * self._columns + column
        segment = self._segment(index)
        if segment is None:
            samples = 1 if self._planar else self._samples
            return np.full((box.height, box.width, samples), self._fill, dtype=self.dtype)
        y, x = row * self.chunk[0], column * self.chunk[1]
        if segment.shape[0] < box.y1 - y or segment.shape[1] < box.x1 - x:
            raise ValueError(f"segment {index} holds {segment.shape[0]} x {segment.shape[1]} pixels, fewer than stated")
        return segment[box.y0 - y : box.y1 - y, box.x0 - x : box.x1 - x]

    def _segment(self, index: int) -> NDArray[Any] | None:
        """One decoded strip or tile (h, w, samples), possibly clipped to the image; None if it is not stored."""
        offset, count = self._offsets[index], self._counts[index]
        if not offset or not count:
            return None
        if offset + count > self._file.size:  # before memory is taken for it
            raise EOFError(f"segment {index} is said to end at byte {offset + count} of {self._file.size}")
        data = self._file.read_at(offset, count)
        if len(data) < count:
            raise EOFError(f"the file ends after {len(data)} of {count} bytes of segment {index}")
        if self._compression is not None:
            self._check_claim(data, index)
        with quiet():
            segment: NDArray[Any] = np.asarray(self._decode(data, index, **self._tables)[0])[0]
        if segment.dtype == self.dtype:
            return segment
        if self.dtype != np.bool_ and not np.can_cast(segment.dtype, self.dtype):
            raise ValueError(f"segment {index} holds {segment.dtype} samples, expected {self.dtype}")
        return segment.astype(self.dtype)

    def _check_claim(self, data: bytes, index: int) -> None:
        """Refuse encoded data that claim more pixels than the segment, or another width, which would shift its rows."""
        assert self._compression is not None
        claim = check_claim(data, self._compression, self._segment_bytes)
        left = self._width - index % self._columns * self.chunk[1]
        if claim is not None and claim.width not in (self.chunk[1], left):
            raise ValueError(f"segment {index} is {claim.width} pixels wide, the page states {self.chunk[1]}")


class StackArray:
    """Equal pages that make up one level, such as channels stored apart; each is opened when it is first read.

    Parameters
    ----------
    series : tifffile.TiffPageSeries
        Its shape is `leading` followed by the page's shape.
    leading : tuple of int
        Sizes of the axes that count pages.
    file : ByteFile
        File that holds the pages.
    """

    def __init__(self, series: Any, leading: tuple[int, ...], file: ByteFile) -> None:
        self.shape: tuple[int, ...] = tuple(series.shape)
        self.dtype: np.dtype[Any] = np.dtype(series.dtype)
        self.chunk = page_chunk(series.keyframe)
        self._series, self._leading, self._file = series, leading, file
        self._pages: dict[int, PageArray] = {}
        self._lock = threading.Lock()

    def __getitem__(self, key: tuple[Any, ...], /) -> NDArray[Any]:
        """Decode the part under indices or slices of the leading axes and slices of the page's."""
        lead, inner = key[: len(self._leading)], key[len(self._leading) :]
        return _stacked(lead, self._leading, lambda index: self._page(index)[inner])

    @property
    def leaves_out(self) -> bool:
        """Whether the first page leaves parts out; the others are taken to be alike."""
        return self._page(0).leaves_out

    def absent(self, box: Box) -> NDArray[np.bool_]:
        """See `PageArray`."""
        return self._page(0).absent(box)

    def is_blank(self, box: Box) -> bool:
        """See `PageArray`."""
        return self._page(0).is_blank(box)

    def count_missing(self) -> tuple[int, int]:
        """See `PageArray`."""
        return self._page(0).count_missing()

    def _page(self, index: int) -> PageArray:
        with self._lock:
            if index not in self._pages:
                with quiet():
                    self._pages[index] = PageArray(self._series.pages[index], self._file)
            return self._pages[index]


class RawArray:
    """A level stored uncompressed, as one run of samples; only the requested rows are read.

    Parameters
    ----------
    series : tifffile.TiffPageSeries
        Series with an offset to its data.
    file : ByteFile
        File that holds the data.
    """

    def __init__(self, series: Any, file: ByteFile) -> None:
        self.shape: tuple[int, ...] = tuple(series.shape)
        self.dtype: np.dtype[Any] = np.dtype(series.dtype)
        self._stored_dtype = self.dtype.newbyteorder(series.keyframe.parent.byteorder)
        self._file, self._offset = file, int(series.dataoffset)
        self._y = series.axes.index("Y")
        self._row = self.shape[self._y + 1 :]
        self.chunk = raw_chunk(series)

    def __getitem__(self, key: tuple[Any, ...], /) -> NDArray[Any]:
        """Read the part under indices or slices of the axes before rows, and slices of the others."""
        lead, inner = key[: self._y], (slice(None), *key[self._y + 1 :])
        begin, end = _ends(key[self._y], self.shape[self._y])
        return _stacked(lead, self.shape[: self._y], lambda index: self._rows(index, begin, end)[inner])

    def _rows(self, plane: int, begin: int, end: int) -> NDArray[Any]:
        row_bytes = math.prod(self._row) * self.dtype.itemsize
        count = (end - begin) * row_bytes
        data = self._file.read_at(self._offset + (plane * self.shape[self._y] + begin) * row_bytes, count)
        if len(data) < count:
            raise EOFError(f"the file ends after {len(data)} of {count} bytes of rows {begin} to {end}")
        stored = np.frombuffer(data, dtype=self._stored_dtype).reshape(end - begin, *self._row)
        return stored.astype(self.dtype, copy=False)


def raw_chunk(series: Any) -> tuple[int, int]:
    """Height and width of the unit in which a `RawArray` is read."""
    return 1, series.shape[series.axes.index("X")]


def page_chunk(page: Any) -> tuple[int, int]:
    """Height and width of the segments of a page."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _ends(part: slice, length: int) -> tuple[int, int]:
    begin, end, _ = part.indices(length)
    return begin, end


def _stacked(key: tuple[int | slice, ...], shape: tuple[int, ...], read: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
    """Planes under indices or slices of the leading axes, each read by its number."""
    choices = [[k] if isinstance(k, int) else range(n)[k] for k, n in zip(key, shape, strict=True)]
    planes = [read(int(np.ravel_multi_index(place, shape)) if place else 0) for place in itertools.product(*choices)]
    kept = [len(choice) for k, choice in zip(key, choices, strict=True) if not isinstance(k, int)]
    return np.stack(planes).reshape(*kept, *planes[0].shape) if kept else planes[0]
