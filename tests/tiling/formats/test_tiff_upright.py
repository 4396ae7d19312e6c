"""TIFF files stored turned, and overviews of files without a pyramid; NumPy, EXIF and OpenCV as oracles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.geometry import Box, PixelSize
from coarse2fine.tiling.opening import open_image

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled": {"tile": (32, 48), "compression": "deflate"},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "raw": {"rowsperstrip": 7},
    "planes": {"tile": (32, 48), "compression": "deflate", "planarconfig": "separate"},
}


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def exif(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels upright as the table of EXIF says: where the first row and the first column are to be seen."""
    row, column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    turned = stored if row in ("top", "bottom") else np.moveaxis(stored, 0, 1)
    vertical, horizontal = (row, column) if row in ("top", "bottom") else (column, row)
    turned = turned[::-1] if vertical == "bottom" else turned
    return turned[:, ::-1] if horizontal == "right" else turned


def write(path: Path, levels: list[NDArray[Any]], orientation: int, **options: Any) -> None:
    """Write levels as a page each, reduced ones after the first."""
    planar = options.get("planarconfig") == "separate"
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate(levels):
            writer.write(
                np.moveaxis(level, 2, 0) if planar else level,
                photometric="rgb" if level.ndim == 3 else "minisblack",
                subfiletype=int(index > 0),
                extratags=[(274, "H", 1, orientation, True)],
                metadata=None,
                **options,
            )


