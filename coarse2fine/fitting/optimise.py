"""Training loop of all nets but specialists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick

Item = TypeVar("Item")
_AHEAD = 4
_SLOW = 1 / 3


def train(
    net: nn.Module,
    make_batch: Callable[[np.random.Generator], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    runtime: Runtime,
    *,
    steps: int,
    seed: int,
    rate: float = 3e-3,
    slow: nn.Module | None = None,
    tick: Tick | None = None,
) -> float:
    """Fit a net by AdamW with a one-cycle learning rate.

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
    seed : int
        Each step draws from its own generator, so threads do not change the result.
    rate : float
        Highest learning rate.
    slow : Module, optional
        Pretrained part of the net, trained at a third of the rate.
    tick : callable, optional
        Called with the numbers of steps done and of all steps.

    Returns
    -------
    float
        Mean loss of the last tenth of the steps.
    """
    net.to(runtime.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    groups = _groups(net, slow, rate)
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=1e-3)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.15)
    mixed = torch.autocast(runtime.device.type, torch.bfloat16, enabled=runtime.dtype == torch.bfloat16)
    recent: list[float] = []

    def draw(step: int) -> tuple[Tensor, ...]:
        return make_batch(np.random.default_rng((seed, step)))

    for step, batch in enumerate(_ahead(draw, steps)):
        x, *rest = (t.to(runtime.device) for t in batch)
        with mixed:
            out = net(x.to(memory_format=torch.channels_last))
        value = loss(out, *rest)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step >= steps * 0.9:
            recent.append(float(value.detach()))
        if tick:
            tick(step + 1, steps)
    net.cpu().eval()
    return float(np.mean(recent))


def _groups(net: nn.Module, slow: nn.Module | None, rate: float) -> list[dict[str, Any]]:
    if slow is None:
        return [{"params": list(net.parameters()), "lr": rate}]
    known = set(slow.parameters())
    new = [p for p in net.parameters() if p not in known]
    return [{"params": new, "lr": rate}, {"params": list(slow.parameters()), "lr": _SLOW * rate}]


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
