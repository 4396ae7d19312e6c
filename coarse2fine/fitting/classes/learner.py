"""Training on samples that are drawn anew each time: of nets end to end, and of layers that get them bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.fork import Layers

NET_BATCH, BATCH = 1024, 128
ON_RATE = 2e-3
"""Learning rate of a trained net that is trained on."""
_NET_RATE, _DECAY, _WARM = 8e-3, 1e-2, 0.05


class Samples(NamedTuple):
    """Input of a net, float32, (n, c, h, w), and the class of each, int64, (n,)."""

    images: Tensor
    classes: Tensor


Draw = Callable[[int], Samples]
"""Draws so many samples, each time others."""


class Learner:
    """Trains layers in place on samples that are kept until there is a batch of them.

    Parameters
    ----------
    layers : Layers
    rate : float
        Largest learning rate; it rises over the first twentieth of the samples, and falls to zero by a cosine.
    batch : int
    smoothing : float
        Share of each target that is spread over all classes.
    """

    def __init__(self, layers: Layers, rate: float, batch: int = BATCH, smoothing: float = 0.0) -> None:
        self._layers, self._rate, self._batch, self._smoothing = layers, rate, batch, smoothing
        self._optimizer = torch.optim.AdamW(layers.parameters(), rate, weight_decay=_DECAY, fused=True)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self.samples = 0

    def see(self, x: Tensor, targets: Tensor, done: float) -> None:
        """Take samples, and learn if there are enough of them.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
            Input of the first stage.
        targets : Tensor, int64, (n,)
        done : float
            Share of the training before, 0 to 1.
        """
        self._waiting.append((x, targets))
        if sum(len(t) for _, t in self._waiting) < self._batch:
            return
        x, targets = (torch.cat(each) for each in zip(*self._waiting, strict=True))
        whole = len(targets) // self._batch * self._batch
        self._waiting = [(x[whole:].clone(), targets[whole:])]
        rate = self._rate * min(1.0, done / _WARM + 0.05) * (1 + math.cos(math.pi * done)) / 2
        self._optimizer.param_groups[0]["lr"] = rate
        for some, wanted in zip(*(torch.split(each[:whole], self._batch) for each in (x, targets)), strict=True):
            loss = functional.cross_entropy(self._layers(some).flatten(1), wanted, label_smoothing=self._smoothing)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
            self.samples += self._batch


def train_net(
    spec: StackSpec,
    draw: Draw,
    samples: int,
    *,
    seed: int,
    rate: float = _NET_RATE,
    batch: int = NET_BATCH,
    smoothing: float = 0.0,
    start: ConvStack | None = None,
) -> ConvStack:
    """Train a net end to end; its batch norm is not folded.

    Parameters
    ----------
    spec : StackSpec
    draw : callable
    samples : int
        Number of samples, rounded up to whole batches.
    seed : int
        Of the weights at the start.
    rate, batch, smoothing
        See `Learner`.
    start : ConvStack, optional
        A net to go on from, with batch norms; it is changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvStack(spec, batch_norm=True) if start is None else start.train()
    layers = Layers(list(net.convs), list(net.norms)).to(memory_format=torch.channels_last)  # its own, not copies
    learner = Learner(layers, rate, batch, smoothing)
    for x, classes, done in stream(draw, samples, batch):
        learner.see(x, classes, done)
    return net.eval()


def stream(draw: Draw, samples: int, batch: int = NET_BATCH) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Samples in batches, their classes, and the share drawn before."""
    count = math.ceil(samples / batch)
    for number in range(count):
        x, classes = draw(batch)
        yield x, classes, number / count
