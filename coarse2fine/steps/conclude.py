"""Regions in full-resolution pixels from the candidates of the refiner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.firing import NO_FEATURE, feature_name
from coarse2fine.refiners.suppress import clusters, kept
from coarse2fine.region import Region
from coarse2fine.steps.scan import Scan
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.image import Image

# Cells: a window is chosen by the sum over its cells, so the feature may have fired near the find, not in its cell.
_NEARBY = 2


def conclude(candidates: Candidates, model: Model, scan: Scan, image: Image, threshold: float) -> tuple[Region, ...]:
    """Regions from the cells in which the refiner found something, highest score first.

    Parameters
    ----------
    candidates : Candidates
        Each fine cell once, in raster order.
    model : Model
    scan : Scan
        Gives the features that fired.
    image : Image
    threshold : float
        Probability from which a find counts.
    """
    sure = candidates.take(candidates.scores >= threshold)
    width = ceil_div(image.width, model.geometry.fine_cell)
    area = model.areas[sure.labels]
    objects = model.refiner.suppress(sure.take(~area))
    regions = _objects(objects, model, scan, image) + _areas(sure.take(area), model, scan, image, width)
    return tuple(sorted(regions, key=lambda r: (-r.score, r.full_box)))


def once(bands: Sequence[tuple[Region, ...]], model: Model) -> tuple[Region, ...]:
    """The finds of all bands, each object once: of several bands' finds of one object the best remains.

    Finds of several experts all remain.

    Parameters
    ----------
    bands : sequence of tuple of Region
        The finds of each band, in which each object is already once.
    model : Model
    """
    if len(bands) == 1:
        return bands[0]
    rows = [(region, i) for i, band in enumerate(bands) for region in band]
    every = sorted(rows, key=lambda row: (-row[0].score, row[0].full_box))
    regions, home = [region for region, _ in every], np.array([i for _, i in every], np.int64)
    if model.output:
        return tuple(regions)
    areas = {label.name for label in model.labels if label.kind == "area"}
    number = {name: i for i, name in enumerate(sorted({r.label for r in regions}))}
    area = np.array([r.label in areas for r in regions], bool)
    boxes = np.array([r.full_box for r in regions], np.float32).reshape(-1, 4)
    boxes /= model.geometry.fine_cell
    table = Candidates(
        cells=boxes[:, :2].astype(np.int32),
        scores=np.array([r.score for r in regions], np.float32),
        labels=np.array([number[r.label] for r in regions], np.int16),
        boxes=boxes,
        nodes=np.zeros(len(regions), np.int32),
    )
    keep = np.ones(len(regions), bool)
    keep[~area] = kept(table.take(~area), band=home[~area])
    return tuple(region for region, stays in zip(regions, keep.tolist(), strict=True) if stays)


def _objects(found: Candidates, model: Model, scan: Scan, image: Image) -> list[Region]:
    full = found.boxes.astype(np.float64) * model.geometry.fine_cell
    high = np.array([image.height, image.width] * 2)
    full = np.clip(full, 0, high)
    solid = np.all(full[:, 2:] - full[:, :2] > 0, axis=1)
    names = _fired(scan, found.cells // model.geometry.fine)
    outlines = (_ring(corners, model.geometry.fine_cell, high) for corners in found.outlines())
    return [
        Region(model.labels[label].name, min(score, 1.0), (y0, x0, y1, x1), ring, fired, model.refiner.route(node))
        for label, score, (y0, x0, y1, x1), fired, node, ok, ring in zip(
            found.labels.tolist(),
            found.scores.tolist(),
            full.tolist(),
            names,
            found.nodes.tolist(),
            solid.tolist(),
            outlines,
            strict=True,
        )
        if ok
    ]


def _ring(
    corners: NDArray[np.float32], fine_cell: int, high: NDArray[np.int64]
) -> tuple[tuple[float, float], ...] | None:
    """An outline in full-resolution pixels, within the image; None if there is none."""
    if len(corners) < 3:
        return None
    full = np.clip(corners.astype(np.float64) * fine_cell, 0, high[:2])
    full = full[np.any(full != np.roll(full, 1, axis=0), axis=1)]
    return tuple((y, x) for y, x in full.tolist()) if len(full) > 2 else None


def _areas(found: Candidates, model: Model, scan: Scan, image: Image, width: int) -> list[Region]:
    """Connected cells as polygons, with the mean score of their cells and their most frequent label."""
    if not len(found):
        return []
    reach = model.refiner.reach
    group = clusters(found, width, reach=reach)
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    best = np.array([rows[np.argmax(found.scores[rows])] for rows in parts])
    names = _fired(scan, found.cells[best] // model.geometry.fine)
    regions = []
    for rows, node, fired in zip(parts, found.nodes[best].tolist(), names, strict=True):
        outline = _outline(found.cells[rows], model.geometry.fine_cell, image, reach - 1)
        y, x = zip(*outline, strict=True)
        score = float(found.scores[rows].mean())
        label = model.labels[int(np.bincount(found.labels[rows]).argmax())].name
        route = model.refiner.route(node)
        regions.append(Region(label, min(score, 1.0), (min(y), min(x), max(y), max(x)), outline, fired, route))
    return regions


def _outline(cells: NDArray[np.int32], cell: int, image: Image, gap: int) -> tuple[tuple[float, float], ...]:
    """Outer border of cells, with a rim that joins cells up to `gap` apart, in full-resolution pixels."""
    y, x = cells.T.astype(np.float64) * cell
    # A pixel more than half the gap: squares that would only touch at a corner are joined too.
    rim = gap * cell / 2 + 1 if gap else 0
    whole = shapely.union_all(shapely.box(x - rim, y - rim, x + cell + rim, y + cell + rim))
    whole = shapely.intersection(whole, shapely.box(0, 0, image.width, image.height))
    ring = whole.simplify(0).exterior.coords[:-1]
    return tuple((float(b), float(a)) for a, b in ring)


def _fired(scan: Scan, cells: NDArray[np.int32]) -> list[tuple[str, ...]]:
    """Names of the features that fired for each cell: those of the most interesting cell within `_NEARBY` cells."""
    if not scan.fired.size:
        return [()] * len(cells)
    best = np.full(len(cells), -1.0, np.float32)
    names = np.full((len(cells), scan.fired.shape[-1]), NO_FEATURE, np.uint8)
    for dy, dx in np.ndindex(2 * _NEARBY + 1, 2 * _NEARBY + 1):
        y, x = cells[:, 0] + dy - _NEARBY, cells[:, 1] + dx - _NEARBY
        inside = (y >= 0) & (x >= 0) & (y < scan.interest.shape[0]) & (x < scan.interest.shape[1])
        interest = np.where(inside, scan.interest[np.where(inside, y, 0), np.where(inside, x, 0)], -1.0)
        better = interest > best
        best[better] = interest[better]
        names[better] = scan.fired[y[better], x[better]]
    return [tuple(feature_name(f) for f in row if f != NO_FEATURE) for row in names.tolist()]
