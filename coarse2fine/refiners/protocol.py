"""Protocol of refiners: the part of a model that runs on the chosen windows at full resolution.

Windows are rectangles of cells of the scan, anywhere in the image. A refiner divides them into fine cells, reads each
window with a halo at a resolution of its own, and returns the fine cells in which it found something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.models.base import Base
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.suppress import merged
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.tree import SpecialistTree

TIMED_SIDE, TIMED_SECONDS = 32, 0.3
"""Side, in fine cells, of the window on which a refiner's speed is measured; and seconds that this takes."""


@dataclass(frozen=True)
class Label:
    """A class: countable objects with a box, or an area without a natural size."""

    name: str
    kind: Literal["object", "area"] = "object"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.kind not in ("object", "area"):
            raise ValueError(f'expected a name, and "object" or "area", got {self!r:.100}')


@dataclass(frozen=True)
class ImageContext:
    """Facts of an image that a refiner gets before its first window.

    Parameters
    ----------
    runtime : Runtime
        Device and number format.
    normalise : callable
        From uint8 pixels (n, h, w, c) to the input of the model's nets: a tensor (n, c, h, w) on the device.
    fine_shape : tuple of int
        Fine cells of the image, (height, width). Windows may reach beyond; candidates there are dropped.
    floor : float
        Least score of a candidate.
    learned : object
        Model of the image from the scan, for refiners that learn; for those that route, the leaf of each cell, int32
        (cell height, cell width), or None if nothing is to be routed. None for others.
    fires : callable, optional
        From the first fine cells (y, x) of windows, int64, (n, 2), and their shape in fine cells to whether each group
        of the scan's features fires in each fine cell, bool, (n, groups, h, w). None if the refiner has no specialists
        that the scan chooses, or there is no scan: they do not run then.
    """

    runtime: Runtime
    normalise: Callable[[NDArray[np.uint8]], Tensor]
    fine_shape: tuple[int, int]
    floor: float
    learned: Any = None
    fires: Callable[[NDArray[np.int64], tuple[int, int]], NDArray[np.bool_]] | None = None


class RunningRefiner(Protocol):
    """A refiner at work on one image."""

    @property
    def macs_spent(self) -> int:
        """Multiply-adds up to now, halos included."""
        ...

    def __call__(
        self, pixels: NDArray[np.uint8], corners: NDArray[np.int64], rations: NDArray[np.int64] | None = None
    ) -> Candidates:
        """Refine windows of one shape. A window's answer must not depend on the others in its batch.

        Parameters
        ----------
        pixels : ndarray, uint8, (n, h, w, channels)
            With the halo, at the refiner's resolution. The image's edge is repeated beyond its borders.
        corners : ndarray, int64, (n, 2)
            Fine-grid index (y, x) of each window's first fine cell.
        rations : ndarray, int64, (n, k), optional
            These windows' rows from `rations`; without them, spending has no limit.

        Returns
        -------
        Candidates
            Those settled since the last call, of these windows and earlier ones, in fine cells of the image.
        """
        ...

    def rations(self, fine_sides: NDArray[np.int64]) -> NDArray[np.int64] | None:  # noqa: ARG002
        """Limits for each window of a plan, so that the plan costs no more than `Refiner.expected_macs`.

        Parameters
        ----------
        fine_sides : ndarray, int64, (n, 2)
            Height and width of each window in fine cells.

        Returns
        -------
        ndarray, int64, (n, k), or None
            Passed to the calls, row by row; None if windows always cost what is expected.
        """
        return None

    def failures(self) -> tuple[str, ...]:
        """Why windows could not be refined, each reason once."""
        return ()

    def notes(self) -> tuple[str, ...]:
        """Notes for the result on how windows were refined, each once; they do not make it incomplete."""
        return ()

    def failed(self, count: int) -> NDArray[np.bool_]:
        """Which of the `count` windows of the last call could not be refined; they have no candidates."""
        return np.zeros(count, bool)

    def flush(self) -> Candidates:
        """Settle and return the remaining candidates, after the last window."""
        return Candidates.empty()

    def abandon(self) -> Candidates:
        """Return the remaining candidates at once after an interruption, and the last ones, which may be lost."""
        return Candidates.empty()


