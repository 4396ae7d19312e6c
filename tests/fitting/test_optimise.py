"""Training ends when the held-out loss no longer falls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coarse2fine.fitting.optimise import Trained, _orthogonal, train
from coarse2fine.models.runtime import Runtime


class Run:
    """A training of one convolution, with the losses that its checks are told."""

    def __init__(self, runtime: Runtime, told: Callable[[int], float] | None, steps: int = 300) -> None:
        torch.manual_seed(0)
        self.net, self.ticks, self.checks = nn.Conv2d(1, 1, 3), list[tuple[int, int]](), 0

        def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
            x = torch.from_numpy(rng.normal(0, 1, (2, 1, 6, 6)).astype(np.float32))
            return x, 2 * x[..., 1:-1, 1:-1]

        def check(net: nn.Module) -> float:
            assert not net.training
            assert told is not None
            self.checks += 1
            return told(self.checks)

        self.weights: list[Tensor] = []

        def tick(done: int, total: int) -> None:
            self.ticks.append((done, total))
            self.weights.append(self.net.weight.detach().clone())

        self.trained: Trained = train(
            self.net,
            make,
            nn.functional.mse_loss,
            runtime,
            steps=steps,
            seed=0,
            rate=0.05,
            check=None if told is None else check,
            tick=tick,
        )

    @property
    def moved(self) -> list[float]:
        """How far each step moved the weights."""
        return [float((b - a).norm()) for a, b in zip(self.weights, self.weights[1:], strict=False)]


def test_a_flat_loss_ends_it_early_and_a_falling_one_does_not(runtime: Runtime) -> None:
    flat, falling = Run(runtime, lambda _: 1.0), Run(runtime, lambda n: 0.9**n)
    assert flat.trained.steps == len(flat.ticks) < 200
    assert falling.trained.steps == len(falling.ticks) == 300
    for run in (flat, falling):
        assert run.ticks[-1] == (run.trained.steps, run.trained.steps)
        assert not run.net.training
        assert float(run.net.weight.detach()[0, 0, 1, 1]) == pytest.approx(2, abs=0.2)
        # The rate has fallen to almost nothing.
        assert max(run.moved[-3:]) < 0.05 * max(run.moved)


def test_a_loss_that_rises_again_or_falls_ever_more_slowly_is_a_plateau(runtime: Runtime) -> None:
    rising, slowing = Run(runtime, lambda n: 1 + abs(n - 2)), Run(runtime, lambda n: 1 + 0.1**n)
    assert rising.trained.steps < 300
    assert slowing.trained.steps < 300


def test_few_steps_are_all_taken_and_the_same_seed_gives_the_same_net(runtime: Runtime) -> None:
    short = Run(runtime, lambda _: 1.0, steps=30)
    assert short.trained.steps == 30
    one, other = (Run(runtime, lambda _: 1.0) for _ in range(2))
    torch.testing.assert_close(one.net.weight, other.net.weight, rtol=0, atol=0)
    assert one.trained == other.trained


def test_without_a_check_all_steps_are_taken(runtime: Runtime) -> None:
    run = Run(runtime, None, steps=60)
    assert run.trained.steps == 60
    assert run.ticks[-1] == (60, 60)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_orthogonal_steps_keep_directions_and_level_their_sizes(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(shape[0], min(shape))))
    v, _ = np.linalg.qr(rng.normal(size=(shape[1], min(shape))))
    sizes = np.geomspace(1, 0.02, min(shape))
    found = _orthogonal(torch.from_numpy((u * sizes) @ v.T)).numpy()
    inner = u.T @ found @ v
    np.testing.assert_allclose(inner - np.diag(np.diag(inner)), 0, atol=1e-9)
    assert np.diag(inner).min() > 0.4
    assert np.diag(inner).max() < 1.4
