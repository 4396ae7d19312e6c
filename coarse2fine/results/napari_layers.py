"""An analysis as layers of napari, without importing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from coarse2fine.region import Region
from coarse2fine.results.colours import label_colours
from coarse2fine.tiling.image import Image

Layer: TypeAlias = tuple[Any, dict[str, Any], str]
"""Data, arguments and type of a layer: napari's LayerDataTuple."""

_CORNER = -0.5
"""Position of the image's upper left corner: napari counts from the centre of the first pixel."""


def image_layer(image: Image) -> Layer:
    """The image, with its stored levels, read when they are shown."""
    levels = [da.from_array(image.array(n)) for n in range(len(image.levels))]
    if image.channels == 1:
        levels = [level[..., 0] for level in levels]
    several = len(levels) > 1
    name = {"name": image.name, "rgb": image.channels == 3, "multiscale": several}
    return levels if several else levels[0], {**name, "contrast_limits": (0, 255)}, "image"


def cells_layers(interest: NDArray[np.float32], refined: NDArray[np.bool_], cell: int) -> list[Layer]:
    """Maps of interest, if there was a scan, and of refined cells, each at its place over the image.

    Parameters
    ----------
    interest : ndarray, float32, (cell height, cell width)
        May be empty.
    refined : ndarray, bool, (cell height, cell width)
    cell : int
        Side of a cell in full-resolution pixels.
    """
    place = {"scale": (cell, cell), "translate": (cell / 2 + _CORNER,) * 2}
    seen = {"colormap": "inferno", "blending": "additive", "opacity": 0.6, "contrast_limits": (0.0, 1.0)}
    layers: list[Layer] = []
    if interest.size:
        layers.append((interest, {"name": "interest", **seen, **place}, "image"))
    layers.append((refined.astype(np.uint8), {"name": "refined", "opacity": 0.3, "visible": False, **place}, "labels"))
    return layers


def regions_layer(regions: Sequence[Region]) -> Layer:
    """Outlines or boxes of the finds as shapes, in the colours of their classes; labels and scores are features."""
    of_class = label_colours(region.label for region in regions)
    colours = [[*(value / 255 for value in of_class[region.label]), 1.0] for region in regions]
    drawn = {
        "name": "finds",
        "shape_type": "polygon",
        "face_color": "transparent",
        "edge_color": np.array(colours).reshape(-1, 4) if regions else "white",
        "features": {
            "label": [region.label for region in regions],
            "score": np.array([region.score for region in regions], np.float64),
        },
        "ndim": 2,
    }
    return [np.array(region.full_corners) + _CORNER for region in regions], drawn, "shapes"