class Refiner(Protocol):
    """Part of a model that runs on windows at full resolution; a kind subclasses it and overrides the defaults.

    Attributes
    ----------
    kind : str
        Name of the kind in model files, see `coarse2fine.register_refiner`.
    labels : tuple of Label
        Classes of finds; `Candidates.labels` are indices into them.
    channels : int
        Channels of its input pixels: 1 (grey) or 3 (RGB).
    downsample : int
        Full-resolution pixels per pixel of the plane that it reads.
    stride : int
        Side of a fine cell in pixels of the plane.
    margin : int
        Halo on every side of a window, in pixels of the plane.
    reach : int
        Largest distance, in fine cells, at which cells of areas are joined to one area; 1 joins only cells of one
        label that share an edge.
    named : bool
        Whether labels are names; if not, results describe them from the image.
    learns : bool
        Whether it learns from each image what is usual there. Recall is then undefined.
    specialists : sequence of SpecialistTree or SpecialistGroups
        Small nets that run on certain cells.
    counts_once : bool
        Whether each object is found in one fine cell only, the one that holds its centre. If not, duplicates are
        suppressed before finds are counted.
    most_in_cell : int
        Most finds in a fine cell.
    longest : int or None
        Longest side, in fine cells, of a window that is read at once; larger windows are divided. None for no limit.
    batch_windows : int or None
        Windows that are refined at once; None for a number by their size.
    screened : bool
        Whether a scan before it pays. If not, every cell is refined, unless a limit is given.
    routed : bool
        Whether cells are routed to one of several models by `leaves`, which become `ImageContext.learned`.
    """

    kind: ClassVar[str]
    labels: tuple[Label, ...]
    channels: int
    downsample: int
    stride: int
    margin: int
    reach: ClassVar[int] = 1
    named: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    specialists: Sequence[SpecialistTree | SpecialistGroups] = ()
    counts_once: ClassVar[bool] = False
    most_in_cell: int = 1
    longest: int | None = None
    batch_windows: int | None = None
    screened: bool = True
    routed: bool = False

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of one window of `height` x `width` fine cells, halo included."""
        ...

    def start(self, context: ImageContext) -> RunningRefiner:
        """Get ready for an image."""
        ...

    def describe(self) -> dict[str, Any]:
        """Description for model files, as JSON values, without the names that `Model.save` writes itself."""
        ...

    def arrays(self, base: Base) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """Arrays for model files; names begin with ``"refiner."``. Weights of the base are already in the file."""
        return {}

    def expected_macs(self, height: int, width: int) -> int:
        """Multiply-adds by which windows are chosen: `macs` and the expected cost of specialists or the like."""
        return self.macs(height, width)

    @property
    def macs_per_cell(self) -> float:
        """Multiply-adds per fine cell of a large window."""
        return self.macs(TIMED_SIDE, TIMED_SIDE) / TIMED_SIDE**2

    def coarser(self, factor: Fraction) -> Refiner | None:  # noqa: ARG002
        """The refiner with a plane that is coarser by a factor, for images of smaller pixels than those of the fit.

        Parameters
        ----------
        factor : Fraction
            Below 1 for larger pixels; the plane and its cells stay whole.

        Returns
        -------
        Refiner or None
            None if its plane cannot change; images are then read as they are.
        """
        return None

    def suppress(self, candidates: Candidates) -> Candidates:
        """The finds of a result: of each object only one.

        Parameters
        ----------
        candidates : Candidates
            Objects, in raster order.
        """
        return merged(candidates)

    def macs_per_second(self, context: ImageContext) -> float:
        """Speed, measured on this machine with windows of `TIMED_SIDE` fine cells a side."""
        running = self.start(context)
        side = TIMED_SIDE * self.stride + 2 * self.margin
        pixels, corner = np.zeros((1, side, side, self.channels), np.uint8), np.zeros((1, 2), np.int64)
        running(pixels, corner)  # warm-up: the first call is slower
        before, start = running.macs_spent, time.perf_counter()
        while time.perf_counter() - start < TIMED_SECONDS:
            running(pixels, corner)
        return (running.macs_spent - before) / (time.perf_counter() - start)

    def outcome(self, share: float) -> list[str]:  # noqa: ARG002
        """Notes on the cost of an analysis without limits, as a share of the exhaustive pass's."""
        return []

    def details(self) -> list[str]:
        """Lines on the refiner in a printed model."""
        return []

    def notes(self, candidates: Candidates, fine_shape: tuple[float, float]) -> list[str]:  # noqa: ARG002
        """Notes on the finds of a result.

        Parameters
        ----------
        candidates : Candidates
            Finds, before suppression.
        fine_shape : (float, float)
            Height and width of the image in fine cells, fractions included.
        """
        return []

    def leaves(self, high: NDArray[np.float32]) -> NDArray[np.int32]:
        """Leaf of each cell, by which it is routed.

        Parameters
        ----------
        high : ndarray, float32, (n, c)
            High-level features of the base.
        """
        return np.zeros(len(high), np.int32)

    def routing_notes(self, leaves: NDArray[np.int32] | None) -> list[str]:  # noqa: ARG002
        """Notes on how cells were routed.

        Parameters
        ----------
        leaves : ndarray, int32, (n,), optional
            Leaf of each refined cell; None if none was routed.
        """
        return []

    def route(self, node: int) -> tuple[int, ...]:  # noqa: ARG002
        """Path through the tree of specialists, or of clusters, to a candidate's node."""
        return ()


Load = Callable[[Mapping[str, NDArray[Any]], Mapping[str, Any], Base], Refiner]
"""Function that makes a refiner of the arrays and the description in a model file, and the model's base."""
