"""Conversion: pixels against a plain pyramid, outside readers and validators, interruptions and damage."""

from __future__ import annotations

import errno
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.tiling.conversion import convert as converting
from coarse2fine.tiling.conversion import sharded_pyramid
from coarse2fine.tiling.conversion.convert import Conversion, convert
from coarse2fine.tiling.conversion.journal import Journal
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.writing import pyramid
from coarse2fine.tiling.writing.shard import ShardWriter

CHUNK, SHARD, COARSEST = 16, 64, 40

Pixels = NDArray[np.uint8]
MakeImage = Callable[..., Pixels]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_pyramid, "CHUNK", CHUNK)
    monkeypatch.setattr(sharded_pyramid, "SHARD", SHARD)
    monkeypatch.setattr(pyramid, "COARSEST_SIDE", COARSEST)


def write_tiff(path: Path, pixels: Pixels, tile: int = 32) -> Path:
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels, tile=(tile, tile), compression="zlib", photometric=photometric)
    return path


def plain_pyramid(pixels: Pixels) -> list[Pixels]:
    """All levels as (h, w, c), each in one go."""
    levels = [pixels.reshape(*pixels.shape[:2], -1)]
    while min(levels[-1].shape[:2]) >= COARSEST:
        height, width = levels[-1].shape[:2]
        even = np.pad(levels[-1], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(np.float64)
        quarters = [even[y::2, x::2] for y in (0, 1) for x in (0, 1)]
        levels.append(np.floor(sum(quarters) / 4 + 0.5).astype(np.uint8))
    return levels


def assert_holds(path: Path, pixels: Pixels) -> None:
    """Every level, as zarr-python reads it, equals the plain pyramid."""
    group = zarr.open_group(path, mode="r")
    expected = plain_pyramid(pixels)
    assert sorted(group.array_keys()) == [str(i) for i in range(len(expected))]
    for i, level in enumerate(expected):
        array: Any = group[str(i)]
        found = array[...] if level.shape[2] == 3 else array[...][None]
        np.testing.assert_array_equal(np.moveaxis(found, 0, -1), level)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def shards(path: Path) -> dict[str, int]:
    """Shards under a folder, and when each was written."""
    found = (file for file in path.rglob("*") if file.is_file() and "c" in file.relative_to(path).parts)
    return {str(file.relative_to(path)): file.stat().st_mtime_ns for file in found}


def stopping(after: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    return progress


def interrupt(source: Path | Pixels, target: Path, after: int = 3, **options: Any) -> Path:
    """Interrupt a conversion; the folder that is left."""
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, progress=stopping(after), **options)
    assert not target.exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("convert")]
    return target.with_name(f".{target.name}.partial")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 150), (150, 1), (16, 16), (17, 33), (64, 128), (65, 129), (200, 141)])
def test_every_level_equals_the_plain_pyramid(
    tmp_path: Path, make_image: MakeImage, size: tuple[int, int], channels: int
) -> None:
    pixels = make_image(*size, channels)
    target = tmp_path / "grün 图.zarr"
    calls: list[tuple[int, int]] = []
    made = convert(pixels, target, workers=3, progress=lambda *call: calls.append(call))
    assert_holds(target, pixels)
    assert (made.path, made.shape, made.failures, made.resumed) == (target, (*size, channels), (), 0)
    assert made.levels == len(plain_pyramid(pixels))
    assert made.shards == len(shards(target))
    assert calls[-1] == (made.shards, made.shards)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert [entry.name for entry in tmp_path.iterdir()] == [target.name]


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 260), st.integers(1, 260)),
    layout=st.tuples(st.sampled_from([8, 16, 32]), st.sampled_from([2, 4]), st.integers(1, 10)),
    channels=st.sampled_from([1, 3]),
    workers=st.integers(1, 3),
)
def test_any_layout_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    make_image: MakeImage,
    size: tuple[int, int],
    layout: tuple[int, int, int],
    channels: int,
    workers: int,
) -> None:
    chunk, per_shard, tile = layout
    folder = tmp_path_factory.mktemp("any")
    pixels = make_image(*size, channels)
    source = write_tiff(folder / "a.tif", pixels, 16 * tile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_pyramid, "CHUNK", chunk)
        patch.setattr(sharded_pyramid, "SHARD", chunk * per_shard)
        convert(source, folder / "a.zarr", workers=workers)
    assert_holds(folder / "a.zarr", pixels)


