"""Physical size of a pixel in every unit that the formats define, or a note that says why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from coarse2fine.tiling.opening import open_image

PIXELS = np.full((24, 20), 7, dtype=np.uint8)

# One of each unit in microns, by the International System and by the treaty of 1959.
OME = [
    ("pm", 1e-6),
    ("Å", 1e-4),
    ("nm", 1e-3),
    ("µm", 1.0),
    ("μm", 1.0),
    ("mm", 1e3),
    ("cm", 1e4),
    ("dm", 1e5),
    ("m", 1e6),
    ("km", 1e9),
    ("thou", 25.4),
    ("li", 2116.6666666666665),
    ("in", 25400.0),
    ("ft", 304800.0),
    ("yd", 914400.0),
    ("mi", 1.609344e9),
    ("pt", 352.77777777777777),
    ("Mm", 1e12),
]
NGFF = [
    ("angstrom", 1e-4),
    ("attometer", 1e-12),
    ("centimeter", 1e4),
    ("decimeter", 1e5),
    ("exameter", 1e24),
    ("femtometer", 1e-9),
    ("foot", 304800.0),
    ("gigameter", 1e15),
    ("hectometer", 1e8),
    ("inch", 25400.0),
    ("kilometer", 1e9),
    ("megameter", 1e12),
    ("meter", 1e6),
    ("micrometer", 1.0),
    ("mile", 1.609344e9),
    ("millimeter", 1e3),
    ("nanometer", 1e-3),
    ("parsec", 3.0856775814913673e22),
    ("petameter", 1e21),
    ("picometer", 1e-6),
    ("terameter", 1e18),
    ("yard", 914400.0),
    ("yoctometer", 1e-18),
    ("yottameter", 1e30),
    ("zeptometer", 1e-15),
    ("zettameter", 1e27),
]


@pytest.mark.parametrize(("unit", "microns"), OME)
def test_every_length_of_ome_xml(tmp_path: Path, unit: str, microns: float) -> None:
    sizes: dict[str, Any] = {"PhysicalSizeX": 0.5 / microns, "PhysicalSizeY": 0.25 / microns}
    units = {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata={"axes": "YX", **sizes, **units})
    with open_image(tmp_path / "a.ome.tif") as image:
        assert image.mpp == pytest.approx((0.25, 0.5))
        assert not image.notes


@pytest.mark.parametrize("unit", ["pixel", "reference frame"])
def test_what_is_no_length_is_noted(tmp_path: Path, unit: str) -> None:
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": unit, "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata={"axes": "YX", **size})
    tifffile.imwrite(tmp_path / "b.tif", PIXELS, imagej=True, resolution=(2, 2), metadata={"unit": unit})
    for name in ("a.ome.tif", "b.tif"):
        with open_image(tmp_path / name) as image:
            assert image.mpp is None
            assert [note for note in image.notes if f"0.5 x 0.5 {unit} ignored" in note]


def test_axes_with_units_of_their_own(tmp_path: Path) -> None:
    size = {"PhysicalSizeX": 5e-4, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata={"axes": "YX", **size})
    with open_image(tmp_path / "a.ome.tif") as image:
        assert image.mpp == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize(("axis", "word"), [("X", "width"), ("Y", "height")])
def test_a_pixel_of_one_stated_side_is_square(tmp_path: Path, axis: str, word: str) -> None:
    size = {f"PhysicalSize{axis}": 5e-4, f"PhysicalSize{axis}Unit": "mm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata={"axes": "YX", **size})
    tifffile.imwrite(tmp_path / "b.tif", PIXELS, metadata=None, resolution=(20_000, 20_000), resolutionunit=3)
    with tifffile.TiffFile(tmp_path / "b.tif", mode="r+") as file:
        file.pages.first.tags[f"{'YX'.replace(axis, '')}Resolution"].overwrite((0, 1))
    for name in ("a.ome.tif", "b.tif"):
        with open_image(tmp_path / name) as image:
            assert image.mpp == pytest.approx((0.5, 0.5))
            assert image.notes == (f"only the {word} of a pixel is stated; it is taken as square",)


@pytest.mark.parametrize(
    ("unit", "microns"),
    [
        *[(name, 1.0) for name in ("micron", "microns", "um", "\\u00B5m")],
        *[("nm", 1e-3), ("mm", 1e3), ("cm", 1e4), ("meter", 1e6), ("inch", 25400.0)],
    ],
)
def test_units_of_imagej(tmp_path: Path, unit: str, microns: float) -> None:
    options: dict[str, Any] = {"imagej": True, "resolution": (2 * microns, 4 * microns)}
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, metadata={"unit": unit}, **options)
    with open_image(tmp_path / "a.tif") as image:
        assert image.mpp == pytest.approx((0.25, 0.5))
        assert not image.notes


@pytest.mark.parametrize(("unit", "per_micron"), [(2, 1 / 25400), (3, 1e-4), (4, 1e-3), (5, 1.0), (None, 1 / 25400)])
def test_units_of_the_resolution_tags(tmp_path: Path, unit: int | None, per_micron: float) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, resolution=(2 / per_micron, 4 / per_micron), resolutionunit=unit or 2, metadata=None)
    if unit is None:  # the standard's default is the inch; a number that nobody knows takes the tag's place
        with tifffile.TiffFile(path) as file:
            place = file.pages.first.tags["ResolutionUnit"].offset
        data = bytearray(path.read_bytes())
        data[place : place + 2] = (297).to_bytes(2, "little")
        path.write_bytes(data)
    with open_image(path) as image:
        assert image.mpp == pytest.approx((0.25, 0.5))
        assert not image.notes


@pytest.mark.parametrize(
    ("resolution", "unit", "note"),
    [
        ((72, 72), 2, "72 dots per inch"),
        ((300, 300), 2, "300 dots per inch"),
        ((28.35, 28.35), 3, "72 dots per inch"),
        ((118.11, 118.11), 3, "300 dots per inch"),
        ((5, 7), 1, "5 x 7 pixels without a unit"),
        ((1, 1), 3, "implausible"),
        ((1, 1), 1, None),
        ((1, 7), 1, "1 x 7 pixels without a unit"),
        ((72, 72), 1, "72 x 72 pixels without a unit"),
    ],
)
def test_resolutions_that_are_no_size_are_noted(
    tmp_path: Path, resolution: tuple[float, float], unit: int, note: str | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, resolution=resolution, resolutionunit=unit)
    with open_image(tmp_path / "a.tif") as image:
        assert image.mpp is None
        assert [note in found for found in image.notes if note is not None] == [True] * (note is not None)


@pytest.mark.parametrize(("unit", "microns"), NGFF)
def test_every_length_of_ome_zarr(tmp_path: Path, unit: str, microns: float) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.create_array("0", data=PIXELS)
    scale: Any = {"type": "scale", "scale": [0.25 / microns, 0.5 / microns]}
    axes: Any = [{"name": name, "type": "space", "unit": unit} for name in "yx"]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    ]
    with open_image(tmp_path / "a.zarr") as image:
        assert image.mpp == pytest.approx((0.25, 0.5))
        assert not image.notes
