"""Resolutions of a model's planes, and the stages of its scan."""

from __future__ import annotations

from dataclasses import dataclass

from coarse2fine.models.base import Base
from coarse2fine.models.firing import Firing
from coarse2fine.tiling.geometry import ceil_div

DENSE_SIDE = 128
"""Longest side of a window in cells."""
MOST_PIXELS = 2**16
"""Largest size that a model may state in pixels or cells."""


@dataclass(frozen=True)
class Geometry:
    """Resolutions of a model's planes, and its cells.

    Parameters
    ----------
    cell : int
        Side of a cell, the square under one position of the base's feature map, in full-resolution pixels.
    scan_downsample, refine_downsample : int
        Full-resolution pixels per pixel of the plane the base scans and of the plane the refiner reads.
    fine : int
        Fine cells of the refiner along one side of a cell.
    """

    cell: int
    scan_downsample: int
    refine_downsample: int
    fine: int = 1

    def __post_init__(self) -> None:
        numbers = (self.cell, self.scan_downsample, self.refine_downsample, self.fine)
        if not all(isinstance(n, int) and 0 < n <= MOST_PIXELS for n in numbers):
            raise ValueError(f"expected whole numbers from 1 to {MOST_PIXELS:,} in {self}")
        if self.cell % self.scan_downsample or self.cell % (self.refine_downsample * self.fine):
            raise ValueError(f"a cell must be whole pixels in every plane, got {self}")

    @property
    def fine_cell(self) -> int:
        """Side of a fine cell in full-resolution pixels."""
        return self.cell // self.fine


@dataclass(frozen=True)
class CascadeStage:
    """A scan at one resolution: a net on one plane of the image, and a rule that chooses cells for the next stage.

    Parameters
    ----------
    net : Base
    cell : int
        Side of a cell, the square under one position of the net's feature map, in full-resolution pixels.
    downsample : int
        Full-resolution pixels per pixel of the plane.
    firing : Firing or None
        Rule from the net's activations to probabilities; None in a model that learns it from each image.
    tau : float
        Probability of a find from which the next stage scans a cell.

    Raises
    ------
    ValueError
        If the net's stride does not give cells of this size.
    """

    net: Base
    cell: int
    downsample: int
    firing: Firing | None
    tau: float

    def __post_init__(self) -> None:
        if not (isinstance(self.cell, int) and 0 < self.cell <= MOST_PIXELS and self.tau >= 0):
            raise ValueError(f"expected a cell of 1 to {MOST_PIXELS:,} px and a tau of at least 0, got {self}")
        if self.net.spec.stride * self.downsample != self.cell:
            raise ValueError(f"the net's stride {self.net.spec.stride} does not make cells of {self.cell} px")

    def cell_shape(self, full_shape: tuple[int, int]) -> tuple[int, int]:
        """Cells of an image of `full_shape` pixels (height, width); those at the far edges may reach beyond it."""
        return ceil_div(full_shape[0], self.cell), ceil_div(full_shape[1], self.cell)
