"""Candidates: cells in which the refinement found something, before suppression of duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Candidates:
    """Cells of possible finds.

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
    """

    cells: NDArray[np.int32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int16]
    boxes: NDArray[np.float32]
    nodes: NDArray[np.int32]

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
        return cls(
            np.concatenate([p.cells for p in parts]),
            np.concatenate([p.scores for p in parts]),
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.boxes for p in parts]),
            np.concatenate([p.nodes for p in parts]),
        )

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Candidates:
        """The rows at `index`."""
        return Candidates(
            self.cells[index], self.scores[index], self.labels[index], self.boxes[index], self.nodes[index]
        )

    def distinct(self, width: int) -> Candidates:
        """Each cell once, in raster order of a grid of `width` columns: a specialist's answer, else the best score.

        The result does not depend on the order of the rows.
        """
        y, x = self.cells.T.astype(np.int64)
        number = y * width + x
        order = np.lexsort((self.labels, -self.scores, -self.nodes, number))
        return self.take(order[np.unique(number[order], return_index=True)[1]])
