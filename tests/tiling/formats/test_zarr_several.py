"""OME-Zarrs of several images, and plates: the first is read or none; what else there is has a name that opens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from coarse2fine.paths import expand_paths
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats.zarr_survey import below
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

VERSIONS = pytest.mark.parametrize("version", ["0.4", "0.5"])


def write_group(folder: Path, version: str, attributes: dict[str, Any]) -> zarr.Group:
    group = zarr.open_group(folder, mode="a", zarr_format=2 if version == "0.4" else 3)
    group.attrs.update(attributes if version == "0.4" else {"ome": {"version": version, **attributes}})
    return group


def write_image(folder: Path, version: str, value: int) -> None:
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    multiscales = [{"version": version, "axes": axes, "datasets": [{"path": "0"}]}]
    group = write_group(folder, version, {"multiscales": multiscales})
    group.create_array("0", shape=(32, 32), chunks=(32, 32), dtype="u1")[...] = np.full((32, 32), value, np.uint8)


def value_of(source: str | Path) -> int:
    with open_image(source) as image:
        return int(image.read(Box(3, 3, 4, 4))[0, 0, 0])


def write_plate(folder: Path, version: str) -> dict[str, int]:
    """Two rows of two wells, of three fields each, one of them lost; returns the value of each image."""
    wells = [f"{row}/{column}" for row in "AB" for column in (1, 2)]
    plate = {"rows": [{"name": "A"}, {"name": "B"}], "columns": [{"name": "1"}, {"name": "2"}]}
    write_group(folder, version, {"plate": {**plate, "wells": [{"path": well} for well in wells]}})
    values = {}
    for number, well in enumerate(wells):
        write_group(folder / well, version, {"well": {"images": [{"path": str(field)} for field in range(3)]}})
        for field in range(3):
            values[f"{well}/{field}"] = 1 + 10 * number + field
            write_image(folder / well / str(field), version, values[f"{well}/{field}"])
    return values


@VERSIONS
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_the_first_of_several_images_is_read(tmp_path: Path, version: str, listed: bool, count: int) -> None:
    folder = tmp_path / "a.zarr"
    write_group(folder, version, {"bioformats2raw.layout": 3})
    for number in range(count):
        write_image(folder / str(number), version, 10 + number)
    if listed:
        write_group(folder / "OME", version, {"series": [str(number) for number in range(count)]})
    image = open_image(folder)
    assert value_of(folder) == 10
    if count == 1:
        assert image.notes == ()
        return
    (note,) = image.notes
    assert f"the first of {count}" in note
    named = re.findall(rf"{re.escape(str(folder))}/(\d)", note)
    assert named == [str(number) for number in range(1, count)][:3]
    assert ("3 more" in note) == (count == 7)
    for name in named:
        assert value_of(folder / name) == 10 + int(name)
        assert open_image(folder / name).notes == ()


@VERSIONS
def test_a_plate_is_refused_with_names_that_open(tmp_path: Path, version: str) -> None:
    folder = tmp_path / "plate.zarr"
    values = write_plate(folder, version)
    with pytest.raises(ImageError, match=r"it is a plate of 4 well\(s\)") as caught:
        open_image(folder)
    named = re.findall(r"plate\.zarr/(\S+?)(?:,|$)", str(caught.value))
    assert named == ["A/1/0", "A/1/1", "A/1/2"]
    for name in named:
        assert value_of(folder / name) == values[name]
    pattern = re.search(r"a glob such as (\S+) for all", str(caught.value))
    assert pattern is not None
    found = expand_paths(pattern[1])
    assert {path.relative_to(folder).as_posix(): value_of(path) for path in found} == values


@VERSIONS
def test_a_well_reads_as_its_first_field(tmp_path: Path, version: str) -> None:
    folder = tmp_path / "plate.zarr"
    values = write_plate(folder, version)
    (note,) = open_image(folder / "B" / "1").notes
    assert value_of(folder / "B" / "1") == values["B/1/0"]
    assert f"the first of 3, is read; pass {folder / 'B' / '1' / '1'}, {folder / 'B' / '1' / '2'}" in note


def test_plates_whose_wells_are_damaged_are_still_explained(tmp_path: Path) -> None:
    write_plate(tmp_path / "a.zarr", "0.5")
    shutil.rmtree(tmp_path / "a.zarr" / "A")
    with pytest.raises(ImageError, match=r"plate of 4 well\(s\).*A/1/0"):
        open_image(tmp_path / "a.zarr")
    marker = tmp_path / "a.zarr" / "zarr.json"
    plates: list[Any] = [
        {},
        {"wells": []},
        {"wells": None},
        [],
        None,
        {"wells": [{"path": "../../b"}]},
        {"wells": [1, {}]},
    ]
    for plate in plates:
        metadata = json.loads(marker.read_text())
        metadata["attributes"]["ome"]["plate"] = plate
        marker.write_text(json.dumps(metadata))
        with pytest.raises(ImageError) as caught:
            open_image(tmp_path / "a.zarr")
        assert str(caught.value).startswith(f"{tmp_path / 'a.zarr'}: ")


@VERSIONS
def test_groups_without_an_image_name_what_they_hold(tmp_path: Path, version: str) -> None:
    group = write_group(tmp_path / "a.zarr", version, {})
    group.create_array("raw", shape=(8, 8), dtype="u1")[...] = np.full((8, 8), 5, np.uint8)
    (tmp_path / "a.zarr" / "no zarr").mkdir()
    with pytest.raises(ImageError, match="no 'multiscales' metadata") as caught:
        open_image(tmp_path / "a.zarr")
    assert str(caught.value).endswith(f"such as {tmp_path / 'a.zarr'}/raw")
    assert value_of(tmp_path / "a.zarr" / "raw") == 5


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("https://h/a.zarr?token=***", "https://h/a.zarr/A/1?token=***"),
        ("https://h/a.zarr/", "https://h/a.zarr/A/1"),
        ("s3://b/a?b.zarr", "s3://b/a?b.zarr/A/1"),
        ("/data/what?.zarr", "/data/what?.zarr/A/1"),
    ],
)
def test_names_of_what_lies_inside(label: str, expected: str) -> None:
    assert below(label, "A/1") == expected
