"""Convolutional features that are computed only where some high-level feature fires.

High-level features that fire together make a group; each group has a column, and what the column adds to the base's
answer counts in the cells where the group fires. Tiles that hold such a cell are gathered with their halo from the
base's maps, run in batches, and added to the answer. The result equals that of running every column everywhere and
masking it, whatever the size of the tiles.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn import functional

from .column import Column
from .dispatch import Dispatch, Done, Shapes
from .lanes import Lanes

NO_GROUP = -1
_TILES = (2, 4, 8, 16, 32, 64)
_BATCH_CELLS = 16384


@dataclass(frozen=True)
class Groups:
    """Groups of high-level features that fire together.

    Parameters
    ----------
    group : ndarray, int64, (c,)
        The group of each feature; -1 for those that never fire.
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
            Most groups.
        density : float
            Share of these cells in which a group fires, at most.

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
        # One factor for all of a group's thresholds makes the group as a whole fire in that share of the cells.
        threshold = np.full(high.shape[1], np.inf, np.float32)
        for g in range(int(group.max()) + 1):
            members = np.flatnonzero(group == g)
            lowest = np.maximum(level[members], 1e-6)
            factor = max(1.0, float(np.quantile((high[:, members] / lowest).max(axis=1), 1 - density)))
            threshold[members] = lowest * np.float32(factor)
        return cls(group, threshold)

    def fires(self, high: Tensor) -> Tensor:
        """Where each group fires.

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

    def strongest(self, high: Tensor) -> Tensor:
        """The group that fires most above its threshold, (n, h, w), int64; -1 where none fires.

        Parameters
        ----------
        high : Tensor, float, (n, c, h, w)
        """
        group = torch.from_numpy(self.group).to(high.device)
        ratio = high / torch.from_numpy(self.threshold).to(high.device)[:, None, None]
        most, which = torch.stack([ratio[:, group == g].amax(dim=1) for g in range(len(self))], dim=1).max(dim=1)
        return torch.where(most > 1, which, NO_GROUP)


def _together(fires: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Groups of columns of a table, by average linkage of their Jaccard distances."""
    if fires.shape[1] == 1:
        return np.zeros(1, np.int64)
    both = fires.astype(np.float32).T @ fires.astype(np.float32)
    alone = np.diag(both)
    distance = 1 - both / np.maximum(alone[:, None] + alone[None] - both, 1)
    rows, columns = np.triu_indices(len(distance), 1)
    labels = fcluster(linkage(distance[rows, columns], "average"), count, "maxclust")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


