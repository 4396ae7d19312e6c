"""Zarr arrays read chunk by chunk, and OME-Zarr images, against zarr-python and tensorstore."""

from __future__ import annotations

import builtins
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import dask.array
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr import codecs

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.formats.zarr_array import ChunkedArray, plan_of
from coarse2fine.tiling.formats.zarr_codecs import UnsupportedError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.stats import ReadStats
from coarse2fine.tiling.storage.byte_files import LocalKeys

DTYPES = ("?", "u1", "<u2", ">u2", "<i2", ">i2", "<u4", ">u4", "<f4", ">f4", "<f8", ">f8")
V2_COMPRESSORS: tuple[Any, ...] = (
    None,
    numcodecs.Zlib(),
    numcodecs.GZip(),
    numcodecs.BZ2(),
    numcodecs.LZMA(),
    numcodecs.LZ4(),
    numcodecs.Zstd(),
    numcodecs.Blosc("lz4", shuffle=numcodecs.Blosc.NOSHUFFLE),
    numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.SHUFFLE),
    numcodecs.Blosc("zlib", shuffle=numcodecs.Blosc.BITSHUFFLE),
)
V3_COMPRESSORS: tuple[tuple[Any, ...], ...] = (
    (),
    (codecs.GzipCodec(),),
    (codecs.ZstdCodec(checksum=True),),
    (codecs.BloscCodec(cname="lz4", shuffle="shuffle"),),
    (codecs.BloscCodec(cname="blosclz", shuffle="bitshuffle"),),
    (codecs.Crc32cCodec(),),
    (codecs.ZstdCodec(), codecs.Crc32cCodec()),
    (codecs.Crc32cCodec(), codecs.GzipCodec()),
)

Key = tuple[slice | int, ...]


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 255, shape, endpoint=True).astype(dtype)


def whole(image: Image, level: int = 0) -> NDArray[np.uint8]:
    this = image.levels[level]
    return image.read(Box(0, 0, this.height, this.width), level)


def metadata_of(folder: Path) -> dict[str, Any]:
    path = folder / "zarr.json"
    metadata: dict[str, Any] = json.loads((path if path.exists() else folder / ".zarray").read_text())
    return metadata


