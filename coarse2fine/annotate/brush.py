"""Areas painted with a brush: strokes added to an area or erased from it."""

from __future__ import annotations

from typing import Any

import shapely
from shapely.geometry import mapping

from coarse2fine.annotations.polygons import areas_of

_DETAIL = 0.06
"""Tolerance of outlines as a share of the brush's radius."""
_MOST_POINTS = 20_000


def painted(
    area: Any, stroke: list[tuple[float, float]], radius: float, full_shape: tuple[int, int], *, erase: bool
) -> dict[str, Any] | None:
    """An area after a stroke, as a GeoJSON geometry; None if nothing is left of it.

    Parameters
    ----------
    area : Polygon, MultiPolygon or None
        The area before, (x, y) in full-resolution pixels; None for a new one.
    stroke : list of tuple of float
        Positions (x, y) of the brush's centre in full-resolution pixels.
    radius : float
        Radius of the brush in full-resolution pixels.
    full_shape : tuple of int
        Height and width of the image; the area is clipped to it.
    erase : bool
        Whether the stroke is taken away instead of added.

    Raises
    ------
    ValueError
        If the stroke is empty or too long, or the radius is not positive.
    """
    if not 0 < len(stroke) <= _MOST_POINTS:
        raise ValueError(f"expected a stroke of 1 to {_MOST_POINTS:,} positions, got {len(stroke):,}")
    if not 0 < radius <= max(full_shape):
        raise ValueError(f"expected a radius from 0 to the image's {max(full_shape):,} px, got {radius}")
    line = shapely.points(stroke[0]) if len(stroke) == 1 else shapely.linestrings(stroke)
    paint = shapely.simplify(shapely.buffer(line, radius), radius * _DETAIL)
    height, width = full_shape
    paint = shapely.intersection(paint, shapely.box(0, 0, width, height))
    before = shapely.make_valid(area) if area is not None else None
    if before is None:
        after = None if erase else paint
    else:
        after = shapely.difference(before, paint) if erase else shapely.union(before, paint)
    kept = None if after is None else areas_of(after)
    return None if kept is None else dict(mapping(kept))
