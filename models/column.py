"""Specialists: small nets that read a base's activations stage by stage, and add to its answer.

Every stage of a column reads the stage before it and its twin, the base's map on the same grid; deeper in a tree it
also reads the stage of the parent column. So existing features are reused, as in progressive networks (Rusu et al.
2016, arXiv:1606.04671). A column's output is zero at first, so it starts as its parent's answer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .conv_stack import BatchInvariantConv2d, rectified
from .feature_maps import ColumnInputs, ColumnSpec, FeatureMaps


class Column(nn.Module):
    """Stages ``c_l = ReLU(conv(c_{l-1}) + conv1x1(twin_l) + conv1x1(parent_l) + b)`` and a linear reader.

    Without stages it is a head: a linear reader of the base's high-level map alone.

    Parameters
    ----------
    spec : ColumnSpec
    twins : FeatureMaps
        Maps of the base.
    out_channels : int
        Channels of the base's answer.
    parent : ColumnSpec, optional
        Shape of the parent column, whose stages are read too; its kernels must be the same.

    Attributes
    ----------
    layout : ColumnInputs
        Parts of the base's maps that the column reads.

    Raises
    ------
    ValueError
        If the column does not fit the base or its parent.
    """

    def __init__(
        self, spec: ColumnSpec, twins: FeatureMaps, out_channels: int, *, parent: ColumnSpec | None = None
    ) -> None:
        super().__init__()
        self.layout = ColumnInputs.of(spec, twins)
        maps = self.layout.maps
        widths = [maps[0].channels, *(s.channels for s in spec.stages)]
        self.convs = nn.ModuleList(
            BatchInvariantConv2d(before, s.channels, s.kernel, step.stride, bias=False)
            for before, s, step in zip(widths, spec.stages, self.layout.steps, strict=False)
        )
        self.twins = nn.ModuleList(
            BatchInvariantConv2d(t.channels, width, 1) for t, width in zip(maps[1:], widths[1:], strict=True)
        )
        above = _above(spec, parent)
        self.parents = nn.ModuleList(
            BatchInvariantConv2d(channels, width, 1, bias=False)
            for channels, width in zip(above, widths[1:], strict=False)
        )
        self.reader = BatchInvariantConv2d(widths[-1], out_channels, 1)
        # A head has no twin reader: its reader reads the twin itself.
        twin_channels = [maps[-1].channels] if spec.stages else []
        self.twin_readers = nn.ModuleList(BatchInvariantConv2d(c, out_channels, 1, bias=False) for c in twin_channels)
        for p in (*self.reader.parameters(), *self.twin_readers.parameters()):
            nn.init.zeros_(p)

    def forward(self, inputs: Sequence[Tensor], parent: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Compute the column's output, which is added to its parent's answer, and its stages.

        Parameters
        ----------
        inputs : sequence of Tensor, float, (n, c, h, w)
            Maps from `ColumnInputs.read`.
        parent : sequence of Tensor
            Stages of the parent column for the same block, if the column has a parent.

        Returns
        -------
        Tensor, float, (n, out_channels, cell height, cell width)
        list of Tensor
            Activations of each stage; the last has one position a cell.
        """
        x, stages = inputs[0], []
        above = parent[len(parent) - len(self.parents) :]
        for n, (step, conv, twin) in enumerate(zip(self.layout.steps, self.convs, self.twins, strict=True)):
            x = conv(step.framed(x)).add_(twin(inputs[n + 1]))
            if self.parents:
                x = x.add_(self.parents[n](above[n]))
            x = rectified(self._normed(x, n))
            stages.append(x)
        added = self.reader(x)
        for reader in self.twin_readers:
            added = added + reader(inputs[-1])
        return added, stages

    def _normed(self, x: Tensor, stage: int) -> Tensor:  # noqa: ARG002 (for NormedColumn)
        """Normalise before the ReLU; here the identity."""
        return x

    def shrunk(self, share: float) -> Column:
        """A copy with its output multiplied by `share`."""
        if share == 1:
            return self
        column = copy.deepcopy(self)
        with torch.no_grad():
            for p in (*column.reader.parameters(), *column.twin_readers.parameters()):
                p.mul_(share)
        return column

    def macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds for a block of answered cells."""
        heights, widths = self.layout.sides(cell_height), self.layout.sides(cell_width)
        total = cell_height * cell_width * sum(_taps(r) for r in (self.reader, *self.twin_readers))
        for n, conv in enumerate(self.convs):
            each = [conv, self.twins[n], *([self.parents[n]] if self.parents else [])]
            total += heights[n + 1] * widths[n + 1] * sum(_taps(c) for c in each)
        return total


def _above(spec: ColumnSpec, parent: ColumnSpec | None) -> list[int]:
    """Channels of the parent's stages on the grids of the column's own."""
    if parent is None:
        return []
    stages = parent.stages[len(parent.stages) - len(spec.stages) :]
    if [s.kernel for s in stages] != [s.kernel for s in spec.stages]:
        raise ValueError(f"expected a column with the kernels of its parent '{parent}', got '{spec}'")
    return [s.channels for s in stages]


def _taps(conv: Any) -> int:
    """Multiply-adds for one position."""
    return int(conv.weight.numel())
