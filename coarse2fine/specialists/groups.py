"""Specialists for groups of features as part of a model: each runs only in the cells where its features fire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.bundle import under
from coarse2fine.models.column import Column
from coarse2fine.models.feature_groups import Groups
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.gate import Gate
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.sparse_columns import Activity
from coarse2fine.specialists.tree import column_arrays, load_columns, macs_of

_PREFIX = "groups."
_NAMED = 6
# Unsure cells are few and scattered: larger tiles would mostly hold cells that are not needed.
_TILE = 1


@dataclass(frozen=True)
class SpecialistGroups:
    """Groups of high-level features of the refine net that fire together, each with a column.

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
    """

    groups: Groups
    spec: ColumnSpec
    columns: tuple[Column, ...]
    gate: Gate
    macs_per_cell: float
    classes: int

    def __str__(self) -> str:
        where = f" and a class has a probability of {self.gate.low:g} to {self.gate.high:g}"
        everywhere = self.gate == Gate.open(exclusive=False)
        lines = [f"{len(self.columns)} groups of features, run where they fire{'' if everywhere else where}"]
        for g in range(len(self.columns)):
            members = [str(f) for f in (self.groups.group == g).nonzero()[0].tolist()]
            more = f" and {len(members) - _NAMED} more" if len(members) > _NAMED else ""
            lines.append(f"  {g}: features {', '.join(members[:_NAMED])}{more}")
        return "\n".join(lines)

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
        }

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any], twins: FeatureMaps) -> SpecialistGroups:
        """Build from the results of `arrays` and `describe`.

        Parameters
        ----------
        arrays : mapping of str to ndarray
        text : mapping
        twins : FeatureMaps
            Maps of the refine net.
        """
        own = under(arrays, _PREFIX)
        spec = ColumnSpec.parse(text["spec"])
        columns = load_columns(own, "column.", lambda _: Column(spec, twins, text["classes"]))
        groups = Groups(own["group"], own["threshold"])
        width = twins.maps[-1].channels
        if groups.group.dtype != np.int64 or not groups.group.shape == groups.threshold.shape == (width,):
            raise ValueError(f"expected a group and a threshold for each of {width} features")
        if not columns or len(columns) != len(groups):
            raise ValueError(f"expected a column for each of {len(groups)} groups, got {len(columns)}")
        gate = Gate(**text["gate"])
        return cls(groups, spec, tuple(columns.values()), gate, macs_of(text), text["classes"])


class GroupRunner:
    """Runs the columns of groups.

    Parameters
    ----------
    own : SpecialistGroups
    runtime : Runtime

    Attributes
    ----------
    macs_most : int
        Multiply-adds of one column for one cell.
    """

    def __init__(self, own: SpecialistGroups, runtime: Runtime) -> None:
        self._gate, self._groups = own.gate, own.groups
        self._activity = Activity([runtime.place(column) for column in own.columns], _TILE)
        self._layout: ColumnInputs = own.columns[0].layout
        self.macs_most = own.columns[0].macs(_TILE, _TILE)

    @property
    def macs_spent(self) -> int:
        """Multiply-adds up to now."""
        return self._activity.macs_spent

    def fires(self, features: list[Tensor], classes: Tensor, inside: Tensor) -> Tensor:
        """Cells where groups fire and the answer is unsure.

        Parameters
        ----------
        features : list of Tensor
            Features of the refine net for a batch of windows.
        classes : Tensor, float, (n, classes, h, w)
            Logits of the refine net.
        inside : Tensor, bool, (n, h, w)
            Cells of the image.

        Returns
        -------
        Tensor, bool, (n, groups, h, w)
        """
        return self._groups.fires(features[-1]) & (self._gate.unsure(classes) & inside)[:, None]

    def added(self, x: Tensor, features: list[Tensor], fires: Tensor) -> Tensor:
        """Mean output of the columns of all groups that fire in each cell, (n, classes, h, w)."""
        total = self._activity(self._layout.read(x, features), fires)
        return total / fires.sum(dim=1, keepdim=True).clamp(min=1).to(total.dtype)
