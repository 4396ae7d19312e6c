"""Which stored values are black and white, where samples have more than eight bits."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.tiling.conversion.convert import convert
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats import raster
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.value_range import Origin, ValueRange


def grey(*shape: int, seed: int = 0) -> NDArray[np.int64]:
    """An 8-bit picture of a usual kind: much in the middle, little at both ends."""
    values = np.random.default_rng(seed).normal(120, 45, shape)
    return np.clip(np.rint(values), 0, 255).astype(np.int64)


def whole(image: Image) -> NDArray[np.int64]:
    return image.read(Box(0, 0, image.height, image.width)).astype(np.int64)


def ends(image: Image) -> tuple[float, float]:
    return image.value_range


@pytest.mark.parametrize(
    ("factor", "dtype", "most"),
    [
        (1, "u2", 255),  # 8 bits in 16
        (16, "u2", 4095),
        (16, "i2", 4095),
        (16, "i4", 4095),
        (16, "f4", 4095),  # whole numbers, whatever their type
        (16, ">u2", 4095),
        (64, "u2", 16383),
        (256, "u2", 65535),
        (100, "i4", 32767),
        (2000, "u4", 2**19 - 1),
        (1, "i8", 255),
        (1, "f8", 255),
    ],
)
def test_whole_numbers_fill_the_bits_that_hold_them(factor: int, dtype: str, most: int) -> None:
    pixels = grey(90, 80)
    image = open_image((pixels * factor).astype(dtype))
    assert ends(image) == (0, most)
    expected = np.rint(pixels * factor * 255 / most)
    assert np.abs(whole(image)[..., 0] - expected).max() <= 1  # halves may fall to either side
    assert f"range 0..{most:g}" in image.notes[-1]


def test_few_hot_pixels_and_what_has_no_data_do_not_count(tmp_path: Path) -> None:
    pixels = (grey(400, 400) * 16).astype("u2")
    pixels.flat[:: 400 * 40] = 65535  # 10 of 160,000
    pixels[:50] = 60_000
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), extratags=[(42113, "s", 0, "60000", True)])
    with open_image(tmp_path / "a.tif") as image:
        assert ends(image) == (0, 4095)
    reals = grey(100, 100) / 3.0
    reals[:30] = np.nan
    reals[30:40] = np.inf
    reals[40] = -np.inf
    low, high = np.percentile(reals[41:], (0.1, 99.9))
    assert open_image(reals).value_range == pytest.approx((low, high))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_without_any_value_says_so(value: float) -> None:
    image = open_image(np.full((70, 80), value, np.float32))
    assert image.scale == ValueRange(0, 1, "empty", "float32")
    assert image.notes == ("range 0..1 (assumed: no pixel with data could be read) scaled to 0..255",)
    again = Origin.parse(Origin(image.scale).to_json(), 1)
    assert again is not None
    assert again.scale == image.scale


@pytest.mark.parametrize("values", ["negative", "narrow", "few"])
def test_other_whole_numbers_are_stretched(values: str) -> None:
    pixels = {"negative": grey(90, 80) * 20 - 900, "narrow": grey(90, 80) + 7500, "few": grey(90, 80) // 20}[values]
    image = open_image(pixels.astype("i2"))
    assert ends(image) == pytest.approx(tuple(np.percentile(pixels, (0.1, 99.9))))
    assert "0.1 to 99.9 percentile" in image.notes[-1]
    assert (whole(image).min(), whole(image).max()) == (0, 255)


def test_dark_pictures_that_were_widened_stay_as_they_are() -> None:
    dark = grey(90, 80) // 8
    np.testing.assert_array_equal(whole(open_image((dark * 257).astype("u2")))[..., 0], dark)


@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "f4"])
@pytest.mark.parametrize("value", [0, 7])
def test_one_value_everywhere(dtype: str, value: int) -> None:
    assert set(np.unique(whole(open_image(np.full((30, 40), value, dtype))))) == {value}


def test_eight_bits_are_read_as_they_are() -> None:
    dark = (grey(50, 60) // 8).astype("u1")
    image = open_image(dark, value_range=(0, 40))
    np.testing.assert_array_equal(whole(image)[..., 0], dark)
    assert image.notes == ("value_range 0..40 is not used: 8 bits are read as they are",)
    assert open_image(dark).notes == ()


def test_a_range_that_is_asked_for(tmp_path: Path) -> None:
    pixels = (grey(50, 60) * 16).astype("u2")
    for kind, source in (("array", pixels), ("tiff", tmp_path / "a.tif"), ("png", tmp_path / "a.png")):
        if kind == "tiff":
            tifffile.imwrite(source, pixels, extratags=[(281, "H", 1, 3000, True)])
        elif kind == "png":
            cv2.imwrite(str(source), pixels)
        with open_image(source, value_range=(400, 2000)) as image:
            assert ends(image) == (400, 2000)
            expected = np.rint(np.clip((pixels - 400.0) / 1600, 0, 1) * 255)
            assert np.abs(whole(image)[..., 0] - expected).max() <= 1
            with pickle.loads(pickle.dumps(image)) as copy:
                assert (copy.value_range, copy.notes) == (image.value_range, image.notes)
    for wrong in ((1, 1), (2, 1), (0, np.inf), (0, 1, 2)):
        with pytest.raises(ValueError, match="low < high"):
            open_image(pixels, value_range=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give them on opening"):
        open_image(open_image(pixels), value_range=(0, 1))


LARGE = grey(2300, 2100, seed=3) * 16  # more than is looked at whole
LARGE[600:640, 900:940] = -30_000  # falls between the windows


def test_the_range_does_not_depend_on_chunks(tmp_path: Path) -> None:
    pixels = (LARGE - 900).astype("i2")
    found = {open_image(pixels).value_range}
    for name, options in (("a", {"tile": (128, 256)}), ("b", {"rowsperstrip": 37, "compression": "zlib"}), ("c", {})):
        tifffile.imwrite(tmp_path / name, pixels, **options)
        with open_image(tmp_path / name) as image:
            found.add(image.value_range)
    array = zarr.create_array(tmp_path / "d", shape=pixels.shape, chunks=(1000, 300), dtype="i2")
    array[...] = pixels
    with open_image(tmp_path / "d") as image:
        found.add(image.value_range)
    assert len(found) == 1
    assert found.pop() == pytest.approx(tuple(np.percentile(pixels, (0.1, 99.9))), rel=0.03)


def test_little_is_read_and_only_when_it_is_needed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LARGE.astype("i2"), tile=(64, 64))
    with open_image(tmp_path / "a.tif") as image:
        before = image.stats.fetched
        assert image.shape == (2300, 2100, 1)
        assert image.stats.fetched == before
        assert image.value_range
        once = image.stats.fetched
        assert 0 < once - before <= 4 * 16 * 16 * 64 * 64 * 2  # windows of 64 px on tiles of 64 px
        assert image.value_range
        assert image.stats.fetched == once
        image.close()
        assert image.value_range
    with open_image(tmp_path / "a.tif") as unread:
        pass
    with pytest.raises(ImageError, match=r"a\.tif: the image is closed"):
        _ = unread.value_range


def test_small_bright_things_count_though_the_coarsest_level_hardly_shows_them(tmp_path: Path) -> None:
    pixels = np.full((2048, 2048), 100, np.uint16)
    pixels[::8, ::8] = 4000
    small = pixels.reshape(256, 8, 256, 8).mean(axis=(1, 3)).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, tile=(256, 256), subifds=1)
        file.write(small, tile=(256, 256), subfiletype=1)
    with open_image(tmp_path / "a.tif") as image:
        assert len(image.levels) == 2
        assert small.max() < 256
        assert ends(image) == (0, 4095)


def test_what_the_tags_say_comes_first(tmp_path: Path) -> None:
    pixels, signed = (grey(50, 60) * 8).astype("u2"), (grey(50, 60) * 8 - 900).astype("i2")
    reals = (grey(50, 60) / 7 - 3).astype("f4")
    cases: list[tuple[NDArray[Any], list[Any], tuple[float, float] | None]] = [
        (pixels, [(280, "H", 1, 100, True), (281, "H", 1, 3000, True)], (100, 3000)),
        (pixels, [(281, "H", 1, 65535, True)], None),  # says nothing
        (pixels, [(280, "H", 1, 9, True), (281, "H", 1, 3, True)], None),  # cannot be
        (signed, [(340, "h", 1, -1000, True), (341, "h", 1, 1500, True)], (-1000, 1500)),
        (reals, [(340, "f", 1, -5.0, True), (341, "f", 1, 40.0, True)], (-5, 40)),
        (reals, [(340, "f", 1, float("nan"), True), (341, "f", 1, 40.0, True)], None),
        (reals, [(340, "f", 1, -99.0, True), (341, "f", 1, 40.0, True), (42113, "s", 0, "-99", True)], None),
    ]
    for values, tags, expected in cases:
        tifffile.imwrite(tmp_path / "a.tif", values, extratags=tags)
        with open_image(tmp_path / "a.tif") as image:
            assert ends(image) == (open_image(values).value_range if expected is None else expected), tags
            assert any("as the file says" in note for note in image.notes) == (expected is not None)


@pytest.mark.parametrize(("bits", "most"), [(12, 4095), (16, 2047), (0, 2047)])
def test_significant_bits_of_ome_xml(tmp_path: Path, bits: int, most: int) -> None:
    pixels = (grey(50, 60) * 8).astype("u2")
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": "YX", "SignificantBits": bits})
    with open_image(tmp_path / "a.ome.tif") as image:
        assert ends(image) == (0, most)


def write_omero(path: Path, pixels: NDArray[Any], windows: list[Any]) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    array = group.create_array("0", shape=pixels.shape, chunks=(1, 32, 32), dtype=pixels.dtype)
    array[...] = pixels
    channels = [{"window": window} for window in windows]
    multiscale: dict[str, Any] = {"version": "0.4", "axes": [{"name": n} for n in "cyx"], "datasets": [{"path": "0"}]}
    group.attrs.update({"multiscales": [multiscale], "omero": {"channels": channels}})


def test_windows_of_omero(tmp_path: Path) -> None:
    pixels = np.stack([grey(40, 50, seed=seed) * 8 for seed in range(3)]).astype("u2")
    windows = [{"start": low, "end": high, "min": 0, "max": 65535} for low, high in ((0, 4000), (0, 4000), (50, 5000))]
    write_omero(tmp_path / "a", pixels, windows)
    with open_image(tmp_path / "a", channels=0) as image:
        assert ends(image) == (0, 4000)
        np.testing.assert_array_equal(whole(image)[..., 0], np.rint(pixels[0] * (255 / 4000)))
        assert image.notes[-1] == "range 0..4000 (as the file says) scaled to 0..255"
    with open_image(tmp_path / "a", channels=2) as image:
        assert ends(image) == (50, 5000)
    with open_image(tmp_path / "a") as image:
        assert ends(image) == (0, 5000)
        assert image.notes[-1] == "the file has a range for each channel; one that holds them all is used"
    for damaged in (
        None,
        3,
        {},
        {"start": "a", "end": 1},
        {"start": 9, "end": 1},
        {"start": 0, "end": 65535},
        {"start": 0, "end": 10**400},
    ):
        write_omero(tmp_path / "a", pixels, [damaged] * 3)
        with open_image(tmp_path / "a") as image:
            assert ends(image) == (0, 2047), damaged
    write_omero(tmp_path / "a", pixels.astype("u1"), windows)
    with open_image(tmp_path / "a") as image:
        assert ends(image) == (0, 255)


def test_low_values_that_are_white(tmp_path: Path) -> None:
    pixels = (grey(50, 60) * 16).astype("u2")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    with open_image(tmp_path / "a.tif") as image:
        assert ends(image) == (4095, 0)
        assert image.notes[-1] == "low values are white, as the file says"
        np.testing.assert_array_equal(whole(image)[..., 0], np.rint((4095.0 - pixels) / 4095 * 255))
    with open_image(tmp_path / "a.tif", value_range=(0, 4000)) as image:
        assert ends(image) == (4000, 0)


def test_a_copy_has_the_pixels_and_states_the_range(tmp_path: Path) -> None:
    pixels = (grey(5, 70, 80) * 16).astype("u2")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", metadata={"axes": "CYX"})
    for asked in (None, (100.0, 3000.0)):
        with open_image(tmp_path / "a.tif", channels=(3, 0, 1), value_range=asked) as image:
            copy = tmp_path / f"{asked}.zarr"
            convert(image, copy)
            with open_image(copy) as copied:
                np.testing.assert_array_equal(whole(copied), whole(image))
                assert (copied.scale, copied.used) == (image.scale, (3, 0, 1))
                assert set(image.scale.notes) <= set(copied.notes)
            with open_image(copy, channels=2) as copied:
                assert copied.used == (1,)
    convert(pixels[0], tmp_path / "b.zarr", value_range=(0, 5000))
    with open_image(tmp_path / "b.zarr") as copied:
        assert ends(copied) == (0, 5000)
    attributes = zarr.open_group(tmp_path / "b.zarr").attrs
    records: list[Any] = [
        None,
        [],
        {"value_range": "ab"},
        {"value_range": [0, 1], "rule": "none", "samples": "u2"},
        {"value_range": [0, 9], "rule": "depth", "samples": "u2", "channels": [0, 1]},
        {"value_range": [0, 10**400], "rule": "depth", "samples": "u2"},
    ]
    for damaged in records:
        attributes["coarse2fine"] = damaged
        with open_image(tmp_path / "b.zarr") as copied:
            assert ends(copied) == (0, 255)


def test_the_cache_on_disk_keeps_pictures_by_their_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COARSE2FINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(raster, "CACHED_BYTES", 1000)
    pixels = (grey(50, 60) * 16).astype("u2")
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    for _ in range(2):
        for asked, ends in ((None, (0, 4095)), ((0, 5000), (0, 5000))):
            with open_image(tmp_path / "a.png", value_range=asked) as image:
                assert (image.value_range, len(image.notes)) == (ends, 1)
                np.testing.assert_array_equal(whole(image)[..., 0], np.rint(pixels * (255 / ends[1])))
    assert len(list((tmp_path / "cache").iterdir())) == 2
