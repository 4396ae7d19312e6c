"""Finds of maps, classes and vectors, ownership, and suppression between tiles, against loops."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from coarse2fine import analyze
from coarse2fine.experts.finds import read_answer
from coarse2fine.experts.suppress import suppress_across
from coarse2fine.models.candidates import Candidates
from tests.experts.scenes import LABELS, Find, Pixels, crops, disc_expert, in_image, model_of, once, owns, scene

Floats = NDArray[np.float32]


def maps_of(pixels: Pixels) -> Floats:
    """Probability of each class at each pixel, from the grey level."""
    grey = pixels[..., 0].astype(np.float32)
    dim = ((grey > 100) & (grey <= 180)) * (0.55 + grey / 1024)
    bright = (grey > 180) * (0.55 + grey / 1024)
    return np.stack([dim, bright], axis=1).astype(np.float32)


def means_of(pixels: Pixels) -> Floats:
    """Probability that a tile holds much of each class, from its core alone."""
    core = maps_of(pixels)[:, :, 8:-8, 8:-8]
    found: Floats = (core.mean(axis=(2, 3)) * 8).clip(0, 1)
    return found


def components(cells: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Parts of a map of cells that are joined by edges."""
    labelled, count = ndimage.label(cells)
    return [labelled == n + 1 for n in range(count)]


def areas(labels: NDArray[np.int64], scores: Floats, cell: int, image: Pixels) -> list[tuple[Any, ...]]:
    """Class, score, bounding box and area of the regions of a map of cells; a label of -1 is none."""
    height, width = image.shape[:2]
    found = []
    for label in range(len(LABELS)):
        for part in components(labels == label):
            y, x = np.nonzero(part)
            box = (y.min() * cell, x.min() * cell, min(height, (y.max() + 1) * cell), min(width, (x.max() + 1) * cell))
            filled = ndimage.binary_fill_holes(part)
            pixels = np.kron(filled, np.ones((cell, cell), bool))[:height, :width].sum()
            found.append((LABELS[label], float(scores[part].mean()), tuple(map(float, box)), float(pixels)))
    return sorted(found, key=lambda area: (-area[1], area[2]))


def check_areas(image: Pixels, made: Any, labels: NDArray[np.int64], scores: Floats, cell: int) -> None:
    analysis = analyze(image, model_of(made), budget=1.0)
    wanted = areas(labels, scores, cell, image)
    assert len(wanted) > 3
    got = [(r.label, r.score, r.full_box, shapely.Polygon(r.outline).area) for r in analysis.regions]
    key = lambda area: (round(-area[1], 4), area[2])  # noqa: E731
    for one, two in zip(sorted(got, key=key), sorted(wanted, key=key), strict=True):
        assert one[0] == two[0]
        np.testing.assert_allclose(one[1], two[1], atol=1e-5)
        np.testing.assert_allclose(one[2], two[2], atol=1e-6)
        np.testing.assert_allclose(one[3], two[3], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(256, 320), (301, 217)])
