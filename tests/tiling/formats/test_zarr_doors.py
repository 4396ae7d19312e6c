"""Zarrs that lead elsewhere, hold what is no file, or are larger than they say: refused in bounded time and memory."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr import codecs

from coarse2fine.tiling import limits
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.storage.byte_files import check_inside

SIDE, CHUNK = 64, 32
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")


def noise(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 255, shape, endpoint=True).astype(dtype)


def whole(image: Image) -> NDArray[np.uint8]:
    return image.read(Box(0, 0, image.height, image.width))


def write(folder: Path, form: Any = 3, **more: Any) -> NDArray[Any]:
    pixels = noise(SIDE, SIDE)
    array = zarr.create_array(
        folder, shape=pixels.shape, chunks=(CHUNK, CHUNK), dtype="u1", zarr_format=form, compressors=None, **more
    )
    array[...] = pixels
    return pixels


def change(folder: Path, **changes: Any) -> None:
    path = next(path for path in (folder / "zarr.json", folder / ".zarray") if path.exists())
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


@needs_pipes
@pytest.mark.parametrize("reader", [None, "tensorstore"])
@pytest.mark.parametrize("kind", ["pipe", "link to a device", "pipe as metadata"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str, reader: Any) -> None:
    if reader is not None:
        pytest.importorskip("tensorstore")
    write(tmp_path / "a")
    key = tmp_path / "a" / ("zarr.json" if kind == "pipe as metadata" else "c/1/1")
    key.unlink()
    if kind == "link to a device":
        key.symlink_to("/dev/zero")
    else:
        os.mkfifo(key)
    began = time.monotonic()
    with pytest.raises(ImageError, match="is a pipe"):
        whole(open_image(tmp_path / "a", reader=reader))
    assert time.monotonic() - began < 5
    if kind != "pipe as metadata":
        assert open_image(tmp_path / "a", reader=reader).read(Box(0, 0, CHUNK, CHUNK)).any()


@pytest.mark.parametrize("reader", [None, "tensorstore"])
@pytest.mark.parametrize("shards", [None, (SIDE, SIDE)])
def test_chunks_larger_than_promised_take_no_memory(tmp_path: Path, shards: Any, reader: Any) -> None:
    if reader is not None:
        pytest.importorskip("tensorstore")
    write(tmp_path / "a", shards=shards)
    key = tmp_path / "a" / ("c/0/0" if shards else "c/1/1")
    index = key.read_bytes()[-(16 * 4 + 4) :]
    sparse(key, 5 * 10**9)
    if shards:  # an index that is sound, of chunks that are where it says, one of them longer than any chunk may be
        places = np.frombuffer(index[:-4], "<u8").copy().reshape(4, 2)
        places[3] = 0, 4 * 10**9
        with key.open("r+b") as file:
            file.seek(-len(index), os.SEEK_END)
            file.write(bytes(numcodecs.checksum32.CRC32C().encode(places.tobytes())))
    with open_image(tmp_path / "a", reader=reader) as image:
        tracemalloc.start()
        with pytest.raises(ImageError, match=r"holds [45],000,000,\d\d\d bytes, expected at most"):
            image.read(Box(CHUNK, CHUNK, SIDE, SIDE))
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["zarr.json", ".zattrs", ".zarray"])
def test_metadata_are_not_read_without_end(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a", 3 if name == "zarr.json" else 2)
    sparse(tmp_path / "a" / name, 10**9)
    tracemalloc.start()
    with pytest.raises(ImageError, match="holds 1,000,000,000 bytes, expected at most") as caught:
        open_image(tmp_path / "a")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{tmp_path / 'a'}: ")


OUTSIDE = [
    "..",
    "../b",
    "x/../../b",
    "/etc",
    "%2e%2e/b",
    "x/%2E%2E/b",
    "..\\b",
    "\\\\host\\share",
    "C:\\b",
    "C:b",
    "c:/b",
    ".. /b",
    "..%2fb",
    "b?x=1",
    "b#x",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_lead_out(path: str) -> None:
    with pytest.raises(ValueError, match="leads out of the Zarr"):
        check_inside(path)


@pytest.mark.parametrize("path", ["", "0", "0/", "a..b/c", "...a", "s0", "scale 0/ü", "a%b"])
def test_paths_that_stay_inside(path: str) -> None:
    check_inside(path)


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("path", ["../b", "x/../../b", "..\\b"])
def test_levels_lie_inside_the_zarr(tmp_path: Path, path: str, form: Any) -> None:
    write(tmp_path / "b", form)
    group = zarr.open_group(tmp_path / "a", mode="w", zarr_format=form)
    multiscales = [{"axes": [{"name": "y"}, {"name": "x"}], "datasets": [{"path": path}]}]
    group.attrs.update({"multiscales": multiscales} if form == 2 else {"ome": {"multiscales": multiscales}})
    with pytest.raises(ImageError, match="leads out of the Zarr"):
        open_image(tmp_path / "a")
    layout: Any = {"bioformats2raw.layout": 3}
    group.attrs.put(layout if form == 2 else {"ome": layout})
    series = zarr.open_group(tmp_path / "a" / "OME", mode="w", zarr_format=form)
    series.attrs.update({"series": ["../b"]} if form == 2 else {"ome": {"series": ["../b"]}})
    with pytest.raises(ImageError, match="leads out of the Zarr"):
        open_image(tmp_path / "a")


@pytest.mark.parametrize("separator", ["/../../b/", "-", "", "\\", 3, None])
@pytest.mark.parametrize("form", [2, 3])
def test_separators_are_two(tmp_path: Path, separator: Any, form: Any) -> None:
    """Another led outside, or to keys that are not there: all black."""
    write(tmp_path / "a", form)
    if form == 2:
        change(tmp_path / "a", dimension_separator=separator)
    else:
        change(tmp_path / "a", chunk_key_encoding={"name": "default", "configuration": {"separator": separator}})
    with pytest.raises(ImageError, match=r"separated by '\.' or '/', got"):
        open_image(tmp_path / "a")


@pytest.mark.parametrize("order", ["A", "c", "", None, 1])
def test_orders_are_two(tmp_path: Path, order: Any) -> None:
    write(tmp_path / "a", 2)
    change(tmp_path / "a", order=order)
    with pytest.raises(ImageError, match="order C or F, got"):
        open_image(tmp_path / "a")


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("stored", [".", "/"])
def test_chunks_under_the_other_separator(tmp_path: Path, form: Any, stored: str) -> None:
    """Stores written with '/' whose metadata do not say so are common, and were read as all black."""
    encoding = {"name": "v2" if form == 2 else "default", "separator": stored}
    write(tmp_path / "a", form, chunk_key_encoding=encoding)
    if form == 2:
        change(tmp_path / "a", dimension_separator="./".replace(stored, ""))
    else:
        wrong = {"name": "default", "configuration": {"separator": "./".replace(stored, "")}}
        change(tmp_path / "a", chunk_key_encoding=wrong)
    with pytest.raises(ImageError, match=r"by its metadata chunks are stored under keys such as .*, but there is"):
        open_image(tmp_path / "a")


@pytest.mark.parametrize("form", [2, 3])
def test_missing_chunks_are_noted_if_all_are(tmp_path: Path, form: Any) -> None:
    array = zarr.create_array(
        tmp_path / "a", shape=(640, 640), chunks=(32, 32), dtype="u1", zarr_format=form, fill_value=7
    )
    (note,) = open_image(tmp_path / "a").notes
    assert note == "no chunk is stored: all pixels have the fill value 7"
    assert (whole(open_image(tmp_path / "a")) == 7).all()
    array[7 * 32, 13 * 32] = 1  # none of those that are asked for first
    assert open_image(tmp_path / "a").notes == ()


def test_one_budget_for_a_decoded_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes count, not pixels; so wide samples have smaller chunks, and what a decoder holds beside them counts."""
    monkeypatch.setattr(limits, "UNIT_BYTES", 2**20)
    sides = {"u1": 600, "f8": 200}
    for dtype, side in sides.items():
        zarr.create_array(tmp_path / dtype, shape=(side, side), chunks=(side, side), dtype=dtype, compressors=None)
        open_image(tmp_path / dtype).close()
    for name, dtype, shape, chunk in (
        ("a", "u1", (1100, 1100), (1100, 1100)),
        ("b", "f8", (300, 300), (300, 300)),
        ("c", "u1", (9, 9, 600, 600), (1, 3, 600, 600)),
    ):
        zarr.create_array(tmp_path / name, shape=shape, chunks=chunk, dtype=dtype)
        write_axes(tmp_path / name, len(shape))
        with pytest.raises(ImageError, match=r"one stored chunk of .* takes [\d,]+ bytes .* limit of 1,048,576; .*"):
            open_image(tmp_path / name)


