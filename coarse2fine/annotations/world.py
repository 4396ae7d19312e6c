"""Conversion of annotations from world coordinates, as GIS programs export them, to pixels."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from coarse2fine.annotations.annotated import AnnotationError
from coarse2fine.tiling.geometry import GeoReference

LON_LAT = "EPSG:4326"
_MOST_X, _MOST_Y = 180.0, 90.0


def in_pixels(
    geometries: NDArray[np.object_],
    crs: str | None,
    geo: GeoReference | None,
    full_shape: tuple[int, int] | None,
    name: str,
) -> tuple[NDArray[np.object_], str | None]:
    """Convert geometries to full-resolution pixels, if they are in the image's world coordinates.

    They are if the file names the image's coordinate reference system. If it names none, they are if most lie outside
    the image as pixels and inside it as world coordinates; also if all lie inside it either as longitudes and
    latitudes (GeoJSON's default), or in the image's unnamed system when the file states that its own has no name.

    Parameters
    ----------
    geometries : ndarray, object, (n,)
        (x, y).
    crs : str or None
        The system that the file names; empty if it states one without a name.
    geo : GeoReference or None
        The image's.
    full_shape : tuple of int or None
    name : str
        Name of the file, for messages.

    Returns
    -------
    ndarray, object, (n,)
    str or None
        A note if they were converted, or were taken as pixels although the file names a system.

    Raises
    ------
    AnnotationError
        If the file names a system that is not the image's; if it names one, the image has none, and the geometries
        cannot be pixels; if it names none, and they are longitudes and latitudes for an image in a projected system.
    """
    if not len(geometries):
        return geometries, None
    if geo is None:
        return geometries, _as_pixels(geometries, crs, full_shape, name)
    system = geo.crs or "its own system"
    if crs and not _same(crs, geo):
        raise AnnotationError(
            f"{name} is in {crs}, but its image is in {system}; export it in {system}, "
            "or in pixels of the image without a member 'crs'"
        )
    converted = _converted(geometries, geo)
    if converted is None or not (crs or _is_world(geometries, converted, crs, geo, full_shape)):
        if crs is None and geo.unit != "degree" and _is_lon_lat(geometries):
            raise AnnotationError(
                f"{name} seems to hold longitudes and latitudes, which GeoJSON without a member 'crs' does by default: "
                f"no number is beyond {_MOST_X:g} and {_MOST_Y:g}, and as pixels most of it would be smaller than one. "
                f"Its image is in {system}; export it in {system}, or in pixels of the image"
            )
        return geometries, None
    return converted, f"{name}: taken as coordinates in {crs or system}, converted to pixels of the image"


def _is_world(
    geometries: NDArray[np.object_],
    converted: NDArray[np.object_],
    crs: str | None,
    geo: GeoReference,
    full_shape: tuple[int, int] | None,
) -> bool:
    """Whether geometries without a named system are more likely world coordinates than pixels."""
    if full_shape is None:
        return False
    share = _share_inside(converted, full_shape)
    likely = geo.unit == "degree" if crs is None else geo.crs is None
    return (likely and share == 1) or (share >= 0.5 > _share_inside(geometries, full_shape))


def _as_pixels(
    geometries: NDArray[np.object_], crs: str | None, full_shape: tuple[int, int] | None, name: str
) -> str | None:
    """Note on a file for an image without world coordinates; AnnotationError if its geometries cannot be pixels."""
    if crs is None:
        return None
    stated = crs or "a system without a name"
    outside = full_shape is not None and _share_inside(geometries, full_shape) < 0.5
    if outside or (crs == LON_LAT and _is_lon_lat(geometries)):
        raise AnnotationError(
            f"{name} says that it is in {stated}, but its image has no world coordinates, and as pixels most of it "
            f"{'lies outside the image' if outside else 'would be smaller than one'}; export it in pixels of the "
            "image, or use the georeferenced image"
        )
    return f"{name}: it says that it is in {stated}, but its image has no world coordinates: taken as pixels"


def _is_lon_lat(geometries: NDArray[np.object_]) -> bool:
    """Whether all are in the range of longitudes and latitudes, and are unlikely to be pixels.

    They are if most areas would be smaller than a pixel, or several points would all lie within one.
    """
    bounds = shapely.bounds(geometries)
    if (np.abs(bounds[:, [0, 2]]) > _MOST_X).any() or (np.abs(bounds[:, [1, 3]]) > _MOST_Y).any():
        return False
    areas = bounds[shapely.get_type_id(geometries) != shapely.GeometryType.POINT]
    if len(areas):
        return bool(np.median((areas[:, 2:] - areas[:, :2]).max(axis=1)) < 1)
    spread = (bounds[:, 2:].max(axis=0) - bounds[:, :2].min(axis=0)).max()
    return len(np.unique(bounds, axis=0)) > 1 and bool(spread < 1)


def _same(crs: str, geo: GeoReference) -> bool:
    """Whether a named system is the image's; ellipsoids are not distinguished, their difference being too small."""
    return crs == geo.crs or (crs == LON_LAT and geo.unit == "degree")


def _converted(geometries: NDArray[np.object_], geo: GeoReference) -> NDArray[np.object_] | None:
    a, b, c, d, e, f = geo.transform
    matrix = np.array([[a, b], [d, e]], np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-300:
        return None
    inverse = np.linalg.inv(matrix).T
    found: NDArray[np.object_] = shapely.transform(geometries, lambda world: (world - (c, f)) @ inverse)
    return found


def _share_inside(geometries: NDArray[np.object_], full_shape: tuple[int, int]) -> float:
    x0, y0, x1, y1 = shapely.bounds(geometries).T
    height, width = full_shape
    return float(np.mean((x1 >= 0) & (y1 >= 0) & (x0 <= width) & (y0 <= height)))
