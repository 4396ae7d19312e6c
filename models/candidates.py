"""Candidates: possible finds of a refiner, before suppression of duplicates."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

_NO_CORNERS: NDArray[np.float32] = np.zeros((0, 2), np.float32)


def _none() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class Candidates:
    """Possible finds, each in one cell.

    Parameters
    ----------
    cells : ndarray, int32, (n, 2)
        Fine-grid index (y, x).
    scores : ndarray, float32, (n,)
        Probability of the best class.
    labels : ndarray, int16, (n,)
        Index of the best class.
    boxes : ndarray, float32, (n, 4)
        y0, x0, y1, x1 in units of fine cells, in the same grid.
    nodes : ndarray, int32, (n,)
        Last node of the tree of specialists that each cell reached; 0, the root, if none was run.
    ranks : ndarray, int32, (n,), optional
        Number of each find within its fine cell, from 0; all 0 for refiners with at most one find in a cell.
    sizes : ndarray, int32, (n,), optional
        Corners of each find's outline; 0 if the box is its outline.
    corners : ndarray, float32, (sum of sizes, 2), optional
        The outlines' corners (y, x), one find after another, in units of fine cells.
    """

    cells: NDArray[np.int32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int16]
    boxes: NDArray[np.float32]
    nodes: NDArray[np.int32]
    ranks: NDArray[np.int32] = field(default_factory=_none)
    sizes: NDArray[np.int32] = field(default_factory=_none)
    corners: NDArray[np.float32] = field(default_factory=lambda: _NO_CORNERS)

    def __post_init__(self) -> None:
        for name in ("ranks", "sizes"):
            if len(getattr(self, name)) != len(self.scores):
                object.__setattr__(self, name, np.zeros(len(self.scores), np.int32))

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> Candidates:
        return cls(
            np.zeros((0, 2), np.int32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int16),
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.int32),
        )

    @classmethod
    def concatenate(cls, parts: list[Candidates]) -> Candidates:
        """All parts in order."""
        if not parts:
            return cls.empty()
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Candidates:
        """The rows at `index`."""
        corners = self.corners
        if len(corners):
            ends = self.sizes.cumsum()
            rows = np.arange(len(self))[index].tolist()
            corners = np.concatenate([_NO_CORNERS, *(corners[ends[i] - self.sizes[i] : ends[i]] for i in rows)])
        return Candidates(
            self.cells[index],
            self.scores[index],
            self.labels[index],
            self.boxes[index],
            self.nodes[index],
            self.ranks[index],
            self.sizes[index],
            corners,
        )

    def outlines(self) -> list[NDArray[np.float32]]:
        """Corners (k, 2) of each find's outline in units of fine cells; none if the box is its outline."""
        return np.split(self.corners, self.sizes.cumsum()[:-1]) if len(self) else []

    def distinct(self, width: int) -> Candidates:
        """Each find once, in raster order of a grid of `width` columns: a specialist's answer, else the best score.

        The result does not depend on the order of the rows.
        """
        y, x = self.cells.T.astype(np.int64)
        number = y * width + x
        order = np.lexsort((self.labels, -self.scores, -self.nodes, self.ranks, number))
        place = np.column_stack([number, self.ranks])[order]
        first = np.ones(len(self), bool)
        first[1:] = (place[1:] != place[:-1]).any(axis=1)
        return self.take(order[first])