@pytest.mark.parametrize("name", ["a.tif", "A.TIFF", "a.b.png", "a.jpeg"])
def test_a_folder_is_not_named_as_a_picture(tmp_path: Path, make_image: MakeImage, name: str) -> None:
    with pytest.raises(ValueError, match=rf"would be a Zarr folder: expected a name such as .*{Path(name).stem}\.zarr"):
        convert(make_image(40, 40), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_layout_and_attributes(tmp_path: Path, make_image: MakeImage) -> None:
    pixels = make_image(150, 170, 1).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(32, 32))
    convert(tmp_path / "a.tif", tmp_path / "a.zarr", mpp=(0.5, 0.25))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    array: Any = group["0"]
    assert (array.chunks, array.shards, array.dtype) == ((CHUNK, CHUNK), (SHARD, SHARD), np.uint8)
    assert array.metadata.dimension_names == ("y", "x")
    with open_image(tmp_path / "a.tif") as image:
        assert group.attrs["coarse2fine"] == {
            "version": 1,
            "source": "a.tif",
            "value_range": [0.0, 65535.0],
            "rule": "depth",
            "samples": "uint16",
            "channels": [0],
            "notes": list(image.notes),
            "failures": [],
        }
    ome: Any = group.attrs["ome"]
    assert [channel["color"] for channel in ome["omero"]["channels"]] == ["FFFFFF"]
    with open_image(tmp_path / "a.zarr") as image:
        assert (image.mpp, image.shape, len(image.levels)) == ((0.5, 0.25), (150, 170, 1), 3)
        np.testing.assert_array_equal(image.read(Box(0, 0, 150, 170))[..., 0], pixels // 257)


def test_sizes_of_chunks_and_shards(tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pixels = make_image(700, 520)
    made = convert(pixels, tmp_path / "a.zarr")
    array: Any = zarr.open_group(tmp_path / "a.zarr", mode="r")["0"]
    assert (array.chunks, array.shards, made.levels) == ((3, 512, 512), (3, 4096, 4096), 1)
    np.testing.assert_array_equal(array[...], np.moveaxis(pixels, -1, 0))


def check_structure(path: Path) -> None:
    """What OME-Zarr 0.5 prescribes of a multiscale image."""
    metadata = json.loads((path / "zarr.json").read_text("utf-8"))
    assert (metadata["zarr_format"], metadata["node_type"]) == (3, "group")
    ome = metadata["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    axes = [(axis["name"], axis["type"]) for axis in image["axes"]]
    assert axes in ([("c", "channel"), ("y", "space"), ("x", "space")], [("y", "space"), ("x", "space")])
    last: tuple[int, ...] | None = None
    for dataset in image["datasets"]:
        steps = dataset["coordinateTransformations"]
        assert [step["type"] for step in steps] == ["scale", "translation"]
        assert all(len(step[step["type"]]) == len(axes) for step in steps)
        array = json.loads((path / dataset["path"] / "zarr.json").read_text("utf-8"))
        assert array["node_type"] == "array"
        assert array["dimension_names"] == [name for name, _ in axes]
        (codec,) = array["codecs"]
        assert codec["name"] == "sharding_indexed"
        settings_ = codec["configuration"]
        assert settings_["index_location"] == "end"
        assert [step["name"] for step in settings_["index_codecs"]] == ["bytes", "crc32c"]
        assert [step["name"] for step in settings_["codecs"]] == ["bytes", "zstd"]
        assert last is None or all(a <= b for a, b in zip(array["shape"], last, strict=True))
        last = tuple(array["shape"])
    for channel in ome["omero"]["channels"]:
        assert len(bytes.fromhex(channel["color"])) == 3
        assert set(channel["window"]) == {"min", "max", "start", "end"}


@pytest.mark.parametrize("channels", [1, 3])
def test_metadata_is_valid(tmp_path: Path, make_image: MakeImage, channels: int) -> None:
    convert(make_image(150, 170, channels), tmp_path / "a.zarr", mpp=0.5)
    check_structure(tmp_path / "a.zarr")


@pytest.mark.parametrize("channels", [1, 3])
def test_ome_zarr_models_finds_it_valid(tmp_path: Path, make_image: MakeImage, channels: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip("ome_zarr_models.v05")
        omero = pytest.importorskip("ome_zarr_models.common.omero")
        convert(make_image(150, 170, channels), tmp_path / "a.zarr", mpp=0.5)
        group = zarr.open_group(tmp_path / "a.zarr", mode="r")
        image = models.Image.from_zarr(group)
        ome: Any = group.attrs["ome"]
        assert len(omero.Omero.model_validate(ome["omero"]).channels) == channels
    assert len(image.ome_attributes.multiscales[0].datasets) == 3
    assert image.members["0"].shape == ((3, 150, 170) if channels == 3 else (150, 170))


@pytest.mark.parametrize("channels", [1, 3])
def test_ome_zarr_reads_it(tmp_path: Path, make_image: MakeImage, channels: int) -> None:
    pixels = make_image(150, 170, channels)
    convert(pixels, tmp_path / "a.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        io, reader = pytest.importorskip("ome_zarr.io"), pytest.importorskip("ome_zarr.reader")
        location = io.parse_url(tmp_path / "a.zarr", mode="r")
        (node,) = reader.Reader(location)()
    levels = [np.asarray(level) for level in node.data]
    expected = plain_pyramid(pixels)
    assert len(levels) == len(expected)
    for found, level in zip(levels, expected, strict=True):
        np.testing.assert_array_equal(found, np.moveaxis(level, -1, 0) if channels == 3 else level[..., 0])
    assert len(node.metadata["colormap"]) == channels
    assert list(node.metadata["contrast_limits"]) == [[0, 255]] * channels


@pytest.mark.parametrize("channels", [1, 3])
def test_tensorstore_reads_it(tmp_path: Path, make_image: MakeImage, channels: int) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    pixels = make_image(150, 170, channels)
    convert(pixels, tmp_path / "a.zarr")
    for i, level in enumerate(plain_pyramid(pixels)):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a.zarr" / str(i))}}
        found = tensorstore.open(spec, read=True).result().read().result()
        np.testing.assert_array_equal(found, np.moveaxis(level, -1, 0) if channels == 3 else level[..., 0])


def test_black_takes_no_room(tmp_path: Path) -> None:
    pixels = np.zeros((130, 130, 3), np.uint8)
    pixels[100:, 100:] = 200
    convert(pixels, tmp_path / "a.zarr")
    assert_holds(tmp_path / "a.zarr", pixels)
    first = tmp_path / "a.zarr" / "0" / "c" / "0"
    assert (first / "0" / "0").stat().st_size == 16 * (SHARD // CHUNK) ** 2 + 4
    assert (first / "1" / "1").stat().st_size > (first / "0" / "0").stat().st_size


def counted(image: Any, monkeypatch: pytest.MonkeyPatch) -> list[Box]:
    """Boxes that are decoded from now on."""
    decoded: list[Box] = []
    decode = image._decode

    def count(level: int, box: Box) -> Pixels:
        decoded.append(box)
        result: Pixels = decode(level, box)
        return result

    monkeypatch.setattr(image, "_decode", count)
    return decoded


@pytest.mark.parametrize("rows", [5, 16, 48])
def test_strips_are_decoded_once(
    tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    pixels = make_image(150, 230)
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=rows, compression="zlib", photometric="rgb")
    with open_image(tmp_path / "a.tif") as image:
        decoded = counted(image, monkeypatch)
        convert(image, tmp_path / "a.zarr", workers=2)
    assert_holds(tmp_path / "a.zarr", pixels)
    assert len(decoded) == len(set(decoded))


def test_wide_groups_are_bounded(tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_pyramid, "BAND_BYTES", 2 * SHARD * SHARD * 3)
    pixels = make_image(100, 400)
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=16, compression="zlib", photometric="rgb")
    with open_image(tmp_path / "a.tif") as image:
        widths: list[int] = []
        read = image.read

        def noted(box: Box) -> Pixels:
            widths.append(box.width)
            return read(box)

        monkeypatch.setattr(image, "read", noted)
        convert(image, tmp_path / "a.zarr")
    assert max(widths) == 2 * SHARD
    assert_holds(tmp_path / "a.zarr", pixels)


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("after", [1, 4, 11])
def test_an_interrupted_conversion_goes_on(tmp_path: Path, make_image: MakeImage, strips: bool, after: int) -> None:
    pixels = make_image(200, 170)
    source = tmp_path / "a.tif"
    if strips:
        tifffile.imwrite(source, pixels, rowsperstrip=32, compression="zlib", photometric="rgb")
    else:
        write_tiff(source, pixels)
    whole = convert(source, tmp_path / "whole.zarr")
    target = tmp_path / "a.zarr"
    partial = interrupt(source, target, after, workers=2)
    left = shards(partial)
    assert after <= len(left) < whole.shards
    assert not list(partial.rglob("*.tmp"))
    # What a killed process leaves: a shard half written, and a line half written.
    (partial / "0" / "c" / "0" / "0").mkdir(parents=True, exist_ok=True)
    (partial / "0" / "c" / "0" / "0" / ".0.dead.tmp").write_bytes(b"half")
    with (partial / "journal.jsonl").open("ab") as stream:
        stream.write(b'[3, "half')
    again = convert(source, target, workers=2)
    assert (again.resumed, again.shards) == (len(left), whole.shards)
    assert left.items() <= shards(target).items()
    assert not partial.exists()
    assert files(target) == files(tmp_path / "whole.zarr")


def test_a_shard_that_is_not_whole_is_written_again(tmp_path: Path, make_image: MakeImage) -> None:
    pixels = make_image(200, 170)
    source, target = write_tiff(tmp_path / "a.tif", pixels), tmp_path / "a.zarr"
    partial = interrupt(source, target, workers=1)
    left = sorted(shards(partial))
    os.truncate(partial / left[0], 50)
    assert convert(source, target).resumed == len(left) - 1
    assert_holds(target, pixels)


def changed_source(source: Path) -> dict[str, Any]:
    os.utime(source, ns=(1, 1))
    return {}


def changed_parameter(_: Path) -> dict[str, Any]:
    return {"mpp": 2.0}


@pytest.mark.parametrize("change", [changed_source, changed_parameter])
def test_a_change_begins_afresh(
    tmp_path: Path, make_image: MakeImage, change: Callable[[Path], dict[str, Any]]
) -> None:
    pixels = make_image(200, 170)
    source, target = write_tiff(tmp_path / "a.tif", pixels), tmp_path / "a.zarr"
    partial = interrupt(source, target)
    (partial / "stray").write_text("of an older version", encoding="utf-8")
    assert convert(source, target, **change(source)).resumed == 0
    assert_holds(target, pixels)
    assert not (target / "stray").exists()


def test_a_changed_folder_begins_afresh(tmp_path: Path, make_image: MakeImage) -> None:
    pixels = make_image(200, 170, 1)
    array = zarr.create_array(tmp_path / "a", shape=pixels.shape, chunks=(32, 32), dtype="uint8")
    array[...] = pixels
    interrupt(tmp_path / "a", tmp_path / "a.zarr")
    array[:32, :32] = pixels[:32, :32] = 9
    assert convert(tmp_path / "a", tmp_path / "a.zarr").resumed == 0
    assert_holds(tmp_path / "a.zarr", pixels)


def test_pixels_in_memory_leave_nothing(tmp_path: Path, make_image: MakeImage) -> None:
    interrupt(make_image(200, 170), tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def damage(source: Path, *tiles: int) -> None:
    with tifffile.TiffFile(source) as file:
        offsets = [file.pages[0].dataoffsets[tile] for tile in tiles]
    with source.open("r+b") as stream:
        for offset in offsets:
            stream.seek(offset)
            stream.write(b"\xff" * 64)


@pytest.mark.parametrize("after", [None, 1, 6])
def test_damaged_chunks_are_black_and_listed(tmp_path: Path, make_image: MakeImage, after: int | None) -> None:
    pixels = np.maximum(make_image(400, 400), 1)
    source, target = write_tiff(tmp_path / "a.tif", pixels, 144), tmp_path / "a.zarr"
    damage(source, 1, 4, 8)  # of 3 x 3
    for y, x in ((0, 144), (144, 144), (288, 288)):
        pixels[y : y + 144, x : x + 144] = 0
    if after is not None:
        interrupt(source, target, after, workers=1)
    made = convert(source, target, workers=2)
    assert_holds(target, pixels)
    assert len(made.failures) == 3
    for failure, (y, x) in zip(made.failures, ((0, 144), (144, 144), (288, 288)), strict=True):
        assert "a.tif" in failure
        assert f"y={y}, x={x}" in failure
    attributes: Any = zarr.open_group(target, mode="r").attrs["coarse2fine"]
    assert tuple(attributes["failures"]) == made.failures


def test_a_failing_disk_is_no_damage(tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = write_tiff(tmp_path / "a.tif", make_image(200, 170)), tmp_path / "a.zarr"
    with open_image(source) as image:

        def fail(box: Box) -> Pixels:
            raise ImageError("a.tif: cannot be read") from TimeoutError("the server is gone")

        with monkeypatch.context() as patch:
            patch.setattr(image, "read", fail)
            with pytest.raises(ImageError, match="cannot be read"):
                convert(image, target)
    with pytest.raises(ImageError, match="closed"):
        convert(image, target)
    assert not target.exists()
    assert convert(source, target).failures == ()


def test_no_space_left_is_an_error_that_can_be_mended(
    tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = make_image(200, 170)
    source, target = write_tiff(tmp_path / "a.tif", pixels), tmp_path / "a.zarr"
    room = 20
    put = ShardWriter.put

    def full(self: ShardWriter, position: tuple[int, ...], data: bytes) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, position, data)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "put", full)
        with pytest.raises(OSError, match=r"a\.zarr: cannot be written .*what is done is kept"):
            convert(source, target, workers=1)
    assert not list(tmp_path.rglob("*.tmp"))
    assert convert(source, target).resumed > 0
    assert_holds(target, pixels)


def test_what_cannot_be_done_is_refused(tmp_path: Path, make_image: MakeImage) -> None:
    pixels, target = make_image(30, 30), tmp_path / "a.zarr"
    with pytest.raises(ValueError, match="at least 1 worker"):
        convert(pixels, target, workers=0)
    with pytest.raises(ImageError, match="no such file"):
        convert(tmp_path / "none.tif", target)
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    with pytest.raises(FileExistsError, match=r"a\.zarr: exists already"):
        convert(pixels, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("torn", [b'[3, "half', b"[3]", b"\xff\xfe\n[9]\n"])
def test_a_journal_survives_a_torn_line(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "partial" / "journal.jsonl"
    path.parent.mkdir()
    journal = Journal(path)
    journal.begin({"of": "ä"})
    journal.add([1, "a"])
    journal.add([1, "a"])
    journal.close()
    with path.open("ab") as stream:
        stream.write(torn)
    journal = Journal(path)
    assert (journal.fingerprint, journal.records) == ({"of": "ä"}, [[1, "a"]])
    journal.add([2, "b"])
    journal.close()
    journal = Journal(path)
    assert (journal.fingerprint, journal.records) == ({"of": "ä"}, [[1, "a"], [2, "b"]])
    journal.publish(tmp_path / "done")
    assert not path.parent.exists()
    assert [*(tmp_path / "done").iterdir()] == []


def test_two_at_once_are_refused(tmp_path: Path, make_image: MakeImage) -> None:
    source, target = write_tiff(tmp_path / "a.tif", make_image(200, 170)), tmp_path / "a.zarr"
    refused: list[BaseException] = []

    def progress(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(BlockingIOError, match="another process") as caught:
                convert(source, target)
            refused.append(caught.value)

    convert(source, target, progress=progress)
    assert len(refused) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.tif", "a.zarr"]


def test_what_another_process_just_finished_is_kept(
    tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.zarr"

    @contextmanager
    def late(*_: object) -> Iterator[None]:
        target.mkdir()
        yield

    monkeypatch.setattr(converting, "locked", late)
    with pytest.raises(FileExistsError, match="exists already"):
        convert(make_image(30, 30), target)
    assert [*tmp_path.iterdir()] == [target]


def test_a_target_that_comes_meanwhile_is_kept(tmp_path: Path, make_image: MakeImage) -> None:
    target = tmp_path / "a.zarr"

    def progress(done: int, total: int) -> None:
        target.mkdir(exist_ok=True)

    with pytest.raises(FileExistsError, match="exists already"):
        convert(make_image(100, 100), target, progress=progress)
    assert list(target.iterdir()) == []


def test_the_result_is_a_value(tmp_path: Path, make_image: MakeImage) -> None:
    made = convert(make_image(30, 30), tmp_path / "a.zarr")
    assert isinstance(made, Conversion)
    assert made.seconds > 0
    with pytest.raises(AttributeError):
        made.levels = 2  # type: ignore[misc]
