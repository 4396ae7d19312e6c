"""OME-Zarr 0.4 and 0.5 images, and plain Zarr arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr

from .errors import ImageError
from .source import Alpha, PixelArray, Source, channel_notes, check_samples, check_size, choose_range

_MARKERS = ("zarr.json", ".zarray", ".zgroup")
_MICRONS = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


def open_zarr(path: Path) -> Source:
    """Open a Zarr directory: the first multiscale image of a group, or an array.

    Raises
    ------
    ImageError
        If the directory is no Zarr, is damaged, or its axes cannot be an image.
    """
    if not any((path / marker).is_file() for marker in _MARKERS):
        raise ImageError(
            f"{path}: expected a Zarr directory (with {', '.join(_MARKERS)}), but it has none of these; "
            "pass an image file or a Zarr"
        )
    try:
        return _open(path)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path}: the Zarr metadata is damaged or of an unknown kind ({type(error).__name__}: {error}); "
            "copy or write it again"
        ) from error


def _open(path: Path) -> Source:
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Array):
        arrays: tuple[Any, ...] = (node,)
        names, mpp = _plain_axes(path, node.shape), None
    else:
        arrays, names, mpp = _multiscale(path, node)
    axes = "".join(name if name in "yxc" else "0" for name in names)
    check_samples(str(path), arrays[0].dtype)
    sizes = []
    for array in arrays:
        height, width, chunk_y, chunk_x = (
            values[axes.index(a)] for values in (array.shape, array.chunks) for a in "yx"
        )
        if array.dtype != arrays[0].dtype or len(array.shape) != len(axes):
            raise ImageError(f"{path}: the levels differ in dtype or axes; write the image again")
        check_size(str(path), height, width, (chunk_y, chunk_x))
        sizes.append((chunk_y, chunk_x))
    samples = arrays[0].shape[axes.index("c")] if "c" in axes else 1
    # Colour with opacity is stored with channels last; separate channel planes are measurements.
    alpha: Alpha = "straight" if samples == 4 and axes.endswith("yxc") else "none"
    value_range, notes = choose_range(arrays, axes, sizes[-1])
    left_out = tuple(
        f"first of {size} planes along axis {name} used"
        for name, size in zip(names, arrays[0].shape, strict=True)
        if name not in ("y", "x", "c") and size > 1
    )
    return Source(
        arrays=cast("tuple[PixelArray, ...]", arrays),
        chunks=tuple(sizes),
        axes=axes,
        format="zarr" if isinstance(node, zarr.Array) else "ome-zarr",
        value_range=value_range,
        alpha=alpha,
        mpp=mpp,
        notes=left_out + channel_notes(samples, alpha) + notes,
    )


def _plain_axes(path: Path, shape: tuple[int, ...]) -> list[str]:
    """Axes of an array without names: the short one of three is the channels."""
    if len(shape) == 2:
        return ["y", "x"]
    if len(shape) == 3 and shape[2] <= 4:
        return ["y", "x", "c"]
    if len(shape) == 3 and shape[0] <= 4:
        return ["c", "y", "x"]
    raise ImageError(
        f"{path}: expected a Zarr array (y, x), (y, x, channels) or (channels, y, x) of up to 4 channels, "
        f"got shape {shape}; write an OME-Zarr image, which names its axes"
    )


def _multiscale(path: Path, group: zarr.Group) -> tuple[tuple[Any, ...], list[str], tuple[float, float] | None]:
    """Levels, axes and pixel size of the first multiscale image of a group."""
    attributes: Mapping[str, Any] = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, Mapping) or not ome.get("multiscales"):
        raise ImageError(f"{path}: the Zarr group has no 'multiscales' metadata; pass the path of an image inside it")
    image: dict[str, Any] = ome["multiscales"][0]
    arrays = tuple(cast("zarr.Array[Any]", group[data["path"]]) for data in image["datasets"])
    arrays = tuple(sorted(arrays, key=lambda array: -math.prod(array.shape)))
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", _default_axes(arrays[0]))]
    names = [str(axis["name"]).lower() for axis in named]
    if names.count("y") != 1 or names.count("x") != 1:
        raise ImageError(f"{path}: expected axes with y and x, got {names}; write the image again")
    return arrays, names, _mpp(image, named, names)


def _default_axes(array: Any) -> list[str]:
    """Axes of versions before 0.4, which did not name them."""
    return list("tczyx")[-len(array.shape) :]


def _mpp(image: dict[str, Any], named: list[dict[str, Any]], names: list[str]) -> tuple[float, float] | None:
    """Microns per pixel (y, x) of level 0; None unless both axes have a unit of length."""
    scale = np.ones(len(names))
    steps = [
        *image["datasets"][0].get("coordinateTransformations", ()),
        *image.get("coordinateTransformations", ()),
    ]
    for step in steps:
        if step.get("type") == "scale":
            scale *= np.asarray(step["scale"], dtype=np.float64)
    sizes = []
    for name in "yx":
        place = names.index(name)
        unit = _MICRONS.get(str(named[place].get("unit", "")))
        if unit is None:
            return None
        sizes.append(float(scale[place]) * unit)
    return sizes[0], sizes[1]
