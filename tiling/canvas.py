"""Blending of sparse, overlapping tiles into one array."""

from __future__ import annotations

import math
from collections import OrderedDict
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import cv2
import imagecodecs
import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import ZstdCodec

from .geometry import Box
from .grid import TileGrid
from .writing.atomic import check_absent, new_folder

CACHE_BYTES = 256 * 2**20

_WEIGHT_STEPS = 4096
"""Weights are integers: with 12 bits along each axis, products with float32 values are exact in float64."""

_MAX_SPILLED_BYTES = 2**31 - 2**10
"""Blosc compresses less than 2 GiB at once."""


class Canvas:
    """Blend tiles of a plane into one array; a context manager, for one thread at a time.

    Every pixel is the mean of the values added for it, weighted by a squared-sine window that rises over `overlap`
    pixels from each side of a tile that lies inside the plane, and is never zero. Sums are float64 and weights
    integers: 8-bit values give the same result to the bit in whatever order tiles come; for floats the order changes
    only the rounding of the float64 sums. If overlapping tiles agree, their values come back unchanged. Neither
    `chunk` nor `cache_bytes` changes the result.

    Sums take 8 (channels + 1) bytes per pixel of each chunk that tiles meet; with a path, `cache_bytes` bounds them.

    Parameters
    ----------
    height, width : int
        Size of the plane in its pixels.
    channels : int
    overlap : int
        Pixels over which a tile fades in, ideally the number that neighbouring tiles share (twice their halo). If 0,
        all weights are equal.
    chunk : int
        Side of the squares in which sums are kept and the array is stored, in pixels.
    dtype : dtype
        Type of the result: float32, or uint8 (rounded to the nearest, halves to even, and clipped to 0-255).
    fill : float
        Value of the pixels that no tile covers.
    path : path, optional
        Write the result there, as a Zarr v3 array of axes (y, x, c), rather than to memory. Must not exist.
    cache_bytes : int
        With a path, memory for sums (at least one chunk's); the rest is spilled to compressed files beside the path.

    Raises
    ------
    FileExistsError
        If the path exists.
    ValueError
        If a number is out of range, or `dtype` is neither float32 nor uint8.

    Examples
    --------
    >>> grid = TileGrid(1000, 1000, (256, 256), halo=16)
    >>> with Canvas(1000, 1000, 1, overlap=32) as canvas:
    ...     for tile in grid.over(Box(0, 0, 500, 500)):
    ...         canvas.add(tile.padded, np.ones((tile.padded.height, tile.padded.width, 1)))
    ...     heat = canvas.result()
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        *,
        overlap: int = 0,
        chunk: int = 512,
        dtype: DTypeLike = np.float32,
        fill: float = 0,
        path: str | PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._shape = height, width, channels
        self._overlap = overlap
        self._dtype = np.dtype(dtype)
        _check(self._shape, overlap, chunk, self._dtype, fill)
        self._fill: Any = np.asarray(fill).astype(self._dtype).item()
        self._chunks = TileGrid(height, width, (min(chunk, height), min(chunk, width)))
        self._target = None if path is None else Path(path)
        shape = channels + 1, *self._chunks.tile_shape
        if self._target is None:
            self._scratch = None
            self._sums = _Sums(shape, None, 0)
        else:
            if math.prod(shape) * 8 > _MAX_SPILLED_BYTES:
                raise ValueError(
                    f"expected less than 2 GiB of sums in a chunk, got {shape} float64; choose a smaller one"
                )
            self._scratch = _scratch_beside(self._target)
            self._sums = _Sums(shape, Path(self._scratch.name), cache_bytes)
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Discard the sums and remove the scratch files, but no result. May be called again."""
        self._open = False
        self._sums.clear()
        if self._scratch is not None:
            self._scratch.cleanup()

    def add(self, box: Box, values: NDArray[Any]) -> None:
        """Blend one tile in.

        Parameters
        ----------
        box : Box
            Area of the values, halo or overlap included, in pixels of the plane; parts outside it are cut off.
        values : (h, w, channels) float or uint8 array
            Pixels of the box; converted to float32.

        Raises
        ------
        OSError
            If sums cannot be spilled to disk; the canvas is then closed.
        RuntimeError
            If the canvas is closed.
        TypeError
            If the values are neither float nor uint8.
        ValueError
            If the values' shape is not the box's, the box lies outside the plane, or a value for a uint8 canvas is not
            finite.
        """
        self._check_open()
        self._check_tile(box, values)
        height, width, channels = self._shape
        inner = box.intersect(Box(0, 0, height, width))
        if inner is None:
            raise ValueError(f"expected a box that meets the plane of {height} x {width} pixels, got {box}")
        rows = _window(box.height, box.y0 > 0, box.y1 < height, self._overlap)
        columns = _window(box.width, box.x0 > 0, box.x1 < width, self._overlap)
        planes = [np.ascontiguousarray(values[..., channel], dtype=np.float32) for channel in range(channels)]
        try:
            for chunk in self._chunks.over(inner):
                part = chunk.box.intersect(inner)
                assert part is not None
                of, into = part.shift(-box.y0, -box.x0), part.shift(-chunk.box.y0, -chunk.box.x0)
                weights = np.outer(rows[of.y0 : of.y1], columns[of.x0 : of.x1])
                sums = self._sums.get((chunk.row, chunk.column))[:, *into.slices]
                for plane, total in zip(planes, sums, strict=False):
                    cv2.accumulateProduct(plane[of.slices], weights, total)
                cv2.accumulate(weights, sums[-1])
        except BaseException:
            # Half of the tile may have been added.
            self.close()
            raise

    def result(self) -> NDArray[Any] | zarr.Array[Any]:
        """Normalise what was added, and close the canvas.

        Returns
        -------
        (height, width, channels) array
            In memory; or, with a path, the Zarr array there, open for reading. It appears whole or not at all, and
            stores only the chunks that tiles met.

        Raises
        ------
        FileExistsError
            If the path was created in the meantime.
        OSError
            If the array cannot be written.
        RuntimeError
            If the canvas is closed.
        """
        self._check_open()
        try:
            if self._target is None or self._scratch is None:
                pixels = np.full(self._shape, self._fill, dtype=self._dtype)
                self._normalise_into(pixels)
                return pixels
            with new_folder(self._target) as unfinished:
                self._normalise_into(self._create_array(unfinished))
            return zarr.open_array(self._target, mode="r")
        finally:
            self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError("the canvas is closed, as it is after result(); make another")

    def _check_tile(self, box: Box, values: NDArray[Any]) -> None:
        expected = box.height, box.width, self._shape[2]
        if values.shape != expected:
            raise ValueError(f"expected values of shape {expected} for {box}, got {values.shape}")
        if values.dtype.kind != "f" and values.dtype != np.uint8:
            raise TypeError(f"expected float or uint8 values, got {values.dtype}; convert them")
        if self._dtype == np.uint8 and not np.isfinite(values).all():
            raise ValueError(f"expected finite values for a canvas of uint8, got NaN or infinity in {box}")

    def _create_array(self, path: Path) -> zarr.Array[Any]:
        return zarr.create_array(
            path,
            shape=self._shape,
            chunks=(*self._chunks.tile_shape, self._shape[2]),
            dtype=self._dtype,
            fill_value=self._fill,
            compressors=ZstdCodec(level=1),
            dimension_names=("y", "x", "c"),
            zarr_format=3,
            # A chunk that tiles met is stored even if it holds only the fill value.
            config={"write_empty_chunks": True},
        )

    def _normalise_into(self, array: Any) -> None:
        for row, column in sorted(self._sums.keys):
            chunk = self._chunks.tile(row, column)
            sums = self._sums.pop((row, column))[:, : chunk.box.height, : chunk.box.width]
            array[chunk.box.slices] = self._mean(sums)

    def _mean(self, sums: NDArray[np.float64]) -> NDArray[Any]:
        """Pixels (h, w, channels) from sums (channels + 1, h, w), which are overwritten."""
        totals, weights = sums[:-1], sums[-1]
        covered = weights > 0
        np.divide(totals, weights, out=totals, where=covered)
        np.copyto(totals, self._fill, where=~covered)
        if self._dtype == np.uint8:
            np.rint(totals, out=totals)
            np.clip(totals, 0, 255, out=totals)
        return np.moveaxis(totals, 0, -1).astype(self._dtype)


