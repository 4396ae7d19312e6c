"""Area averages against OpenCV and against a plain loop."""

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

from coarse2fine.tiling import scaling
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.storage.chunk_cache import ChunkCache


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def shares(length: int, factor: float, count: int) -> NDArray[np.float64]:
    """Covered share of every level pixel (columns) in every output pixel (rows), the slow and plain way."""
    pixel, output = np.arange(length), np.arange(count)[:, None]
    table = np.maximum(0.0, np.minimum(pixel + 1, (output + 1) * factor) - np.maximum(pixel, output * factor))
    table[~table.any(axis=1), -1] = 1.0
    normalised: NDArray[np.float64] = table / table.sum(axis=1, keepdims=True)
    return normalised


def plain_average(level: NDArray[np.uint8], factor: tuple[float, float], size: tuple[int, int]) -> NDArray[np.float64]:
    rows = shares(level.shape[0], factor[0], size[0])
    columns = shares(level.shape[1], factor[1], size[1])
    narrow = np.tensordot(rows, level.astype(np.float64), (1, 0))
    return np.moveaxis(np.tensordot(narrow, columns, (1, 1)), -1, 1)


def scaled(image: Image, downsample: int) -> NDArray[np.uint8]:
    height, width = ceil_div(image.height, downsample), ceil_div(image.width, downsample)
    return image.read_scaled(Box(0, 0, height, width), downsample)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("downsample", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32])
def test_whole_factors_equal_opencv(downsample: int, channels: int) -> None:
    pixels = noise(downsample * 21, downsample * 17, channels, seed=downsample)
    expected = cv2.resize(pixels, (17, 21), interpolation=cv2.INTER_AREA).reshape(21, 17, channels)
    np.testing.assert_array_equal(scaled(open_image(pixels), downsample), expected)


@pytest.mark.parametrize("downsample", [2896, 2897, 3000, 5001, 7000, 10**9])
def test_the_largest_factors_neither_overflow_nor_hold_the_image(downsample: int) -> None:
    pixels = np.full((6000, 5000, 1), 255, dtype=np.uint8)
    pixels[:3000] = 200
    expected = plain_average(pixels, (downsample, downsample), (ceil_div(6000, downsample), ceil_div(5000, downsample)))
    result = scaled(open_image(pixels), downsample)
    assert np.abs(result - expected).max() <= 0.5 + 1e-6


def test_large_factors_read_bounded_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "MOST_SUMMED", 64)
    monkeypatch.setattr(scaling, "PIECE_BYTES", 2**14)
    pixels = noise(400, 300, 3)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(16, 16))
    image, read = open_image(tmp_path / "a.tif"), []

    def noted(box: Box, level: int = 0) -> NDArray[np.uint8]:
        read.append(box.area)
        return plain(box, level)

    plain, image.read = image.read, noted  # type: ignore[method-assign]
    for downsample in (9, 50, 170, 1000):
        expected = plain_average(
            pixels, (downsample, downsample), (ceil_div(400, downsample), ceil_div(300, downsample))
        )
        assert np.abs(scaled(image, downsample) - expected).max() <= 0.5 + 1e-6
    assert max(read) <= 128 * 128  # small tiles are decoded in groups of that size


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_partial_blocks_average_what_the_image_has(height: int, width: int, downsample: int) -> None:
    pixels = noise(height, width, 1, seed=height)
    size = ceil_div(height, downsample), ceil_div(width, downsample)
    expected = plain_average(pixels, (downsample, downsample), size)
    result = scaled(open_image(pixels), downsample)
    assert result.shape == (*size, 1)
    assert np.abs(result - expected).max() <= 0.5 + 1e-9


