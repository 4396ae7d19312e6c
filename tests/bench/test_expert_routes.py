"""Figures of alternatives to an expert against a loop over the grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coarse2fine import analyze
from coarse2fine.bench.expert_routes import measure_routes, without_routes
from coarse2fine.tiling.opening import open_image
from tests.experts.scenes import Finder, boxes_of, disc_expert, owned, scene
from tests.experts.test_routes import leaf_of, routed


def test_each_way_to_choose_is_counted_tile_by_tile() -> None:
    image = np.full((384, 448, 3), 30, np.uint8)
    image[16:-16, 16:-16] = scene(352, 416, 200, seed=2)
    # The alternative does not see bright discs.
    blind = disc_expert(Finder(lambda tiles: [rows[rows[:, 5] == 0] for rows in map(boxes_of, tiles)]))
    model = routed(replace(blind, tile_macs=10**6))
    finds = owned(image, disc_expert())
    counts = np.zeros((6, 7), np.int64)
    for home, each in finds.items():
        counts[home] = len(each)
    with open_image(image) as opened:
        rows = measure_routes(model, replace(model, refiner=without_routes(model)), opened, counts, seed=0)
    leaves = {home: leaf_of(image, home, 2) for home in finds}
    dim = {home: sum(label == 0 for _, label, _ in each) for home, each in finds.items()}
    given = {home: dim[home] if leaves[home] else len(each) for home, each in finds.items()}
    assert rows["routed"]["recall"] == pytest.approx(sum(given.values()) / counts.sum())
    assert rows["always 1"]["recall"] == pytest.approx(sum(dim.values()) / counts.sum())
    assert rows["always 0"]["recall"] == 1
    assert all(row["tiles"] == 42 and row["extra"] == 0 for row in rows.values())
    assert rows["routed"]["tmac"] == pytest.approx(analyze(image, model).cost.macs / 1e12)
    assert rows["random clusters"]["tmac"] == rows["routed"]["tmac"]
