"""Trees of forks: equal to their whole nets evaluated plainly, and as dear as said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.fork import ForkTree, Layers

SPEC = StackSpec.parse(1, "4/2:3 4/2:5 3:6 1:7 1:9")
SIDE, CLASSES = SPEC.input_size(1), 9


def trunk_of(seed: int, *, batch_norm: bool = True) -> ConvStack:
    """A net whose statistics of batch normalisation are not the initial ones."""
    torch.manual_seed(seed)
    net = ConvStack(SPEC, batch_norm=batch_norm)
    net.train()(torch.randn(32, 1, SIDE, SIDE))
    return net.eval()


def router_of(tree: ForkTree, node: int, stage: int, count: int) -> nn.Conv2d:
    x = torch.zeros(1, 1, SIDE, SIDE)
    for n in reversed(path_of(tree, node)):
        fork = tree.forks[n]
        stop = fork.split if n != node else stage
        x = fork.layers(x, 0, stop - fork.stage)
    router = nn.Conv2d(x.shape[1], count, x.shape[2])
    assert router.bias is not None
    nn.init.normal_(router.bias)
    return router


def path_of(tree: ForkTree, node: int) -> list[int]:
    """A node and those above it."""
    path = [node]
    while tree.forks[path[-1]].parent >= 0:
        path.append(tree.forks[path[-1]].parent)
    return path


def shaken(layers: Layers, by: float = 0.3) -> Layers:
    """Other weights, as after training."""
    with torch.no_grad():
        for p in layers.parameters():
            p.add_(torch.randn_like(p) * by)
    return layers


def grown(trunk: ConvStack, stages: list[int], *, by: float) -> ForkTree:
    """A tree with a fork of each of the first two leaves at every depth."""
    tree, leaves = ForkTree(trunk), [0]
    for stage in stages:
        below: list[int] = []
        for node in leaves[:2]:
            own = [shaken(tree.layers_of(node, stage), by) for _ in range(3)]
            below += tree.grow(node, stage, router_of(tree, node, stage, 3), own)
        leaves = below
    return tree


def whole_net(tree: ForkTree, leaf: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The answer of a leaf's whole net, and the choices of the routers on its path, by torch's own convolutions."""
    path, chosen = path_of(tree, leaf)[::-1], []
    convs: list[nn.Module] = []
    for node in path:
        fork = tree.forks[node]
        convs = convs[: fork.stage] + list(fork.layers.convs)
    maps = [x]
    for conv in convs[:-1]:
        assert isinstance(conv, nn.Conv2d)
        maps.append(torch.relu(nn.functional.conv2d(maps[-1], conv.weight, conv.bias, conv.stride)))
    for node in path[:-1]:
        router = tree.forks[node].router
        assert router is not None
        chosen.append(router(maps[tree.forks[node].split]).flatten(1).argmax(dim=1))
    reader = convs[-1]
    assert isinstance(reader, nn.Conv2d)
    return nn.functional.conv2d(maps[-1], reader.weight, reader.bias).flatten(1), chosen


@given(seed=st.integers(0, 1000), stages=st.lists(st.integers(0, 4), min_size=1, max_size=3).map(sorted))
@settings(max_examples=6, deadline=None)
def test_a_fork_that_was_not_trained_answers_like_the_trunk(seed: int, stages: list[int]) -> None:
    trunk = trunk_of(seed)
    tree = grown(trunk, stages, by=0.0)
    x = torch.randn(40, 1, SIDE, SIDE)
    found = tree(x)
    # Bits do not depend on the batch, so a tile among those of its leaf has exactly the trunk's answer.
    with torch.inference_mode():
        np.testing.assert_array_equal(found.logits, trunk.folded()(x).flatten(1))
    assert tree.depths.max() == len(stages)


