"""The finds of a page's model: which of them wait for a decision, and what it is unsure of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from coarse2fine.annotate.fit_worker import RESULT, SUMMARY
from coarse2fine.annotate.store import Feature, is_rejected, label_in
from coarse2fine.annotate.suggest import Evidence, unsureness
from coarse2fine.annotate.training import geometry_of
from coarse2fine.annotations.annotated import IGNORE, REGION
from coarse2fine.region import Region
from coarse2fine.report.viewer_tiles import Tiles
from coarse2fine.results.analysis import Analysis
from coarse2fine.tiling.image import Image

MOST_FINDS = 5000
_SAME_IOU = 0.4
_MOST = 0.5


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model's result on the page's image.

    Parameters
    ----------
    analysis : Analysis
    tiles : Tiles
    threshold : float
        Probability from which the model reports a find; those in `analysis` go down to half of it.
    """

    analysis: Analysis
    tiles: Tiles
    threshold: float

    @classmethod
    def load(cls, folder: Path, image: Image) -> Fitted | None:
        """The last complete fit in a folder; None if there is none that can be read.

        Parameters
        ----------
        folder : Path
            Folder of a `FitJob`.
        image : Image
        """
        try:
            summary = json.loads((folder / SUMMARY).read_text("utf-8"))
            analysis = Analysis.load(folder / RESULT, image)
            return cls(analysis, Tiles(analysis), float(summary["threshold"]))
        except (OSError, ValueError, KeyError, TypeError):  # none, damaged, or of an image of another shape
            return None

    def finds(self, items: Sequence[Feature]) -> list[dict[str, Any]]:
        """Finds without a decision, the least certain first, as JSON values; at most `MOST_FINDS`.

        Parameters
        ----------
        items : sequence of dict
            The annotations and rejected finds: a find that matches one of them is decided.
        """
        regions = self._undecided(items)
        order = np.argsort(-unsureness(_scores(regions), self.threshold), kind="stable")[:MOST_FINDS]
        return [_told(regions[i]) for i in order.tolist()]

    def evidence(self, items: Sequence[Feature]) -> Evidence:
        """What the model is unsure of; see `evidence_of`."""
        return evidence_of(self.analysis, self.threshold, items)

    def _undecided(self, items: Sequence[Feature]) -> list[Region]:
        return undecided(self.analysis.regions, items)


def evidence_of(analysis: Analysis, threshold: float, items: Sequence[Feature]) -> Evidence:
    """What a model is unsure of in an image.

    Parameters
    ----------
    analysis : Analysis
        With finds below the model's threshold too.
    threshold : float
        The model's.
    items : sequence of dict
        The annotations and rejected finds.
    """
    regions = undecided(analysis.regions, items)
    centres = np.array([region.full_centre for region in regions], np.float64).reshape(-1, 2)
    skipped = np.zeros((1, 1), np.float32)
    if analysis.interest.size:
        skipped = np.where(analysis.refined, np.float32(0), analysis.interest)
    return Evidence(centres, _scores(regions), threshold, skipped, analysis.cell)


def undecided(regions: Sequence[Region], items: Sequence[Feature]) -> list[Region]:
    """Finds outside ``Ignore*`` and ``Region*`` areas that match no annotation and no rejected find.

    In a ``Region*`` all objects are drawn: a find there is one of them, or false. A find that lies mostly in a drawn
    object is a part of it.
    """
    taken = _decided(regions, [item for item in items if label_in(item) not in (IGNORE, REGION)])
    done = done_areas(items)
    if done and regions:
        y, x = np.array([region.full_centre for region in regions], np.float64).T
        taken |= shapely.contains_xy(shapely.union_all(done), x, y)
    return [region for region, is_taken in zip(regions, taken.tolist(), strict=True) if not is_taken]


def done_areas(items: Sequence[Feature]) -> list[Any]:
    """Areas that are annotated or ignored, (x, y) in full-resolution pixels."""
    return [geometry_of(item) for item in items if not is_rejected(item) and label_in(item) in (IGNORE, REGION)]


def _decided(regions: Sequence[Region], objects: Sequence[Feature]) -> NDArray[np.bool_]:
    """Regions on which an object decides: their boxes overlap, its point lies within, or it holds most of theirs.

    Classes do not matter: one object has one class, and a person has decided on it. A rejected find holds no others.
    """
    taken = np.zeros(len(regions), bool)
    if not objects or not regions:
        return taken
    bounds = np.array([region.full_box for region in regions], np.float64)
    boxes = shapely.box(bounds[:, 1], bounds[:, 0], bounds[:, 3], bounds[:, 2])
    geometries = np.array([geometry_of(item) for item in objects], dtype=object)
    mine, theirs = shapely.STRtree(geometries).query(boxes, predicate="intersects")
    is_point = np.array([geometry.geom_type == "Point" for geometry in geometries])
    drawn = np.array([not is_rejected(item) for item in objects])
    outlines, area = shapely.envelope(geometries[theirs]), shapely.area(boxes[mine])
    common = shapely.area(shapely.intersection(boxes[mine], outlines))
    same = is_point[theirs] | (common >= _SAME_IOU * (area + shapely.area(outlines) - common))
    part = drawn[theirs] & (shapely.area(shapely.intersection(boxes[mine], geometries[theirs])) > _MOST * area)
    taken[mine[same | part]] = True
    return taken


def _scores(regions: Sequence[Region]) -> NDArray[np.float64]:
    return np.array([region.score for region in regions], np.float64)


def _told(region: Region) -> dict[str, Any]:
    y0, x0, y1, x1 = region.full_box
    told = {"label": region.label, "score": round(region.score, 4), "box": [x0, y0, x1, y1]}
    outline = None if region.outline is None else [[x, y] for y, x in region.outline]
    return told | {"outline": outline}
