"""Interface of a base, the net that scans: common to the small built-in nets and timm's backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def round_up(value: int, step: int) -> int:
    """The least multiple of `step` that is not below `value`."""
    return -(-value // step) * step


class BaseSpec(Protocol):
    """The shape of a base; a model file holds only its text, `str(spec)`, and the weights."""

    @property
    def in_channels(self) -> int:
        """Channels of the input image."""
        ...

    @property
    def stride(self) -> int:
        """Input pixels from one cell to the next."""
        ...

    @property
    def margin(self) -> int:
        """Halo on every side of a block of cells, in input pixels."""
        ...

    @property
    def align(self) -> int:
        """Blocks start, and have sides, at multiples of this many cells."""
        ...

    @property
    def macs_per_cell(self) -> float:
        """Multiply-adds for a cell of an infinite image, without halo."""
        ...

    def input_size(self, cells: int) -> int:
        """Input pixels along one side that give `cells` cells."""
        ...

    def macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds of a block of cells, its halo included."""
        ...


class Base(nn.Module, ABC):
    """A net that computes features of every cell of a block, and one answer from the last of them.

    Attributes
    ----------
    spec : BaseSpec
    reader : nn.Conv2d
        The linear layer that reads the answer off the high-level map.
    """

    spec: BaseSpec
    reader: nn.Conv2d

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """Activations of every stage; the last is the high-level map, not negative, with one position a cell.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
            A block with its halo: `spec.input_size` of its cells.
        """

    @property
    def high_channels(self) -> int:
        """Channels of the high-level map."""
        return self.reader.in_channels

    def high(self, x: Tensor) -> Tensor:
        """The last of `features` alone, which takes less memory."""
        return self.features(x)[-1]

    def head(self, high: Tensor) -> Tensor:
        """The answer, a linear function of the high-level map."""
        return self.reader(high)  # type: ignore[no-any-return]

    def read_by(self, weights: NDArray[np.float32], bias: float) -> Self:
        """A copy whose answer is another weighted sum of the high-level map.

        Parameters
        ----------
        weights : ndarray, float32, (high_channels,)
        bias : float
            Left out if the reader has none.
        """
        net = deepcopy(self)
        with torch.no_grad():
            net.reader.weight.copy_(torch.from_numpy(weights).view_as(net.reader.weight))
            if net.reader.bias is not None:
                net.reader.bias.fill_(bias)
        return net

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.high(x))
