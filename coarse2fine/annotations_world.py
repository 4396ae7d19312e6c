"""Annotations in an image's world coordinates, brought into its pixels; GIS programs export them so."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from coarse2fine.annotated import AnnotationError
from coarse2fine.tiling.geometry import GeoReference

LON_LAT = "EPSG:4326"


def in_pixels(
    geometries: NDArray[np.object_],
    crs: str | None,
    geo: GeoReference | None,
    full_shape: tuple[int, int] | None,
    name: str,
) -> tuple[NDArray[np.object_], str | None]:
    """Bring geometries into full-resolution pixels, if they are in the image's world coordinates.

    They are if the file names a coordinate reference system; or, as there is GeoJSON that names none, if most lie
    outside the image as pixels and inside it as world coordinates.

    Parameters
    ----------
    geometries : ndarray, object, (n,)
        (x, y).
    crs : str or None
        What the file names.
    geo : GeoReference or None
        The image's.
    full_shape : tuple of int or None
    name : str
        Of the file, for messages.

    Returns
    -------
    ndarray, object, (n,)
    str or None
        A note, if they were converted.

    Raises
    ------
    AnnotationError
        If the file names a system that is not the image's.
    """
    if geo is None or not len(geometries):
        return geometries, None
    system = geo.crs or "its own system"
    if crs is not None and not _same(crs, geo):
        raise AnnotationError(
            f"{name} is in {crs}, but its image is in {system}; export it in {system}, "
            "or in pixels of the image without a member 'crs'"
        )
    if crs is None and (full_shape is None or _share_inside(geometries, full_shape) >= 0.5):
        return geometries, None
    converted = _converted(geometries, geo)
    if converted is None or (crs is None and full_shape and _share_inside(converted, full_shape) < 0.5):
        return geometries, None
    return converted, f"{name}: taken as coordinates in {crs or system}, converted to pixels of the image"


def _same(crs: str, geo: GeoReference) -> bool:
    """Longitudes and latitudes of different ellipsoids differ by less than what can be annotated."""
    return crs == geo.crs or (crs == LON_LAT and geo.unit == "degree")


def _converted(geometries: NDArray[np.object_], geo: GeoReference) -> NDArray[np.object_] | None:
    a, b, c, d, e, f = geo.transform
    matrix = np.array([[a, b], [d, e]], np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-300:
        return None
    inverse = np.linalg.inv(matrix).T

    def to_pixels(world: NDArray[np.float64]) -> Any:
        return (world - (c, f)) @ inverse

    found: NDArray[np.object_] = shapely.transform(geometries, to_pixels)
    return found


def _share_inside(geometries: NDArray[np.object_], full_shape: tuple[int, int]) -> float:
    x0, y0, x1, y1 = shapely.bounds(geometries).T
    height, width = full_shape
    return float(np.mean((x1 >= 0) & (y1 >= 0) & (x0 <= width) & (y0 <= height)))
