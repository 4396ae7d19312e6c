"""Pairs in batches, in whatever order, against one at a time."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coarse2fine.models.batch_queue import BatchQueue, Done, Shapes
from coarse2fine.models.column import Column
from coarse2fine.models.feature_maps import ColumnSpec, FeatureMaps, Twin
from coarse2fine.models.feature_tree import ROOT, FeatureTree
from coarse2fine.models.gate import Gate
from coarse2fine.models.routing import Answered, Specialists, features_at
from coarse2fine.models.threads import threads_here

TWINS = FeatureMaps(4, 1, (Twin(3, 1, 3.0), Twin(4, 2, 2.0), Twin(6, 4, 0.0)))
SPEC = ColumnSpec.parse("4:3 2:5")


def columns_of(count: int, spec: ColumnSpec = SPEC, parent: ColumnSpec | None = None, seed: int = 0) -> list[Column]:
    torch.manual_seed(seed)
    columns = [Column(spec, TWINS, 2, parent=parent) for _ in range(count)]
    for p in (p for column in columns for p in column.parameters()):
        nn.init.normal_(p, std=0.3)
    return [column.eval() for column in columns]


def items_of(column: Column, count: int, height: int = 2, width: int = 3) -> list[Tensor]:
    layout = column.layout
    sides = zip(layout.maps, layout.sides(height), layout.sides(width), strict=True)
    return [torch.randn(count, twin.channels, h, w) for twin, h, w in sides]


class Ledger:
    """A queue of columns, and all that it delivered."""

    def __init__(self, columns: Sequence[Column], *, batch: int, most_bytes: int = 1 << 20) -> None:
        self.columns, self.batch = columns, batch
        self.found: dict[int, Tensor] = {}
        self.sizes: list[int] = []
        self.queue = BatchQueue(self.run, self.deliver, self.macs, batch=batch, most_bytes=most_bytes)

    def run(self, column: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.columns[column](inputs)[0],)

    def macs(self, column: int, shapes: Shapes) -> int:
        return self.columns[column].macs(*shapes[-1][-2:])

    def deliver(self, done: Done) -> None:
        assert len(done.keys) == len(done.outputs[0]) == len(done.inputs[0]) <= self.batch
        self.sizes.append(len(done.keys))
        for key, out in zip(done.keys.tolist(), done.outputs[0], strict=True):
            assert key not in self.found
            self.found[key] = out.clone()


BYTES = st.sampled_from([1, 3000, 1 << 20])


@given(st.integers(0, 1000), st.integers(1, 9), BYTES, st.integers(1, 40), st.booleans(), st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_order_of_arrival_changes_nothing(
    seed: int, batch: int, most_bytes: int, chunk: int, last: bool, threads: int
) -> None:
    columns = columns_of(5)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    inputs = items_of(columns[0], 12)
    if last:
        inputs = [m.to(memory_format=torch.channels_last) for m in inputs]
    # Each item is asked for by several columns.
    pairs = np.argwhere(rng.random((12, 5)) < 0.5)
    order = rng.permutation(len(pairs))
    with threads_here(threads):
        ledger = Ledger(columns, batch=batch, most_bytes=most_bytes)
        for start in range(0, len(order), chunk):
            at = order[start : start + chunk]
            rows = torch.from_numpy(pairs[at, 0])
            ledger.queue.put(pairs[at, 1], at.astype(np.int64), inputs, [rows] * len(inputs))
            # What may not wait is under way at most.
            assert most_bytes > 1 or len(ledger.queue) <= threads * batch
        ledger.queue.flush()
    assert len(ledger.queue) == 0
    assert sorted(ledger.found) == list(range(len(pairs)))
    assert ledger.queue.items == Counter(pairs[:, 1].tolist())
    assert ledger.queue.batches == len(ledger.sizes)
    with torch.inference_mode():
        for key, (item, column) in enumerate(pairs.tolist()):
            alone = columns[column]([m[item : item + 1] for m in inputs])[0][0]
            torch.testing.assert_close(ledger.found[key], alone, rtol=1e-4, atol=1e-5)


def test_batches_are_full_where_they_can_be() -> None:
    ledger = Ledger(columns_of(3), batch=4)
    inputs = items_of(ledger.columns[0], 27)
    for start in range(0, 27, 9):
        rows = torch.arange(start, start + 9)
        ledger.queue.put(np.arange(9) % 3, rows.numpy(), inputs, [rows] * len(inputs))
    assert ledger.queue.items == Counter({0: 8, 1: 8, 2: 8})
    ledger.queue.flush()
    assert ledger.sizes == [4] * 6 + [1] * 3


def halves(**options: int) -> tuple[BatchQueue, dict[int, float]]:
    """A queue of one specialist, and what it delivered."""
    found: dict[int, float] = {}

    def deliver(done: Done) -> None:
        found.update(zip(done.keys.tolist(), done.outputs[0][:, 0].tolist(), strict=True))

    return BatchQueue(lambda _, inputs: (inputs[0] / 2,), deliver, lambda _, __: 1, **options), found


def test_large_items_are_run_in_smaller_batches() -> None:
    for width, batches in ((10, 1), (32 << 10, 2), (64 << 10, 4), (128 << 10, 4)):
        queue, found = halves()
        maps = torch.arange(256.0)[:, None].expand(-1, width)
        queue.put(np.zeros(256, np.int64), np.arange(256), [maps], [torch.arange(256)])
        queue.flush()
        assert queue.batches == batches
        assert found == {key: key / 2 for key in range(256)}


def test_maps_are_not_kept_for_a_few_items() -> None:
    queue, found = halves()
    held: list[weakref.ref[Tensor]] = []
    for key in range(3):
        maps = torch.full((100, 4), float(key))
        held.append(weakref.ref(maps))
        queue.put(np.zeros(1, np.int64), np.array([key]), [maps], [torch.tensor([7])])
        del maps
        # The last maps may stay until the next ones come.
        assert [each() for each in held[:-1]] == [None] * key
    assert len(queue) == 3
    queue.flush()
    assert found == {0: 0.0, 1: 0.5, 2: 1.0}


def test_memory_is_bounded_where_maps_are_kept() -> None:
    queue, found = halves(most_bytes=5 * 8 * 4)
    for start in range(0, 80, 8):
        maps = torch.arange(float(start), start + 8)[:, None]
        queue.put(np.zeros(8, np.int64), np.arange(start, start + 8), [maps], [torch.arange(8)])
        assert len(queue) <= 40
    assert queue.batches == 1
    queue.flush()
    assert found == {key: key / 2 for key in range(80)}


def test_what_fails_in_another_thread_is_told() -> None:
    def fails(column: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        raise ArithmeticError("no specialist")

    with threads_here(2):
        queue = BatchQueue(fails, lambda _: None, lambda _, __: 1)
        queue.put(np.zeros(3, np.int64), np.arange(3), [torch.zeros(3, 1)], [torch.arange(3)])
        with pytest.raises(ArithmeticError, match="no specialist"):
            queue.flush()


def test_multiply_adds_are_those_of_torch_for_items_of_any_shape() -> None:
    ledger = Ledger(columns_of(4), batch=5)
    rng = np.random.default_rng(0)
    key = 0
    with FlopCounterMode(display=False) as counter:
        for height, width in ((1, 1), (2, 3), (1, 1), (3, 2)):
            inputs = items_of(ledger.columns[0], 9, height, width)
            rows = torch.arange(9)
            ledger.queue.put(rng.integers(0, 4, 9), np.arange(key, key + 9), inputs, [rows] * len(inputs))
            key += 9
        ledger.queue.flush()
    assert 2 * ledger.queue.macs_spent == counter.get_total_flops()
    assert sorted(ledger.found) == list(range(36))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_delivered_may_be_sent_on(threads: int) -> None:
    """Each item is halved by column after column until it is below one."""
    ends: dict[int, float] = {}

    def deliver(done: Done) -> None:
        values = done.outputs[0]
        below = (values < 1).flatten().numpy()
        ends.update(zip(done.keys[below].tolist(), values[torch.from_numpy(below)].flatten().tolist(), strict=True))
        rows = torch.from_numpy(np.flatnonzero(~below))
        queue.put(np.full(len(rows), done.column + 1), done.keys[~below], done.outputs, [rows])

    with threads_here(threads):
        queue = BatchQueue(lambda _, inputs: (inputs[0] / 2,), deliver, lambda column, _: column, batch=3)
        start = torch.arange(1.0, 41.0)[:, None]
        queue.put(np.zeros(40, np.int64), np.arange(40), [start], [torch.arange(40)])
        queue.flush()
    steps = [int(np.log2(value)) + 1 for value in range(1, 41)]
    assert ends == {key: (key + 1) / 2**n for key, n in enumerate(steps)}
    assert queue.macs_spent == sum(sum(range(n)) for n in steps)


def forest(seed: int) -> tuple[FeatureTree, dict[int, Column], list[Tensor], Tensor]:
    """A tree of depth 2 with a column at every node, items and the base's answers to them."""
    torch.manual_seed(seed)
    columns = columns_of(3, seed=seed)
    inputs = items_of(columns[0], 60)
    answer = torch.randn(60, 2)
    tree, node = FeatureTree.root(60).split(ROOT, features_at(inputs[-1], ()), 3, smallest=6, seed=seed)
    held = dict(enumerate(columns, start=1))
    below = SPEC.narrowed(0.5)
    for parent in tree.children(ROOT).tolist()[:2]:
        rows = torch.from_numpy(np.flatnonzero(node == parent))
        with torch.inference_mode():
            _, stages = held[parent]([m[rows] for m in inputs])
        tree, _ = tree.split(parent, features_at(inputs[-1][rows], stages), 2, smallest=2, seed=seed)
        held |= dict(zip(tree.children(parent).tolist(), columns_of(2, below, SPEC, parent), strict=False))
    return tree, held, inputs, answer


