"""Training loop of all nets but specialists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick

RATE = 3e-3
"""Highest learning rate of the built-in nets."""

Item = TypeVar("Item")
_AHEAD = 4
_SLOW, _DECAY = 1 / 3, 1e-3
# Orthogonal steps: their rate beside AdamW's, their momentum, and the least side of a weight matrix.
_ORTHOGONAL, _MOMENTUM, _LEAST_RANK = 7.0, 0.95, 9
# Share of the steps in which the rate rises, and the rate at first; if checked, at most so many steps.
_WARM, _FIRST, _MOST_WARM = 0.15, 1 / 25, 40
# The net is checked with weights averaged over about so many steps, which shows what a lower rate will bring.
_EVERY, _AVERAGED = 20, 0.95
# A plateau: the last 40 % of the steps, 60 steps at least, have lowered the held-out loss by less than 2 %.
_LEAST_STEPS, _RECENT, _GAIN = 60, 0.4, 0.02
# Share of all steps in which the rate falls.
_FALL = 0.4


# Steps that a training with checks usually takes, at most.
_USUAL = 400


def likely_steps(steps: int) -> int:
    """Steps that a training with checks will probably take, if it may take `steps`."""
    return min(steps, _USUAL)


class Trained(NamedTuple):
    """Result of a training.

    Parameters
    ----------
    loss : float
        Mean loss of the last tenth of the steps.
    steps : int
        Steps taken.
    """

    loss: float
    steps: int


def train(
    net: nn.Module,
    make_batch: Callable[[np.random.Generator], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    runtime: Runtime,
    *,
    steps: int,
    seed: int,
    rate: float = RATE,
    slow: nn.Module | None = None,
    orthogonal: bool = False,
    check: Callable[[nn.Module], float] | None = None,
    tick: Tick | None = None,
) -> Trained:
    """Fit a net by AdamW; the learning rate rises, and falls at the end.

    Without `check` it is a one-cycle rate. With it, the rate is constant until the held-out loss no longer falls, or
    until the last two fifths of the steps, and then falls.

    Parameters
    ----------
    net : Module
        Changed in place; left in evaluation mode on the CPU.
    make_batch : callable
        From a random generator to the input (n, c, h, w) and whatever else `loss` takes; called in threads.
    loss : callable
        From the net's output and the rest of the batch to a scalar.
    runtime : Runtime
        Device; bfloat16 runs as mixed precision.
    steps : int
        Number of steps; with `check`, at most so many.
    seed : int
        Each step draws from its own generator, so threads do not change the result.
    rate : float
        Highest learning rate.
    slow : Module, optional
        Pretrained part of the net, trained at a third of the rate.
    orthogonal : bool
        Whether the larger convolutions take orthogonal steps.
    check : callable, optional
        From the net, in evaluation mode, to its loss on held-out data.
    tick : callable, optional
        Called with the numbers of steps done and of all steps.
    """
    net.to(runtime.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizers = _optimizers(net, slow, rate, orthogonal=orthogonal)
    schedule = _OneCycle(optimizers, steps) if check is None else _UntilPlateau(optimizers, steps, net, check)
    mixed = torch.autocast(runtime.device.type, torch.bfloat16, enabled=runtime.dtype == torch.bfloat16)
    losses: list[float] = []

    def draw(step: int) -> tuple[Tensor, ...]:
        return make_batch(np.random.default_rng((seed, step)))

    for step, batch in enumerate(_ahead(draw, steps)):
        x, *rest = (t.to(runtime.device) for t in batch)
        with mixed:
            out = net(x.to(memory_format=torch.channels_last))
        value = loss(out, *rest)
        net.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(value.detach()))
        with mixed:
            schedule.step(step + 1)
        if tick:
            tick(step + 1, schedule.likely(step + 1))
        if step + 1 >= schedule.steps:
            break
    net.cpu().eval()
    return Trained(float(np.mean(losses[math.ceil(0.9 * len(losses)) - 1 :])), len(losses))


def outputs(net: nn.Module, x: Tensor, batch: int, runtime: Runtime) -> Tensor:
    """A net's output for many inputs, a batch at a time, on the CPU in float32."""
    return torch.cat([net(part.to(runtime.device)).float().cpu() for part in torch.split(x, batch)])


class _OneCycle:
    """A learning rate that rises and falls over a number of steps."""

    def __init__(self, optimizers: Sequence[Any], steps: int) -> None:
        self.steps = steps
        first, *others = optimizers
        rates = [group["lr"] for group in first.param_groups]
        self._first, self._highest = first.param_groups[0], rates[0]
        self._others = [(group, group["lr"]) for each in others for group in each.param_groups]
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(first, rates, total_steps=steps, pct_start=_WARM)
        self._follow()

    def likely(self, _: int) -> int:
        """Steps in all."""
        return self.steps

    def step(self, _: int) -> None:
        """After a step of the optimiser."""
        self._schedule.step()
        self._follow()

    def _follow(self) -> None:
        """Give the rates of the other optimisers the course of the first one's."""
        for group, rate in self._others:
            group["lr"] = rate * self._first["lr"] / self._highest


