"""Large pictures kept on disk: the same pixels as in memory, and a cache that survives whatever is done to it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.formats import decoded_cache, raster
from coarse2fine.tiling.formats.decoded_cache import BYTES_VARIABLE, FOLDER_VARIABLE, KEEP_SECONDS, STALE_SECONDS
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.source import Source
from coarse2fine.tiling.stats import ReadStats
from coarse2fine.tiling.writing import pyramid

SHAPE = (600, 530)
"""Of four chunks."""
BYTES = SHAPE[0] * SHAPE[1] * 3


def encode(path: Path, stored: NDArray[Any]) -> Path:
    ok, data = cv2.imencode(path.suffix, stored)
    assert ok
    path.write_bytes(data.tobytes())
    return path


def picture(folder: Path, name: str = "größe.png", channels: int = 3, dtype: str = "uint8", seed: int = 0) -> Path:
    limit = np.iinfo(dtype).max
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    pixels = np.random.default_rng(seed).integers(0, limit, shape, dtype=dtype, endpoint=True)
    if channels == 4:
        pixels[..., 3] |= 1
        pixels[:101, :200, 3] = 0
        pixels[200:, :, 3] = limit
    return encode(folder / name, pixels)


def opened(path: Path) -> Source:
    return raster.open_raster_file(path, path.suffix[1:], ReadStats())


def in_memory(path: Path) -> Source:
    return raster.open_raster(path.read_bytes(), path.suffix[1:], str(path))


def everything(source: Source) -> Box:
    return Box(0, 0, *source.size(0))


def assert_same(found: Source, expected: Source) -> None:
    box = everything(expected)
    np.testing.assert_array_equal(found.read(0, box), expected.read(0, box))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which every picture counts as large."""
    monkeypatch.setattr(raster, "CACHED_BYTES", 0)
    monkeypatch.setattr(pyramid, "COARSEST_SIDE", 100)
    monkeypatch.setattr(decoded_cache, "_CONVERTED_SIDE", 128)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(BYTES_VARIABLE, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, decoding a picture fails the test."""

    def refuse(*_: object) -> Source:
        pytest.fail("decoded again")

    return lambda: monkeypatch.setattr(raster, "open_raster", refuse)


Pair = tuple[Source, Source]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster, "CACHED_BYTES", 0)
        patch.setattr(pyramid, "COARSEST_SIDE", 100)
        patch.setattr(decoded_cache, "_CONVERTED_SIDE", 128)
        patch.setenv(FOLDER_VARIABLE, str(folder / "cache"))
        paths = {
            f"{channels} {dtype}": picture(folder, f"{channels}{dtype}.png", channels, dtype)
            for channels in (1, 3, 4)
            for dtype in ("uint8", "uint16")
        }
        return {name: (opened(path), in_memory(path)) for name, path in paths.items()}


@pytest.mark.parametrize("name", [f"{channels} {dtype}" for channels in (1, 3, 4) for dtype in ("uint8", "uint16")])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(y=st.integers(0, 599), x=st.integers(0, 529), height=st.integers(1, 600), width=st.integers(1, 530))
def test_any_box_equals_memory(pairs: dict[str, Pair], name: str, y: int, x: int, height: int, width: int) -> None:
    cached, plain = pairs[name]
    box = Box(y, x, min(SHAPE[0], y + height), min(SHAPE[1], x + width))
    np.testing.assert_array_equal(cached.read(0, box), plain.read(0, box))
    np.testing.assert_array_equal(cached.read_mask(0, box), plain.read_mask(0, box))
    if plain.channels == 3:
        one = cached.pick((1,), "a"), plain.pick((1,), "a")
        np.testing.assert_array_equal(one[0].read(0, box), one[1].read(0, box))


def test_what_is_known_of_the_file_stays(pairs: dict[str, Pair]) -> None:
    for name, (cached, plain) in pairs.items():
        assert (cached.format, cached.channels, cached.masked) == (plain.format, plain.channels, plain.masked)
        assert (cached.notes, cached.range_notes) == (plain.notes, plain.range_notes)
        assert (cached.channel_notes, cached.pixel_size) == (plain.channel_notes, None)
        assert not cached.in_memory
        sizes = [cached.size(level) for level in range(len(cached.arrays))]
        assert sizes == [(600, 530), (300, 265), (150, 133), (75, 67)], name


def test_coarse_levels_are_means_of_what_is_read(pairs: dict[str, Pair]) -> None:
    for cached, _ in pairs.values():
        full = cached.read(0, everything(cached)).astype(float)
        half = full.reshape(300, 2, 265, 2, -1).mean(axis=(1, 3))
        assert np.abs(cached.read(1, Box(0, 0, 300, 265)) - half).max() <= 1.0
        if cached.masked:
            some = cached.read_mask(0, everything(cached)).reshape(300, 2, 265, 2).any(axis=(1, 3))
            np.testing.assert_array_equal(cached.read_mask(1, Box(0, 0, 300, 265)), some)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".jp2"])
def test_files_are_decoded_once(tmp_path: Path, cache: Path, no_decoding: Callable[[], None], suffix: str) -> None:
    kind = {".jpg": "jpeg", ".jp2": "jpeg2000"}.get(suffix, suffix[1:])
    path = picture(tmp_path, "a" + suffix)
    expected = raster.open_raster(path.read_bytes(), kind, "a")
    assert_same(raster.open_raster_file(path, kind, ReadStats()), expected)
    no_decoding()
    again = raster.open_raster_file(path, kind, ReadStats())
    assert_same(again, expected)
    assert again.format == kind
    assert len(list(cache.iterdir())) == 1


def test_pictures_open_from_the_cache(tmp_path: Path, no_decoding: Callable[[], None]) -> None:
    path = picture(tmp_path, channels=4)
    with open_image(path) as image:
        first = image.read(Box(0, 0, *SHAPE))
        assert (image.format, image.mpp, image.notes) == ("png", None, ("alpha composited on white",))
    no_decoding()
    with open_image(path) as image:
        np.testing.assert_array_equal(image.read(Box(0, 0, *SHAPE)), first)
        assert [level.downsample_y for level in image.levels] == [1.0, 2.0, 4.0, 8.0]
        np.testing.assert_array_equal(image.read_mask(Box(0, 0, 101, 201)), np.arange(201)[None].repeat(101, 0) >= 200)


def test_small_files_stay_in_memory(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path)
    monkeypatch.setattr(raster, "CACHED_BYTES", BYTES)
    source = opened(path)
    assert source.in_memory
    assert not cache.exists()
    monkeypatch.setattr(raster, "CACHED_BYTES", BYTES - 1)
    assert not opened(path).in_memory


def test_reads_are_counted(tmp_path: Path) -> None:
    path = picture(tmp_path)
    stats = ReadStats()
    source = raster.open_raster_file(path, "png", stats)
    before = stats.snapshot()
    assert before.fetched > path.stat().st_size
    source.read(0, Box(0, 0, 10, 10))
    assert stats.requests == before.requests + 1


def test_a_changed_file_is_another_one(tmp_path: Path) -> None:
    path = picture(tmp_path)
    opened(path)
    os.utime(picture(tmp_path, seed=1), ns=(1, 1))
    assert_same(opened(path), in_memory(path))
    os.utime(picture(tmp_path, seed=2), ns=(2, 2))
    assert_same(opened(path), in_memory(path))


def entry_of(path: Path) -> Path:
    return decoded_cache.CacheEntry.of(path).folder


def chunk_of(entry: Path) -> Path:
    return next(path for path in (entry / "pixels" / "0" / "c").rglob("*") if path.is_file())


def spoil_about(entry: Path) -> None:
    (entry / "about.json").write_text("{")


def spoil_fields(entry: Path) -> None:
    (entry / "about.json").write_text(json.dumps({"format": "png"}))


def drop_chunk(entry: Path) -> None:
    chunk_of(entry).unlink()


def cut_chunk(entry: Path) -> None:
    chunk = chunk_of(entry)
    chunk.write_bytes(chunk.read_bytes()[:-1])


def spoil_metadata(entry: Path) -> None:
    metadata = entry / "pixels" / "zarr.json"
    metadata.write_bytes(b"{" * metadata.stat().st_size)


def drop_about(entry: Path) -> None:
    (entry / "about.json").unlink()


def drop_mask(entry: Path) -> None:
    shutil.rmtree(entry / "mask")


@pytest.mark.parametrize(
    "spoil", [spoil_about, spoil_fields, drop_about, drop_chunk, cut_chunk, spoil_metadata, drop_mask]
)
def test_damaged_entries_are_made_again(
    tmp_path: Path, no_decoding: Callable[[], None], spoil: Callable[[Path], None]
) -> None:
    path = picture(tmp_path, channels=4)
    opened(path)
    spoil(entry_of(path))
    source = opened(path)
    assert not source.in_memory
    assert source.notes == ()
    assert_same(source, in_memory(path))
    expected = in_memory(path)
    no_decoding()
    assert_same(opened(path), expected)
    assert [folder.name for folder in entry_of(path).parent.iterdir()] == [entry_of(path).name]


def test_an_entry_removed_while_it_is_read_is_no_black_picture(tmp_path: Path) -> None:
    path = picture(tmp_path)
    source = opened(path)
    shutil.rmtree(entry_of(path))
    with pytest.raises(OSError, match=r"were removed; open the image again"):
        source.read(0, everything(source))


def age(entry: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(entry / "used", (then, then))


def test_entries_not_used_for_long_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [picture(tmp_path, f"{name}.png", seed=ord(name)) for name in "abc"]
    for path, hours in zip(paths, (5, 9, 7), strict=True):
        opened(path)
        age(entry_of(path), hours * 3600)
    size = decoded_cache._measure(entry_of(paths[0]))[1]
    opened(paths[1]).read(0, Box(0, 0, 1, 1))  # no longer the one that was used the longest time ago
    age(entry_of(paths[1]), 6 * 3600)
    monkeypatch.setenv(BYTES_VARIABLE, str(int(2.5 * size)))
    new = picture(tmp_path, "d.png", seed=9)
    opened(new)
    assert [entry_of(path).exists() for path in (*paths, new)] == [True, False, False, True]


def test_entries_in_use_stay_whatever_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (picture(tmp_path, f"{name}.png", seed=ord(name)) for name in "abc")
    opened(first)
    source = opened(second)
    monkeypatch.setenv(BYTES_VARIABLE, str(BYTES))
    age(entry_of(first), KEEP_SECONDS - 60)
    age(entry_of(second), KEEP_SECONDS + 60)
    source.read(0, Box(0, 0, 1, 1))
    opened(third)
    assert [entry_of(path).exists() for path in (first, second, third)] == [True, True, True]
    age(entry_of(first), KEEP_SECONDS + 60)
    opened(picture(tmp_path, "d.png", seed=7))
    assert [entry_of(path).exists() for path in (first, second, third)] == [False, True, True]


def test_what_a_dead_process_left_is_removed(tmp_path: Path, cache: Path) -> None:
    for name, age_seconds in (("old", STALE_SECONDS + 60), ("new", STALE_SECONDS - 60)):
        left = cache / f".{name}.partial"
        left.mkdir(parents=True)
        (left / "half").write_bytes(b"x")
        then = time.time() - age_seconds
        os.utime(left, (then, then))
    (cache / "notes.txt").write_text("not ours")
    path = picture(tmp_path)
    opened(path)
    assert {entry.name for entry in cache.iterdir()} == {".new.partial", "notes.txt", entry_of(path).name}


def test_what_is_noted_of_a_picture_is_kept(cache: Path, tmp_path: Path, no_decoding: Callable[[], None]) -> None:
    path = tmp_path / "a.jpeg"
    PIL.Image.new("RGB", (20, 10)).save(path, dpi=(300, 300))
    expected = in_memory(path).notes
    assert "300 dots per inch" in expected[0]
    assert opened(path).notes == expected
    no_decoding()
    assert opened(path).notes == expected
    assert any(cache.iterdir())


def test_pixels_beyond_the_bound_stay_in_memory(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path, channels=4)
    needed = BYTES // 3 * 4
    monkeypatch.setenv(BYTES_VARIABLE, str(needed - 1))
    source = opened(path)
    assert source.in_memory
    assert source.notes == (
        f"pixels kept in memory, not on disk: its pixels exceed the {needed - 1} bytes of {BYTES_VARIABLE}",
    )
    assert not cache.exists()
    monkeypatch.setenv(BYTES_VARIABLE, str(needed))
    assert not opened(path).in_memory


@pytest.mark.parametrize("given", ["20 GB", "-1", ""])
def test_a_bound_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(BYTES_VARIABLE, given)
    with pytest.raises(ValueError, match=f"expected {BYTES_VARIABLE} to be a whole number of bytes, got"):
        opened(picture(tmp_path))


def test_a_cache_that_cannot_be_made_leaves_pixels_in_memory(tmp_path: Path, cache: Path) -> None:
    path = picture(tmp_path)
    cache.write_text("in the way")
    source = opened(path)
    assert source.in_memory
    assert source.notes[0].startswith(f"pixels kept in memory, not on disk: the cache {cache} cannot be written: ")
    assert_same(source, in_memory(path))


def test_a_full_disk_leaves_pixels_in_memory(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded_cache, "write_pyramid", full)
    source = opened(picture(tmp_path))
    assert source.notes[0].endswith("cannot be written: No space left on device")
    assert list(cache.iterdir()) == []


def test_a_cache_that_may_only_be_read_is_read(
    tmp_path: Path, no_decoding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path)
    opened(path)
    expected = in_memory(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    no_decoding()
    assert_same(opened(path), expected)


def test_the_slower_of_two_takes_what_the_faster_made(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path, channels=4)
    write = decoded_cache._write
    calls = []

    def slow(folder: Path, source: Source) -> None:
        calls.append(folder)
        write(folder, source)
        if len(calls) == 1:
            opened(path)  # meanwhile, elsewhere

    monkeypatch.setattr(decoded_cache, "_write", slow)
    source = opened(path)
    assert len(calls) == 2
    assert source.notes == ()
    assert_same(source, in_memory(path))
    assert [folder.name for folder in cache.iterdir()] == [entry_of(path).name]


def test_threads_share_the_cache(tmp_path: Path, cache: Path) -> None:
    path = picture(tmp_path, channels=4)
    expected = in_memory(path)
    with ThreadPoolExecutor(4) as pool:
        for source in pool.map(opened, [path] * 4):
            assert source.notes == ()
            assert_same(source, expected)
    assert [folder.name for folder in cache.iterdir()] == [entry_of(path).name]
