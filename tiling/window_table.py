"""Equally large boxes of one plane as a table: there may be a hundred thousand of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .geometry import Box


@dataclass(frozen=True, eq=False)
class Windows:
    """Boxes of one shape.

    Parameters
    ----------
    corners : (n, 2) int64 array
        First pixel (y, x) of each; may lie outside the image.
    height, width : int

    Raises
    ------
    ValueError
        If the shape is empty.
    """

    corners: NDArray[np.int64]
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"windows must not be empty, got {self.height} x {self.width} pixels")

    @classmethod
    def of(cls, boxes: Sequence[Box]) -> Self:
        """Boxes as a table; at least one.

        Raises
        ------
        ValueError
            If they differ in shape.
        """
        shapes = {(box.height, box.width) for box in boxes}
        if len(shapes) != 1:
            raise ValueError(f"expected boxes of one shape, got {len(shapes)} shapes: {sorted(shapes)[:4]}")
        return cls(np.array([(box.y0, box.x0) for box in boxes], np.int64), *shapes.pop())

    @classmethod
    def of_cells(cls, cell_corners: NDArray[np.int64], shape: tuple[int, int], cell: int, margin: int) -> Self:
        """Windows that cells need.

        Parameters
        ----------
        cell_corners : (n, 2) int64 array
            First cell (y, x) of each window.
        shape : tuple of int
            Cells along its height and width.
        cell : int
            Side of a cell in pixels of the plane.
        margin : int
            Halo in pixels.
        """
        height, width = (n * cell + 2 * margin for n in shape)
        return cls(cell_corners.astype(np.int64) * cell - margin, height, width)

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, number: int) -> Box:
        y, x = self.corners[number].tolist()
        return Box(y, x, y + self.height, x + self.width)

    @property
    def area(self) -> int:
        """Pixels of one window."""
        return self.height * self.width

    def take(self, index: NDArray[np.intp]) -> Self:
        """The windows at `index`."""
        return replace(self, corners=self.corners[index])
