"""PNG, JPEG, WebP, BMP, JPEG 2000 and Zarr, and what is wrong with files, against OpenCV and zarr."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats.raster_header import exif_orientation
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

MARS = Path(__file__).resolve().parents[4] / "shared" / "data" / "mars" / "MC11E-A.png"


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    limit = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, limit, shape, dtype=dtype, endpoint=True)


def whole(image: Image, level: int = 0) -> NDArray[np.uint8]:
    this = image.levels[level]
    return image.read(Box(0, 0, this.height, this.width), level)


def encode(path: Path, stored: NDArray[Any], suffix: str, *options: int) -> Path:
    ok, data = cv2.imencode(suffix, stored, options)
    assert ok
    path.write_bytes(data.tobytes())
    return path


def decode(data: bytes, flags: int) -> NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert pixels is not None
    return pixels


def exif(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize(
    ("suffix", "kind", "channels"),
    [
        (".png", "png", 1),
        (".png", "png", 3),
        (".jpg", "jpeg", 1),
        (".jpg", "jpeg", 3),
        (".webp", "webp", 3),
        (".bmp", "bmp", 1),
        (".bmp", "bmp", 3),
        (".jp2", "jpeg2000", 1),
        (".jp2", "jpeg2000", 3),
    ],
)
def test_raster_equals_opencv(tmp_path: Path, suffix: str, kind: str, channels: int) -> None:
    smooth = cv2.GaussianBlur(noise(61, 83, 3), (0, 0), 3)
    stored = smooth if channels == 3 else np.ascontiguousarray(smooth[..., 0])
    # The name lies about the content, and is not ASCII.
    path = encode(tmp_path / "größe.tif", stored, suffix)
    expected = decode(path.read_bytes(), cv2.IMREAD_UNCHANGED).reshape(61, 83, channels)
    image = open_image(path)
    assert (image.format, image.channels, image.name, len(image.levels)) == (kind, channels, "größe", 1)
    np.testing.assert_array_equal(whole(image), expected[..., ::-1])


def test_png_with_sixteen_bits_and_opacity(tmp_path: Path) -> None:
    wide = noise(20, 30, dtype="uint16")
    image = open_image(encode(tmp_path / "a.png", wide, ".png"))
    np.testing.assert_array_equal(whole(image)[..., 0], np.rint(wide / 257.0))
    pixels = noise(20, 30, 4)
    image = open_image(encode(tmp_path / "b.png", pixels[..., [2, 1, 0, 3]], ".png"))
    np.testing.assert_array_equal(whole(image), whole(open_image(pixels)))
    assert image.notes == ("alpha composited on white",)


def test_png_with_grey_and_opacity_stays_grey(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes([10, 255, 10, 0]) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 8, 4, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    (tmp_path / "a.png").write_bytes(data + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b""))
    image = open_image(tmp_path / "a.png")
    assert image.channels == 1
    np.testing.assert_array_equal(whole(image)[..., 0], [[10, 255], [10, 255]])


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_png_with_a_transparent_grey(tmp_path: Path, depth: int) -> None:
    top = (1 << depth) - 1
    values, clear = [0, top, 1, top], 1  # two bytes a row at most, but for sixteen bits
    row = sum(value << depth * (7 - i if depth == 1 else 3 - i) for i, value in enumerate(values))
    packed = row.to_bytes(8 if depth == 16 else max(1, depth * 4 // 8))
    header = struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", clear)), (b"IDAT", zlib.compress(b"\0" + packed))]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in [*chunks, (b"IEND", b"")])
    (tmp_path / "a.png").write_bytes(data)
    image = open_image(tmp_path / "a.png")
    assert image.channels == 1
    assert "alpha composited on white" in image.notes
    np.testing.assert_array_equal(image.read_mask(Box(0, 0, 1, 4)), [[value != clear for value in values]])
    np.testing.assert_array_equal(whole(image)[0, :, 0], [0, 255, 255, 255])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_equals_opencv(tmp_path: Path, orientation: int, order: str) -> None:
    stored = cv2.resize(noise(4, 6, 3), (48, 32), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", stored)[1].tobytes()
    body = b"Exif\0\0" + exif(orientation, order)
    data = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
    (tmp_path / "a.jpg").write_bytes(data)
    expected = decode(data, cv2.IMREAD_COLOR)
    assert expected.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.jpg")), expected[..., ::-1])


def test_exif_orientation_in_png_and_webp(tmp_path: Path) -> None:
    stored = noise(10, 20, 3)
    png = cv2.imencode(".png", stored)[1].tobytes()
    (tmp_path / "a.png").write_bytes(png[:33] + png_chunk(b"eXIf", exif(6)) + png[33:])
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.png")), np.rot90(stored, -1)[..., ::-1])

    plain = cv2.imencode(".webp", stored, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    frame = plain[12:]
    canvas = struct.pack("<II", 0x08, 19)[:7] + (9).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + canvas + frame
    body += b"EXIF" + struct.pack("<I", len(exif(6))) + exif(6)
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.webp")), np.rot90(stored, -1)[..., ::-1])


def test_damaged_exif_means_upright() -> None:
    for data in (b"", b"II*\0", exif(6)[:12], exif(9), b"XX" + exif(6)[2:]):
        assert exif_orientation(data) == 1


def test_mars_scene() -> None:
    if not MARS.is_file():
        pytest.skip("the shared data is not here")
    image = open_image(MARS)
    assert image.shape == (2000, 2000, 1)
    np.testing.assert_array_equal(whole(image)[..., 0], cv2.imread(str(MARS), cv2.IMREAD_UNCHANGED))


def ome_zarr(path: Path, version: str, axes: str, levels: list[NDArray[Any]], unit: str | None) -> None:
    form = 2 if version == "0.4" else 3
    group = zarr.open_group(path, mode="w", zarr_format=2 if form == 2 else 3)
    for index, pixels in enumerate(levels):
        chunks = tuple(32 if axis in "yx" else 1 for axis in axes)
        separator: Any = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if form == 2 else {}
        array = group.create_array(str(index), shape=pixels.shape, chunks=chunks, dtype=pixels.dtype, **separator)
        array[:] = pixels
    space: dict[str, Any] = {"unit": unit} if unit else {}
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": a, "type": kinds.get(a, "space"), **(space if a in "yx" else {})} for a in axes]
    datasets = []
    for index in range(len(levels)):
        scale = [0.5 * 2**index if a in "yx" else 1.0 for a in axes]
        steps = [{"type": "scale", "scale": scale}]
        datasets.append({"path": str(index), "coordinateTransformations": steps})
    image = {"version": "0.4", "axes": named, "datasets": datasets}
    plain: dict[str, Any] = {"multiscales": [image]}
    attributes: dict[str, Any] = plain if form == 2 else {"ome": {"version": "0.5", **plain}}
    group.attrs.update(attributes)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "yxc", "cyx", "tczyx"])
def test_ome_zarr(tmp_path: Path, version: str, axes: str) -> None:
    sizes = {"t": 1, "z": 1, "c": 3}
    full = noise(*(sizes.get(axis, 100) for axis in axes))
    half = full[tuple(slice(None, None, 2) if axis in "yx" else slice(None) for axis in axes)]
    ome_zarr(tmp_path / "scene.ome.zarr", version, axes, [full, half], "micrometer")
    image = open_image(tmp_path / "scene.ome.zarr")
    assert (image.format, image.mpp, image.notes) == ("ome-zarr", (0.5, 0.5), ())
    assert [level.downsample_x for level in image.levels] == [1.0, 2.0]
    for level, stored in enumerate((full, half)):
        plain = stored.squeeze()
        plain = np.moveaxis(plain, 0, -1) if "cyx" in axes or "czyx" in axes else plain
        np.testing.assert_array_equal(whole(image, level), plain.reshape(*plain.shape[:2], -1))
    assert image.channels == (1 if axes == "yx" else 3)


def test_ome_zarr_without_unit_has_no_mpp(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", "0.5", "yx", [noise(64, 64)], None)
    assert open_image(tmp_path / "a.zarr").mpp is None
    ome_zarr(tmp_path / "b.zarr", "0.5", "yx", [noise(64, 64)], "meter")
    image = open_image(tmp_path / "b.zarr")
    assert image.mpp is None
    assert "implausible microns per pixel ignored" in image.notes[0]


def test_ome_zarr_with_many_planes_and_channels(tmp_path: Path) -> None:
    pixels = noise(2, 5, 40, 40)
    ome_zarr(tmp_path / "a.zarr", "0.5", "zcyx", [pixels], None)
    image = open_image(tmp_path / "a.zarr")
    np.testing.assert_array_equal(whole(image), np.moveaxis(pixels[0, :3], 0, -1))
    assert image.notes == ("first of 2 planes along axis z used", "first 3 of 5 channels used")


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("shape", [(70, 50), (70, 50, 3), (3, 70, 50), (70, 50, 1), (70, 50, 4)])
def test_plain_zarr(tmp_path: Path, form: Any, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    chunks = tuple(min(size, 32) for size in shape)
    array = zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=chunks, dtype="uint8", zarr_format=form)
    array[:] = pixels
    image = open_image(tmp_path / "a.zarr")
    assert image.format == "zarr"
    expected = np.moveaxis(pixels, 0, -1) if shape[0] == 3 else pixels
    np.testing.assert_array_equal(whole(image), whole(open_image(expected)))


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize(
    ("names", "shape"), [("cyx", (3, 50, 4)), ("cyx", (3, 50, 1)), ("cyx", (5, 50, 40)), ("tyx", (4, 50, 40))]
)
def test_names_of_axes_tell_what_they_are(tmp_path: Path, form: Any, names: str, shape: tuple[int, ...]) -> None:
    named = {"dimension_names": list(names)} if form == 3 else {"attributes": {"_ARRAY_DIMENSIONS": list(names)}}
    array = zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype="uint8", zarr_format=form, **named)
    array[:] = noise(*shape)
    expected = np.moveaxis(noise(*shape), 0, -1)[..., : 3 if names == "cyx" else 1]
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.zarr")), expected)


def test_names_that_are_no_axes_of_an_image_are_ignored(tmp_path: Path) -> None:
    for names in (["a", "b", "c"], ["y", "x", "x"], [None, None, None], ["c", "y", "band"]):
        array = zarr.create_array(
            tmp_path / "a.zarr", shape=(50, 40, 3), dtype="uint8", dimension_names=names, overwrite=True
        )
        array[:] = noise(50, 40, 3)
        np.testing.assert_array_equal(whole(open_image(tmp_path / "a.zarr")), noise(50, 40, 3))


def test_sharded_zarr_decodes_inner_chunks(tmp_path: Path) -> None:
    pixels = noise(128, 128)
    array = zarr.create_array(tmp_path / "a.zarr", shape=(128, 128), chunks=(32, 32), shards=(64, 64), dtype="uint8")
    array[:] = pixels
    image = open_image(tmp_path / "a.zarr")
    assert image.levels[0].chunk == (32, 32)
    np.testing.assert_array_equal(image.read(Box(10, 10, 90, 90))[..., 0], pixels[10:90, 10:90])


def test_missing_chunks_are_the_fill_value(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), chunks=(32, 32), dtype="uint8", fill_value=7)
    assert set(np.unique(whole(open_image(tmp_path / "a.zarr")))) == {7}


def damaged_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be opened, and a part of what must be said of each."""
    folder.mkdir()
    tifffile.imwrite(folder / "good.tif", noise(200, 200, 3), tile=(64, 64), photometric="rgb")
    tiff = (folder / "good.tif").read_bytes()
    png = encode(folder / "good.png", noise(60, 60), ".png").read_bytes()
    jpeg = encode(folder / "good.jpg", noise(60, 60), ".jpg").read_bytes()
    bmp = encode(folder / "good.bmp", noise(60, 60), ".bmp").read_bytes()
    webp = encode(folder / "good.webp", noise(60, 60, 3), ".webp").read_bytes()
    jp2 = encode(folder / "good.jp2", noise(60, 60), ".jp2").read_bytes()
    absurd = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0))
    hollow = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0))
    contents = {
        "empty.tif": (b"", "the file is empty"),
        "text.tif": (b"not an image at all\n", "expected a TIFF, PNG"),
        "magic.tif": (b"II*\0", "TIFF"),
        "cut.tif": (tiff[: len(tiff) // 2], "cut off|damaged|no image"),
        "cut-header.tif": (tiff[:30], "damaged|no image"),
        "cut.png": (png[: len(png) // 2], "cut off or damaged"),
        "flipped.png": (png[:900] + bytes([png[900] ^ 255]) + png[901:], "cut off or damaged"),
        "cut-header.png": (png[:20], "header is damaged"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "cut off or damaged"),
        "cut.bmp": (bmp[: len(bmp) // 2], "cut off or damaged"),
        "cut.webp": (webp[: len(webp) // 2], "cut off or damaged"),
        "cut.jp2": (jp2[: len(jp2) // 2], "cut off or damaged|is damaged"),
        "absurd.png": (png[:8] + absurd + png[33:], "more than the limit"),
        "hollow.png": (png[:8] + hollow + png[33:], "cut off or damaged"),
        "none.png": (png[:16] + bytes(8) + png[24:], "has no pixels"),
    }
    files = {}
    for name, (data, message) in contents.items():
        (folder / name).write_bytes(data)
        files[name] = folder / name, message
    return files


def test_damaged_files_say_what_is_wrong(tmp_path: Path) -> None:
    for path, message in damaged_files(tmp_path / "bad").values():
        with pytest.raises(ImageError, match=message) as caught:
            open_image(path)
        assert str(caught.value).startswith(f"{path}: "), caught.value


def test_tiff_with_absurd_size(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 64), rowsperstrip=64)
    for tags, message in (((256, 257), "limit|states|cut off|damaged"), ((257,), "limit|states|damaged")):
        shutil.copy(tmp_path / "a.tif", tmp_path / "b.tif")
        with tifffile.TiffFile(tmp_path / "b.tif", mode="r+") as file:
            for tag in tags:
                file.pages[0].tags[tag].overwrite(2_000_000_000, dtype="I")
        with pytest.raises(ImageError, match=message):
            open_image(tmp_path / "b.tif")


def test_missing_and_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="there is no such file"):
        open_image(tmp_path / "missing.tif")
    with pytest.raises(ImageError, match="expected a Zarr directory"):
        open_image(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.tif").write_bytes(b"II*\0")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match="not permitted"):
        open_image(tmp_path / "a.tif")


def test_damaged_zarr(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    ome_zarr(path, "0.5", "yx", [noise(64, 64)], None)
    marker = path / "zarr.json"
    good = marker.read_text()
    marker.write_text(good[: len(good) // 2])
    with pytest.raises(ImageError, match="metadata is damaged"):
        open_image(path)
    marker.write_text(json.dumps({**json.loads(good), "attributes": {}}))
    with pytest.raises(ImageError, match="no 'multiscales'"):
        open_image(path)
    marker.write_text(good)
    shutil.rmtree(path / "0")
    with pytest.raises(ImageError, match="metadata is damaged"):
        open_image(path)


def test_zarr_of_other_axes_and_dtypes(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(9, 9, 9), chunks=(9, 9, 9), dtype="uint8")
    with pytest.raises(ImageError, match="expected a Zarr array"):
        open_image(tmp_path / "a.zarr")
    zarr.create_array(tmp_path / "b.zarr", shape=(9, 9), chunks=(9, 9), dtype="complex64")
    with pytest.raises(ImageError, match="expected boolean, integer or real"):
        open_image(tmp_path / "b.zarr")
    zarr.create_array(tmp_path / "c.zarr", shape=(0, 9), chunks=(1, 9), dtype="uint8")
    with pytest.raises(ImageError, match="has no pixels"):
        open_image(tmp_path / "c.zarr")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5), np.uint8), "is empty"),
        (np.zeros(5, np.uint8), "expected an array"),
        (np.zeros((2, 3, 4, 5), np.uint8), "expected an array"),
        (np.zeros((3, 50, 50), np.uint8), "channels last"),
        (np.zeros((5, 5), np.complex64), "expected boolean"),
        (np.full((5, 5), "a"), "expected boolean"),
    ],
)
def test_unusable_arrays(array: NDArray[Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(array)


def test_broken_tile_is_named_and_others_still_read(tmp_path: Path) -> None:
    pixels = noise(256, 256)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[3]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 64)
    with open_image(path) as image:
        np.testing.assert_array_equal(image.read(Box(0, 0, 128, 256))[..., 0], pixels[:128])
        with pytest.raises(ImageError, match=r"a\.tif: level 0, chunk at y=128, x=128"):
            image.read(Box(100, 100, 200, 200))


def test_broken_zarr_chunk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    ome_zarr(path, "0.5", "yx", [noise(96, 96)], None)
    (path / "0" / "c" / "1" / "2").write_bytes(b"broken")
    image = open_image(path)
    with pytest.raises(ImageError, match=r"a\.zarr: level 0, chunk at y=32, x=64"):
        whole(image)
