"""OME-Zarr 0.4 and 0.5 images, and plain Zarr arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import zarr

from .errors import ImageError
from .geometry import PixelSize, pixel_size
from .samples import MAX_CHUNK_PIXELS, Alpha, PixelArray, check_samples, check_size, choose_range
from .source import Source
from .storage import Keys
from .tensor_store import TensorStoreArray
from .zarr_array import ChunkedArray, UnsupportedError, plan_of
from .zarr_store import FetchStore

_AXES = {"channel": "c", "channels": "c", "band": "c", "bands": "c"}

MARKERS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def open_zarr(keys: Keys, label: str, *, folder: str | None = None) -> Source | None:
    """Open a Zarr: the first multiscale image of a group, or an array.

    Parameters
    ----------
    keys : Keys
        The Zarr's files.
    label : str
        Path or address, for messages.
    folder : str, optional
        Path of a local Zarr whose chunks tensorstore shall read.

    Returns
    -------
    Source, or None where there is no Zarr

    Raises
    ------
    ImageError
        If it is damaged, or its axes cannot be an image.
    """
    if all(_get(keys, marker) is None for marker in MARKERS):
        keys.get(MARKERS[0])  # says so where reading is not permitted
        return None
    try:
        return _open(keys, label, folder)
    except (ImageError, OSError):
        raise
    except Exception as error:
        raise ImageError(
            f"{label}: the Zarr metadata is damaged or of an unknown kind ({type(error).__name__}: {error}); "
            "copy or write it again"
        ) from error


def _open(keys: Keys, label: str, folder: str | None) -> Source:
    metadata = _metadata(keys, "")
    image: dict[str, Any] | None = None
    if _is_array(metadata):
        arrays: tuple[Any, ...] = (_array(keys, "", metadata, folder),)
        names = _stored_names(metadata, len(arrays[0].shape)) or _plain_axes(label, arrays[0].shape)
    else:
        image, prefix = _multiscale(keys, metadata, label)
        paths = [f"{prefix}{level['path']}/" for level in image["datasets"]]
        arrays = tuple(_array(keys, path, _metadata(keys, path), folder) for path in paths)
        order = sorted(range(len(arrays)), key=lambda i: -math.prod(arrays[i].shape))
        arrays = tuple(arrays[i] for i in order)
        image = {**image, "datasets": [image["datasets"][i] for i in order]}
        names = _axis_names(image, arrays[0], label)
    axes = "".join(name if name in "yxc" else "0" for name in names)
    sizes = _chunk_sizes(arrays, axes, label)
    # Colour with opacity is stored with channels last; separate channel planes are measurements.
    alpha: Alpha = "straight" if _samples(arrays[0], axes) == 4 and axes.endswith("yxc") else "none"
    value_range, notes = choose_range(arrays, axes, sizes[-1])
    return Source(
        arrays=cast("tuple[PixelArray, ...]", arrays),
        chunks=sizes,
        axes=axes,
        format="zarr" if image is None else "ome-zarr",
        value_range=value_range,
        range_notes=notes,
        alpha=alpha,
        pixel_size=None if image is None else _pixel_size(image, names),
        notes=tuple(
            f"first of {size} planes along axis {name} used"
            for name, size in zip(names, arrays[0].shape, strict=True)
            if name not in ("y", "x", "c") and size > 1
        ),
    )


def _metadata(keys: Keys, prefix: str) -> dict[str, Any]:
    """Metadata of an array or a group, of either version, with its attributes."""
    text = _get(keys, f"{prefix}zarr.json")
    if text is not None:
        return cast("dict[str, Any]", json.loads(text))
    attributes = json.loads(_get(keys, f"{prefix}.zattrs") or b"{}")
    array = _get(keys, f"{prefix}.zarray")
    return {**(json.loads(array) if array is not None else {}), "attributes": attributes}


def _get(keys: Keys, key: str) -> bytes | None:
    """Read a value that may be missing; of such, some servers say that reading is not permitted."""
    try:
        return keys.get(key)
    except PermissionError:
        return None


def _is_array(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get("node_type") == "array" or "chunks" in metadata)


def _array(keys: Keys, prefix: str, metadata: Mapping[str, Any], folder: str | None) -> Any:
    """One array: by tensorstore where it shall, by its chunks where they can be read, else by zarr-python."""
    if not _is_array(metadata):
        raise ValueError(f"there is no array '{prefix.rstrip('/')}'")
    if folder is not None:
        return TensorStoreArray(f"{folder}/{prefix}", metadata)
    try:
        return ChunkedArray(keys, prefix, plan_of(metadata))
    except (UnsupportedError, KeyError, TypeError, ValueError):
        return zarr.open_array(store=FetchStore(keys.get), path=prefix.rstrip("/"), mode="r")


def _chunk_sizes(arrays: tuple[Any, ...], axes: str, label: str) -> tuple[tuple[int, int], ...]:
    """Height and width of the chunks of each level, which must agree in all else."""
    check_samples(label, arrays[0].dtype)
    sizes = []
    for array in arrays:
        if array.dtype != arrays[0].dtype or len(array.shape) != len(axes):
            raise ImageError(f"{label}: the levels differ in dtype or axes; write the image again")
        if _samples(array, axes) != _samples(arrays[0], axes):
            raise ImageError(f"{label}: the levels differ in their number of channels; write the image again")
        height, width, chunk_y, chunk_x = (
            values[axes.index(a)] for values in (array.shape, array.chunks) for a in "yx"
        )
        check_size(label, height, width, (chunk_y, chunk_x))
        if 0 in (*array.shape, *array.chunks):
            raise ImageError(
                f"{label}: the array is empty (shape {array.shape}, chunks {array.chunks}); write the image again"
            )
        if math.prod(array.chunks) > MAX_CHUNK_PIXELS:
            raise ImageError(
                f"{label}: one stored chunk is {' x '.join(map(str, array.chunks))} samples, more than the limit of "
                f"{MAX_CHUNK_PIXELS}; the metadata is damaged, or the image should be written again in smaller chunks"
            )
        sizes.append((chunk_y, chunk_x))
    return tuple(sizes)


def _samples(array: Any, axes: str) -> int:
    """Samples of a pixel."""
    return int(array.shape[axes.index("c")]) if "c" in axes else 1


def _stored_names(metadata: Mapping[str, Any], axes: int) -> list[str]:
    """Names of the axes that an array has itself, by Zarr 3 or by xarray; none where they do not name an image."""
    found = metadata.get("dimension_names") or metadata.get("attributes", {}).get("_ARRAY_DIMENSIONS") or ()
    names = [_AXES.get(str(name).lower(), str(name).lower()) for name in found]
    return names if len(names) == axes and all(names.count(axis) == 1 for axis in "yx") and names.count("c") < 2 else []


def _plain_axes(label: str, shape: tuple[int, ...]) -> list[str]:
    """Axes of an array without names: the short one of three is the channels."""
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


def _multiscale(keys: Keys, group: Mapping[str, Any], label: str) -> tuple[dict[str, Any], str]:
    """Metadata of the first multiscale image of a group, and where its levels lie."""
    attributes = group.get("attributes", {})
    ome, prefix = attributes.get("ome", attributes), ""
    if isinstance(ome, Mapping) and "bioformats2raw.layout" in ome:  # a folder of images, numbered from 0
        attributes, prefix = _metadata(keys, "0/").get("attributes", {}), "0/"
        ome = attributes.get("ome", attributes)
    if not isinstance(ome, Mapping) or not ome.get("multiscales"):
        raise ImageError(f"{label}: the Zarr group has no 'multiscales' metadata; pass the path of an image inside it")
    return ome["multiscales"][0], prefix


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
