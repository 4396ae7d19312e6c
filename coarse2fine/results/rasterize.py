"""Regions as numbered pixels, one chunk at a time: memory holds only chunks that regions touch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from coarse2fine.region import Region
from coarse2fine.tiling.geometry import Box


def region_chunks(
    regions: Sequence[Region], full_shape: tuple[int, int], chunk: int
) -> Iterator[tuple[Box, NDArray[np.uint32]]]:
    """Rasterize regions into the chunks of an image that they touch.

    A pixel belongs to a region if its centre lies inside; a box too thin to hold any gets the row or column of pixels
    under its own centre. If regions overlap, the first is on top.

    Parameters
    ----------
    regions : sequence of Region
    full_shape : tuple of int
        Height and width of the image.
    chunk : int
        Side of a chunk in pixels.

    Yields
    ------
    full_box : Box
        A chunk, clipped to the image; in raster order.
    numbers : ndarray, uint32, (h, w)
        Number of each pixel's region, counted from 1; 0 for none.
    """
    if not regions:
        return
    boxes = _pixel_boxes(np.array([region.full_box for region in regions], np.float64), full_shape)
    index, rows, columns = _meetings(boxes, chunk)
    # The first region is drawn last.
    order = np.lexsort((-index, columns, rows))
    index, rows, columns = index[order], rows[order], columns[order]
    borders = np.flatnonzero((np.diff(rows) != 0) | (np.diff(columns) != 0)) + 1
    for start, members in zip([0, *borders.tolist()], np.split(index, borders), strict=True):
        y, x = int(rows[start]) * chunk, int(columns[start]) * chunk
        box = Box(y, x, min(y + chunk, full_shape[0]), min(x + chunk, full_shape[1]))
        numbers = np.zeros((box.height, box.width), np.uint32)
        for member, corners in zip(members.tolist(), boxes[members].tolist(), strict=True):
            _paint(numbers, box, regions[member], corners, member + 1)
        yield box, numbers


def fill_outline(outline: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    """Mask of a box's pixels whose centres lie inside an outline (even-odd rule).

    Parameters
    ----------
    outline : ndarray, float64, (k, 2)
        Corners (y, x), not closed.
    box : Box
        In the plane of the outline.

    Returns
    -------
    ndarray, bool, (h, w)
    """
    following = np.roll(outline, -1, axis=0)
    upward = outline[:, 0] > following[:, 0]
    top = np.where(upward[:, None], following, outline)
    bottom = np.where(upward[:, None], outline, following)
    first = np.clip(np.ceil(top[:, 0] - 0.5), box.y0, box.y1).astype(np.int64)
    count = np.clip(np.ceil(bottom[:, 0] - 0.5), box.y0, box.y1).astype(np.int64) - first
    edge = np.repeat(np.arange(len(outline)), count)
    row = np.repeat(first, count) + _within(count)
    slope = (bottom[edge, 1] - top[edge, 1]) / (bottom[edge, 0] - top[edge, 0])
    crossing = top[edge, 1] + (row + 0.5 - top[edge, 0]) * slope
    column = np.clip(np.ceil(crossing - 0.5) - box.x0, 0, box.width).astype(np.int64)
    toggles = np.zeros((box.height, box.width + 1), np.bool_)
    np.logical_xor.at(toggles, (row - box.y0, column), True)
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(toggles[:, :-1], axis=1)
    return inside


def _pixel_boxes(full_boxes: NDArray[np.float64], full_shape: tuple[int, int]) -> NDArray[np.int64]:
    """Pixels (y0, x0, y1, x1) whose centres lie in boxes, at least one along each axis, inside the image."""
    size = np.array(full_shape)
    centre = np.clip(np.floor((full_boxes[:, :2] + full_boxes[:, 2:]) / 2), 0, size - 1)
    low, high = np.ceil(full_boxes[:, :2] - 0.5), np.ceil(full_boxes[:, 2:] - 0.5)
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    empty = high <= low
    low, high = np.where(empty, centre, low), np.where(empty, centre + 1, high)
    return np.concatenate([low, high], axis=1).astype(np.int64)


def _meetings(boxes: NDArray[np.int64], chunk: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of boxes and chunks that overlap: index of the box, row and column of the chunk."""
    first, last = boxes[:, :2] // chunk, (boxes[:, 2:] - 1) // chunk
    size = last - first + 1
    count = size.prod(axis=1)
    index = np.repeat(np.arange(len(boxes)), count)
    within = _within(count)
    return index, first[index, 0] + within // size[index, 1], first[index, 1] + within % size[index, 1]


def _within(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... up to each count (exclusive), concatenated."""
    ends = np.cumsum(count)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - count, count)


def _paint(numbers: NDArray[np.uint32], box: Box, region: Region, corners: list[int], number: int) -> None:
    y0, x0, y1, x1 = corners
    y0, x0, y1, x1 = max(y0, box.y0), max(x0, box.x0), min(y1, box.y1), min(x1, box.x1)
    part = numbers[y0 - box.y0 : y1 - box.y0, x0 - box.x0 : x1 - box.x0]
    if region.outline is None:
        part[:] = number
    else:
        part[fill_outline(np.array(region.outline, np.float64), Box(y0, x0, y1, x1))] = number
