"""Grouping of features that fire in the same cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

NO_GROUP = -1


@dataclass(frozen=True)
class Groups:
    """Groups of high-level features that fire together.

    Parameters
    ----------
    group : ndarray, int64, (c,)
        Group of each feature; -1 for features that never fire.
    threshold : ndarray, float32, (c,)
        Activation above which a feature makes its group fire.
    """

    group: NDArray[np.int64]
    threshold: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.group.max(initial=NO_GROUP)) + 1

    @classmethod
    def fit(cls, high: NDArray[np.float32], count: int, density: float) -> Groups:
        """Group features by how often they fire in the same cells.

        Parameters
        ----------
        high : ndarray, float32, (n, c)
            High-level activations of many cells, not negative.
        count : int
            Largest number of groups.
        density : float
            Largest share of these cells in which a group fires.

        Raises
        ------
        ValueError
            If no feature fires in any cell.
        """
        level = np.maximum(np.quantile(high, 1 - density, axis=0), 0).astype(np.float32)
        fires = high > level
        live = np.flatnonzero(fires.any(axis=0))
        if not len(live):
            raise ValueError("no high-level feature fires in any cell: there is nothing to specialise on")
        group = np.full(high.shape[1], NO_GROUP, np.int64)
        group[live] = _together(fires[:, live], count)
        # All thresholds of a group are raised by one factor, so that the group fires in at most that share of cells.
        threshold = np.full(high.shape[1], np.inf, np.float32)
        for g in range(int(group.max()) + 1):
            members = np.flatnonzero(group == g)
            lowest = np.maximum(level[members], 1e-6)
            factor = max(1.0, float(np.quantile((high[:, members] / lowest).max(axis=1), 1 - density)))
            threshold[members] = lowest * np.float32(factor)
        return cls(group, threshold)

    def fires(self, high: Tensor) -> Tensor:
        """Cells where each group fires: where one of its features exceeds its threshold.

        Parameters
        ----------
        high : Tensor, float, (n, c, h, w)

        Returns
        -------
        Tensor, bool, (n, groups, h, w)
        """
        above = high > torch.from_numpy(self.threshold).to(high.device)[:, None, None]
        group = torch.from_numpy(self.group).to(high.device)
        return torch.stack([above[:, group == g].any(dim=1) for g in range(len(self))], dim=1)


def by_block(cells: Tensor, side: int) -> Tensor:
    """Whether a group fires in any cell of each block, at all of its cells.

    Parameters
    ----------
    cells : Tensor, bool, (n, groups, h, w)
        With sides that are multiples of `side`.
    side : int
        Cells along a side of a block.

    Returns
    -------
    Tensor, bool, (n, groups, h, w)
    """
    n, groups, height, width = cells.shape
    blocks = cells.view(n, groups, height // side, side, width // side, side).any(dim=5).any(dim=3)
    return blocks.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)


def _together(fires: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Group the columns of a table by average linkage of their Jaccard distances."""
    if fires.shape[1] == 1:
        return np.zeros(1, np.int64)
    both = fires.astype(np.float32).T @ fires.astype(np.float32)
    alone = np.diag(both)
    distance = 1 - both / np.maximum(alone[:, None] + alone[None] - both, 1)
    rows, columns = np.triu_indices(len(distance), 1)
    labels = fcluster(linkage(distance[rows, columns], "average"), count, "maxclust")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
