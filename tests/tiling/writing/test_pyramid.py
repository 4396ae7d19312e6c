"""Writing pyramids: every level against a plain average, and clean failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.writing import pyramid
from coarse2fine.tiling.writing.pyramid import write_pyramid


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def plain_half(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = (pixels.shape[0] + 1) // 2, (pixels.shape[1] + 1) // 2
    out = np.empty((height, width, pixels.shape[2]), dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            block = pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(np.float64)
            out[y, x] = np.floor(block.mean(axis=(0, 1)) + 0.5)
    return out


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("chunk", "block_size"), [(8, 32), (16, 16), (32, 128)])
def test_levels_equal_the_plain_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, chunk: int, block_size: int
) -> None:
    monkeypatch.setattr(pyramid, "COARSEST_SIDE", 20)
    pixels = noise(101, 143, channels)
    calls: list[tuple[int, int]] = []
    path = write_pyramid(
        tmp_path / "scene.zarr",
        (101, 143, channels),
        lambda box: pixels[box.y0 : box.y1, box.x0 : box.x1],
        chunk=chunk,
        block_size=block_size,
        progress=lambda done, total: calls.append((done, total)),
    )
    total = -(-101 // block_size) * -(-143 // block_size)
    assert calls == [(i + 1, total) for i in range(total)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene.zarr"]
    image = open_image(path)
    assert [(level.height, level.width) for level in image.levels] == [
        (101, 143),
        (51, 72),
        (26, 36),
        (13, 18),
    ]
    assert image.shape == pixels.shape
    expected = pixels
    for level in image.levels:
        found = image.read(Box(0, 0, level.height, level.width), level.index)
        np.testing.assert_array_equal(found, expected)
        expected = plain_half(expected)
    assert [level.downsample_y for level in image.levels] == [1.0, 2.0, 4.0, 8.0]


def test_metadata(tmp_path: Path) -> None:
    path = write_pyramid(
        tmp_path / "scene.zarr", (1500, 1100, 3), lambda box: np.full((box.height, box.width, 3), 9, np.uint8)
    )
    group = zarr.open_group(path, mode="r")
    ome: Any = group.attrs["ome"]
    image = ome["multiscales"][0]
    assert (ome["version"], image["name"]) == ("0.5", "scene")
    assert [axis["name"] for axis in image["axes"]] == ["c", "y", "x"]
    assert [axis.get("unit") for axis in image["axes"]] == [None, None, None]
    steps = image["datasets"][1]["coordinateTransformations"]
    assert steps[0] == {"type": "scale", "scale": [1.0, 2.0, 2.0]}
    assert steps[1] == {"type": "translation", "translation": [0.0, 0.5, 0.5]}
    opened = open_image(path)
    assert (opened.mpp, len(opened.levels), opened.format) == (None, 2, "ome-zarr")
    first: Any = group["0"]
    assert (first.chunks, first.metadata.zarr_format, first.shards) == ((3, 512, 512), 3, None)


def test_a_small_grey_image_has_one_level(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.zarr", (100, 90, 1), lambda box: noise(box.height, box.width, 1))
    image = open_image(path)
    assert (image.mpp, image.shape, len(image.levels)) == (None, (100, 90, 1), 1)
    np.testing.assert_array_equal(image.read(Box(0, 0, 100, 90)), noise(100, 90, 1))


def test_existing_target_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    target.mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        write_pyramid(target, (10, 10, 1), lambda box: noise(box.height, box.width, 1))
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()])
def test_a_failing_block_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def block(box: Box) -> NDArray[np.uint8]:
        if box.y0:
            raise error
        return noise(box.height, box.width, 1)

    with pytest.raises(type(error)):
        write_pyramid(tmp_path / "a.zarr", (300, 300, 1), block, chunk=32, block_size=64)
    assert list(tmp_path.iterdir()) == []


def test_wrong_blocks_and_arguments_are_refused(tmp_path: Path) -> None:
    def good(box: Box) -> NDArray[np.uint8]:
        return noise(box.height, box.width, 1)

    path = tmp_path / "a.zarr"
    with pytest.raises(ValueError, match="to be uint8 of shape"):
        write_pyramid(path, (20, 20, 1), lambda box: good(box)[..., 0])
    with pytest.raises(ValueError, match="to be uint8 of shape"):
        write_pyramid(path, (20, 20, 1), lambda box: good(box).astype(np.float32))
    with pytest.raises(ValueError, match="expected a shape"):
        write_pyramid(path, (20, 20, 2), good)
    for chunk, block_size in ((0, 64), (48, 96), (64, 32), (64, 192)):
        with pytest.raises(ValueError, match="powers of two"):
            write_pyramid(path, (20, 20, 1), good, chunk=chunk, block_size=block_size)
    with pytest.raises(ValueError, match="larger block size"):
        write_pyramid(path, (100_000, 100_000, 1), good, chunk=64, block_size=64)
    assert list(tmp_path.iterdir()) == []
