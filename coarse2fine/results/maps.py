"""Maps and labels as one OME-Zarr 0.5 image: interest, refinement and finds of each cell; regions as pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from coarse2fine.region import Region
from coarse2fine.results.colours import label_colours
from coarse2fine.results.rasterize import region_chunks
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.writing.atomic import replacing_folder
from coarse2fine.tiling.writing.pyramid import ZSTD_LEVEL, level_sizes, multiscales

CHANNELS = ("interest", "refined", "found")
_COLOURS = ("FFAA00", "00C8F0", "FF2D6F")
_CHUNK = 512
_LABEL_CHUNK = 1024


@dataclass(frozen=True)
class Maps:
    """Source of an analysis's maps.

    Parameters
    ----------
    name : str
        Name of the image.
    full_shape : tuple of int
        Height and width of the image.
    mpp : tuple of float or None
        Microns per full-resolution pixel (y, x).
    cell : int
        Side of a cell in full-resolution pixels.
    interest : ndarray, float32, (cell height, cell width)
        Empty (0, 0) if there was no scan.
    refined : ndarray, bool, (cell height, cell width)
    regions : sequence of Region
    """

    name: str
    full_shape: tuple[int, int]
    mpp: tuple[float, float] | None
    cell: int
    interest: NDArray[np.float32]
    refined: NDArray[np.bool_]
    regions: Sequence[Region]


def write_maps(path: str | os.PathLike[str], maps: Maps) -> Path:
    """Write an OME-Zarr image of three channels, with two label images.

    The image has one pixel per cell, float32: ``interest``, from the scan (0 to 1); ``refined``, 1 for refined cells;
    ``found``, the highest score of the regions with their centre there. Coarser levels hold the maximum of 2 x 2. The
    labels have full resolution: ``regions``, the number of the region, counted from 1 in their order, and
    ``classes``, the number of its class; names and colours of classes are in the metadata. Empty chunks are not
    stored.

    Parameters
    ----------
    path : path-like
        Folder to write, usually named ``.ome.zarr``; an existing one is replaced once the new one is complete.
    maps : Maps

    Returns
    -------
    Path
        The folder written.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If its parent folder does not exist, or `path` is a file.
    """
    target = Path(path)
    with replacing_folder(target) as temporary:
        group = zarr.open_group(temporary, mode="w", zarr_format=3)
        _write_cells(group, maps)
        _write_labels(group.create_group("labels"), maps)
    return target


def read_maps(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Interest and refined cells, each (cell height, cell width), from an image written by `write_maps`."""
    array: Any = zarr.open_array(Path(path) / "0", mode="r")
    interest, refined = (np.asarray(array[CHANNELS.index(name)], np.float32) for name in ("interest", "refined"))
    return interest, refined > 0


def _write_cells(group: zarr.Group, maps: Maps) -> None:
    sizes = [maps.refined.shape]
    while len(sizes) < len(level_sizes(*maps.full_shape)):  # labels and image must have equally many levels
        sizes.append((ceil_div(sizes[-1][0], 2), ceil_div(sizes[-1][1], 2)))
    levels = [
        _create(group, str(level), (len(CHANNELS), *size), (1, _CHUNK, _CHUNK), np.float32, ("c", "y", "x"))
        for level, size in enumerate(sizes)
    ]
    for row, planes in _strips(maps):
        levels[0][:, row : row + _CHUNK] = planes
    for finer, coarser in pairwise(levels):
        for row in range(0, coarser.shape[1], _CHUNK):
            coarser[:, row : row + _CHUNK] = _greatest(np.asarray(finer[:, 2 * row : 2 * (row + _CHUNK)]))
    channels: list[Any] = [
        {
            "label": name,
            "color": colour,
            "active": True,
            "window": {"start": 0.0, "end": 1.0, "min": 0.0, "max": 1.0},
        }
        for name, colour in zip(CHANNELS, _COLOURS, strict=True)
    ]
    described = multiscales(len(sizes), len(CHANNELS), maps.mpp, maps.name, maps.cell)
    group.attrs.update({"ome": {**described, "omero": {"channels": channels}}})


