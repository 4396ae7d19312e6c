"""The benchmark of reading: that it measures what it says, not how fast anything is."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from benchmarks.reading import child
from benchmarks.reading import data as io_data
from benchmarks.reading.child import PEAK_IS_KNOWN
from benchmarks.reading.memory import in_child
from benchmarks.reading.readers import Subject, tiff_subject, zarr_subject
from benchmarks.reading.run import QUICK, IoScale, benchmark_io
from benchmarks.reading.speed import aligned, in_threads, measure_speed, read_side, unaligned
from benchmarks.reading.walk import HALO, cluster, measure_walk, touched
from benchmarks.report import IoReport, Ratio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import coarse2fine.cli.benchmark
from coarse2fine.tiling.geometry import Box, Level

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"
SLIDES = Path(__file__).resolve().parents[3] / "shared" / "data" / "formats"
NAMES = ("tiff_jpeg_512", "svs_jpeg_256", "ome_zarr", "zarr_v3", "zarr_v2")
TINY = IoScale(1024, 2, (1, 4), 2, 0.01, 16, (0.003,), 0.0003, (0.0003,))


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return io_data.mosaic(io_data.photo_like(3, seed=1), 1024, seed=2)


@pytest.fixture(scope="module")
def subjects(pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    folder = tmp_path_factory.mktemp("subjects")
    io_data.write_tiff(folder / "a.tif", pixels)
    io_data.write_svs(folder / "a.svs", pixels)
    io_data.write_ome_zarr(folder / "a.ome.zarr", pixels)
    for version in (2, 3):
        io_data.write_zarr(folder / f"a{version}.zarr", pixels, version)
    return {
        "tiff_jpeg_512": tiff_subject("tiff_jpeg_512", "", folder / "a.tif"),
        "svs_jpeg_256": tiff_subject("svs_jpeg_256", "", folder / "a.svs"),
        "ome_zarr": zarr_subject("ome_zarr", "", folder / "a.ome.zarr", "0"),
        "zarr_v3": zarr_subject("zarr_v3", "", folder / "a3.zarr"),
        "zarr_v2": zarr_subject("zarr_v2", "", folder / "a2.zarr"),
    }


def silent(done: int, total: int) -> None:
    """Show no progress."""


def bare_subject(height: int, width: int, chunk: tuple[int, int]) -> Subject:
    return Subject("bare", "bare", (height, width), chunk, {}, lambda _: {}, None)


def test_pixels_compress_like_photographs_and_repeat_with_the_seed() -> None:
    tiles = io_data.photo_like(4, seed=0)
    np.testing.assert_array_equal(tiles, io_data.photo_like(4, seed=0))
    assert not np.array_equal(tiles, io_data.photo_like(4, seed=1))
    jpeg = sum(len(imagecodecs.jpeg8_encode(tile, io_data.JPEG_QUALITY)) for tile in tiles)
    assert 6 < tiles.nbytes / jpeg < 25
    zstd = sum(len(imagecodecs.zstd_encode(tile.tobytes(), io_data.ZSTD_LEVEL)) for tile in tiles)
    assert 1.02 < tiles.nbytes / zstd < 2


def test_a_mosaic_is_made_of_its_tiles() -> None:
    tiles = io_data.photo_like(2, seed=0)
    laid = io_data.mosaic(tiles, 1536, seed=3)
    parts = [laid[y : y + 512, x : x + 512] for y in range(0, 1536, 512) for x in range(0, 1536, 512)]
    found = [next(i for i in (0, 1) if np.array_equal(part, tiles[i])) for part in parts]
    assert set(found) == {0, 1}


def test_zarrs_hold_the_pixels_in_the_chunks_they_promise(subjects: dict[str, Subject], tmp_path: Path) -> None:
    pixels = io_data.photo_like(1, seed=5)[0]
    io_data.write_ome_zarr(tmp_path / "a.ome.zarr", pixels)
    level = zarr.open_array(tmp_path / "a.ome.zarr" / "0", mode="r")
    assert (level.chunks, level.shards) == ((3, 512, 512), (3, 4096, 4096))
    np.testing.assert_array_equal(np.moveaxis(np.asarray(level[:]), 0, -1), pixels)
    for version in (2, 3):
        io_data.write_zarr(tmp_path / f"{version}.zarr", pixels, version)
        array = zarr.open_array(tmp_path / f"{version}.zarr", mode="r")
        assert (array.chunks, array.metadata.zarr_format) == ((512, 512, 3), version)
        np.testing.assert_array_equal(np.asarray(array[:]), pixels)


def test_a_big_tiff_has_the_tiles_that_were_encoded(tmp_path: Path) -> None:
    tiles = io_data.photo_like(2, seed=0)
    io_data.write_big_tiff(tmp_path / "big.tif", tiles, 1536, seed=4)
    with tifffile.TiffFile(tmp_path / "big.tif") as file:
        assert (file.is_bigtiff, len(file.pages), file.pages[0].tilewidth) == (True, 1, 512)
        stored = file.asarray()
    for y in range(0, 1536, 512):
        for x in range(0, 1536, 512):
            off = np.abs(tiles.astype(int) - stored[y : y + 512, x : x + 512]).mean(axis=(1, 2, 3))
            assert off.min() < 8


def test_the_svs_is_one_to_other_readers(subjects: dict[str, Subject], tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide", exc_type=ImportError)
    io_data.write_svs(tmp_path / "a.svs", io_data.mosaic(io_data.photo_like(1, 0), 1024, 0))
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.level_dimensions == ((1024, 1024), (256, 256), (64, 64))
    with tifffile.TiffFile(tmp_path / "a.svs") as file:
        assert file.is_svs
        assert [level.shape[-3:-1] for level in file.series[0].levels] == [(1024, 1024), (256, 256), (64, 64)]


@pytest.mark.parametrize("name", NAMES)
def test_the_limit_decodes_the_very_chunks(subjects: dict[str, Subject], name: str) -> None:
    subject = subjects[name]
    (step_y, step_x) = subject.chunk
    cells = [(0, 1), (1, 0)]
    stored = subject.load(cells)
    assert subject.decode is not None
    with subject.openers["ours"](1) as read:
        for row, column in cells:
            expected = read(Box(row * step_y, column * step_x, (row + 1) * step_y, (column + 1) * step_x))
            decoded = subject.decode(stored[row, column])
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
    assert subject.decode is not None
    with subject.openers["ours"](1) as read:
        expected = read(Box(4 * step_y, 5 * step_x, 5 * step_y, 6 * step_x))
    np.testing.assert_array_equal(subject.decode(subject.load([(4, 5)])[4, 5]), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_all_methods_give_the_same_pixels(subjects: dict[str, Subject], name: str, threads: int) -> None:
    box = Box(100, 30, 612, 542)
    with subjects[name].openers["ours"](threads) as read:
        expected = read(box)
    assert len(subjects[name].openers) >= 2
    for opener in subjects[name].openers.values():
        with opener(threads) as read:
            found = np.asarray(read(box))
        found = np.moveaxis(found, 0, -1) if found.shape[0] == 3 else found[..., :3]
        assert np.abs(found.astype(int) - expected).mean() < 0.5


@settings(derandomize=True, deadline=None)
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
        cells = [cell for box in boxes for cell in subject.cells(box)]
        assert len(set(cells)) == len(cells)
        for box in boxes:
            assert box.intersect(whole) == box
            assert (box.height, box.width) == (read_side(chunk[0]), read_side(chunk[1]))
            on_grid = box.y0 % chunk[0] == 0, box.x0 % chunk[1] == 0
            assert on_grid == ((True, True) if place is aligned else (False, False))


def test_each_item_is_done_once_and_an_error_ends_the_work() -> None:
    done: list[int] = []
    in_threads(done.append, range(100), 3)
    assert sorted(done) == list(range(100))

    def fail(item: int) -> None:
        done.append(item)
        raise OSError("torn")

    done.clear()
    with pytest.raises(OSError, match="torn"):
        in_threads(fail, range(10**6), 2)
    assert len(done) <= 2


def test_a_ratio_is_of_medians_with_the_quartiles_of_the_rounds() -> None:
    ratio = Ratio.of([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.5)
    assert ratio.figures("a") == {"a": 2.0, "a_q1": 2.0, "a_q3": 2.5}


def test_speed_of_a_method_that_fails_is_left_out_with_a_note(subjects: dict[str, Subject]) -> None:
    subject = subjects["zarr_v3"]
    openers = {"ours": subject.openers["ours"], "other": subject.limit({})}
    broken = Subject("s", "s", subject.shape, subject.chunk, openers, subject.load, None)
    section = measure_speed(broken, threads=(1,), rounds=1, reads=(1, 2), seed=0, tick=silent)
    assert len(section.notes) == 1
    assert section.notes[0].startswith("s: other cannot read it (KeyError: ")
    assert not any("other" in name or "limit" in name for name in section.figures)


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
    needed = {cell for box in boxes for cell in touched(box, level)}
    if side == 4:
        assert len(needed) == 2 * 6 * 6


def test_the_walk_counts_what_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "walked.tif"
    io_data.write_big_tiff(path, io_data.photo_like(2, 0), 6 * 512, seed=0)
    ticks: list[tuple[int, int]] = []
    section = measure_walk(path, tiles=16, threads=2, seed=0, tick=lambda done, total: ticks.append((done, total)))
    figures = section.figures
    assert ticks[-1] == (4, 4)
    assert figures["io.walk.clustered_4.least_per_tile"] == 36 / 16
    assert figures["io.walk.clustered_4.without_cache_per_tile"] == 9
    for kind in ("clustered_4", "scattered"):
        for way in ("reader", "shuffled"):
            # The image fits into the cache of decoded chunks.
            assert figures[f"io.walk.{kind}.{way}_per_needed"] == 1.0


@pytest.mark.skipif(not PEAK_IS_KNOWN, reason="peak memory is not measured on this system")
def test_peak_memory_sees_what_was_held() -> None:
    before = child.peak_memory()
    held = np.ones(before, np.uint8)
    assert child.peak_memory() > before
    del held
    assert child.peak_memory() > before


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"'overview' failed: .*nothing\.tif"):
        in_child("overview", tmp_path / "nothing.tif")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[IoReport, Path]:
    out, slides = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("slides")
    io_data.write_svs(slides / "whole.svs", io_data.mosaic(io_data.photo_like(1, 0), 1024, 0))
    (slides / "torn.svs").write_bytes((slides / "whole.svs").read_bytes()[:20000])
    (slides / "no slide.tif").touch()
    return benchmark_io(out, data=slides, scale=TINY, progress=False), out


def test_all_figures_are_there_and_finite(report: tuple[IoReport, Path]) -> None:
    figures = report[0].figures()
    assert all(math.isfinite(value) for value in figures.values())
    for name in (*NAMES, "slide.whole"):
        other = "zarr" if "zarr" in name else "tifffile"
        for pattern in ("aligned", "unaligned"):
            for method in ("ours", "limit", other):
                assert figures[f"io.{name}.{pattern}.t1.{method}.reads_per_s"] > 0
            for rival in ("limit", other):
                assert figures[f"io.{name}.{pattern}.t1.ours_over_{rival}"] > 0
    assert figures["io.walk.scattered.reader_per_tile"] > 0
    assert figures["io.conversion.ours.mpx_per_s"] > 0
    assert figures["io.conversion.ours_over_encoder"] > 0
    if PEAK_IS_KNOWN:
        for task in ("overview", "tiles"):
            assert figures[f"io.memory.{task}.largest_over_smallest"] >= 1
            assert figures[f"io.memory.{task}.0.003gpx.peak_mb"] > figures["io.memory.import_mb"]
        assert figures["io.conversion.conversion.0.0003gpx.peak_mb"] > 0


def test_slides_that_cannot_be_opened_are_noted(report: tuple[IoReport, Path]) -> None:
    (note,) = (note for note in report[0].all_notes() if "machine was busy" not in note)
    assert note.startswith("torn.svs is left out: ")
    assert not any("torn" in name for name in report[0].figures())


def test_the_report_is_a_table_and_json_and_leaves_nothing_behind(report: tuple[IoReport, Path]) -> None:
    done, out = report
    assert list(out.iterdir()) == []
    text = str(done)
    assert text.startswith("tiff_jpeg_512: ")
    for word in ("ours over it", "walk: ", "memory: ", "conversion: ", "read_region"):
        assert word in text
    (written,) = done.save(out / "io.json")
    saved = json.loads(written.read_text("utf-8"))
    assert saved["figures"] == done.figures()
    assert saved["seeds"] == [0]
    assert saved["versions"]["tifffile"] == tifffile.__version__
    assert saved["machine"]["cores"] >= 1
    written.unlink()


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "io", *map(str, arguments)])
    return int(script.main())


def test_the_script_passes_its_options_on_and_writes_json(
    script: ModuleType,
    report: tuple[IoReport, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, Any] = {}

    def benchmark(out: Path, **options: Any) -> IoReport:
        given.update(options, out=out)
        return report[0]

    monkeypatch.setattr(coarse2fine.cli.benchmark, "benchmark_io", benchmark)
    assert run(script, monkeypatch, "--quick", "--seed", 7, "--data", SLIDES, "--out", tmp_path / "new") == 0
    assert given == {"out": tmp_path / "new", "data": SLIDES, "scale": QUICK, "seed": 7}
    printed = capsys.readouterr().out
    assert printed.startswith("tiff_jpeg_512: ")
    assert printed.endswith(f"written {tmp_path / 'new' / 'io.json'}\n")
    assert json.loads((tmp_path / "new" / "io.json").read_text("utf-8"))["benchmark"] == "io"


def test_a_folder_without_slides_gives_one_clear_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, monkeypatch, "--quick", "--data", tmp_path / "nowhere", "--out", tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark: ")