@pytest.fixture(scope="module")
def pyramids(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images with levels at whole, floored and fractional downsamples that differ in y and x."""
    folder = tmp_path_factory.mktemp("pyramids")
    sizes = {
        "whole": [(240, 320), (120, 160), (60, 80)],
        "floored": [(243, 323), (60, 80)],
        "fractional": [(240, 320), (96, 129)],
        "single": [(233, 311)],
    }
    paths = {}
    for name, levels in sizes.items():
        paths[name] = folder / f"{name}.tif"
        with tifffile.TiffWriter(paths[name]) as writer:
            for index, size in enumerate(levels):
                extra: dict[str, Any] = {"subifds": len(levels) - 1} if index == 0 else {"subfiletype": 1}
                writer.write(noise(*size, 3, seed=index), tile=(48, 48), photometric="rgb", **extra)
    return paths


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.sampled_from(["whole", "floored", "fractional", "single"]),
    st.integers(1, 20),
    st.tuples(st.integers(-30, 250), st.integers(-30, 330), st.integers(1, 90), st.integers(1, 90)),
)
def test_any_block_equals_the_same_part_of_the_whole(
    pyramids: dict[str, Path], name: str, downsample: int, place: tuple[int, int, int, int]
) -> None:
    box = Box(place[0], place[1], place[0] + place[2], place[1] + place[3])
    with open_image(pyramids[name]) as image:
        plane = scaled(image, downsample)
        rows = np.clip(np.arange(box.y0, box.y1), 0, plane.shape[0] - 1)
        columns = np.clip(np.arange(box.x0, box.x1), 0, plane.shape[1] - 1)
        np.testing.assert_array_equal(image.read_scaled(box, downsample), plane[np.ix_(rows, columns)])


@pytest.mark.parametrize("name", ["whole", "floored", "fractional", "single"])
@pytest.mark.parametrize("downsample", [1, 2, 3, 4, 5, 8, 11])
def test_levels_equal_the_plain_average(pyramids: dict[str, Path], name: str, downsample: int) -> None:
    with open_image(pyramids[name]) as image:
        fitting = [level for level in image.levels if level.downsample_x <= downsample * 1.001]
        level = fitting[-1]
        pixels = image.read(Box(0, 0, level.height, level.width), level.index)
        factor = downsample / level.downsample_y, downsample / level.downsample_x
        result = scaled(image, downsample)
        expected = plain_average(pixels, factor, (result.shape[0], result.shape[1]))
        assert np.abs(result - expected).max() <= 0.5 + 1e-6


def test_floored_sizes_count_as_whole_downsamples(pyramids: dict[str, Path]) -> None:
    with open_image(pyramids["floored"]) as image:
        assert (image.levels[1].downsample_y, image.levels[1].downsample_x) == (4.0, 4.0)
    with open_image(pyramids["fractional"]) as image:
        assert image.levels[1].downsample_y == 2.5
        assert image.levels[1].downsample_x == pytest.approx(320 / 129)


def test_factors_with_little_drift_are_whole() -> None:
    assert scaling._factor(4.0003, 1000) == 4.0
    assert scaling._factor(4.0003, 10_000) == 4.0003
    assert scaling._factor(0.9999, 100) == 1.0


def test_a_stored_level_is_read_as_it_is(pyramids: dict[str, Path]) -> None:
    with open_image(pyramids["whole"]) as image:
        result = scaled(image, 4)
        np.testing.assert_array_equal(result, image.read(Box(0, 0, 60, 80), 2))
        assert image.stats.bytes == 60 * 80 * 3


def test_large_requests_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    pixels = noise(1000, 1200)
    tifffile.imwrite(path, pixels, tile=(64, 64))
    for downsample in (3, 8):
        with open_image(path) as image:
            expected = scaled(image, downsample)
            monkeypatch.setattr(scaling, "PIECE_BYTES", 64 * 64 * 4)
            largest = 0
            read = image.read

            def watched(box: Box, level: int = 0, read: Any = read) -> NDArray[np.uint8]:
                nonlocal largest
                largest = max(largest, box.area)
                pixels: NDArray[np.uint8] = read(box, level)
                return pixels

            monkeypatch.setattr(image, "read", watched)
            before = image.stats.chunks
            np.testing.assert_array_equal(scaled(image, downsample), expected)
            assert largest <= 64 * 64 * 4
            assert image.stats.chunks == before
            monkeypatch.undo()


def test_streaming_decodes_each_chunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "PIECE_BYTES", 2**17)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(1000, 1200), tile=(240, 240))
    with open_image(path) as image:
        image._cache = ChunkCache(4 * 1200 * 240)
        scaled(image, 16)
        assert image.stats.chunks == 25


def test_downsample_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        open_image(noise(4, 4)).read_scaled(Box(0, 0, 1, 1), 0)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_blocks_cover_the_plane_once(height: int, width: int, size: int) -> None:
    cover = np.zeros((height, width), dtype=int)
    found = list(blocks(height, width, size))
    for box in found:
        cover[box.y0 : box.y1, box.x0 : box.x1] += 1
    assert (cover == 1).all()
    assert found == sorted(found)
    assert len(found) == math.ceil(height / size) * math.ceil(width / size)


def test_blocks_need_a_size() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        list(blocks(4, 4, 0))
