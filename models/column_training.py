"""Columns in training: with batch normalisation, or as shared weights plus differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .column import Column
from .conv_stack import fold
from .feature_maps import ColumnSpec, FeatureMaps

# Epsilon of batch normalisation: limits a channel's scale, since folded weights are stored in half precision.
_LEAST_VARIANCE = 1e-3


class NormedColumn(Column):
    """A column in training, with batch normalisation before each ReLU; see `Column`."""

    def __init__(
        self, spec: ColumnSpec, twins: FeatureMaps, out_channels: int, *, parent: ColumnSpec | None = None
    ) -> None:
        super().__init__(spec, twins, out_channels, parent=parent)
        self.norms = nn.ModuleList(nn.BatchNorm2d(stage.channels, eps=_LEAST_VARIANCE) for stage in spec.stages)

    def _normed(self, x: Tensor, stage: int) -> Tensor:
        normed: Tensor = self.norms[stage](x)
        return normed

    def settle(self, inputs: Sequence[Tensor], parent: Sequence[Tensor] = ()) -> None:
        """Recompute the statistics of batch normalisation on at least two items; see `Column.forward`."""
        for module in self.norms:
            norm: Any = module
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            self.train()(inputs, parent)
        self.eval()

    def folded(self) -> dict[str, Tensor]:
        """Weights of the equivalent plain column in evaluation mode."""
        found = {k: v.detach().clone() for k, v in self.state_dict().items() if not k.startswith("norms.")}
        # The scale goes into all convolutions of a stage, the shift into the twin's alone.
        for kind, convs in (("convs", self.convs), ("twins", self.twins), ("parents", self.parents)):
            for n, (conv, norm) in enumerate(zip(convs, self.norms, strict=False)):
                found[f"{kind}.{n}.weight"], bias = fold(conv, norm)
                if kind == "twins":
                    found[f"{kind}.{n}.bias"] = bias
        return found


class ColumnDifference(nn.Module):
    """A column in training with weights ``W_0 + D``: fixed shared ones, and differences that are zero at first.

    Parameters
    ----------
    shared : Column
        Holds W_0.
    """

    def __init__(self, shared: Column) -> None:
        super().__init__()
        self.shared = shared.requires_grad_(requires_grad=False)
        self.differences = nn.ParameterList(torch.zeros_like(p) for p in shared.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Weights of the equivalent plain column, by their names."""
        pairs = zip(self.shared.named_parameters(), self.differences, strict=True)
        return {name: w + difference for (name, w), difference in pairs}

    def forward(self, inputs: Sequence[Tensor], parent: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """The column's output and stages; see `Column.forward`."""
        found: tuple[Tensor, list[Tensor]] = functional_call(self.shared, self.weights(), (inputs, parent))
        return found
