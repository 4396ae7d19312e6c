"""Specialists for groups of features as part of a model: each runs only where its features fire.

The features are those of the scan, which are known before any pixel is read at full resolution: they decide, for blocks
of cells, which columns run there. In older models they are the refine net's own, cell by cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from coarse2fine.bundle import under
from coarse2fine.models.column import Column
from coarse2fine.models.feature_groups import Groups
from coarse2fine.models.feature_maps import ColumnSpec, FeatureMaps
from coarse2fine.models.gate import Gate
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.sparse_columns import Activity
from coarse2fine.specialists.tree import column_arrays, load_columns, macs_of
from coarse2fine.tiling.geometry import ceil_div

_PREFIX = "groups."
_NAMED = 6
_MOST_BLOCK = 1024
# Sides, in fine cells, of the squares run at once: single cells if they are few and scattered; parts of blocks.
_TILE, TILE_OF_BLOCKS = 1, 8


@dataclass(frozen=True)
class SpecialistGroups:
    """Groups of high-level features that fire together, each with a column.

    Parameters
    ----------
    groups : Groups
    spec : ColumnSpec
        Shape of each column.
    columns : tuple of Column
        One for each group, in evaluation mode.
    gate : Gate
        If the refine net's answer passes it, the columns of the groups that fire are run.
    macs_per_cell : float
        Expected multiply-adds for a refined cell, measured on held-out cells.
    classes : int
        Number of classes of the answer.
    block : int
        Side, in cells of the scan, of the blocks in which features of the scan decide: a group fires in a block if one
        of its features fires in any cell of it. 0 if the refine net's features decide, in each cell.
    """

    groups: Groups
    spec: ColumnSpec
    columns: tuple[Column, ...]
    gate: Gate
    macs_per_cell: float
    classes: int
    block: int = 0

    def __str__(self) -> str:
        if self.block:
            return "\n".join([f"{len(self.columns)} groups of features of the scan, run where they fire", *self._lines])
        where = f" and a class has a probability of {self.gate.low:g} to {self.gate.high:g}"
        everywhere = self.gate == Gate.open(exclusive=False)
        first = f"{len(self.columns)} groups of features, run where they fire{'' if everywhere else where}"
        return "\n".join([first, *self._lines])

    def reach(self, cells: int) -> int:
        """Cells along a side of all blocks that `cells` cells in a row may touch."""
        return ceil_div(cells + self.block - 1, self.block) * self.block

    @property
    def _lines(self) -> list[str]:
        lines = []
        for g in range(len(self.columns)):
            members = [str(f) for f in (self.groups.group == g).nonzero()[0].tolist()]
            more = f" and {len(members) - _NAMED} more" if len(members) > _NAMED else ""
            lines.append(f"  {g}: features {', '.join(members[:_NAMED])}{more}")
        return lines

    def runner(self, runtime: Runtime) -> GroupRunner:
        """A runner of the groups' columns."""
        return GroupRunner(self, runtime)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, for a model file."""
        own: dict[str, NDArray[Any]] = {f"{_PREFIX}group": self.groups.group}
        own[f"{_PREFIX}threshold"] = self.groups.threshold
        return own | column_arrays(dict(enumerate(self.columns)), f"{_PREFIX}column.")

    def describe(self) -> dict[str, Any]:
        """All other fields as JSON values."""
        return {
            "spec": str(self.spec),
            "gate": asdict(self.gate),
            "macs_per_cell": self.macs_per_cell,
            "classes": self.classes,
            "block": self.block,
        }

    @classmethod
    def load(
        cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any], twins: FeatureMaps, scanned: int
    ) -> SpecialistGroups:
        """Build from the results of `arrays` and `describe`.

        Parameters
        ----------
        arrays : mapping of str to ndarray
        text : mapping
        twins : FeatureMaps
            Maps of the refine net.
        scanned : int
            High-level features of the scan.
        """
        own = under(arrays, _PREFIX)
        spec = ColumnSpec.parse(text["spec"])
        columns = load_columns(own, "column.", lambda _: Column(spec, twins, text["classes"]))
        groups = Groups(own["group"], own["threshold"])
        block = text.get("block", 0)
        if not isinstance(block, int) or not 0 <= block <= _MOST_BLOCK:
            raise ValueError(f"expected blocks of up to {_MOST_BLOCK} cells a side, got {block!r:.60}")
        width = scanned if block else twins.maps[-1].channels
        if groups.group.dtype != np.int64 or not groups.group.shape == groups.threshold.shape == (width,):
            raise ValueError(f"expected a group and a threshold for each of {width} features")
        if not columns or len(columns) != len(groups):
            raise ValueError(f"expected a column for each of {len(groups)} groups, got {len(columns)}")
        gate = Gate(**text["gate"])
        return cls(groups, spec, tuple(columns.values()), gate, macs_of(text), text["classes"], block)


class GroupRunner:
    """Runs the columns of groups.

    Parameters
    ----------
    own : SpecialistGroups
    runtime : Runtime
    """

    def __init__(self, own: SpecialistGroups, runtime: Runtime) -> None:
        self._gate, self._groups, self._column = own.gate, own.groups, own.columns[0]
        self.tile = TILE_OF_BLOCKS if own.block else _TILE
        self._activity = Activity([runtime.place(column) for column in own.columns], self.tile)

    @property
    def macs_spent(self) -> int:
        """Multiply-adds up to now."""
        return self._activity.macs_spent

    def tile_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one column for one tile of a window of `height` x `width` fine cells."""
        return self._column.macs(min(height, self.tile), min(width, self.tile))

    def fires(self, features: list[Tensor], classes: Tensor) -> Tensor:
        """Cells where groups fire by the refine net's features, and where its answer is unsure.

        Parameters
        ----------
        features : list of Tensor
            Features of the refine net for a batch of windows.
        classes : Tensor, float, (n, classes, h, w)
            Logits of the refine net.

        Returns
        -------
        Tensor, bool, (n, groups, h, w)
        """
        return self._groups.fires(features[-1]) & self._gate.unsure(classes)[:, None]

    def within(self, fires: Tensor, most: NDArray[np.int64] | None) -> Tensor:
        """The first tiles of each window in which a group fires, in raster order, group after group.

        Parameters
        ----------
        fires : Tensor, bool, (n, groups, h, w)
        most : ndarray, int64, (n,), optional
            Tiles of each window, counted for each group; no limit if None.
        """
        if most is None:
            return fires
        sides = [min(self.tile, n) for n in fires.shape[2:]]
        tiles = functional.max_pool2d(fires.float(), sides, ceil_mode=True) > 0
        limit = torch.from_numpy(most[:, None]).to(fires.device)
        kept = tiles & (tiles.flatten(1).cumsum(1) <= limit).view_as(tiles)
        spread = kept.repeat_interleave(sides[0], dim=2).repeat_interleave(sides[1], dim=3)
        return fires & spread[..., : fires.shape[2], : fires.shape[3]]

    def added(self, x: Tensor, features: list[Tensor], fires: Tensor) -> Tensor:
        """Mean output of the columns of all groups that fire in each cell, (n, classes, h, w)."""
        total = self._activity(self._column.layout.read(x, features), fires)
        return total / fires.sum(dim=1, keepdim=True).clamp(min=1).to(total.dtype)
