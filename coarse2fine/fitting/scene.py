"""Training targets: annotations drawn on grids of cells."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotatedArea, AnnotationError, Annotations
from coarse2fine.refiners.protocol import Label
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image

# Side in fine cells of the square parts in which scenes are held out, sampled and refined.
PART = 64
# A cell whose centre lies this near to an object's centre (in cells, or as a share of the object's smaller side) is
# positive; one within the second distance does not count. At least one cell centre is within 0.71 cells of any point.
_POSITIVE, _POSITIVE_SHARE = 0.75, 0.2
_NEAR, _NEAR_SHARE = 1.5, 0.5
# Share of the objects that may be left out unless the caller has chosen the resolution.
_MOST_LOST = 0.2


@dataclass(frozen=True)
class Targets:
    """Training targets of a block of cells; see `coarse2fine.models.box_head.detection_loss`.

    Parameters
    ----------
    classes, valid : ndarray, float32, (k, h, w)
    boxes : ndarray, float32, (4, h, w)
    boxed : ndarray, float32, (h, w)
    """

    classes: NDArray[np.float32]
    valid: NDArray[np.float32]
    boxes: NDArray[np.float32]
    boxed: NDArray[np.float32]


def _digest(annotations: Annotations) -> str:
    """Digest of all annotations."""
    digest = hashlib.sha256()
    for each in annotations.objects:
        digest.update(each.label.encode() + each.geometry.wkb)
    for geometry in (*annotations.ignored, None, *annotations.regions):
        digest.update(b"|" if geometry is None else geometry.wkb)
    return digest.hexdigest()


class Scene:
    """An image with its annotations on the grid of fine cells.

    Parameters
    ----------
    image : Image
    annotations : Annotations
    labels : sequence of Label
        The classes; annotations of other classes are left out.
    fine_cell : int
        Side of a fine cell in full-resolution pixels.
    largest, smallest : float
        Size limits in full-resolution pixels: objects whose smaller side exceeds `largest`, or whose side (the root of
        the bounding box's area) is below `smallest`, are left out; their cells count neither as positive nor negative.
    nominal : float
        Side given to annotations that are points, in full-resolution pixels.
    """

    def __init__(
        self,
        image: Image,
        annotations: Annotations,
        labels: Sequence[Label],
        *,
        fine_cell: int,
        largest: float,
        smallest: float = 0.0,
        nominal: float,
    ) -> None:
        self.image = image
        self.labels = tuple(labels)
        self.fine_cell = fine_cell
        self.cell_shape = (ceil_div(image.height, fine_cell), ceil_div(image.width, fine_cell))
        self.part_shape = (ceil_div(self.cell_shape[0], PART), ceil_div(self.cell_shape[1], PART))
        self.held = np.zeros(self.part_shape, bool)
        index = {label.name: i for i, label in enumerate(labels)}
        kinds = [label.kind for label in labels]
        known = [a for a in annotations.objects if a.label in index]
        objects = [a for a in known if kinds[index[a.label]] == "object"]
        bounds = np.array([a.full_bounds for a in objects], np.float64).reshape(-1, 4)
        size = bounds[:, 2:] - bounds[:, :2]
        points = np.array([a.is_point for a in objects], bool)
        # At least one pixel, so that the logarithm is defined for degenerate annotations.
        self.size = np.where(points[:, None], nominal, np.maximum(size, 1.0))
        self.centre = (bounds[:, :2] + bounds[:, 2:]) / 2
        self.label = np.array([index[a.label] for a in objects], np.int64)
        self.names = tuple(a.own_label or a.label for a in objects)
        self.too_large = self.size.min(axis=1, initial=np.inf) > largest
        self.fits = ~self.too_large & (self.size.prod(axis=1) >= smallest**2)
        self._areas = [(index[a.label], a.geometry) for a in known if kinds[index[a.label]] == "area"]
        self.annotated, self.has_regions = AnnotatedArea(annotations).contains, bool(annotations.regions)
        self.digest = _digest(annotations)
        for _, geometry in self._areas:
            shapely.prepare(geometry)

    def fine_centres(self, cell_box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Full-resolution (y, x) of the centres of a block's cells, flattened in raster order."""
        y = (np.arange(cell_box.y0, cell_box.y1) + 0.5) * self.fine_cell
        x = (np.arange(cell_box.x0, cell_box.x1) + 0.5) * self.fine_cell
        gy, gx = np.meshgrid(y, x, indexing="ij")
        return gy.ravel(), gx.ravel()

    def known(self, cell_box: Box, *, held: bool = False) -> NDArray[np.bool_]:
        """Cells of a block that lie in the image, are annotated, and are held out (or not, as `held` says); (h, w)."""
        ys = np.arange(cell_box.y0, cell_box.y1)
        xs = np.arange(cell_box.x0, cell_box.x1)
        inside = ((ys >= 0) & (ys < self.cell_shape[0]))[:, None] & ((xs >= 0) & (xs < self.cell_shape[1]))[None]
        parts = self.held[
            np.ix_(ys.clip(0, self.cell_shape[0] - 1) // PART, xs.clip(0, self.cell_shape[1] - 1) // PART)
        ]
        known: NDArray[np.bool_] = inside & (parts == held)
        return known & self.annotated(*self.fine_centres(cell_box)).reshape(known.shape)

    def trains_at(self, full_y: NDArray[np.float64], full_x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Points of a grid, in full-resolution pixels, that lie in the image, are annotated and are not held out."""
        inside_y, inside_x = (
            (at >= 0) & (at < size) for at, size in ((full_y, self.image.height), (full_x, self.image.width))
        )
        rows, columns = (
            (at // (self.fine_cell * PART)).astype(int).clip(0, count - 1)
            for at, count in zip((full_y, full_x), self.part_shape, strict=True)
        )
        trains: NDArray[np.bool_] = inside_y[:, None] & inside_x[None] & ~self.held[np.ix_(rows, columns)]
        y, x = np.meshgrid(full_y, full_x, indexing="ij")
        return trains & self.annotated(y.ravel(), x.ravel()).reshape(trains.shape)

    def draw(self, cell_box: Box, *, held: bool = False) -> Targets:
        """Targets of a block of fine cells; only cells that are not held out count (or, with `held`, only those)."""
        shape = (cell_box.height, cell_box.width)
        classes = np.zeros((len(self.labels), *shape), np.float32)
        known = self.known(cell_box, held=held)
        valid = np.repeat(known[None].astype(np.float32), len(classes), axis=0)
        boxes = np.zeros((4, *shape), np.float32)
        boxed = np.zeros(shape, np.float32)
        for index, geometry in self._areas:
            y, x = self.fine_centres(cell_box)
            classes[index][shapely.contains_xy(geometry, x, y).reshape(shape)] = 1
        for i in self._nearby(cell_box):
            self._draw_object(int(i), cell_box, known, Targets(classes, valid, boxes, boxed))
        classes *= valid
        return Targets(classes, valid, boxes, boxed * valid.max(axis=0))

    def _nearby(self, cell_box: Box) -> NDArray[np.intp]:
        """Objects that may touch a block, the largest first, so that smaller ones are drawn over them."""
        full = cell_box.scale(self.fine_cell)
        reach = np.maximum(self.size * _NEAR_SHARE, _NEAR * self.fine_cell)
        low, high = self.centre - reach, self.centre + reach
        touching = np.all((high >= (full.y0, full.x0)) & (low < (full.y1, full.x1)), axis=1)
        rows = np.flatnonzero(touching)
        return rows[np.argsort(-self.size[rows].prod(axis=1), kind="stable")]

    def _draw_object(self, i: int, cell_box: Box, known: NDArray[np.bool_], into: Targets) -> None:
        classes, valid = into.classes, into.valid
        centre = self.centre[i] / self.fine_cell - (cell_box.y0, cell_box.x0)
        size = self.size[i] / self.fine_cell
        near = np.maximum(_NEAR, size * _NEAR_SHARE)
        y0, x0 = np.floor(centre - near).astype(int).clip(0)
        y1, x1 = np.minimum(np.ceil(centre + near).astype(int), classes.shape[1:])
        if y1 <= y0 or x1 <= x0:
            return
        dy = centre[0] - (np.arange(y0, y1)[:, None] + 0.5)
        dx = centre[1] - (np.arange(x0, x1)[None] + 0.5)
        label, view = self.label[i], (slice(y0, y1), slice(x0, x1))
        around = ((dy / near[0]) ** 2 + (dx / near[1]) ** 2) <= 1
        undecided = around & (classes[:, y0:y1, x0:x1].max(axis=0) == 0)
        valid[label][view][undecided] = 0
        if not self.fits[i]:
            return
        core = np.hypot(dy, dx) <= max(_POSITIVE, _POSITIVE_SHARE * float(size.min()))
        classes[:, y0:y1, x0:x1][:, core] = 0
        classes[label][view][core] = 1
        valid[label][view][core] = known[view][core]
        row, column = np.nonzero(core)
        into.boxes[0][view][core] = dy[row, 0]
        into.boxes[1][view][core] = dx[0, column]
        into.boxes[2:, y0:y1, x0:x1][:, core] = np.log(size)[:, None]
        into.boxed[view][core] = 1


def is_held(scene: Scene) -> NDArray[np.bool_]:
    """Which objects of a scene have their centre in a held-out part; (n,)."""
    y, x = (scene.centre / scene.fine_cell // PART).astype(int).T
    held: NDArray[np.bool_] = scene.held[y.clip(0, scene.part_shape[0] - 1), x.clip(0, scene.part_shape[1] - 1)]
    return held


def part_of(target: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
    """A block of a map of cells, NaN outside the map; (h, w)."""
    block = np.full((box.height, box.width), np.nan, np.float32)
    inner = box.intersect(Box(0, 0, *target.shape))
    if inner is not None:
        block[inner.shift(-box.y0, -box.x0).slices] = target[inner.slices]
    return block


def pooled(
    target: NDArray[np.float32], known: NDArray[np.bool_], ratio: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pool targets to larger cells: the maximum over the cells within, and where that is known.

    Parameters
    ----------
    target : ndarray, float32, (ratio * h, ratio * w)
        NaN where the refine net did not run.
    known : ndarray, bool, (ratio * h, ratio * w)
    ratio : int

    Returns
    -------
    target : ndarray, float32, (h, w)
    known : ndarray, bool, (h, w)
        Larger cells of which all cells within are known.
    """
    shape = (target.shape[0] // ratio, ratio, target.shape[1] // ratio, ratio)
    use = known & ~np.isnan(target)
    value = np.where(use, target, 0).reshape(shape).max(axis=(1, 3))
    return value.astype(np.float32), np.asarray(use.reshape(shape).all(axis=(1, 3)))


@dataclass(frozen=True)
class LeftOut:
    """Number of annotated objects of one class, and how many are left out.

    Parameters
    ----------
    label : str
    objects, too_large, too_small : int
    """

    label: str
    objects: int
    too_large: int
    too_small: int

    @property
    def count(self) -> int:
        """Number of objects left out."""
        return self.too_large + self.too_small

    def __str__(self) -> str:
        parts = ((self.too_large, "too large"), (self.too_small, "too small"))
        why = " and ".join(f"{count:,} {word}" for count, word in parts if count)
        return f"{self.count:,} of {self.objects:,} {self.label} ({why})"


def _refuse(lost: Sequence[LeftOut], largest: float, smallest: float, *, whole: bool, strict: bool) -> None:
    """Raise, unless the resolution is the caller's own choice and some objects are left."""
    if not strict and not whole:
        return
    raise AnnotationError(
        f"too many objects would be left out: {'; '.join(map(str, lost))}. At this resolution objects must have "
        f"{smallest:,.0f} to {largest:,.0f} px. Annotate more objects of these sizes: 20 of similar size get a plane "
        "of their own if you give no geometry. Or mark them Ignore*"
    )
