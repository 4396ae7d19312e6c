"""Growth of forks: clusters of a node's own features, a reader that finds them at the fork, and training by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from coarse2fine.fitting.classes.learner import Learner
from coarse2fine.models.clustering import kmeans, merged, nearest
from coarse2fine.models.conv_stack import BatchInvariantConv2d
from coarse2fine.models.feature_tree import ROOT
from coarse2fine.models.fork import ForkTree

# Fewest samples of a cluster, as a share of an equal part, and most samples that are clustered.
_SMALLEST, _CLUSTERED = 0.2, 2048
_ROUTER_EPOCHS, _ROUTER_RATE, _ROUTER_BATCH = 6, 3e-3, 256
# A leaf with a head of its own knows the classes that make up this share of its samples.
_KNOWN = 0.995


@dataclass(frozen=True)
class Step:
    """One depth of a tree: the stage at which nodes fork, children of each, and the share of samples until the next."""

    stage: int
    count: int
    until: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How a tree of forks is grown.

    Parameters
    ----------
    steps : tuple of Step
        From the root on.
    rate : float
        Largest learning rate.
    router : callable, optional
        From the number of children to a module that deals tiles to them; by default a linear reader of the map at the
        fork, trained to name the cluster of each tile's features.
    own_heads : bool
        Leaves of the last step answer only for the usual classes of their kind, or send back to their parent.
    """

    steps: tuple[Step, ...]
    rate: float = 1e-3
    router: Callable[[int], nn.Module] | None = None
    own_heads: bool = False


@dataclass
class Growing:
    """A tree of forks in training, all of which learn from one stream of samples.

    Parameters
    ----------
    tree : ForkTree
        A trunk without forks.
    recipe : Recipe
    x, classes : Tensor
        Fresh samples for clusters, routers and lists of classes, (n, c, h, w), and the class of each, (n,).
    seed : int
    """

    tree: ForkTree
    recipe: Recipe
    x: Tensor
    classes: Tensor
    seed: int
    learners: dict[int, Learner] = field(default_factory=dict)
    _spent: float = 0.0
    _taken: int = 0
    _from: float = 0.0

    def see(self, x: Tensor, classes: Tensor, start: int, done: float) -> None:
        """Learn from samples.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
            The trunk's map that is the input of stage `start`, which is not after the first fork.
        classes : Tensor, int64, (n,)
        start : int
        done : float
            Share of the stream before.
        """
        steps = self.recipe.steps
        if not self._taken or (self._taken < len(steps) and done >= steps[self._taken - 1].until):
            self._grow(steps[self._taken], last=self._taken == len(steps) - 1)
            self._from, self._taken = done, self._taken + 1
        until = steps[self._taken - 1].until
        share = min(1.0, (done - self._from) / (until - self._from))
        for node, rows, own in self.tree.arrivals(x, start):
            if node in self.learners:
                targets = targets_of(self.tree.forks[node].classes, classes[rows])
                self.learners[node].see(own, targets, share)
                self._spent += 3.0 * self.tree.macs(node, self.tree.forks[node].stage) * len(rows)

    def training_macs(self, samples: int) -> float:
        """Multiply-adds of training: three times those of what learns, and those of what is frozen before it."""
        return self._spent + samples * float(np.mean([self.tree.path_macs(node) for node in self.learners]))

    def usual_leaf(self) -> Tensor:
        """The child of the root to which most samples of each class go, int64, (classes,)."""
        children = self.tree.children(ROOT).tolist()
        counts = torch.zeros(len(children), self.tree.spec.stages[-1].channels, dtype=torch.int64)
        for node, rows, _ in self.tree.arrivals(self.x):
            counts[children.index(node)] = torch.bincount(self.classes[rows], minlength=counts.shape[1])
        return counts.argmax(dim=0)

    def _grow(self, step: Step, *, last: bool) -> None:
        """Fork all leaves."""
        self.learners = {}
        for node, rows, own in list(self.tree.arrivals(self.x)):
            fork, classes = self.tree.forks[node], self.classes[rows]
            with torch.no_grad():
                at = fork.layers(own, 0, step.stage - fork.stage)
                high = fork.layers(own, 0, len(fork.layers.convs) - 1)
            if self.recipe.router is not None:
                router = self.recipe.router(step.count)
            else:
                kinds = _kinds(high, step.count, self.seed)
                if kinds.max() == 0:
                    continue
                router = _router(at, kinds, self.seed)
            with torch.no_grad():
                chosen = router(at).flatten(1).argmax(dim=1)
            count = int(router(at[:1]).shape[1])
            layers = [self.tree.layers_of(node, step.stage) for _ in range(count)]
            known: list[Tensor | None] = [None] * count
            if last and self.recipe.own_heads:
                for n, own_layers in enumerate(layers):
                    outputs = known[n] = _usual(classes[chosen == n])
                    own_layers.convs[-1] = _narrowed(own_layers.convs[-1], outputs)
            for child, own_layers in zip(self.tree.grow(node, step.stage, router, layers, known), layers, strict=True):
                self.learners[child] = Learner(own_layers, self.recipe.rate)


