"""The table of windows, against loops over windows and regions, and what other readers see of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine.region import Region
from coarse2fine.results.tables import as_frame, read_plan, tiles_table, write_csv, write_parquet
from coarse2fine.steps.plan import Plan

CELL = 8


def scene(seed: int, count: int, *, fired: bool = True) -> tuple[Plan, tuple[int, int], np.ndarray, list[Region]]:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
    full = (shape[0] * CELL - int(rng.integers(0, CELL)), shape[1] * CELL - int(rng.integers(0, CELL)))
    corners = np.stack([rng.integers(0, n, count) for n in shape], axis=1)
    features = rng.choice([0, 7, 31, 255], (count, 3)).astype(np.uint8)
    features.sort(axis=1)  # 255, for none, comes last
    plan = Plan(
        corners,
        rng.choice([1, 2, 8, 32], (count, 2)),
        np.sort(rng.random(count).astype(np.float32))[::-1].copy(),
        shape,
        features if fired else None,
    )
    centres = rng.uniform(0, 1, (20, 2)) * full
    regions = [Region("a", 0.5, (max(y - 1, 0), max(x - 1, 0), y + 1, x + 1)) for y, x in centres.tolist()]
    return plan, full, rng.random(shape) < 0.8, regions


@given(st.integers(0, 10**6), st.integers(0, 30))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_rows_are_what_loops_find(seed: int, count: int) -> None:
    plan, full, refined, regions = scene(seed, count)
    frame = as_frame(tiles_table(plan, CELL, full, refined, regions))
    assert len(frame) == count
    for (y, x), (height, width), row in zip(
        plan.cell_corners.tolist(), plan.sides.tolist(), frame.itertuples(), strict=True
    ):
        assert (row.full_y0, row.full_x0, row.height, row.width) == (y * CELL, x * CELL, height, width)
        assert row.full_y1 == min((y + height) * CELL, full[0])
        assert row.full_x1 == min((x + width) * CELL, full[1])
        assert row.refined == refined[y : y + height, x : x + width].all()
        cells = [(int(r.full_centre[0] // CELL), int(r.full_centre[1] // CELL)) for r in regions]
        assert row.finds == sum(y <= cy < y + height and x <= cx < x + width for cy, cx in cells)


@pytest.mark.parametrize("fired", [True, False])
@pytest.mark.parametrize("count", [0, 1, 25])
def test_a_plan_survives_the_round_trip(tmp_path: Path, count: int, fired: bool) -> None:
    plan, full, refined, regions = scene(3, count, fired=fired)
    path = write_parquet(tmp_path / "t.parquet", tiles_table(plan, CELL, full, refined, regions))
    back = read_plan(path, CELL, plan.cell_shape, scanned=fired)
    for name in ("cell_corners", "sides", "scores"):
        np.testing.assert_array_equal(getattr(back, name), getattr(plan, name))
        assert getattr(back, name).dtype == getattr(plan, name).dtype
    assert (back.fired is None) == (plan.fired is None)
    if plan.fired is not None and back.fired is not None:
        np.testing.assert_array_equal(back.fired, plan.fired)


def test_tables_of_earlier_versions_hold_the_sides_of_squares(tmp_path: Path) -> None:
    columns = {"full_y0": [16, 8], "full_x0": [0, 24], "side": [2, 8], "score": [0.5, 0.25], "fired": ["feature 7", ""]}
    pd.DataFrame(columns).to_parquet(tmp_path / "t.parquet")
    plan = read_plan(tmp_path / "t.parquet", 8, (20, 20), scanned=True)
    assert plan.cell_corners.tolist() == [[2, 0], [1, 3]]
    assert plan.sides.tolist() == [[2, 2], [8, 8]]
    assert plan.fired is not None
    assert plan.fired.tolist() == [[7, 255, 255], [255, 255, 255]]


def test_other_readers_see_the_same_table(tmp_path: Path) -> None:
    plan, full, refined, regions = scene(4, 12)
    made = tiles_table(plan, CELL, full, refined, regions)
    table = pq.read_table(write_parquet(tmp_path / "t.parquet", made))
    with write_csv(tmp_path / "t.csv", made).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert table.column_names == list(rows[0]) == list(made)
    assert [str(v) for v in table.column("full_x1").to_pylist()] == [row["full_x1"] for row in rows]
    assert table.column("fired").to_pylist() == [row["fired"] for row in rows]
    assert {"feature 7; feature 31", "feature 0; feature 7"} & {row["fired"] for row in rows}
    assert [str(v) for v in table.column("refined").to_pylist()] == [row["refined"] for row in rows]
    assert {p.name for p in tmp_path.iterdir()} == {"t.parquet", "t.csv"}
