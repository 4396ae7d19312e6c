"""Regions as a GeoDataFrame, for GeoPandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import shapely

from coarse2fine.region import Region
from coarse2fine.results.geojson import world_ring
from coarse2fine.tiling.errors import MissingExtraError
from coarse2fine.tiling.geometry import GeoReference

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


def geodataframe(regions: Sequence[Region], geo: GeoReference | None) -> GeoDataFrame:
    """Regions as polygons with their labels and scores, one row each.

    Parameters
    ----------
    regions : sequence of Region
    geo : GeoReference or None
        Georeference of the image, for world coordinates; None for (x, y) in full-resolution pixels.

    Returns
    -------
    GeoDataFrame
        Columns ``label`` (str), ``score`` (float64) and ``fired`` (str, the features that fired, strongest first), and
        the outlines, or boxes, as ``geometry``. Its ``crs`` is the image's; None in pixels, or if the image defines its
        own.

    Raises
    ------
    MissingExtraError
        If GeoPandas is not installed (extra ``geopandas``).
    """
    try:
        import geopandas  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingExtraError("geopandas", "a GeoDataFrame", "geopandas") from error
    columns = {
        "label": [region.label for region in regions],
        "score": [float(region.score) for region in regions],
        "fired": ["; ".join(region.fired) for region in regions],
    }
    rings = [[(x, y) for y, x in region.full_corners] if geo is None else world_ring(region, geo) for region in regions]
    crs = None if geo is None else geo.crs
    frame: GeoDataFrame = geopandas.GeoDataFrame(columns, geometry=[shapely.Polygon(ring) for ring in rings], crs=crs)
    return frame.astype({"label": "str", "score": "float64", "fired": "str"})
