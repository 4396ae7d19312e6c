"""Training on fresh samples: nets end to end, and layers to which samples come little by little."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.glyphs.distortion import Sampler
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.fork import Layers

NET_BATCH, BATCH = 1024, 128
_NET_RATE, ON_RATE, _DECAY, _WARM = 8e-3, 2e-3, 1e-2, 0.05


class Learner:
    """Trains layers in place on samples that are kept until there is a batch of them.

    Parameters
    ----------
    layers : Layers
    rate : float
        Largest learning rate; it rises over the first twentieth of the samples, and falls to zero by a cosine.
    batch : int
    """

    def __init__(self, layers: Layers, rate: float, batch: int = BATCH) -> None:
        self._layers, self._rate, self._batch = layers, rate, batch
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
            loss = functional.cross_entropy(self._layers(some).flatten(1), wanted)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
            self.samples += self._batch


def train_net(spec: StackSpec, sampler: Sampler, samples: int, *, seed: int) -> ConvStack:
    """Train a net end to end on fresh samples; its batch norm is not folded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvStack(spec, batch_norm=True)
    layers = Layers(list(net.convs), list(net.norms)).to(memory_format=torch.channels_last)  # its own, not copies
    learner = Learner(layers, _NET_RATE, NET_BATCH)
    for x, classes, done in stream(sampler, samples):
        learner.see(x, classes, done)
    return net.eval()


def stream(sampler: Sampler, samples: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Fresh samples of all classes alike in batches, their classes, and the share drawn before."""
    count = math.ceil(samples / NET_BATCH)
    for number in range(count):
        x, classes = sampler.draw(NET_BATCH)
        yield x, classes, number / count
