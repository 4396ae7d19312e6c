"""Polygons from untrusted coordinates, built and repaired in bounded time."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Point, Polygon

# Coordinates are clipped to this, which is beyond any pixel and exact in float64, so that squares do not overflow.
_FARTHEST = 2.0**40
SMALL_RING = 2000
"""Corners up to which checking a polygon takes milliseconds at worst."""
# Checking takes time by the pairs of edges whose bounds overlap, repairing by the pairs that cross.
_MOST_NEAR, _MOST_CROSSINGS = 100, 2_000
_LOOKED_AT, _PAIRS_AT_ONCE = 4096, 4_000_000


class TangledError(ValueError):
    """A polygon's edges cross too often to be repaired in bounded time."""


def as_geometry(kind: Any, coordinates: Any) -> Point | Polygon | MultiPolygon | list[Point]:
    """Geometry from a GeoJSON type and its coordinates; for a MultiPoint, the list of its points.

    Parameters
    ----------
    kind : str
        Point, MultiPoint, Polygon or MultiPolygon.
    coordinates : list

    Raises
    ------
    ValueError
        If the coordinates are missing, not finite, or do not make such a geometry.
    """
    if not isinstance(coordinates, list | tuple):
        raise ValueError("expected a list")
    if not coordinates:
        raise ValueError("there are none")
    if kind == "Point":
        return Point(_positions([coordinates])[0])
    if kind == "MultiPoint":
        return [Point(position) for position in _positions(coordinates)]
    if kind == "Polygon":
        return _polygon(coordinates)
    return MultiPolygon([_polygon(part) for part in coordinates])


def polygon_of(corners: Any) -> Polygon:
    """Polygon from a ring of corners (x, y), closed or not; raises the errors of `as_geometry`."""
    return _polygon([corners])


def repaired(geometry: Polygon | MultiPolygon) -> Polygon | MultiPolygon | None:
    """Valid geometry of the same area; None if it has no area.

    All that the outermost of crossing rings encloses is inside; loose lines are dropped.

    Raises
    ------
    TangledError
        If the repair would take too long.
    """
    corners = shapely.get_num_coordinates(geometry)
    if corners > SMALL_RING and _pairs(geometry, None, _MOST_NEAR * corners) > _MOST_NEAR * corners:
        raise TangledError(f"has {corners:,} corners that lie across each other")
    if not shapely.is_valid(geometry):
        most = max(_MOST_CROSSINGS, corners)
        if _pairs(geometry, "intersects", most) > most:
            raise TangledError(f"crosses itself more than {most:,} times")
        geometry = areas_of(shapely.make_valid(geometry, method="structure", keep_collapsed=False))
        if geometry is not None and not shapely.is_valid(geometry):  # parts that share an edge
            geometry = shapely.union_all(shapely.get_parts(geometry))
    return None if geometry is None else areas_of(geometry)


def areas_of(geometry: Any) -> Polygon | MultiPolygon | None:
    """The geometry without loose points and lines; None if no polygon is left."""
    if geometry.geom_type == "Polygon":
        return geometry if geometry.area > 0 else None
    parts = shapely.get_parts(shapely.get_parts(geometry))
    polygons = [part for part in parts if part.geom_type == "Polygon" and part.area > 0]
    if len(polygons) == 1:
        return polygons[0]
    return MultiPolygon(polygons) if polygons else None


def _polygon(rings: Any) -> Polygon:
    if not isinstance(rings, list | tuple) or not rings:
        raise ValueError("expected a list of rings")
    shell, *holes = [_ring(ring) for ring in rings]
    return Polygon(shell, holes)


def _ring(ring: Any) -> Any:
    positions = _positions(ring)
    if len(positions) < 3:
        raise ValueError(f"a ring has {len(positions)} corners, expected at least 3")
    return shapely.linearrings(positions)


def _positions(positions: Any) -> NDArray[np.float64]:
    """Positions (x, y) as an array (n, 2); heights are dropped."""
    try:
        found = np.asarray(positions, np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise ValueError("expected pairs of numbers") from None
    if found.ndim != 2 or found.shape[1] < 2:
        raise ValueError("expected pairs of numbers")
    if not np.isfinite(found[:, :2]).all():
        raise ValueError("a coordinate is not a finite number")
    return found[:, :2].clip(-_FARTHEST, _FARTHEST)


def _pairs(geometry: Any, predicate: Literal["intersects"] | None, most: int) -> float:
    """Estimated number of pairs of edges that cross or, without a predicate, whose bounds overlap.

    Neighbours, which share a corner, do not count. At most 4096 random edges are tested; counting ends above `most`.
    """
    edges = _edges(geometry)
    tree = shapely.STRtree(edges)
    order = np.random.default_rng(0).permutation(len(edges))[:_LOOKED_AT]
    looked_at = found = 0
    step = max(1, _PAIRS_AT_ONCE // len(edges))
    while looked_at < len(order):
        some = edges[order[looked_at : looked_at + step]]
        looked_at += len(some)
        found += tree.query(some, predicate=predicate).shape[1]
        per_edge = max(found / looked_at - 3, 0.0)  # itself and two neighbours
        if (looked_at >= 64 or len(order) == looked_at) and per_edge * len(edges) / 2 > most:
            break
        step = max(1, int(_PAIRS_AT_ONCE / max(4 * per_edge, 1000)))
    return max(found / looked_at - 3, 0.0) * len(edges) / 2


def _edges(geometry: Any) -> NDArray[np.object_]:
    rings = shapely.get_rings(shapely.get_parts(geometry))
    corners, owner = shapely.get_coordinates(rings, return_index=True)
    within = owner[:-1] == owner[1:]
    edges: NDArray[np.object_] = shapely.linestrings(np.stack([corners[:-1][within], corners[1:][within]], axis=1))
    return edges
