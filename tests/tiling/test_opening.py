"""What `open_image` offers of every format: chosen channels, masks, lazy arrays, copies in other processes."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import dask.array
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.scaling import clamp
from coarse2fine.tiling.storage.byte_files import LocalFile


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 255, shape, endpoint=True).astype(dtype)


def whole(image: Image, level: int = 0) -> NDArray[np.uint8]:
    this = image.levels[level]
    return image.read(Box(0, 0, this.height, this.width), level)


def write_zarr(path: Path, pixels: NDArray[Any], chunks: tuple[int, ...], axes: str) -> None:
    group = zarr.open_group(path, mode="w")
    array = group.create_array("0", shape=pixels.shape, chunks=chunks, dtype=pixels.dtype)
    array[...] = pixels
    multiscale = {"axes": [{"name": axis} for axis in axes], "datasets": [{"path": "0"}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}


WRITERS: dict[str, Callable[[Path, NDArray[np.uint8]], object]] = {
    "tiles.tif": lambda path, pixels: tifffile.imwrite(path, pixels, tile=(32, 48), photometric="rgb"),
    "strips.tif": lambda path, pixels: tifffile.imwrite(path, pixels, rowsperstrip=7, photometric="rgb"),
    "planes.tif": lambda path, pixels: tifffile.imwrite(
        path, np.moveaxis(pixels, -1, 0), tile=(32, 32), photometric="rgb", planarconfig="separate"
    ),
    "pages.tif": lambda path, pixels: tifffile.imwrite(
        path, np.moveaxis(pixels, -1, 0), photometric="minisblack", metadata={"axes": "CYX"}
    ),
    "a.png": lambda path, pixels: path.write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()),
    "a.zarr": lambda path, pixels: write_zarr(path, np.moveaxis(pixels, -1, 0), (3, 32, 32), "cyx"),
}


@pytest.mark.parametrize("name", [*WRITERS, "array"])
def test_levels_as_arrays(tmp_path: Path, name: str) -> None:
    pixels = noise(101, 83, 3)
    if name != "array":
        WRITERS[name](tmp_path / name, pixels)
    with open_image(pixels if name == "array" else tmp_path / name) as image:
        array = image.array()
        assert (array.shape, array.dtype, array.read_only) == ((101, 83, 3), np.dtype(np.uint8), True)
        assert array.chunks == (*image.levels[0].chunk, 3)
        np.testing.assert_array_equal(array[...], pixels)
        np.testing.assert_array_equal(array[90:, 31:40, 1], pixels[90:, 31:40, 1])
        np.testing.assert_array_equal(dask.array.from_zarr(array).compute(), pixels)
        with pytest.raises(PermissionError, match="images are read, not written"):
            array[0, 0, 0] = 1
        with pytest.raises(ImageError, match="no level 1"):
            image.array(1)
    with pytest.raises(ImageError, match="is closed"):
        array[0, 0, 0]
    with pytest.raises(ImageError, match="is closed"):
        image.array()


@pytest.mark.parametrize("kind", ["zarr planes", "zarr pixels", "tiff pixels", "tiff pages", "array"])
@pytest.mark.parametrize("channels", [(4,), (5, 0, 3), (2, 2, 1), (0, 1, 2)])
def test_channels_by_index(tmp_path: Path, kind: str, channels: tuple[int, ...]) -> None:
    pixels = noise(70, 50, 6)
    planes = np.moveaxis(pixels, -1, 0)
    source: Any = tmp_path / kind
    if kind == "zarr planes":
        write_zarr(source, planes, (1, 32, 32), "cyx")
    elif kind == "zarr pixels":
        write_zarr(source, pixels, (32, 32, 6), "yxc")
    elif kind == "tiff pixels":
        tifffile.imwrite(source, pixels, tile=(32, 32), photometric="minisblack", planarconfig="contig")
    elif kind == "tiff pages":
        tifffile.imwrite(source, planes, photometric="minisblack", metadata={"axes": "CYX"})
    else:
        source = pixels
    with open_image(source, channels=channels) as image:
        assert image.channels == len(channels)
        assert f"channels {', '.join(map(str, channels))} of 6 used" in image.notes
        np.testing.assert_array_equal(whole(image), pixels[..., channels])
    with open_image(source) as image:
        assert "first 3 of 6 channels used" in image.notes


def test_channels_far_apart_are_read_alone(tmp_path: Path) -> None:
    planes = noise(20, 64, 64)
    write_zarr(tmp_path / "a", planes, (1, 64, 64), "cyx")
    with open_image(tmp_path / "a", channels=(19, 0, 10)) as image:
        before = image.stats.requests
        np.testing.assert_array_equal(whole(image), np.moveaxis(planes[[19, 0, 10]], 0, -1))
        assert image.stats.requests - before == 3


def test_channels_of_reals_have_their_own_range() -> None:
    values = np.stack([np.linspace(0, 1, 900), np.linspace(-50, 300, 900)], axis=1).reshape(30, 30, 2)
    low, high = np.percentile(values[..., 1], (0.1, 99.9))
    assert open_image(values, channels=(1,)).value_range == (low, high)
    assert open_image(values, channels=(0,)).value_range == (0.0, 1.0)


@pytest.mark.parametrize("channels", [(), (0, 1), (6,), (-1,), (0, 1, 6), (0, 1, 2, 3)])
def test_channels_that_are_not_there(tmp_path: Path, channels: tuple[int, ...]) -> None:
    write_zarr(tmp_path / "a", noise(6, 32, 32), (1, 32, 32), "cyx")
    with pytest.raises(ImageError, match="expected one or three of the channels 0 to 5") as caught:
        open_image(tmp_path / "a", channels=channels)
    assert str(caught.value).startswith(f"{tmp_path / 'a'}: ")


def test_files_are_closed_when_opening_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(9, 9))
    closed: list[LocalFile] = []

    def close(file: LocalFile) -> None:
        closed.append(file)

    monkeypatch.setattr(LocalFile, "close", close)
    with pytest.raises(ImageError, match="one or three of the channels"):
        open_image(tmp_path / "a.tif", channels=(1,))
    assert len(closed) == 1


def test_channels_need_channels(tmp_path: Path) -> None:
    image = open_image(noise(9, 9, 3))
    with pytest.raises(ValueError, match="give them on opening"):
        open_image(image, channels=(0,))
    with pytest.raises(ImageError, match="one or three of the channels 0 to 2, got 3"):
        open_image(noise(9, 9, 4), channels=(3,))  # opacity is none
    tifffile.imwrite(tmp_path / "a.tif", noise(9, 9), photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    with pytest.raises(ImageError, match="not channels to choose"):
        open_image(tmp_path / "a.tif", channels=(0,))


def assert_masked(image: Image, expected: NDArray[np.bool_]) -> None:
    height, width = expected.shape
    for box in (Box(0, 0, height, width), Box(-7, -3, 20, 30), Box(height - 5, 3, height + 9, width + 9)):
        inside = clamp(box, height, width)
        mask = np.zeros((box.height, box.width), dtype=bool)
        mask[
            inside.y0 - box.y0 : inside.y1 - box.y0,
            inside.x0 - box.x0 : inside.x1 - box.x0,
        ] = expected[inside.y0 : inside.y1, inside.x0 : inside.x1]
        np.testing.assert_array_equal(image.read_mask(box), mask)
    assert not image.read_mask(Box(height, 0, height + 4, 4)).any()
    assert not image.read_mask(Box(-9, -9, 0, 0)).any()


def test_mask_of_opacity(tmp_path: Path) -> None:
    pixels = noise(60, 50, 4)
    pixels[..., 3] = np.where(noise(60, 50, seed=1) < 90, 0, pixels[..., 3])
    expected = pixels[..., 3] > 0
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(32, 32), photometric="rgb", extrasamples=["unassalpha"])
    write_zarr(tmp_path / "a.zarr", pixels, (32, 32, 4), "yxc")
    for source in (pixels, tmp_path / "a.tif", tmp_path / "a.zarr"):
        with open_image(source) as image:
            assert image.masked
            assert_masked(image, expected)
    for channels in ((1,), (2, 0, 1)):
        with open_image(tmp_path / "a.tif", channels=channels) as image:
            assert_masked(image, expected)


def test_mask_of_nodata(tmp_path: Path) -> None:
    nodata: dict[str, Any] = {"extratags": [(42113, "s", 0, "7", True)], "tile": (32, 32)}
    grey = noise(60, 50) % 9
    tifffile.imwrite(tmp_path / "grey.tif", grey, **nodata)
    with open_image(tmp_path / "grey.tif") as image:
        assert image.masked
        assert_masked(image, grey != 7)
    colour = np.where(noise(60, 50, 1) < 90, 7, noise(60, 50, 3, seed=2) % 9).astype(np.uint8)
    tifffile.imwrite(tmp_path / "colour.tif", colour, photometric="rgb", **nodata)
    with open_image(tmp_path / "colour.tif") as image:
        assert_masked(image, np.asarray((colour != 7).any(axis=2)))


def test_mask_of_reals(tmp_path: Path) -> None:
    values = noise(60, 50, 3, dtype="f4") / 255
    values[noise(60, 50, seed=1) < 90] = np.nan
    values[5, 5] = 0.5, np.nan, 0.5
    expected = np.asarray(~np.isnan(values).all(axis=2))
    write_zarr(tmp_path / "a.zarr", values, (32, 32, 3), "yxc")
    for source in (values, tmp_path / "a.zarr"):
        with open_image(source) as image:
            assert image.masked
            assert_masked(image, expected)
            assert not whole(image)[~expected].any()
    tifffile.imwrite(tmp_path / "a.tif", values[..., 0], extratags=[(42113, "s", 0, "nan", True)])
    with open_image(tmp_path / "a.tif") as image:
        assert_masked(image, np.asarray(~np.isnan(values[..., 0])))


def test_mask_without_nodata_is_the_image(tmp_path: Path) -> None:
    with open_image(noise(60, 50, 3)) as image:
        assert not image.masked
        assert_masked(image, np.ones((60, 50), dtype=bool))
    with pytest.raises(ImageError, match="is closed"):
        image.read_mask(Box(0, 0, 5, 5))


def corner(image: Image) -> tuple[NDArray[np.uint8], tuple[float, float] | None, tuple[str, ...]]:
    return image.read(Box(0, 0, 40, 40)), image.mpp, image.notes


def test_images_go_to_other_processes(tmp_path: Path) -> None:
    pixels = noise(60, 50, 6)
    WRITERS["tiles.tif"](tmp_path / "größe.tif", pixels[..., :3])
    write_zarr(tmp_path / "a.zarr", np.moveaxis(pixels, -1, 0), (1, 32, 32), "cyx")
    images = [
        open_image(tmp_path / "größe.tif", mpp=0.5),
        open_image(tmp_path / "a.zarr", channels=(5, 0, 3)),
        open_image(pixels[..., :3], mpp=(1.0, 2.0)),
    ]
    expected = [corner(image) for image in images]
    there = [pickle.loads(pickle.dumps(image)) for image in images]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(corner, images)
    for found in ([corner(image) for image in there], elsewhere):
        for (mine, *rest), (other, *others) in zip(expected, found, strict=True):
            np.testing.assert_array_equal(mine, other)
            assert rest == others
    assert [image.name for image in there] == ["größe", "a", "array"]
    np.testing.assert_array_equal(expected[1][0], pixels[:40, :40, [5, 0, 3]])


def test_images_share_a_cache_and_leave_it(tmp_path: Path) -> None:
    for name in "abc":
        tifffile.imwrite(tmp_path / f"{name}.tif", noise(64, 64, seed=ord(name)), tile=(32, 32))
    first, second, third = (open_image(tmp_path / f"{name}.tif") for name in "abc")
    cache = first._cache
    assert cache is second._cache is third._cache
    before = cache._bytes
    for image in (first, second, third):
        whole(image)
    assert cache._bytes - before == 3 * 64 * 64
    for image in (first, second):  # chunks of the one are not taken for those of the other
        decoded = image.stats.chunks
        np.testing.assert_array_equal(whole(image)[..., 0], noise(64, 64, seed=ord(image.name)))
        assert image.stats.chunks == decoded
    first.close()
    assert cache._bytes - before == 2 * 64 * 64
    del second, image
    gc.collect()
    assert cache._bytes - before == 64 * 64
    third.close()
    assert cache._bytes == before


def test_channels_and_resolution_may_be_single_numbers() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 5)).astype(np.uint8)
    with open_image(pixels, channels=3, mpp=0.5) as image:
        np.testing.assert_array_equal(image.read(Box(0, 0, 20, 30))[..., 0], pixels[..., 3])
        assert image.mpp == (0.5, 0.5)
    with pytest.raises(ValueError, match=r"as one number or as two \(y, x\), got \(1,\)"):
        open_image(pixels, mpp=(1,))  # type: ignore[arg-type]
