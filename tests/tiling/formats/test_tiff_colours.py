"""Tags of a TIFF that change what pixels mean: applied as other readers do, refused on opening, or noted."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

RGB = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), 8, 0), 8, 1)
PACKED: dict[str, Any] = {"photometric": "rgb", "compression": "zlib", "predictor": True}


def overwrite(path: Path, tag: int, *values: int) -> None:
    """Put other numbers where a tag of SHORT has its own."""
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags[tag].valueoffset
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}H", data, place, *values)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("tag", "values", "words"),
    [
        (262, (77,), "got 77"),
        (262, (5,), "got SEPARATED"),
        (262, (8,), "got CIELAB"),
        (262, (32803,), "got CFA"),
        (262, (32845,), "got LOGLUV"),
        (262, (3,), "no palette"),
        (262, (6,), "half the resolution"),
        (277, (1,), "RGB of 1 samples"),
        (284, (3,), "order of samples"),
        (317, (4,), "predictor"),
        (258, (8, 8, 16), "of no known kind"),
        (339, (1, 1, 2), "damaged or of an unknown kind"),
    ],
)
def test_what_would_be_guessed_is_refused_on_opening(
    tmp_path: Path, tag: int, values: tuple[int, ...], words: str
) -> None:
    signed = tag == 339  # only of other samples than plain ones their format is written
    tifffile.imwrite(tmp_path / "a.tif", RGB.view(np.int8) if signed else RGB, metadata=None, **PACKED)
    overwrite(tmp_path / "a.tif", tag, *values)
    with pytest.raises(ImageError, match=rf"a\.tif: .*{words}"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [{"photometric": "rgb"}, PACKED, {**PACKED, "tile": (16, 16)}])
@pytest.mark.parametrize(("tag", "value"), [(266, 2), (274, 6), (274, 9)])
def test_what_is_applied_equals_pillow(tmp_path: Path, options: dict[str, Any], tag: int, value: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, metadata=None, extratags=[(tag, "H", 1, value, True)], **options)
    with open_image(path) as image:
        pixels = image.read(Box(0, 0, image.height, image.width))
    expected = np.asarray(PIL.Image.open(path))
    np.testing.assert_array_equal(pixels, expected)


def test_ycbcr_of_other_coefficients_is_noted(tmp_path: Path) -> None:
    plain: list[Any] = [(530, "H", 2, (1, 1), True)]
    other = (529, "2I", 3, (2126, 10000, 7152, 10000, 722, 10000), True)
    usual = (529, "2I", 3, (299, 1000, 587, 1000, 114, 1000), True)
    for tag, notes in ((usual, ()), (other, ("coefficients or limits of its YCbCr are not applied",))):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, extratags=[*plain, tag])
        overwrite(tmp_path / "a.tif", 262, 6)
        with open_image(tmp_path / "a.tif") as image:
            assert image.notes == notes


def write_tile(path: Path, data: bytes, codec: str, side: int = 64) -> None:
    shape: Any = (side, side, 3)
    tifffile.imwrite(
        path,
        iter([data]),
        shape=shape,
        dtype="u1",
        compression=codec,
        tile=(side, side),
        photometric="rgb",
        metadata=None,
    )


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "png", "webp"])
def test_a_tile_of_another_width_is_not_cut_into_rows(tmp_path: Path, codec: str) -> None:
    encode: Any = getattr(imagecodecs, {"jpeg": "jpeg8", "jpeg2000": "jpeg2k"}.get(codec, codec) + "_encode")
    write_tile(tmp_path / "a.tif", bytes(encode(np.ascontiguousarray(RGB.reshape(32, 128, 3)))), codec)
    with open_image(tmp_path / "a.tif") as image, pytest.raises(ImageError, match="128 pixels wide"):
        image.read(Box(0, 0, 64, 64))


def test_components_of_a_tile_are_counted(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    data = bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="J2K"))
    begin = data.index(b"\xff\x51")
    old = struct.unpack_from(">H", data, begin + 2)[0]
    head = data[begin + 4 : begin + 38] + struct.pack(">H", 16384) + data[begin + 40 : begin + 43] * 16384
    length = struct.pack(">H", len(head) + 2)
    write_tile(tmp_path / "a.tif", data[: begin + 2] + length + head + data[begin + 2 + old :], "jpeg2000")
    with (
        open_image(tmp_path / "a.tif") as image,
        pytest.raises(ImageError, match="it claims 64 x 64 pixels, which take"),
    ):
        image.read(Box(0, 0, 64, 64))


def test_a_tile_beyond_the_bound_on_memory(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64)), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        for tag in (322, 323):
            file.pages.first.tags[tag].overwrite(32768)
    with pytest.raises(ImageError, match=r"a\.tif: one strip or tile of .* takes 17,179,869"):
        open_image(tmp_path / "a.tif")
