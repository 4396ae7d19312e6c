"""A sharded pyramid: finds missing shards and writes each, from an image or from the next finer level."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ..formats.zarr_array import ChunkedArray, plan_of
from ..geometry import Box, ceil_div
from ..grid import Tile, TileGrid, blocks
from ..stats import ReadStats
from ..storage.byte_files import LocalKeys
from ..writing.pyramid import ZSTD_LEVEL, BlockFunction, halve, level_sizes
from ..writing.shard import ShardWriter, is_whole

CHUNK = 512
"""Side of a chunk; even."""

SHARD = 4096
"""Side of a shard: a whole, even number of chunks."""

BAND_BYTES = 128 * 2**20
"""Most bytes of source pixels that a worker holds, apart from the decoder's own memory."""


class StoppedError(Exception):
    """Writing was stopped; the shard in progress was abandoned."""


@dataclass(frozen=True)
class ShardedLevel:
    """One level: a Zarr 3 array of (h, w) or (3, h, w) bytes in a folder, some of whose shards are there.

    Parameters
    ----------
    folder : Path
        Folder of the array and its metadata.
    array : ChunkedArray
        Reader of its shards.
    shards : TileGrid
        Division of the level's plane into shards.
    colour : bool
        Whether the array has three channels.
    """

    folder: Path
    array: ChunkedArray
    shards: TileGrid
    colour: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis of the array."""
        side = SHARD // CHUNK
        return (1, side, side) if self.colour else (side, side)

    def path(self, shard: Tile) -> Path:
        """File of a shard."""
        position = str(shard.row), str(shard.column)
        return self.folder.joinpath("c", "0", *position) if self.colour else self.folder.joinpath("c", *position)

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Stored (channels, h, w) pixels of a box inside the level."""
        return self.array[slice(0, 3), *box.slices] if self.colour else self.array[box.slices][None]

    def put(self, writer: ShardWriter, place: Box, chunk: NDArray[np.uint8]) -> None:
        """Encode a (channels, CHUNK, CHUNK) chunk that lies at `place` in its shard; a black one is left out."""
        if chunk.any():
            position = place.y0 // CHUNK, place.x0 // CHUNK
            data = imagecodecs.zstd_encode(chunk, level=ZSTD_LEVEL)  # type: ignore[arg-type]  # takes any buffer
            writer.put((0, *position) if self.colour else position, data)


class ShardedPyramid:
    """Shards of all levels, written whole, in any order in which finer levels come first.

    Parameters
    ----------
    folder : Path
        Zarr group with the empty arrays that `create_levels` made, in chunks of `CHUNK` and shards of `SHARD`.
    shape : (int, int, int)
        Height, width and channels (1 or 3) at full resolution.
    source_chunk : (int, int)
        Height and width of the unit that `read` decodes.
    read : callable
        Returns the (h, w, channels) pixels of a box of full-resolution pixels. Called from several threads.

    Attributes
    ----------
    levels : list of ShardedLevel
    stop : threading.Event
        Once it is set, shards that are being written are abandoned.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], source_chunk: tuple[int, int], read: BlockFunction
    ) -> None:
        height, width, channels = shape
        self.levels = [
            _open_level(folder / str(level), size, channels) for level, size in enumerate(level_sizes(height, width))
        ]
        self.stop = threading.Event()
        self._read = read
        # Source chunks wider than a shard, such as strips, are decoded once for several shards.
        self._band = min(SHARD, ceil_div(source_chunk[0], CHUNK) * CHUNK)
        affordable = BAND_BYTES // (self._band * SHARD * channels)
        self._together = max(1, min(ceil_div(source_chunk[1], SHARD), affordable))

    def missing(self, level: int) -> list[list[Tile]]:
        """Shards to write, row by row; each inner list is written together."""
        this = self.levels[level]
        together = self._together if level == 0 else 1
        groups: dict[tuple[int, int], list[Tile]] = {}
        for shard in this.shards:
            if not is_whole(this.path(shard), this.grid):
                groups.setdefault((shard.row, shard.column // together), []).append(shard)
        return list(groups.values())

    def write_first(self, shards: list[Tile]) -> None:
        """Write some shards of one row at full resolution, a band of pixel rows at a time.

        Raises
        ------
        StoppedError
            If `stop` is set; nothing is left of these shards.
        """
        level, boxes = self.levels[0], [shard.box for shard in shards]
        with ExitStack() as stack:
            writers = [stack.enter_context(ShardWriter(level.path(shard), level.grid)) for shard in shards]
            for y in range(boxes[0].y0, boxes[0].y1, self._band):
                band = Box(y, boxes[0].x0, min(y + self._band, boxes[0].y1), boxes[-1].x1)
                pixels = self._read(band)
                for writer, box in zip(writers, boxes, strict=True):
                    for piece in blocks(band.height, box.width, CHUNK):
                        self._go_on()
                        part = piece.shift(0, box.x0 - band.x0)
                        chunk = _planar(pixels[part.slices])
                        level.put(writer, piece.shift(y - box.y0, 0), chunk)

    def write_halved(self, level: int, shard: Tile) -> None:
        """Write one shard of a coarser level from the finer one, whose shards under it must exist.

        Raises
        ------
        StoppedError
            If `stop` is set; nothing is left of this shard.
        """
        this, finer = self.levels[level], self.levels[level - 1]
        plane = Box(0, 0, finer.shards.height, finer.shards.width)
        with ShardWriter(this.path(shard), this.grid) as writer:
            for piece in blocks(shard.box.height, shard.box.width, CHUNK):
                self._go_on()
                chunk = np.zeros((3 if this.colour else 1, CHUNK, CHUNK), np.uint8)
                for quarter in blocks(piece.height, piece.width, CHUNK // 2):
                    part = quarter.shift(piece.y0 + shard.box.y0, piece.x0 + shard.box.x0)
                    under = part.scale(2).intersect(plane)  # lies in one chunk, so nothing is assembled
                    assert under is not None
                    for into, pixels in zip(chunk, finer.read(under), strict=True):
                        into[quarter.slices] = halve(pixels[..., None])[..., 0]
                this.put(writer, piece, chunk)

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise StoppedError


def _open_level(folder: Path, size: tuple[int, int], channels: int) -> ShardedLevel:
    plan = plan_of(json.loads((folder / "zarr.json").read_bytes()))
    array = ChunkedArray(LocalKeys(folder, ReadStats()), "", plan)
    return ShardedLevel(folder, array, TileGrid(*size, (SHARD, SHARD)), channels == 3)


def _planar(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn (h, w, c) pixels into a chunk (c, CHUNK, CHUNK), padded with zeros."""
    height, width, channels = pixels.shape
    chunk = np.zeros((channels, CHUNK, CHUNK), np.uint8)
    pairs = [i for channel in range(channels) for i in (channel, channel)]
    cv2.mixChannels([pixels], [plane[:height, :width] for plane in chunk], pairs)  # three times as fast as NumPy
    return chunk
