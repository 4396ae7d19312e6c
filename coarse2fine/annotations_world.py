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

    They are if the file names the image's coordinate reference system. If it names none, they are if most lie outside
    the image as pixels and inside it as world coordinates; and if all lie inside it as longitudes and latitudes,
    which GeoJSON means by itself, or in a system of the image's own, of which the file says that it has no name.

    Parameters
    ----------
    geometries : ndarray, object, (n,)
        (x, y).
    crs : str or None
        What the file names; empty if it says that its system has no name.
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
    if crs and not _same(crs, geo):
        raise AnnotationError(
            f"{name} is in {crs}, but its image is in {system}; export it in {system}, "
            "or in pixels of the image without a member 'crs'"
        )
    converted = _converted(geometries, geo)
    if converted is None or not (crs or _is_world(geometries, converted, crs, geo, full_shape)):
        return geometries, None
    return converted, f"{name}: taken as coordinates in {crs or system}, converted to pixels of the image"


def _is_world(
    geometries: NDArray[np.object_],
    converted: NDArray[np.object_],
    crs: str | None,
    geo: GeoReference,
    full_shape: tuple[int, int] | None,
) -> bool:
    """Whether geometries without a named system are rather world coordinates than pixels."""
    if full_shape is None:
        return False
    share = _share_inside(converted, full_shape)
    likely = geo.unit == "degree" if crs is None else geo.crs is None
    return (likely and share == 1) or (share >= 0.5 > _share_inside(geometries, full_shape))


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
