"""Routers to compare with that of a tree of forks: by chance, and by what is known already."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional

from coarse2fine.models.feature_tree import ROOT
from coarse2fine.models.fork import ForkTree


class ByChance(nn.Module):
    """Deals tiles to `count` children by digits of their features that mean nothing; it costs nothing."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def forward(self, x: Tensor) -> Tensor:
        """One-hot scores, (n, count, 1, 1)."""
        digits = (x.double().sum(dim=(1, 2, 3)) * 1e4).floor().long() % self._count
        return functional.one_hot(digits, self._count).float()[:, :, None, None] * 100


def rerouted(tree: ForkTree, leaves: Tensor) -> ForkTree:
    """A tree with one fork that sends the tiles of the next call to these children, int64, (n,)."""
    found = ForkTree.of(tree.spec, tree.forks)
    found.forks[ROOT] = replace(tree.forks[ROOT], router=_Given(leaves, len(tree.children(ROOT))))
    return found


class _Given(nn.Module):
    """Scores of children that are known already."""

    def __init__(self, chosen: Tensor, count: int) -> None:
        super().__init__()
        self._chosen, self._count = chosen, count

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002 (known already)
        return functional.one_hot(self._chosen, self._count).float()[:, :, None, None] * 100
