"""Batches of windows: order, failures, and clean ends."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.storage.chunk_cache import ChunkCache
from coarse2fine.tiling.window_reader import WindowBatch, WindowReader, salvage


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.uint8]]:
    path = tmp_path_factory.mktemp("reader") / "scene.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (512, 640, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib", photometric="rgb")
    return path, pixels


def reader_threads() -> int:
    return sum(thread.name.startswith("window-reader") for thread in threading.enumerate())


def random_boxes(count: int, side: int) -> list[Box]:
    corners = np.random.default_rng(1).integers(-20, 600, (count, 2)).tolist()
    return [Box(y, x, y + side, x + side) for y, x in corners]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("downsample", [1, 3])
def test_batches_hold_every_window_once(scene: tuple[Path, NDArray[np.uint8]], workers: int, downsample: int) -> None:
    boxes = random_boxes(50, 40)
    with open_image(scene[0]) as image, WindowReader(image, downsample=downsample, workers=workers) as reader:
        batches = list(reader.batches(boxes, 7))
        assert [len(batch.index) for batch in batches] == [7] * 7 + [1]
        index = np.concatenate([batch.index for batch in batches])
        assert sorted(index) == list(range(50))
        for batch in batches:
            assert not batch.failed.any()
            for i, pixels in zip(batch.index, batch.pixels, strict=True):
                np.testing.assert_array_equal(pixels, image.read_scaled(boxes[i], downsample))
    assert reader.failures == []
    assert reader_threads() == 0


@pytest.mark.parametrize(
    ("side", "downsample"), [(1, 1), (9, 1), (30, 1), (64, 1), (1, 2), (9, 2), (30, 2), (1, 3), (9, 3), (1, 5), (9, 5)]
)
def test_crowded_windows_are_read_together_and_alike(
    scene: tuple[Path, NDArray[np.uint8]], side: int, downsample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, read = random_boxes(600, side), WindowReader._pixels
    reads: list[Box] = []

    def counted(reader: WindowReader, box: Box) -> NDArray[np.uint8]:
        reads.append(box)
        return read(reader, box)

    monkeypatch.setattr(WindowReader, "_pixels", counted)
    with open_image(scene[0]) as image, WindowReader(image, downsample=downsample, workers=2) as reader:
        for batch in reader.batches(boxes, 200):
            for i, pixels in zip(batch.index, batch.pixels, strict=True):
                np.testing.assert_array_equal(pixels, image.read_scaled(boxes[i], downsample))
    assert 0 < len(reads) < 600


def test_windows_read_together_decode_no_other_chunk(scene: tuple[Path, NDArray[np.uint8]]) -> None:
    rng = np.random.default_rng(2)
    corners = rng.integers(0, 100, (60, 2)) + rng.choice([0, 256, 384], (60, 1)) * [1, 0]
    boxes = [Box(y, x, y + 20, x + 20) for y, x in corners.tolist()]
    with open_image(scene[0]) as image, WindowReader(image, workers=1) as reader:
        for _ in reader.batches(boxes, 60):
            pass
        assert image.stats.chunks == 3


def test_order_follows_chunks(scene: tuple[Path, NDArray[np.uint8]]) -> None:
    boxes = random_boxes(80, 16)
    with open_image(scene[0]) as image, WindowReader(image, workers=3, prefetch=1) as reader:
        index = np.concatenate([batch.index for batch in reader.batches(boxes, 9)]).tolist()
    top, left = min(box.y0 // 128 for box in boxes), min(box.x0 // 128 for box in boxes)

    def along_the_curve(i: int) -> tuple[int, int, int]:
        row, column = boxes[i].y0 // 128 - top, boxes[i].x0 // 128 - left
        bits = "".join(a + b for a, b in zip(f"{row:08b}", f"{column:08b}", strict=True))
        return int(bits, 2), boxes[i].y0, boxes[i].x0

    assert index == sorted(range(80), key=along_the_curve)


def test_each_chunk_is_decoded_once(scene: tuple[Path, NDArray[np.uint8]]) -> None:
    boxes = list(blocks(512, 640, 64))
    boxes = [boxes[i] for i in np.random.default_rng(0).permutation(len(boxes))]
    with open_image(scene[0]) as image, WindowReader(image, workers=4) as reader:
        image._cache = ChunkCache(2 * 128 * 128 * 3 * 4)
        for _ in reader.batches(boxes, 8):
            pass
        assert image.stats.chunks == 20


def test_reading_ahead_is_bounded(scene: tuple[Path, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_image(scene[0]) as image, WindowReader(image, workers=2, prefetch=2) as reader:
        reads: list[Box] = []
        read = image.read

        def counted(box: Box, level: int = 0) -> NDArray[np.uint8]:
            reads.append(box)
            return read(box, level)

        monkeypatch.setattr(image, "read", counted)
        running = reader.batches(random_boxes(100, 16), 5)
        next(running)
        assert len(reads) <= 10
        next(running)
        assert len(reads) <= 15


def test_damaged_windows_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[1]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 64)
    boxes = list(blocks(256, 256, 64))
    with open_image(path) as image, WindowReader(image) as reader:
        seen = 0
        for batch in reader.batches(boxes, 5):
            for i, window, failed in zip(batch.index, batch.pixels, batch.failed, strict=True):
                box = boxes[i]
                bad = box.y0 < 128 <= box.x0
                seen += bad
                assert failed == bad
                expected = 0 if bad else pixels[box.y0 : box.y1, box.x0 : box.x1, None]
                np.testing.assert_array_equal(window, np.broadcast_to(expected, window.shape))
        assert seen == 4
    assert len(reader.failures) == 1
    assert "chunk at y=0, x=128" in reader.failures[0]


def interrupted(reader: WindowReader, boxes: list[Box]) -> None:
    with reader:
        for _ in reader.batches(boxes, 4):
            raise KeyboardInterrupt


def test_early_ends_leave_no_threads(scene: tuple[Path, NDArray[np.uint8]]) -> None:
    boxes = random_boxes(200, 32)
    with open_image(scene[0]) as image:
        with WindowReader(image) as reader:
            running: Any = reader.batches(boxes, 4)
            next(running)
            running.close()
            assert reader_threads() == 0
        with pytest.raises(KeyboardInterrupt):
            interrupted(WindowReader(image), boxes)
        assert reader_threads() == 0
        with WindowReader(image) as reader:
            left = reader.batches(boxes, 4)
            next(left)
        assert reader_threads() == 0
        assert list(left) == []


def test_errors_that_are_no_damage_reach_the_consumer(
    scene: tuple[Path, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NDArray[np.uint8]:
        raise MemoryError("too much")

    with open_image(scene[0]) as image, WindowReader(image) as reader:
        monkeypatch.setattr(image, "read", fail)
        with pytest.raises(MemoryError, match="too much"):
            list(reader.batches(random_boxes(9, 8), 4))
    assert reader_threads() == 0


def test_arguments_are_checked(scene: tuple[Path, NDArray[np.uint8]]) -> None:
    with open_image(scene[0]) as image:
        for wrong in ({"downsample": 0}, {"workers": 0}, {"prefetch": 0}):
            with pytest.raises(ValueError, match="at least 1"):
                WindowReader(image, **wrong)
        with WindowReader(image) as reader:
            with pytest.raises(ValueError, match="one shape"):
                reader.batches([Box(0, 0, 1, 1), Box(0, 0, 2, 1)], 4)
            with pytest.raises(ValueError, match="batch size"):
                reader.batches([Box(0, 0, 1, 1)], 0)
            none: list[WindowBatch] = list(reader.batches([], 4))
            assert none == []


def test_a_damaged_box_is_read_around_the_damage() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (300, 500, 3), dtype=np.uint8)

    def read(box: Box) -> NDArray[np.uint8]:
        if box.intersect(Box(130, 333, 140, 340)):
            raise ImageError("damaged")
        return pixels[box.y0 : box.y1, box.x0 : box.x1]

    found = salvage(read, Box(0, 0, 300, 500), fill=0)
    lost = (found == 0).all(axis=2)
    assert lost[130:140, 333:340].all()
    assert lost.sum() <= 64 * 64
    np.testing.assert_array_equal(found[~lost], pixels[~lost])
    np.testing.assert_array_equal(salvage(read, Box(0, 0, 90, 500)), pixels[:90])
    with pytest.raises(ImageError, match="damaged"):
        salvage(read, Box(130, 333, 140, 340))


@pytest.mark.parametrize("downsample", [1, 2])
def test_a_reader_that_fills_gives_what_is_left_of_damaged_windows(
    tmp_path: Path, scene: tuple[Path, NDArray[np.uint8]], downsample: int
) -> None:
    content = bytearray(scene[0].read_bytes())
    with tifffile.TiffFile(scene[0]) as file:
        offset = file.pages.first.dataoffsets[6]
    content[offset : offset + 40] = b"\xff" * 40
    path = tmp_path / "damaged.tif"
    path.write_bytes(content)
    boxes = [Box(y, y, y + 100, y + 100) for y in (0, 40, 64, 100, 150, 300)]
    with open_image(path) as image:
        with WindowReader(image, downsample=downsample) as plain:
            lost = {int(i) for batch in plain.batches(boxes, 2) for i in batch.index[batch.failed]}
        with WindowReader(image, downsample=downsample, fill=9) as reader:
            batches = list(reader.batches(boxes, 2))
        assert 0 < len(lost) < len(boxes)
        assert reader.failures == plain.failures != []
        read = partial(image.read_scaled, downsample=downsample)
        for batch in batches:
            assert set(batch.index[batch.failed].tolist()) <= lost
            for i, pixels in zip(batch.index[~batch.failed], batch.pixels[~batch.failed], strict=True):
                np.testing.assert_array_equal(pixels, salvage(read, boxes[i], fill=9))
            for i in batch.index[batch.failed]:
                with pytest.raises(ImageError):
                    salvage(read, boxes[i], fill=9)
