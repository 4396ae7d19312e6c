"""What a fit learns from: the annotations, and where in the image they are complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import shapely
from shapely.geometry import mapping

from coarse2fine.annotate.store import Feature, is_rejected
from coarse2fine.annotations.annotated import REGION, AnnotationError
from coarse2fine.annotations.polygons import areas_of, as_geometry
from coarse2fine.annotations.read import Annotations, read_annotations
from coarse2fine.fitting.geometry import find_labels, measure


def training_annotations(items: Sequence[Feature], full_shape: tuple[int, int]) -> dict[str, Any]:
    """Annotations to fit on, as GeoJSON.

    Without areas of class ``Region*`` the whole image counts as annotated. With them, only those, and the place of
    each object that is drawn, and of each find that was rejected, elsewhere: there it is known what the pixels show.

    Parameters
    ----------
    items : sequence of dict
        Features, those of rejected finds too.
    full_shape : tuple of int
        Height and width of the image in full-resolution pixels.

    Raises
    ------
    AnnotationError
        If no object is annotated.
    """
    kept = [item for item in items if not is_rejected(item)]
    read = read_annotations({"type": "FeatureCollection", "features": kept}, full_shape=full_shape)
    if not read.objects:
        raise AnnotationError("nothing is drawn yet that a model could learn; draw some objects first")
    known: list[Any] = []
    if read.regions:
        half = object_side(read) / 2
        known += [a.geometry.buffer(half, cap_style="square") if a.is_point else a.geometry for a in read.objects]
        known += [geometry_of(item) for item in items if is_rejected(item)]
    return {"type": "FeatureCollection", "features": [*kept, *map(_region, known)]}


def object_side(annotations: Annotations) -> float:
    """Typical side of the annotated objects in full-resolution pixels; a usual one without objects."""
    labels = find_labels([annotations])
    sizes = measure([annotations], labels, None)
    return float(sizes.nominal)


def geometry_of(item: Feature) -> Any:
    """Geometry of a feature that the store holds, repaired, (x, y) in full-resolution pixels."""
    made = as_geometry(item["geometry"]["type"], item["geometry"]["coordinates"])
    if isinstance(made, list) or made.geom_type == "Point" or made.is_valid:
        return made
    return areas_of(shapely.make_valid(made)) or made.centroid


def _region(geometry: Any) -> Feature:
    properties = {"objectType": "annotation", "classification": {"name": REGION}}
    return {"type": "Feature", "geometry": mapping(geometry), "properties": properties}
