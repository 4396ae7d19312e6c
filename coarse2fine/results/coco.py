"""Finds as COCO JSON, the common exchange format of detection tools; streamed."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coarse2fine._version import __version__
from coarse2fine.region import Region
from coarse2fine.results.folder import ANALYSIS, read_record, regions_file, results_within
from coarse2fine.results.geojson import read_regions
from coarse2fine.results.json_file import NOT_UNICODE, compact
from coarse2fine.tiling.storage.remote import is_url
from coarse2fine.tiling.writing.atomic import replacing_stream


@dataclass(frozen=True)
class Found:
    """The finds in one image.

    Parameters
    ----------
    name : str
        Name of the image's file.
    full_shape : tuple of int
        Height and width.
    regions : tuple of Region, or Path
        The finds, or the file that holds them, read when they are written.
    labels : tuple of str
        Their classes.
    """

    name: str
    full_shape: tuple[int, int]
    regions: tuple[Region, ...] | Path
    labels: tuple[str, ...]


def write_coco(path: str | os.PathLike[str], images: Sequence[Found]) -> Path:
    """Write finds as a COCO data set.

    Each has ``bbox`` [x, y, width, height] and ``segmentation``, its outline or the corners of its box, in
    full-resolution pixels, ``area``, ``score`` and ``iscrowd`` 0. Ids count from 1: categories sorted by name, images
    and annotations in their order. An existing file is replaced once the new one is complete.

    Parameters
    ----------
    path : path-like
        File to write; gzipped if the name ends in ``.gz``. Its folder must exist.
    images : sequence of Found

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder does not exist, or `path` is a folder.
    """
    target = Path(path)
    numbers = _numbers(images)
    with replacing_stream(target) as stream:
        stream.write(f'{compact(_head(images, numbers))[:-1]}, "annotations": ['.encode("utf-8", NOT_UNICODE))
        for entry in _entries(images, numbers):
            separator = "\n" if entry["id"] == 1 else ",\n"
            stream.write(f"{separator}{compact(entry)}".encode("utf-8", NOT_UNICODE))
        stream.write(b"\n]}\n")
    return target


def coco_dict(images: Sequence[Found]) -> dict[str, Any]:
    """The data set that `write_coco` writes, as JSON values."""
    numbers = _numbers(images)
    return {**_head(images, numbers), "annotations": list(_entries(images, numbers))}


def write_results_coco(path: str | os.PathLike[str], results: Sequence[Path]) -> Path:
    """Write saved results as one COCO data set, one image each; images with equal names keep their paths.

    Parameters
    ----------
    path : path-like
        See `write_coco`.
    results : sequence of Path
        Folders written by `Analysis.save`.

    Raises
    ------
    FileNotFoundError
        If there are none, or one holds no complete result.
    ValueError
        If one is damaged.
    """
    if not results:
        raise FileNotFoundError(f"there are no results to write to {path}")
    records = [(folder, read_record(folder)) for folder in results]
    try:
        times = Counter(file_name(record["image"]["path"], record["image"]["name"]) for _, record in records)
        return write_coco(path, [_stored(folder, record, times) for folder, record in records])
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"{results[0].parent} holds a result that cannot be read ({error!r}); analyse it again"
        ) from error


def result_folders(folder: Path) -> list[Path]:
    """The results in a folder: itself, or those of a batch.

    Raises
    ------
    FileNotFoundError
        If it holds none.
    """
    found = [folder] if (folder / ANALYSIS).is_file() else results_within(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no results; expected what `coarse2fine analyze` wrote")
    return found


def file_name(place: str | os.PathLike[str] | None, name: str) -> str:
    """Name of an image in COCO: that of its file, or the given name if it has no file."""
    if place is None:
        return name
    return str(place).partition("?")[0].rpartition("/")[2] if is_url(place) else Path(place).name


def _stored(folder: Path, record: dict[str, Any], times: Counter[str]) -> Found:
    image = record["image"]
    height, width = image["shape"][:2]
    name = file_name(image["path"], image["name"])
    name = name if times[name] == 1 else str(image["path"])
    return Found(name, (height, width), regions_file(folder), tuple(record["labels"]))


def _numbers(images: Sequence[Found]) -> dict[str, int]:
    """Id of each category."""
    return {label: n for n, label in enumerate(sorted({label for each in images for label in each.labels}), 1)}


def _head(images: Sequence[Found], numbers: dict[str, int]) -> dict[str, Any]:
    return {
        "info": {"description": f"found by coarse2fine {__version__}"},
        "images": [
            {"id": n, "file_name": each.name, "height": each.full_shape[0], "width": each.full_shape[1]}
            for n, each in enumerate(images, 1)
        ],
        "categories": [{"id": n, "name": label} for label, n in numbers.items()],
    }


def _entries(images: Sequence[Found], numbers: dict[str, int]) -> Iterator[dict[str, Any]]:
    ids = itertools.count(1)
    for image, each in enumerate(images, 1):
        regions = read_regions(each.regions) if isinstance(each.regions, Path) else each.regions
        for region in regions:
            yield {"id": next(ids), "image_id": image, "category_id": numbers[region.label], **_place(region)}


def _place(region: Region) -> dict[str, Any]:
    y0, x0, y1, x1 = map(float, region.full_box)
    ring = [(float(x), float(y)) for y, x in region.full_corners]
    # Shoelace formula.
    twice = sum(x * v - u * y for (x, y), (u, v) in zip(ring, [*ring[1:], ring[0]], strict=True))
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": abs(twice) / 2,
        "segmentation": [[number for corner in ring for number in corner]],
        "score": float(region.score),
        "iscrowd": 0,
    }
