"""Columns in training: with batch normalisation, or as shared weights plus differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .column import Column
from .conv_stack import fold
from .feature_maps import ColumnSpec, FeatureMaps

_SHARED_DECAY, _OWN_DECAY = 1e-4, 0.3
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


class Delta(nn.Module):
    """Differences of one column from the weights that all columns share; zero at first.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Shapes of the shared weights.
    rank : int, optional
        Rank of the differences of matrices; by default full.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], rank: int | None) -> None:
        super().__init__()
        self.left, self.right = nn.ParameterList(), nn.ParameterList()
        self.shapes = [tuple(shape) for shape in shapes]
        for rows, *rest in self.shapes:
            size = int(torch.Size(rest).numel())
            low = bool(rest) and rank is not None and rank < min(rows, size)
            self.left.append(torch.zeros(rows, rank if low and rank else size))
            self.right.append(torch.randn(rank, size) / size**0.5 if low and rank else torch.empty(0))

    def forward(self) -> Iterator[Tensor]:
        """The differences, in the order of the shared weights."""
        for left, right, shape in zip(self.left, self.right, self.shapes, strict=True):
            yield (left @ right if right.numel() else left).view(shape)


class Shared(nn.Module):
    """Nets of one shape whose weights are ``W_0 + D_k``: shared ones, and a difference for each that decays strongly.

    Parameters
    ----------
    shared : Module
        Holds W_0: one net of that shape.
    count : int
        Number of nets.
    rank : int, optional
        Rank of the differences; see `Delta`.
    """

    def __init__(self, shared: nn.Module, count: int, *, rank: int | None = None) -> None:
        super().__init__()
        self.shared = shared
        shapes = [p.shape for p in shared.parameters()]
        self.own = nn.ModuleList(Delta(shapes, rank) for _ in range(count))

    def weights(self, k: int) -> dict[str, Tensor]:
        """Weights of net `k`, by their names in one net."""
        names, shared = zip(*self.shared.named_parameters(), strict=True)
        return {name: w + d for name, w, d in zip(names, shared, self.own[k](), strict=True)}

    def groups(self, *, shared_decay: float = _SHARED_DECAY, own_decay: float = _OWN_DECAY) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer with decoupled weight decay."""
        return [
            {"params": list(self.shared.parameters()), "weight_decay": shared_decay},
            {"params": [p for p in self.own.parameters() if p.numel()], "weight_decay": own_decay},
        ]


class Columns(Shared):
    """Columns of one shape at one depth of a tree: trained jointly, or W_0 first and then each difference.

    Parameters
    ----------
    spec, twins, out_channels, parent
        Arguments of each `Column`.
    count : int
        Number of columns.
    rank : int, optional
        Rank of their differences; see `Delta`.
    """

    shared: Column

    def __init__(
        self,
        spec: ColumnSpec,
        twins: FeatureMaps,
        out_channels: int,
        count: int,
        *,
        rank: int | None = None,
        parent: ColumnSpec | None = None,
    ) -> None:
        super().__init__(Column(spec, twins, out_channels, parent=parent), count, rank=rank)
        self._shape = (spec, twins, out_channels, parent)

    def column(self, k: int) -> Column:
        """Column `k` as a plain column in evaluation mode."""
        spec, twins, out_channels, parent = self._shape
        column = Column(spec, twins, out_channels, parent=parent)
        column.load_state_dict({name: w.detach() for name, w in self.weights(k).items()})
        return column.to(next(self.shared.parameters())).eval()

    def forward(
        self, inputs: Sequence[Tensor], index: Tensor, parent: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Output of each item's column, and its stages; differentiable.

        Parameters
        ----------
        inputs, parent
            See `Column.forward`.
        index : Tensor, int64, (n,)
            Each item's column.
        """
        order = torch.argsort(index, stable=True)
        parts = []
        for k in sorted(set(index.tolist())):
            rows = torch.nonzero(index == k)[:, 0]
            args = ([m[rows] for m in inputs], [m[rows] for m in parent])
            added, stages = functional_call(self.shared, self.weights(k), args)
            parts.append((added, *stages))
        back = torch.argsort(order)
        added, *stages = (torch.cat(column)[back] for column in zip(*parts, strict=True))
        return added, stages
