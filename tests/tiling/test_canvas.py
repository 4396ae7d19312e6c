"""Blended tiles against a plain loop, on disk and in memory, and clean failures."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.canvas import Canvas
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import TileGrid

Piece = tuple[Box, NDArray[Any]]

quick = settings(max_examples=50, deadline=None, derandomize=True)
sides = st.integers(1, 40)


def noise(dtype: str, *shape: int, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, shape).astype(np.uint8) if dtype == "uint8" else rng.normal(size=shape).astype(dtype)


def crop(dense: NDArray[Any], box: Box) -> NDArray[Any]:
    """Pixels of a box that may reach outside, where they are nonsense."""
    rows, columns = np.arange(box.y0, box.y1), np.arange(box.x0, box.x1)
    height, width = dense.shape[:2]
    pixels: NDArray[Any] = dense[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    pixels[(rows < 0) | (rows >= height)] = 99
    pixels[:, (columns < 0) | (columns >= width)] = 99
    return pixels


def blend(shape: tuple[int, int, int], pieces: list[Piece], **options: Any) -> NDArray[Any]:
    with Canvas(*shape, **options) as canvas:
        for box, values in pieces:
            canvas.add(box, values)
        return np.asarray(canvas.result()[...])


def plain_weight(place: int, begin: int, end: int, length: int, overlap: int) -> int:
    """Weight of one pixel of the plane along one axis, of a tile from `begin` to `end`."""
    rises = [place - begin + 0.5] if begin > 0 else []
    falls = [end - place - 0.5] if end < length else []
    nearest = min([*rises, *falls, overlap])
    return 4096 if nearest == overlap else max(1, round(4096 * math.sin(nearest / overlap * math.pi / 2) ** 2))


def plain_blend(shape: tuple[int, int, int], pieces: list[Piece], overlap: int, fill: float) -> NDArray[np.float64]:
    out = np.full(shape, float(fill))
    for y, x in itertools.product(range(shape[0]), range(shape[1])):
        total, weights = np.zeros(shape[2]), 0
        for box, values in pieces:
            if box.y0 <= y < box.y1 and box.x0 <= x < box.x1:
                weight = plain_weight(y, box.y0, box.y1, shape[0], overlap)
                weight *= plain_weight(x, box.x0, box.x1, shape[1], overlap)
                total += weight * values[y - box.y0, x - box.x0].astype(np.float64)
                weights += weight
        if weights:
            out[y, x] = total / weights
    return out


@st.composite
def scattered(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float32", "uint8")) -> tuple[Any, list[Piece], int, int]:
    """A shape of a plane, tiles that disagree, an overlap and a chunk."""
    shape = draw(st.integers(1, 24)), draw(st.integers(1, 24)), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(dtypes))
    pieces = []
    for seed in range(draw(st.integers(0, 6))):
        height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
        y, x = draw(st.integers(1 - height, shape[0] - 1)), draw(st.integers(1 - width, shape[1] - 1))
        pieces.append((Box(y, x, y + height, x + width), noise(dtype, height, width, shape[2], seed=seed)))
    return shape, pieces, draw(st.integers(0, 12)), draw(st.integers(1, 30))


@quick
@given(scattered())
def test_equals_the_plain_weighted_mean(case: tuple[Any, list[Piece], int, int]) -> None:
    shape, pieces, overlap, chunk = case
    result = blend(shape, pieces, overlap=overlap, chunk=chunk, fill=-2)
    assert result.dtype == np.float32
    assert result.shape == shape
    np.testing.assert_allclose(result, plain_blend(shape, pieces, overlap, -2), rtol=1e-6, atol=1e-6)


@quick
@given(
    st.tuples(sides, sides, st.integers(1, 4)),
    st.tuples(sides, sides),
    st.integers(0, 9),
    st.integers(0, 20),
    st.integers(1, 50),
    st.sampled_from(["float32", "uint8", "float16"]),
)
def test_all_tiles_give_the_dense_array_back(
    shape: tuple[int, int, int], tile: tuple[int, int], halo: int, overlap: int, chunk: int, dtype: str
) -> None:
    dense = noise(dtype, *shape)
    grid = TileGrid(shape[0], shape[1], tile, halo)
    pieces = [(tile.padded, crop(dense, tile.padded)) for tile in grid]
    options = {"overlap": overlap, "chunk": chunk}
    np.testing.assert_array_equal(blend(shape, pieces, **options), dense.astype(np.float32))
    if dtype == "uint8":
        np.testing.assert_array_equal(blend(shape, pieces, dtype="uint8", **options), dense)


@quick
@given(scattered(), st.randoms(use_true_random=False))
def test_the_order_of_tiles_matters_to_float_rounding_at_most(
    case: tuple[Any, list[Piece], int, int], random: Any
) -> None:
    shape, pieces, overlap, chunk = case
    mixed = pieces.copy()
    random.shuffle(mixed)
    first, second = (blend(shape, some, overlap=overlap, chunk=chunk) for some in (pieces, mixed))
    if all(values.dtype == np.uint8 for _, values in pieces):
        np.testing.assert_array_equal(first, second)
    else:
        np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-9)


@settings(quick, max_examples=15)
@given(scattered(), st.sampled_from([0, 3000, 10**9]))
def test_neither_chunks_nor_disk_nor_memory_bound_change_a_bit(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Any, list[Piece], int, int], cache_bytes: int
) -> None:
    shape, pieces, overlap, chunk = case
    expected = blend(shape, pieces, overlap=overlap, chunk=100, fill=7)
    folder = tmp_path_factory.mktemp("canvas")
    on_disk = blend(
        shape, pieces, overlap=overlap, chunk=chunk, fill=7, path=folder / "heat.zarr", cache_bytes=cache_bytes
    )
    np.testing.assert_array_equal(on_disk, expected)
    assert [entry.name for entry in folder.iterdir()] == ["heat.zarr"]


def test_no_seam_between_tiles_that_disagree() -> None:
    """A step from 0 to 1 is spread over the overlap, everywhere as gently as a squared sine."""
    overlap = 32
    pieces = [(Box(0, 0, 40, 66), np.zeros((40, 66, 1))), (Box(0, 34, 40, 100), np.ones((40, 66, 1)))]
    result = blend((40, 100, 1), pieces, overlap=overlap)[..., 0]
    steps = np.diff(result, axis=1)
    assert (result == result[:1]).all()
    assert (result[:, :34] == 0).all()
    assert (result[:, 66:] == 1).all()
    assert steps.min() >= 0
    assert steps.max() <= math.pi / 2 / overlap + 1e-3
    assert steps[:, 33].max() <= 0.01
    assert steps[:, 65].max() <= 0.01


def test_a_ramp_shows_no_seam() -> None:
    ramp = np.add.outer(np.arange(90.0), np.arange(70.0) * 3)[..., None] / 7
    grid = TileGrid(90, 70, (32, 32), halo=8)
    tiles = [(tile.padded, crop(ramp, tile.padded)) for tile in grid]
    np.testing.assert_array_equal(blend((90, 70, 1), tiles, overlap=16, chunk=25), ramp.astype(np.float32))


def test_uint8_is_rounded_and_clipped() -> None:
    values = np.array([[[-3.0], [0.4], [0.6], [254.4], [254.6], [300.0]]])
    result = blend((1, 7, 1), [(Box(0, 0, 1, 6), values)], dtype=np.uint8, fill=9)
    assert result.dtype == np.uint8
    assert result.ravel().tolist() == [0, 0, 1, 254, 255, 255, 9]


def test_nan_stays_where_it_was_given() -> None:
    values = np.ones((4, 4, 1), dtype=np.float32)
    values[1, 2] = np.nan
    result = blend((6, 6, 1), [(Box(0, 0, 4, 4), values)], overlap=2, fill=math.inf)
    assert np.argwhere(np.isnan(result[..., 0])).tolist() == [[1, 2]]
    assert np.isposinf(result[4:]).all()


def test_only_touched_chunks_are_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "größe" / "heat.zarr"
    with Canvas(100, 130, 2, chunk=32, overlap=4, fill=0.5, path=path, cache_bytes=0) as canvas:
        canvas.add(Box(30, 60, 40, 70), np.ones((10, 10, 2)))
        canvas.add(Box(90, 120, 110, 140), np.full((20, 20, 2), 0.5))
        array = canvas.result()
    chunks = {f"c/{row}/{column}/0" for row, column in [(0, 1), (0, 2), (1, 1), (1, 2), (2, 3), (3, 3), (3, 4), (2, 4)]}
    found = {entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file()}
    assert found == {"zarr.json"} | chunks
    assert [entry.name for entry in path.parent.iterdir()] == ["heat.zarr"]
    expected = np.full((100, 130, 2), 0.5, dtype=np.float32)
    expected[30:40, 60:70] = 1
    assert isinstance(array, zarr.Array)
    assert array.metadata.zarr_format == 3
    assert array.metadata.dimension_names == ("y", "x", "c")
    assert array.read_only
    assert array.chunks == (32, 32, 2)
    np.testing.assert_array_equal(array[...], expected)


def test_another_reader_sees_the_same(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    pieces = [(Box(-5, 20, 35, 60), noise("uint8", 40, 40, 3))]
    result = blend((50, 70, 3), pieces, chunk=16, dtype="uint8", fill=200, path=tmp_path / "heat.zarr")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "heat.zarr")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), result)
    np.testing.assert_array_equal(result, blend((50, 70, 3), pieces, dtype="uint8", fill=200))


def test_an_empty_canvas(tmp_path: Path) -> None:
    assert (blend((5, 6, 1), [], fill=3) == 3).all()
    assert (blend((5, 6, 1), [], fill=3, path=tmp_path / "none.zarr") == 3).all()
    assert [entry.name for entry in (tmp_path / "none.zarr").iterdir()] == ["zarr.json"]


def peak_bytes(side: int, path: Path) -> int:
    chunk = 32
    tracemalloc.start()
    try:
        with Canvas(side, side, 1, chunk=chunk, overlap=8, path=path, cache_bytes=6 * chunk * chunk * 16) as canvas:
            for tile in TileGrid(side, side, (24, 24), halo=4):
                canvas.add(tile.padded, np.ones((tile.padded.height, tile.padded.width, 1), dtype=np.float32))
            canvas.result()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_plane(tmp_path: Path) -> None:
    peak_bytes(64, tmp_path / "warm-up.zarr")
    small, large = peak_bytes(128, tmp_path / "small.zarr"), peak_bytes(512, tmp_path / "large.zarr")
    dense = 512 * 512 * 16
    assert large - small < 0.05 * dense


class Interrupt(BaseException):
    """What Ctrl-C is: no Exception."""


@pytest.mark.parametrize("error", [ValueError, Interrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail_half_way() -> None:
        with Canvas(100, 100, 1, chunk=16, path=tmp_path / "heat.zarr", cache_bytes=0) as canvas:
            canvas.add(Box(0, 0, 50, 50), np.ones((50, 50, 1)))
            (scratch,) = tmp_path.iterdir()
            assert scratch.name.startswith(".heat.zarr.")
            assert len(list(scratch.iterdir())) == 15  # of 16 chunks, one is in memory
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_closes_the_canvas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    canvas = Canvas(100, 100, 1, chunk=16, path=tmp_path / "heat.zarr", cache_bytes=0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            canvas.add(Box(0, 0, 50, 50), np.ones((50, 50, 1)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="the canvas is closed"):
        canvas.add(Box(0, 0, 1, 1), np.ones((1, 1, 1)))


def test_a_target_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "heat.zarr"
    canvas = Canvas(9, 9, 1, path=path)
    canvas.add(Box(0, 0, 9, 9), np.ones((9, 9, 1)))
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"heat\.zarr: exists already"):
        canvas.result()
    with pytest.raises(FileExistsError, match=r"heat\.zarr: exists already"):
        Canvas(9, 9, 1, path=path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["heat.zarr"]
    assert path.read_text() == "mine"


def test_a_bad_tile_changes_nothing() -> None:
    values = np.full((4, 4, 1), 5, dtype=np.uint8)
    with Canvas(8, 8, 1, dtype=np.uint8) as canvas:
        canvas.add(Box(0, 0, 4, 4), values)
        with pytest.raises(ValueError, match=r"shape \(4, 5, 1\) .*got \(4, 4, 1\)"):
            canvas.add(Box(0, 0, 4, 5), values)
        with pytest.raises(ValueError, match=r"shape \(4, 4, 1\) .*got \(4, 4\)"):
            canvas.add(Box(0, 0, 4, 4), values[..., 0])
        for y, x in ((8, 0), (-4, 0), (0, 8), (0, -4)):
            with pytest.raises(ValueError, match="meets the plane of 8 x 8 pixels"):
                canvas.add(Box(y, x, y + 4, x + 4), values)
        with pytest.raises(TypeError, match="expected float or uint8 values, got int64"):
            canvas.add(Box(0, 0, 4, 4), values.astype(np.int64))
        with pytest.raises(ValueError, match="finite values for a canvas of uint8"):
            canvas.add(Box(0, 0, 4, 4), np.full((4, 4, 1), np.nan))
        result = np.asarray(canvas.result())
    assert (result[:4, :4] == 5).all()
    assert result.sum() == 5 * 16


def test_a_result_is_given_once() -> None:
    canvas = Canvas(4, 4, 1)
    canvas.result()
    with pytest.raises(RuntimeError, match="after result"):
        canvas.result()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "height, a width and channels of at least 1"),
        ({"channels": 0}, "height, a width and channels of at least 1"),
        ({"overlap": -1}, "overlap >= 0"),
        ({"chunk": 0}, "chunk >= 1"),
        ({"dtype": np.float64}, "float32 or uint8, got float64"),
        ({"dtype": np.uint8, "fill": 0.5}, "fill value of 0 to 255 for uint8, got 0.5"),
        ({"dtype": np.uint8, "fill": -1}, "fill value of 0 to 255 for uint8, got -1"),
    ],
)
def test_canvases_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Canvas(**({"height": 8, "width": 8, "channels": 1} | options))


def test_chunks_of_sums_too_large_to_put_aside(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="less than 2 GiB of sums"):
        Canvas(4096, 4096, 16, chunk=4096, path=tmp_path / "heat.zarr")
    assert not list(tmp_path.iterdir())
