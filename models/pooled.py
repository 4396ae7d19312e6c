"""A net that scans finely and answers for larger cells: for tiles in which a find may lie anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from .base import Base
from .conv_stack import ConvStack, StackSpec

PREFIX = "pooled"
_MOST_POOL = 1024
# A tile without any expectation: the least that the logarithm is taken of.
_LEAST = 1e-9


@dataclass(frozen=True)
class PooledSpec:
    """The shape of a `PooledStack`.

    Parameters
    ----------
    inner : StackSpec
        The net of the small cells.
    pool : int
        Small cells along a side of a cell.

    Raises
    ------
    ValueError
        If `pool` is out of range.
    """

    inner: StackSpec
    pool: int

    def __post_init__(self) -> None:
        if not 1 <= self.pool <= _MOST_POOL:
            raise ValueError(f"expected 1 to {_MOST_POOL} small cells along a cell, got {self.pool}")

    @classmethod
    def parse(cls, in_channels: int, text: str) -> Self:
        """Build from text such as ``"pooled:8 4/2:16 3:24 1:1"``: small cells along a side, then the net."""
        pool, _, stages = text.removeprefix(f"{PREFIX}:").partition(" ")
        return cls(StackSpec.parse(in_channels, stages), int(pool))

    def __str__(self) -> str:
        return f"{PREFIX}:{self.pool} {self.inner}"

    @property
    def in_channels(self) -> int:
        """Channels of the input image."""
        return self.inner.in_channels

    @property
    def stride(self) -> int:
        """Input pixels from one cell to the next."""
        return self.inner.stride * self.pool

    @property
    def margin(self) -> int:
        """Halo on every side of a block of cells, in input pixels."""
        return self.inner.margin

    @property
    def align(self) -> int:
        """Blocks may start at any cell."""
        return 1

    @property
    def macs_per_cell(self) -> float:
        """Multiply-adds for a cell of an infinite image, without halo."""
        return self.inner.macs_per_cell * self.pool**2

    def input_size(self, cells: int) -> int:
        """Input pixels along one side that give `cells` cells."""
        return self.inner.input_size(cells * self.pool)

    def macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds of a block of cells, its halo included."""
        return self.inner.macs(cell_height * self.pool, cell_width * self.pool)


class PooledStack(Base):
    """A `ConvStack` of small cells, and for each cell the largest of their features and the odds of any find.

    The last high-level feature is the sum of softplus(logit) over the small cells, which is -log of the probability
    that none of them holds a find (noisy-or). The answer is the logit of the probability that any does.

    Parameters
    ----------
    spec : PooledSpec
    """

    spec: PooledSpec

    def __init__(self, spec: PooledSpec) -> None:
        super().__init__()
        self.spec = spec
        self.inner = ConvStack(spec.inner)

    @property
    def reader(self) -> nn.Conv2d:  # type: ignore[override]
        """The linear layer that gives the logit of a small cell."""
        return self.inner.reader

    @property
    def high_channels(self) -> int:
        return self.inner.reader.in_channels + 1

    def high(self, x: Tensor) -> Tensor:
        high = self.inner.high(x)
        return pooled(high, self.inner.head(high), self.spec.pool)

    def features(self, x: Tensor) -> list[Tensor]:
        stages = self.inner.features(x)
        return [*stages, pooled(stages[-1], self.inner.head(stages[-1]), self.spec.pool)]

    def head(self, high: Tensor) -> Tensor:
        return any_logit(high[:, -1:])


def pooled(high: Tensor, logit: Tensor, pool: int) -> Tensor:
    """The largest of each feature over squares of small cells, and the sum of softplus of the logits.

    Parameters
    ----------
    high : Tensor, float, (n, c, pool * h, pool * w)
    logit : Tensor, float, (n, 1, pool * h, pool * w)
    pool : int

    Returns
    -------
    Tensor, float32, (n, c + 1, h, w)
    """
    most = nn.functional.max_pool2d(high.float(), pool)
    none = nn.functional.avg_pool2d(nn.functional.softplus(logit.float()), pool) * pool**2
    return torch.cat([most, none], dim=1)


def any_logit(none: Tensor) -> Tensor:
    """Logit of the probability that any small cell holds a find, from -log of the probability that none does."""
    return none + torch.log(-torch.expm1(-none.clamp(min=_LEAST)))
