"""OME-Zarr 0.4 and 0.5 images, and plain Zarr arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..errors import ImageError
from ..geometry import PixelSize, pixel_size
from ..limits import check_unit
from ..samples import Alpha, PixelArray, check_samples, check_size
from ..source import Source
from ..storage.byte_files import Keys
from ..value_range import Origin, is_plain, stated_range
from .tensor_store import TensorStoreArray
from .zarr_array import ChunkedArray, ChunkPlan, plan_of
from .zarr_bounded import open_bounded
from .zarr_codecs import UnsupportedError
from .zarr_survey import MARKERS, OURS, check_chunks, find_image, get, metadata_of

_AXES = {"channel": "c", "channels": "c", "band": "c", "bands": "c"}
_MOST_SIDE = 2**31 - 1
"""Most pixels along a side, a thousand times those of the largest mosaics."""


def open_zarr(keys: Keys, label: str, *, folder: str | None = None) -> Source | None:
    """Open a Zarr: the first multiscale image of a group, or an array.

    Parameters
    ----------
    keys : Keys
        The Zarr's files.
    label : str
        Path or address, for messages.
    folder : str, optional
        Path of a local Zarr, if tensorstore shall read its chunks.

    Returns
    -------
    Source, or None if there is no Zarr

    Raises
    ------
    ImageError
        If it is damaged, or its axes cannot be an image.
    """
    try:
        if all(get(keys, marker) is None for marker in MARKERS):
            keys.get(MARKERS[0])  # raises if reading is not permitted
            return None
        return _open(keys, label, folder)
    except (ImageError, OSError):
        raise
    except Exception as error:
        raise ImageError(
            f"{label}: the Zarr metadata is damaged or of an unknown kind ({type(error).__name__}: {error}); "
            "copy or write it again"
        ) from error


def _open(keys: Keys, label: str, folder: str | None) -> Source:
    metadata = metadata_of(keys, "")
    image: dict[str, Any] | None = None
    found: tuple[str, ...] = ()
    if _is_array(metadata):
        levels: tuple[_Level, ...] = (_level(keys, "", metadata, folder),)
        names = _stored_names(metadata, len(levels[0].array.shape)) or _plain_axes(label, levels[0].array.shape)
    else:
        image, prefix, found = find_image(keys, metadata, label)
        paths = [f"{prefix}{str(level['path']).strip('/')}/" for level in image["datasets"]]
        levels = tuple(_level(keys, path, metadata_of(keys, path), folder) for path in paths)
        order = sorted(range(len(levels)), key=lambda i: -math.prod(levels[i].array.shape))
        levels = tuple(levels[i] for i in order)
        image = {**image, "datasets": [image["datasets"][i] for i in order]}
        names = _axis_names(image, levels[0].array, label)
    arrays: tuple[Any, ...] = tuple(level.array for level in levels)
    axes = "".join(name if name in "yxc" else "0" for name in names)
    sizes = _chunk_sizes(levels, axes, label)
    if levels[0].plan is not None:
        found = (*found, *check_chunks(keys, levels[0].prefix, levels[0].plan, label))
    # Four channels are colour with opacity only if stored last; separate channel planes are measurements.
    alpha: Alpha = "straight" if _samples(arrays[0], axes) == 4 and axes.endswith("yxc") else "none"
    return Source(
        arrays=cast("tuple[PixelArray, ...]", arrays),
        chunks=sizes,
        axes=axes,
        format="zarr" if image is None else "ome-zarr",
        stated=() if image is None else _windows(image, _samples(arrays[0], axes), arrays[0].dtype),
        origin=Origin.parse(image[OURS], _samples(arrays[0], axes))
        if image is not None and is_plain(arrays[0].dtype)
        else None,
        alpha=alpha,
        pixel_size=None if image is None else _pixel_size(image, names),
        notes=found
        + tuple(
            f"first of {size} planes along axis {name} used"
            for name, size in zip(names, arrays[0].shape, strict=True)
            if name not in ("y", "x", "c") and size > 1
        ),
    )


def _is_array(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get("node_type") == "array" or "chunks" in metadata)


@dataclass(frozen=True)
class _Level:
    """An array, its prefix among the keys, its chunk layout, and the bytes that decoding one chunk takes."""

    array: Any
    prefix: str
    plan: ChunkPlan | None
    scratch: int


def _level(keys: Keys, prefix: str, metadata: Mapping[str, Any], folder: str | None) -> _Level:
    """One array, read with tensorstore if asked for, else by its chunks if `plan_of` can, else with zarr-python."""
    if not _is_array(metadata):
        raise ValueError(f"there is no array '{prefix.rstrip('/')}'")
    array: Any
    plan: ChunkPlan | None = None
    try:
        plan = plan_of(metadata)
        scratch = plan.scratch
        array = ChunkedArray(keys, prefix, plan)
    except UnsupportedError:
        array, scratch = open_bounded(keys, prefix, metadata)
    if folder is not None:
        array = TensorStoreArray(f"{folder}/{prefix}", metadata, plan)
    return _Level(array, prefix, plan, scratch)


def _chunk_sizes(levels: tuple[_Level, ...], axes: str, label: str) -> tuple[tuple[int, int], ...]:
    """Height and width of the chunks of each level, which must agree in all else."""
    first = levels[0].array
    check_samples(label, first.dtype)
    sizes = []
    for level in levels:
        array = level.array
        if array.dtype != first.dtype or len(array.shape) != len(axes):
            raise ImageError(f"{label}: the levels differ in dtype or axes; write the image again")
        if _samples(array, axes) != _samples(first, axes):
            raise ImageError(f"{label}: the levels differ in their number of channels; write the image again")
        height, width, chunk_y, chunk_x = (
            values[axes.index(a)] for values in (array.shape, array.chunks) for a in "yx"
        )
        if max(height, width) > _MOST_SIDE:
            raise ImageError(f"{label}: expected sides of at most {_MOST_SIDE:,} pixels, got {height} x {width}")
        # Samples other than bytes and 16-bit integers (look-up table) are converted to 8 bits through float64.
        each = 9 if array.dtype.itemsize > 1 and (array.dtype.kind == "f" or array.dtype.itemsize > 2) else 1
        pixels = chunk_y * chunk_x * min(_samples(array, axes), 4)
        what = f"{label}: one stored chunk of {' x '.join(map(str, array.chunks))} samples of {array.dtype}"
        check_unit(level.scratch + each * pixels, what)
        check_size(label, height, width, (chunk_y, chunk_x))
        if 0 in array.shape:
            raise ImageError(
                f"{label}: the array is empty (shape {array.shape}, chunks {array.chunks}); write the image again"
            )
        sizes.append((chunk_y, chunk_x))
    return tuple(sizes)


def _samples(array: Any, axes: str) -> int:
    """Samples of a pixel."""
    return int(array.shape[axes.index("c")]) if "c" in axes else 1


def _stored_names(metadata: Mapping[str, Any], axes: int) -> list[str]:
    """Axis names of an array itself, by Zarr 3 or xarray; empty if they are not those of an image."""
    found = metadata.get("dimension_names") or metadata.get("attributes", {}).get("_ARRAY_DIMENSIONS") or ()
    names = [_AXES.get(str(name).lower(), str(name).lower()) for name in found]
    return names if len(names) == axes and all(names.count(axis) == 1 for axis in "yx") and names.count("c") < 2 else []


def _plain_axes(label: str, shape: tuple[int, ...]) -> list[str]:
    """Axes of an array without names: of three, the short one is the channel axis."""
    if len(shape) == 2:
        return ["y", "x"]
    if len(shape) == 3 and shape[2] <= 4:
        return ["y", "x", "c"]
    if len(shape) == 3 and shape[0] <= 4:
        return ["c", "y", "x"]
    raise ImageError(
        f"{label}: expected a Zarr array (y, x), (y, x, channels) or (channels, y, x) of up to 4 channels, "
        f"got shape {shape}; write an OME-Zarr image, which names its axes"
    )


def _windows(image: Mapping[str, Any], samples: int, dtype: np.dtype[Any]) -> tuple[tuple[float, float] | None, ...]:
    """Range to show of each channel; none for 8 bits, which are used unchanged."""
    omero = image.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if is_plain(dtype) or not isinstance(channels, list) or len(channels) != samples:
        return ()
    windows = [channel.get("window") if isinstance(channel, Mapping) else None for channel in channels]
    return tuple(_window(window, dtype) if isinstance(window, Mapping) else None for window in windows)


def _window(window: Mapping[str, Any], dtype: np.dtype[Any]) -> tuple[float, float] | None:
    low, high = window.get("start"), window.get("end")
    return stated_range(low, high, dtype) if isinstance(low, int | float) and isinstance(high, int | float) else None


def _axis_names(image: Mapping[str, Any], array: Any, label: str) -> list[str]:
    # Versions before 0.4 did not name the axes.
    axes = image.get("axes", list("tczyx")[-len(array.shape) :])
    names = [str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in axes]
    if names.count("y") != 1 or names.count("x") != 1:
        raise ImageError(f"{label}: expected axes with y and x, got {names}; write the image again")
    return names


def _pixel_size(image: Mapping[str, Any], names: list[str]) -> PixelSize | None:
    """Size of a pixel of level 0; None unless both axes have a unit."""
    scale = np.ones(len(names))
    steps = [*image["datasets"][0].get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())]
    for step in steps:
        if step.get("type") == "scale":
            scale *= np.asarray(step["scale"], dtype=np.float64)
    y, x = names.index("y"), names.index("x")
    units = [axis.get("unit") if isinstance(axis, dict) else None for axis in image.get("axes", names)]
    if units[y] is None or units[x] is None:
        return None
    return pixel_size(float(scale[y]), float(scale[x]), str(units[y]), str(units[x]))