def drop_chunks(folder: Path, chance: float, seed: int) -> None:
    """Remove some of the stored chunks or shards."""
    rng = np.random.default_rng(seed)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("zarr.json", ".zarray", ".zattrs") and rng.random() < chance:
            path.unlink()


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and chunk of an array of one to four axes."""
    shape = tuple(draw(st.lists(st.integers(1, 13), min_size=1, max_size=4)))
    return shape, tuple(draw(st.integers(1, size + 2)) for size in shape)


@st.composite
def keys_of(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Key]:
    """Boxes and indices, the whole array first."""

    def part(size: int) -> slice | int:
        start = draw(st.integers(0, size - 1))
        return start if draw(st.booleans()) else slice(start, draw(st.integers(start, size + 3)))

    return [tuple(slice(0, size) for size in shape)] + [tuple(part(size) for size in shape) for _ in range(4)]


@st.composite
def fills(draw: st.DrawFn, dtype: np.dtype[Any]) -> Any:
    values: dict[str, list[Any]] = {"b": [False, True], "u": [0, 7], "i": [0, -3], "f": [0.0, 0.5, np.nan, -np.inf]}
    return dtype.type(draw(st.sampled_from(values[dtype.kind])))


def samples(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def assert_equal(folder: Path, prefix: str, array: zarr.Array[Any], keys: list[Key]) -> None:
    """Our array reads as zarr-python does; parts that were read earlier do not change."""
    ours = ChunkedArray(LocalKeys(folder, ReadStats()), prefix, plan_of(metadata_of(folder / prefix)))
    assert ours.shape == array.shape
    assert ours.chunks == array.chunks
    assert ours.dtype == array.dtype.newbyteorder("=")
    for key, part in [(key, ours[key]) for key in keys]:
        np.testing.assert_array_equal(part, array[key])
        assert part.dtype == ours.dtype


quickly = settings(
    max_examples=70, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quickly
@given(st.data())
def test_zarr_2_equals_zarr_python(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
    shape, chunks = data.draw(grids())
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    delta: list[Any] = [numcodecs.Delta(dtype.str)] if dtype.kind in "ui" and data.draw(st.booleans()) else []
    byte_filters: list[Any] = data.draw(st.sampled_from([[], [numcodecs.Shuffle(dtype.itemsize)], [numcodecs.CRC32()]]))
    array = zarr.create_array(
        tmp_path / "a.zarr",
        name="b/c",
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        zarr_format=2,
        compressors=data.draw(st.sampled_from(V2_COMPRESSORS)),
        filters=delta + byte_filters or None,
        order=data.draw(st.sampled_from("CF")),
        chunk_key_encoding={"name": "v2", "separator": data.draw(st.sampled_from("./"))},
        fill_value=data.draw(fills(dtype)),
    )
    array[...] = samples(shape, dtype, data.draw(st.integers(0, 9)))
    drop_chunks(tmp_path / "a.zarr", data.draw(st.sampled_from([0.0, 0.5])), 1)
    assert_equal(tmp_path / "a.zarr", "b/c/", array, data.draw(keys_of(shape)))


@quickly
@given(st.data())
def test_zarr_3_equals_zarr_python(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
    shape, chunks = data.draw(grids())
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    shards: Any = None
    if data.draw(st.booleans()):
        where = data.draw(st.sampled_from(["start", "end"]))
        shards = {"shape": tuple(c * data.draw(st.integers(1, 3)) for c in chunks), "index_location": where}
    keys: Any = data.draw(st.sampled_from([{"name": "default", "separator": "."}, {"name": "v2"}, None]))
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=dtype.newbyteorder("="),
        filters=[codecs.TransposeCodec(order=order)] if data.draw(st.booleans()) else None,
        serializer=codecs.BytesCodec(endian="big" if dtype.byteorder == ">" else "little"),
        compressors=data.draw(st.sampled_from(V3_COMPRESSORS)),
        chunk_key_encoding=keys,
        fill_value=data.draw(fills(dtype)),
    )
    # Some chunks of a shard hold the fill value alone and are not stored.
    sparse = samples(shape, dtype.newbyteorder("="), data.draw(st.integers(0, 9)))
    sparse[: shape[0] // 2] = array.fill_value
    array[...] = sparse
    drop_chunks(tmp_path / "a.zarr", data.draw(st.sampled_from([0.0, 0.5])), 1)
    assert_equal(tmp_path / "a.zarr", "", array, data.draw(keys_of(shape)))


def test_numcodecs_under_zarr_3_are_read(tmp_path: Path) -> None:
    pixels = noise(20, 30)
    for name in ("lz4", "lzma", "bz2", "zlib"):
        codec = {"name": f"numcodecs.{name}", "configuration": {}}
        folder = tmp_path / name
        zarr.create_array(folder, shape=(20, 30), chunks=(20, 30), dtype="u1", compressors=None)
        write_metadata(folder, codecs=[{"name": "bytes"}, codec])
        (folder / "c" / "0").mkdir(parents=True)
        encoded = numcodecs.get_codec({"id": name}).encode(pixels)
        (folder / "c" / "0" / "0").write_bytes(bytes(encoded))
        image = open_image(folder)
        assert isinstance(image._source.arrays[0], ChunkedArray)
        np.testing.assert_array_equal(whole(image)[..., 0], pixels)


def test_no_fill_value_reads_as_zero(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(9, 9), chunks=(4, 4), dtype="u1", zarr_format=2, fill_value=3)
    write_metadata(tmp_path / "a", fill_value=None)
    assert not whole(open_image(tmp_path / "a")).any()


def write_metadata(folder: Path, **changes: Any) -> None:
    """Change the metadata of an array."""
    path = next(path for path in (folder / "zarr.json", folder / ".zarray") if path.exists())
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def unusual(kind: str) -> dict[str, Any]:
    """Arguments of arrays that are left to zarr-python."""
    zstd = codecs.ZstdCodec()
    inner = codecs.ShardingCodec(chunk_shape=(16, 16))
    plain, big = codecs.BytesCodec(), codecs.BytesCodec(endian="big")
    crc = codecs.Crc32cCodec()
    turn = codecs.TransposeCodec(order=(1, 0))
    shardings: dict[str, codecs.ShardingCodec] = {
        "shards in shards": codecs.ShardingCodec(chunk_shape=(32, 32), codecs=[inner]),
        "compressed shards": inner,
        "turned shards": inner,
        "index without checksum": codecs.ShardingCodec(chunk_shape=(16, 16), index_codecs=[plain]),
        "big-endian index": codecs.ShardingCodec(chunk_shape=(16, 16), index_codecs=[big, crc]),
    }
    if kind in shardings:
        extra: dict[str, Any] = {"compressors": [zstd]} if kind == "compressed shards" else {"compressors": None}
        return {"serializer": shardings[kind], "filters": [turn] if kind == "turned shards" else None, **extra}
    return {"filters": [turn, turn]}


KINDS = (
    "shards in shards",
    "compressed shards",
    "turned shards",
    "index without checksum",
    "big-endian index",
    "turned twice",
)


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unusual_is_left_to_zarr_python(tmp_path: Path, kind: str) -> None:
    pixels = noise(100, 90)
    array = zarr.create_array(tmp_path / "a", shape=(100, 90), chunks=(64, 64), dtype="u1", **unusual(kind))
    array[...] = pixels
    with pytest.raises(UnsupportedError):
        plan_of(metadata_of(tmp_path / "a"))
    with open_image(tmp_path / "a") as image:
        assert isinstance(image._source.arrays[0], zarr.Array)
        assert image.levels[0].chunk == ((32, 32) if kind == "shards in shards" else array.chunks)
        # zarr-python within zarr-python, for more chunks than it has threads.
        np.testing.assert_array_equal(np.asarray(image.array()[...])[..., 0], pixels)
        np.testing.assert_array_equal(whole(image)[..., 0], pixels)


def test_shards_cost_their_chunks_and_one_index(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a", shape=(512, 512), chunks=(64, 64), shards=(256, 256), dtype="u1", compressors=None
    )
    array[...] = noise(512, 512)
    with open_image(tmp_path / "a") as image:
        before = image.stats.snapshot()
        for y, x in itertools.product(range(0, 256, 64), repeat=2):
            image.read(Box(y, x, y + 64, x + 64))
        index = 16 * 16 + 4
        assert image.stats.fetched - before.fetched == 256 * 256 + index
        assert image.stats.requests - before.requests == 16 + 1


AXES = {
    "yx": (90, 70),
    "cyx": (3, 90, 70),
    "tczyx": (1, 3, 1, 90, 70),
    "yxc": (90, 70, 3),
    "channel a chunk": (3, 90, 70),
}


def write_ome(folder: Path, version: str, axes: str, levels: list[NDArray[Any]], chunk: tuple[int, ...]) -> None:
    """An OME-Zarr image whose level `i` is stored under the name ``si``, twice as coarse as that before it."""
    group = zarr.open_group(folder, mode="w", zarr_format=2 if version == "0.4" else 3)
    slash: dict[str, Any] = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version == "0.4" else {}
    for i, pixels in enumerate(levels):
        array = group.create_array(f"s{i}", shape=pixels.shape, chunks=chunk, dtype=pixels.dtype, **slash)
        array[...] = pixels
    named = [{"name": axis, "type": "space", **({"unit": "micrometer"} if axis in "yx" else {})} for axis in axes]
    datasets = [
        {
            "path": f"s{i}",
            "coordinateTransformations": [{"type": "scale", "scale": [0.5 * 2**i if a in "yx" else 1 for a in axes]}],
        }
        for i in range(len(levels))
    ]
    attributes: dict[str, Any] = {"multiscales": [{"version": version, "axes": named, "datasets": datasets}]}
    group.attrs.update(attributes if version == "0.4" else {"ome": {"version": version, **attributes}})


def as_pixels(stored: NDArray[Any], axes: str) -> NDArray[Any]:
    """(h, w, c) of what is stored, of which other axes have one index."""
    kept = stored.reshape([size for axis, size in zip(axes, stored.shape, strict=True) if axis in "yxc"])
    return kept[..., None] if axes == "yx" else kept if axes == "yxc" else np.moveaxis(kept, 0, -1)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", AXES)
def test_ome_zarr_of_all_axes(tmp_path: Path, version: str, kind: str) -> None:
    axes = "cyx" if kind == "channel a chunk" else kind
    full = noise(*AXES[kind])
    half = full[tuple(slice(None, None, 2) if axis in "yx" else slice(None) for axis in axes)]
    sizes = {"y": 32, "x": 32, "c": 1 if kind == "channel a chunk" else 3}
    write_ome(tmp_path / "a.zarr", version, axes, [full, half], tuple(sizes.get(axis, 1) for axis in axes))
    with open_image(tmp_path / "a.zarr") as image:
        assert all(isinstance(array, ChunkedArray) for array in image._source.arrays)
        assert (image.format, image.mpp, [level.downsample_y for level in image.levels]) == (
            "ome-zarr",
            (0.5, 0.5),
            [1.0, 2.0],
        )
        for level, stored in enumerate((full, half)):
            expected = as_pixels(stored, axes)
            np.testing.assert_array_equal(whole(image, level), expected)
            array = image.array(level)
            assert array.chunks == (*image.levels[level].chunk, image.channels)
            np.testing.assert_array_equal(array[...], expected)
            np.testing.assert_array_equal(dask.array.from_zarr(array).compute(), expected)
            np.testing.assert_array_equal(array[31:33, 60:, :1], expected[31:33, 60:, :1])
    pytest.importorskip("tensorstore")
    box = Box(20, -5, 95, 60)
    with open_image(tmp_path / "a.zarr", reader="tensorstore") as image:
        np.testing.assert_array_equal(whole(image, 1), as_pixels(half, axes))
        np.testing.assert_array_equal(image.read(box), open_image(tmp_path / "a.zarr").read(box))


def test_levels_out_of_order(tmp_path: Path) -> None:
    levels = [noise(80, 60), noise(40, 30), noise(20, 15)]
    write_ome(tmp_path / "a.zarr", "0.5", "yx", levels, (16, 16))
    marker = tmp_path / "a.zarr" / "zarr.json"
    metadata = json.loads(marker.read_text())
    metadata["attributes"]["ome"]["multiscales"][0]["datasets"].reverse()
    marker.write_text(json.dumps(metadata))
    image = open_image(tmp_path / "a.zarr")
    assert [level.height for level in image.levels] == [80, 40, 20]
    assert image.mpp == (0.5, 0.5)
    np.testing.assert_array_equal(whole(image, 2)[..., 0], levels[2])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_container_of_bioformats2raw(tmp_path: Path, version: str) -> None:
    pixels = noise(1, 3, 1, 40, 40)
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    layout: dict[str, Any] = {"bioformats2raw.layout": 3}
    root.attrs.update(layout if version == "0.4" else {"ome": {"version": "0.5", **layout}})
    write_ome(tmp_path / "a.zarr" / "0", version, "tczyx", [pixels], (1, 1, 1, 32, 32))
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.zarr")), as_pixels(pixels, "tczyx"))


def test_only_the_wanted_planes_are_kept(tmp_path: Path) -> None:
    """A chunk of many planes is decoded whole, but memory holds the planes that are used."""
    array = zarr.create_array(tmp_path / "a", shape=(4, 64, 64), chunks=(4, 64, 64), dtype="u1")
    array[...] = noise(4, 64, 64)
    with open_image(tmp_path / "a", channels=(1,)) as image:
        image.read(Box(0, 0, 9, 9))
        kept = image._cache.peek((image._owner, 0, 0, 0))
        assert kept is not None
        assert kept.base is None or kept.base.nbytes == kept.nbytes == 64 * 64


def test_tensorstore_reads_reals_and_refuses_what_is_no_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorstore")
    values = np.random.default_rng(0).normal(0, 50, (2050, 2060)).astype("f4")
    array = zarr.create_array(tmp_path / "a", shape=values.shape, chunks=(500, 600), dtype="f4")
    array[...] = values
    plain, other = open_image(tmp_path / "a"), open_image(tmp_path / "a", reader="tensorstore")
    assert plain.value_range == other.value_range
    np.testing.assert_array_equal(whole(plain), whole(other))
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    for source in (noise(8, 8), "https://localhost/a.zarr", tmp_path / "a.tif"):
        with pytest.raises(ImageError, match="tensorstore reads Zarr directories of this machine"):
            open_image(source, reader="tensorstore")
    with pytest.raises(ValueError, match="expected the reader 'tensorstore'"):
        open_image(tmp_path / "a", reader="zarrs")  # type: ignore[arg-type]
    real = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name == "tensorstore":
            raise ImportError("No module named 'tensorstore'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImageError, match=r'pip install "coarse2fine\[tensorstore\]"') as caught:
        open_image(tmp_path / "a", reader="tensorstore")
    assert str(tmp_path / "a") in str(caught.value)
