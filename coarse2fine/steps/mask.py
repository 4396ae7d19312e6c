"""Masks: the cells of an image that are to be analysed."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import box

from coarse2fine.annotations.files import MOST_BYTES
from coarse2fine.annotations.geojson import named_crs
from coarse2fine.annotations.polygons import as_geometry, repaired
from coarse2fine.annotations.world import in_pixels
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.storage.regular import read_regular

MaskSource: TypeAlias = str | os.PathLike[str] | NDArray[np.bool_]

MASK_SUFFIXES = (".geojson", ".geojson.gz", ".json", ".png", ".tif", ".tiff", ".jpg", ".bmp", ".webp", ".zarr")
"""Name endings of masks."""
# Corners of polygons are rounded to 2**-6 of a cell.
_SHIFT = 6
# Largest relative difference in aspect ratio between a mask and its image.
_MOST_SKEW = 0.05


def cells_inside(mask: MaskSource, image: Image, cell: int) -> NDArray[np.bool_]:
    """Cells that overlap a mask.

    Parameters
    ----------
    mask : path or ndarray, bool, (h, w)
        GeoJSON with polygons in full-resolution pixels (x, y), or in the image's own coordinate reference system; or
        an image of the same extent at any resolution, not black in the part to analyse.
    image : Image
    cell : int
        Side of a cell in full-resolution pixels.

    Returns
    -------
    ndarray, bool, (cell height, cell width)

    Raises
    ------
    ImageError, OSError
        If the mask cannot be read.
    ValueError
        If it is no GeoJSON of polygons, is in another coordinate reference system, is of another shape than the
        image, or leaves nothing to analyse.

    Warns
    -----
    UserWarning
        If its polygons are taken as pixels though it names a coordinate reference system: the image has none.
    """
    cell_shape = (ceil_div(image.height, cell), ceil_div(image.width, cell))
    name = "the mask" if isinstance(mask, np.ndarray) else str(mask)
    if isinstance(mask, np.ndarray):
        inside = _from_pixels(np.asarray(mask, np.bool_), image, cell, cell_shape, name)
    elif Path(mask).name.lower().removesuffix(".gz").endswith((".geojson", ".json")):
        inside = _from_polygons(_polygons(Path(mask), image), cell, cell_shape)
    else:
        with open_image(mask, value_range=(0, 1)) as opened:  # any value but 0 counts
            # Only zeros have a mean of zero, so a mask finer than the cells is read at about one pixel a cell.
            factor = max(1, min(opened.height // cell_shape[0], opened.width // cell_shape[1]))
            whole = Box(0, 0, ceil_div(opened.height, factor), ceil_div(opened.width, factor))
            pixels = np.asarray(opened.read_scaled(whole, factor).any(axis=-1))
        inside = _from_pixels(pixels, image, cell, cell_shape, name)
    if not inside.any():
        raise ValueError(f"{name} leaves nothing of {image.name} to analyse; check that they belong together")
    return inside


def _from_pixels(
    pixels: NDArray[np.bool_], image: Image, cell: int, cell_shape: tuple[int, int], name: str
) -> NDArray[np.bool_]:
    """Cells under any of the mask's pixels."""
    scale = pixels.shape[0] / image.height, pixels.shape[1] / image.width
    if abs(scale[0] / scale[1] - 1) > _MOST_SKEW and min(pixels.shape) > 1 / _MOST_SKEW:
        raise ValueError(
            f"{name} is {pixels.shape[1]:,} x {pixels.shape[0]:,}, which is not the shape of {image.name}, "
            f"{image.width:,} x {image.height:,}; a mask has the extent of its image"
        )
    starts = [(np.arange(n) * cell * s).astype(np.int64) for n, s in zip(cell_shape, scale, strict=True)]
    # From one cell's first pixel to the next one's; if cells are finer than pixels, the pixel in which a cell begins.
    rows = np.maximum.reduceat(pixels, starts[0].clip(max=pixels.shape[0] - 1), axis=0)
    return np.maximum.reduceat(rows, starts[1].clip(max=pixels.shape[1] - 1), axis=1)


def _from_polygons(polygons: list[Any], cell: int, cell_shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Cells that intersect a polygon: filled by rasterisation, then tested exactly near the border."""
    inside = np.zeros(cell_shape, np.uint8)
    # Clipped to the image and one cell around it: larger coordinates overflow OpenCV's int32.
    frame = box(-cell, -cell, (cell_shape[1] + 1) * cell, (cell_shape[0] + 1) * cell)
    for polygon in _parts(shapely.intersection(polygons, frame)):
        # The rasteriser's integer coordinates are centres of cells.
        rings = [np.asarray(ring.coords)[:, :2] / cell - 0.5 for ring in (polygon.exterior, *polygon.interiors)]
        cv2.fillPoly(inside, [np.rint(ring * 2**_SHIFT).astype(np.int32) for ring in rings], 1, shift=_SHIFT)
    around = np.ones((3, 3), np.uint8)
    border = cv2.dilate(inside, around) > cv2.erode(inside, around, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    y, x = np.nonzero(border)
    inside[y, x] = 0
    met = shapely.STRtree(polygons).query(
        shapely.box(x * cell, y * cell, (x + 1) * cell, (y + 1) * cell), predicate="intersects"
    )
    inside[y[met[0]], x[met[0]]] = 1
    return inside.astype(bool)


def _polygons(path: Path, image: Image) -> list[Any]:
    """The polygons of a GeoJSON file, valid, in full-resolution pixels."""
    try:
        loaded = json.loads(read_regular(path, MOST_BYTES, unzip=True))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no GeoJSON that can be read ({error}); export the mask again") from error
    found = []
    for place, geometry in _geometries(loaded):
        try:
            found += [repaired(part) for part in _parts([as_geometry(geometry["type"], geometry.get("coordinates"))])]
        except ValueError as error:
            raise ValueError(f"{path}: {place} is no outline that can be used ({error}); draw it again") from error
    polygons = [area for area in found if area is not None]
    if not polygons:
        raise ValueError(f"{path} holds no polygon; expected the outlines of what is to be analysed")
    crs = named_crs(loaded) if isinstance(loaded, dict) else None
    placed, note = in_pixels(np.array(polygons), crs, image.geo, image.shape[:2], str(path))
    if note is not None and image.geo is None:  # no warning if the image's own system was used
        warnings.warn(note, stacklevel=3)
    return _parts(placed)


def _geometries(loaded: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Polygons of features, collections or bare geometries, with their place in the file; the rest is left out."""
    kind = loaded.get("type") if isinstance(loaded, dict) else None
    features = loaded.get("features") if kind == "FeatureCollection" else loaded
    for number, feature in enumerate(features if isinstance(features, list) else [features], 1):
        geometry = feature.get("geometry", feature) if isinstance(feature, dict) else None
        several = geometry.get("geometries") if isinstance(geometry, dict) else None
        for each in several if isinstance(several, list) else [geometry]:
            # Empty coordinates are legal GeoJSON.
            if isinstance(each, dict) and each.get("type") in ("Polygon", "MultiPolygon") and each.get("coordinates"):
                yield f"feature {number}", each


def _parts(geometries: Any) -> list[Any]:
    """Single polygons."""
    parts = shapely.get_parts(shapely.get_parts(geometries)).tolist()
    return [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
