"""Speed of specialists that run only in the blocks where their features fire, against running them everywhere."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import torch
from torch import Tensor

from coarse2fine.bench.sections import Section
from coarse2fine.fitting.geometry import NARROW_REFINER
from coarse2fine.fitting.specialists.first_stage import candidates
from coarse2fine.models.column import Column
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.feature_groups import by_block
from coarse2fine.models.feature_maps import FeatureMaps
from coarse2fine.models.sparse_columns import Activity
from coarse2fine.specialists.groups import TILE_OF_BLOCKS

_GROUPS, _CLASSES, _RUNS, _WINDOWS = 6, 4, 5, 4
# Side in fine cells of each window and of its blocks, and shares of the blocks in which a group fires.
_CELLS, _SIDES, _DENSITIES = 128, (TILE_OF_BLOCKS, 2 * TILE_OF_BLOCKS), (0.05, 0.2)


@torch.inference_mode()
def measure_sparse() -> Section:
    """Times and multiply-adds of columns from the first layer on, in random blocks, as `fit` makes them.

    "speedup" is the ratio of the median processor times of interleaved runs, everywhere and in the blocks; "of_ideal"
    is its product with the share of cells in which a column fires, "of_ideal_macs" the same for multiply-adds.
    """
    torch.manual_seed(0)
    net = ConvStack(StackSpec.parse(3, NARROW_REFINER.format(out=_CLASSES + 4))).eval()
    twins = FeatureMaps.of(net)
    columns = [Column(candidates(twins)[-1], twins, _CLASSES).eval() for _ in range(_GROUPS)]
    side = net.spec.input_size(_CELLS)
    x = torch.randn(_WINDOWS, 3, side, side).contiguous(memory_format=torch.channels_last)
    inputs = columns[0].layout.read(x, net.features(x))
    figures: dict[str, float] = {}
    for block, density in product(_SIDES, _DENSITIES):
        count = _CELLS // block
        cells = torch.zeros(_WINDOWS, _GROUPS, _CELLS, _CELLS, dtype=torch.bool)
        cells[..., ::block, ::block] = torch.rand(_WINDOWS, _GROUPS, count, count) < density
        fires = by_block(cells, block)
        activity = Activity(columns, block)
        activity(inputs, fires)
        macs, share = activity.macs_spent, float(fires.float().mean())
        dense = _WINDOWS * _GROUPS * columns[0].macs(_CELLS, _CELLS)
        speedup, key = _speedup(columns, activity, inputs, fires), f"sparse/blocks of {block}, {density:.0%}"
        figures |= {f"{key}/share": share, f"{key}/speedup": speedup, f"{key}/of_ideal": speedup * share}
        figures[f"{key}/of_ideal_macs"] = share * dense / macs
    text = f"{_GROUPS} columns in random square blocks of {_WINDOWS} windows of {_CELLS} x {_CELLS} cells"
    return Section(f"sparse: {text}, {torch.get_num_threads()} thread(s)", figures)


def _speedup(columns: list[Column], activity: Activity, inputs: list[Tensor], fires: Tensor) -> float:
    """Ratio of the median processor times of running columns everywhere and where they fire, in turns."""
    times: list[tuple[float, float]] = []
    for _ in range(_RUNS):
        start = time.process_time()
        total = torch.zeros(())
        for group, column in enumerate(columns):
            total = total + column(inputs)[0] * fires[:, group, None]
        middle = time.process_time()
        activity(inputs, fires)
        times.append((middle - start, time.process_time() - middle))
    dense, sparse = np.median(times, axis=0)
    return float(dense / sparse)
