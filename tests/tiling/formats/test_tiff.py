"""Slices of TIFF pages and stacks, bit for bit as tifffile decodes them: as arrays, and by its Zarr store."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats.tiff import _array
from coarse2fine.tiling.formats.tiff_page import PageArray, RawArray, StackArray
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.stats import ReadStats
from coarse2fine.tiling.storage.byte_files import LocalFile

IN_TMP = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

BYTES = ("u1", "u2", "f4", "?")
CODECS: dict[str | None, tuple[str, ...]] = {
    None: BYTES,
    "packbits": BYTES,
    "lzw": BYTES,
    "deflate": BYTES,
    "adobe_deflate": BYTES,
    "zstd": BYTES,
    "lerc": ("u1", "u2"),
    "jpeg": ("u1",),
    "jpeg2000": ("u1", "u2"),
    "aperio_jp2000_ycbc": ("u1",),
    "aperio_jp2000_rgb": ("u1",),
    "webp": ("u1",),
    "jpegxl": ("u1", "u2"),
}
DIFFERENCED = ("packbits", "lzw", "deflate", "adobe_deflate", "zstd")


def noise(*shape: int, dtype: str = "u1", seed: int = 0) -> NDArray[Any]:
    values = np.random.default_rng(seed).integers(0, 2**16, shape)
    if dtype == "?":
        return np.asarray(values % 2 == 0)
    return (values / 2**16 if dtype == "f4" else values).astype(dtype)


@dataclass(frozen=True)
class Layout:
    """How a page is written."""

    codec: str | None
    dtype: str
    samples: int
    planar: bool
    tile: tuple[int, int] | None
    rows: int
    predictor: bool
    big_endian: bool
    bigtiff: bool
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        if self.samples == 1:
            return self.height, self.width
        return (self.samples, self.height, self.width) if self.planar else (self.height, self.width, self.samples)

    def write(self, path: Path) -> None:
        options: dict[str, Any] = {"tile": self.tile} if self.tile else {"rowsperstrip": self.rows}
        if self.samples > 1:
            options["planarconfig"] = "separate" if self.planar else "contig"
        tifffile.imwrite(
            path,
            noise(*self.shape, dtype=self.dtype),
            photometric="rgb" if self.samples >= 3 else "minisblack",
            compression=self.codec,
            predictor=self.predictor,
            byteorder=">" if self.big_endian else "<",
            bigtiff=self.bigtiff,
            metadata=None,
            **options,
        )


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    codec = draw(st.sampled_from(list(CODECS)))
    dtype = draw(st.sampled_from(CODECS[codec]))
    samples = draw(st.sampled_from((3, 4) if codec == "webp" else (1, 2, 3, 4) if codec == "jpeg" else (1, 2, 3, 4, 5)))
    return Layout(
        codec,
        dtype,
        samples,
        planar=samples > 1 and codec != "webp" and draw(st.booleans()),
        tile=draw(st.sampled_from([None, (16, 16), (16, 48)])),
        rows=draw(st.integers(1, 50)),
        predictor=codec in DIFFERENCED and dtype != "?" and draw(st.booleans()),
        # These codecs encode no other byte order than this machine's.
        big_endian=codec not in ("jpegxl", "lerc") and draw(st.booleans()),
        bigtiff=draw(st.booleans()),
        height=draw(st.integers(1, 50)),
        width=draw(st.integers(8, 70)),
    )


def slices(data: st.DataObject, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A part of an array that is not empty."""
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    return tuple(slice(i, data.draw(st.integers(i + 1, size))) for i, size in zip(starts, shape, strict=True))


def opened(series: Any, path: Path) -> Any:
    """The array that is read of a series, and its file; as long as the array is used."""
    return _array(series, LocalFile(path, ReadStats()))[0]


