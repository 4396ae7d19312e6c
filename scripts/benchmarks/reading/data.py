"""Images for the benchmark of reading: photo-like pixels in several containers, not made by our own writers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

TILE = 512
SVS_TILE = 256
SHARD = 4096
JPEG_QUALITY = 80
ZSTD_LEVEL = 3
_APERIO = "Aperio Image Library v12.0.15\r\n{width}x{height} ({tile}x{tile}) JPEG/RGB Q={quality}|AppMag = 20|MPP = 0.5"


def photo_like(count: int, seed: int) -> NDArray[np.uint8]:
    """Tiles with the spectrum and the compressibility of photographs: (count, 512, 512, 3), uint8."""
    rng = np.random.default_rng(seed)
    return np.stack([_photo(rng) for _ in range(count)])


def _photo(rng: np.random.Generator) -> NDArray[np.uint8]:
    pixels = np.zeros((TILE, TILE, 3), np.float32)
    for scale in (512, 256, 128, 64, 32, 16, 8, 4, 2):
        nodes = TILE // scale + 2
        grid = rng.standard_normal((nodes, nodes, 3), dtype=np.float32)
        # Channels of photographs are correlated.
        grid = 0.35 * grid + grid.mean(axis=2, keepdims=True)
        pixels += cv2.resize(grid, (TILE, TILE), interpolation=cv2.INTER_CUBIC) * np.float32(scale**0.25)
    pixels *= rng.uniform(35, 65) / pixels.std()
    pixels += 128 + rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def mosaic(tiles: NDArray[np.uint8], side: int, seed: int) -> NDArray[np.uint8]:
    """Lay tiles in random order, repeated as needed: (side, side, 3), `side` a multiple of 512."""
    count = side // TILE
    order = np.random.default_rng(seed).integers(0, len(tiles), (count, count))
    return np.ascontiguousarray(tiles[order].swapaxes(1, 2).reshape(side, side, 3))


def write_svs(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a file like Aperio scanners: JPEG tiles of 256, a thumbnail, and levels 4 and 16 times smaller."""
    height, width = pixels.shape[:2]
    text = _APERIO.format(width=width, height=height, tile=SVS_TILE, quality=JPEG_QUALITY)
    plain: dict[str, Any] = {**_jpeg(), "metadata": None, "software": False, "description": text}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(SVS_TILE, SVS_TILE), **plain)
        file.write(_smaller(pixels, math.ceil(max(height, width) / 768)), rowsperstrip=16, **plain)
        for factor in (4, 16):
            file.write(_smaller(pixels, factor), tile=(SVS_TILE, SVS_TILE), **plain)


def write_tiff(path: Path, tiles: NDArray[np.uint8], side: int, seed: int) -> None:
    """Write a JPEG TIFF in tiles of 512 without a pyramid; each tile is encoded once and repeated at random."""
    encoded = [
        bytes(imagecodecs.jpeg8_encode(tile, JPEG_QUALITY, colorspace="rgb", outcolorspace="ycbcr", subsampling=(2, 2)))
        for tile in tiles
    ]
    rng = np.random.default_rng(seed)

    def stored() -> Iterator[bytes]:
        for _ in range((side // TILE) ** 2):
            yield encoded[rng.integers(len(encoded))]

    tifffile.imwrite(path, stored(), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), bigtiff=True, **_jpeg())


def write_ome_zarr(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an OME-Zarr 0.5 image of one level: chunks (3, 512, 512) in shards (3, 4096, 4096), zstd."""
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group = zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [image]}})
    height, width = pixels.shape[:2]
    array = group.create_array(
        "0",
        shape=(3, height, width),
        dtype=np.uint8,
        chunks=(3, TILE, TILE),
        shards=(3, SHARD, SHARD),
        compressors=ZstdCodec(level=ZSTD_LEVEL),
    )
    for y in range(0, height, SHARD):
        for x in range(0, width, SHARD):
            part = pixels[y : y + SHARD, x : x + SHARD]
            array[:, y : y + SHARD, x : x + SHARD] = np.ascontiguousarray(np.moveaxis(part, -1, 0))


def write_zarr(path: Path, pixels: NDArray[np.uint8], version: int) -> None:
    """Write a plain Zarr array of version 2 or 3 in chunks (512, 512, 3), zstd."""
    array = zarr.create_array(
        path,
        shape=pixels.shape,
        dtype=np.uint8,
        chunks=(TILE, TILE, 3),
        # What zarr-python takes by itself is zstd too, at the level that zstd takes by itself: 3.
        compressors=ZstdCodec(level=ZSTD_LEVEL) if version == 3 else "auto",
        zarr_format=3 if version == 3 else 2,
    )
    array[:] = pixels


def _jpeg() -> dict[str, Any]:
    return {
        "compression": "jpeg",
        "compressionargs": {"level": JPEG_QUALITY},
        "photometric": "rgb",
        "subsampling": (2, 2),
    }


def _smaller(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    size = max(1, width // factor), max(1, height // factor)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
