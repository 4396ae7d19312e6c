"""Sparse evaluation of columns, only where their groups of features fire.

High-level features that fire together form a group; each group has a column, whose output is added to the base's answer
in the cells where the group fires. Tiles that hold such a cell are gathered with their halo from the base's maps, run
in batches, and added to the answer. The result equals that of running every column everywhere and masking it, for any
tile size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .base import round_up
from .batch_queue import BatchQueue, Done, Shapes
from .column import Column
from .threads import ThreadPool

_BATCH_CELLS = 16384


@dataclass
class Activity:
    """Columns of one layout that run only where their groups fire.

    Parameters
    ----------
    columns : sequence of Column
        One for each group, in evaluation mode.
    tile : int
        Side of the tiles in cells, a multiple of the base's `align`; it only affects time.

    Attributes
    ----------
    macs_spent : int
        Multiply-adds of all calls.
    """

    columns: Sequence[Column]
    tile: int
    macs_spent: int = 0

    def __call__(self, inputs: Sequence[Tensor], fires: Tensor) -> Tensor:
        """Sum of the columns' outputs in the cells where their groups fire.

        Parameters
        ----------
        inputs : sequence of Tensor, float, (n, c, h, w)
            Maps of a block from `ColumnInputs.read`.
        fires : Tensor, bool, (n, groups, cell height, cell width)

        Returns
        -------
        Tensor, float, (n, out_channels, cell height, cell width)
            Without gradients.
        """
        shape = fires.shape[2], fires.shape[3]
        sides = min(self.tile, shape[0]), min(self.tile, shape[1])
        alone = ThreadPool.beside(fires)
        columns, images, ys, xs = alone.start(lambda: _active(fires, sides).unbind(dim=1)).result()
        # Tiles at the far edges are shifted inwards; cells that belong to other tiles are masked.
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
        """Sum the outputs of all tiles at their positions, each in its own cells where its group fires."""
        rows, y, x = cells
        height, width = fires.shape[2:]
        own = own & fires[rows, columns[:, None, None], y, x]
        flat = ((rows * height + y) * width + x).expand_as(own)
        total, parts = parts.new_zeros(len(fires) * height * width, parts.shape[1]), parts.permute(0, 2, 3, 1)
        # One group after the other, so that sums do not depend on the order in which batches were run. Tiles of a group
        # own different cells, so indexed addition is safe: several times as fast as `index_add_`.
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
        """Run the columns on all tiles and write their outputs to `parts`, a row for each tile."""

        def run(column: int, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self.columns[column](maps)[0],)

        def deliver(done: Done) -> None:
            parts[torch.from_numpy(done.keys).to(parts.device)] = done.outputs[0]

        def macs(column: int, _: Shapes) -> int:
            return self.columns[column].macs(*sides)

        batch = max(1, _BATCH_CELLS // (sides[0] * sides[1]))
        queue = BatchQueue(run, deliver, macs, batch=batch)
        sources, rows = self.columns[0].layout.items(inputs, sides, places)
        queue.put(columns.cpu().numpy(), np.arange(len(parts)), sources, rows)
        queue.flush()
        self.macs_spent += queue.macs_spent


def _active(fires: Tensor, sides: tuple[int, int]) -> Tensor:
    """Tiles with a cell that fires, by group and then in raster order: group, image, and first cell (y, x); (m, 4)."""
    height, width = (round_up(n, side) for n, side in zip(fires.shape[2:], sides, strict=True))
    padded = functional.pad(fires, (0, width - fires.shape[3], 0, height - fires.shape[2]))
    tiles = padded.view(*fires.shape[:2], height // sides[0], sides[0], width // sides[1], sides[1])
    places = torch.nonzero(tiles.any(dim=5).any(dim=3).transpose(0, 1))
    return places * torch.tensor([1, 1, *sides], device=fires.device)
