"""Forks: copies of a net's later layers, each for one kind of tiles, so that an answer costs one net and its routing.

The trunk is a net trained end to end. A specialist starts as a copy of its parent's later layers, is trained further on
tiles of its kind, and may be forked again at a later layer. A tile follows one path of layers from root to leaf. A
linear reader of the map at each fork chooses the path, so only the path is computed, whatever the number of leaves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .conv_stack import BatchInvariantConv2d, ConvStack, StackSpec, fold, rectified
from .feature_tree import NO_NODE, ROOT


class Layers(nn.Module):
    """Consecutive stages of a `ConvStack` up to its reader, in training with batch normalisation.

    Parameters
    ----------
    convs, norms : sequence of Module
        Of each stage; the last has no ReLU.
    """

    def __init__(self, convs: Sequence[nn.Module], norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList(norms)

    @classmethod
    def of(cls, net: ConvStack) -> Self:
        """A copy of all stages of a net."""
        return cls(list(copy.deepcopy(net.convs)), list(copy.deepcopy(net.norms)))

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """The map after stages `start` to before `stop`, by default up to the reader's.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
            Input of the stage `start`.
        """
        last = len(self.convs) - 1
        for n in range(len(self.convs))[start:stop]:
            x = self.norms[n](_read(self.convs[n], x))
            x = x if n == last else rectified(x)
        return x

    def later(self, start: int) -> Self:
        """A copy of the stages from `start` on."""
        return type(self)(*(list(copy.deepcopy(each[start:])) for each in (self.convs, self.norms)))

    def folded(self) -> Self:
        """A copy with each batch norm folded into its convolution, in evaluation mode."""
        convs = [_folded(conv, norm) for conv, norm in zip(self.convs, self.norms, strict=True)]
        return type(self)(convs, [nn.Identity() for _ in convs]).eval()


@dataclass(frozen=True, eq=False)
class Fork:
    """A node of a tree of forks.

    Parameters
    ----------
    parent : int
        -1 for the root.
    stage : int
        First stage of its own; those before are its parent's.
    layers : Layers
        Its own stages, folded.
    classes : Tensor or None, int64, (outputs,)
        The class of each output; None if it answers for all. With classes there is one more output, "elsewhere": if it
        is the largest, the parent answers.
    split : int
        Stage at which its children begin, if it has some.
    router : Module or None
        Reads the input of stage `split`; one output a child.
    """

    parent: int
    stage: int
    layers: Layers
    classes: Tensor | None = None
    split: int = 0
    router: nn.Module | None = None


class Arrived(NamedTuple):
    """Tiles that reached a leaf: their places in the batch, int64, (n,), and the input of its first stage."""

    node: int
    rows: Tensor
    x: Tensor


@dataclass(frozen=True, eq=False)
class ForkAnswers:
    """Answers of tiles.

    Parameters
    ----------
    logits : Tensor, float, (n, classes)
        Minus infinity for classes that the answering node does not know.
    nodes : ndarray, int32, (n,)
        Leaf that each tile reached.
    macs : ndarray, int64, (n,)
        Multiply-adds spent on each, routing included.
    """

    logits: Tensor
    nodes: NDArray[np.int32]
    macs: NDArray[np.int64]


class ForkTree:
    """A trunk and its forks; a tile is the input of one cell.

    Parameters
    ----------
    trunk : ConvStack
        Trained; batch norm is folded.
    """

    def __init__(self, trunk: ConvStack) -> None:
        self.spec = trunk.spec
        self.forks = [Fork(NO_NODE, 0, Layers.of(trunk).folded())]

    @classmethod
    def of(cls, spec: StackSpec, forks: Sequence[Fork]) -> Self:
        """A tree of given nodes, the root first.

        Parameters
        ----------
        spec : StackSpec
            Of the trunk.
        forks : sequence of Fork
        """
        found = cls.__new__(cls)
        found.spec, found.forks = spec, list(forks)
        return found

    def __len__(self) -> int:
        return len(self.forks)

    @property
    def trunk(self) -> ConvStack:
        """A copy of the trunk."""
        found = ConvStack(self.spec)
        for conv, own in zip(found.convs, self.forks[ROOT].layers.convs, strict=True):
            conv.load_state_dict(own.state_dict())
        return found.eval()

    @property
    def depths(self) -> NDArray[np.int64]:
        """Number of forks from the root to each node."""
        found = np.zeros(len(self), np.int64)
        for node in range(1, len(self)):
            found[node] = found[self.forks[node].parent] + 1
        return found

    def children(self, node: int) -> NDArray[np.intp]:
        """Nodes directly below a node."""
        return np.flatnonzero([fork.parent == node for fork in self.forks])

    def grow(
        self,
        node: int,
        stage: int,
        router: nn.Module,
        layers: Sequence[Layers],
        classes: Sequence[Tensor | None] | None = None,
    ) -> list[int]:
        """Fork a leaf, and return its children's numbers.

        Parameters
        ----------
        node : int
        stage : int
            First stage of the children's own, not before the leaf's own and not after the reader.
        router : Module
            See `Fork`.
        layers : sequence of Layers
            Stages of each child from `stage` on, without batch norm; not copied, so they may be trained afterwards.
        classes : sequence of Tensor, int64, or None
            See `Fork`; by default all children answer for all classes.
        """
        above = self.forks[node]
        if above.router is not None:
            raise ValueError(f"node {node} has children already: {self.children(node).tolist()}; fork a leaf")
        if not above.stage <= stage < len(self.spec.stages):
            raise ValueError(
                f"expected a stage from {above.stage} to {len(self.spec.stages) - 1} for forks of node {node}, "
                f"got {stage}"
            )
        known = [None] * len(layers) if classes is None else classes
        self.forks[node] = replace(above, split=stage, router=router.eval())
        self.forks += [Fork(node, stage, own, outputs) for own, outputs in zip(layers, known, strict=True)]
        return list(range(len(self) - len(layers), len(self)))

    def layers_of(self, node: int, stage: int) -> Layers:
        """A copy of a node's stages from `stage` on, from which its forks start."""
        fork = self.forks[node]
        return fork.layers.later(stage - fork.stage)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> ForkAnswers:
        """Answer tiles.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
        """
        logits = x.new_full((len(x), self.spec.stages[-1].channels), -torch.inf)
        found = ForkAnswers(logits, np.zeros(len(x), np.int32), np.zeros(len(x), np.int64))
        for arrived in self.arrivals(x):
            found.nodes[arrived.rows] = arrived.node
            found.macs[arrived.rows] += self.path_macs(arrived.node)
            self._answer(arrived.node, arrived.x, self.forks[arrived.node].stage, arrived.rows, found)
        return found

    def arrivals(self, x: Tensor, start: int = 0) -> Iterator[Arrived]:
        """Send tiles down their paths.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
            Input of the root's stage `start`, which must not be after its fork.

        Yields
        ------
        Arrived
            Of each leaf that is reached.
        """
        yield from self._descend(Arrived(ROOT, torch.arange(len(x)), x), start)

    def _descend(self, at: Arrived, start: int) -> Iterator[Arrived]:
        fork = self.forks[at.node]
        if fork.router is None:
            yield at
            return
        with torch.no_grad():  # not around a yield: it would hold in what reads this
            x = fork.layers(at.x, start - fork.stage, fork.split - fork.stage)
            chosen = fork.router(x).flatten(1).softmax(dim=1).argmax(dim=1)
        for number, child in enumerate(self.children(at.node).tolist()):
            mask = chosen == number
            if bool(mask.any()):
                yield from self._descend(Arrived(child, at.rows[mask], x[mask]), fork.split)

    def path_macs(self, leaf: int) -> int:
        """Multiply-adds of the stages and routers before a leaf's first stage, for one tile."""
        total, node = 0, leaf
        while node != ROOT:
            node = self.forks[node].parent
            fork = self.forks[node]
            assert fork.router is not None
            total += self.macs(node, fork.stage, fork.split) + _weights(fork.router)
        return total

    def _answer(self, node: int, x: Tensor, stage: int, rows: Tensor, found: ForkAnswers) -> None:
        """The node's answers; `x` is the input of `stage`, which may be a later one than its first."""
        fork = self.forks[node]
        logits = fork.layers(x, stage - fork.stage).flatten(1)
        found.macs[rows] += self.macs(node, stage)
        if fork.classes is None:
            found.logits[rows] = logits
            return
        known = len(fork.classes)
        here = logits.argmax(dim=1) < known
        inside, outside = rows[here], rows[~here]
        found.logits[inside[:, None], fork.classes] = logits[here, :known]
        if len(outside):
            self._answer(fork.parent, x[~here], fork.stage, outside, found)

    def macs(self, node: int, start: int, stop: int | None = None) -> int:
        """Multiply-adds of a node's stages from `start` to before `stop`, by default to the end, for one tile."""
        fork, total, side = self.forks[node], 0, self.spec.input_size(1)
        for number, stage in enumerate(self.spec.stages[:stop]):
            side = (side - stage.kernel) // stage.stride + 1
            if number >= start:
                total += side**2 * _weights(fork.layers.convs[number - fork.stage])
        return total


def _read(conv: Any, x: Tensor) -> Tensor:
    """A convolution; in training a kernel as large as the map is a product, which is faster."""
    if torch.is_grad_enabled() and conv.kernel_size == x.shape[2:]:
        return functional.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)[:, :, None, None]
    found: Tensor = conv(x)
    return found


def _weights(module: nn.Module) -> int:
    """Multiply-adds for one position."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


def _folded(conv: Any, norm: nn.Module) -> BatchInvariantConv2d:
    weight, bias = fold(conv, norm)
    found = BatchInvariantConv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
    found.load_state_dict({"weight": weight, "bias": bias})
    return found
