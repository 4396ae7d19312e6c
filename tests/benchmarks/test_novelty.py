"""The benchmark of novelty: what is planted is what is said, and each method is what its name says."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from benchmarks.specialists import novelty
from benchmarks.specialists.pictures import SORTS, Pictures, Sort, load_pictures, plant
from scipy.spatial.distance import cdist

from coarse2fine import load_model
from coarse2fine.models.runtime import Runtime

CELL = 8


def picture(seed: int, side: int = 160) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), np.uint8), (0, 0), 1.5)


@pytest.mark.parametrize("sort", SORTS)
def test_only_the_cells_told_are_changed(sort: Sort) -> None:
    before = picture(0)
    planted = plant(before, sort, 24, [picture(1)], CELL, np.random.default_rng(3))
    changed = (planted.pixels != before).any(axis=2)
    by_cell = changed.reshape(20, CELL, 20, CELL).any(axis=(1, 3))
    assert by_cell.any()
    assert planted.odd.any()
    assert not (planted.odd & ~planted.counts).any()
    assert not (by_cell & planted.counts & ~planted.odd).any()
    assert (by_cell & planted.odd).any()
    assert by_cell[planted.odd].all()
    assert not by_cell[~planted.odd & planted.counts].any()


def test_pictures_that_are_learned_from_are_not_tested_on(tmp_path: Path) -> None:
    geometry = {"type": "Polygon", "coordinates": [[(9, 9), (20, 9), (20, 20), (9, 20), (9, 9)]]}
    spot = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "spot"}}}
    for number in range(9):
        (tmp_path / "set").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "set" / f"{number}.png"), picture(number)[:, :, 0])
        (tmp_path / "set" / f"{number}.geojson").write_text(
            json.dumps({"type": "FeatureCollection", "features": [spot]})
        )
    (tmp_path / "nothing").mkdir()
    bundled = load_pictures(None, 0)
    assert bundled.learned
    assert bundled.tested
    for seed in (0, 1):
        found = load_pictures(tmp_path, seed)
        mine = [
            {p.tobytes() for p in pictures[len(known) :]}
            for pictures, known in ((found.learned, bundled.learned), (found.tested, bundled.tested))
        ]
        assert [len(each) for each in mine] == [4, 3]
        assert not mine[0] & mine[1]
        assert all(p.shape[2] == 3 for p in found.tested)


def test_the_bank_is_the_distance_to_the_nearest_other_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novelty, "_BANKED", 1.0)
    model, runtime = load_model("generic"), Runtime.choose("cpu", "fp32")
    planted = plant(picture(2), "negative", 24, [picture(1)], CELL, np.random.default_rng(0))
    found = novelty._bank(model, runtime, planted, 0)
    rows = novelty._features(model, runtime, planted).reshape(planted.odd.size, -1)
    far = cdist(rows, rows)
    np.fill_diagonal(far, np.inf)
    np.testing.assert_allclose(found.scores.ravel(), far.min(axis=1), rtol=1e-4, atol=1e-4)
    assert found.cost > 1


def test_all_methods_are_compared_on_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures((picture(0, 256), picture(1, 256)), (picture(2, 192),))
    monkeypatch.setattr(novelty, "load_pictures", lambda *_: pictures)
    monkeypatch.setattr("coarse2fine.fitting.explorer_kinds._BATCHES", 6)
    # Two pictures make nothing sure: what is tested is the comparison.
    monkeypatch.setattr("coarse2fine.fitting.specialists.evidence.believed", lambda gains, *_: np.ones(len(gains)))
    monkeypatch.setattr("coarse2fine.fitting.specialists.validate.Verdict.pays", lambda *_: True)
    monkeypatch.setattr(novelty, "SIZES", (24,))
    monkeypatch.setattr(novelty, "SORTS", ("negative",))
    figures = novelty.measure_novelty(None, 1).figures
    names = {key.split("/")[1] for key in figures}
    expected = {f"{how}, {share}" for how in ("k-means", "tree") for share in ("everywhere", "20%")}
    alone = {
        "chance",
        "memory bank",
        "one Gaussian",
        "measures alone",
        "measures, kinds",
        "measures, columns",
    }
    assert names == alone | expected
    for name in names:
        assert 0 <= figures[f"novelty/{name}/AP"] <= 1
        assert 0 <= figures[f"novelty/{name}/AUROC"] <= 1
    assert figures["novelty/tree, 20%/cost"] < figures["novelty/tree, everywhere/cost"]
    assert figures["novelty/memory bank/AP_less_bank_low"] == figures["novelty/memory bank/AP_less_bank_high"] == 0