class _UntilPlateau:
    """A learning rate that rises, stays until the held-out loss no longer falls, and then falls to 0.

    Attributes
    ----------
    steps : int
        Steps in all, as far as is known.
    """

    def __init__(
        self,
        optimizers: Sequence[Any],
        steps: int,
        net: nn.Module,
        check: Callable[[nn.Module], float],
    ) -> None:
        self.steps = steps
        self._net, self._check = net, check
        self._groups = [(group, group["lr"]) for each in optimizers for group in each.param_groups]
        self._warm = min(max(1, round(_WARM * steps)), _MOST_WARM)
        self._falls = round((1 - _FALL) * steps)  # from this step on
        average = get_ema_multi_avg_fn(_AVERAGED)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        self._seen: list[tuple[int, float]] = []
        self._set(0)

    def likely(self, done: int) -> int:
        """Steps in all, as far as can be told after `done` of them."""
        return self.steps if done >= self._falls else max(likely_steps(self.steps), round(done / (1 - _FALL)))

    def step(self, done: int) -> None:
        """After a step of the optimiser, the `done`-th."""
        if done < self._falls:
            self._averaged.update_parameters(self._net)
            if done % _EVERY == 0 and done >= self._warm and self._at_plateau(done):
                self._falls, self.steps = done, round(done / (1 - _FALL))
        self._set(done)

    @torch.no_grad()
    def _at_plateau(self, done: int) -> bool:
        self._averaged.eval()
        self._seen.append((done, self._check(self._averaged)))
        recent = done - max(_RECENT * done, _LEAST_STEPS)
        before = [value for step, value in self._seen if step <= recent]
        return bool(before) and min(value for _, value in self._seen) > (1 - _GAIN) * min(before)

    def _set(self, step: int) -> None:
        if step < self._warm:
            share = _FIRST + (1 - _FIRST) * (1 - math.cos(math.pi * step / self._warm)) / 2
        else:
            fallen = max(0.0, (step - self._falls) / (self.steps - self._falls))
            share = (1 + math.cos(math.pi * min(fallen, 1.0))) / 2
        for group, rate in self._groups:
            group["lr"] = share * rate


def _optimizers(net: nn.Module, slow: nn.Module | None, rate: float, *, orthogonal: bool) -> list[Any]:
    """AdamW, and orthogonal steps for the larger convolutions if wanted."""
    inner = [p for p in net.parameters() if p.ndim == 4][:-1]  # the last layer decides how sure the net is
    turned = [p for p in inner if orthogonal and min(len(p), p[0].numel()) >= _LEAST_RANK]
    known = {id(p) for p in turned}
    slowly = set() if slow is None else {id(p) for p in slow.parameters()}
    rest = [p for p in net.parameters() if id(p) not in known]
    groups = [{"params": [p for p in rest if id(p) not in slowly], "lr": rate}]
    if slow is not None:
        groups.append({"params": [p for p in rest if id(p) in slowly], "lr": _SLOW * rate})
    adam = torch.optim.AdamW(groups, lr=rate, weight_decay=_DECAY)
    return [adam, _Orthogonal(turned, _ORTHOGONAL * rate)] if turned else [adam]


class _Orthogonal:
    """Steps of equal size in all directions of a weight matrix: the momentum with its singular values set to about 1.

    The method is Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), with a Newton-Schulz iteration. On our
    scenes it needs about half the steps of AdamW.

    Parameters
    ----------
    weights : sequence of Tensor
        Of convolutions, (out, in, h, w).
    rate : float
        Learning rate.
    """

    def __init__(self, weights: Sequence[Tensor], rate: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": rate}]
        self._weights = [(weight, torch.zeros_like(weight)) for weight in weights]

    @torch.no_grad()
    def step(self) -> None:
        """Change the weights by their gradients."""
        rate = self.param_groups[0]["lr"]
        for weight, momentum in self._weights:
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 1 - _MOMENTUM)
            matrix = weight.grad.lerp(momentum, _MOMENTUM).flatten(1)
            taller = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            weight.mul_(1 - rate * _DECAY)
            weight.add_(_orthogonal(matrix).view_as(weight), alpha=-rate * taller)


def _orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors and singular values near 1."""
    x = matrix / (matrix.norm() + 1e-7)
    turned = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        square = turned @ turned.T
        turned = 3.4445 * turned + (2.0315 * square @ square - 4.775 * square) @ turned
    found: Tensor = turned.T if x.shape[0] > x.shape[1] else turned
    return found


def _ahead(make: Callable[[int], Item], count: int) -> Iterator[Item]:
    """``make(0) ... make(count - 1)`` in order, prefetched in threads."""
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(make, i) for i in range(min(_AHEAD, count))]
        try:
            for i in range(count):
                yield waiting.pop(0).result()
                if i + _AHEAD < count:
                    waiting.append(pool.submit(make, i + _AHEAD))
        finally:
            for future in waiting:
                future.cancel()
