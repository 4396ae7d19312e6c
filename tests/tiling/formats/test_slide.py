"""Slides read through OpenSlide, against OpenSlide itself, tifffile and the pixels that were written."""

from __future__ import annotations

import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats.slide import is_slide, open_slide
from coarse2fine.tiling.geometry import Box, PixelSize
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.source import Source

openslide = pytest.importorskip("openslide")

SVS = Path(__file__).resolve().parents[4] / "shared" / "data" / "formats" / "cmu-1-small-region.svs"


def smooth(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2).astype(np.uint8)


def whole(source: Source, level: int = 0) -> NDArray[np.uint8]:
    return source.read(level, Box(0, 0, *source.size(level)))


def plain(path: Path, level: int) -> NDArray[np.uint8]:
    """The whole level as OpenSlide reads it, opaque."""
    with openslide.OpenSlide(path) as slide:
        pixels = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
    assert pixels[..., 3].min() == 255
    return pixels[..., :3]


def head_of(path: Path) -> bytes:
    return path.read_bytes()[:256]


def test_svs_equals_openslide() -> None:
    if not SVS.is_file():
        pytest.skip("the shared data is not here")
    source = open_slide(SVS)
    expected = plain(SVS, 0)
    assert (source.format, source.channels, source.chunks) == ("aperio", 3, ((240, 240),))
    assert source.pixel_size == PixelSize(0.499, 0.499, "micrometer")
    rng = np.random.default_rng(0)
    for y, x in rng.integers(0, (2967 - 1, 2220 - 1), (20, 2)).tolist():
        box = Box(y, x, min(2967, y + int(rng.integers(1, 400))), min(2220, x + int(rng.integers(1, 400))))
        np.testing.assert_array_equal(source.read(0, box), expected[box.y0 : box.y1, box.x0 : box.x1])
    with Image(source) as image:
        np.testing.assert_array_equal(image.read(Box(0, 0, 2967, 2220)), expected)


@pytest.fixture(scope="module")
def pyramids(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """TIFFs whose levels OpenSlide takes for 4 times smaller, and for some 4.0025 times."""
    folder = tmp_path_factory.mktemp("pyramids")
    for name, (height, width) in (("even.tif", (1200, 1600)), ("odd.tif", (1201, 1601))):
        pixels = smooth(height, width)
        with tifffile.TiffWriter(folder / name) as file:
            for factor in (1, 4):
                level = cv2.resize(pixels, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
                file.write(level, tile=(128, 128), photometric="rgb", compression="zlib", subfiletype=int(factor > 1))
    return folder / "even.tif", folder / "odd.tif"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 1), st.integers(0, 1199), st.integers(0, 1599), st.integers(1, 300), st.integers(1, 300), st.data()
)
def test_any_box_of_whole_downsamples_equals_the_level(
    pyramids: tuple[Path, Path], level: int, y: int, x: int, height: int, width: int, data: st.DataObject
) -> None:
    source = open_slide(pyramids[0])
    rows, columns = source.size(level)
    y, x = y % rows, x % columns
    box = Box(y, x, min(rows, y + height), min(columns, x + width))
    found = source.read(level, box)
    with tifffile.TiffFile(pyramids[0]) as file:
        expected = file.pages[level].asarray()
    np.testing.assert_array_equal(found, expected[box.y0 : box.y1, box.x0 : box.x1])


def test_levels_of_other_downsamples_move_by_half_a_full_pixel(pyramids: tuple[Path, Path]) -> None:
    source = open_slide(pyramids[1])
    height, width = source.size(1)
    expected = plain(pyramids[1], 1).astype(float)
    with openslide.OpenSlide(pyramids[1]) as slide:
        factor = slide.level_downsamples[1]
    assert factor == pytest.approx(4.0029, abs=1e-4)
    # What an interpolation may differ: the share of a pixel that it moves by, of the step to the next pixel.
    steps = max(np.abs(np.diff(expected, axis=axis)).max() for axis in (0, 1))
    for y in range(0, height, 128):
        for x in range(0, width, 128):
            box = Box(y, x, min(height, y + 128), min(width, x + 128))
            part = expected[box.y0 : box.y1, box.x0 : box.x1]
            far = box.y1 == height or box.x1 == width
            bound = 2 * steps * (1.0 if far else 0.5) / factor + 1
            assert np.abs(source.read(1, box) - part).max() <= bound
    opacity = source.arrays[1][height - 100 : height, width - 100 : width, 3:]
    assert opacity.min() == 255