def write_axes(folder: Path, count: int) -> None:
    change(folder, dimension_names=["t", "c", "y", "x"][-count:])


@pytest.mark.parametrize("axis", [0, 1])
def test_shards_of_absurdly_many_chunks(tmp_path: Path, axis: int) -> None:
    write(tmp_path / "a", shards=(SIDE, SIDE))
    shape = [SIDE, SIDE]
    shape[axis] = 2**40
    change(tmp_path / "a", chunk_grid={"name": "regular", "configuration": {"chunk_shape": shape}})
    with pytest.raises(ImageError, match="more chunks than an index may hold"):
        open_image(tmp_path / "a")


@pytest.mark.parametrize(
    "filters",
    [
        [{"id": "astype", "encode_dtype": "u1", "decode_dtype": "S100000000"}],
        [{"id": "delta", "dtype": "U1000000", "astype": "u1"}],
        [{"id": "json2"}],
        [{"id": "vlen-bytes"}],
        [{"id": "packbits"}] * 9,
        [{"id": "astype", "encode_dtype": "u1", "decode_dtype": "f8"}] * 4,
    ],
    ids=str,
)
def test_filters_cannot_blow_up_a_chunk(tmp_path: Path, filters: Any) -> None:
    write(tmp_path / "a", 2)
    (tmp_path / "a" / "0.0").write_bytes(bytes(CHUNK**2))
    change(tmp_path / "a", filters=filters)
    tracemalloc.start()
    with pytest.raises(ImageError):
        whole(open_image(tmp_path / "a"))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("kind", ["zstd", "gzip", "blosc"])
def test_bombs_that_zarr_python_would_set_off(tmp_path: Path, kind: str) -> None:
    """Compressed shards are read by zarr-python, with decoders that are ours."""
    compressor: Any = {"zstd": codecs.ZstdCodec(), "gzip": codecs.GzipCodec(), "blosc": codecs.BloscCodec()}[kind]
    folder = tmp_path / "a"
    pixels = noise(SIDE, SIDE)
    array = zarr.create_array(
        folder,
        shape=pixels.shape,
        chunks=pixels.shape,
        dtype="u1",
        serializer=codecs.ShardingCodec(chunk_shape=(CHUNK, CHUNK)),
        compressors=compressor,
    )
    array[...] = pixels
    np.testing.assert_array_equal(whole(open_image(folder))[..., 0], pixels)
    bomb = numcodecs.get_codec({"id": kind}).encode(bytes(2**27))
    (folder / "c" / "0" / "0").write_bytes(bytes(bomb))
    with open_image(folder) as image:
        tracemalloc.start()
        with pytest.raises(ImageError):
            whole(image)
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()
