"""What a refiner is: the part of a model that answers a closer look at windows of an image.

Windows are squares and rectangles of cells of the scan, anywhere in the image. A refiner divides them into fine cells,
reads each window with a halo in a plane of its own, and tells in which fine cells it found something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.models.base import Base
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.tree import SpecialistTree

TIMED_SIDE, TIMED_SECONDS = 32, 0.3
"""Fine cells along a side of the window on which a refiner's speed is measured, and for how long."""


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
    """What a refiner is told of an image before its first window.

    Parameters
    ----------
    runtime : Runtime
        Device and number format.
    normalise : callable
        From uint8 pixels (n, h, w, c) to what the model's own nets read: a tensor (n, c, h, w) on the device.
    fine_shape : tuple of int
        Fine cells of the image, (height, width). Windows may reach beyond; candidates there are left out.
    floor : float
        Least score of a candidate.
    learned : object
        What the scan learned from this image, for refiners that learn; None for the others.
    """

    runtime: Runtime
    normalise: Callable[[NDArray[np.uint8]], Tensor]
    fine_shape: tuple[int, int]
    floor: float
    learned: Any = None


class RunningRefiner(Protocol):
    """A refiner at work on one image."""

    @property
    def macs_spent(self) -> int:
        """Multiply-adds up to now, halos included."""
        ...

    def __call__(
        self, pixels: NDArray[np.uint8], corners: NDArray[np.int64], rations: NDArray[np.int64] | None = None
    ) -> Candidates:
        """Look at windows of one shape. A window's answer must not depend on the others in its batch.

        Parameters
        ----------
        pixels : ndarray, uint8, (n, h, w, channels)
            With the halo, in the refiner's plane. The image's edge is repeated beyond its borders.
        corners : ndarray, int64, (n, 2)
            Fine-grid index (y, x) of each window's first fine cell.
        rations : ndarray, int64, (n, k), optional
            Rows of what `rations` gave; by default nothing is rationed.

        Returns
        -------
        Candidates
            Of these windows and those before, as far as they are settled; in fine cells of the image.
        """
        ...

    def rations(self, fine_sides: NDArray[np.int64]) -> NDArray[np.int64] | None:  # noqa: ARG002
        """How much each window of a plan may spend, so that the plan costs no more than `Refiner.expected_macs`.

        Parameters
        ----------
        fine_sides : ndarray, int64, (n, 2)
            Height and width of each window in fine cells.

        Returns
        -------
        ndarray, int64, (n, k), or None
            Passed on to the calls, row by row; None if windows always take what is expected.
        """
        return None

    def flush(self) -> Candidates:
        """What is not settled yet, after the last window."""
        return Candidates.empty()

    def abandon(self) -> Candidates:
        """The same at once after an interruption, with what was returned last, which may have been lost."""
        return Candidates.empty()


class Refiner(Protocol):
    """What answers a closer look; to be subclassed, so that a kind states only what it has of its own.

    Attributes
    ----------
    kind : str
        Name of the kind in model files, see `coarse2fine.register_refiner`.
    labels : tuple of Label
        Classes of what it finds; `Candidates.labels` are indices into them.
    channels : int
        Of the pixels it is given: 1 (grey) or 3 (RGB).
    downsample : int
        Full-resolution pixels per pixel of the plane that it reads.
    stride : int
        Side of a fine cell in pixels of the plane.
    margin : int
        Halo on every side of a window, in pixels of the plane.
    reach : int
        Cells of areas that are found at most so many cells apart are one area; only those of one label if it is 1.
    named : bool
        Whether labels are names; if not, results describe them from the image.
    learns : bool
        Whether it has to learn from each image what is usual there, and so has no finds that could be missed.
    specialists : sequence of SpecialistTree or SpecialistGroups
        Small nets that answer certain cells in its place.
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

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of one window of so many fine cells, halo included."""
        ...

    def start(self, context: ImageContext) -> RunningRefiner:
        """Get ready for an image."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a model file says of it, as JSON values; the names that `Model.save` writes itself are taken."""
        ...

    def arrays(self, base: Base) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """Its numbers by name, each beginning with ``"refiner."``; weights of the base are in the file already."""
        return {}

    def expected_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one window with what is expected beside `macs`: the price by which windows are chosen."""
        return self.macs(height, width)

    @property
    def macs_per_cell(self) -> float:
        """Multiply-adds for a fine cell of a large window."""
        return self.macs(TIMED_SIDE, TIMED_SIDE) / TIMED_SIDE**2

    def macs_per_second(self, context: ImageContext) -> float:
        """Speed, measured here on windows of `TIMED_SIDE` fine cells."""
        running = self.start(context)
        side = TIMED_SIDE * self.stride + 2 * self.margin
        pixels, corner = np.zeros((1, side, side, self.channels), np.uint8), np.zeros((1, 2), np.int64)
        running(pixels, corner)  # the first call also plans
        before, start = running.macs_spent, time.perf_counter()
        while time.perf_counter() - start < TIMED_SECONDS:
            running(pixels, corner)
        return (running.macs_spent - before) / (time.perf_counter() - start)

    def details(self) -> list[str]:
        """Lines that a printed model says of it."""
        return []

    def route(self, node: int) -> tuple[int, ...]:  # noqa: ARG002
        """Nodes of a tree of specialists on the way to a candidate's node."""
        return ()


Load = Callable[[Mapping[str, NDArray[Any]], Mapping[str, Any], Base], Refiner]
"""From the arrays and the description in a model file, and the model's base, to a refiner."""