def targets_of(known: Tensor | None, classes: Tensor) -> Tensor:
    """Output that each class, (n,), has at a leaf which knows these classes; "elsewhere" is the last."""
    if known is None:
        return classes
    at = torch.searchsorted(known, classes).clamp_(max=len(known) - 1)
    return torch.where(known[at] == classes, at, len(known))


def _kinds(high: Tensor, count: int, seed: int) -> Tensor:
    """Cluster of each item by its scaled features, (n, c, 1, 1)."""
    rows = high.flatten(1)
    vectors = ((rows - rows.mean(dim=0)) / (rows.std(dim=0) + 1e-6)).numpy()
    if len(vectors) < 2 * count:
        return torch.zeros(len(vectors), dtype=torch.int64)
    few = vectors[:_CLUSTERED]
    centres = merged(few, kmeans(few, count, seed=seed), round(_SMALLEST * len(few) / count))
    return torch.from_numpy(nearest(vectors, centres)[0])


def _router(at: Tensor, kinds: Tensor, seed: int) -> nn.Module:
    """A linear reader of whole maps, (n, c, h, w), trained to name the cluster of each, (n,)."""
    rows = at.flatten(1)
    mean, scale = rows.mean(dim=0), rows.std(dim=0) + 1e-3
    scaled, rng = (rows - mean) / scale, torch.Generator().manual_seed(seed)
    count = int(kinds.max()) + 1
    weight, bias = torch.zeros(count, rows.shape[1], requires_grad=True), torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], _ROUTER_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _ROUTER_EPOCHS)
    for _ in range(_ROUTER_EPOCHS):
        for some in torch.split(torch.randperm(len(rows), generator=rng), _ROUTER_BATCH):
            loss = functional.cross_entropy(functional.linear(scaled[some], weight, bias), kinds[some])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        schedule.step()
    conv = BatchInvariantConv2d(at.shape[1], count, at.shape[2])
    shape = conv.weight.shape
    conv.load_state_dict({"weight": (weight / scale).reshape(shape), "bias": bias - weight @ (mean / scale)})
    return conv.requires_grad_(requires_grad=False)


def _usual(classes: Tensor) -> Tensor:
    """The commonest classes that make up `_KNOWN` of the samples, in order."""
    sizes, order = torch.bincount(classes).sort(descending=True, stable=True)
    before = (sizes.cumsum(0) - sizes) / max(1, len(classes))
    return order[(before < _KNOWN) & (sizes > 0)].sort().values


def _narrowed(reader: Any, known: Tensor) -> BatchInvariantConv2d:
    """A copy of a reader's outputs for some classes, and one more for "elsewhere"."""
    conv = BatchInvariantConv2d(reader.in_channels, len(known) + 1, 1)
    one = {name: torch.cat([p.detach()[known], torch.zeros_like(p[:1])]) for name, p in reader.named_parameters()}
    conv.load_state_dict(one)
    return conv
