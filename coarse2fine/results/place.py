"""The refined part of an image as a mask or as polygons, for other engines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from coarse2fine.tiling.writing.atomic import replace_file

# Pixels of a mask along a cell, so that its cells keep their places if its sides do not hold whole cells.
_FINE = 4


def write_mask(
    path: str | os.PathLike[str], refined: NDArray[np.bool_], cell: int, full_shape: tuple[int, int]
) -> Path:
    """Write the refined cells as an image, or as polygons.

    Parameters
    ----------
    path : path
        ``.png``: an image of the same extent at a lower resolution, white where cells were refined, as `mask=` and
        TIAToolbox's ``masks=`` take it. ``.geojson``: polygons in full-resolution pixels, annotations of class
        ``Region*``, as `mask=` and QuPath take them.
    refined : ndarray, bool, (cell height, cell width)
    cell : int
        Side of a cell in full-resolution pixels.
    full_shape : tuple of int
        Height and width of the image.

    Raises
    ------
    ValueError
        If the suffix is another.
    """
    target = Path(path)
    if target.suffix.lower() == ".png":
        replace_file(target, _png(refined, cell, full_shape))
    elif target.suffix.lower() == ".geojson":
        replace_file(target, json.dumps(_polygons(refined, cell, full_shape)).encode())
    else:
        raise ValueError(f"expected a mask's name to end in .png or .geojson, got {target.name!r}")
    return target


def _png(refined: NDArray[np.bool_], cell: int, full_shape: tuple[int, int]) -> bytes:
    pixel = max(1, cell // _FINE)
    counts = [max(1, round(side / pixel)) for side in full_shape]
    rows, columns = (
        (((np.arange(n) + 0.5) * side / n) // cell).astype(np.int64) for n, side in zip(counts, full_shape, strict=True)
    )
    shown = refined[np.ix_(rows, columns)].astype(np.uint8) * 255
    return bytes(cv2.imencode(".png", shown)[1])


def _polygons(refined: NDArray[np.bool_], cell: int, full_shape: tuple[int, int]) -> dict[str, object]:
    """Feature collection of the connected parts."""
    padded = np.pad(refined, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(padded, axis=1)
    (y, x0), (_, x1) = np.nonzero(change == 1), np.nonzero(change == -1)
    height, width = full_shape
    runs = shapely.box(x0 * cell, y * cell, (x1 * cell).clip(max=width), ((y + 1) * cell).clip(max=height))
    parts = shapely.get_parts(shapely.union_all(runs)) if len(runs) else []
    properties = {"objectType": "annotation", "classification": {"name": "Region*"}}
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(part), "properties": properties} for part in parts
    ]
    return {"type": "FeatureCollection", "features": features}
