"""Nets that scan finely and answer for tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from coarse2fine.bases import unfitted
from coarse2fine.models.pooled import PooledSpec, PooledStack, any_logit, pooled

TEXT = "pooled:3 4/2:6 3:5 1:1"


def net(text: str = TEXT, seed: int = 0) -> PooledStack:
    torch.manual_seed(seed)
    return PooledStack(PooledSpec.parse(1, text)).eval()


def test_text_makes_the_same_shape_again() -> None:
    spec = PooledSpec.parse(3, TEXT)
    assert str(spec) == TEXT
    assert PooledSpec.parse(3, str(spec)) == spec
    assert str(unfitted(3, TEXT)().spec) == TEXT
    assert spec.stride == 6


@pytest.mark.parametrize("text", ["pooled:0 4/2:6 1:1", "pooled:9999 4/2:6 1:1", "pooled:x 4/2:6 1:1", "pooled:2"])
def test_text_without_a_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"small cells|invalid literal|two stages|unpack"):
        unfitted(1, text)


def test_a_block_has_the_answers_of_the_whole() -> None:
    own = net()
    side = own.spec.input_size(5)
    pixels = torch.rand(1, 1, side, side)
    with torch.inference_mode():
        whole = own(pixels)
        first = own.spec.stride * 2
        part = own(pixels[:, :, first:, first:])
    assert whole.shape == (1, 1, 5, 5)
    assert torch.allclose(part, whole[:, :, 2:, 2:], atol=1e-5)


def test_multiply_adds_are_those_that_torch_counts() -> None:
    own = net()
    height, width = own.spec.input_size(3), own.spec.input_size(4)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        own.inner(torch.rand(1, 1, height, width))
    assert own.spec.macs(3, 4) == counter.get_total_flops() // 2


def test_answer_is_the_logit_of_any_find() -> None:
    logit = torch.from_numpy(np.random.default_rng(0).normal(-2, 2, (2, 1, 6, 4)).astype(np.float32))
    found = torch.sigmoid(any_logit(pooled(logit, logit, 2)[:, -1:])).numpy()
    p = torch.sigmoid(logit).double().numpy().reshape(2, 1, 3, 2, 2, 2)
    expected = 1 - (1 - p).prod(axis=(3, 5))
    assert np.allclose(found, expected, atol=1e-6)


def test_answer_of_hopeless_and_of_certain_cells_is_finite() -> None:
    for value in (-200.0, 200.0):
        logit = torch.full((1, 1, 4, 4), value)
        assert torch.isfinite(any_logit(pooled(logit, logit, 4)[:, -1:])).all()


def test_features_are_the_largest_of_each_square_and_not_negative() -> None:
    own = net()
    side = own.spec.input_size(2)
    with torch.inference_mode():
        *_, inner, high = own.features(torch.rand(1, 1, side, side))
    assert high.shape[1] == own.high_channels == inner.shape[1] + 1
    assert (high >= 0).all()
    for y in range(2):
        for x in range(2):
            square = inner[0, :, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3]
            assert torch.equal(high[0, :-1, y, x], square.amax(dim=(1, 2)))
