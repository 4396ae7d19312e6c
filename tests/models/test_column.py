"""Columns against plain loops, and windows of them against the whole picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coarse2fine.models.backbone import Backbone, design
from coarse2fine.models.base import Base
from coarse2fine.models.column import Column
from coarse2fine.models.column_training import ColumnDifference, NormedColumn
from coarse2fine.models.conv_stack import ConvStack, StackSpec, Stage
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, ColumnStage, FeatureMaps, Twin

stages = st.one_of(
    st.builds(Stage, st.sampled_from([1, 3, 5]), st.just(1), st.integers(1, 4)),
    st.builds(Stage, st.sampled_from([2, 4]), st.just(2), st.integers(1, 4)),
)
bodies = st.lists(stages, min_size=1, max_size=3)
specs = st.builds(
    lambda channels, body, head: StackSpec(channels, (*body, Stage(head, 1, 2))),
    st.integers(1, 3),
    bodies,
    st.sampled_from([1, 3]),
)
# As a network of timm gives them: no halo but the input's, and back to finer cells at the end.
COARSE = FeatureMaps(4, 2, (Twin(3, 1, 40.0), Twin(3, 4, 0.0), Twin(2, 8, 0.0), Twin(4, 4, 0.0)))


@st.composite
def fitted(draw: st.DrawFn) -> tuple[StackSpec, ColumnSpec]:
    """A base, and a column with kernels as large as its own, smaller or larger."""
    spec = draw(specs)
    first = draw(st.integers(1, len(spec.stages) - 1))
    made = []
    for stage in spec.stages[first - 1 : -1]:
        kernel = draw(st.sampled_from([k for k in (stage.kernel - 2, stage.kernel, stage.kernel + 2) if k > 0]))
        made.append(ColumnStage(kernel, draw(st.integers(1, 3))))
    return spec, ColumnSpec(tuple(made), first)


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """The same with random weights everywhere, also where it starts at zero."""
    torch.manual_seed(seed)
    for p in module.parameters():
        nn.init.normal_(p, std=0.4)
    return module.eval()


def made(spec: ColumnSpec, twins: FeatureMaps, out: int = 2, parent: ColumnSpec | None = None, seed: int = 0) -> Column:
    column = lively(Column(spec, twins, out, parent=parent), seed)
    assert isinstance(column, Column)
    return column


def maps_for(layout: ColumnInputs, height: int, width: int, count: int = 2) -> list[Tensor]:
    """Random maps of the sizes that a column reads."""
    torch.manual_seed(height * 100 + width)
    sides = zip(layout.maps, layout.sides(height), layout.sides(width), strict=True)
    return [torch.randn(count, twin.channels, h, w) for twin, h, w in sides]


def picture(base: Base, cells: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(1, base.spec.in_channels, *(base.spec.input_size(cells),) * 2)


@given(st.lists(st.builds(ColumnStage, st.integers(1, 8), st.integers(1, 99)), min_size=1), st.integers(1, 4))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_text_round_trip(made_of: list[ColumnStage], first: int) -> None:
    spec = ColumnSpec(tuple(made_of), first)
    assert ColumnSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["", "@0 3:4"])
def test_a_column_has_stages_and_twins(text: str) -> None:
    with pytest.raises(ValueError, match="a column needs stages"):
        ColumnSpec.parse(text)


@given(specs)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_twins_lie_where_the_fields_are_centred(spec: StackSpec) -> None:
    twins = FeatureMaps.of(ConvStack(spec))
    field, jump, expected = 1, 1, [Twin(spec.in_channels, 1, float(spec.margin))]
    for stage in spec.stages[:-1]:
        field, jump = field + (stage.kernel - 1) * jump, jump * stage.stride
        # The first position's middle lies field / 2 from the input's border, the block begins a margin from it.
        expected.append(Twin(stage.channels, jump, spec.margin + jump / 2 - field / 2))
    assert twins == FeatureMaps(spec.stride, 1, tuple(expected))


def plain(spec: StackSpec, column: Column, maps: Sequence[Tensor], cell: tuple[int, int]) -> NDArray[np.float32]:
    """What a column adds in one cell, from positions' middles in input pixels alone."""
    fields, jumps = [1], [1]
    for stage in spec.stages[:-1]:
        fields.append(fields[-1] + (stage.kernel - 1) * jumps[-1])
        jumps.append(jumps[-1] * stage.stride)
    first = column.layout.spec.first

    def base(stage: int, y: float, x: float) -> NDArray[np.float32]:
        at = [(middle - fields[stage] / 2) / jumps[stage] for middle in (y, x)]
        assert all(a == int(a) >= 0 for a in at)
        return np.asarray(maps[stage][0, :, int(at[0]), int(at[1])].numpy())

    def value(stage: int, y: float, x: float) -> NDArray[np.float32]:
        if stage == first - 1:
            return base(stage, y, x)
        n = stage - first
        weight = column.convs[n].weight.detach().numpy()  # type: ignore[operator]
        twin = column.twins[n]
        total = twin.weight.detach().numpy()[:, :, 0, 0] @ base(stage, y, x)  # type: ignore[operator]
        total = total + twin.bias.detach().numpy()  # type: ignore[operator]
        for dy in range(weight.shape[2]):
            for dx in range(weight.shape[2]):
                moved = [jumps[stage - 1] * (d - (weight.shape[2] - 1) / 2) for d in (dy, dx)]
                total = total + weight[:, :, dy, dx] @ value(stage - 1, y + moved[0], x + moved[1])
        return np.maximum(total, 0)

    middle = [spec.margin + spec.stride * (n + 0.5) for n in cell]
    high = value(len(spec.stages) - 1, *middle)
    added = column.reader.weight.detach().numpy()[:, :, 0, 0] @ high + column.reader.bias.detach().numpy()  # type: ignore[union-attr]
    twin = column.twin_readers[0].weight.detach().numpy()[:, :, 0, 0] @ base(len(spec.stages) - 1, *middle)  # type: ignore[operator]
    return np.asarray(added + twin)