def by_index(pixels: NDArray[Any], box: Box) -> NDArray[Any]:
    rows = np.clip(np.arange(box.y0, box.y1), 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(box.x0, box.x1), 0, pixels.shape[1] - 1)
    return pixels[np.ix_(rows, columns)].reshape(box.height, box.width, -1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("layout", "grey"), [("tiled", False), ("tiled", True), ("strips", False), ("raw", True), ("planes", False)]
)
def test_orientation(tmp_path: Path, orientation: int, layout: str, grey: bool) -> None:
    stored = [noise(150 // 2**i, 202 // 2**i, *(() if grey else (3,)), seed=i) for i in range(3)]
    write(tmp_path / "a.tif", stored, 1, **LAYOUTS[layout])
    with open_image(tmp_path / "a.tif") as image:
        chunks = [level.chunk for level in image.levels]
    write(tmp_path / "a.tif", stored, orientation, **LAYOUTS[layout])
    rng = np.random.default_rng(orientation)
    with open_image(tmp_path / "a.tif") as image:
        turned = orientation >= 5
        assert image.notes == ((f"turned upright from orientation {orientation}",) if orientation > 1 else ())
        assert image.shape == ((202, 150) if turned else (150, 202)) + ((1,) if grey else (3,))
        assert len(image.levels) == 3
        for index, pixels in enumerate(stored):
            level, expected = image.levels[index], exif(pixels, orientation)
            assert (level.height, level.width) == expected.shape[:2]
            assert (level.downsample_y, level.downsample_x) == (2**index, 2**index)
            assert level.chunk == (chunks[index][::-1] if turned else chunks[index])
            np.testing.assert_array_equal(
                image.read(Box(0, 0, level.height, level.width), index), expected.reshape(*expected.shape[:2], -1)
            )
            for _ in range(6):
                y, x = (int(rng.integers(-20, side)) for side in (level.height, level.width))
                box = Box(y, x, y + int(rng.integers(1, 90)), x + int(rng.integers(1, 90)))
                np.testing.assert_array_equal(image.read(box, index), by_index(expected, box))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_belongs_to_places_is_turned_too(tmp_path: Path, orientation: int) -> None:
    stored = noise(30, 50)
    tags: list[Any] = [
        (274, "H", 1, orientation, True),
        (33550, "d", 3, (2.0, 3.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 100.0, 500.0, 0.0), True),
        (34735, "H", 8, (1, 1, 0, 1, 1025, 0, 1, 1), True),
        (42113, "s", 0, "7", True),
    ]
    resolution: dict[str, Any] = {"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}
    stored[4, 9] = 7
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=tags, metadata=None, **resolution)
    with open_image(tmp_path / "a.tif") as image:
        assert image.geo is not None
        a, b, c, d, e, f = image.geo.transform
        # Every pixel keeps its place on the planet: the world's x and y as pictures, turned like any other.
        rows, columns = np.mgrid[0:30, 0:50] + 0.5
        y, x = np.mgrid[0 : image.height, 0 : image.width] + 0.5
        np.testing.assert_allclose(a * x + b * y + c, exif(100 + 2 * columns, orientation))
        np.testing.assert_allclose(d * x + e * y + f, exif(500 - 3 * rows, orientation))
        sides = (0.25, 0.5) if orientation >= 5 else (0.5, 0.25)
        assert image.mpp == pytest.approx(sides)
        assert image.pixel_size == PixelSize(sides[0] / 1e4, sides[1] / 1e4, "centimeter")
        mask = image.read_mask(Box(0, 0, image.height, image.width))
        np.testing.assert_array_equal(mask, exif(stored != 7, orientation))


def area_average(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.float64]:
    """Mean of each block of pixels, of what the image has of it at the far edges."""
    height, width = pixels.shape[:2]
    out = np.empty((math.ceil(height / factor), math.ceil(width / factor), pixels.shape[2]))
    for y, x in np.ndindex(out.shape[:2]):
        out[y, x] = pixels[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].mean(axis=(0, 1))
    return out


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("layout", "channels"),
    [("tiled", 3), ("tiled", 1), ("strips", 3), ("strips", 1), ("raw", 3), ("raw", 1), ("planes", 3)],
)
def test_overview_of_divisible_sizes_equals_opencv(tmp_path: Path, factor: int, layout: str, channels: int) -> None:
    pixels = noise(192, 264, channels)
    write(tmp_path / "a.tif", [pixels if channels == 3 else pixels[..., 0]], 1, **LAYOUTS[layout])
    expected = cv2.resize(pixels, (264 // factor, 192 // factor), interpolation=cv2.INTER_AREA)
    expected = expected.reshape(192 // factor, 264 // factor, channels)
    rng = np.random.default_rng(factor)
    with open_image(tmp_path / "a.tif") as image:
        whole = image.read_scaled(Box(0, 0, 192 // factor, 264 // factor), factor)
        np.testing.assert_array_equal(whole, expected)
        chunk_y, chunk_x = image.levels[0].chunk
        assert image.stats.chunks == math.ceil(192 / chunk_y) * math.ceil(264 / chunk_x)
        for _ in range(8):  # most lie across borders of chunks
            y, x = (int(rng.integers(-5, side)) for side in expected.shape[:2])
            box = Box(y, x, y + int(rng.integers(1, 60)), x + int(rng.integers(1, 60)))
            np.testing.assert_array_equal(image.read_scaled(box, factor), by_index(expected, box))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 110),
    factor=st.sampled_from([2, 3, 4, 8]),
    layout=st.sampled_from(["tiled", "strips", "raw"]),
    seed=st.integers(0, 9),
)
def test_overview_of_any_size_is_the_area_average(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, factor: int, layout: str, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "overview.tif"
    pixels = noise(height, width, 3, seed=seed)
    write(path, [pixels], 1, **LAYOUTS[layout])
    expected = area_average(pixels, factor)
    rng = np.random.default_rng(seed)
    with open_image(path) as image:
        actual = image.read_scaled(Box(0, 0, *expected.shape[:2]), factor)
        assert np.abs(actual - expected).max() <= 0.5 + 1e-6  # the nearest whole value
        chunk_y, chunk_x = image.levels[0].chunk
        assert image.stats.chunks == math.ceil(height / chunk_y) * math.ceil(width / chunk_x)
        for _ in range(3):
            y, x = (int(rng.integers(-5, side)) for side in expected.shape[:2])
            box = Box(y, x, y + int(rng.integers(1, 40)), x + int(rng.integers(1, 40)))
            np.testing.assert_array_equal(image.read_scaled(box, factor), by_index(actual, box))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_overview_of_a_turned_image(tmp_path: Path, orientation: int) -> None:
    pixels = noise(150, 202, 3)
    write(tmp_path / "a.tif", [pixels], orientation, **LAYOUTS["tiled"])
    expected = area_average(exif(pixels, orientation), 4)
    with open_image(tmp_path / "a.tif") as image:
        actual = image.read_scaled(Box(0, 0, *expected.shape[:2]), 4)
        assert np.abs(actual - expected).max() <= 0.5 + 1e-6


def test_overview_of_a_large_image_is_one_pass(tmp_path: Path) -> None:
    pixels = noise(3000, 5000)
    write(tmp_path / "a.tif", [pixels], 1, tile=(512, 512), compression="zstd")
    with open_image(tmp_path / "a.tif") as image:
        actual = image.read_scaled(Box(0, 0, 375, 625), 8)
        expected = cv2.resize(pixels, (625, 375), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(actual[..., 0], expected)
        assert image.stats.chunks == 6 * 10
        assert image.stats.bytes == 3000 * 5000
