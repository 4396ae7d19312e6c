"""Features computed only where something fires, against all of them masked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coarse2fine.models.column import Column
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.feature_groups import NO_GROUP, Groups, by_block
from coarse2fine.models.feature_maps import ColumnSpec, FeatureMaps, Twin
from coarse2fine.models.sparse_columns import Activity

BASE = "4/2:3 4/2:4 3:5 1:1"
COARSE = FeatureMaps(4, 2, (Twin(3, 1, 40.0), Twin(3, 4, 0.0), Twin(2, 8, 0.0), Twin(4, 4, 0.0)))


def columns_of(spec: str, twins: FeatureMaps, count: int = 3, out: int = 2) -> list[Column]:
    torch.manual_seed(0)
    columns = [Column(ColumnSpec.parse(spec), twins, out) for _ in range(count)]
    for p in (p for column in columns for p in column.parameters()):
        nn.init.normal_(p, std=0.3)
    return [column.eval() for column in columns]


def dense(columns: Sequence[Column], inputs: Sequence[Tensor], fires: Tensor) -> Tensor:
    """The result of `Activity` by running every column everywhere."""
    return torch.stack([column(inputs)[0] * fires[:, g, None] for g, column in enumerate(columns)]).sum(dim=0)


def maps_for(columns: list[Column], count: int, height: int, width: int, *, last: bool = False) -> list[Tensor]:
    layout = columns[0].layout
    sides = zip(layout.maps, layout.sides(height), layout.sides(width), strict=True)
    made = (torch.randn(count, twin.channels, h, w) for twin, h, w in sides)
    return [m.to(memory_format=torch.channels_last) if last else m for m in made]


@given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.floats(0, 1), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_is_computed_where_it_fires_equals_all_of_it_masked(
    images: int, height: int, width: int, tile: int, density: float, last: bool
) -> None:
    columns = columns_of("4:2 4:3 5:4", FeatureMaps.of(ConvStack(StackSpec.parse(3, BASE))))
    assert columns[0].layout.border == 1
    inputs = maps_for(columns, images, height, width, last=last)
    fires = torch.rand(images, len(columns), height, width) < density
    found = Activity(columns, tile)(inputs, fires)
    with torch.inference_mode():
        torch.testing.assert_close(found, dense(columns, inputs, fires), rtol=1e-4, atol=1e-5)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.sampled_from(["8:2 2:3 1:4", "@2 4:3 5:4"]))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_tiles_keep_to_the_positions_of_coarser_maps(height: int, width: int, tile: int, text: str) -> None:
    columns = columns_of(text, COARSE)
    inputs = maps_for(columns, 2, 2 * height, 2 * width)
    fires = torch.rand(2, len(columns), 2 * height, 2 * width) < 0.2
    found = Activity(columns, 2 * tile)(inputs, fires)
    with torch.inference_mode():
        torch.testing.assert_close(found, dense(columns, inputs, fires), rtol=1e-4, atol=1e-5)


def test_a_part_of_a_larger_map_is_read_in_its_place() -> None:
    base = ConvStack(StackSpec.parse(3, BASE)).eval()
    columns = columns_of("4:2 4:3 5:4", FeatureMaps.of(base))
    layout = columns[0].layout
    x = torch.randn(2, 3, *(base.spec.input_size(8 + 2 * layout.border),) * 2)
    fires = torch.zeros(2, len(columns), 8, 8, dtype=torch.bool)
    fires[0, 1, 2, 7] = fires[1, 1, 2, 7] = fires[1, 2, 2, 7] = True
    with torch.inference_mode():
        inputs = layout.read(x, base.features(x))
        found = Activity(columns, 3)(inputs, fires)
        whole = [column(inputs)[0] for column in columns]
    torch.testing.assert_close(found[0, :, 2, 7], whole[1][0, :, 2, 7], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1, :, 2, 7], (whole[1] + whole[2])[1, :, 2, 7], rtol=1e-4, atol=1e-5)
    assert not found[~fires.any(dim=1)[:, None].expand_as(found)].any()


def test_multiply_adds_are_those_of_torch_and_none_where_nothing_fires() -> None:
    columns = columns_of("4:2 4:3 3:4", FeatureMaps.of(ConvStack(StackSpec.parse(3, BASE))))
    inputs = maps_for(columns, 2, 8, 8)
    activity = Activity(columns, 4)
    fires = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    assert not activity(inputs, fires).any()
    assert activity.macs_spent == 0
    fires[0, 0, 1, 1] = fires[0, 0, 2, 3] = fires[1, 2, 7, 0] = True
    with FlopCounterMode(display=False) as counter:
        activity(inputs, fires)
    assert 2 * activity.macs_spent == counter.get_total_flops()
    assert activity.macs_spent == 2 * columns[0].macs(4, 4)


def test_features_that_fire_together_make_a_group() -> None:
    rng = np.random.default_rng(0)
    causes = rng.random((5000, 3)) < 0.03
    kind = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    high = (causes[:, kind] * (1 + rng.random((5000, 8)))).astype(np.float32) * (1 + np.arange(8, dtype=np.float32))
    high = np.concatenate([high, np.zeros((5000, 1), np.float32)], axis=1)
    groups = Groups.fit(high, 3, 0.05)
    assert groups.group[8] == NO_GROUP
    assert len(groups) == 3
    assert len({(a, b) for a, b in zip(kind.tolist(), groups.group[:8].tolist(), strict=True)}) == 3
    planes = torch.from_numpy(high.T.copy())[None, :, :, None]
    fires = groups.fires(planes)[0, :, :, 0].numpy()
    assert fires.shape == (3, 5000)
    for g in range(3):
        members = groups.group == g
        np.testing.assert_array_equal(fires[g], (high[:, members] > groups.threshold[members]).any(axis=1))
        assert 0.02 < fires[g].mean() <= 0.05


@given(st.integers(0, 1000), st.integers(1, 8), st.floats(0.01, 0.3))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_no_group_fires_more_often_than_asked(seed: int, count: int, density: float) -> None:
    high = np.maximum(np.random.default_rng(seed).standard_normal((2000, 6)), 0).astype(np.float32)
    groups = Groups.fit(high, count, density)
    assert len(groups) <= count
    fires = groups.fires(torch.from_numpy(high.T.copy())[None, :, :, None])
    assert float(fires.float().mean(dim=(0, 2, 3)).max()) <= density + 1 / 2000


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_a_block_fires_where_any_of_its_cells_does(side: int, down: int, across: int) -> None:
    cells = torch.rand(2, 3, down * side, across * side) < 0.2
    found = by_block(cells, side)
    for n, g, y, x in np.ndindex(*cells.shape):
        top, left = y // side * side, x // side * side
        assert found[n, g, y, x] == cells[n, g, top : top + side, left : left + side].any()


def test_features_that_never_fire_cannot_be_specialised_on() -> None:
    with pytest.raises(ValueError, match="no high-level feature fires"):
        Groups.fit(np.zeros((50, 3), np.float32), 2, 0.1)
