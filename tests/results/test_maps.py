"""Maps and labels as OME-Zarr: valid, read by others, sparse."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from coarse2fine.region import Region
from coarse2fine.results.colours import label_colours
from coarse2fine.results.maps import Maps, read_maps, write_maps
from coarse2fine.results.rasterize import region_chunks


def make_maps(full: tuple[int, int] = (2500, 3100), mpp: tuple[float, float] | None = (0.5, 0.25)) -> Maps:
    cell = 16
    shape = (-(-full[0] // cell), -(-full[1] // cell))
    rng = np.random.default_rng(0)
    refined = np.zeros(shape, bool)
    refined[:10, :20] = True
    outline = ((64.0, 64.0), (64.0, 128.0), (96.0, 128.0), (96.0, 64.0))
    regions = (
        Region("crater", 0.9, (10.0, 20.0, 40.0, 60.0)),
        Region("dune", 0.75, (64.0, 64.0, 96.0, 128.0), outline),
        Region("crater", 0.5, (2400.0, 3000.0, 2440.0, 3050.0)),
    )
    return Maps("scene", full, mpp, cell, rng.random(shape).astype(np.float32), refined, regions)


def chunks_of(folder: Path) -> set[str]:
    """Names of the stored chunks of an array."""
    return {p.relative_to(folder / "c").as_posix() for p in (folder / "c").rglob("*") if p.is_file()}


def test_maps_survive_the_round_trip(tmp_path: Path) -> None:
    maps = make_maps()
    interest, refined = read_maps(write_maps(tmp_path / "m.ome.zarr", maps))
    np.testing.assert_array_equal(interest, maps.interest)
    np.testing.assert_array_equal(refined, maps.refined)
    assert (str(interest.dtype), str(refined.dtype)) == ("float32", "bool")
    cells: Any = zarr.open_array(tmp_path / "m.ome.zarr" / "0", mode="r")
    found = np.asarray(cells[2])
    assert sorted(found[found > 0].tolist()) == [0.5, 0.75, np.float32(0.9)]


def test_labels_are_the_regions(tmp_path: Path) -> None:
    maps = make_maps()
    labels: Any = zarr.open_group(write_maps(tmp_path / "m.ome.zarr", maps) / "labels", mode="r")
    expected = np.zeros(maps.full_shape, np.uint32)
    for box, numbers in region_chunks(maps.regions, maps.full_shape, 4096):
        expected[box.y0 : box.y1, box.x0 : box.x1] = numbers
    classes = np.array([0, 1, 2, 1])
    assert labels.attrs["ome"]["labels"] == ["regions", "classes"]
    for level in range(3):
        step = 2**level
        np.testing.assert_array_equal(labels[f"regions/{level}"][:], expected[::step, ::step])
        np.testing.assert_array_equal(labels[f"classes/{level}"][:], classes[expected][::step, ::step])
    described = labels["classes"].attrs["ome"]["image-label"]
    assert described["properties"] == [
        {"label-value": 1, "class": "crater"},
        {"label-value": 2, "class": "dune"},
    ]
    assert described["colors"][1]["rgba"] == [*label_colours(["crater", "dune"])["dune"], 255]


def test_only_touched_chunks_exist(tmp_path: Path) -> None:
    path = write_maps(tmp_path / "m.ome.zarr", make_maps())
    assert chunks_of(path / "labels" / "regions" / "0") == {"0/0", "2/2"}
    assert chunks_of(path / "labels" / "classes" / "1") == {"0/0", "1/1"}
    assert chunks_of(path / "0") == {"0/0/0", "1/0/0", "2/0/0"}
    blank = replace(make_maps((40_000, 30_000)), interest=np.zeros((2500, 1875), np.float32))
    huge = write_maps(tmp_path / "huge.ome.zarr", blank)
    assert chunks_of(huge / "labels" / "regions" / "0") == {"0/0", "2/2"}
    assert chunks_of(huge / "0") == {"1/0/0", "2/0/0"}


def test_ome_zarr_models_finds_them_valid(tmp_path: Path) -> None:
    path = write_maps(tmp_path / "m.ome.zarr", make_maps())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip("ome_zarr_models.v05")
        omero = pytest.importorskip("ome_zarr_models.common.omero")
        image = models.Image.from_zarr(zarr.open_group(path, mode="r"))
        labels = models.ImageLabel.from_zarr(zarr.open_group(path / "labels" / "classes", mode="r"))
        models.Labels.from_zarr(zarr.open_group(path / "labels", mode="r"))
        ome: Any = zarr.open_group(path, mode="r").attrs["ome"]
        assert len(omero.Omero.model_validate(ome["omero"]).channels) == 3
    cells = image.ome_attributes.multiscales[0].datasets[0].coordinateTransformations
    assert cells[0].scale == [1.0, 8.0, 4.0]
    assert cells[1].translation == [0.0, 3.75, 1.875]  # the centre of the first cell, from that of the first pixel
    pixels = labels.ome_attributes.multiscales[0].datasets[0].coordinateTransformations
    assert pixels[0].scale == [0.5, 0.25]


def test_ome_zarr_reads_them(tmp_path: Path) -> None:
    maps = make_maps()
    path = write_maps(tmp_path / "m.ome.zarr", maps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        io, reader = pytest.importorskip("ome_zarr.io"), pytest.importorskip("ome_zarr.reader")
        nodes = {node.zarr.basename(): node for node in reader.Reader(io.parse_url(path, mode="r"))()}
    np.testing.assert_array_equal(np.asarray(nodes["m.ome.zarr"].data[0])[0], maps.interest)
    assert nodes["m.ome.zarr"].metadata["channel_names"] == ["interest", "refined", "found"]
    assert np.asarray(nodes["classes"].data[0]).shape == maps.full_shape
    assert set(np.unique(np.asarray(nodes["regions"].data[0])).tolist()) == {0, 1, 2, 3}


def test_coarser_levels_hold_the_greatest(tmp_path: Path) -> None:
    maps = make_maps((17_600, 16_490))
    path = write_maps(tmp_path / "m.ome.zarr", maps)
    fine, coarse = (np.asarray(zarr.open_array(path / level, mode="r")) for level in "01")
    assert coarse.shape == (3, 550, 516)
    y, x = 549, 515  # the last column stands alone
    np.testing.assert_array_equal(coarse[:, y, x], fine[:, 2 * y :, 2 * x :].max(axis=(1, 2)))
    np.testing.assert_array_equal(coarse[:, 7, 9], fine[:, 14:16, 18:20].max(axis=(1, 2)))


@pytest.mark.parametrize("full", [(1, 1), (5, 900), (17, 33)])
def test_any_size_and_no_scan_and_no_regions(tmp_path: Path, full: tuple[int, int]) -> None:
    refined = np.ones((-(-full[0] // 16), -(-full[1] // 16)), bool)
    maps = Maps("a", full, None, 16, np.zeros((0, 0), np.float32), refined, ())
    interest, back = read_maps(write_maps(tmp_path / "m.ome.zarr", maps))
    assert not interest.any()
    assert back.all()


def test_an_old_one_is_replaced_and_a_failure_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_maps(tmp_path / "m.ome.zarr", make_maps())
    with monkeypatch.context() as patch:
        patch.setattr("coarse2fine.results.maps._write_labels", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_maps(path, make_maps((2600, 3200)))
    assert read_maps(path)[1].shape == make_maps().refined.shape
    write_maps(path, make_maps((2600, 3200)))
    assert read_maps(path)[1].shape == (163, 200)
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="it is a file"):
        write_maps(tmp_path / "file", make_maps())
