"""Images for the benchmark of batches: good ones, and twelve kinds of broken ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.tiling.geometry import Box, ceil_div

MODEL = "digits"
"""The model that all parts use."""
_TILE = 128


def good_pixels(side: int, count: int) -> list[NDArray[np.uint8]]:
    """Different scenes of digits, (side, side) each: one scene, shifted and mirrored."""
    scene, found = _digits(side), []
    for number in range(count):
        shifted = np.roll(scene, (37 * number % side, 101 * number % side), (0, 1))
        found.append(np.ascontiguousarray(shifted[:, ::-1] if number % 2 else shifted))
    return found


@lru_cache(maxsize=2)
def _digits(side: int) -> NDArray[np.uint8]:
    """Digits and clutter as dense as in the demo."""
    count = side**2 // 33_700
    scene = DigitScene(side, side, digits=count, clutter=2 * count, seed=301, handwriting="held-out")
    return scene.block(Box(0, 0, side, side))[..., 0]


def write_good(folder: Path, side: int, count: int) -> list[str]:
    """Write images in turn as PNG, tiled TIFF and Zarr; returns their names."""
    writers = (_write_png, _write_tiff, _write_zarr)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = good_pixels(side, count)
    return [writers[n % 3](folder / f"good-{n:04}", pixels[n]).name for n in range(count)]


def write_plain_tiffs(folder: Path, side: int, count: int) -> None:
    """Write uncompressed tiled TIFFs, which take no time to decode."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(good_pixels(side, count)):
        tifffile.imwrite(folder / f"plain-{number:04}.tif", pixels, tile=(256, 256))


def write_large(path: Path, side: int) -> None:
    """Write a Zarr array (side, side) of one scene of digits again and again."""
    store = zarr.create_array(path, shape=(side, side), chunks=(1024, 1024), dtype=np.uint8)
    row = np.tile(_scene(), (2, ceil_div(side, 512)))[:, :side]
    for y in range(0, side, 1024):
        store[y : y + 1024] = row[: min(1024, side - y)]


def write_bomb(path: Path, side: int) -> None:
    """Write a bitmap that takes little room on disk, and three bytes a pixel in memory."""
    size = 54 + 3 * side**2
    with path.open("wb") as file:
        file.write(b"BM" + struct.pack("<IHHI", size & 0xFFFFFFFF, 0, 0, 54))
        file.write(struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0))
        file.truncate(size)


def write_broken(folder: Path, count: int) -> list[str]:
    """Write broken images of all kinds in turn; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [list(BROKEN)[number % len(BROKEN)] for number in range(count)]
    return [BROKEN[kind](folder / f"broken-{number:04}-{kind}").name for number, kind in enumerate(kinds)]


def _write_png(stem: Path, pixels: NDArray[np.uint8]) -> Path:
    return _write(cv2.imencode(".png", pixels)[1].tobytes(), ".png", stem)


def _write_tiff(stem: Path, pixels: NDArray[np.generic], compression: str | None = "zlib") -> Path:
    path = stem.with_name(f"{stem.name}.tif")
    tifffile.imwrite(path, pixels, tile=(_TILE, _TILE), compression=compression)
    return path


def _write_zarr(stem: Path, pixels: NDArray[np.uint8]) -> Path:
    path = stem.with_name(f"{stem.name}.zarr")
    zarr.create_array(path, shape=pixels.shape, chunks=(_TILE, _TILE), dtype=np.uint8)[:] = pixels
    return path


def _scene() -> NDArray[np.uint8]:
    return good_pixels(512, 1)[0]


def _write(content: bytes, suffix: str, stem: Path) -> Path:
    path = stem.with_name(f"{stem.name}{suffix}")
    path.write_bytes(content)
    return path


def _truncated(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def _absurd_header() -> bytes:
    """A PNG's header that promises 10^12 pixels."""
    head = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))


def _overwritten(place: Callable[[tifffile.TiffPage], int], content: bytes, stem: Path) -> Path:
    """A TIFF with some bytes at a place replaced."""
    path = _write_tiff(stem, _scene())
    with tifffile.TiffFile(path) as file:
        offset = place(file.pages.first)
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(content)
    return path


def _broken_zarr(stem: Path) -> Path:
    path = _write_zarr(stem, _scene())
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "arr')
    return path


def _plain_folder(stem: Path) -> Path:
    path = stem.with_name(f"{stem.name}.tif")
    path.mkdir()
    return path


BROKEN: dict[str, Callable[[Path], Path]] = {
    "empty": partial(_write, b"", ".tif"),
    "text": partial(_write, b"this is no image\n" * 40, ".png"),
    "truncated-png": lambda stem: _truncated(_write_png(stem, _scene()), 9_000),
    "absurd-png": partial(_write, _absurd_header(), ".png"),
    "garbage-jpeg": partial(_write, b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8, ".jpg"),
    "truncated-tiff": lambda stem: _truncated(_write_tiff(stem, _scene(), None), -60_000),
    "damaged-tile": partial(_overwritten, lambda page: page.dataoffsets[5], b"\xff" * 64),
    "lost-directory": partial(_write, b"II*\x00" + struct.pack("<I", 10**6) + bytes(64), ".tif"),
    "unknown-compression": partial(
        _overwritten, lambda page: page.tags["Compression"].valueoffset, struct.pack("<H", 60_000)
    ),
    "complex-samples": lambda stem: _write_tiff(stem, np.ones((64, 64), np.complex64)),
    "broken-zarr": _broken_zarr,
    "plain-folder": _plain_folder,
}
"""Each kind by its name; what writes it returns the path."""