def assert_equal(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(actual, expected)


def assert_slices_equal(path: Path, kind: type, data: st.DataObject, times: int = 3) -> None:
    """Compare random slices of the first series with both of tifffile's ways to read it."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        whole, store = series.asarray(), zarr.open_array(series.aszarr(level=0), mode="r")
        array = opened(series, path)
        assert (type(array), array.shape, array.dtype) == (kind, whole.shape, whole.dtype)
        for key in (tuple(slice(0, size) for size in whole.shape), *(slices(data, whole.shape) for _ in range(times))):
            assert_equal(array[key], whole[key])
            assert_equal(array[key], np.asarray(store[key]))


@IN_TMP
@given(layouts(), st.data())
def test_any_page_equals_tifffile(tmp_path: Path, layout: Layout, data: st.DataObject) -> None:
    path = tmp_path / "a.tif"
    layout.write(path)
    with tifffile.TiffFile(path) as file:
        raw = file.pages[0].is_final
    assert raw == (layout.codec is None and layout.dtype != "?" and (layout.tile is None or raw))
    assert_slices_equal(path, RawArray if raw else PageArray, data)


@pytest.mark.parametrize("codec", list(CODECS))
def test_every_codec_is_installed_and_read(tmp_path: Path, codec: str | None) -> None:
    for dtype, tile in itertools.product(CODECS[codec], [None, (16, 32)]):
        layout = Layout(codec, dtype, 3, False, tile, 7, False, False, False, 37, 53)
        layout.write(tmp_path / "a.tif")
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            array = opened(file.series[0], tmp_path / "a.tif")
            assert not isinstance(array, zarr.Array)
            assert_equal(array[0:37, 0:53, 0:3], file.asarray())


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_ycbcr_jpeg(tmp_path: Path, subsampling: tuple[int, int], tile: tuple[int, int] | None) -> None:
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": tile} if tile else {"rowsperstrip": 16}
    tifffile.imwrite(
        path, noise(70, 90, 3), photometric="ycbcr", compression="jpeg", subsampling=subsampling, **options
    )
    with tifffile.TiffFile(path) as file, open_image(path) as image:
        assert_equal(opened(file.series[0], path)[5:69, 3:90, 0:3], file.asarray()[5:69, 3:90])
        assert_equal(image.read(Box(0, 0, 70, 90)), file.asarray())


def split_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """Tables of a JPEG stream, and the stream without them."""
    tables, rest, position = b"", b"", 2
    while jpeg[position + 1] != 0xDA:
        end = position + 2 + int(struct.unpack_from(">H", jpeg, position + 2)[0])
        if jpeg[position + 1] in (0xDB, 0xC4):
            tables += jpeg[position:end]
        else:
            rest += jpeg[position:end]
        position = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + jpeg[position:]


def write_segments(path: Path, segments: list[bytes], shape: tuple[int, ...], codec: Any, **options: Any) -> None:
    """Write a tiled TIFF of tiles that are encoded already."""
    tifffile.imwrite(
        path, iter(segments), shape=shape, dtype="u1", compression=codec, tile=(32, 32), metadata=None, **options
    )


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_one_strip_of_any_number_of_rows(tmp_path: Path, compression: str | None) -> None:
    path, pixels = tmp_path / "a.tif", noise(37, 53, 3)
    tifffile.imwrite(path, pixels, photometric="rgb", compression=compression, rowsperstrip=37)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["RowsPerStrip"].overwrite(2**32 - 1, dtype="I")
    with open_image(path) as image:
        assert_equal(image.read(Box(0, 0, 37, 53)), pixels)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_jpeg_with_shared_tables(tmp_path: Path, photometric: str) -> None:
    pixels = noise(32, 96, 3)
    options: dict[str, Any] = {"colorspace": "rgb", "outcolorspace": photometric, "subsampling": "444"}
    parts = [split_tables(bytes(imagecodecs.jpeg_encode(pixels[:, x : x + 32], **options))) for x in (0, 32, 64)]
    tables = parts[0][0]
    tag = (347, 7, len(tables), tables, True)
    write_segments(
        tmp_path / "a.tif", [part[1] for part in parts], (32, 96, 3), "jpeg", photometric=photometric, extratags=[tag]
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].jpegtables == tables
        array = opened(file.series[0], tmp_path / "a.tif")
        assert_equal(array[0:32, 0:96, 0:3], file.asarray())
        assert np.abs(file.asarray().astype(int) - pixels).mean() < 12


@pytest.mark.parametrize("codec", ["jpeg", "png", "deflate"])
def test_tiles_that_end_where_the_image_does(tmp_path: Path, codec: str) -> None:
    pixels = noise(40, 50, 3)
    encode: Callable[[NDArray[Any]], bytes | bytearray] = {
        "jpeg": lambda tile: imagecodecs.jpeg_encode(tile, colorspace="rgb", outcolorspace="rgb"),
        "png": imagecodecs.png_encode,
        "deflate": lambda tile: imagecodecs.deflate_encode(tile.tobytes()),
    }[codec]
    tiles = [bytes(encode(pixels[y : y + 32, x : x + 32])) for y in (0, 32) for x in (0, 32)]
    write_segments(tmp_path / "a.tif", tiles, (40, 50, 3), codec, photometric="rgb")
    with tifffile.TiffFile(tmp_path / "a.tif") as file, open_image(tmp_path / "a.tif") as image:
        expected = file.asarray()
        assert codec == "jpeg" or np.array_equal(expected, pixels)
        assert_equal(opened(file.series[0], tmp_path / "a.tif")[3:40, 1:50, 0:3], expected[3:, 1:])
        assert_equal(image.read(Box(0, 0, 40, 50)), expected)


@pytest.mark.parametrize("zero", ["ByteCounts", "Offsets"])
@pytest.mark.parametrize("kind", ["Tile", "Strip"])
def test_sparse_segments(tmp_path: Path, kind: str, zero: str) -> None:
    path = tmp_path / "a.tif"
    pixels, gone = noise(48, 64), (0, 5, 6, 11)
    options: dict[str, Any] = {"tile": (16, 16)} if kind == "Tile" else {"rowsperstrip": 4}
    nodata = (42113, "s", 0, "7", True)
    tifffile.imwrite(path, pixels, compression="lzw", metadata=None, extratags=[nodata], **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags[kind + zero]
        tag.overwrite([0 if index in gone else value for index, value in enumerate(tag.value)])
    for index in gone:
        y, x = (index // 4 * 16, index % 4 * 16) if kind == "Tile" else (4 * index, 0)
        pixels[y : y + (16 if kind == "Tile" else 4), x : x + (16 if kind == "Tile" else 64)] = 7
    with tifffile.TiffFile(path) as file:  # whose own `asarray` reads on across the gaps
        store, array = zarr.open_array(file.series[0].aszarr(), mode="r"), opened(file.series[0], path)
        assert isinstance(array, PageArray)
        for key in ((slice(0, 48), slice(0, 64)), (slice(14, 33), slice(3, 50)), (slice(1, 3), slice(2, 7))):
            assert_equal(array[key], pixels[key])
            assert_equal(array[key], np.asarray(store[key]))


def stacks() -> Iterator[Any]:
    """Shapes and axes of what fills more than one page, how it is written, and how it should be read."""
    tiled: dict[str, Any] = {"tile": (16, 32), "compression": "deflate"}
    for axes, shape in (
        ("CYX", (5, 40, 50)),
        ("TCZYX", (1, 4, 1, 40, 50)),
        ("ZCYX", (2, 3, 40, 50)),
        ("TZCYX", (2, 2, 2, 33, 47)),
        ("CYXS", (2, 40, 50, 3)),
    ):
        for options, kind in ((tiled, StackArray), ({"compression": "lzw"}, StackArray), ({}, RawArray)):
            yield pytest.param(axes, shape, {"ome": True, **options}, kind, id=f"ome {axes} {kind.__name__} {options}")
    yield pytest.param("TZCYX", (2, 3, 2, 40, 50), {"imagej": True}, RawArray, id="imagej")
    yield pytest.param("ZCYX", (3, 2, 40, 50), {"imagej": True, "byteorder": ">"}, RawArray, id="imagej big-endian")
    yield pytest.param("ZYX", (3, 40, 50), {"imagej": True, "compression": "lzw"}, StackArray, id="imagej lzw")
    yield pytest.param("QYX", (3, 40, 50), {**tiled}, StackArray, id="shaped")


@pytest.mark.parametrize(("axes", "shape", "options", "kind"), list(stacks()))
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_stacks_equal_tifffile(
    tmp_path: Path, axes: str, shape: tuple[int, ...], options: dict[str, Any], kind: type, data: st.DataObject
) -> None:
    path = tmp_path / "a.tif"
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    tifffile.imwrite(path, noise(*shape, dtype="u2"), photometric=photometric, metadata={"axes": axes}, **options)
    assert_slices_equal(path, kind, data)
    with tifffile.TiffFile(path) as file:
        array, whole = opened(file.series[0], path), file.series[0].asarray()
        lead = whole.ndim - (3 if axes.endswith("S") else 2)
        for place in itertools.product(*(range(size) for size in whole.shape[:lead])):
            key = (*place, slice(3, 30), slice(2, 40), slice(0, 2))[: whole.ndim]
            assert_equal(array[key], whole[key])


def test_ome_pyramid_of_several_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    levels = [noise(3, 96 // 2**i, 128 // 2**i, dtype="u2", seed=i) for i in range(3)]
    with tifffile.TiffWriter(path, ome=True) as writer:
        options: dict[str, Any] = {"tile": (16, 32), "compression": "zstd", "photometric": "minisblack"}
        writer.write(levels[0], subifds=2, metadata={"axes": "CYX"}, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    with tifffile.TiffFile(path) as file, open_image(path) as image:
        assert [(level.height, level.width) for level in image.levels] == [(96, 128), (48, 64), (24, 32)]
        for index, (series, expected) in enumerate(zip(file.series[0].levels, levels, strict=True)):
            array = opened(series, path)
            assert isinstance(array, StackArray)
            assert_equal(array[0:3, 2:20, 1:31], expected[:, 2:20, 1:31])
            height, width = expected.shape[1:]
            assert_equal(
                image.read(Box(0, 0, height, width), index),
                np.rint(np.moveaxis(expected, 0, -1) / 257).astype(np.uint8),
            )


def test_volumes_fall_back_to_the_store(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    volume = noise(20, 33, 47)
    tifffile.imwrite(path, volume, tile=(16, 16, 16), volumetric=True, compression="deflate", photometric="minisblack")
    with tifffile.TiffFile(path) as file, open_image(path) as image:
        assert isinstance(opened(file.series[0], path), zarr.Array)
        assert_equal(image.read(Box(0, 0, 33, 47))[..., 0], volume[0])
        assert image.notes == ("first of 20 planes along axis Z used",)


def test_large_strips_of_plain_samples_are_read_by_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = noise(3000, 1000)
    tifffile.imwrite(path, pixels, rowsperstrip=3000)
    with open_image(path) as image:
        before = image.stats.snapshot()
        np.testing.assert_array_equal(image.read(Box(1000, 0, 1064, 1000))[..., 0], pixels[1000:1064])
        # Two chunks of 64 rows, as the box lies across their border.
        assert (image.stats.chunks, image.stats.fetched - before.fetched) == (2, 2 * 64 * 1000)


def test_the_stream_that_tifffile_reads_costs_linear_time(tmp_path: Path) -> None:
    from coarse2fine.tiling.storage.byte_files import FileStream  # noqa: PLC0415

    path = tmp_path / "a.bin"
    path.write_bytes(noise(2**25).tobytes())
    stream = FileStream(LocalFile(path, ReadStats()), "a.bin")
    stream.seek(3)
    assert stream.read(2**25) == path.read_bytes()[3:]


def test_samples_of_another_type_than_promised(tmp_path: Path) -> None:
    png = bytes(imagecodecs.png_encode(noise(32, 32, dtype="u2")))
    write_segments(tmp_path / "a.tif", [png], (32, 32), "png", photometric="minisblack")
    with (
        open_image(tmp_path / "a.tif") as image,
        pytest.raises(ImageError, match="holds uint16 samples, expected uint8"),
    ):
        image.read(Box(0, 0, 32, 32))
