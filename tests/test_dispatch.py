"""Pairs in batches, in whatever order, against one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coarse2fine.models.column import Column, Columns
from coarse2fine.models.dispatch import Dispatch, Done, Shapes
from coarse2fine.models.gate import Gate
from coarse2fine.models.specialists import Answered, Specialists, features_at
from coarse2fine.models.tree import ROOT, FeatureTree
from coarse2fine.models.twin import ColumnSpec, Twin, Twins

TWINS = Twins(4, 1, (Twin(3, 1, 3.0), Twin(4, 2, 2.0), Twin(6, 4, 0.0)))
SPEC = ColumnSpec.parse("4:3 2:5")


def columns_of(count: int, spec: ColumnSpec = SPEC, parent: ColumnSpec | None = None, seed: int = 0) -> list[Column]:
    torch.manual_seed(seed)
    columns = Columns(spec, TWINS, 2, count, parent=parent)
    for p in columns.parameters():
        nn.init.normal_(p, std=0.3)
    return [columns.column(k) for k in range(count)]


def items_of(column: Column, count: int, height: int = 2, width: int = 3) -> list[Tensor]:
    layout = column.layout
    sides = zip(layout.maps, layout.sides(height), layout.sides(width), strict=True)
    return [torch.randn(count, twin.channels, h, w) for twin, h, w in sides]


class Ledger:
    """A queue of columns, and all that it delivered."""

    def __init__(self, columns: Sequence[Column], *, batch: int, most_open: int) -> None:
        self.columns, self.batch, self.most_waiting = columns, batch, batch * most_open
        self.found: dict[int, Tensor] = {}
        self.sizes: list[int] = []
        self.queue = Dispatch(self.run, self.deliver, self.macs, batch=batch, most_open=most_open)

    def run(self, column: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.columns[column](inputs)[0],)

    def macs(self, column: int, shapes: Shapes) -> int:
        return self.columns[column].macs(*shapes[-1][-2:])

    def deliver(self, done: Done) -> None:
        assert len(done.keys) == len(done.outputs[0]) == len(done.inputs[0]) <= self.batch
        assert len(self.queue) <= self.most_waiting
        self.sizes.append(len(done.keys))
        for key, out in zip(done.keys.tolist(), done.outputs[0], strict=True):
            assert key not in self.found
            self.found[key] = out.clone()


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 4), st.integers(1, 40), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_order_of_arrival_changes_nothing(seed: int, batch: int, most_open: int, chunk: int, last: bool) -> None:
    columns = columns_of(5)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    inputs = items_of(columns[0], 12)
    if last:
        inputs = [m.to(memory_format=torch.channels_last) for m in inputs]
    # Each item is asked for by several columns.
    pairs = np.argwhere(rng.random((12, 5)) < 0.5)
    order = rng.permutation(len(pairs))
    ledger = Ledger(columns, batch=batch, most_open=most_open)
    for start in range(0, len(order), chunk):
        at = order[start : start + chunk]
        rows = torch.from_numpy(pairs[at, 0])
        ledger.queue.put(pairs[at, 1], at.astype(np.int64), inputs, [rows] * len(inputs))
        assert len(ledger.queue) <= ledger.most_waiting
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
    ledger = Ledger(columns_of(3), batch=4, most_open=3)
    inputs = items_of(ledger.columns[0], 27)
    for start in range(0, 27, 9):
        rows = torch.arange(start, start + 9)
        ledger.queue.put(np.arange(9) % 3, rows.numpy(), inputs, [rows] * len(inputs))
    assert ledger.sizes == [4] * 6
    ledger.queue.flush()
    assert ledger.sizes == [4] * 6 + [1] * 3


def test_multiply_adds_are_those_of_torch_for_items_of_any_shape() -> None:
    ledger = Ledger(columns_of(4), batch=5, most_open=3)
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


def test_what_is_delivered_may_be_sent_on() -> None:
    """Each item is halved by column after column until it is below one."""
    ends: dict[int, float] = {}

    def deliver(done: Done) -> None:
        values = done.outputs[0]
        below = (values < 1).flatten().numpy()
        ends.update(zip(done.keys[below].tolist(), values[torch.from_numpy(below)].flatten().tolist(), strict=True))
        rows = torch.from_numpy(np.flatnonzero(~below))
        queue.put(np.full(len(rows), done.column + 1), done.keys[~below], done.outputs, [rows])

    queue = Dispatch(lambda _, inputs: (inputs[0] / 2,), deliver, lambda column, _: column, batch=3, most_open=2)
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


@given(st.integers(0, 50), st.sampled_from([0.6, 1.0]), st.integers(1, 16), st.integers(1, 6), st.integers(1, 60))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_way_through_the_tree_is_that_of_each_item_alone(
    seed: int, high: float, batch: int, most_open: int, chunk: int
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
    runner = Specialists(tree, kept, deliver, gate=gate, batch=batch, most_open=most_open)
    order = np.random.default_rng(seed).permutation(60)
    for start in range(0, 60, chunk):
        at = torch.from_numpy(order[start : start + chunk])
        runner.put(at.numpy(), inputs, [at] * len(inputs), answer[at])
    runner.flush()
    assert len(found) == 60
    routing = 0
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        for item in range(60):
            rows = slice(item, item + 1)
            expected, node, macs = one_by_one(tree, kept, [m[rows] for m in inputs], answer[rows], gate)
            routing += macs
            torch.testing.assert_close(found[item][0], expected[0], rtol=1e-4, atol=1e-5)
            assert found[item][1] == node
    assert 2 * runner.dispatch.macs_spent == counter.get_total_flops()
    assert runner.routing_macs == routing


def test_a_tree_without_nodes_leaves_the_answer_alone() -> None:
    ended: list[Answered] = []
    inputs, answer = items_of(columns_of(1)[0], 4), torch.randn(4, 2)
    runner = Specialists(FeatureTree.root(9), {}, ended.append, gate=Gate.open(exclusive=False))
    runner.put(np.arange(4), inputs, [torch.arange(4)] * len(inputs), answer)
    assert len(ended) == 1
    assert ended[0].nodes.tolist() == [ROOT] * 4
    torch.testing.assert_close(ended[0].answers, answer, rtol=0, atol=0)