@dataclass
class Activity:
    """Columns of one layout that run only where their groups fire.

    Parameters
    ----------
    columns : sequence of Column
        One for each group, in evaluation mode.
    tile : int
        Side of the tiles in cells, a multiple of the base's `align`: a matter of time alone, see `tune`.

    Attributes
    ----------
    macs_spent : int
        Multiply-adds of all calls.
    """

    columns: Sequence[Column]
    tile: int
    macs_spent: int = 0

    def __call__(self, inputs: Sequence[Tensor], fires: Tensor) -> Tensor:
        """What the groups add to the base's answer, where they fire.

        Parameters
        ----------
        inputs : sequence of Tensor, float, (n, c, h, w)
            What `Layout.read` gives of a block.
        fires : Tensor, bool, (n, groups, cell height, cell width)

        Returns
        -------
        Tensor, float, (n, out_channels, cell height, cell width)
            Without gradients; see `dense`.
        """
        shape = fires.shape[2], fires.shape[3]
        sides = min(self.tile, shape[0]), min(self.tile, shape[1])
        alone = Lanes.beside(fires)
        columns, images, ys, xs = alone.start(lambda: _active(fires, sides).unbind(dim=1)).result()
        # Tiles at the far edges are moved inwards; their cells that belong to other tiles are masked.
        tops, lefts = ys.clamp(max=shape[0] - sides[0]), xs.clamp(max=shape[1] - sides[1])
        out = self.columns[0].reader.out_channels
        parts = inputs[0].new_empty(len(columns), out, *sides)
        self._work(inputs, sides, columns, (images, tops, lefts), parts)
        cell_y = tops[:, None] + torch.arange(sides[0], device=tops.device)
        cell_x = lefts[:, None] + torch.arange(sides[1], device=lefts.device)
        own = (cell_y >= ys[:, None])[:, :, None] & (cell_x >= xs[:, None])[:, None]
        cells = images[:, None, None], cell_y[:, :, None], cell_x[:, None]
        return alone.start(lambda: self._summed(fires, columns, cells, own, parts)).result()

    def _summed(
        self, fires: Tensor, columns: Tensor, cells: tuple[Tensor, Tensor, Tensor], own: Tensor, parts: Tensor
    ) -> Tensor:
        """The answers of all tiles in their places, each counted in its own cells where its group fires."""
        rows, y, x = cells
        height, width = fires.shape[2:]
        own = own & fires[rows, columns[:, None, None], y, x]
        flat = ((rows * height + y) * width + x).expand_as(own)
        total, parts = parts.new_zeros(len(fires) * height * width, parts.shape[1]), parts.permute(0, 2, 3, 1)
        # One group after the other, so that sums do not depend on the order in which batches were run. No two tiles of
        # a group own a cell, so each is read, added to and written: several times as fast as `index_add_`.
        for g in range(len(self.columns)):
            chosen = columns == g
            mine = own[chosen]
            total[flat[chosen][mine]] += parts[chosen][mine]
        return total.view(len(fires), height, width, parts.shape[3]).permute(0, 3, 1, 2)

    def _work(
        self,
        inputs: Sequence[Tensor],
        sides: tuple[int, int],
        columns: Tensor,
        places: tuple[Tensor, Tensor, Tensor],
        parts: Tensor,
    ) -> None:
        """Run the columns on all tiles; what they add comes in `parts`, a row for each tile."""

        def run(column: int, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self.columns[column](maps)[0],)

        def deliver(done: Done) -> None:
            parts[torch.from_numpy(done.keys).to(parts.device)] = done.outputs[0]

        def macs(column: int, _: Shapes) -> int:
            return self.columns[column].macs(*sides)

        batch = max(1, _BATCH_CELLS // (sides[0] * sides[1]))
        queue = Dispatch(run, deliver, macs, batch=batch)
        sources, rows = self.columns[0].layout.items(inputs, sides, places)
        queue.put(columns.cpu().numpy(), np.arange(len(parts)), sources, rows)
        queue.flush()
        self.macs_spent += queue.macs_spent


def dense(columns: Sequence[Column], inputs: Sequence[Tensor], fires: Tensor) -> Tensor:
    """The same as `Activity` gives, by running every column everywhere; differentiable, for training.

    Parameters
    ----------
    columns : sequence of Column
    inputs, fires
        See `Activity`.
    """
    parts = [column(inputs)[0] * fires[:, g, None] for g, column in enumerate(columns)]
    return torch.stack(parts).sum(dim=0)


def tune(columns: Sequence[Column], inputs: Sequence[Tensor], fires: Tensor) -> int:
    """The side of tiles that takes least time on this machine, for a block like those to come.

    Parameters
    ----------
    columns, inputs, fires
        See `Activity`.
    """
    align = columns[0].layout.twins.align
    most = max(fires.shape[2:])
    candidates = [align * n for n in _TILES if align * n // 2 < most] or [align]
    seconds = {}
    for tile in candidates:
        activity = Activity(columns, tile)
        runs = []
        for _ in range(4):
            start = time.perf_counter()
            activity(inputs, fires)
            runs.append(time.perf_counter() - start)
        seconds[tile] = min(runs[1:])  # the first one warms up
    return min(seconds, key=lambda tile: seconds[tile])


def _active(fires: Tensor, sides: tuple[int, int]) -> Tensor:
    """Tiles with a cell that fires, by group and then in raster order: group, image, and first cell (y, x); (m, 4)."""
    height, width = (-(-n // side) * side for n, side in zip(fires.shape[2:], sides, strict=True))
    padded = functional.pad(fires, (0, width - fires.shape[3], 0, height - fires.shape[2]))
    tiles = padded.view(*fires.shape[:2], height // sides[0], sides[0], width // sides[1], sides[1])
    places = torch.nonzero(tiles.any(dim=5).any(dim=3).transpose(0, 1))
    return places * torch.tensor([1, 1, *sides], device=fires.device)
