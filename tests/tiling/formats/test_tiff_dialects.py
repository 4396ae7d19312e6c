"""Whole slides, scenes and stacks in the dialects of TIFF, as `open_image` reads them; tifffile, OpenCV as oracles."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from coarse2fine.tiling.geometry import Box, GeoReference, PixelSize
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

FORMATS = Path(__file__).resolve().parents[4] / "shared" / "data" / "formats"

TILED: dict[str, Any] = {"tile": (32, 48), "compression": "deflate", "metadata": None}


def noise(*shape: int, dtype: str = "u1", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 2**8, shape).astype(dtype)


def whole(image: Image, level: int = 0) -> NDArray[np.uint8]:
    this = image.levels[level]
    return image.read(Box(0, 0, this.height, this.width), level)


def assert_levels(image: Image, expected: list[NDArray[Any]]) -> None:
    """Compare all levels, whole and across chunk borders."""
    assert [(level.height, level.width) for level in image.levels] == [pixels.shape[:2] for pixels in expected]
    for index, pixels in enumerate(expected):
        plain = pixels if pixels.ndim == 3 else pixels[..., None]
        np.testing.assert_array_equal(whole(image, index), plain)
        height, width = plain.shape[:2]
        box = Box(height // 4, width // 5, height - 1, width - 2)
        np.testing.assert_array_equal(image.read(box, index), plain[box.y0 : box.y1, box.x0 : box.x1])


def test_svs(tmp_path: Path) -> None:
    levels = [noise(203, 305, 3), noise(50, 76, 3, seed=1), noise(12, 19, 3, seed=2)]
    text = "Aperio Image Library v11\r\n305x203 (32x48) J2K|AppMag = 20|MPP = {}|Left = 3"
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        writer.write(levels[0], photometric="rgb", description=text.format("0.4990"), **TILED)
        writer.write(noise(60, 90, 3), photometric="rgb", metadata=None)
        for level in levels[1:]:
            writer.write(level, photometric="rgb", **TILED)
        writer.write(noise(100, 100, 3), photometric="rgb", metadata=None, subfiletype=1, description="label")
        writer.write(noise(200, 300, 3), photometric="rgb", metadata=None, subfiletype=9, description="macro")
    with open_image(tmp_path / "a.svs") as image:
        assert (image.format, image.mpp, image.notes) == ("svs", (0.499, 0.499), ())
        assert [level.downsample_x for level in image.levels] == [1.0, 4.0, 16.0]
        assert_levels(image, levels)


@pytest.mark.parametrize(("mpp", "expected"), [("0,2500", 0.25), ("1.2.3", None), ("0", None), ("9999", None)])
def test_svs_with_other_sizes(tmp_path: Path, mpp: str, expected: float | None) -> None:
    tifffile.imwrite(tmp_path / "a.svs", noise(64, 64), description=f"Aperio Image|MPP = {mpp}", **TILED)
    with open_image(tmp_path / "a.svs") as image:
        assert image.mpp == (None if expected is None else (expected, expected))
        assert any("implausible" in note for note in image.notes) == (mpp in ("0", "9999"))
    with open_image(tmp_path / "a.svs", mpp=(0.5, 0.25)) as image:
        assert (image.mpp, image.notes) == ((0.5, 0.25), ())


def test_scn(tmp_path: Path) -> None:
    levels = [noise(160, 240, 3), noise(40, 60, 3, seed=1), noise(10, 15, 3, seed=2)]
    macro = noise(90, 60, 3, seed=3)
    dimensions = "".join(f'<dimension sizeX="1" sizeY="1" r="{r}" ifd="{r + 1}"/>' for r in range(3))
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection>'
        f'<image name="macro"><pixels><dimension ifd="0"/></pixels></image>'
        f'<image name="main"><pixels>{dimensions}</pixels></image></collection></scn>'
    )
    with tifffile.TiffWriter(tmp_path / "a.scn", bigtiff=True) as writer:
        writer.write(macro, photometric="rgb", description=xml, **TILED)
        for index, level in enumerate(levels):
            size = 20000 / 4**index
            writer.write(level, photometric="rgb", resolution=(size, size), resolutionunit="CENTIMETER", **TILED)
    with open_image(tmp_path / "a.scn") as image:
        assert (image.format, image.mpp, image.notes) == ("scn", (0.5, 0.5), ())
        assert [level.downsample_x for level in image.levels] == [1.0, 4.0, 16.0]
        assert_levels(image, levels)


@pytest.mark.parametrize("channels", [1, 5])
def test_qptiff(tmp_path: Path, channels: int) -> None:
    shape = (3,) if channels == 1 else ()
    levels = [[noise(176 // 2**i, 240 // 2**i, *shape, seed=9 * i + c) for c in range(channels)] for i in range(3)]
    options: dict[str, Any] = {"software": "PerkinElmer-QPI", "photometric": "rgb" if shape else "minisblack"}
    with tifffile.TiffWriter(tmp_path / "a.qptiff") as writer:
        for index, level in enumerate(levels):
            for plane in level:
                writer.write(plane, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options, **TILED)
            if index == 0:
                writer.write(noise(50, 70, 3), photometric="rgb", metadata=None)
        writer.write(noise(90, 90, 3), photometric="rgb", metadata=None)
    with open_image(tmp_path / "a.qptiff") as image:
        assert (image.format, image.mpp) == ("qptiff", (0.5, 0.5))
        assert image.notes == (("first 3 of 5 channels used",) if channels == 5 else ())
        assert_levels(image, [level[0] if channels == 1 else np.stack(level[:3], axis=2) for level in levels])
    if channels == 5:
        with open_image(tmp_path / "a.qptiff", channels=[4]) as image:
            assert_levels(image, [level[4] for level in levels])


def ndpi(pages: list[tuple[bytes, tuple[int, int], float]]) -> bytes:
    """A file of JPEG streams with restart markers, their sizes and magnifications; offsets have 64 bits."""
    data, place = bytearray(b"II*\0" + bytes(8)), 4
    for jpeg, (height, width), magnification in pages:
        scan = jpeg.index(b"\xff\xda")
        starts = [scan + 2 + int(struct.unpack_from(">H", jpeg, scan + 2)[0])]
        starts += [i + 2 for i in range(starts[0], len(jpeg) - 1) if jpeg[i] == 0xFF and 0xD0 <= jpeg[i + 1] <= 0xD7]
        offset = len(data)
        data += jpeg
        where = len(data)
        data += struct.pack(f"<{len(starts)}I", *starts) + b"Hamamatsu\0" + struct.pack("<II", 20000, 1)
        make, size = where + 4 * len(starts), where + 4 * len(starts) + 10
        data += bytes(len(data) % 2)
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6)]
        tags += [(271, 2, 10, make), (273, 4, 1, offset), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(jpeg))]
        tags += [(282, 5, 1, size), (283, 5, 1, size), (296, 3, 1, 3), (530, 3, 2, 1 + (1 << 16)), (65420, 4, 1, 1)]
        tags += [(65421, 11, 1, struct.unpack("<I", struct.pack("<f", magnification))[0])]
        tags += [(65426, 4, len(starts), where)] if len(starts) > 1 else []
        struct.pack_into("<Q", data, place, len(data))
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        place = len(data)
        data += bytes(8 + 4 * len(tags))
    return bytes(data)


def jpeg_with_restarts(pixels: NDArray[np.uint8]) -> bytes:
    options = [cv2.IMWRITE_JPEG_RST_INTERVAL, 2, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), options)[1].tobytes()


@pytest.mark.parametrize("name", ["a.ndpi", "a.tif"])
def test_ndpi(tmp_path: Path, name: str) -> None:
    streams = [jpeg_with_restarts(noise(64 // 2**i, 96 // 2**i, 3, seed=i)) for i in range(2)]
    macro = cv2.imencode(".jpg", noise(30, 90, 3))[1].tobytes()
    (tmp_path / name).write_bytes(
        ndpi([(streams[0], (64, 96), 20.0), (streams[1], (32, 48), 10.0), (macro, (30, 90), -1.0)])
    )
    with open_image(tmp_path / name) as image, tifffile.TiffFile(tmp_path / name, is_ndpi=True) as file:
        assert (image.format, image.mpp, image.notes) == ("ndpi", (0.5, 0.5), ())
        assert file.series[0].keyframe.tile == (8, 16)
        assert_levels(image, [level.asarray() for level in file.series[0].levels])
        decoded = cv2.imdecode(np.frombuffer(streams[0], np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        np.testing.assert_array_equal(whole(image), decoded[..., ::-1])


def test_a_name_does_not_make_ndpi(tmp_path: Path) -> None:
    pixels = noise(70, 80, 3)
    tifffile.imwrite(tmp_path / "a.ndpi", pixels, photometric="rgb", **TILED)
    with open_image(tmp_path / "a.ndpi") as image:
        assert image.format == "tiff"
        np.testing.assert_array_equal(whole(image), pixels)


def write_ome(path: Path, levels: list[NDArray[Any]], **metadata: Any) -> None:
    options: dict[str, Any] = {"tile": (32, 48), "compression": "zstd"}
    options["photometric"] = "rgb" if metadata["axes"].endswith("S") else "minisblack"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)


def test_ome_tiff(tmp_path: Path) -> None:
    levels = [noise(200 // 2**i, 300 // 2**i, 3, seed=i) for i in range(3)]
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 250.0, "PhysicalSizeYUnit": "nm"}
    write_ome(tmp_path / "a.ome.tif", levels, axes="YXS", **size)
    with open_image(tmp_path / "a.ome.tif") as image:
        assert (image.format, image.mpp, image.notes) == ("ome-tiff", (0.25, 0.5), ())
        assert_levels(image, levels)


def test_ome_tiff_with_a_level_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(noise(64, 96, dtype="u2"), subifds=1, photometric="minisblack", metadata={"axes": "YX"})
        writer.write(noise(32, 48), subfiletype=1, photometric="minisblack")
    with open_image(path) as image:
        assert len(image.levels) == 1
        assert "1 level(s) of another shape or kind ignored" in image.notes


OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{uuid}">{images}</OME>'
PLANES = (
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="50" SizeY="40" SizeC="3" '
    'SizeZ="1" SizeT="1" PhysicalSizeX="2" PhysicalSizeY="1" PhysicalSizeXUnit="&#181;m">{planes}</Pixels></Image>'
)


def test_ome_tiff_of_several_files_is_read_alone(tmp_path: Path) -> None:
    pixels = noise(3, 40, 50)
    places = "".join(
        f'<TiffData FirstC="{i}" IFD="0" PlaneCount="1"><UUID FileName="{i}.ome.tif">urn:uuid:{i}</UUID></TiffData>'
        for i in range(3)
    )
    for i in range(3):
        xml = OME.format(uuid=i, images=PLANES.format(planes=places))
        tifffile.imwrite(tmp_path / f"{i}.ome.tif", pixels[i], description=xml.encode(), **TILED)
    with open_image(tmp_path / "1.ome.tif") as image:
        assert (image.format, image.channels, image.mpp) == ("ome-tiff", 1, (1.0, 2.0))
        assert "only the pages of this file are read" in image.notes[0]
        assert_levels(image, [pixels[1]])


def test_ome_tiff_with_a_missing_plane(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    places = '<TiffData FirstC="0" IFD="0" PlaneCount="1"/><TiffData FirstC="2" IFD="1" PlaneCount="1"/>'
    xml = OME.format(uuid=0, images=PLANES.format(planes=places))
    pixels = noise(2, 40, 50)
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels[0], description=xml.encode(), **TILED)
        writer.write(pixels[1], **TILED)
    with open_image(path) as image:
        assert image.notes == ("1 of 3 planes are missing and read as no data",)
        assert_levels(image, [np.stack([pixels[0], 0 * pixels[0], pixels[1]], axis=2)])


def test_ome_size_is_of_the_image_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(noise(20, 30), metadata={"axes": "YX", "PhysicalSizeX": 100.0, "PhysicalSizeY": 100.0})
        writer.write(noise(64, 96), metadata={"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
    with open_image(path) as image:
        assert (image.shape, image.mpp) == ((64, 96, 1), (0.5, 0.5))


def geo_tags(raster_type: int, keys: list[tuple[int, int]], **place: tuple[float, ...]) -> list[Any]:
    """Tags of GeoTIFF; `place` holds scale, tie or matrix."""
    every = [(1024, 1), (1025, raster_type), *keys]
    directory = [1, 1, 0, len(every)]
    for key, value in every:
        directory += [key, 0, 1, value]
    codes = {"scale": 33550, "tie": 33922, "matrix": 34264}
    tags: list[Any] = [(codes[name], "d", len(values), values, True) for name, values in place.items()]
    return [(34735, "H", len(directory), directory, True), *tags]


@pytest.mark.parametrize("point", [False, True])
def test_geotiff_by_scale_and_tie_point(tmp_path: Path, point: bool) -> None:
    keys = [(3072, 32618), (3076, 9001)]
    tags = geo_tags(2 if point else 1, keys, scale=(2.0, 3.0, 0.0), tie=(10.0, 20.0, 0.0, 500000.0, 4000000.0, 0.0))
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 96), extratags=tags, **TILED)
    half = 0.5 if point else 0.0
    transform = (2.0, 0.0, 500000.0 - (10 + half) * 2, 0.0, -3.0, 4000000.0 + (20 + half) * 3)
    with open_image(tmp_path / "a.tif") as image:
        assert image.geo == GeoReference(transform, "EPSG:32618", "meter")
        assert image.mpp is None


def test_geotiff_by_matrix_and_in_degrees(tmp_path: Path) -> None:
    matrix = (0.0, 0.5, 0.0, 7.0, 0.25, 0.0, 0.0, 45.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    for raster_type, offset in ((1, (7.0, 45.0)), (2, (6.75, 44.875))):
        tags = geo_tags(raster_type, [(2048, 4326), (2054, 9102)], matrix=matrix)
        tifffile.imwrite(tmp_path / "a.tif", noise(64, 96), extratags=tags, **TILED)
        with open_image(tmp_path / "a.tif") as image:
            assert image.geo == GeoReference((0.0, 0.5, offset[0], 0.25, 0.0, offset[1]), "EPSG:4326", "degree")


def test_geotiff_of_its_own_system(tmp_path: Path) -> None:
    place: dict[str, Any] = {"scale": (1.0, 1.0, 0.0), "tie": (0.0,) * 6}
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 96), extratags=geo_tags(1, [(3072, 32767)], **place), **TILED)
    tifffile.imwrite(tmp_path / "b.tif", noise(64, 96), extratags=geo_tags(1, []), **TILED)
    with open_image(tmp_path / "a.tif") as image:
        assert image.geo is not None
        assert (image.geo.crs, image.geo.unit) == (None, "meter")
    with open_image(tmp_path / "b.tif") as image:
        assert image.geo is None


@pytest.mark.parametrize("tiled", [True, False])
def test_cog_with_overviews_masks_and_nodata(tmp_path: Path, tiled: bool) -> None:
    shapes = [(259, 401), (130, 201), (65, 101), (33, 51)]
    levels = [noise(*shape, 3, seed=i) for i, shape in enumerate(shapes)]
    levels[0][40:90, 50:200] = levels[1][20:45, 25:100] = 0
    options = dict(TILED) if tiled else {"rowsperstrip": 7, "compression": "lzw", "metadata": None}
    tags = [
        *geo_tags(1, [(3072, 32618)], scale=(1.0, 1.0, 0.0), tie=(0.0,) * 6),
        (42113, "s", 0, "0", True),
        (42112, "s", 0, "<GDALMetadata></GDALMetadata>", True),
    ]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for index, level in enumerate(levels):
            kind = 0 if index == 0 else 1
            writer.write(
                level, photometric="rgb", subfiletype=kind, extratags=tags[: 99 if index == 0 else 0], **options
            )
            writer.write(level[..., 0] > 0, photometric="mask", subfiletype=kind | 4, **options)
    with open_image(tmp_path / "a.tif") as image:
        assert (image.format, image.masked) == ("tiff", True)
        assert image.geo is not None
        assert [level.downsample_x for level in image.levels] == [1.0, 2.0, 4.0, 8.0]
        assert_levels(image, levels)
        for index in (0, 1):
            full = (levels[index] != 0).any(axis=2)
            height, width = full.shape
            np.testing.assert_array_equal(image.read_mask(Box(0, 0, height, width), index), full)
            outside = image.read_mask(Box(-2, -3, 20, 30), index)
            np.testing.assert_array_equal(outside, np.pad(full[:20, :30], ((2, 0), (3, 0))))


@pytest.mark.parametrize(
    ("dtype", "text", "nodata"),
    [
        ("u1", "0", 0.0),
        ("u1", "255.0", 255.0),
        ("u1", "-9999", None),
        ("u1", "256", None),
        ("u1", "0.5", None),
        ("u1", "254.99999999999997", 255.0),
        ("u1", "nan", None),
        ("u1", "none", None),
        ("i2", "-32768", -32768.0),
        ("f4", "-9999", -9999.0),
        ("f4", "-3.4028234663852886e+38", -3.4028234663852886e38),
        ("f4", "-3.40282346638528859812e+38", -3.4028234663852886e38),
        ("f4", "-3.4028235e+38", -3.4028234663852886e38),
        ("f4", "-1.7976931348623157e+308", -3.4028234663852886e38),
        ("f4", "-9999.9", float(np.float32(-9999.9))),
        ("f8", "-9999.9", -9999.9),
        ("f2", "-9999.9", -10000.0),
        ("f4", "-1,5", -1.5),
        ("f4", "-inf", None),
        ("f4", "nan", None),
    ],
)
def test_nodata(tmp_path: Path, dtype: str, text: str, nodata: float | None) -> None:
    pixels = noise(64, 96, dtype=dtype)
    pixels[3:30, 5:40] = 0 if nodata is None else nodata
    if dtype.startswith("f"):
        pixels[50, 60:63] = np.nan, np.inf, -np.inf
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(42113, "s", 0, text, True)], **TILED)
    expected = np.isfinite(pixels) & (
        np.ones(pixels.shape, bool) if nodata is None else pixels != np.array(nodata, dtype)
    )
    with open_image(tmp_path / "a.tif") as image:
        assert image.masked == (nodata is not None or dtype.startswith("f"))
        np.testing.assert_array_equal(image.read_mask(Box(0, 0, 64, 96)), expected)
        if dtype.startswith("f"):
            # Neither what was not measured nor what is infinite is part of the range.
            low, high = pixels[expected].min(), pixels[expected].max()
            assert min(0.0, low) <= image.value_range[0] < image.value_range[1] <= max(1.0, high)


def test_resolution_tags_keep_their_unit(tmp_path: Path) -> None:
    for unit, resolution, size, mpp in (
        ("CENTIMETER", (40000, 20000), PixelSize(1 / 20000, 1 / 40000, "centimeter"), (0.5, 0.25)),
        ("INCH", (254, 2540), PixelSize(1 / 2540, 1 / 254, "inch"), (10.0, 100.0)),
        ("CENTIMETER", (1, 1), PixelSize(1.0, 1.0, "centimeter"), None),
        ("NONE", (2, 2), None, None),
        ("INCH", (300, 300), None, None),
    ):
        tifffile.imwrite(tmp_path / "a.tif", noise(40, 40), resolution=resolution, resolutionunit=unit, **TILED)
        with open_image(tmp_path / "a.tif") as image:
            assert image.pixel_size == size
            assert image.mpp == (None if mpp is None else pytest.approx(mpp))
            assert any("implausible" in note for note in image.notes) == (size is not None and mpp is None)
        with open_image(tmp_path / "a.tif", mpp=(0.5, 0.25)) as image:
            assert (image.mpp, image.pixel_size) == ((0.5, 0.25), size)
            assert not any("implausible" in note for note in image.notes)


@pytest.mark.parametrize(
    "name", ["cmu-1-small-region.svs", "kidney.tif", "rastervision-geotiff.tif", "tcga-jpeg2000.svs"]
)
def test_real_files_equal_tifffile(name: str) -> None:
    path = FORMATS / name
    if not path.is_file():
        pytest.skip("the shared data is not here")
    with open_image(path) as image, tifffile.TiffFile(path) as file:
        series = file.series[0]
        assert [(level.height, level.width) for level in image.levels] == [level.shape[:2] for level in series.levels]
        for index, level in enumerate(series.levels):
            stored = level.asarray()
            height, width = stored.shape[:2]
            for box in (Box(height // 3, width // 3, height // 3 + 700, width // 3 + 500), Box(-5, -5, 300, 200)):
                rows = np.clip(np.arange(box.y0, box.y1), 0, height - 1)
                columns = np.clip(np.arange(box.x0, box.x1), 0, width - 1)
                expected = stored[np.ix_(rows, columns)].reshape(box.height, box.width, -1)
                np.testing.assert_array_equal(image.read(box, index), expected[..., : image.channels])
