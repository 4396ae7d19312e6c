"""Images for the benchmark of batches: good ones, and broken ones of twelve kinds."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.bench.data import digit_split

MODEL = "digits"
"""The model that all parts use."""
_TILE = 128


def good_pixels(side: int, count: int) -> list[NDArray[np.uint8]]:
    """Different scenes of digits, (side, side) each: one scene, shifted and mirrored."""
    scene = _digits(side)
    found = []
    for number in range(count):
        shifted = np.roll(scene, (37 * number % side, 101 * number % side), (0, 1))
        found.append(np.ascontiguousarray(shifted[:, ::-1] if number % 2 else shifted))
    return found


@lru_cache(maxsize=2)
def _digits(side: int) -> NDArray[np.uint8]:
    scene = digit_split(side).test[0].image
    assert isinstance(scene, np.ndarray)
    return scene.reshape(side, side)


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
    tile = good_pixels(512, 1)[0]
    store = zarr.create_array(path, shape=(side, side), chunks=(1024, 1024), dtype=np.uint8)
    row = np.tile(tile, (2, -(-side // 512)))[:, :side]
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
    names = []
    for number in range(count):
        kind = list(BROKEN)[number % len(BROKEN)]
        names.append(BROKEN[kind](folder / f"broken-{number:04}-{kind}").name)
    return names


def _write_png(stem: Path, pixels: NDArray[np.uint8]) -> Path:
    path = stem.with_name(f"{stem.name}.png")
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def _write_tiff(stem: Path, pixels: NDArray[np.uint8]) -> Path:
    path = stem.with_name(f"{stem.name}.tif")
    tifffile.imwrite(path, pixels, tile=(_TILE, _TILE), compression="zlib")
    return path


def _write_zarr(stem: Path, pixels: NDArray[np.uint8]) -> Path:
    path = stem.with_name(f"{stem.name}.zarr")
    zarr.create_array(path, shape=pixels.shape, chunks=(_TILE, _TILE), dtype=np.uint8)[:] = pixels
    return path


def _scene() -> NDArray[np.uint8]:
    return good_pixels(512, 1)[0]


def _bytes(suffix: str, content: bytes) -> Callable[[Path], Path]:
    def write(stem: Path) -> Path:
        path = stem.with_name(f"{stem.name}{suffix}")
        path.write_bytes(content)
        return path

    return write


def _truncated_png(stem: Path) -> Path:
    path = _write_png(stem, _scene())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    return path


def _absurd_png(stem: Path) -> Path:
    """A header that promises 10^12 pixels."""
    head = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return _bytes(".png", b"\x89PNG\r\n\x1a\n" + chunk)(stem)


def _truncated_tiff(stem: Path) -> Path:
    path = stem.with_name(f"{stem.name}.tif")
    tifffile.imwrite(path, _scene(), tile=(_TILE, _TILE))
    path.write_bytes(path.read_bytes()[:-60_000])
    return path


def _damaged_tile(stem: Path) -> Path:
    path = _write_tiff(stem, _scene())
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[offset : offset + 64] = b"\xff" * 64
    path.write_bytes(content)
    return path


def _unknown_compression(stem: Path) -> Path:
    path = _write_tiff(stem, _scene())
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.tags["Compression"].valueoffset
    content = bytearray(path.read_bytes())
    content[offset : offset + 2] = struct.pack("<H", 60_000)
    path.write_bytes(content)
    return path


def _complex_samples(stem: Path) -> Path:
    path = stem.with_name(f"{stem.name}.tif")
    tifffile.imwrite(path, np.ones((64, 64), np.complex64))
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
    "empty": _bytes(".tif", b""),
    "text": _bytes(".png", b"this is no image\n" * 40),
    "truncated-png": _truncated_png,
    "absurd-png": _absurd_png,
    "garbage-jpeg": _bytes(".jpg", b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8),
    "truncated-tiff": _truncated_tiff,
    "damaged-tile": _damaged_tile,
    "lost-directory": _bytes(".tif", b"II*\x00" + struct.pack("<I", 10**6) + bytes(64)),
    "unknown-compression": _unknown_compression,
    "complex-samples": _complex_samples,
    "broken-zarr": _broken_zarr,
    "plain-folder": _plain_folder,
}
"""Each kind by its name; what writes it returns the path."""
