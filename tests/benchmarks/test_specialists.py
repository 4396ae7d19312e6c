"""The benchmark of specialists: that what it compares is what it says, not what wins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from benchmarks import command
from benchmarks.specialists import nets, run, sparse
from benchmarks.specialists.data import HELD, SIDE, TEST, TRAIN, TileSet, load_tile_sets, tiles_of_digits
from benchmarks.specialists.experiment import Errors, Experiment, macs_of
from benchmarks.specialists.nets import answers_of, augmented, inputs, stack, stack_of, train_net
from benchmarks.specialists.report import Paired
from benchmarks.specialists.run import SpecialistsScale, benchmark_specialists
from benchmarks.specialists.variants import FEW, VARIANTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from coarse2fine.bench.sections import Section
from coarse2fine.fitting.specialists.grow_tree import grow
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.models.gate import Gate
from coarse2fine.models.routing import Answered, Specialists

OPTIONS = TrainingOptions(epochs=1, own_epochs=1, batch=64, rate=0.02)
SCALE = SpecialistsScale(1, 6, ("base", "shared", "random", "heads_6"), OPTIONS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of arrays, one of annotated images, and one that is neither."""
    folder = tmp_path_factory.mktemp("daten ä")
    digits = tiles_of_digits()
    x, y = digits.tiles[:400, 7:-7, 7:-7, 0], digits.labels[:400]
    (folder / "arrays").mkdir()
    np.savez(folder / "arrays" / "a.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    (folder / "nothing").mkdir()
    rng = np.random.default_rng(0)
    (folder / "scenes").mkdir()
    for number in range(4):
        pixels = rng.integers(0, 60, (300, 400), np.uint8)
        features: list[dict[str, Any]] = []
        for y0, x0 in rng.integers(20, 280, (30, 2)).tolist():
            pixels[y0 : y0 + 8, x0 : x0 + 8] = 255
            corners = [(x0, y0), (x0 + 8, y0), (x0 + 8, y0 + 8), (x0, y0 + 8), (x0, y0)]
            geometry = {"type": "Polygon", "coordinates": [corners]}
            properties = {"classification": {"name": "spot"}}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        cv2.imwrite(str(folder / "scenes" / f"{number}.png"), pixels)
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (folder / "scenes" / f"{number}.geojson").write_text(text)
    return folder


def test_tiles_are_cut_around_objects_and_split_by_image(data: Path) -> None:
    sets, notes = load_tile_sets(data)
    assert [s.name for s in sets] == ["arrays", "scenes", "mixed"]
    assert len(notes) == 1
    assert "left out nothing" in notes[0]
    arrays, scenes, mixed = sets
    assert int(arrays.test.sum()) == 100
    assert scenes.classes == ("nothing", "spot")
    middle = scenes.tiles[:, SIDE // 2 - 2 : SIDE // 2 + 2, SIDE // 2 - 2 : SIDE // 2 + 2].mean(axis=(1, 2, 3))
    assert middle[scenes.labels == 1].min() > 250
    assert middle[scenes.labels == 0].mean() < 100
    assert mixed.classes[-1] == "scenes spot"
    assert mixed.tiles.shape == (len(arrays) + len(scenes), SIDE, SIDE, 3)
    for each in sets:
        for seed in (0, 1):
            parts = each.parts(seed)
            for domain in np.unique(each.domains):
                assert set(parts[each.domains == domain]) == {TRAIN, HELD, TEST}
            assert all(len(set(parts[each.units == unit])) == 1 for unit in np.unique(each.units))
            np.testing.assert_array_equal(parts == TEST, each.test)
    assert (arrays.parts(0) != arrays.parts(1)).any()


def test_a_folder_without_data_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected folders of"):
        load_tile_sets(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_tile_sets(tmp_path / "none")


def test_a_net_is_as_dear_as_asked() -> None:
    digits = tiles_of_digits()
    for macs in (1e5, 4e5, 1e6):
        assert stack_of(digits, macs).macs(1, 1) == pytest.approx(macs, rel=0.08)
    assert stack(digits).input_size(1) == SIDE


def some_digits(count: int) -> TileSet:
    digits = tiles_of_digits()
    names = ("tiles", "labels", "domains", "units", "groups", "test", "turns")
    return replace(digits, **{name: getattr(digits, name)[:count] for name in names})


def test_training_keeps_what_is_best_on_the_tiles_held_back() -> None:
    digits = some_digits(300)
    parts, spec = digits.parts(0), stack(digits, 0.25)
    labels, held = torch.from_numpy(digits.labels[parts == HELD]), inputs(digits.tiles[parts == HELD])
    trained = [train_net(digits, parts, spec, steps=steps, seed=3) for steps in (2, 60)]
    losses = [float(cross_entropy(answers_of(net, held), labels)) for net in trained]
    assert losses[1] < losses[0] < 4
    again = train_net(digits, parts, spec, steps=60, seed=3)
    assert float(cross_entropy(answers_of(again, held), labels)) == losses[1]


def test_only_what_has_no_upright_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tiles = torch.from_numpy(rng.random((64, 2, SIDE, SIDE), np.float32))
    turns = np.arange(64) % 2 == 0
    smooth = torch.nn.functional.avg_pool2d(tiles, 9, 1, 4)
    near = augmented(smooth, np.zeros(64, bool), np.random.default_rng(1))
    assert all(np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.4 for a, b in zip(smooth, near, strict=True))
    assert not torch.equal(near, smooth)
    for name in ("_TILT", "_ENLARGED", "_MOVED"):
        monkeypatch.setattr(nets, name, 0.0)
    found = augmented(tiles, turns, np.random.default_rng(2)).numpy()
    np.testing.assert_allclose(found[~turns], tiles.numpy()[~turns], atol=1e-5)
    seen = set()
    for before, after in zip(tiles.numpy()[turns], found[turns], strict=True):
        forms = [np.rot90(flipped, k, (1, 2)) for flipped in (before, before[:, :, ::-1]) for k in range(4)]
        errors = [float(np.abs(form - after).max()) for form in forms]
        assert min(errors) < 1e-4
        seen.add(int(np.argmin(errors)))
    assert seen == set(range(8))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment(some_digits(300), 0, tmp_path_factory.mktemp("experiment"), 6, OPTIONS)


def test_multiply_adds_are_those_that_a_runner_counts(experiment: Experiment) -> None:
    spec, store = experiment.design(8), experiment.store()
    grown = grow(store, experiment.twins(), (spec, spec.narrowed(0.5)), OPTIONS, clusters=3)
    kept = np.ones(len(grown.tree), bool)
    kept[grown.tree.children(0)[0]] = False
    kept[grown.tree.children(int(grown.tree.children(0)[0]))] = False
    rows = torch.arange(len(store))
    maps = [m.float() for m in store.read().maps]
    for tree in (grown.tree, replace(grown.tree, kept=kept)):
        for gate in (Gate.open(exclusive=True), Gate(0.0, 0.5, exclusive=True)):
            ended: list[Answered] = []
            columns = {node: c for node, c in grown.columns.items() if tree.kept[node]}
            runner = Specialists(tree, columns, ended.append, gate=gate)
            runner.put(np.arange(len(store)), maps, [rows] * len(maps), grown.answers[0])
            runner.flush()
            # What is stored is in half precision, so a few answers may lie on the gate's other side.
            assert int(macs_of(grown, gate, tree).sum()) == pytest.approx(runner.macs_spent, rel=0.02)


@pytest.mark.slow
def test_test_tiles_decide_nothing(experiment: Experiment, tmp_path: Path) -> None:
    """With other answers in the test, other errors come of the same columns."""
    tiles = experiment.tiles
    labels = np.where(tiles.test, (tiles.labels + 1) % 10, tiles.labels)
    other = Experiment(replace(tiles, labels=labels), 0, tmp_path, 6, OPTIONS)
    for name in ("heads_6", "tree"):
        mine, theirs = (VARIANTS[name].run(each) for each in (experiment, other))
        assert list(mine) == list(theirs)
        for key, found in mine.items():
            assert found.macs == theirs[key].macs
            assert not (~found.wrong & ~theirs[key].wrong).any()


@pytest.mark.parametrize("name", ["unsure", "tree"])
def test_variants_answer_the_test(experiment: Experiment, name: str) -> None:
    found = VARIANTS[name].run(experiment)
    assert set(found) == {"", "judged"}
    for errors in found.values():
        assert len(errors.wrong) == int(experiment.tiles.test.sum())
        assert errors.macs >= experiment.base().spec.macs(1, 1)
    assert found["judged"].macs <= found[""].macs


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shift=st.integers(0, 40), seed=st.integers(0, 5))
def test_paired_differences(shift: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    those = Errors(rng.random(200) < 0.3, 1.0)
    wrong = those.wrong.copy()
    wrong[:shift] = True
    found = Paired.of([Errors(wrong, 1.0)], [those], np.arange(200))
    assert found.difference == pytest.approx(wrong.mean() - those.wrong.mean())
    assert found.low <= found.difference <= found.high
    assert (found.p == 1.0) if not shift else found.p <= 1.0
    assert found.p < 0.01 or shift < 20
    # Where all that differs is in one group, nothing is sure.
    coarse = Paired.of([Errors(wrong, 1.0)], [those], np.arange(200) // 50)
    assert coarse.high - coarse.low >= found.high - found.low - 1e-9


@pytest.mark.slow
def test_everything_is_told_and_a_second_run_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "measure_novelty", lambda *_, **__: Section("novelty", {"novelty/b/x": 2.0}))
    monkeypatch.setattr(run, "measure_sparse", lambda: Section("sparse", {}))
    monkeypatch.setattr(run, "tiles_of_digits", lambda: some_digits(200))
    monkeypatch.setattr(run, "QUICK", SCALE)
    given_ = ["specialists", "--quick", "--out", str(tmp_path), "--seeds", "2"]
    assert command.main(given_) == 0
    out, progress = capsys.readouterr()
    assert "digits/random/judged" in out
    assert "than_control_p" in out
    assert "digits seed 1: heads_6 (4/4)" in progress
    summary = json.loads((tmp_path / "specialists.json").read_text(encoding="utf-8"))
    figures = summary["figures"]
    assert summary["seeds"] == [0, 1]
    assert figures["novelty/b/x"] == 2.0
    assert figures["digits/base/extra_macs"] == 0
    assert figures["digits/random/extra_macs"] > figures["digits/heads_6/extra_macs"] > 0
    assert -1 <= figures["digits/random/than_control_low"] <= figures["digits/random/than_control_high"] <= 1
    assert not list(tmp_path.rglob("items-*"))
    monkeypatch.setattr(run, "VARIANTS", dict.fromkeys(VARIANTS))
    assert command.main(given_) == 0
    assert json.loads((tmp_path / "specialists.json").read_text(encoding="utf-8"))["figures"] == figures


def test_what_is_quick_is_known() -> None:
    assert set(FEW) <= set(VARIANTS)
    assert all(v.control in VARIANTS for v in VARIANTS.values())
    with pytest.raises(ValueError, match="at least one seed"):
        benchmark_specialists(Path(), scale=replace(SCALE, seeds=0))


def test_sparse_columns_are_timed_beside_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_CELLS": 32, "_WINDOWS": 1, "_RUNS": 1, "_GROUPS": 2, "_DENSITIES": (0.3,)}.items():
        monkeypatch.setattr(sparse, name, value)
    figures = sparse.measure_sparse().figures
    assert len(figures) == 8
    for block in (8, 16):
        key = f"sparse/blocks of {block}, 30%"
        share, ideal = figures[f"{key}/share"], figures[f"{key}/of_ideal_macs"]
        assert 0 < share < 1
        assert 0.5 < ideal <= 1  # halos
        assert figures[f"{key}/of_ideal"] == pytest.approx(share * figures[f"{key}/speedup"])