def _strips(maps: Maps) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Channels (3, h, w) of each row of chunks, with its first row."""
    height, width = maps.refined.shape
    centres = np.array([region.full_centre for region in maps.regions]).reshape(-1, 2) // maps.cell
    y, x = centres.astype(np.int64).T
    scores = np.array([region.score for region in maps.regions], np.float32)
    for row in range(0, height, _CHUNK):
        rows = slice(row, min(row + _CHUNK, height))
        planes = np.zeros((len(CHANNELS), rows.stop - row, width), np.float32)
        if maps.interest.size:
            planes[0] = maps.interest[rows]
        planes[1] = maps.refined[rows]
        here = (y >= row) & (y < rows.stop)
        np.maximum.at(planes[2], (y[here] - row, x[here]), scores[here])
        yield row, planes


def _greatest(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maximum of 2 x 2 values of each plane; an odd last row or column is padded with zeros."""
    height, width = planes.shape[1:]
    planes = np.pad(planes, ((0, 0), (0, height % 2), (0, width % 2)))
    rows = np.maximum(planes[:, ::2], planes[:, 1::2])
    halved: NDArray[np.float32] = np.maximum(rows[..., ::2], rows[..., 1::2])
    return halved


def _write_labels(group: zarr.Group, maps: Maps) -> None:
    names = sorted({region.label for region in maps.regions})
    number = {name: index for index, name in enumerate(names, 1)}
    few = len(names) <= np.iinfo(np.uint8).max
    classes = np.array([0, *(number[region.label] for region in maps.regions)], np.uint8 if few else np.uint16)
    colours = [{"label-value": number[name], "rgba": [*rgb, 255]} for name, rgb in label_colours(names).items()]
    properties = [{"label-value": number[name], "class": name} for name in names]
    group.attrs.update({"ome": {"version": "0.5", "labels": ["regions", "classes"]}})
    more = {"colors": colours, "properties": properties} if names else {}
    by_region = _create_labels(group, "regions", maps, np.uint32, {})
    by_class = _create_labels(group, "classes", maps, classes.dtype, more)
    touched = []
    for box, numbers in region_chunks(maps.regions, maps.full_shape, _LABEL_CHUNK):
        by_region[0][box.slices] = numbers
        by_class[0][box.slices] = classes[numbers]
        touched.append(box)
    for levels in (by_region, by_class):
        _fill_levels(levels, touched)


def _create_labels(group: zarr.Group, name: str, maps: Maps, dtype: Any, more: dict[str, Any]) -> list[Any]:
    """Create the empty levels of a label image."""
    labels = group.create_group(name)
    sizes = level_sizes(*maps.full_shape)
    described = multiscales(len(sizes), 1, maps.mpp, name)
    labels.attrs.update({"ome": {**described, "image-label": {"source": {"image": "../../"}, **more}}})
    return [
        _create(labels, str(level), size, (_LABEL_CHUNK, _LABEL_CHUNK), dtype, ("y", "x"))
        for level, size in enumerate(sizes)
    ]


def _fill_levels(levels: list[Any], touched: Iterable[Box]) -> None:
    """Write the coarser levels of touched chunks: the upper left of 2 x 2 pixels."""
    places = {(box.y0 // _LABEL_CHUNK, box.x0 // _LABEL_CHUNK) for box in touched}
    for finer, coarser in pairwise(levels):
        places = {(row // 2, column // 2) for row, column in places}
        for row, column in sorted(places):
            y, x = row * _LABEL_CHUNK, column * _LABEL_CHUNK
            source = finer[2 * y : 2 * (y + _LABEL_CHUNK), 2 * x : 2 * (x + _LABEL_CHUNK)]
            coarser[y : y + _LABEL_CHUNK, x : x + _LABEL_CHUNK] = source[::2, ::2]


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: Any, axes: tuple[str, ...]
) -> Any:
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=0,
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        dimension_names=axes,
        config={"write_empty_chunks": False},
    )