@pytest.mark.parametrize("cell", [4, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_as_areas(height: int, width: int, cell: int, channels: int) -> None:
    image = scene(height, width, 25, channels=channels, radius=16, seed=2)
    made = disc_expert(maps_of, kind="map", cell=cell)
    side = made.tile // cell
    rows, columns = -(-height // made.tile) * side, -(-width // made.tile) * side
    labels, scores = np.full((rows, columns), -1), np.zeros((rows, columns), np.float32)
    for (y, x), crop in crops(image, made).items():
        plane = maps_of(crop[None])[0, :, made.context : -made.context, made.context : -made.context]
        for i, j in np.ndindex(side, side):
            each = [float(p[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].mean()) for p in plane]
            best = int(np.argmax(each))
            scores[y * side + i, x * side + j] = each[best]
            labels[y * side + i, x * side + j] = best if each[best] >= 0.5 else -1
    labels[-(-height // cell) :], labels[:, -(-width // cell) :] = -1, -1
    check_areas(image, made, labels, scores, cell)


@pytest.mark.parametrize("kind", ["classes", "vectors"])
def test_classes_and_vectors_of_tiles(kind: Any) -> None:
    image = scene(500, 610, 120, seed=4, radius=14)
    if kind == "classes":
        made = disc_expert(means_of, kind=kind, tile=32)
    else:
        made = disc_expert(
            lambda pixels: means_of(pixels) * 3,
            kind=kind,
            tile=32,
            labels=["dim"],
            interest=lambda vectors: vectors.max(axis=1) / 3,
        )
    labels, scores = np.full((16, 20), -1), np.zeros((16, 20), np.float32)
    for (y, x), crop in crops(image, made).items():
        each = means_of(crop[None])[0]
        best = int(each.argmax()) if kind == "classes" else 0
        scores[y, x] = each.max()
        labels[y, x] = best if each.max() >= 0.5 else -1
    check_areas(image, made, labels, scores, 32)


def parts_of(image: Pixels, made: Any) -> list[Find]:
    """The loop for maps as objects: connected parts of each class, owned by the tile that holds the box's centre."""
    tiles: dict[tuple[int, int], list[Find]] = {}
    every = crops(image, made)
    for (row, column), crop in every.items():
        mine: list[Find] = []
        for label, plane in enumerate(maps_of(crop[None])[0]):
            parts, _ = ndimage.label(plane >= 0.5, structure=np.ones((3, 3)))
            for number, (ys, xs) in enumerate(ndimage.find_objects(parts), 1):
                y, x = (ys.start + ys.stop) / 2 - made.context, (xs.start + xs.stop) / 2 - made.context
                if owns(made, (row, column), max(every), (y, x)):
                    top, left = row * made.tile - made.context, column * made.tile - made.context
                    box = (ys.start + top, xs.start + left, ys.stop + top, xs.stop + left)
                    mine.append((float(plane[parts == number].mean()), label, box))
        tiles[row, column] = sorted(mine, key=lambda find: -find[0])
    return in_image(once(tiles), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_as_objects(channels: int) -> None:
    image = scene(333, 420, 60, seed=5, radius=9, channels=channels)
    made = disc_expert(maps_of, kind="map", areas=False, context=16)
    analysis = analyze(image, model_of(made), budget=1.0)
    wanted = parts_of(image, made)
    assert len(wanted) > 30
    got = [(r.score, LABELS.index(r.label), r.full_box) for r in analysis.regions]
    key = lambda find: (find[2], find[1])  # noqa: E731
    for one, two in zip(sorted(got, key=key), sorted(wanted, key=key), strict=True):
        assert one[1] == two[1]
        np.testing.assert_allclose(one[0], two[0], atol=1e-5)
        np.testing.assert_allclose(one[2], two[2], atol=1e-3)
    grey = image if channels == 1 else image[..., 0]
    for region in analysis.regions:
        if region.outline is None:
            continue
        mask = np.zeros(grey.shape, np.uint8)
        cv2.fillPoly(mask, [np.array([(x - 0.5, y - 0.5) for y, x in region.outline]).round().astype(np.int32)], 1)
        low, high = (100, 180) if region.label == "dim" else (180, 255)
        y0, x0, y1, x1 = (round(n) for n in region.full_box)
        own = ((grey > low) & (grey <= high))[y0:y1, x0:x1] & (mask[y0:y1, x0:x1] > 0)
        assert own.sum() >= 0.9 * mask.sum()  # the outline runs along the part


def test_a_centre_on_the_border_belongs_to_one_tile() -> None:
    """A core is half-open: the tile that begins at the border owns the find."""
    made = disc_expert(tile=64, context=8, labels=["a"])
    counts = np.zeros((3, 3), int)
    for y, x in np.ndindex(3, 3):
        top, left = y * 64 - 8, x * 64 - 8
        boxes = [
            (cx - 4 - left, cy - 4 - top, cx + 4 - left, cy + 4 - top, 0.9, 0)
            for cy in (63.5, 64.0, 128.0)
            for cx in (64.0, 127.5)
        ]
        inside = [b for b in boxes if all(0 <= n <= 80 for n in b[:4])]
        found = read_answer(made, [np.array(inside).reshape(-1, 6)], np.array([[y, x]]), 0.5)
        counts[y, x] = len(found)
        assert (found.cells == (y, x)).all()
        assert found.ranks.tolist() == list(range(len(found)))
    assert counts.tolist() == [[0, 2, 0], [0, 2, 0], [0, 2, 0]]


def table(boxes: Any, scores: Any, labels: Any, cells: Any) -> Candidates:
    count = len(boxes)
    return Candidates(
        np.array(cells, np.int32),
        np.array(scores, np.float32),
        np.array(labels, np.int16),
        np.array(boxes, np.float32),
        np.zeros(count, np.int32),
    )


def loop(found: Candidates, overlap: float) -> list[int]:
    """Rows that are kept: best first, against all those kept of the same class in other tiles."""
    kept: list[int] = []
    b = found.boxes.astype(float)
    for i in np.argsort(-found.scores, kind="stable").tolist():
        for j in kept:
            sides = np.minimum(b[i, 2:], b[j, 2:]) - np.maximum(b[i, :2], b[j, :2])
            smaller = min((b[i, 2:] - b[i, :2]).prod(), (b[j, 2:] - b[j, :2]).prod())
            apart = (found.cells[i] == found.cells[j]).all() or found.labels[i] != found.labels[j]
            if not apart and sides.min() > 0 and sides.prod() > overlap * smaller:
                break
        else:
            kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize("overlap", [0.2, 0.5, 0.9])
def test_suppression_is_greedy(overlap: float) -> None:
    rng = np.random.default_rng(0)
    low = rng.random((400, 2)) * 8
    boxes = np.concatenate([low, low + rng.random((400, 2)) * 1.5], axis=1)
    order = np.lexsort((low[:, 1].astype(int), low[:, 0].astype(int)))
    found = table(boxes, rng.integers(1, 30, 400) / 30, rng.integers(0, 2, 400), low.astype(int)).take(order)
    kept = suppress_across(found, overlap)
    rows = loop(found, overlap)
    assert 20 < len(rows) < 380
    np.testing.assert_array_equal(kept.boxes, found.boxes[rows])
    np.testing.assert_array_equal(kept.scores, found.scores[rows])


def test_suppression_keeps_the_outlines_of_those_that_stay() -> None:
    found = table(
        [[0, 0, 1, 1.2], [0, 0.9, 1, 1.9], [0, 0.95, 1, 1.25]], [0.6, 0.7, 0.9], [0] * 3, [[0, 0], [0, 1], [0, 0]]
    )
    sizes = np.array([3, 4, 3], np.int32)
    found = replace(found, sizes=sizes, corners=np.arange(20, dtype=np.float32).reshape(10, 2))
    kept = suppress_across(found, 0.5)
    assert kept.scores.tolist() == pytest.approx([0.6, 0.9])
    assert [len(each) for each in kept.outlines()] == [3, 3]
    assert kept.outlines()[1].tolist() == found.outlines()[2].tolist()


@pytest.mark.parametrize(("tiles", "each", "side"), [(5000, 20, 0.2), (336, 300, 0.3)])
def test_suppression_of_many_finds_takes_seconds(tiles: int, each: int, side: float) -> None:
    """100,000 finds with outlines, in one case 300 in every tile, which overlap each other."""
    rng = np.random.default_rng(1)
    cells = np.repeat(np.stack(np.divmod(np.arange(tiles), 21), axis=1), each, axis=0)
    low = cells + rng.random((len(cells), 2))
    boxes = np.concatenate([low, low + side], axis=1)
    found = table(boxes, rng.random(len(cells)), rng.integers(0, 3, len(cells)), cells)
    sizes = np.full(len(cells), 8, np.int32)
    found = replace(found, sizes=sizes, corners=rng.random((8 * len(cells), 2)).astype(np.float32))
    start = time.perf_counter()
    kept = suppress_across(found, 0.5)
    assert time.perf_counter() - start < 20
    assert 0 < len(kept) < len(found)
    assert len(kept.corners) == 8 * len(kept)
