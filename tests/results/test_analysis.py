"""An analysis saved and loaded: nothing is lost, equal analyses are equal files, and the image may be gone."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from numpy.typing import NDArray
from shapely.geometry import shape as to_shape

from coarse2fine import Analysis, Audit, ImageError, analyze, open_image
from coarse2fine.audit.result import Part
from coarse2fine.cli.main import main
from coarse2fine.model import Model
from coarse2fine.region import Region
from coarse2fine.tiling.geometry import Box

MakeImage = Callable[..., NDArray[np.uint8]]
WHOLE = Box(0, 0, 300, 400)


@pytest.fixture
def picture(tmp_path: Path, make_image: MakeImage) -> Path:
    path = tmp_path / "grün (1).png"
    path.write_bytes(cv2.imencode(".png", make_image(300, 400))[1].tobytes())
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timing.json"
    }


def assert_same(a: Analysis, b: Analysis) -> None:
    assert a.regions == b.regions
    for name in ("interest", "refined"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("cell_corners", "sides", "scores", "fired"):
        np.testing.assert_array_equal(getattr(a.plan, name), getattr(b.plan, name))
    for name in ("cell", "cost", "audit", "complete", "failures", "labels", "chosen_by"):
        assert getattr(a, name) == getattr(b, name)
    assert a.provenance == json.loads(json.dumps(b.provenance))
    for name in ("shape", "name", "path", "format", "levels", "mpp", "geo", "masked", "value_range", "notes", "picked"):
        assert getattr(a.image, name) == getattr(b.image, name)
    assert str(a) == str(b)


@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_nothing_is_lost(picture: Path, detector: Model, tmp_path: Path, budget: float) -> None:
    with analyze(picture, detector, budget=budget, precision="fp32") as analysis:
        loaded = Analysis.load(analysis.save(tmp_path / "out"))
        assert_same(loaded, analysis)
        np.testing.assert_array_equal(loaded.image.read(WHOLE), analysis.image.read(WHOLE))
        assert loaded.tiles.equals(analysis.tiles)
        assert files(loaded.save(tmp_path / "again")) == files(tmp_path / "out")
        loaded.image.close()


@pytest.mark.usefixtures("plain_pictures")
def test_an_audit_survives_and_is_pooled(sparse: Model, digits: Any, tmp_path: Path) -> None:
    analysis = analyze(digits.image, sparse, audit=0.05)
    assert analysis.audit is not None
    loaded = Analysis.load(analysis.save(tmp_path / "out"))
    assert loaded.audit == analysis.audit
    assert loaded.audit is not None
    assert Audit.pooled([loaded.audit, loaded.audit]) == Audit.pooled([analysis.audit, analysis.audit])
    plain = replace(analysis, audit=Audit((Part("object", 3, float("nan"), (0, 5), 0.95, 1.0, False),), 0.95, 5, 0, 8))
    assert str(Analysis.load(plain.save(tmp_path / "plain")).audit) == str(plain.audit)


def test_two_runs_write_the_same_bytes(make_image: MakeImage, detector: Model, tmp_path: Path) -> None:
    picture = tmp_path / "grün (1).png"
    picture.write_bytes(cv2.imencode(".png", make_image(150, 200))[1].tobytes())
    for name in ("a", "b"):
        with analyze(picture, detector, budget=0.5, precision="fp32") as analysis:
            analysis.save(tmp_path / name)
            for kind in ("svg", "pdf"):
                analysis.plot(tmp_path / name / f"plot.{kind}")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert "seconds" not in (tmp_path / "a" / "analysis.json").read_text("utf-8").replace('"seconds": null', "")
    timing = json.loads((tmp_path / "a" / "timing.json").read_text("utf-8"))
    steps = ("scan", "choose", "refine", "audit", "conclude")
    assert timing["seconds"] == pytest.approx(sum(timing[f"{step}_seconds"] for step in steps))


@pytest.mark.usefixtures("plain_pictures")
def test_what_was_mended_is_a_note_and_no_failure(detector: Model, make_image: MakeImage, tmp_path: Path) -> None:
    path, full = tmp_path / "a.tif", make_image(512, 512)
    down = detector.geometry.scan_downsample
    reduced = cv2.resize(full, (512 // down, 512 // down), interpolation=cv2.INTER_AREA)
    with tifffile.TiffWriter(path) as writer:
        for level in (full, reduced):
            writer.write(level, tile=(64, 64), compression="zlib", photometric="rgb", subfiletype=int(level is reduced))
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[1]
        place, count = page.dataoffsets[0], page.databytecounts[0]
    with analyze(path, detector, budget=0.5) as whole:
        expected = whole.regions
        assert not whole.notes
    data = bytearray(path.read_bytes())
    data[place : place + count] = bytes(count)
    path.write_bytes(data)
    with analyze(path, detector, budget=0.5) as analysis:
        assert (analysis.regions, analysis.failures, analysis.complete) == (expected, (), True)
        (note,) = analysis.notes
        assert note.startswith("1 chunk(s) of reduced levels cannot be read and were made from the next finer level")
        assert f"note   {note}" in str(analysis)
        assert Analysis.load(analysis.save(tmp_path / "out")).notes == (note,)


@pytest.mark.usefixtures("plain_pictures")
def test_a_result_is_read_where_the_image_is_not(picture: Path, detector: Model, tmp_path: Path) -> None:
    with analyze(picture, detector, budget=0.5) as analysis:
        analysis.save(tmp_path / "out")
    moved = picture.rename(tmp_path / "moved.png")
    loaded = Analysis.load(tmp_path / "out")
    assert len(loaded.tiles) == len(analysis.plan)
    assert "400 x 300 px" in str(loaded)
    with pytest.raises(ImageError, match="if it was moved, pass it"):
        loaded.image.read(WHOLE)
    with Analysis.load(tmp_path / "out", image=moved) as found:
        assert found.image.read(WHOLE).shape == (300, 400, 3)
    cv2.imwrite(str(tmp_path / "other.png"), np.zeros((30, 40), np.uint8))
    with pytest.raises(ImageError, match=r"not the image of the result: expected \(300, 400, 3\) .* got \(30, 40, 1\)"):
        Analysis.load(tmp_path / "out", image=tmp_path / "other.png")
    (tmp_path / "other.png").rename(picture)
    with pytest.raises(ImageError, match="is not the image of the result"):
        loaded.image.read(WHOLE)


def test_results_without_entries_of_later_versions_load(
    tmp_path: Path, make_image: MakeImage, detector: Model, plain_pictures: None
) -> None:
    with analyze(make_image(90, 100), detector, budget=0.5) as analysis:
        folder = analysis.save(tmp_path / "out")
    for name, entries in (("analysis.json", ("classify_macs",)), ("timing.json", ("decode_seconds", "wait_seconds"))):
        record = json.loads((folder / name).read_text("utf-8"))
        for entry in entries:
            del record.get("cost", record)[entry]
        (folder / name).write_text(json.dumps(record), "utf-8")
    cost = Analysis.load(folder).cost
    assert (cost.classify_macs, cost.decode_seconds, cost.wait_seconds) == (0, 0, 0)
    assert cost.macs == analysis.cost.macs


@pytest.mark.usefixtures("plain_pictures")
def test_an_array_is_not_saved_with_its_result(make_image: MakeImage, detector: Model, tmp_path: Path) -> None:
    pixels = make_image(120, 130)
    folder = analyze(pixels, detector, budget=0.5).save(tmp_path / "out")
    loaded = Analysis.load(folder)
    with pytest.raises(ImageError, match="was an array"):
        loaded.image.read(Box(0, 0, 5, 5))
    np.testing.assert_array_equal(Analysis.load(folder, pixels).image.read(Box(0, 0, 120, 130)), pixels)
    loaded.image.close()
    with pytest.raises(ImageError, match="closed"):
        loaded.image.read(Box(0, 0, 5, 5))


@pytest.mark.usefixtures("plain_pictures")
def test_a_loaded_image_is_an_image_in_every_way(picture: Path, detector: Model, tmp_path: Path) -> None:
    with analyze(picture, detector, budget=0.5) as analysis:
        analysis.save(tmp_path / "out")
    with open_image(picture) as image, Analysis.load(tmp_path / "out") as loaded:
        sent = pickle.loads(pickle.dumps(loaded.image))
        for other in (loaded.image, sent):
            np.testing.assert_array_equal(
                other.read_scaled(Box(0, 0, 40, 50), 3), image.read_scaled(Box(0, 0, 40, 50), 3)
            )
            np.testing.assert_array_equal(other.read_mask(WHOLE), image.read_mask(WHOLE))
            np.testing.assert_array_equal(other.array()[5:9], image.array()[5:9])
        assert open_image(loaded.image) is loaded.image
        again = analyze(loaded.image, detector, budget=0.5)
        assert again.regions == loaded.regions
        sent.close()


@pytest.mark.usefixtures("plain_pictures")
def test_chosen_channels_are_read_again(detector: Model, tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 255, (5, 90, 100), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack", planarconfig="separate", metadata=None)
    with analyze(open_image(tmp_path / "a.tif", channels=(4, 0, 2)), detector, budget=0.5) as analysis:
        analysis.save(tmp_path / "out")
    with Analysis.load(tmp_path / "out") as loaded:
        np.testing.assert_array_equal(loaded.image.read(Box(0, 0, 90, 100)), np.moveaxis(planes[[4, 0, 2]], 0, -1))


@pytest.mark.usefixtures("plain_pictures")
def test_an_unfinished_result_is_none(picture: Path, detector: Model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no complete result \(analysis.json is missing\)"):
        Analysis.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Analysis.load(tmp_path / "nothing")
    with analyze(picture, detector, budget=0.5) as analysis:
        folder = analysis.save(tmp_path / "out")
        with pytest.raises(FileNotFoundError, match=r"name one of the 1 results in it, such as .*out"):
            Analysis.load(tmp_path)
        broken = replace(analysis, regions=(*analysis.regions, Region("a", 0.5, (0, 0, 5, 5))))
        (folder / "overview.png").unlink()
        (folder / "overview.png").mkdir()
        with pytest.raises(IsADirectoryError):
            broken.save(folder)
    assert not (folder / "analysis.json").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("analysis.json", b"{"),
        ("analysis.json", b"{}"),
        ("analysis.json", b"[1]"),
        ("analysis.json", b"\xff"),
        ("timing.json", b"{}"),
        ("tiles.parquet", b"no table"),
        ("regions.geojson.gz", b"\x1f\x8b\x08\0"),
        ("maps.ome.zarr/0/zarr.json", b"{}"),
    ],
)
@pytest.mark.usefixtures("plain_pictures")
def test_a_damaged_result_is_named(
    picture: Path, detector: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    with analyze(picture, detector, budget=0.2) as analysis:
        folder = analysis.save(tmp_path / "out")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"out.*; analyse the image again"):
        Analysis.load(folder)
    assert main(["report", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("coarse2fine: ")


@pytest.mark.usefixtures("plain_pictures")
def test_many_regions_are_packed(
    make_image: MakeImage, detector: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coarse2fine.results.analysis._PACKED_FROM", 50)
    analysis = analyze(make_image(60, 60), detector, budget=0.5)
    many = tuple(Region("a", 0.5, (i, i, i + 1, i + 1)) for i in range(51))
    for regions, name in ((many[:50], "regions.geojson"), (many, "regions.geojson.gz"), (many[:5], "regions.geojson")):
        folder = replace(analysis, regions=regions).save(tmp_path / "out")
        assert [p.name for p in folder.glob("regions*")] == [name]
        assert Analysis.load(folder).regions == regions


def test_labels_and_tiles(picture: Path, detector: Model) -> None:
    with analyze(picture, detector, budget=0.5) as analysis:
        pass
    assert sum(analysis.labels.values()) == len(analysis.regions)
    counts = list(analysis.labels.values())
    assert counts == sorted(counts, reverse=True)
    assert analysis.tiles["refined"].all()
    assert analysis.tiles["score"].is_monotonic_decreasing
    assert 0 < analysis.tiles["finds"].sum() <= 4 * len(analysis.regions)


@pytest.mark.usefixtures("plain_pictures")
def test_on_the_map(make_image: MakeImage, detector: Model, tmp_path: Path) -> None:
    keys = [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32618]
    tags: list[Any] = [
        (33550, "d", 3, (2.0, 2.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 4e6, 0.0), True),
        (34735, "H", len(keys), keys, True),
    ]
    tifffile.imwrite(tmp_path / "a.tif", make_image(96, 128), photometric="rgb", tile=(64, 64), extratags=tags)
    with analyze(tmp_path / "a.tif", detector, budget=1.0) as analysis:
        folder = analysis.save(tmp_path / "out")
        payload = json.loads((folder / "regions_world.geojson").read_text("utf-8"))
        assert payload["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32618"
        for feature, region in zip(payload["features"], analysis.regions, strict=True):
            y0, x0, y1, x1 = region.full_box
            expected = (5e5 + 2 * x0, 4e6 - 2 * y1, 5e5 + 2 * x1, 4e6 - 2 * y0)
            assert to_shape(feature["geometry"]).bounds == pytest.approx(expected)
        assert_same(Analysis.load(folder), analysis)
    plain = analyze(make_image(60, 60), detector, budget=0.5)
    with pytest.raises(ValueError, match="array is not georeferenced; write its regions in pixels"):
        plain.to_geojson(tmp_path / "w.geojson", world=True)


def test_other_exports(picture: Path, detector: Model, tmp_path: Path) -> None:

    with analyze(picture, detector, budget=0.5) as analysis:
        assert pq.read_table(analysis.to_parquet(tmp_path / "t.parquet")).num_rows == len(analysis.plan)
        assert (analysis.to_ome_zarr(tmp_path / "m.ome.zarr") / "zarr.json").is_file()
        assert analysis.to_geojson(tmp_path / "r.geojson.gz").stat().st_size > 100


@pytest.mark.parametrize(
    ("names", "told"), [(["a.png"], "it holds images: .*a.png"), (["a.png", "thumbnail.jpg"], "analyse")]
)
def test_folders_that_are_no_results_are_told_apart(tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=told):
        Analysis.load(tmp_path)


def test_a_printed_analysis_names_the_specialists_that_read_most(detector: Model, make_image: MakeImage) -> None:
    with analyze(make_image(200, 200), detector, budget=0.5) as analysis:
        pass
    assert "specialist" not in str(analysis)
    region = Region("a", 0.5, (0.0, 0.0, 8.0, 8.0))
    routes = [(1, 4)] * 3 + [(2,)] * 5 + [(1, 3), (5,), (6,), (7,), ()]
    read = replace(analysis, regions=tuple(replace(region, route=route) for route in routes))
    assert "read   12 finds by 6 specialists: 5 by 2, 3 by 4, 1 by 3, 1 by 5, ..." in str(read)
