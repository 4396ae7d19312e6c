"""Learning from stored items: stores, tasks, trees and groups, and what is kept of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
import zarr

from coarse2fine.fitting.specialists.grow_tree import Grown, TreeGrower, grow
from coarse2fine.fitting.specialists.items import Items, ItemStore, loss_of, wrong
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.fitting.specialists.validate import SHARES, judge_last, judge_tree
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.feature_tree import NO_NODE, ROOT, FeatureTree
from coarse2fine.models.gate import Gate
from coarse2fine.models.routing import Answered, Specialists

QUICK = TrainingOptions(epochs=4, own_epochs=6, batch=32, rate=0.02, own_decay=0.01)
COUNT, CLASSES = 600, 2


def base() -> ConvStack:
    torch.manual_seed(0)
    return ConvStack(StackSpec.parse(1, "4/2:6 3:8 1:2")).eval()


def items() -> Items:
    """Tiles of two textures; which class a tile is of depends on its brightness in one way for each texture."""
    rng = np.random.default_rng(0)
    net = base()
    side = net.spec.input_size(2)
    texture, bright = rng.integers(0, 2, COUNT), rng.integers(0, 2, COUNT)
    stripes = np.where(texture[:, None, None] == 1, 1.0, -1.0) * np.sin(np.arange(side) * 1.5)
    x = 2 * stripes + bright[:, None, None] + 0.1 * rng.standard_normal((COUNT, side, side))
    label = bright ^ texture
    return Items.of(
        net,
        ColumnInputs.of(ColumnSpec.design(FeatureMaps.of(net), 4), FeatureMaps.of(net)),
        torch.from_numpy(x[:, None].astype(np.float32)),
        torch.from_numpy(np.eye(2)[label]),
        held=np.arange(COUNT) % 3 == 0,
        group=np.arange(COUNT) // 5,
        tiles=np.zeros((COUNT, 2, 2, 1), np.uint8),
    )


@pytest.fixture
def store(tmp_path: Path) -> ItemStore:
    whole = items()
    parts = [whole.take(np.arange(start, min(start + 170, COUNT))) for start in range(0, COUNT, 170)]
    return ItemStore.write(tmp_path / "störe", parts, loss="softmax", name="tiles")


def twins() -> FeatureMaps:
    return FeatureMaps.of(base())


def columns() -> tuple[ColumnSpec, ...]:
    spec = ColumnSpec.design(twins(), 4)
    return spec, spec.narrowed(0.5)


def test_a_store_gives_back_what_was_written(store: ItemStore) -> None:
    whole, again = items(), ItemStore(store.folder)
    assert (len(again), again.loss, again.name) == (COUNT, "softmax", "tiles")
    rows = np.array([0, 3, 511, 512, 599])
    for found, expected in ((again.read(), whole), (again.read(rows), whole.take(rows))):
        for a, b in zip(found.maps, expected.maps, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        for name in ("answers", "targets", "valid"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
        for name in ("held", "group", "tiles"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    last = again.read(last=1)
    assert len(last.maps) == 1
    torch.testing.assert_close(last.maps[0], whole.maps[-1], rtol=0, atol=0)
    np.testing.assert_allclose(last.features, whole.maps[-1].float().mean(dim=(2, 3)).numpy(), atol=1e-3)


def test_a_store_that_was_left_unfinished_is_none(tmp_path: Path) -> None:
    def broken() -> object:
        yield items()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ItemStore.write(tmp_path, broken(), loss="softmax", name="x")  # type: ignore[arg-type]
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match="no complete store of items"):
            ItemStore(folder)
    with pytest.raises(ValueError, match="no items"):
        ItemStore.write(tmp_path, [], loss="softmax", name="x")


@pytest.mark.parametrize("exclusive", [True, False])
def test_losses_count_what_is_known(exclusive: bool) -> None:
    whole = items()
    part = Items(
        whole.maps, whole.answers, whole.targets, torch.ones_like(whole.valid), whole.held, whole.group, whole.tiles
    )
    part.valid[7] = 0
    loss, bad = loss_of(part.answers, part, exclusive=exclusive), wrong(part.answers, part, exclusive=exclusive)
    assert loss[7] == 0
    assert not bad[7]
    p = torch.softmax(part.answers, dim=1) if exclusive else torch.sigmoid(part.answers)
    true = part.targets.argmax(dim=1)
    for i in (0, 1, 2):
        k = int(true[i])
        expected = -torch.log(p[i, k]) - (0 if exclusive else torch.log(1 - p[i, 1 - k]))
        assert float(loss[i]) == pytest.approx(float(expected), rel=1e-4)
        right = (p[i] > 0.5)[k] and (exclusive or not (p[i] > 0.5)[1 - k])
        assert bool(bad[i]) != bool(right)


def test_a_tree_of_columns_learns_what_the_base_does_not_know(store: ItemStore) -> None:
    grown = grow(store, twins(), columns(), QUICK, clusters=3)
    whole = store.read(last=1)
    assert grown.tree.depths.max() == 2
    assert set(grown.columns) == set(range(1, len(grown.tree)))
    held = np.flatnonzero(whole.held)
    before, *after = (float(wrong(a[held], whole.take(held), exclusive=True).float().mean()) for a in grown.answers)
    assert before > 0.3
    assert after[-1] < 0.15
    judged, gate, verdict = judge_tree(grown, whole, exclusive=True)
    assert judged.tree.kept[1:].any()
    assert verdict.pays()
    assert verdict.wrong < 0.2 < verdict.wrong_before
    assert 0.3 < verdict.share_run <= 1
    assert "in 120 groups" in str(verdict)
    # The nodes delivered are those that a runner finds, and so are the answers.
    for pruned in (judged, judged.shrunk(0.25)):
        assert_run(pruned, store, gate)


def test_what_was_learned_by_heart_is_believed_less(tmp_path: Path) -> None:
    """The items that teach say what is so in one of two places more than it is."""
    whole = items()
    rng = np.random.default_rng(0)
    lucky = whole.targets.flip(1)
    turned = torch.from_numpy(rng.random(COUNT) < 0.3) & torch.from_numpy(whole.held)
    targets = torch.where(turned[:, None], lucky, whole.targets)
    store = ItemStore.write(tmp_path, [replace(whole, targets=targets)], loss="softmax", name="tiles")
    grown = grow(store, twins(), columns()[:1], QUICK, clusters=2)
    judged, _, _ = judge_tree(grown, store.read(last=1), exclusive=True)
    base, own, less = grown.answers[0], grown.answers[1], judged.answers[1]
    share = float((less - base).norm() / (own - base).norm())
    assert share in [pytest.approx(s, rel=1e-4) for s in SHARES[1:]]


def assert_run(pruned: Grown, store: ItemStore, gate: Gate) -> None:
    whole = store.read()
    ended: list[Answered] = []
    kept = {node: column for node, column in pruned.columns.items() if pruned.tree.kept[node]}
    runner = Specialists(pruned.tree, kept, ended.append, gate=gate)
    rows = torch.arange(COUNT)
    maps = [m.float() for m in whole.maps]
    runner.put(np.arange(COUNT), maps, [rows] * len(maps), whole.answers)
    runner.flush()
    expected, asked = pruned.answered(gate, pruned.tree)
    found = torch.empty_like(expected)
    for each in ended:
        found[torch.from_numpy(each.keys)] = each.answers
    # What is stored is in half precision.
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert runner.dispatch.items.total() == asked.sum()


def test_heads_are_a_tree_too(store: ItemStore) -> None:
    grown = grow(store, twins(), (ColumnSpec.head(twins()),), QUICK, clusters=6)
    whole = store.read(last=1)
    judged, _, verdict = judge_tree(grown, whole, exclusive=True)
    assert judged.tree.depths.max() == 1
    assert verdict.loss < verdict.loss_before
    assert all(not column.layout.spec.stages for column in grown.columns.values())


def test_without_passes_of_its_own_each_column_is_what_all_share(store: ItemStore) -> None:
    options = TrainingOptions(epochs=1, own_epochs=0, batch=32, rate=0.02)
    shared = [c.state_dict() for c in grow(store, twins(), columns()[:1], options, clusters=2).columns.values()]
    assert len(shared) == 2
    assert all(torch.equal(shared[0][name], shared[1][name]) for name in shared[0])


def test_items_may_be_clustered_by_anything(store: ItemStore) -> None:
    way = (np.arange(COUNT) % 2).astype(np.float32)[:, None]
    grown = grow(store, twins(), columns()[:1], QUICK, clusters=2, vectors=way)
    assert len({(w, n) for w, n in zip(way[:, 0].tolist(), grown.nodes[:, 0].tolist(), strict=True)}) == 2


def test_one_worker_and_two_give_the_same_and_nothing_is_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[torch.Tensor, ...]] = []
    for number, scheduler in enumerate(("synchronous", "processes")):
        folder = tmp_path / str(number)
        store = ItemStore.write(folder, [items().take(np.arange(240))], loss="softmax", name="tiles")
        with dask.config.set(scheduler=scheduler, num_workers=2):
            answers.append(grow(store, twins(), columns()[:1], QUICK, clusters=3).answers)
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    files = sorted(folder.glob("*.c2f"))
    assert len(files) > 2
    files[0].unlink() if files[0].name.startswith("own") else files[1].unlink()
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.c2f")}
    again = grow(ItemStore(folder), twins(), columns()[:1], QUICK, clusters=3).answers
    torch.testing.assert_close(again[1], answers[0][1], rtol=0, atol=0)
    assert sorted(folder.glob("*.c2f")) == files
    assert {path: path.stat().st_mtime_ns for path in written} == written
    monkeypatch.setattr("coarse2fine.fitting.specialists.train_columns._train_own", None)
    grow(ItemStore(folder), twins(), columns()[:1], QUICK, clusters=3)


def test_what_does_not_surely_help_is_not_kept(tmp_path: Path) -> None:
    """Answers that are right already, and targets that nobody can know."""
    whole = items()
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(np.eye(2)[rng.integers(0, 2, COUNT)]).float()
    for targets, answers in ((noise, torch.zeros(COUNT, CLASSES)), (whole.targets, 20 * whole.targets - 10)):
        part = Items(whole.maps, answers, targets, whole.valid, whole.held, whole.group, whole.tiles)
        folder = tmp_path / str(float(answers.sum()))
        store = ItemStore.write(folder, [part], loss="softmax", name="noise")
        grown = grow(store, twins(), columns()[:1], QUICK, clusters=3)
        _, _, verdict = judge_tree(grown, store.read(last=1), exclusive=True)
        assert not verdict.pays(3)  # as one of three modes; one noise in twenty passes a single test


def test_a_depth_is_tested_against_the_depths_above_it() -> None:
    """Level 1 is right about everything; level 2 halves its logits, or doubles them."""
    whole = items()
    rng = np.random.default_rng(0)
    tree, leaf = FeatureTree.root(COUNT).split(
        ROOT, rng.standard_normal((COUNT, 3)).astype(np.float32), 2, smallest=9, seed=0
    )
    below = np.full(COUNT, NO_NODE, np.int32)
    for node in (1, 2):
        rows = np.flatnonzero(leaf == node)
        points = rng.standard_normal((len(rows), 3)).astype(np.float32)
        tree, below[rows] = tree.split(node, points, 2, smallest=9, seed=0)
    first = 2 * whole.targets
    for last, pays in ((first / 2, False), (2 * first, True)):
        grown = Grown(tree, {}, np.stack([leaf, below], axis=1), (torch.zeros(COUNT, CLASSES), first, last))
        verdict = judge_last(grown, whole, exclusive=True)
        assert verdict.pays() == pays
        assert verdict.loss_before == pytest.approx(float(loss_of(first, whole, exclusive=True)[whole.held].mean()))


def test_a_tree_grows_depth_by_depth(store: ItemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coarse2fine.fitting.specialists.grow_tree._FEWEST", 12)
    grower = TreeGrower(store, twins(), QUICK, maps=len(twins().maps), clusters=2)
    spec = columns()[0]
    before = [grower.grown]
    while len(before) < 4 and grower.deepen(spec.narrowed(0.5 ** len(before))):
        before.append(grower.grown)
    depths = [int(grown.tree.depths.max()) for grown in before]
    assert depths == [0, 1, 2, 3]
    for above, below in pairwise(before):
        for a, b in zip(above.answers, below.answers, strict=False):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        np.testing.assert_array_equal(below.nodes[:, : above.nodes.shape[1]], above.nodes)
    tree = before[-1].tree
    own = twins().maps[-1].channels
    for node in range(1, len(tree)):
        assert not tree.scales[node][:own].any()  # below the root a column's own features decide
    assert_run(before[-1], store, Gate.open(exclusive=True))


@pytest.mark.parametrize("what", ["group", "array", "file", "damage"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, what: str) -> None:
    place = tmp_path / "items.zarr"
    if what == "group":
        zarr.create_group(place).create_array("mine", data=np.arange(3))
    elif what == "array":
        zarr.create_array(place, data=np.arange(3))
    elif what == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "zarr.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="give another folder"):
        ItemStore.write(tmp_path, [items()], loss="softmax", name="tiles")
    assert sorted(tmp_path.rglob("*")) == before
