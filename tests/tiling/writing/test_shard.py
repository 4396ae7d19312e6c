"""Shards: what is written is what zarr-python reads, and a damaged index is never believed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

from coarse2fine.tiling.writing.shard import MISSING, ShardWriter, index_bytes, is_whole, read_index

SETTINGS = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def create(path: Path, grid: tuple[int, ...], chunk: int = 4) -> Any:
    """An empty array of one shard."""
    shape = tuple(n * chunk for n in grid)
    return zarr.create_array(
        path,
        shape=shape,
        chunks=(chunk,) * len(grid),
        shards=shape,
        dtype="uint8",
        compressors=ZstdCodec(level=1),
        overwrite=True,
    )


def shard_of(path: Path, grid: tuple[int, ...]) -> Path:
    return path.joinpath("c", *("0" for _ in grid))


grids = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@SETTINGS
@given(grid=grids, seed=st.integers(0, 99))
def test_zarr_reads_what_is_written(tmp_path: Path, grid: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = create(tmp_path / "a", grid)
    expected = np.zeros(array.shape, np.uint8)
    positions = list(itertools.product(*map(range, grid)))
    rng.shuffle(positions)
    kept = positions[: rng.integers(0, len(positions) + 1)]
    path = shard_of(tmp_path / "a", grid)
    with ShardWriter(path, grid) as writer:
        for position in map(tuple, kept):
            chunk = rng.integers(0, 256, (4,) * len(grid), dtype=np.uint8)
            expected[tuple(slice(4 * p, 4 * p + 4) for p in position)] = chunk
            writer.put(position, imagecodecs.zstd_encode(chunk.tobytes(), level=1))
    np.testing.assert_array_equal(array[...], expected)
    assert is_whole(path, grid)
    index = read_index(path.read_bytes()[-index_bytes(grid) :], grid)
    assert index.shape == (*grid, 2)
    assert index.dtype == np.uint64
    assert int((index[..., 0] != MISSING).sum()) == len(kept)
    assert ((index[..., 0] == MISSING) == (index[..., 1] == MISSING)).all()


@SETTINGS
@given(grid=grids, seed=st.integers(0, 99))
def test_the_index_of_zarr_is_read(tmp_path: Path, grid: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = create(tmp_path / "a", grid)
    pixels = rng.integers(1, 256, array.shape, dtype=np.uint8)
    empty = tuple(rng.integers(0, grid))
    pixels[tuple(slice(4 * p, 4 * p + 4) for p in empty)] = 0
    pixels[(0,) * len(grid)] = 7
    array[...] = pixels
    data = shard_of(tmp_path / "a", grid).read_bytes()
    index = read_index(data[-index_bytes(grid) :], grid)
    for position in itertools.product(*map(range, grid)):
        offset, length = map(int, index[position])
        part = pixels[tuple(slice(4 * p, 4 * p + 4) for p in position)]
        if not part.any():
            assert offset == length == MISSING
        else:
            assert imagecodecs.zstd_decode(data[offset : offset + length]) == part.tobytes()


def write(path: Path, grid: tuple[int, ...]) -> bytes:
    with ShardWriter(path, grid) as writer:
        writer.put((0, 1), b"first")
        writer.put((1, 1), b"")
        writer.put((1, 0), b"second")
    return path.read_bytes()


def test_damage_is_noticed(tmp_path: Path) -> None:
    grid, path = (2, 2), tmp_path / "0"
    data = write(path, grid)
    size = index_bytes(grid)
    assert len(data) == size + 11
    for wrong in (data[-size + 1 :], data[-size - 1 :], b""):
        with pytest.raises(ValueError, match=f"expected a shard index of {size} bytes"):
            read_index(wrong, grid)
    for place in range(size):
        damaged = bytearray(data[-size:])
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="checksum"):
            read_index(bytes(damaged), grid)
    for end in range(len(data)):
        path.write_bytes(data[:end])
        assert not is_whole(path, grid)
    path.write_bytes(data[1:])
    assert not is_whole(path, grid)
    path.write_bytes(data)
    assert is_whole(path, grid)
    assert not is_whole(path, (4, 2))
    assert not is_whole(tmp_path / "none", grid)


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_shard_is_whole_or_absent(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path / "a" / "0", (1, 1)) as writer:
            writer.put((0, 0), b"part")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list((tmp_path / "a").iterdir()) == []
    data = write(tmp_path / "a" / "0", (2, 2))
    with pytest.raises(type(error)):
        fail()
    assert [(entry.name, entry.read_bytes()) for entry in (tmp_path / "a").iterdir()] == [("0", data)]
    write(tmp_path / "a" / "0", (2, 2))
