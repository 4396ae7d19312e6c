"""Places that a file leaves out or that are damaged: masked, or read from the next finer level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

Pixels = NDArray[np.uint8]
GONE, DAMAGED = "gone", "damaged"


def halved(pixels: NDArray[Any]) -> NDArray[Any]:
    height, width = pixels.shape[:2]
    blocks = pixels.reshape(height // 2, 2, width // 2, 2, -1).mean((1, 3))
    small: NDArray[Any] = np.rint(blocks).reshape(height // 2, width // 2, *pixels.shape[2:]).astype(pixels.dtype)
    return small


def levels(channels: int = 3) -> list[Pixels]:
    """Three levels of 1024, 512 and 256 pixels, each the mean of the finer one, of values that need no rounding."""
    rng = np.random.default_rng(3)
    full = rng.integers(0, 16, (1024, 1024, channels), dtype=np.uint8) * np.uint8(16)
    full = full[..., 0] if channels == 1 else full
    return [full, halved(full), halved(halved(full))]


def write_tiff(path: Path, pixels: list[Any], **options: Any) -> None:
    kind: dict[str, Any] = {"tile": (128, 128), "compression": "zlib", "metadata": None, **options}
    kind.setdefault("photometric", "rgb" if pixels[0].ndim == 3 else "minisblack")
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels[0], **kind)
        for level in pixels[1:]:
            writer.write(level, subfiletype=1, **kind)


def spoil(path: Path, level: int, tiles: list[int], how: str) -> None:
    """Take tiles away from a level, as a sparse file has them, or overwrite them with zeros."""
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[level]
        assert isinstance(page, tifffile.TiffPage)
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if how == GONE:
            for name in ("TileOffsets", "TileByteCounts"):
                tag = page.tags[name]
                tag.overwrite([0 if i in tiles else value for i, value in enumerate(tag.value)])
    if how == DAMAGED:
        data = bytearray(path.read_bytes())
        for tile in tiles:
            offset, count = places[tile]
            data[offset : offset + count] = bytes(count)
        path.write_bytes(data)


def whole(image: Any, level: int) -> Box:
    return Box(0, 0, image.levels[level].height, image.levels[level].width)


@pytest.mark.parametrize("how", [GONE, DAMAGED])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_reduced_level_of_a_tiff_lacks_is_read_from_the_finer_one(
    tmp_path: Path, how: str, channels: int
) -> None:
    stored = levels(channels)
    write_tiff(tmp_path / "a.tif", stored)
    spoil(tmp_path / "a.tif", 1, [5], how)
    spoil(tmp_path / "a.tif", 2, [1], how)
    with open_image(tmp_path / "a.tif") as image:
        assert [level.downsample_y for level in image.levels] == [1, 2, 4]
        for level, expected in enumerate(stored):
            np.testing.assert_array_equal(image.read(whole(image, level), level).squeeze(), expected)
            assert image.read_mask(whole(image, level), level).all()
        np.testing.assert_array_equal(image.read_scaled(Box(3, 130, 60, 250), 4).squeeze(), stored[2][3:60, 130:250])
        assert not image.masked
        assert bool(image.notes) == (how == GONE)


def test_what_a_reduced_level_of_a_zarr_lacks_is_read_from_the_finer_one(tmp_path: Path) -> None:
    stored = levels(1)
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    for index, pixels in enumerate(stored):
        group.create_array(str(index), data=pixels, chunks=(128, 128))
    axes: Any = [{"name": name, "type": "space"} for name in "yx"]
    paths: Any = [{"path": str(index)} for index in range(3)]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": paths}]
    (tmp_path / "a.zarr" / "1" / "2.1").write_bytes(b"no chunk")
    (tmp_path / "a.zarr" / "2" / "1.0").write_bytes(b"")
    with open_image(tmp_path / "a.zarr") as image:
        for level, expected in enumerate(stored):
            np.testing.assert_array_equal(image.read(whole(image, level), level)[..., 0], expected)


def test_what_is_made_from_a_finer_level_is_counted(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", levels())
    spoil(tmp_path / "a.tif", 1, [2, 5], DAMAGED)
    spoil(tmp_path / "a.tif", 2, [1], DAMAGED)
    with open_image(tmp_path / "a.tif") as image:
        assert list(image.damage.notes) == []
        for _ in range(2):
            for box in (Box(0, 0, 100, 256), Box(0, 300, 100, 340), Box(0, 256, 128, 384)):
                image.read(box, 1)
                image.read_mask(box, 1)
        (note,) = image.damage.notes
        assert note.startswith("1 chunk(s) of reduced levels cannot be read")
        image.read(whole(image, 2), 2)
        image.read(whole(image, 1), 1)
        (note,) = image.damage.notes
        assert note == (
            "3 chunk(s) of reduced levels cannot be read and were made from the next finer level; "
            "the first: level 1, y=0, x=256"
        )


def test_no_more_is_read_than_what_is_missing(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", levels())
    spoil(tmp_path / "a.tif", 2, [1], DAMAGED)
    with open_image(tmp_path / "a.tif") as image:
        image.read(whole(image, 2), 2)
        # Its own four tiles; the four of the finer level that lie under the damaged one.
        assert image.stats.chunks == 4 + 4


def test_what_both_levels_lack_is_an_error(tmp_path: Path) -> None:
    stored = levels()
    write_tiff(tmp_path / "a.tif", stored)
    for level in (0, 1):
        spoil(tmp_path / "a.tif", level, [0], DAMAGED)
    with open_image(tmp_path / "a.tif") as image:
        with pytest.raises(ImageError, match=r"a\.tif: level 1, chunk at y=0, x=0 .*damaged there"):
            image.read(Box(0, 0, 8, 8), 1)
        np.testing.assert_array_equal(image.read(Box(128, 0, 256, 128), 1), stored[1][128:256, :128])


def test_a_place_missing_everywhere_has_no_data(tmp_path: Path) -> None:
    stored = levels()
    write_tiff(tmp_path / "a.tif", stored)
    spoil(tmp_path / "a.tif", 0, [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27], GONE)
    spoil(tmp_path / "a.tif", 1, [0, 1, 4, 5], GONE)
    spoil(tmp_path / "a.tif", 2, [0], GONE)
    with open_image(tmp_path / "a.tif") as image:
        assert image.masked
        assert image.notes == ("16 of 64 strips or tiles are not stored: they have no data, and are white",)
        for level, expected in enumerate(stored):
            side = len(expected) // 2
            mask = np.ones(expected.shape[:2], dtype=bool)
            mask[:side, :side] = False
            np.testing.assert_array_equal(image.read_mask(whole(image, level), level), mask)
            white = np.where(mask[..., None], expected, 255)
            np.testing.assert_array_equal(image.read(whole(image, level), level), white)
        before = image.stats.requests
        image.read_mask(Box(0, 0, 32, 32), 2)
        assert image.stats.requests == before  # nothing to look for in the finer levels


def test_sparse_parts_of_real_samples_stay_out_of_the_range(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).normal(100, 5, (64, 64)).astype(np.float32)
    write_tiff(tmp_path / "a.tif", [pixels], tile=(32, 32))
    spoil(tmp_path / "a.tif", 0, [3], GONE)
    with open_image(tmp_path / "a.tif") as image:
        kept = np.concatenate([pixels[:32].ravel(), pixels[32:, :32].ravel()])
        assert image.value_range == pytest.approx(tuple(np.percentile(kept, (0.1, 99.9))), abs=0.01)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_sparse_parts_are_turned_with_the_image(tmp_path: Path, orientation: int) -> None:
    pixels = np.full((64, 96), 7, dtype=np.uint8)
    write_tiff(tmp_path / "a.tif", [pixels], tile=(32, 32), extratags=[(274, "H", 1, orientation, True)])
    spoil(tmp_path / "a.tif", 0, [0], GONE)
    # Where the standard puts the first row and the first column.
    top, left = orientation not in (3, 4, 7, 8), orientation not in (2, 3, 6, 7)
    size = (96, 64) if orientation >= 5 else (64, 96)
    mask = np.ones(size, dtype=bool)
    mask[slice(None, 32) if top else slice(-32, None), slice(None, 32) if left else slice(-32, None)] = False
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image.read_mask(Box(0, 0, *size)), mask)
        np.testing.assert_array_equal(image.read(Box(0, 0, *size))[..., 0], np.where(mask, 7, 255))


def test_mask_of_a_damaged_level_is_that_of_the_finer_one(tmp_path: Path) -> None:
    full = np.full((128, 128), 50, dtype=np.uint8)
    full[10:21, 30:43] = 9
    reduced = full[::2, ::2].copy()
    write_tiff(tmp_path / "a.tif", [full, reduced], tile=(32, 32), extratags=[(42113, "s", 0, "9", True)])
    spoil(tmp_path / "a.tif", 1, [0, 1, 2, 3], DAMAGED)
    expected = np.ones((64, 64), dtype=bool)
    for y, x in np.ndindex(64, 64):  # a pixel has data if any part of it has
        expected[y, x] = (full[2 * y : 2 * y + 2, 2 * x : 2 * x + 2] != 9).any()
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image.read_mask(Box(0, 0, 64, 64), 1), expected)
