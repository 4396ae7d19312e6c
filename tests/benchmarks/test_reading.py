"""The benchmark of reading: that it measures what it says, not how fast anything is."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from benchmarks import command
from benchmarks.reading import data, large, run
from benchmarks.reading.large import HALO, cluster, in_child, measure_walk
from benchmarks.reading.readers import Opener, Subject, tiff_subject, touched
from benchmarks.reading.run import IoScale
from benchmarks.reading.speed import aligned, in_threads, measure_speed, read_side, unaligned
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.bench.peak import PEAK_IS_KNOWN
from coarse2fine.bench.sections import Section, compared
from coarse2fine.tiling.geometry import Box, Level

SLIDES = Path(__file__).resolve().parents[3] / "shared" / "data" / "formats"
NAMES = ("tiff_jpeg_512", "svs_jpeg_256", "ome_zarr", "zarr_v3", "zarr_v2")
TINY = IoScale(1024, 1, (1, 2), 16, (0.001, 0.0103, 0.002))


@pytest.fixture(scope="module")
def photos() -> NDArray[np.uint8]:
    return data.photo_like(2, seed=1)


@pytest.fixture(scope="module")
def subjects(photos: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    made = (make() for make in run._made(tmp_path_factory.mktemp("subjects"), photos, 1024, 2))
    return {subject.name: subject for subject in made}


def silent(done: int, total: int) -> None:
    """Show no progress."""


def bare_subject(height: int, width: int, chunk: tuple[int, int]) -> Subject:
    return Subject("bare", "bare", (height, width), chunk, {})


def test_containers_hold_the_chunks_and_levels_they_promise(photos: NDArray[np.uint8], tmp_path: Path) -> None:
    pixels = data.mosaic(photos, 1024, 0)
    data.write_ome_zarr(tmp_path / "a.ome.zarr", photos[0])
    level = zarr.open_array(tmp_path / "a.ome.zarr" / "0", mode="r")
    assert (level.chunks, level.shards) == ((3, 512, 512), (3, 4096, 4096))
    np.testing.assert_array_equal(np.moveaxis(np.asarray(level[:]), 0, -1), photos[0])
    data.write_svs(tmp_path / "a.svs", pixels)
    with tifffile.TiffFile(tmp_path / "a.svs") as file:
        assert file.is_svs
        assert [level.shape[-3:-1] for level in file.series[0].levels] == [(1024, 1024), (256, 256), (64, 64)]
    data.write_tiff(tmp_path / "big.tif", photos, 1024, seed=4)
    with tifffile.TiffFile(tmp_path / "big.tif") as file:
        assert (file.is_bigtiff, len(file.pages), file.pages[0].tilewidth) == (True, 1, 512)
        stored = file.asarray()
    off = np.abs(photos.astype(int) - stored[512:, 512:]).mean(axis=(1, 2, 3))
    assert off.min() < 8


@pytest.mark.parametrize("name", NAMES)
def test_the_limit_decodes_the_very_chunks(subjects: dict[str, Subject], name: str) -> None:
    subject = subjects[name]
    (step_y, step_x) = subject.chunk
    box = Box(step_y, 0, 2 * step_y, step_x)
    with subject.openers["ours"](1) as ours, subject.openers["limit"](1) as limit:
        expected, (decoded,) = ours(box), limit(box)
    if isinstance(decoded, bytes | bytearray):
        flat = np.frombuffer(decoded, np.uint8)
        planes = np.moveaxis(flat.reshape(3, step_y, step_x), 0, -1)
        decoded = planes if name == "ome_zarr" else flat.reshape(step_y, step_x, 3)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "tcga-jpeg2000.svs"])
def test_the_limit_decodes_the_very_tiles_of_real_slides(name: str) -> None:
    if not (SLIDES / name).is_file():
        pytest.skip(f"{name} is not here")
    subject = tiff_subject("slide", name, SLIDES / name)
    (step_y, step_x) = subject.chunk
    box = Box(4 * step_y, 5 * step_x, 5 * step_y, 6 * step_x)
    with subject.openers["ours"](1) as ours, subject.openers["limit"](1) as limit:
        np.testing.assert_array_equal(limit(box)[0], ours(box))


@pytest.mark.parametrize("name", NAMES)
def test_all_methods_give_the_same_pixels(subjects: dict[str, Subject], name: str) -> None:
    box = Box(100, 30, 612, 542)
    openers = {method: opener for method, opener in subjects[name].openers.items() if method != "limit"}
    assert len(openers) >= 2
    with openers["ours"](2) as read:
        expected = read(box)
    for opener in openers.values():
        with opener(2) as read:
            found = np.asarray(read(box))
        found = np.moveaxis(found, 0, -1) if found.shape[0] == 3 else found[..., :3]
        assert np.abs(found.astype(int) - expected).mean() < 0.5


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([(512, 512), (256, 256), (240, 240), (600, 200)]),
    st.integers(1, 20),
)
def test_no_chunk_is_touched_by_two_reads(height: int, width: int, chunk: tuple[int, int], most: int) -> None:
    subject = bare_subject(height, width, chunk)
    whole = Box(0, 0, height, width)
    for place in (aligned, unaligned):
        boxes = place(subject, most, np.random.default_rng(0))
        assert len(boxes) <= most
        cells = [cell for box in boxes for cell in touched(box, subject.shape, subject.chunk)]
        assert len(set(cells)) == len(cells)
        for box in boxes:
            assert box.intersect(whole) == box
            assert (box.height, box.width) == (read_side(chunk[0]), read_side(chunk[1]))
            on_grid = box.y0 % chunk[0] == 0, box.x0 % chunk[1] == 0
            assert on_grid == ((True, True) if place is aligned else (False, False))


def test_each_item_is_done_once_and_an_error_comes_through() -> None:
    done: list[int] = []
    in_threads(done.append, range(100), 3)
    assert sorted(done) == list(range(100))
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0], 2)


def test_a_ratio_is_of_medians_with_the_quartiles_of_the_rounds() -> None:
    assert compared("a", [2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == {"a": 2.0, "a_q1": 2.0, "a_q3": 2.5}


def test_a_section_is_a_table_of_its_figures() -> None:
    text = str(Section("title", {"a/b/x": 1.0, "a/b/y": 0.12345, "c/y": 123456.0}))
    assert [line.split() for line in text.splitlines()] == [
        ["title"],
        ["x", "y"],
        ["a/b", "1", "0.123"],
        ["c", "123,456"],
    ]


def test_a_method_that_fails_is_left_out_with_a_note(subjects: dict[str, Subject]) -> None:
    subject = subjects["zarr_v3"]

    def failing(_: Box) -> None:
        raise KeyError("lost")

    openers: dict[str, Opener] = {"ours": subject.openers["ours"], "other": lambda _: nullcontext(failing)}
    section = measure_speed(
        subject._replace(name="s", openers=openers), threads=(1,), rounds=1, reads=(1, 2), seed=0, tick=silent
    )
    assert len(section.notes) == 1
    assert section.notes[0].startswith("s: other cannot read it (KeyError: ")
    assert not any("other" in name for name in section.figures)


def test_an_image_too_small_is_told() -> None:
    small = bare_subject(900, 900, (512, 512))
    with pytest.raises(ValueError, match="900 x 900 pixels are too few"):
        measure_speed(small, threads=(1,), rounds=1, reads=(1, 2), seed=0, tick=silent)


@pytest.mark.parametrize("side", [1, 4])
def test_clusters_are_apart(side: int) -> None:
    boxes = cluster(side, 32, (14, 20), np.random.default_rng(0))
    assert len(set(boxes)) == len(boxes) == 32
    assert all(box.height == box.width == 512 + 2 * HALO for box in boxes)
    level = Level(0, 14 * 512, 20 * 512, 1.0, 1.0, (512, 512))
    needed = {cell for box in boxes for cell in touched(box, (level.height, level.width), level.chunk)}
    if side == 4:
        assert len(needed) == 2 * 6 * 6


def test_the_walk_counts_what_is_decoded(photos: NDArray[np.uint8], tmp_path: Path) -> None:
    data.write_tiff(tmp_path / "walked.tif", photos, 6 * 512, seed=0)
    figures = measure_walk(tmp_path / "walked.tif", tiles=16, threads=2, seed=0).figures
    assert figures["walk/clusters of 4/least_chunks"] == 36 / 16
    assert figures["walk/clusters of 4/without_reader"] == 9
    for kind in ("clusters of 4", "scattered"):
        # The image fits into the cache of decoded chunks.
        assert figures[f"walk/{kind}/decoded"] == figures[f"walk/{kind}/least_chunks"]


def test_a_child_tells_its_memory_or_why_it_fails(tmp_path: Path) -> None:
    if PEAK_IS_KNOWN:
        assert in_child("import")["peak"] > 1e7
    with pytest.raises(OSError, match=r"'tiles' failed: .*nothing\.tif"):
        in_child("tiles", tmp_path / "nothing.tif")


def test_the_command_measures_all_and_leaves_nothing_behind(
    tmp_path: Path,
    photos: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    data.write_svs(slides / "whole.svs", data.mosaic(photos, 1024, 0))
    (slides / "torn.svs").write_bytes((slides / "whole.svs").read_bytes()[:20000])
    (slides / "no slide.tif").touch()

    def fake_child(task: str, *paths: Path) -> dict[str, float]:
        if task == "conversion":
            paths[1].mkdir()
        return {"peak": 3e8 if task == "import" else 4e8, "seconds": 1.0}

    monkeypatch.setattr(large, "in_child", fake_child)
    monkeypatch.setattr(run, "QUICK", TINY)
    monkeypatch.setattr(run, "_PHOTOS", 2)
    out = tmp_path / "new"
    assert command.main(["io", "--quick", "--seed", "7", "--data", str(slides), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiff_jpeg_512: ")
    assert printed.endswith(f"written {out / 'io.json'}\n")
    assert "note: torn.svs is left out: " in printed
    assert [path.name for path in out.iterdir()] == ["io.json"]
    record = json.loads((out / "io.json").read_text("utf-8"))
    figures = record["figures"]
    assert (record["benchmark"], record["seeds"]) == ("io", [7])
    assert record["versions"]["tifffile"] == tifffile.__version__
    assert all(math.isfinite(value) for value in figures.values())
    for name in (*NAMES, "slide.whole"):
        other = "zarr" if "zarr" in name else "tifffile"
        for pattern in ("aligned", "unaligned"):
            assert figures[f"{name}/{pattern}/t1/ours/reads_per_s"] > 0
            for rival in ("limit", other):
                assert figures[f"{name}/{pattern}/t1/{rival}/ours_over_it"] > 0
    assert not any("torn" in name for name in figures)
    assert figures["walk/scattered/decoded"] > 0
    assert figures["conversion/mpx_per_s"] > 0
    assert figures["memory/tiles of 0.001 Gpx/above_import_mb"] == 100


def test_a_folder_without_slides_gives_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["io", "--quick", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark: ")
