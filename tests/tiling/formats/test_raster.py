"""Damaged and lying pictures: right pixels or a refusal, little memory, nothing on the terminal; against Pillow."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

ROOT = Path(__file__).resolve().parents[3]
RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 9, 14


def masks(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def bmp(
    bits: int,
    compression: int = 0,
    header: int = 40,
    fields: bytes = b"",
    offset: int | None = None,
    height: int = HEIGHT,
    data: bytes | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> bytes:
    width = size[0]
    colours = 2**bits if bits <= 8 else 0
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0, 0, 0) + fields
    palette = b"".join(bytes((i * 37 % 256, i * 91 % 256, 255 * i // (colours - 1), 0)) for i in range(colours))
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
        palette = b"".join(palette[i : i + 3] for i in range(0, len(palette), 4))
    elif header > 40:
        head = head.ljust(header, b"\0")
    if data is None:
        data = RNG.integers(0, 256, (width * bits + 31) // 32 * 4 * abs(height), dtype=np.uint8).tobytes()
    begin = 14 + len(head) + len(palette)
    start = begin if offset is None else offset
    return b"BM" + struct.pack("<IHHI", begin + len(data), 0, 0, start) + head + palette + data


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with open_image(path) as image:
        pixels = image.read(Box(0, 0, image.height, image.width))
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    image = PIL.Image.open(io.BytesIO(data))
    if image.mode != "RGBA":
        return np.asarray(image.convert("RGB"))
    white = PIL.Image.new("RGBA", image.size, "white")
    return np.asarray(PIL.Image.alpha_composite(white, image).convert("RGB"))


ROWS = b"".join(bytes((WIDTH, 9 * i)) + b"\0\0" for i in range(HEIGHT))
LITERAL = b"".join(b"\0\5" + bytes(range(i, i + 5)) + b"\0" + bytes((9, 3)) + b"\0\0" for i in range(HEIGHT))
BMPS = {
    **{f"{bits} bits, header {size}": bmp(bits, header=size) for bits in (1, 4, 8, 24) for size in (12, 40, 108, 124)},
    **{f"{bits} bits from the top": bmp(bits, height=-HEIGHT) for bits in (1, 4, 8, 16, 24, 32)},
    "fifteen bits": bmp(16, 3, fields=masks(0x7C00, 0x3E0, 0x1F)),
    "sixteen bits": bmp(16, 3, fields=masks(0xF800, 0x7E0, 0x1F)),
    "fields without opacity": bmp(32, 3, fields=masks(0xFF0000, 0xFF00, 0xFF)),
    "fields in another order": bmp(32, 3, fields=masks(0xFF000000, 0xFF0000, 0xFF00)),
    "opacity": bmp(32, 3, 108, masks(0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "no opacity in plain pixels": bmp(32, data=bytes(range(252)) * 2),
    "runs": bmp(8, 1, data=ROWS + b"\0\1"),
    "literal runs": bmp(8, 1, data=LITERAL + b"\0\1"),
    "runs of nibbles": bmp(4, 2, data=b"".join(bytes((WIDTH, 16 + i)) + b"\0\0" for i in range(HEIGHT)) + b"\0\1"),
}


@pytest.mark.parametrize("name", list(BMPS))
def test_bitmaps_equal_pillow(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.bmp").write_bytes(BMPS[name])
    difference = np.abs(pixels_of(tmp_path / "a.bmp").astype(int) - by_pillow(BMPS[name]))
    assert difference.max() <= 1  # how bits are widened and opacity is rounded


@pytest.mark.parametrize(
    "data",
    [
        *[bmp(8, offset=offset) for offset in (0, 10, 30, 54, 14 + 40 + 1023)],
        *[bmp(24, offset=offset) for offset in (2, 20, 53)],
        bmp(16, 3, fields=masks(0xF800, 0x7E0, 0x1F), offset=60),
        bmp(16, 3, fields=masks(0xF801, 0x7E0, 0x1E)),
        bmp(24, 1, data=ROWS),
        bmp(8, 1, data=ROWS[:20]),
        bmp(8, 1, data=b"".join(bytes((WIDTH + 6, i)) + b"\0\0" for i in range(HEIGHT)) + b"\0\1"),
        bmp(8, 1, data=b"\0\2\3"),
        bmp(24, 4),
        bmp(24)[:-9],
    ],
)
def test_bitmaps_that_contradict_themselves_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.bmp: .*bmp"):
        open_image(tmp_path / "a.bmp")


def wide_jpeg2000() -> bytes:
    """A codestream whose header claims 16,384 components of 256 x 256 pixels."""
    data = bytearray(imagecodecs.jpeg2k_encode(np.zeros((256, 256, 3), np.uint8), codecformat="J2K"))
    begin = data.index(b"\xff\x51")
    old = struct.unpack_from(">H", data, begin + 2)[0]
    count = 16384
    head = data[begin + 4 : begin + 38] + struct.pack(">H", count) + data[begin + 40 : begin + 43] * count
    return bytes(
        data[:begin] + b"\xff\x51" + struct.pack(">H", len(head) + 2 & 0xFFFF) + head + data[begin + 2 + old :]
    )


def tiny_tiles() -> bytes:
    """A codestream whose header claims 65,025 tiles of a pixel each."""
    data = bytearray(imagecodecs.jpeg2k_encode(np.zeros((255, 255, 3), np.uint8), codecformat="J2K"))
    struct.pack_into(">II", data, data.index(b"\xff\x51") + 22, 1, 1)
    return bytes(data)


def large_png() -> bytes:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(2**20))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def large_jpeg() -> bytes:
    data = bytearray(imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8)))
    place = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, place, 40_000, 30_000)
    return bytes(data)


LIES = {
    "components": wide_jpeg2000,
    "tiles": tiny_tiles,
    "runs": lambda: bmp(8, 1, size=(46_000, HEIGHT), height=46_000, data=b"\0\1"),
    "png": large_png,
    "jpeg": large_jpeg,
}

LIMITED = """
import resource, sys
from coarse2fine import ImageError, open_image
import coarse2fine.tiling.formats.raster  # its libraries are not counted
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        open_image(path)
        print("opened", path)
    except ImageError as error:
        print("refused", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_small_files_take_little_memory(tmp_path: Path) -> None:
    paths = []
    for name, make in LIES.items():
        paths.append(tmp_path / f"{name}.dat")
        paths[-1].write_bytes(make())
        assert paths[-1].stat().st_size < 100_000
    paths.append(tmp_path / "huge.png")
    with paths[-1].open("wb") as file:
        file.write(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
        file.truncate(50 * 10**9)
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    lines = found.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["refused"] * len(paths), found.stdout
    assert all(str(path) in line for path, line in zip(paths, lines, strict=True))
    assert not found.stderr


def damaged(data: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        changed[int(rng.integers(12, len(changed)))] = int(rng.integers(0, 256))
    return bytes(changed[: int(rng.integers(20, len(changed)))] if rng.random() < 0.2 else changed)


QUIET = """
import sys
from coarse2fine import ImageError, open_image
from coarse2fine.tiling.geometry import Box
for path in sys.argv[1:]:
    try:
        with open_image(path) as image:
            for level in image.levels:
                image.read(Box(0, 0, level.height, level.width), level.index)
    except ImageError:
        print("refused")
"""


def test_damaged_files_write_nothing_to_the_terminal(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(RNG.integers(0, 256, (120, 90, 3), dtype=np.uint8), (0, 0), 3)
    files: dict[str, bytes] = {
        suffix: cv2.imencode(suffix, smooth)[1].tobytes() for suffix in (".png", ".jpg", ".webp", ".bmp", ".jp2")
    }
    progressive: Any = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    files[".progressive.jpg"] = cv2.imencode(".jpg", smooth, progressive)[1].tobytes()
    import tifffile  # noqa: PLC0415 (of this test alone)

    for codec in ("jpeg", "jpeg2000", "png", "webp", "jpegxl", "jpegxr", "lerc", "lzw", "zlib", "zstd", "packbits"):
        written = io.BytesIO()
        tifffile.imwrite(written, smooth, photometric="rgb", compression=codec, tile=(64, 64), metadata=None)
        files[f".{codec}.tif"] = written.getvalue()
    paths = []
    for suffix, data in files.items():
        for seed in range(6):
            paths.append(tmp_path / f"{seed}{suffix}")
            paths[-1].write_bytes(damaged(data, seed))
    found = subprocess.run(
        [sys.executable, "-c", QUIET, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=ROOT,
    )
    assert found.stdout.count("refused") > len(paths) // 4
    assert not found.stderr


@pytest.mark.parametrize(
    ("suffix", "per_unit", "unit", "mpp"),
    [
        (".png", 2_000_000, "meter", 0.5),
        (".png", 2835, "meter", None),
        (".png", 3780, "meter", None),
        (".jpg", 25400, "inch", 1.0),
        (".jpg", 72, "inch", None),
        (".jpg", 300, "inch", None),
        (".bmp", 2_000_000, "meter", 0.5),
        (".bmp", 2835, "meter", None),
    ],
)
def test_density_of_pictures(tmp_path: Path, suffix: str, per_unit: int, unit: str, mpp: float | None) -> None:
    path = tmp_path / f"a{suffix}"
    dots = per_unit * 0.0254 if unit == "meter" else per_unit
    PIL.Image.new("RGB", (20, 10)).save(path, dpi=(dots, dots))
    with open_image(path) as image:
        assert image.mpp == (None if mpp is None else pytest.approx((mpp, mpp), rel=1e-5))
        told = ["resolution of 300 dots per inch ignored"] if (per_unit, unit) == (300, "inch") else []
        assert [note.partition(":")[0] for note in image.notes] == told


def test_files_beside_a_slide_that_are_no_files(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Slidedat.ini").write_text("[GENERAL]\n")
    os.mkfifo(tmp_path / "a" / "Data0000.dat")
    PIL.Image.new("RGB", (20, 10)).save(tmp_path / "a.mrxs", format="JPEG")
    with pytest.raises(ImageError, match=r"a\.mrxs: .*Data0000\.dat is a pipe or device"):
        open_image(tmp_path / "a.mrxs")
