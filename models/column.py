"""Specialists: small nets that read a base's activations stage by stage, and add to its answer.

Every stage of a column reads the stage before it and its twin, the base's map of the same grid; further down a tree it
also reads the stage of the parent column. Features that are known already stay in use, as in progressive networks
(Rusu et al. 2016, arXiv:1606.04671). What a column adds is zero at first, so it starts as its parent's answer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .conv_stack import BatchInvariantConv2d, fold, rectified
from .twin import ColumnSpec, Layout, Twins

_SHARED_DECAY, _OWN_DECAY = 1e-4, 0.3
# Folded weights are kept in half precision: no channel is enlarged by more than its root allows.
_LEAST_VARIANCE = 1e-3


class Column(nn.Module):
    """Stages ``c_l = ReLU(conv(c_{l-1}) + conv1x1(twin_l) + conv1x1(parent_l) + b)`` and a linear reader.

    Without stages it is a head: a linear reader of the base's high-level map alone.

    Parameters
    ----------
    spec : ColumnSpec
    twins : Twins
        The maps of the base.
    out_channels : int
        Channels of the base's answer.
    parent : ColumnSpec, optional
        Shape of the parent column, whose stages are read too: its kernels must be the same.

    Attributes
    ----------
    layout : Layout
        What to read of the base's maps.

    Raises
    ------
    ValueError
        If the column does not fit the base or its parent.
    """

    def __init__(self, spec: ColumnSpec, twins: Twins, out_channels: int, *, parent: ColumnSpec | None = None) -> None:
        super().__init__()
        self.layout = Layout.of(spec, twins)
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
        # A head's reader reads the twin itself.
        twin_channels = [maps[-1].channels] if spec.stages else []
        self.twin_readers = nn.ModuleList(BatchInvariantConv2d(c, out_channels, 1, bias=False) for c in twin_channels)
        for p in (*self.reader.parameters(), *self.twin_readers.parameters()):
            nn.init.zeros_(p)

    def forward(self, inputs: Sequence[Tensor], parent: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """What the column adds to its parent's answer, and its stages.

        Parameters
        ----------
        inputs : sequence of Tensor, float, (n, c, h, w)
            What `Layout.read` gives.
        parent : sequence of Tensor
            The parent column's stages of the same block, if the column has a parent.

        Returns
        -------
        Tensor, float, (n, out_channels, cell height, cell width)
        list of Tensor
            The activations of each stage; the last has one position a cell.
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

    def _normed(self, x: Tensor, stage: int) -> Tensor:  # noqa: ARG002 (for those that are normalised)
        """What is rectified."""
        return x

    def shrunk(self, share: float) -> Column:
        """A column that adds a share of what this one adds."""
        if share == 1:
            return self
        column = copy.deepcopy(self)
        with torch.no_grad():
            for p in (*column.reader.parameters(), *column.twin_readers.parameters()):
                p.mul_(share)
        return column

    def macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds for a block of so many answered cells."""
        heights, widths = self.layout.sides(cell_height), self.layout.sides(cell_width)
        total = cell_height * cell_width * sum(_taps(r) for r in (self.reader, *self.twin_readers))
        for n, conv in enumerate(self.convs):
            each = [conv, self.twins[n], *([self.parents[n]] if self.parents else [])]
            total += heights[n + 1] * widths[n + 1] * sum(_taps(c) for c in each)
        return total


class NormedColumn(Column):
    """A column while it is trained: batch normalisation before each rectifier; see `Column`."""

    def __init__(self, spec: ColumnSpec, twins: Twins, out_channels: int, *, parent: ColumnSpec | None = None) -> None:
        super().__init__(spec, twins, out_channels, parent=parent)
        self.norms = nn.ModuleList(nn.BatchNorm2d(stage.channels, eps=_LEAST_VARIANCE) for stage in spec.stages)

    def _normed(self, x: Tensor, stage: int) -> Tensor:
        normed: Tensor = self.norms[stage](x)
        return normed

    def settle(self, inputs: Sequence[Tensor], parent: Sequence[Tensor] = ()) -> None:
        """Measure the statistics of the normalisation anew, on at least two items; see `Column.forward`."""
        for module in self.norms:
            norm: Any = module
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            self.train()(inputs, parent)
        self.eval()

    def folded(self) -> dict[str, Tensor]:
        """The weights of a plain column that is the same in evaluation mode."""
        found = {k: v.detach().clone() for k, v in self.state_dict().items() if not k.startswith("norms.")}
        # All that a stage reads is scaled; what is added to it is added once, with the twin.
        for kind, convs in (("convs", self.convs), ("twins", self.twins), ("parents", self.parents)):
            for n, (conv, norm) in enumerate(zip(convs, self.norms, strict=False)):
                found[f"{kind}.{n}.weight"], bias = fold(conv, norm)
                if kind == "twins":
                    found[f"{kind}.{n}.bias"] = bias
        return found


def _above(spec: ColumnSpec, parent: ColumnSpec | None) -> list[int]:
    """Channels of the parent's stages that are twins of the column's own."""
    if parent is None:
        return []
    stages = parent.stages[len(parent.stages) - len(spec.stages) :]
    if [s.kernel for s in stages] != [s.kernel for s in spec.stages]:
        raise ValueError(f"expected a column with the kernels of its parent '{parent}', got '{spec}'")
    return [s.channels for s in stages]


def _taps(conv: Any) -> int:
    """Multiply-adds for one position."""
    return int(conv.weight.numel())


class Delta(nn.Module):
    """What a column has of its own: a difference to each weight that all columns share; zero at first.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Of the shared weights.
    rank : int, optional
        Differences of matrices are products of two with so many columns and rows; by default they are free.
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
        How many nets.
    rank : int, optional
        Of the differences; see `Delta`.
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
    """Columns of one shape, side by side in a tree: trained jointly, or W_0 first and then each on its own.

    Parameters
    ----------
    spec, twins, out_channels, parent
        Of each column, see `Column`.
    count : int
        How many columns.
    rank : int, optional
        Of their differences; see `Delta`.
    """

    shared: Column

    def __init__(
        self,
        spec: ColumnSpec,
        twins: Twins,
        out_channels: int,
        count: int,
        *,
        rank: int | None = None,
        parent: ColumnSpec | None = None,
    ) -> None:
        super().__init__(Column(spec, twins, out_channels, parent=parent), count, rank=rank)
        self._shape = (spec, twins, out_channels, parent)

    def column(self, k: int) -> Column:
        """Column `k` on its own, to run."""
        spec, twins, out_channels, parent = self._shape
        column = Column(spec, twins, out_channels, parent=parent)
        column.load_state_dict({name: w.detach() for name, w in self.weights(k).items()})
        return column.to(next(self.shared.parameters())).eval()

    def forward(
        self, inputs: Sequence[Tensor], index: Tensor, parent: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """What each item's column adds, and its stages; differentiable.

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
