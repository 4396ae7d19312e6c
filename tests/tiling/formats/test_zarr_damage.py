"""Zarrs that are damaged, lie or mean harm: one clear error each, bounded memory, and the rest still reads."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import pickle
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray
from zarr import codecs

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.window_reader import WindowReader

SIDE, CHUNK = 96, 32
FLAT = Path("c", "1", "1")
"""The chunk in the middle, and the shard that holds it with its neighbour on the right."""
SHARD = Path("c", "1", "0")


def noise(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 255, shape, endpoint=True).astype(dtype)


def whole(image: Image) -> NDArray[np.uint8]:
    return image.read(Box(0, 0, image.height, image.width))


def write(folder: Path, *, compressors: Any = "auto", shards: Any = None, dtype: str = "u1") -> NDArray[Any]:
    pixels = noise(SIDE, SIDE, dtype=dtype)
    array = zarr.create_array(
        folder, shape=pixels.shape, chunks=(CHUNK, CHUNK), shards=shards, dtype=dtype, compressors=compressors
    )
    array[...] = pixels
    return pixels


def change(folder: Path, **changes: Any) -> None:
    path = next(path for path in (folder / "zarr.json", folder / ".zarray") if path.exists())
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def grid(*chunk: int) -> dict[str, Any]:
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}}}


def place(offset: int, count: int) -> Callable[[bytes], bytes]:
    """Let the index of a shard of 1 x 3 chunks, with its checksum right, name another place for the middle one."""

    def damage(data: bytes) -> bytes:
        index = bytearray(data[-52:-4])
        index[16:32] = struct.pack("<QQ", offset, count)
        return data[:-52] + bytes(CRC32C().encode(bytes(index)))

    return damage


def flipped(data: bytes) -> bytes:
    return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]


CHUNKS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: data[: len(data) // 2], "ZSTD"),
    "empty": (lambda _: b"", "state 1024 bytes a chunk, this one holds 0"),
    "garbage": (lambda data: bytes(255 - byte for byte in data), "ZSTD"),
    "flipped": (flipped, "ZSTD"),
    "too long": (lambda _: bytes(numcodecs.Zstd().encode(bytes(1025))), "too small"),
    "too short": (lambda _: bytes(numcodecs.Zstd().encode(bytes(1023))), "state 1024 bytes a chunk, .* holds 1023"),
}
SHARDS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: data[: len(data) // 2], "checksum of the shard index"),
    "cut to nothing": (lambda _: b"", "shard index of 52 bytes .* got 0 bytes"),
    "cut to little": (lambda data: data[:9], "shard index of 52 bytes .* got 9 bytes"),
    "index flipped": (flipped, "checksum of the shard index"),
    "beyond the end": (place(10**6, 1024), "the shard ends within the 1024 bytes"),
    "across the end": (place(3000, 1024), "the shard ends within the 1024 bytes"),
    "beyond any end": (place(2**63 + 5, 1024), "the shard ends within"),
    "absurdly long": (place(0, 2**62), "the shard ends within"),
    "half missing": (place(2**64 - 1, 1024), "the shard ends within"),
    "too long": (place(0, 1025), "state 1024 bytes a chunk, this one holds 1025"),
    "too short": (place(0, 1023), "state 1024 bytes a chunk, this one holds 1023"),
}


def assert_only_one_is_lost(folder: Path, pixels: NDArray[Any], message: str) -> None:
    """Windows that need the chunk in the middle are marked, others read, and one reason is given."""
    middle = Box(CHUNK, CHUNK, 2 * CHUNK, 2 * CHUNK)
    boxes = [Box(y, x, y + 24, x + 24) for y, x in itertools.product(range(0, SIDE, 12), repeat=2)]
    with open_image(folder) as image, WindowReader(image, workers=3) as reader:
        with pytest.raises(ImageError, match=message) as caught:
            whole(image)
        assert str(caught.value).startswith(f"{folder}: level 0, chunk at y=32, x=32 ")
        batches = list(reader.batches(boxes, 7))
        assert reader.failures == [str(caught.value)]
    low, high = image.value_range
    for i, window, failed in ((i, w, f) for b in batches for i, w, f in zip(b.index, b.pixels, b.failed, strict=True)):
        assert failed == (middle.intersect(boxes[i]) is not None)
        rows, columns = (np.clip(np.arange(start, start + 24), 0, SIDE - 1) for start in (boxes[i].y0, boxes[i].x0))
        expected = np.rint(np.clip((pixels[np.ix_(rows, columns)] - low) * (255 / (high - low)), 0, 255))
        np.testing.assert_array_equal(window[..., 0], 0 if failed else expected)


@pytest.mark.parametrize("kind", CHUNKS)
def test_damaged_chunk(tmp_path: Path, kind: str) -> None:
    damage, message = CHUNKS[kind]
    pixels = write(tmp_path / "a", compressors=codecs.ZstdCodec(checksum=True))
    path = tmp_path / "a" / FLAT
    path.write_bytes(damage(path.read_bytes()))
    assert_only_one_is_lost(tmp_path / "a", pixels, message)


@pytest.mark.parametrize("kind", SHARDS)
def test_damaged_shard(tmp_path: Path, kind: str) -> None:
    damage, message = SHARDS[kind]
    pixels = write(tmp_path / "a", compressors=None, shards=(CHUNK, SIDE))
    path = tmp_path / "a" / SHARD
    path.write_bytes(damage(path.read_bytes()))
    if kind in ("cut", "cut to nothing", "cut to little", "index flipped"):
        with open_image(tmp_path / "a") as image:
            np.testing.assert_array_equal(image.read(Box(0, 0, CHUNK, SIDE))[..., 0], pixels[:CHUNK])
            with pytest.raises(ImageError, match=message):
                image.read(Box(CHUNK, CHUNK, 2 * CHUNK, 2 * CHUNK))
    else:
        assert_only_one_is_lost(tmp_path / "a", pixels, message)


def test_damaged_chunk_of_reals_is_left_out_of_their_range(tmp_path: Path) -> None:
    pixels = write(tmp_path / "a", dtype="f4")
    (tmp_path / "a" / FLAT).write_bytes(b"broken")
    whole_chunks = np.ones((3, 3), dtype=bool)
    whole_chunks[1, 1] = False
    low, high = np.percentile(pixels[np.kron(whole_chunks, np.ones((CHUNK, CHUNK), bool))], (0.1, 99.9))
    with open_image(tmp_path / "a") as image:
        assert image.value_range == (low, high)
    assert_only_one_is_lost(tmp_path / "a", pixels, "cannot be decoded")


@pytest.mark.parametrize("shards", [None, (CHUNK, SIDE)])
def test_metadata_that_lie(tmp_path: Path, shards: Any) -> None:
    write(tmp_path / "a", compressors=None, shards=shards)
    good = (tmp_path / "a" / "zarr.json").read_text()
    lies: list[tuple[dict[str, Any], str]] = [({"data_type": "uint16"}, "state 2048 bytes a chunk, .* holds 1024")]
    if shards is None:
        lies.append((grid(CHUNK, 16), "state 512 bytes a chunk, this one holds 1024"))
        lies.append((grid(2 * CHUNK, 2 * CHUNK), "state 4096 bytes a chunk, this one holds 1024"))
    else:
        lies.append((grid(2 * CHUNK, SIDE), "checksum of the shard index"))
        lies.append((grid(2**10 * CHUNK, 2**10 * CHUNK), "shard index of"))
    for lie, message in lies:
        (tmp_path / "a" / "zarr.json").write_text(good)
        change(tmp_path / "a", **lie)
        with open_image(tmp_path / "a") as image, pytest.raises(ImageError, match=message) as caught:
            whole(image)
        assert str(caught.value).startswith(f"{tmp_path / 'a'}: level 0, chunk at y=0, x=0 ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (grid(10**6, 10**6), "one stored chunk of 1000000 x 1000000 samples of uint8 takes .* more than the limit of"),
        (grid(2**40, 2**40), "one stored chunk of .* more than the limit"),
        ({"shape": [2**40, SIDE]}, "expected sides of at most"),
        (grid(0, 32), "metadata is damaged|is empty"),
        (grid(-1, 32), "metadata is damaged"),
        (grid(32), "metadata is damaged"),
        ({"shape": [0, SIDE]}, "has no pixels"),
        ({"shape": [SIDE]}, "metadata is damaged"),
        ({"data_type": "uint9"}, "metadata is damaged"),
        ({"data_type": "complex64", "fill_value": [0, 0]}, "expected boolean, integer or real"),
        ({"codecs": [{"name": "rot13"}]}, "rot13"),
        ({"codecs": None}, "metadata is damaged"),
        ({"fill_value": None}, "metadata is damaged"),
    ],
)
def test_impossible_metadata(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path / "a")
    change(tmp_path / "a", **changes)
    with pytest.raises(ImageError, match=message) as caught:
        open_image(tmp_path / "a")
    assert str(caught.value).startswith(f"{tmp_path / 'a'}: ")


def test_absurd_chunks_along_other_axes(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(1000, 1000, 3), chunks=(1000, 1000, 10**6), dtype="u1")
    with pytest.raises(ImageError, match="one stored chunk of 1000 x 1000 x 1000000 samples"):
        open_image(tmp_path / "a")
    zarr.create_array(tmp_path / "b", shape=(64, 64, 0), chunks=(64, 64, 1), dtype="u1")
    with pytest.raises(ImageError, match=r"the array is empty \(shape \(64, 64, 0\)"):
        open_image(tmp_path / "b")


def test_chunks_that_are_missing_take_no_memory(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(2**15, 2**15), chunks=(2**15, 2**15), dtype="u1", fill_value=9)
    with open_image(tmp_path / "a") as image:
        tracemalloc.start()
        assert set(np.unique(image._source.read(0, Box(100, 100, 200, 200)))) == {9}
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "\0\1", '{"zarr_format": 3, "node_type": "array"}'])
def test_broken_metadata_text(tmp_path: Path, text: str) -> None:
    for name in ("zarr.json", ".zarray"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(ImageError, match=r"metadata is damaged|no 'multiscales'") as caught:
            open_image(folder)
        assert str(caught.value).startswith(f"{folder}: ")
    write(tmp_path / "good")
    marker = tmp_path / "good" / "zarr.json"
    good = marker.read_bytes()
    for length in range(1, len(good), 61):
        marker.write_bytes(good[:length])
        with pytest.raises(ImageError, match="metadata is damaged"):
            open_image(tmp_path / "good")


def test_directories_that_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ImageError, match="expected a Zarr directory"):
        open_image(tmp_path)
    group = zarr.open_group(tmp_path / "plate", mode="w")
    group.attrs["ome"] = {"version": "0.5"}
    with pytest.raises(ImageError, match="no 'multiscales' metadata; pass the path of an image inside it"):
        open_image(tmp_path / "plate")


def test_levels_that_do_not_fit_together(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a", mode="w")
    datasets = [{"path": "0"}, {"path": "1"}]
    axes = [{"name": name} for name in "cyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.create_array("0", shape=(3, 64, 64), chunks=(3, 32, 32), dtype="u1")
    with pytest.raises(ImageError, match="there is no array '1'"):
        open_image(tmp_path / "a")
    for shape, dtype, message in (
        ((1, 32, 32), "u1", "differ in their number of channels"),
        ((3, 32, 32), "u2", "differ in dtype or axes"),
        ((32, 32), "u1", "differ in dtype or axes"),
    ):
        shutil.rmtree(tmp_path / "a" / "1", ignore_errors=True)
        group.create_array("1", shape=shape, chunks=shape, dtype=dtype)
        with pytest.raises(ImageError, match=message) as caught:
            open_image(tmp_path / "a")
        assert str(caught.value).startswith(f"{tmp_path / 'a'}: ")


BOMB = 2**26
BOMBS: dict[str, Callable[[bytes], Any]] = {
    "gzip": lambda zeros: gzip.compress(zeros, 1),
    "zlib": lambda zeros: zlib.compress(zeros, 1),
    "zstd": numcodecs.Zstd().encode,
    "blosc": numcodecs.Blosc("lz4", clevel=1).encode,
    "bz2": lambda zeros: bz2.compress(zeros, 1),
    "lzma": lambda zeros: lzma.compress(zeros, preset=0),
    "lz4": numcodecs.LZ4().encode,
}


@pytest.mark.parametrize("filters", [None, [{"id": "delta", "dtype": "|u1"}]])
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_not_expanded(tmp_path: Path, kind: str, filters: Any) -> None:
    zarr.create_array(tmp_path / "a", shape=(64, 64), chunks=(64, 64), dtype="u1", zarr_format=2, compressors=None)
    change(tmp_path / "a", compressor={"id": kind}, filters=filters)
    (tmp_path / "a" / "0.0").write_bytes(bytes(BOMBS[kind](bytes(BOMB))))
    with open_image(tmp_path / "a") as image:
        tracemalloc.start()
        with pytest.raises(ImageError, match="cannot be decoded"):
            whole(image)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < BOMB / 20


@pytest.mark.parametrize("shuffle", [numcodecs.Blosc.NOSHUFFLE, numcodecs.Blosc.BITSHUFFLE])
def test_blosc_that_is_cut_off(tmp_path: Path, shuffle: int) -> None:
    """The library reads what lies behind its input; so lengths are checked before."""
    zarr.create_array(tmp_path / "a", shape=(64, 64), chunks=(64, 64), dtype="u1", zarr_format=2, compressors=None)
    change(tmp_path / "a", compressor={"id": "blosc"})
    good = numcodecs.Blosc("lz4", shuffle=shuffle).encode(noise(64, 64))
    for length in (0, 3, 15, 16, 100, len(good) - 1):
        (tmp_path / "a" / "0.0").write_bytes(good[:length])
        with open_image(tmp_path / "a") as image, pytest.raises(ImageError, match=f"cut off after {length} of"):
            whole(image)


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploited"),)


@pytest.mark.parametrize("place_of_it", ["compressor", "filters"])
def test_nothing_stored_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place_of_it: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    zarr.create_array(tmp_path / "a", shape=(4, 4), chunks=(4, 4), dtype="u1", zarr_format=2, compressors=None)
    (tmp_path / "a" / "0.0").write_bytes(pickle.dumps(Exploit()))
    change(tmp_path / "a", **{place_of_it: {"id": "pickle"} if place_of_it == "compressor" else [{"id": "pickle"}]})
    with pytest.raises(ImageError, match="pickled Python objects"):
        whole(open_image(tmp_path / "a"))
    assert not (tmp_path / "exploited").exists()


def test_disk_that_fails_is_told_from_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a")
    boxes = list(blocks(SIDE, SIDE, CHUNK))
    with open_image(tmp_path / "a") as image, WindowReader(image) as reader:

        def fail(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(image._source.arrays[0]._keys, "lend", fail)  # type: ignore[attr-defined]
        assert all(batch.failed.all() for batch in reader.batches(boxes, 4))
        assert "cannot be read (Input/output error); check the disk or the network" in reader.failures[0]
