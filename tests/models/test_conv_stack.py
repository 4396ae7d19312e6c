"""Nets of valid, centred convolutions against what torch itself computes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coarse2fine.models.autoencoder import Autoencoder
from coarse2fine.models.conv_stack import ConvStack, StackSpec, Stage, rectified
from coarse2fine.models.runtime import Runtime

stages = st.one_of(
    st.builds(Stage, st.sampled_from([1, 3, 5]), st.just(1), st.integers(1, 4)),
    st.builds(Stage, st.sampled_from([2, 4, 6]), st.just(2), st.integers(1, 4)),
)
specs = st.builds(StackSpec, st.integers(1, 3), st.lists(stages, min_size=2, max_size=4).map(tuple))


def positive(spec: StackSpec) -> ConvStack:
    """A net in which every input pixel of a field matters: no ReLU ever closes."""
    net = ConvStack(spec).eval()
    for conv in net.convs:
        nn.init.uniform_(conv.weight, 0.5, 1.0)  # type: ignore[arg-type]
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return net


@given(specs)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_text_round_trip(spec: StackSpec) -> None:
    assert StackSpec.parse(spec.in_channels, str(spec)) == spec


@pytest.mark.parametrize("text", ["3/2:4 1:1", "3/2:4 4/2:4 1:1", "2:3 1:1", "4:2 3:2"])
def test_off_centre_fields_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be centred"):
        StackSpec.parse(1, text)


@pytest.mark.parametrize("text", ["", "3:4"])
def test_a_net_has_features_and_a_head(text: str) -> None:
    with pytest.raises(ValueError, match="at least two stages"):
        StackSpec.parse(1, text)


@given(specs, st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_sizes_and_multiply_adds_are_those_of_torch(spec: StackSpec, height: int, width: int) -> None:
    counted = 0

    def count(conv: nn.Conv2d, _: Any, out: Tensor) -> None:
        nonlocal counted
        counted += out.numel() * conv.kernel_size[0] * conv.kernel_size[1] * conv.in_channels

    net = ConvStack(spec).eval()
    for conv in net.convs:
        conv.register_forward_hook(count)
    with torch.inference_mode():
        out = net(torch.zeros(1, spec.in_channels, spec.input_size(height), spec.input_size(width)))
    assert out.shape == (1, spec.stages[-1].channels, height, width)
    assert counted == spec.macs(height, width)


@given(specs)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_multiply_adds_of_a_cell_are_the_growth_of_a_block(spec: StackSpec) -> None:
    growth = spec.macs(9, 9) - spec.macs(9, 8) - spec.macs(8, 9) + spec.macs(8, 8)
    assert spec.macs_per_cell == pytest.approx(growth)


@given(specs)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_field_is_a_square_centred_on_the_cell(spec: StackSpec) -> None:
    net = positive(spec)
    side = spec.input_size(3)
    x = torch.ones(1, spec.in_channels, side, side, requires_grad=True)
    net(x)[0, 0, 1, 2].backward()
    assert x.grad is not None
    seen = np.argwhere(x.grad[0].abs().sum(dim=0).numpy() > 0)
    low, high = seen.min(axis=0), seen.max(axis=0) + 1
    assert (high - low).tolist() == [spec.field, spec.field]
    assert len(seen) == spec.field**2
    middle = spec.margin + spec.stride * (np.array([1, 2]) + 0.5)
    np.testing.assert_array_equal((low + high) / 2, middle)


@given(specs, st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_pixel_changes_the_cells_that_see_it_and_no_other(spec: StackSpec, data: st.DataObject) -> None:
    net, cells = positive(spec).double(), 4
    side = spec.input_size(cells)
    y, x = data.draw(st.tuples(st.integers(0, side - 1), st.integers(0, side - 1)))
    before = torch.ones(1, spec.in_channels, side, side, dtype=torch.float64)
    after = before.clone()
    after[:, :, y, x] = 2
    with torch.inference_mode():
        changed = (net(after) != net(before))[0, 0].numpy()
    starts = np.arange(cells) * spec.stride
    rows, columns = ((starts <= at) & (at < starts + spec.field) for at in (y, x))
    np.testing.assert_array_equal(changed, rows[:, None] & columns[None])


def test_folded_net_equals_the_normalised_one() -> None:
    torch.manual_seed(0)
    net = ConvStack(StackSpec.parse(3, "4/2:6 3:5 4/2:7 1:2"), batch_norm=True)
    for norm in net.norms:
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.2, 3.0)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 40, 44)
    folded = net.eval().folded()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)


def test_autoencoder_paints_the_cells_it_saw() -> None:
    net = Autoencoder(3)
    spec = net.encoder.spec
    with torch.inference_mode():
        assert net.eval()(torch.zeros(1, 3, spec.input_size(4), spec.input_size(5))).shape == (1, 3, 32, 40)


def test_running_a_net_leaves_the_net_itself_alone(runtime: Runtime) -> None:
    net = ConvStack(StackSpec.parse(1, "3:2 1:1"))
    before = net.convs[0].weight.clone()  # type: ignore[operator]
    placed = Runtime(torch.device("cpu"), torch.bfloat16).place(net)
    assert placed.convs[0].weight.dtype == torch.bfloat16
    assert net.convs[0].weight.dtype == torch.float32
    torch.testing.assert_close(runtime.place(net).convs[0].weight, before, rtol=0, atol=0)


def test_pixels_are_normalised() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    mean, std = np.array([0.2, 0.5, 0.7], np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    x = Runtime.choose("cpu", "fp32").pixels(pixels, mean, std)
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), (pixels / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pixels_looked_up_are_the_pixels_computed(channels: int, precision: Literal["fp32", "bf16"]) -> None:
    runtime = Runtime.choose("cpu", precision)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=3)
    mean, std = (np.linspace(low, high, channels, dtype=np.float32) for low, high in ((0.3, 0.6), (0.1, 0.25)))
    x = runtime.pixels(pixels, mean, std)
    expected = (pixels / np.float32(255) - mean) / std
    # Half a unit in the last place of bfloat16, and what float32 rounds.
    rounding = 2.0**-8 if precision == "bf16" else 2.0**-20
    np.testing.assert_allclose(x.float().permute(0, 2, 3, 1).numpy(), expected, rtol=rounding, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_a_relu_on_bits_is_the_relu() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()]
    expected = torch.relu(every)
    assert torch.equal(rectified(every.clone()), expected)
    turned = every[: 4 * 6 * 8].view(2, 4, 6, 4).to(memory_format=torch.channels_last)
    assert torch.equal(rectified(turned.clone()), torch.relu(turned))


def test_gradients_go_through_the_relu() -> None:
    x = torch.linspace(-1, 1, 8, dtype=torch.bfloat16).requires_grad_()
    torch.autograd.backward(rectified(x * 2).sum())
    assert x.grad is not None
    assert torch.equal(x.grad, 2.0 * (x > 0))


def test_high_is_the_last_of_the_features() -> None:
    net = ConvStack(StackSpec.parse(1, "4/2:6 3:8 1:2"))
    x = torch.rand(2, 1, 24, 24)
    with torch.inference_mode():
        assert torch.equal(net.high(x), net.features(x)[-1])
        assert torch.equal(net(x), net.head(net.features(x)[-1]))


def test_runtime_refuses_what_is_not_there() -> None:
    assert Runtime.choose("cpu", "bf16").name == "cpu bf16"
    with pytest.raises(ValueError, match="precision must be"):
        Runtime.choose("cpu", "fp16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be used here"):
        Runtime.choose("no such device")
