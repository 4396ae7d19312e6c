"""Arrays and TIFF files read as 8-bit pixels, against numpy and tifffile."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats.tiff_page import PageArray
from coarse2fine.tiling.geometry import Box, downsamples
from coarse2fine.tiling.image import CACHE_BYTES, Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.stats import ReadStats
from coarse2fine.tiling.storage.byte_files import LocalFile
from coarse2fine.tiling.storage.chunk_cache import ChunkCache

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    limit = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, limit, shape, dtype=dtype, endpoint=True)


def whole(image: Image, level: int = 0) -> NDArray[np.uint8]:
    this = image.levels[level]
    return image.read(Box(0, 0, this.height, this.width), level)


def outside_by_index(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    rows = np.clip(np.arange(box.y0, box.y1), 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(box.x0, box.x1), 0, pixels.shape[1] - 1)
    return pixels[np.ix_(rows, columns)]


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.uint8]]:
    path = tmp_path_factory.mktemp("tiled") / "tiled.tif"
    pixels = noise(700, 900, 3)
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="zlib", photometric="rgb")
    return path, pixels


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3)])
def test_array_is_read_unchanged(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    image = open_image(pixels)
    assert image.shape == (30, 40, shape[2] if len(shape) == 3 else 1)
    assert (image.name, image.path, image.format, image.mpp) == ("array", None, "array", None)
    np.testing.assert_array_equal(whole(image), pixels.reshape(image.shape))


def test_reading_never_shares_memory_with_the_source() -> None:
    pixels = np.zeros((8, 8), dtype=np.uint8)
    open_image(pixels).read(Box(0, 0, 8, 8))[:] = 9
    assert pixels.max() == 0


def test_conversion_to_eight_bits() -> None:
    boolean = np.array([[True, False]])
    np.testing.assert_array_equal(whole(open_image(boolean))[..., 0], [[255, 0]])
    wide = np.array([[0, 128, 129, 32768, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(whole(open_image(wide))[..., 0], [[0, 0, 1, 128, 255]])
    signed = np.array([[-32768, 32767]], dtype=np.int16)
    np.testing.assert_array_equal(whole(open_image(signed))[..., 0], [[0, 255]])
    swapped = wide.astype(">u2")
    np.testing.assert_array_equal(whole(open_image(swapped)), whole(open_image(wide)))
    unit = np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32)
    np.testing.assert_array_equal(whole(open_image(unit))[..., 0], [[0, 128, 255, 0]])


def test_reals_beyond_one_use_percentiles_and_say_so() -> None:
    values = np.linspace(-50.0, 950.0, 10_000).reshape(100, 100)
    image = open_image(values)
    low, high = np.percentile(values, (0.1, 99.9))
    assert image.value_range == pytest.approx((low, high))
    assert any("percentile" in note for note in image.notes)
    assert (whole(image).min(), whole(image).max()) == (0, 255)


def test_constant_reals_can_be_opened() -> None:
    assert whole(open_image(np.full((4, 4), 7.0))).shape == (4, 4, 1)


def test_opacity_is_composited_on_white() -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    image = open_image(pixels)
    np.testing.assert_array_equal(whole(image)[0, :, 0], [255, 127, 0])
    assert image.channels == 3
    assert image.notes == ("alpha composited on white",)


def test_more_than_four_channels_are_cut_to_three() -> None:
    pixels = noise(9, 9, 6)
    image = open_image(pixels)
    np.testing.assert_array_equal(whole(image), pixels[..., :3])
    assert image.notes == ("first 3 of 6 channels used",)


def test_image_is_returned_unchanged() -> None:
    image = open_image(noise(4, 4), mpp=(0.5, 0.25))
    assert open_image(image) is image
    assert open_image(image, mpp=(0.5, 0.25)) is image
    with pytest.raises(ValueError, match="give them on opening"):
        open_image(image, mpp=3)


def test_mpp_is_validated() -> None:
    assert open_image(noise(4, 4), mpp=2).mpp == (2.0, 2.0)
    for wrong in (0, -1, float("nan"), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="positive microns"):
            open_image(noise(4, 4), mpp=wrong)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(-900, 900), st.integers(-1100, 1100), st.integers(1, 300), st.integers(1, 300))
def test_any_box_equals_the_whole_image(
    tiled: tuple[Path, NDArray[np.uint8]], y: int, x: int, height: int, width: int
) -> None:
    path, pixels = tiled
    box = Box(y, x, y + height, x + width)
    with open_image(path) as image:
        np.testing.assert_array_equal(image.read(box), outside_by_index(pixels, box))
    np.testing.assert_array_equal(open_image(pixels).read(box), outside_by_index(pixels, box))


def test_a_box_costs_its_own_chunks_once(tiled: tuple[Path, NDArray[np.uint8]]) -> None:
    with open_image(tiled[0]) as image:
        assert image.stats.chunks == 0
        image.read(Box(256, 256, 512, 512))
        assert image.stats.chunks == 1
        image.read(Box(240, 240, 528, 528))
        assert image.stats.chunks == 9
        image.read(Box(0, 0, 700, 768))
        before = image.stats.snapshot()
        assert before.chunks == 9
        whole(image)
        assert (before.chunks, image.stats.chunks) == (9, 12)
        assert image.stats.bytes == 700 * 900 * 3
        assert image.stats.seconds > 0


def test_threads_share_decoding(tiled: tuple[Path, NDArray[np.uint8]]) -> None:
    path, pixels = tiled
    with open_image(path) as image, ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: whole(image), range(16)):
            np.testing.assert_array_equal(result, pixels)
        assert image.stats.chunks == 12


def test_cache_keeps_to_its_bound_and_awaits_loading() -> None:
    cache = ChunkCache(250)
    loads: list[int] = []
    started, release = threading.Event(), threading.Event()

    def load(key: int) -> NDArray[np.uint8]:
        loads.append(key)
        return np.zeros(100, dtype=np.uint8)

    for key in (1, 2, 1, 3, 1, 2):
        cache.get((key,), lambda key=key: load(key))  # type: ignore[misc]
    assert loads == [1, 2, 3, 2]

    def slow() -> NDArray[np.uint8]:
        started.set()
        assert release.wait(5)
        return load(9)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, (9,), slow)
        assert started.wait(5)
        second = pool.submit(cache.get, (9,), slow)
        release.set()
        assert first.result() is second.result()
    assert loads.count(9) == 1


def test_cache_forgets_failures_and_keeps_one_large_array() -> None:
    cache = ChunkCache(10)

    def fail() -> NDArray[np.uint8]:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        cache.get((1,), fail)
    large = cache.get((1,), lambda: np.zeros(1000, dtype=np.uint8))
    assert cache.get((1,), fail) is large
    assert CACHE_BYTES == 256 * 2**20


@pytest.mark.parametrize("kind", ["tiled", "stripped", "one strip", "planar", "bigtiff", "jpeg", "big-endian"])
def test_tiff_layouts_equal_tifffile(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.tif"
    pixels = noise(333, 222, 3)
    options: dict[str, dict[str, Any]] = {
        "tiled": {"tile": (64, 64), "compression": "zlib", "predictor": True},
        "stripped": {"rowsperstrip": 5},
        "one strip": {"rowsperstrip": 333, "compression": "lzw"},
        "planar": {"planarconfig": "separate", "tile": (64, 64)},
        "bigtiff": {"bigtiff": True, "tile": (128, 128)},
        "jpeg": {"tile": (64, 64), "compression": "jpeg"},
        "big-endian": {"byteorder": ">"},
    }
    stored = np.moveaxis(pixels, -1, 0) if kind == "planar" else pixels
    tifffile.imwrite(path, stored, photometric="rgb", **options[kind])
    expected = tifffile.imread(path)
    with open_image(path) as image:
        assert (image.format, image.shape, image.notes) == ("tiff", (333, 222, 3), ())
        np.testing.assert_array_equal(whole(image), np.moveaxis(expected, 0, -1) if kind == "planar" else expected)


def test_tiff_sixteen_bit_grey(tmp_path: Path) -> None:
    pixels = noise(100, 90, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(32, 32))
    with open_image(tmp_path / "a.tif") as image:
        assert image.value_range == (0.0, 65535.0)
        np.testing.assert_array_equal(whole(image)[..., 0], np.rint(pixels / 257.0))


def test_tiff_range_from_the_file(tmp_path: Path) -> None:
    twelve = noise(64, 64, dtype="uint16") % 4096
    tifffile.imwrite(tmp_path / "max.tif", twelve, extratags=[(281, "H", 1, 4095, True)])
    with open_image(tmp_path / "max.tif") as image:
        assert image.value_range == (0.0, 4095.0)
        np.testing.assert_array_equal(whole(image)[..., 0], np.rint(twelve * (255 / 4095)))
    tifffile.imwrite(tmp_path / "bits.tif", twelve, bitspersample=12, photometric="minisblack")
    with open_image(tmp_path / "bits.tif") as image:
        assert image.value_range == (0.0, 4095.0)


def test_tiff_where_low_is_white_and_bilevel(tmp_path: Path) -> None:
    pixels = noise(40, 40)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(whole(image)[..., 0], 255 - pixels)
    bits = pixels > 100
    tifffile.imwrite(tmp_path / "b.tif", bits, photometric="minisblack", bitspersample=1)
    with open_image(tmp_path / "b.tif") as image:
        np.testing.assert_array_equal(whole(image)[..., 0], bits * 255)


def test_tiff_palette(tmp_path: Path) -> None:
    index = noise(30, 30)
    colours = noise(3, 256, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=colours)
    with open_image(tmp_path / "a.tif") as image:
        assert image.channels == 3
        np.testing.assert_array_equal(whole(image), (colours // 256).T[index])


@pytest.mark.parametrize("widened", [256, 257])
def test_tiff_palette_of_eight_bits_is_exact(tmp_path: Path, widened: int) -> None:
    index, colours = noise(30, 30), noise(3, 256)
    tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=colours * np.uint16(widened))
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(whole(image), colours.T[index])


def test_tiff_opacity_and_further_bands(tmp_path: Path) -> None:
    pixels = noise(50, 40, 4)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(whole(image), whole(open_image(pixels)))
    tifffile.imwrite(tmp_path / "b.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    with open_image(tmp_path / "b.tif") as image:
        assert image.notes == ("first 3 of 4 channels used",)
        np.testing.assert_array_equal(whole(image), pixels[..., :3])
    pixels[..., :3] = pixels[..., :3] // 255 * pixels[..., 3:]  # colour may not exceed opacity
    tifffile.imwrite(tmp_path / "c.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    with open_image(tmp_path / "c.tif") as image:
        np.testing.assert_array_equal(whole(image), pixels[..., :3] + (255 - pixels[..., 3:]))
    grey = noise(50, 40, 2)
    tifffile.imwrite(
        tmp_path / "d.tif", grey, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    with open_image(tmp_path / "d.tif") as image:
        assert image.channels == 1
        assert image.notes == ("alpha composited on white",)


def test_tiff_cmyk_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(20, 20, 4), photometric="separated")
    with pytest.raises(ImageError, match="SEPARATED; convert it to RGB"):
        open_image(tmp_path / "a.tif")


def test_tiff_planes_of_a_stack(tmp_path: Path) -> None:
    stack = noise(5, 60, 70)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(whole(image)[..., 0], stack[0])
        assert image.notes == ("first of 5 planes along axis Z used",)
    tifffile.imwrite(tmp_path / "b.ome.tif", stack, photometric="minisblack", metadata={"axes": "CYX"})
    with open_image(tmp_path / "b.ome.tif") as image:
        np.testing.assert_array_equal(whole(image), np.moveaxis(stack[:3], 0, -1))
        assert image.notes == ("first 3 of 5 channels used",)


@pytest.mark.parametrize("kind", ["subifds", "pages"])
def test_tiff_pyramid(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    pixels = noise(515, 1029, 3)
    levels = [pixels, pixels[:514:2, :1028:2], pixels[:512:4, :1028:4]]
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(levels[0], subifds=2 if kind == "subifds" else 0, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
        writer.write(noise(100, 100, 3), photometric="rgb", description="macro")
        writer.write(noise(256, 512, 3), photometric="rgb", description="label", subfiletype=1)
    with open_image(path) as image:
        assert [(level.height, level.width) for level in image.levels] == [
            (515, 1029),
            (257, 514),
            (128, 257),
        ]
        assert [(level.downsample_y, level.downsample_x) for level in image.levels] == [
            (1, 1),
            (2, 2),
            (4, 4),
        ]
        for index, expected in enumerate(levels):
            np.testing.assert_array_equal(whole(image, index), expected)


def test_tiff_mpp(tmp_path: Path) -> None:
    pixels = noise(32, 32)
    path = tmp_path / "a.tif"
    cases: list[tuple[tuple[float, float], str, tuple[float, float] | None]] = [
        ((20000, 40000), "CENTIMETER", (0.25, 0.5)),
        ((25400, 25400), "INCH", (1.0, 1.0)),
        ((72, 72), "INCH", None),
        ((1, 1), "CENTIMETER", None),
        ((5, 5), "NONE", None),
    ]
    for resolution, unit, expected in cases:
        tifffile.imwrite(path, pixels, resolution=resolution, resolutionunit=unit)
        with open_image(path) as image:
            assert image.mpp == expected, (resolution, unit)
            assert bool(image.notes) == (expected is None)
    metadata = {"PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "b.ome.tif", pixels, metadata=metadata)
    with open_image(tmp_path / "b.ome.tif") as image:
        assert (image.format, image.mpp) == ("ome-tiff", (0.25, 0.5))
    with open_image(tmp_path / "b.ome.tif", mpp=3.0) as image:
        assert image.mpp == (3.0, 3.0)


def test_pages_equal_the_zarr_store(tmp_path: Path) -> None:
    import zarr  # noqa: PLC0415

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(150, 130, 3), tile=(32, 48), photometric="rgb", compression="lzw")
    with tifffile.TiffFile(path) as file:
        plain = zarr.open_array(store=file.series[0].aszarr(level=0), mode="r")
        fast = PageArray(file.pages[0], LocalFile(path, ReadStats()))
        for key in ((slice(0, 150), slice(0, 130), slice(0, 3)), (slice(31, 65), slice(5, 97), slice(0, 1))):
            np.testing.assert_array_equal(fast[key], np.asarray(plain[key]))


@pytest.mark.parametrize(
    ("name", "mpp", "levels", "kind"),
    [
        ("cmu-1-small-region.svs", (0.499, 0.499), 1, "svs"),
        ("tcga-jpeg2000.svs", None, 2, "svs"),
        ("kidney.tif", None, 1, "tiff"),
        ("rastervision-geotiff.tif", None, 1, "tiff"),
    ],
)
def test_real_files(name: str, mpp: tuple[float, float] | None, levels: int, kind: str) -> None:
    path = DATA / "formats" / name
    if not path.is_file():
        pytest.skip("the shared data is not here")
    with open_image(path) as image, tifffile.TiffFile(path) as file:
        assert (image.mpp, len(image.levels), image.format) == (mpp, levels, kind)
        box = Box(500, 300, 760, 620)
        expected = file.series[0].levels[-1].asarray()
        scale = levels - 1
        np.testing.assert_array_equal(image.read(box, scale), expected[500:760, 300:620])


def test_scikit_image_photographs() -> None:
    import skimage.data  # noqa: PLC0415

    for pixels in (skimage.data.retina(), skimage.data.hubble_deep_field()):
        image = open_image(pixels)
        assert image.shape == pixels.shape
        np.testing.assert_array_equal(image.read(Box(100, 100, 300, 400)), pixels[100:300, 100:400])


def test_level_and_closed_image_errors(tiled: tuple[Path, NDArray[np.uint8]]) -> None:
    image = open_image(tiled[0])
    with pytest.raises(ImageError, match="there is no level 1"):
        image.read(Box(0, 0, 1, 1), 1)
    image.close()
    image.close()
    with pytest.raises(ImageError, match="is closed"):
        image.read(Box(0, 0, 1, 1))


def test_an_image_closed_while_it_is_read_is_not_called_damaged(tiled: tuple[Path, NDArray[np.uint8]]) -> None:
    image = open_image(tiled[0])

    def read(level: int, box: Box) -> NDArray[np.uint8]:
        image.close()
        return stored(level, box)

    stored = image._source.read
    object.__setattr__(image._source, "read", read)
    with pytest.raises(ImageError, match="is closed"):
        image.read(Box(0, 0, 1, 1))


def test_levels_that_fit_several_factors() -> None:
    cases = {
        ((301, 403), (18, 25)): (16, 16),
        ((301, 301), (18, 18)): (16, 16),
        ((100_000, 90_000), (195, 175)): (512, 512),
        ((901, 1200), (300, 400)): (3, 3),
        ((32914, 46000), (8228, 11500)): (4, 4),
        ((1, 3000), (1, 1500)): (2, 2),
        ((1000, 2000), (500, 2000)): (2, 1),
        ((1000, 1000), (601, 603)): (1000 / 601, 1000 / 603),
    }
    for sizes, expected in cases.items():
        assert downsamples(*sizes) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent(tiled: tuple[Path, NDArray[np.uint8]]) -> None:
    image, begun, go_on = open_image(tiled[0]), threading.Event(), threading.Event()

    def read(level: int, box: Box) -> NDArray[np.uint8]:
        begun.set()
        assert go_on.wait(60)
        return stored(level, box)

    stored = image._source.read
    object.__setattr__(image._source, "read", read)
    thread = threading.Thread(target=lambda: image.read(Box(0, 0, 9, 9)))
    thread.start()
    try:
        assert begun.wait(60)
        child = os.fork()
        if child == 0:
            go_on.set()
            signal.alarm(30)
            os._exit(int((image.read(Box(0, 0, 9, 9)) != tiled[1][:9, :9].reshape(9, 9, -1)).any()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        go_on.set()
        thread.join()


def test_sparse_tiles_are_the_nodata_value(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 64), tile=(32, 32), extratags=[(42113, "s", 0, "9", True)])
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = file.pages[0].tags[name]
            tag.overwrite((*tag.value[:3], 0))
    with open_image(path) as image:
        assert set(np.unique(image.read(Box(32, 32, 64, 64)))) == {9}


def test_tiff_ycbcr_without_jpeg_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = np.full((16, 16, 3), (76, 85, 255), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(530, "H", 2, (1, 1), True)])
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[262].overwrite(6)
    with open_image(path) as image:
        assert np.abs(whole(image).astype(int) - (254, 0, 0)).max() <= 1


def test_range_of_a_large_real_image_is_sampled(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = np.tile(np.arange(4096, dtype=np.float32), (1100, 1))
    values[:256, :256] = -9999
    options: dict[str, Any] = {"tile": (256, 256), "extratags": [(42113, "s", 0, "-9999", True)]}
    tifffile.imwrite(path, values, **options)
    with open_image(path) as image:
        assert image.value_range == pytest.approx((0, 4095), abs=300)
        assert image.value_range[0] >= 0
