"""TIFFs that are cut off, lie or mean harm: one clear error each, bounded memory, silence, and the rest still reads."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats.tiff_limits import _CLAIMS
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

MEMORY = 64 * 2**20
"""No damaged file of a few kilobytes may cost more."""
IN_TMP: dict[str, Any] = {
    "derandomize": True,
    "deadline": timedelta(seconds=20),
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


def noise(*shape: int, dtype: str = "u1", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 2**8, shape).astype(dtype)


def whole(image: Image, level: int = 0) -> NDArray[np.uint8]:
    this = image.levels[level]
    return image.read(Box(0, 0, this.height, this.width), level)


@contextlib.contextmanager
def little_memory(limit: int = MEMORY) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak / 2**20:.0f} MB were taken"


def write_pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        writer.write(noise(48, 64, 3), subifds=1, tile=(16, 16), photometric="rgb")
        writer.write(noise(24, 32, 3), subfiletype=1, tile=(16, 16), photometric="rgb")
        writer.write(noise(12, 16, 3), subfiletype=1, photometric="rgb")


def write_by_libtiff(path: Path) -> None:
    # Its directory stands at the end.
    path.write_bytes(cv2.imencode(".tif", noise(21, 30, 3))[1].tobytes())


def writer(*shape: int, dtype: str = "u1", **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, noise(*shape, dtype=dtype), **options)


PLACE: list[Any] = [
    (274, "H", 1, 6, True),
    (33550, "d", 3, (2.0, 3.0, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 100.0, 500.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 1025, 0, 1, 1), True),
    (42113, "s", 0, "-9999", True),
]
APERIO = "Aperio Image Library v11\r\n30x21 (16x16) J2K|AppMag = 20|MPP = 0.5|Left = 3"
WRITERS: dict[str, Callable[[Path], None]] = {
    "tiles": writer(21, 30, 3, tile=(16, 16), compression="deflate", photometric="rgb"),
    "strips": writer(21, 30, 3, rowsperstrip=5, compression="lzw", predictor=True, photometric="rgb"),
    "raw": writer(21, 30, rowsperstrip=5),
    "bigtiff": writer(21, 30, dtype="u2", bigtiff=True, byteorder=">", tile=(16, 16), compression="zstd"),
    "jpeg": writer(40, 40, 3, tile=(32, 32), compression="jpeg", photometric="ycbcr", subsampling=(2, 2)),
    "svs": writer(21, 30, 3, tile=(16, 16), description=APERIO, photometric="rgb", metadata=None),
    "ome": writer(3, 21, 30, dtype="u2", ome=True, tile=(16, 16), metadata={"axes": "CYX"}, photometric="minisblack"),
    "imagej": writer(2, 3, 12, 12, dtype="u2", imagej=True, metadata={"axes": "TZYX"}),
    "reals": writer(21, 30, dtype="f4", extratags=PLACE),
    "pyramid": write_pyramid,
    "libtiff": write_by_libtiff,
}


def attempt(path: Path) -> tuple[Image | None, str]:
    """Open an image that may be damaged; without one, what is said of it."""
    try:
        return open_image(path), ""
    except ImageError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_cut_off_at_any_byte(tmp_path: Path, kind: str) -> None:
    path, cut = tmp_path / "a.tif", tmp_path / "cut.tif"
    WRITERS[kind](path)
    data = path.read_bytes()
    with open_image(path) as image:
        expected = [whole(image, level) for level in range(len(image.levels))]
    refused = 0
    for count in sorted({*range(len(data))[:450], *range(len(data))[::17], *range(len(data))[-150:]}):
        cut.write_bytes(data[:count])
        opened, message = attempt(cut)
        if opened is None:
            assert message.startswith(f"{cut}: ")
            refused += 1
            continue
        with opened as image:  # no pixels are missing, or it is said that pages are
            assert len(image.levels) == len(expected) or "some are lost" in image.notes[-1], count
            for level in range(len(image.levels)):
                np.testing.assert_array_equal(whole(image, level), expected[level])
    assert refused


def overwrite(path: Path, sizes: dict[int, int]) -> None:
    """Change those of the tags that the first page has."""
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag, value in sizes.items():
            if tag in file.pages[0].tags:
                file.pages[0].tags[tag].overwrite(value, dtype="H" if tag == 277 else "I")


@pytest.mark.parametrize("kind", ["tiles", "strips", "raw", "bigtiff", "ome", "reals", "svs"])
@pytest.mark.parametrize(
    "sizes",
    [
        {256: 10**6, 257: 10**6},
        {257: 2**32 - 1},
        {256: 2**32 - 1},
        {256: 10**6, 257: 10**6, 278: 10**6, 322: 2**20, 323: 2**20},
        {256: 40000, 257: 40000, 278: 40000, 322: 40000, 323: 40000},
        {277: 65535},
        {322: 0, 278: 0},
    ],
    ids=str,
)
def test_headers_that_promise_too_much(tmp_path: Path, kind: str, sizes: dict[int, int]) -> None:
    path = tmp_path / "a.tif"
    WRITERS[kind](path)
    overwrite(path, sizes)
    with little_memory(), pytest.raises(ImageError) as caught, open_image(path) as image:
        image.read(Box(0, 0, 16, 16))
    assert str(caught.value).startswith(f"{path}: ")


def write_tile(path: Path, data: bytes, shape: tuple[int, ...], compression: str) -> None:
    """Write a TIFF of one tile that is encoded already."""
    tifffile.imwrite(
        path,
        iter([data]),
        shape=shape,
        dtype="u1",
        compression=compression,
        tile=shape[:2],
        photometric="rgb" if len(shape) == 3 else "minisblack",
        metadata=None,
    )


BOMBS: dict[str, Callable[[NDArray[Any]], bytes | bytearray]] = {
    "jpeg": imagecodecs.jpeg_encode,
    "jpeg2000": lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0),
    "png": imagecodecs.png_encode,
    "webp": lambda pixels: imagecodecs.webp_encode(np.stack([pixels] * 3, axis=2), lossless=True),
    "jpegxl": lambda pixels: imagecodecs.jpegxl_encode(pixels, effort=1),
    "jpegxr": imagecodecs.jpegxr_encode,
    "lerc": imagecodecs.lerc_encode,
    "deflate": lambda pixels: imagecodecs.deflate_encode(pixels.tobytes()),
    "zstd": lambda pixels: imagecodecs.zstd_encode(pixels.tobytes()),
    "lzw": lambda pixels: imagecodecs.lzw_encode(pixels.tobytes()),
    "lzma": lambda pixels: imagecodecs.lzma_encode(pixels.tobytes(), level=0),
    "packbits": imagecodecs.packbits_encode,
}
CUT_BY_THE_DECODER = ("lzw", "lzma")
"""These give as much as was asked for, and leave the rest."""


@pytest.mark.parametrize("codec", list(BOMBS))
def test_bombs_are_not_expanded(tmp_path: Path, codec: str) -> None:
    bomb = bytes(BOMBS[codec](np.zeros((4200, 4200), np.uint8)))
    shape = (32, 32, 3) if codec == "webp" else (32, 32)
    write_tile(tmp_path / "a.tif", bomb, shape, codec)
    with little_memory(4 * 2**20 + 2 * len(bomb)), open_image(tmp_path / "a.tif") as image:
        if codec in CUT_BY_THE_DECODER:
            assert not whole(image).any()
        else:
            with pytest.raises(ImageError, match="level 0, chunk at y=0, x=0"):
                whole(image)


@pytest.mark.parametrize("codec", ["deflate", "lzw", "zstd", "packbits", "lzma"])
def test_tiles_that_cannot_hold_what_is_promised(tmp_path: Path, codec: str) -> None:
    write_tile(tmp_path / "a.tif", bytes(BOMBS[codec](noise(32, 32))), (40000, 40000), codec)
    with little_memory(4 * 2**20), pytest.raises(ImageError, match="encoded bytes, which cannot hold them"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("sizes", [{322: 2**15, 323: 2**15}, {32998: 2**20}, {32998: 2**20, 322: 2**12}, {277: 60000}])
def test_blocks_of_volumes_that_promise_too_much(tmp_path: Path, sizes: dict[int, int]) -> None:
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": (16, 16, 16), "compression": "deflate", "photometric": "minisblack"}
    tifffile.imwrite(path, noise(20, 33, 47), volumetric=True, metadata=None, **options)
    overwrite(path, sizes)
    with little_memory(), pytest.raises(ImageError, match=r"strip or tile is|strips or tiles of"):
        open_image(path)


HEADED: dict[int, Callable[[NDArray[Any]], bytes | bytearray]] = {
    7: imagecodecs.jpeg_encode,
    33005: lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="J2K"),
    34712: imagecodecs.jpeg2k_encode,
    34933: imagecodecs.png_encode,
    50001: lambda pixels: imagecodecs.webp_encode(np.stack([pixels] * 3, axis=2), lossless=True),
    34934: imagecodecs.jpegxr_encode,
    34887: imagecodecs.lerc_encode,
    50002: lambda pixels: imagecodecs.jpegxl_encode(pixels, effort=1, usecontainer=False),
    52546: lambda pixels: imagecodecs.jpegxl_encode(pixels, effort=1, usecontainer=True),
}


@pytest.mark.parametrize("compression", list(HEADED))
@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    height=st.one_of(st.integers(8, 700), st.integers(1, 32).map(lambda value: 8 * value)),
    # JPEG XL has words of its own for widths in these ratios.
    ratio=st.sampled_from([1.0, 1.2, 4 / 3, 1.5, 16 / 9, 1.25, 2.0, 0.7, 0.31]),
)
def test_sizes_that_segments_claim(compression: int, height: int, ratio: float) -> None:
    width = max(8, int(height * ratio))
    data = bytes(HEADED[compression](np.zeros((height, width), np.uint8)))
    claim = _CLAIMS[compression](data)
    assert claim is not None
    assert claim[:2] == (height, width)
    assert height * width <= claim.taken <= 2**16 + 24 * height * width
    for end in (0, 1, 10, 20):
        assert (_CLAIMS[compression](data[:end]) or claim)[:2] == (height, width)


@pytest.mark.parametrize("codec", ["deflate", "lzw", "zstd", "jpeg", "jpeg2000", "png", "webp", "jpegxl", "lerc"])
def test_one_broken_tile(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(256, 384, 3), tile=(128, 128), compression=codec, photometric="rgb")
    with open_image(path) as image:
        expected = whole(image)
    break_segment(path, 4)
    with open_image(path) as image:
        for row, column in np.ndindex(2, 3):
            box = Box(128 * row, 128 * column, 128 * row + 128, 128 * column + 128)
            if (row, column) == (1, 1):
                with pytest.raises(ImageError, match=r"a\.tif: level 0, chunk at y=128, x=128 \(128 x 128 pixels\)"):
                    image.read(box)
            else:
                np.testing.assert_array_equal(image.read(box), expected[box.y0 : box.y1, box.x0 : box.x1])


def test_a_broken_tile_of_reals_is_left_out_of_their_range(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(256, 384, dtype="f4"), tile=(128, 128), compression="zstd")
    break_segment(path, 4)
    with open_image(path) as image:
        assert image.value_range == (0.0, 255.0)
        np.testing.assert_array_equal(image.read(Box(0, 0, 128, 384))[..., 0], noise(256, 384)[:128])
        with pytest.raises(ImageError, match="chunk at y=128, x=128"):
            whole(image)


def break_segment(path: Path, index: int) -> None:
    with tifffile.TiffFile(path) as file:
        place, count = file.pages[0].dataoffsets[index], file.pages[0].databytecounts[index]
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([0xA5]) * count)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    pixels = noise(40, 50, 3)
    tifffile.imwrite(tmp_path / "a", pixels, photometric="rgb", tile=(16, 16), metadata=None)
    data = (tmp_path / "a").read_bytes()
    for name in ("a.png", "a.jpg", "a.svs", "a.ndpi", "a.scn", "a.ome.tif", "a.zarr", "a.mrxs", "größe.qptiff"):
        (tmp_path / name).write_bytes(data)
        with open_image(tmp_path / name) as image:
            assert image.format == "tiff"
            np.testing.assert_array_equal(whole(image), pixels)
    (tmp_path / "b.tif").write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    with open_image(tmp_path / "b.tif") as image:
        assert image.format == "png"
        np.testing.assert_array_equal(whole(image), pixels)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tif")
    messages: list[str] = []

    def attempt(path: str) -> None:
        with pytest.raises(ImageError) as caught:
            open_image(path)
        messages.append(str(caught.value))

    for path in (str(tmp_path / "a.tif"), os.devnull):
        thread = threading.Thread(target=attempt, args=(path,), daemon=True)
        thread.start()
        thread.join(20)
        assert messages, "it waits for a writer"
        assert messages.pop().startswith(f"{path}: cannot be read (it is a pipe or device, not a file)")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may read everything")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    WRITERS["tiles"](tmp_path / "a.tif")
    (tmp_path / "a.tif").chmod(0)
    with pytest.raises(ImageError, match=r"a\.tif: reading is not permitted"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [(dtype, nodata) for dtype in ("u1", "i2", "f4") for nodata in ("-99999", "nan", "0.5,", "nothing", "")]
    + [("u1", "256"), ("i2", "1e400")],
)
def test_sparse_tiles_without_a_usable_nodata_value(tmp_path: Path, dtype: str, nodata: str) -> None:
    path = tmp_path / "a.tif"
    tags: list[Any] = [(42113, "s", 0, nodata, True)]
    tifffile.imwrite(path, noise(64, 64, dtype=dtype), tile=(32, 32), compression="zlib", extratags=tags)
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = file.pages[0].tags[name]
            tag.overwrite((*tag.value[:3], 0))
    with open_image(path) as image:
        usable = dtype == "f4" and nodata == "-99999"
        assert (image.read(Box(32, 32, 64, 64)) == (0 if usable else 255)).all()
        assert not image.read_mask(Box(32, 32, 64, 64)).any()
        assert image.read_mask(Box(0, 0, 64, 32)).all()


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let logging end where it does for a user who never set it up: on the terminal."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_what_tifffile_logs_stays_off_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for seed in range(3):
            file.write(noise(48, 48, seed=seed), photometric="minisblack", metadata=None, compression="zlib")
    with tifffile.TiffFile(path) as file:
        last = file.pages[2].offset
    path.write_bytes(path.read_bytes()[:last])
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 2
    assert "tifffile" in capsys.readouterr().err
    with open_image(path) as image:
        assert len(image.notes) == 2
        assert image.notes[1].startswith("the list of pages is damaged, some are lost (")
        np.testing.assert_array_equal(whole(image)[..., 0], noise(48, 48))
    assert capsys.readouterr() == ("", "")
    assert not logging.getLogger("tifffile").handlers


TAGS = [254, 256, 257, 258, 259, 262, 270, 273, 274, 277, 278, 279, 282, 284, 305, 317, 320, 322, 323, 324, 325, 330]
TAGS += [338, 339, 340, 347, 530, 32997, 33550, 33922, 34735, 42113, 50838, 65420]
COUNTS = (0, 1, 2, 3, 100, 2**16, 2**31, 2**32 - 1)


@st.composite
def edits(draw: st.DrawFn) -> tuple[float, bytes]:
    """Bytes that replace others, and where, as a share of the header."""
    entry = struct.pack(
        "<HHII",
        draw(st.sampled_from(TAGS)),
        draw(st.integers(0, 18)),
        draw(st.sampled_from(COUNTS)),
        draw(st.sampled_from((*COUNTS, 5, 7, 8, 32, 1000, 34887))),
    )
    numbers = st.sampled_from(COUNTS).map(lambda value: struct.pack("<I", value))
    change = draw(st.one_of(st.binary(min_size=1, max_size=2), numbers, st.binary(min_size=8, max_size=8)))
    return draw(st.floats(0, 1)), draw(st.sampled_from((change, change, entry)))


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k == "reals")) for k in WRITERS])
@settings(max_examples=80, **IN_TMP)
@given(changes=st.lists(edits(), min_size=1, max_size=5), name=st.sampled_from(["a.tif", "a.svs", "a.ndpi"]))
def test_any_other_header_is_read_or_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    changes: list[tuple[float, bytes]],
    name: str,
) -> None:
    terminal(monkeypatch)
    path = tmp_path / name
    WRITERS[kind](path)
    data = bytearray(path.read_bytes())
    first = 8 if kind != "libtiff" else struct.unpack_from("<I", data, 4)[0]
    for share, change in changes:
        start = first + int(share * min(len(data) - first - len(change), 400))
        data[start : start + len(change)] = change
    path.write_bytes(data)
    with little_memory(), contextlib.suppress(ImageError), open_image(path) as image:
        for level, this in enumerate(image.levels):
            y, x = max(0, this.height - 20), max(0, this.width - 20)
            for box in (Box(0, 0, 20, 20), Box(y, x, y + 20, x + 20)):
                with contextlib.suppress(ImageError):
                    assert image.read(box, level).shape == (20, 20, image.channels)
                    assert image.read_mask(box, level).shape == (20, 20)
    assert capsys.readouterr() == ("", "")
