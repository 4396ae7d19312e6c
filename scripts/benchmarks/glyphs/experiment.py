"""All variants for one seed: a trunk, then trees of forks and controls that learn from one stream of samples."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.glyphs.distortion import Sampler
from benchmarks.glyphs.fonts import Glyphs
from benchmarks.glyphs.routing import rerouted
from benchmarks.glyphs.variants import BASE, BORDERS, FORK, ON, ONCE, ORACLE, ROUTED, TRUNK, VARIANTS, WIDE, WIDER
from coarse2fine.fitting.classes.grow_forks import Growing
from coarse2fine.fitting.classes.learner import NET_BATCH, ON_RATE, Learner, Samples, stream, train_net
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.models.feature_tree import ROOT
from coarse2fine.models.fork import ForkTree, Layers

_CHUNK, _TEST = 4096, 2**31
# A tile has a second leaf if the router gives it at least this probability.
_BORDER = 0.2


class Result(NamedTuple):
    """Answers of one variant.

    Parameters
    ----------
    wrong : ndarray, bool, (n,)
        Whether the answer is wrong, for each test sample.
    macs : float
        Multiply-adds of a test sample, mean.
    samples : float
        Samples trained on, those of the trunk included.
    training : float
        Multiply-adds of training beyond the trunk's: three times those of what learns, once those of what is frozen.
    """

    wrong: NDArray[np.bool_]
    macs: float
    samples: float
    training: float


@dataclass(frozen=True)
class GlyphScale:
    """Most letters of each script; samples for the trunk, for all else, for clusters and routers, for the test."""

    letters: int
    trunk_samples: int
    fork_samples: int
    fit_samples: int
    test_samples: int
    seeds: int
    names: tuple[str, ...]


def run_wide(glyphs: Glyphs, seed: int, scale: GlyphScale) -> dict[str, Result]:
    """Train a wider net end to end with as many samples as the trunk and all forks of a tree, and test it."""
    start, test = time.perf_counter(), Sampler(glyphs, _TEST).draw(scale.test_samples)
    spec, samples = StackSpec.parse(1, f"{WIDER} 1:{len(glyphs)}"), scale.trunk_samples + scale.fork_samples
    net = train_net(spec, Sampler(glyphs, 4 * seed + 3).draw, samples, seed=seed)
    trunks = StackSpec.parse(1, f"{TRUNK} 1:{len(glyphs)}").macs(1, 1) * scale.trunk_samples
    cost = 3.0 * (spec.macs(1, 1) * samples - trunks)
    found = Result(_wrong(net, test), spec.macs(1, 1), samples, cost)
    _say(seed, start, f"{WIDE} {found.wrong.mean():.2%}")
    return {WIDE: found}


def run_seed(glyphs: Glyphs, seed: int, scale: GlyphScale) -> dict[str, Result]:
    """Train all other variants, and answer the test samples, which are the same for every seed."""
    start, test = time.perf_counter(), Sampler(glyphs, _TEST).draw(scale.test_samples)
    spec, samples = StackSpec.parse(1, f"{TRUNK} 1:{len(glyphs)}"), scale.trunk_samples + scale.fork_samples
    net = train_net(spec, Sampler(glyphs, 4 * seed).draw, scale.trunk_samples, seed=seed)
    trunk = net.folded()
    found = {BASE: Result(_wrong(trunk, test), spec.macs(1, 1), scale.trunk_samples, 0.0)}
    _say(seed, start, f"trunk {found[BASE].wrong.mean():.2%}")
    fit = Sampler(glyphs, 4 * seed + 1).draw(scale.fit_samples)
    growing = {
        name: Growing(ForkTree(trunk), recipe, *fit, seed)
        for name in scale.names
        if (recipe := VARIANTS[name].recipe) is not None and (not seed or name not in ONCE)
    }
    more = Layers.of(net.train()).to(memory_format=torch.channels_last)
    learner = Learner(more, ON_RATE, NET_BATCH)
    early = Layers.of(trunk)
    told = 0.0
    for x, classes, done in stream(Sampler(glyphs, 4 * seed + 2).draw, scale.fork_samples):
        if done >= told:
            _say(seed, start, f"forks, {done:.0%}")
            told += 0.1
        with torch.no_grad():
            before = early(x, 0, FORK)
        learner.see(x, classes, done)
        for each in growing.values():
            each.see(before, classes, FORK, done)
    cost = 3.0 * spec.macs(1, 1) * scale.fork_samples
    found[ON] = Result(_wrong(more.eval(), test), spec.macs(1, 1), samples, cost)
    _say(seed, start, f"{ON} {found[ON].wrong.mean():.2%}")
    for name, each in growing.items():
        trained = samples, each.training_macs(scale.fork_samples)
        for word, (wrong, macs) in _judged(name, each, test):
            found[word] = Result(wrong, macs, *trained)
            _say(seed, start, f"{word} {wrong.mean():.2%}")
    return found


def _judged(name: str, growing: Growing, test: Samples) -> Iterator[tuple[str, tuple[NDArray[np.bool_], float]]]:
    """Errors and multiply-adds of a tree, and of one with other routing."""
    answers, macs = _answers(growing.tree, test.images)
    yield name, (_mistaken(answers, test), macs)
    if name != ROUTED:
        return
    tree = growing.tree
    chance = torch.cat([_chances(tree, x) for x in torch.split(test.images, _CHUNK)])
    best = chance.topk(2, dim=1)
    second, more = _answers(tree, test.images, best.indices[:, 1])
    close = best.values[:, 1] > _BORDER
    weights = best.values / best.values.sum(dim=1, keepdim=True)
    both = weights[:, :1] * answers.softmax(dim=1) + weights[:, 1:] * second.softmax(dim=1)
    # The second leaf costs its own stages once more.
    extra = float(close.float().mean()) * (more - tree.path_macs(int(tree.children(ROOT)[0])))
    yield BORDERS, (_mistaken(torch.where(close[:, None], both, answers.softmax(dim=1)), test), macs + extra)
    usual = growing.usual_leaf()[test.classes]
    answers, macs = _answers(tree, test.images, usual)
    yield ORACLE, (_mistaken(answers, test), macs)


def _chances(tree: ForkTree, x: Tensor) -> Tensor:
    root = tree.forks[ROOT]
    assert root.router is not None
    with torch.inference_mode():
        chance: Tensor = root.router(root.layers(x, 0, root.split)).flatten(1).softmax(dim=1)
    return chance


def _answers(tree: ForkTree, x: Tensor, leaves: Tensor | None = None) -> tuple[Tensor, float]:
    """Logits and the mean multiply-adds; each tile may be sent to a given child of the root."""
    parts = torch.split(x, _CHUNK)
    given = [None] * len(parts) if leaves is None else torch.split(leaves, _CHUNK)
    found = [
        (tree if chosen is None else rerouted(tree, chosen))(part) for part, chosen in zip(parts, given, strict=True)
    ]
    return torch.cat([each.logits for each in found]), float(np.concatenate([each.macs for each in found]).mean())


def _mistaken(answers: Tensor, test: Samples) -> NDArray[np.bool_]:
    return (answers.argmax(dim=1) != test.classes).numpy()


def _wrong(net: nn.Module, test: Samples) -> NDArray[np.bool_]:
    with torch.inference_mode():
        return _mistaken(torch.cat([net(x).flatten(1) for x in torch.split(test.images, _CHUNK)]), test)


def _say(seed: int, start: float, text: str) -> None:
    print(f"seed {seed}: {text}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