@given(seed=st.integers(0, 1000), stages=st.lists(st.integers(0, 4), min_size=1, max_size=3).map(sorted))
@settings(max_examples=6, deadline=None)
def test_a_routed_answer_is_that_of_the_whole_net_of_its_leaf(seed: int, stages: list[int]) -> None:
    tree = grown(trunk_of(seed), stages, by=0.3)
    x = torch.randn(40, 1, SIDE, SIDE)
    found = tree(x)
    inner = {fork.parent for fork in tree.forks}
    for leaf in np.unique(found.nodes).tolist():
        assert leaf not in inner
        rows = torch.from_numpy(found.nodes == leaf)
        with torch.inference_mode():
            logits, chosen = whole_net(tree, leaf, x)
        torch.testing.assert_close(found.logits[rows], logits[rows], rtol=1e-4, atol=1e-4)
        path = path_of(tree, leaf)[::-1]
        for node, child, choice in zip(path[:-1], path[1:], chosen, strict=True):
            assert set(choice[rows].tolist()) == {tree.children(node).tolist().index(child)}


@pytest.mark.parametrize("stages", [[1], [2, 3], [1, 2, 4]])
def test_multiply_adds_are_those_that_torch_counts(stages: list[int]) -> None:
    tree = grown(trunk_of(3), stages, by=0.3)
    for x in torch.randn(6, 1, 1, SIDE, SIDE):
        with FlopCounterMode(display=False) as counter:
            found = tree(x)
        assert counter.get_total_flops() == 2 * int(found.macs.sum())


def test_multiply_adds_of_a_path_are_those_of_the_net_and_the_routers() -> None:
    trunk = trunk_of(4)
    tree = grown(trunk, [2, 3], by=0.3)
    found = tree(torch.randn(64, 1, SIDE, SIDE))
    for leaf, macs in zip(found.nodes.tolist(), found.macs.tolist(), strict=True):
        routers = [tree.forks[n].router for n in path_of(tree, leaf)[1:]]
        weights = [p for r in routers if r is not None for p in r.parameters() if p.ndim == 4]
        assert macs == SPEC.macs(1, 1) + sum(p.numel() for p in weights)


def test_a_leaf_with_few_classes_asks_its_parent_about_the_rest() -> None:
    trunk, x = trunk_of(5), torch.randn(200, 1, SIDE, SIDE)
    tree = ForkTree(trunk)
    below, classes = [], [torch.tensor([0, 3, 4]), torch.tensor([1, 2, 5, 8])]
    high = trunk.folded().high(x)
    for known in classes:
        layers = tree.layers_of(0, 2)
        reader = nn.Conv2d(high.shape[1], len(known) + 1, 1)
        with torch.no_grad():  # each output is the largest for some tiles
            assert reader.bias is not None
            reader.bias.sub_(reader(high).mean(dim=(0, 2, 3)))
        layers.convs[-1] = reader
        below.append(layers)
    tree.grow(0, 2, router_of(tree, 0, 2, 2), below, classes)
    found = tree(x)
    with torch.inference_mode():
        base = trunk.folded()(x).flatten(1)
    asked = ~torch.isinf(found.logits).any(dim=1)
    assert 0 < int(asked.sum()) < len(x)
    torch.testing.assert_close(found.logits[asked], base[asked])
    for row in torch.nonzero(~asked)[:, 0].tolist():
        own = tree.forks[int(found.nodes[row])].classes
        assert own is not None
        assert torch.nonzero(~torch.isinf(found.logits[row]))[:, 0].tolist() == own.tolist()
    assert found.macs[asked.numpy()].min() > found.macs[~asked.numpy()].max()


def test_only_a_leaf_is_forked_and_not_before_its_own_stages() -> None:
    tree = grown(trunk_of(6), [2], by=0.0)
    leaf = int(tree.children(0)[0])
    router = router_of(tree, 0, 2, 2)
    own = [tree.layers_of(0, 2)] * 2
    with pytest.raises(ValueError, match="has children already"):
        tree.grow(0, 2, router, own)
    with pytest.raises(ValueError, match="expected a stage from 2 to 4"):
        tree.grow(leaf, 1, router, own)
    with pytest.raises(ValueError, match="expected a stage from 2 to 4"):
        tree.grow(leaf, 5, router, own)
