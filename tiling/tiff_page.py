"""Slices of one TIFF page, decoded segment by segment.

The general way into a TIFF is tifffile's Zarr store; for a page of its own, which whole-slide images and
scenes are, decoding its segments directly costs several times less per tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Box, ceil_div


class PageArray:
    """An array-like view of a page; safe to slice from several threads.

    Parameters
    ----------
    page : tifffile.TiffPage
        With axes "YX", "YXS" or "SYX".
    """

    def __init__(self, page: Any) -> None:
        self.shape: tuple[int, ...] = tuple(page.shape)
        self.dtype: np.dtype[Any] = np.dtype(page.dtype)
        self._page = page
        self._file = page.parent.filehandle
        self._file.set_lock(True)
        self._height, self._width = page.imagelength, page.imagewidth
        tiled = page.is_tiled
        self.chunk: tuple[int, int] = (
            (page.tilelength, page.tilewidth) if tiled else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        )
        self._rows = ceil_div(self._height, self.chunk[0])
        self._columns = ceil_div(self._width, self.chunk[1])
        self._planar = page.axes == "SYX"
        self._samples = page.samplesperpixel
        self._decode = page.decode

    def __getitem__(self, key: tuple[Any, ...], /) -> NDArray[Any]:
        """Decode the part under slices, one for each axis of the page."""
        if len(self.shape) == 2:
            rows, columns, samples = (*key, slice(0, 1))
        elif self._planar:
            samples, rows, columns = key
        else:
            rows, columns, samples = key
        wanted = range(*samples.indices(self._samples))
        box = Box(*(part[i] for i in (0, 1) for part in (_ends(rows, self._height), _ends(columns, self._width))))
        out = np.empty((box.height, box.width, len(wanted)), dtype=self.dtype)
        if self._planar:
            for index, sample in enumerate(wanted):
                self._fill(out[..., index : index + 1], box, sample, slice(0, 1))
            return np.moveaxis(out, -1, 0)
        self._fill(out, box, 0, slice(wanted.start, wanted.stop))
        return out[..., 0] if len(self.shape) == 2 else out

    def _fill(self, out: NDArray[Any], box: Box, plane: int, samples: slice) -> None:
        step_y, step_x = self.chunk
        for row in range(box.y0 // step_y, ceil_div(box.y1, step_y)):
            for column in range(box.x0 // step_x, ceil_div(box.x1, step_x)):
                y, x = row * step_y, column * step_x
                part = Box(y, x, y + step_y, x + step_x).intersect(box)
                assert part is not None
                segment = self._segment((plane * self._rows + row) * self._columns + column)
                into = out[part.y0 - box.y0 : part.y1 - box.y0, part.x0 - box.x0 : part.x1 - box.x0]
                if segment is None:
                    into[:] = self._page.nodata
                    continue
                into[:] = segment[part.y0 - y : part.y1 - y, part.x0 - x : part.x1 - x, samples]

    def _segment(self, index: int) -> NDArray[Any] | None:
        """One decoded strip or tile (h, w, samples); None where the file is sparse."""
        page = self._page
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        with self._file.lock:
            self._file.seek(offset)
            data = self._file.read(count)
        if len(data) < count:
            raise EOFError(f"the file ends after {len(data)} of {count} bytes of segment {index}")
        decoded, _, shape = self._decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        if decoded is None:
            return None
        segment: NDArray[Any] = np.asarray(decoded).reshape(shape)[0]
        return segment


def _ends(part: slice, length: int) -> tuple[int, int]:
    begin, end, _ = part.indices(length)
    return begin, end
