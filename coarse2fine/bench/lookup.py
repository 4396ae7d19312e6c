"""Look-up of refinements on one scene: the nets run once, and any plan's finds follow without running them again.

A window's answer equals that of the exhaustive pass at the same cells, since all convolutions are valid and centred.
So refining a plan finds the exhaustive pass's candidates in the cells that the plan covers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coarse2fine.annotations.read import Annotations
from coarse2fine.bench.cover import chunks_touched, touched
from coarse2fine.bench.results import Point, Quality
from coarse2fine.bench.score import Labelled, against_exhaustive
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.region import Region
from coarse2fine.steps.conclude import conclude
from coarse2fine.steps.plan import Plan, dense_plan
from coarse2fine.steps.refine import Refinement, refine
from coarse2fine.steps.scan import Scan, look
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image

OBJECT_CELL = 16
"""Side, in pixels, of the squares by which the area that objects cover is counted."""


def answer(image: Image, plan: Plan, model: Model, runtime: Runtime) -> Refinement:
    """Refinement of all windows of a plan.

    Raises
    ------
    ImageError
        If something cannot be read.
    KeyboardInterrupt
        If it was cut short, and so is no measurement.
    """
    fine = refine(image, plan, model, runtime, floor=model.threshold)
    if fine.failures:
        raise ImageError(f"{len(fine.failures)} window(s) could not be read, the first: {fine.failures[0]}")
    if len(fine.done) < len(plan):
        raise KeyboardInterrupt
    return fine


class SceneLookup:
    """The exhaustive pass and the scan of one scene, and look-ups from them.

    Parameters
    ----------
    model : Model
        Fitted to annotations.
    image : Image
    truth : Annotations
    runtime : Runtime

    Raises
    ------
    ValueError
        If the model has several bands of object sizes: methods are compared on one plane.

    Attributes
    ----------
    cell_shape : tuple of int
    exhaustive_macs : int
        Multiply-adds of the exhaustive pass, halos included.
    scan : Scan
    reference : tuple of Region
        Finds of the exhaustive pass.
    whole : Quality
        Quality of the exhaustive pass.
    """

    def __init__(self, model: Model, image: Image, truth: Annotations, runtime: Runtime) -> None:
        if model.others:
            raise ValueError(
                f"benchmarks compare methods on one plane: {model.name} has {len(model.bands)} bands of sizes"
            )
        model = at_pixel_size(model, image)
        self.model, self.image, self.truth = model, image, truth
        self._labelled = Labelled(truth, model)
        self.cell_shape = model.cell_shape((image.height, image.width))
        self.exhaustive_macs = dense_plan(self.cell_shape).macs(model.refiner_macs)
        self.candidates = answer(image, dense_plan(self.cell_shape), model, runtime).candidates
        self.scan = look(image, model, runtime)
        self.reference: tuple[Region, ...] = ()
        self.reference = self.regions(self.candidates)
        self.whole = self.quality(self.reference)

    def refine(self, plan: Plan) -> Refinement:
        """The result of `refine` on a plan, with its cost, looked up."""
        return Refinement(
            self.within(plan.covered()), np.arange(len(plan)), plan.macs(self.model.window_macs), failures=()
        )

    def regions(self, candidates: Candidates) -> tuple[Region, ...]:
        """Regions from candidates, in full-resolution pixels, as an analysis returns them."""
        return conclude(candidates, self.model, Scan.none(), self.image, self.model.threshold)

    def quality(self, regions: Sequence[Region]) -> Quality:
        labels = self._labelled.score(regions)
        found = against_exhaustive(regions, self.reference, self.model.geometry.cell)
        return Quality(found, labels.recall, labels.precision)

    def point(self, plan: Plan, scan_macs: int) -> Point:
        """Cost and quality of a plan whose choice took `scan_macs` multiply-adds."""
        fine = self.refine(plan)
        return Point(
            **vars(self.quality(self.regions(fine.candidates))),
            refined=float(plan.covered().mean()),
            chunks=chunks_touched(plan, self.model, self.image),
            share=(scan_macs + fine.macs) / self.exhaustive_macs,
        )

    def covered(self, full_boxes: NDArray[np.float64]) -> float:
        """Share of the squares with a side of `OBJECT_CELL` pixels that boxes (n, 4) touch."""
        step = (OBJECT_CELL, OBJECT_CELL)
        return float(touched(full_boxes.reshape(-1, 4), (self.image.height, self.image.width), step).mean())

    def within(self, covered: NDArray[np.bool_]) -> Candidates:
        """Candidates of the exhaustive pass in the true cells of a map."""
        cells = self.candidates.cells // self.model.geometry.fine
        return self.candidates.take(covered[cells[:, 0], cells[:, 1]])