class _Sums:
    """Sums (channels + 1, h, w) of each chunk that tiles met: weighted values, then weights.

    With a folder, the least recently used beyond `limit` bytes are spilled there; the last used always stays.
    """

    def __init__(self, shape: tuple[int, int, int], folder: Path | None, limit: int) -> None:
        self.keys: set[tuple[int, int]] = set()
        self._shape = shape
        self._folder = folder
        self._bytes = math.prod(shape) * 8
        self._room = max(1, limit // self._bytes)
        self._kept: OrderedDict[tuple[int, int], bytearray] = OrderedDict()

    def get(self, key: tuple[int, int]) -> NDArray[np.float64]:
        """Sums of a chunk; add to them before the next call."""
        buffer = self._kept.pop(key, None)
        if buffer is None:
            self._make_room()
            buffer = self._load(key) if key in self.keys else bytearray(self._bytes)
        self.keys.add(key)
        self._kept[key] = buffer
        return np.frombuffer(buffer).reshape(self._shape)

    def pop(self, key: tuple[int, int]) -> NDArray[np.float64]:
        """Remove and return the sums of a chunk that tiles met."""
        self.keys.remove(key)
        buffer = self._kept.pop(key, None)
        return np.frombuffer(self._load(key) if buffer is None else buffer).reshape(self._shape)

    def clear(self) -> None:
        self.keys.clear()
        self._kept.clear()

    def _make_room(self) -> None:
        while self._folder is not None and len(self._kept) >= self._room:
            key, buffer = self._kept.popitem(last=False)
            packed = imagecodecs.blosc_encode(buffer, compressor="lz4", level=1, shuffle=1, typesize=8)
            self._file(key).write_bytes(packed)

    def _load(self, key: tuple[int, int]) -> bytearray:
        path = self._file(key)
        buffer = bytearray(self._bytes)
        imagecodecs.blosc_decode(path.read_bytes(), out=buffer)
        path.unlink()
        return buffer

    def _file(self, key: tuple[int, int]) -> Path:
        assert self._folder is not None
        return self._folder / f"{key[0]}.{key[1]}"


def _window(length: int, rises: bool, falls: bool, overlap: int) -> NDArray[np.float32]:
    """Integer weights along one axis of a tile, 1 to `_WEIGHT_STEPS`, falling off at sides inside the plane."""
    if not overlap:
        return np.full(length, _WEIGHT_STEPS, dtype=np.float32)
    place = np.arange(length) + 0.5
    distance = np.full(length, float(overlap))
    if rises:
        distance = np.minimum(distance, place)
    if falls:
        distance = np.minimum(distance, place[::-1])
    share = np.sin(distance / overlap * (np.pi / 2)) ** 2
    weights: NDArray[np.float64] = np.maximum(np.rint(share * _WEIGHT_STEPS), 1)
    return weights.astype(np.float32)


def _check(shape: tuple[int, int, int], overlap: int, chunk: int, dtype: np.dtype[Any], fill: float) -> None:
    if min(shape) < 1:
        raise ValueError(f"expected a height, a width and channels of at least 1, got {shape}")
    if overlap < 0 or chunk < 1:
        raise ValueError(f"expected overlap >= 0 and chunk >= 1 pixels, got {overlap} and {chunk}")
    if dtype not in (np.float32, np.uint8):
        raise ValueError(f"expected dtype float32 or uint8, got {dtype}")
    if dtype == np.uint8 and fill not in range(256):
        raise ValueError(f"expected a fill value of 0 to 255 for uint8, got {fill}")


def _scratch_beside(target: Path) -> TemporaryDirectory[str]:
    """Temporary folder for sums, removed at the latest when Python exits."""
    check_absent(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    return TemporaryDirectory(
        prefix=f".{target.name}.", suffix=".partial", dir=target.parent, ignore_cleanup_errors=True
    )