def one_by_one(
    tree: FeatureTree, columns: dict[int, Column], inputs: list[Tensor], answer: Tensor, gate: Gate
) -> tuple[Tensor, int, int]:
    """The plain way of one item through the tree: its answer, last node, and multiply-adds of routing."""
    stages: list[Tensor] = []
    node, routing = ROOT, 0
    while tree.kept[node] and tree.kept[tree.children(node)].any() and gate.unsure(answer):
        routing += tree.centres[node].size
        node = int(tree.step(node, features_at(inputs[-1], stages))[0])
        if tree.kept[node]:
            added, stages = columns[node](inputs, stages)
            answer = answer + added.mean(dim=(2, 3))
    return answer, node, routing


@given(
    st.integers(0, 50), st.sampled_from([0.6, 1.0]), st.integers(1, 16), BYTES, st.integers(1, 60), st.integers(1, 3)
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_the_way_through_the_tree_is_that_of_each_item_alone(
    seed: int, high: float, batch: int, most_bytes: int, chunk: int, threads: int
) -> None:
    tree, columns, inputs, answer = forest(seed)
    gate = Gate(1 - high, high)
    if seed % 2:
        tree = tree.pruned((np.arange(len(tree)) % 3).astype(np.float64), np.ones(len(tree)))
    found: dict[int, tuple[Tensor, int]] = {}

    def deliver(done: Answered) -> None:
        for key, out, node in zip(done.keys.tolist(), done.answers, done.nodes.tolist(), strict=True):
            assert key not in found
            found[key] = (out.clone(), node)

    kept = {node: column for node, column in columns.items() if tree.kept[node]}
    with threads_here(threads):
        runner = Specialists(tree, kept, deliver, gate=gate, batch=batch, most_bytes=most_bytes)
        order = np.random.default_rng(seed).permutation(60)
        for start in range(0, 60, chunk):
            at = torch.from_numpy(order[start : start + chunk])
            runner.put(at.numpy(), inputs, [at] * len(inputs), answer[at])
        runner.flush()
    assert len(found) == 60
    routing, flops, by_end = 0, 0, dict[int, int]()
    for item in range(60):
        rows = slice(item, item + 1)
        alone = tree, kept, [m[rows] for m in inputs], answer[rows], gate
        # What is counted depends on the way alone, which ends where no other does; counting is slow.
        end = found[item][1]
        counter = nullcontext() if end in by_end else FlopCounterMode(display=False)
        with counter, torch.inference_mode():
            expected, node, macs = one_by_one(*alone)
        if isinstance(counter, FlopCounterMode):
            by_end[end] = counter.get_total_flops()
        routing, flops = routing + macs, flops + by_end[end]
        torch.testing.assert_close(found[item][0], expected[0], rtol=1e-4, atol=1e-5)
        assert end == node
    assert 2 * runner.dispatch.macs_spent == flops
    assert runner.routing_macs == routing


def test_a_tree_without_nodes_leaves_the_answer_alone() -> None:
    ended: list[Answered] = []
    inputs, answer = items_of(columns_of(1)[0], 4), torch.randn(4, 2)
    runner = Specialists(FeatureTree.root(9), {}, ended.append, gate=Gate.open(exclusive=False))
    runner.put(np.arange(4), inputs, [torch.arange(4)] * len(inputs), answer)
    assert len(ended) == 1
    assert ended[0].nodes.tolist() == [ROOT] * 4
    torch.testing.assert_close(ended[0].answers, answer, rtol=0, atol=0)