def vms(folder: Path) -> tuple[Path, NDArray[np.uint8], NDArray[np.uint8]]:
    """Two JPEG files side by side and a map; the pixels are what OpenCV decodes."""
    folder.mkdir()
    parts: list[NDArray[np.uint8]] = []
    for name, seed, width in (("left.jpg", 1, 256), ("right.jpg", 2, 256), ("map.jpg", 3, 64)):
        options = [cv2.IMWRITE_JPEG_RST_INTERVAL, 8, cv2.IMWRITE_JPEG_SAMPLING_FACTOR]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        ok, data = cv2.imencode(".jpg", smooth(width // 2, width, seed), options)
        assert ok
        (folder / name).write_bytes(data.tobytes())
        parts.append(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1])
    lines = [
        "[Virtual Microscope Specimen]",
        "NoLayers=1",
        "NoJpegColumns=2",
        "NoJpegRows=1",
        "ImageFile=left.jpg",
        "ImageFile(1,0)=right.jpg",
        "MapFile=map.jpg",
        "PhysicalWidth=256000",
        "PhysicalHeight=128000",
        "SourceLens=20",
    ]
    path = folder / "größe.vms"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path, np.hstack(parts[:2]), parts[2]


def test_hamamatsu_vms(tmp_path: Path) -> None:
    path, full, coarsest = vms(tmp_path / "slide")
    assert is_slide(path, head_of(path))
    source = open_slide(path)
    assert (source.format, source.pixel_size) == ("hamamatsu", PixelSize(1.0, 0.5, "micrometer"))
    # OpenSlide says tiles of 64 x 8.
    assert source.chunks[0] == (128, 128)
    assert source.size(0) == full.shape[:2]
    np.testing.assert_allclose(whole(source).astype(int), full, atol=2)
    for level in range(len(source.arrays)):
        np.testing.assert_array_equal(whole(source, level), plain(path, level))
    level = next(i for i in range(len(source.arrays)) if source.size(i) == coarsest.shape[:2])
    np.testing.assert_allclose(whole(source, level).astype(int), coarsest, atol=2)
    with Image(source, str(path)) as image:
        np.testing.assert_array_equal(image.read(Box(10, 200, 100, 300)), plain(path, 0)[10:100, 200:300])
    (path.parent / "right.jpg").unlink()
    with pytest.raises(ImageError, match=r"größe\.vms: OpenSlide cannot open it .* copy it again"):
        open_slide(path)


def element(group: int, number: int, kind: str, value: bytes) -> bytes:
    """Part of a DICOM file, little endian, with its kind of value spelt out."""
    value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    long = kind in ("OB", "SQ")
    length = struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + length + value


def item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def dicom(path: Path, pixels: NDArray[np.uint8], spacing: str, tile: int = 64) -> Path:
    """One level of a slide, its tiles uncompressed; the files of a folder make one slide."""
    height, width = pixels.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    padded = np.zeros((down * tile, across * tile, 3), np.uint8)
    padded[:height, :width] = pixels
    frames = padded.reshape(down, tile, across, tile, 3).swapaxes(1, 2)
    storage, instance = b"1.2.840.10008.5.1.4.1.1.77.1.6", f"1.2.3.{width}".encode()
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", storage) + element(2, 3, "UI", instance)
    meta += element(2, 0x10, "UI", b"1.2.840.10008.1.2.1") + element(2, 0x12, "UI", b"1.2.3")
    measures = item(element(0x28, 0x30, "DS", spacing.encode()))
    shared = item(element(0x28, 0x9110, "SQ", measures))
    body = [
        element(8, 8, "CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        element(8, 0x16, "UI", storage),
        element(8, 0x18, "UI", instance),
        element(0x20, 0x0D, "UI", b"1.2.4"),
        element(0x20, 0x0E, "UI", b"1.2.5"),
        element(0x20, 0x9311, "CS", b"TILED_FULL"),
        element(0x28, 2, "US", struct.pack("<H", 3)),
        element(0x28, 4, "CS", b"RGB"),
        element(0x28, 6, "US", struct.pack("<H", 0)),
        element(0x28, 8, "IS", str(down * across).encode()),
        *(element(0x28, n, "US", struct.pack("<H", v)) for n, v in ((0x10, tile), (0x11, tile), (0x100, 8))),
        *(element(0x28, n, "US", struct.pack("<H", v)) for n, v in ((0x101, 8), (0x102, 7), (0x103, 0))),
        *(element(0x48, n, "UL", struct.pack("<I", v)) for n, v in ((6, width), (7, height))),
        element(0x5200, 0x9229, "SQ", shared),
        element(0x7FE0, 0x10, "OB", frames.tobytes()),
    ]
    length = element(2, 0, "UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + b"".join(body))
    return path


def test_dicom(tmp_path: Path) -> None:
    pixels = smooth(150, 200)
    path = dicom(tmp_path / "a", pixels, "0.0005\\0.00025")
    assert is_slide(path, head_of(path))
    half = dicom(tmp_path / "b", pixels[::2, ::2], "0.001\\0.0005")
    source = open_slide(path)
    assert (source.format, source.chunks) == ("dicom", ((128, 128), (128, 128)))
    assert source.pixel_size == PixelSize(0.5, 0.25, "micrometer")
    np.testing.assert_array_equal(whole(source), pixels)
    np.testing.assert_array_equal(whole(source, 1), pixels[::2, ::2])
    with open_image(half) as image:
        assert (image.format, image.mpp, image.levels[1].downsample_y) == ("dicom", (0.5, 0.25), 2.0)
        np.testing.assert_array_equal(image.read(Box(0, 0, 150, 200)), pixels)


def test_a_damaged_tile_does_not_harm_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth(256, 256), tile=(128, 128), photometric="rgb", compression="jpeg")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[1]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 400)
    boxes = [Box(y, x, y + 128, x + 128) for y in (0, 128) for x in (0, 128)] * 5

    def complaint(box: Box) -> str | None:
        try:
            image.read(box)
        except ImageError as error:
            return str(error)
        return None

    with Image(open_slide(path), str(path)) as image, ThreadPoolExecutor(4) as pool:
        said = list(pool.map(complaint, boxes))
    assert [text is None for text in said] == [True, False, True, True] * 5
    assert all("a.tif: level 0, chunk at y=0, x=128" in text for text in said if text is not None)


def test_threads_read_the_same(pyramids: tuple[Path, Path]) -> None:
    source = open_slide(pyramids[0])
    expected = plain(pyramids[0], 0)
    boxes = [Box(y, x, y + 200, x + 200) for y in range(0, 1000, 100) for x in range(0, 1400, 200)]
    with ThreadPoolExecutor(4) as pool:
        for box, found in zip(boxes, pool.map(lambda box: source.read(0, box), boxes), strict=True):
            np.testing.assert_array_equal(found, expected[box.y0 : box.y1, box.x0 : box.x1])


def test_closed_slides_are_not_read(pyramids: tuple[Path, Path]) -> None:
    source = open_slide(pyramids[0])
    source.close()
    source.close()
    with pytest.raises(ValueError, match="the slide is closed"):
        source.read(0, Box(0, 0, 1, 1))


def test_pixels_that_were_not_scanned_are_white(tmp_path: Path) -> None:
    tile = smooth(128, 128)
    layout: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", iter([tile, None]), shape=(128, 256, 3), dtype="uint8", **layout)
    source = open_slide(tmp_path / "a.tif")
    box = Box(0, 0, 128, 256)
    np.testing.assert_array_equal(source.read(0, box), np.hstack([tile, np.full_like(tile, 255)]))
    np.testing.assert_array_equal(source.read_mask(0, box), np.arange(256)[None].repeat(128, axis=0) < 128)
    assert source.channel_notes == ("alpha composited on white",)


def test_cut_slides_say_what_is_wrong(tmp_path: Path) -> None:
    path = dicom(tmp_path / "cut.dcm", smooth(256, 256), "0.001\\0.001")
    data = path.read_bytes()
    begin = len(data) - 256 * 256 * 3
    for size, message in ((200, "OpenSlide does not know it"), (begin - 300, "OpenSlide cannot open it")):
        path.write_bytes(data[:size])
        with pytest.raises(ImageError, match=rf"cut\.dcm: .*{message}.* copy it again with all files"):
            open_slide(path)
    path.write_bytes(data[:-100])
    with Image(open_slide(path), str(path)) as image:
        assert image.read(Box(0, 0, 128, 256)).shape == (128, 256, 3)
        with pytest.raises(ImageError, match=r"cut\.dcm: level 0, chunk at y=128, x=128 .* cannot be decoded"):
            image.read(Box(0, 0, 256, 256))


def test_mirax_is_known_by_its_name(tmp_path: Path) -> None:
    ok, data = cv2.imencode(".jpg", smooth(32, 32))
    assert ok
    for name, expected in (("a.MRXS", True), ("a.mrxs", True), ("a.jpg", False)):
        (tmp_path / name).write_bytes(data.tobytes())
        assert is_slide(tmp_path / name, head_of(tmp_path / name)) is expected
    with pytest.raises(ImageError, match=r"a\.mrxs: expected Slidedat\.ini in the folder a beside it; copy that"):
        open_slide(tmp_path / "a.mrxs")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Slidedat.ini").write_text("[GENERAL]\n")
    with pytest.raises(ImageError, match=r"a\.mrxs: OpenSlide cannot open it \(.*\); copy it again"):
        open_slide(tmp_path / "a.mrxs")


def test_other_files_are_no_slides(tmp_path: Path) -> None:
    path = tmp_path / "a.vms"
    assert not is_slide(path, b"")
    assert not is_slide(path, bytes(128) + b"DIC")
    assert is_slide(path, bytes(128) + b"DICM")
    assert not is_slide(path, b"[Virtual Microscope Specimens]\r\n")
    assert is_slide(path, b"[Virtual Microscope Specimen]\r\nNoLayers=1\r\n")
    assert is_slide(path, b"\n[Uncompressed Virtual Microscope Specimen]\nNoLayers=1\n")
    assert not is_slide(path, b"\x89PNG\r\n\x1a\n")


def test_without_the_extra_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ImageError, match=r'a\.dcm: OpenSlide is needed .*; pip install "coarse2fine\[openslide\]"'):
        open_slide(tmp_path / "a.dcm")