@given(fitted())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_stages_read_what_lies_around_their_middle(both: tuple[StackSpec, ColumnSpec]) -> None:
    spec, shape = both
    base = ConvStack(spec).eval()
    column = made(shape, FeatureMaps.of(base))
    border = column.layout.border
    x = picture(base, 2 * border + 2)
    with torch.inference_mode():
        features = base.features(x)
        added, made_stages = column(column.layout.read(x, features))
    assert added.shape == (1, 2, 2, 2)
    assert made_stages[-1].shape[2:] == (2, 2)
    expected = plain(spec, column, [x, *features], (border + 1, border))
    np.testing.assert_allclose(added[0, :, 1, 0], expected, rtol=1e-3, atol=1e-4)


@given(fitted(), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_window_equals_the_whole_picture(both: tuple[StackSpec, ColumnSpec], top: int, left: int) -> None:
    spec, shape = both
    base = ConvStack(spec).eval()
    assert_windowed(base, made(shape, FeatureMaps.of(base)), cells=6, window=2, corner=(top, left))


@pytest.mark.parametrize("text", ["8:3 2:4 1:5", "8:3 4:4 3:5", "@2 4:4 5:5", "@3 3:4"])
def test_a_window_equals_the_whole_picture_on_a_backbone(text: str) -> None:
    torch.manual_seed(0)
    base = Backbone(design(3, "mobilenetv2_035", {}, 4)).eval()
    twins = FeatureMaps.of(base)
    assert [t.jump for t in twins.maps] == [1, 4, 8, 4]
    assert_windowed(base, made(ColumnSpec.parse(text), twins), cells=12, window=4, corner=(6, 2))


def assert_windowed(base: Base, column: Column, *, cells: int, window: int, corner: tuple[int, int]) -> None:
    layout, spec = column.layout, base.spec
    x = picture(base, cells + 2 * layout.border)
    side = spec.input_size(window + 2 * layout.border)
    y0, x0 = (n * spec.stride for n in corner)
    part = x[..., y0 : y0 + side, x0 : x0 + side]
    with torch.inference_mode():
        whole, few = base.features(x), base.features(part)
        dense, found = column(layout.read(x, whole))[0], column(layout.read(part, few))[0]
        answer, own = layout.inner(base.head(whole[-1])), layout.inner(base.head(few[-1]))
    rows, columns = (slice(n, n + window) for n in corner)
    torch.testing.assert_close(found, dense[..., rows, columns], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(own, answer[..., rows, columns], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("text", ["8:3 2:4 1:5", "8:3 4:4 3:5", "6:2 6:2 5:2", "@2 4:4 5:5", "@3 3:4"])
def test_a_mirrored_block_gives_the_mirrored_answer(text: str) -> None:
    """What is not centred does not pass: the grid of a coarser map is enlarged about its own middle."""
    column = made(ColumnSpec.parse(text), COARSE)
    inputs = maps_for(column.layout, 4, 6)
    with torch.inference_mode():
        expected = column(inputs)[0]
        for conv in column.convs:
            conv.weight.copy_(conv.weight.flip(2, 3))  # type: ignore[operator]
        torch.testing.assert_close(column([m.flip(2, 3) for m in inputs])[0].flip(2, 3), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["3:2 4:4 1:8", "4:2 3:4 1:8", "4:2 4:4 2:8"])
def test_kernels_that_are_off_centre_are_refused(text: str) -> None:
    twins = FeatureMaps.of(ConvStack(StackSpec.parse(1, "4/2:4 4/2:4 3:4 1:1")))
    with pytest.raises(ValueError, match="not centred"):
        Column(ColumnSpec.parse(text), twins, 1)


def test_a_column_ends_at_the_high_level_map() -> None:
    twins = FeatureMaps.of(ConvStack(StackSpec.parse(1, "4/2:4 4/2:4 3:4 1:1")))
    with pytest.raises(ValueError, match="expected 3 stages from stage 1 on"):
        Column(ColumnSpec.parse("4:2 4:4"), twins, 1)


@given(specs)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_designed_column_needs_no_wider_block(spec: StackSpec) -> None:
    twins = FeatureMaps.of(ConvStack(spec))
    column = ColumnSpec.design(twins, 16)
    assert ColumnInputs.of(column, twins).border == 0
    widths = [s.channels for s in column.stages]
    assert widths[-1] == 16
    assert all(above == 2 * below for below, above in pairwise(widths))
    assert [s.channels for s in column.narrowed(0.25).stages] == [max(1, width // 4) for width in widths]


@pytest.mark.parametrize(
    ("text", "column"), [("4/2:4 4/2:4 3:4 1:1", "4:2 4:4 3:8"), ("4/2:4 3:4 5:4 1:1 1:1", "4:1 3:2 3:4 1:8")]
)
def test_a_designed_column_has_the_kernels_of_its_base(text: str, column: str) -> None:
    assert str(ColumnSpec.design(FeatureMaps.of(ConvStack(StackSpec.parse(1, text))), 8)) == column


@given(fitted(), st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_multiply_adds_are_those_of_torch(
    both: tuple[StackSpec, ColumnSpec], height: int, width: int, deep: bool
) -> None:
    spec, shape = both
    parent = shape if deep else None
    column = made(shape, FeatureMaps.of(ConvStack(spec)), parent=parent)
    inputs = maps_for(column.layout, height, width, 1)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _, own = made(shape, column.layout.twins)(inputs)
    above = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        column(inputs, own if deep else ())
    assert counter.get_total_flops() == 2 * column.macs(height, width)
    assert deep or above == counter.get_total_flops()


@given(fitted())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_child_reads_its_parents_stages(both: tuple[StackSpec, ColumnSpec]) -> None:
    spec, shape = both
    twins = FeatureMaps.of(ConvStack(spec))
    parent, child = made(shape, twins), made(shape.narrowed(0.5), twins, parent=shape, seed=1)
    inputs = maps_for(parent.layout, 3, 2)
    with torch.inference_mode():
        _, above = parent(inputs)
        found = child(inputs, above)[1]
        first = child.convs[0](child.layout.steps[0].framed(inputs[0])) + child.twins[0](inputs[1])
        torch.testing.assert_close(found[0], torch.relu(first + child.parents[0](above[0])))
        later = Column(ColumnSpec(shape.stages[-1:], len(spec.stages) - 1), twins, 2, parent=shape)
        assert later(inputs[-2:], above)[1][0].shape == above[-1].shape


def test_a_child_has_its_parents_kernels() -> None:
    with pytest.raises(ValueError, match="the kernels of its parent"):
        Column(ColumnSpec.parse("8:1 2:1 3:1"), COARSE, 1, parent=ColumnSpec.parse("8:1 2:1 1:1"))


def test_a_difference_starts_at_zero_and_the_shared_weights_stay() -> None:
    shared = made(ColumnSpec.parse("8:2 2:4 1:6"), COARSE, 3)
    before = {name: w.clone() for name, w in shared.state_dict().items()}
    column = ColumnDifference(shared)
    inputs = maps_for(shared.layout, 4, 4, 5)
    torch.testing.assert_close(column(inputs), shared(inputs))
    optimizer = torch.optim.SGD(column.parameters(), lr=0.1)
    column(inputs)[0].square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(shared.state_dict(), before)
    assert all((w != before[name]).any() for name, w in column.weights().items())
    plain = Column(shared.layout.spec, COARSE, 3)
    plain.load_state_dict(column.weights())
    torch.testing.assert_close(plain(inputs), column(inputs))


def test_differences_learn_what_the_shared_weights_cannot() -> None:
    torch.manual_seed(0)
    shared = Column(ColumnSpec.parse("@3 1:6"), COARSE, 1)
    inputs = maps_for(shared.layout, 4, 4, 32)

    def error(sign: float) -> float:
        column = ColumnDifference(shared)
        optimizer = torch.optim.AdamW(column.differences, lr=0.03, weight_decay=0.01)
        for _ in range(120):
            loss = (column(inputs)[0] - sign * inputs[-1][:, :1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert max(error(1.0), error(-1.0)) < 0.1 * float(inputs[-1][:, :1].var())


@given(fitted(), st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_normalisation_is_settled_and_folded_away(both: tuple[StackSpec, ColumnSpec], below: bool) -> None:
    base, spec = both
    twins = FeatureMaps.of(ConvStack(base))
    parent = spec.narrowed(0.5) if below else None
    column = NormedColumn(spec, twins, 2, parent=parent)
    lively(column)
    inputs = maps_for(column.layout, base_align(base), base_align(base), count=5)
    above = () if parent is None else made(parent, twins)(inputs)[1]
    column.settle(inputs, above)
    with torch.no_grad():
        settled, stages = column(inputs, above)
        taught, _ = column.train()(inputs, above)
    # One value of a channel has no spread to be known from the rest.
    torch.testing.assert_close(settled, taught, rtol=0.3, atol=0.3)
    plain = Column(spec, twins, 2, parent=parent).eval()
    plain.load_state_dict(column.folded())
    with torch.no_grad():
        folded, same = plain(inputs, above)
    torch.testing.assert_close(folded, settled, rtol=1e-3, atol=1e-3)
    for one, other in zip(same, stages, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def base_align(base: StackSpec) -> int:
    return 2 * ConvStack(base).spec.align


def test_a_shrunk_column_adds_a_share() -> None:
    twins = FeatureMaps.of(ConvStack(StackSpec.parse(1, "4/2:4 3:6 1:2")))
    for spec in (ColumnSpec.design(twins, 6), ColumnSpec.head(twins)):
        column = made(spec, twins)
        inputs = maps_for(column.layout, 4, 4)
        with torch.no_grad():
            whole, part = column(inputs)[0], column.shrunk(0.25)(inputs)[0]
            again = column(inputs)[0]
        torch.testing.assert_close(part, 0.25 * whole)
        torch.testing.assert_close(again, whole)


def test_a_column_without_stages_is_a_linear_reader() -> None:
    spec = ColumnSpec.head(COARSE)
    assert ColumnSpec.parse(str(spec)) == spec
    head = Column(spec, COARSE, 3)
    assert [t.channels for t in head.layout.maps] == [4]
    high = torch.randn(6, 4, 2, 4)
    assert not head([high])[0].any()
    lively(head)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        found, stages = head([high])
    assert stages == []
    torch.testing.assert_close(found, nn.functional.conv2d(high, head.reader.weight, head.reader.bias))
    assert counter.get_total_flops() == 2 * 6 * head.macs(2, 4)
