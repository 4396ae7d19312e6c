"""Classifier of finds: a net that reads each find by itself, whose later layers fork by kinds of finds.

The refine net finds objects and gives each a class. If a closer look at every find names more of them correctly, a
model has a classifier: its crops are scaled to the find, so the resolution follows the find and not the plane that is
refined. The trunk's later layers may fork: each leaf is a copy of them, trained on finds of its kind alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.bundle import under
from coarse2fine.model_file import filled
from coarse2fine.models.conv_stack import BatchInvariantConv2d, ConvStack, StackSpec
from coarse2fine.models.feature_tree import NO_NODE, ROOT
from coarse2fine.models.fork import Fork, ForkTree, Layers
from coarse2fine.specialists.naming import commonest
from coarse2fine.specialists.pictures import draw_examples
from coarse2fine.terminal import printable

_PREFIX = "classifier."
_BATCH = 512
_MOST_CONTEXT, _LEAST_STD = 8.0, 1e-6
# Limits on what a file may ask for.
_MOST_SIDE, _MOST_TILES, _MOST_FORKS = 256, 64, 256


class Classified(NamedTuple):
    """Classes of crops.

    Parameters
    ----------
    labels : ndarray, int64, (n,)
        Index in `Classifier.labels`.
    nodes : ndarray, int32, (n,)
        Leaf that each crop reached.
    macs : int
        Multiply-adds of all of them.
    """

    labels: NDArray[np.int64]
    nodes: NDArray[np.int32]
    macs: int


@dataclass(frozen=True, eq=False)
class Classifier:
    """Net with forks that names finds.

    Parameters
    ----------
    labels : tuple of str
        Class of each output.
    tree : ForkTree
    mean, std : tuple of float
        Normalisation of each channel, of pixels in 0..1.
    context : float
        Side of a crop as a multiple of the find's longer side.
    shares : ndarray, float32, (nodes, labels)
        Share of each class among the training crops of each node.
    tiles : mapping of int to ndarray, uint8, (n, side, side, c)
        Example crops of each leaf.
    """

    labels: tuple[str, ...]
    tree: ForkTree
    mean: tuple[float, ...]
    std: tuple[float, ...]
    context: float
    shares: NDArray[np.float32]
    tiles: Mapping[int, NDArray[np.uint8]]

    def __post_init__(self) -> None:
        spec, nodes = self.tree.spec, len(self.tree)
        named = all(isinstance(name, str) and name for name in self.labels)
        if not named or not len(set(self.labels)) == len(self.labels) > 0:
            raise ValueError(f"expected the different names of classes, got {self.labels!r:.100}")
        if spec.stages[-1].channels != len(self.labels) or self.shares.shape != (nodes, len(self.labels)):
            raise ValueError(
                f"expected an output and a share in {nodes} nodes for each of {len(self.labels)} classes, got "
                f"{spec.stages[-1].channels} and {self.shares.shape}"
            )
        if not ((self.shares >= 0) & (self.shares <= 1)).all():
            raise ValueError("expected shares of classes from 0 to 1")
        if spec.in_channels not in (1, 3) or not 1 <= self.side <= _MOST_SIDE:
            raise ValueError(
                f"expected crops of 1 or 3 channels and up to {_MOST_SIDE} px, got {spec.in_channels} and {self.side}"
            )
        self._check_numbers()
        self._check_tiles()

    def _check_numbers(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"expected {self.channels} mean(s) and std(s), got {self.mean}, {self.std}")
        if not np.isfinite(self.mean).all() or not all(_LEAST_STD <= std < np.inf for std in self.std):
            raise ValueError(f"expected finite means and stds of at least {_LEAST_STD:g}, got {self.mean}, {self.std}")
        if not 0 < self.context <= _MOST_CONTEXT:
            raise ValueError(f"expected crops of up to {_MOST_CONTEXT:g} times the find's side, got {self.context}")

    def _check_tiles(self) -> None:
        for node, tiles in self.tiles.items():
            leaf = 0 <= node < len(self.tree) and self.tree.forks[node].router is None
            if not leaf or tiles.dtype != np.uint8 or tiles.shape[1:] != (self.side, self.side, self.channels):
                raise ValueError(f"expected crops of a leaf, got {tiles.dtype} {tiles.shape} for node {node}")
            if len(tiles) > _MOST_TILES:
                raise ValueError(f"expected up to {_MOST_TILES} crops of a leaf, got {len(tiles)}")

    def check_fits(self, channels: int, objects: Collection[str], areas: Collection[str]) -> None:
        """Raise a ValueError if it does not fit a model with these channels, classes of objects and of areas."""
        if self.channels != channels or not objects or set(areas) & set(self.labels):
            raise ValueError(
                f"a classifier of {self.channels} channel(s) and the classes {self.labels!r:.100} does not fit a model "
                f"of {channels} channel(s) that finds the objects {list(objects)!r:.60} and areas {list(areas)!r:.60}"
            )

    @property
    def side(self) -> int:
        """Side of a crop in pixels."""
        return self.tree.spec.input_size(1)

    @property
    def channels(self) -> int:
        """Channels that it reads: 1 (grey) or 3 (RGB)."""
        return self.tree.spec.in_channels

    def __call__(self, pixels: NDArray[np.uint8]) -> Classified:
        """Classify crops, on the CPU in float32: finds are few.

        Parameters
        ----------
        pixels : ndarray, uint8, (n, side, side, channels)
        """
        labels, nodes, macs = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], 0
        for start in range(0, len(pixels), _BATCH):
            found = self.tree(self.normalised(pixels[start : start + _BATCH]))
            labels.append(found.logits.argmax(dim=1).numpy())
            nodes.append(found.nodes)
            macs += int(found.macs.sum())
        return Classified(np.concatenate(labels), np.concatenate(nodes), macs)

    def normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Input of the net, float32, (n, channels, side, side), from uint8 pixels (n, side, side, channels)."""
        mean, std = (torch.tensor(each, dtype=torch.float32) for each in (self.mean, self.std))
        return ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def route(self, node: int) -> tuple[int, ...]:
        """The nodes from the root's child to a leaf; none if nothing forks."""
        path: list[int] = []
        while node != ROOT:
            path.append(node)
            node = self.tree.forks[node].parent
        return tuple(reversed(path))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw example crops of each leaf, one row a leaf, with its commonest classes.

        Parameters
        ----------
        path : path
            A PNG, PDF or SVG file.
        """
        return draw_examples([(self._line(n).replace(", ", "\n"), tiles) for n, tiles in self.tiles.items()], path)

    def lines(self) -> list[str]:
        """Lines of a printed model."""
        macs = [self.tree.path_macs(n) + self.tree.macs(n, self.tree.forks[n].stage) for n in self.tiles]
        forks = f", {len(self.tiles)} forks" if len(self.tiles) > 1 else ""
        names = f"{len(self.labels):,} {'class' if len(self.labels) == 1 else 'classes'}"
        lead = f"each find is named by a net of {np.mean(macs) / 1e3:,.0f} kMAC: {names}{forks}"
        return [lead, *(f"  {self._line(node)}" for node in self.tiles if len(self.tiles) > 1)]

    def _line(self, node: int) -> str:
        return printable(f"{node}: {', '.join(self.commonest(node))}")

    def commonest(self, node: int) -> list[str]:
        """The commonest classes among the training crops of a node, see `naming.commonest`."""
        return commonest(dict(zip(self.labels, self.shares[node].tolist(), strict=True)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, for a model file; weights in half precision."""
        found: dict[str, NDArray[Any]] = {f"{_PREFIX}shares": self.shares.astype(np.float16)}
        for number, fork in enumerate(self.tree.forks):
            parts = {"layers": fork.layers, "router": fork.router}
            for part, net in parts.items():
                state = {} if net is None else net.state_dict()
                found |= {f"{_PREFIX}{part}.{number}.{k}": t.detach().half().numpy() for k, t in state.items()}
        return found | {f"{_PREFIX}tiles.{node}": tiles for node, tiles in self.tiles.items()}

    def describe(self) -> dict[str, Any]:
        """All other fields as JSON values."""
        return {
            "labels": list(self.labels),
            "net": str(self.tree.spec),
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "context": self.context,
            "forks": [
                {
                    "parent": fork.parent,
                    "stage": fork.stage,
                    "split": fork.split,
                    "classes": None if fork.classes is None else fork.classes.tolist(),
                }
                for fork in self.tree.forks
            ],
        }

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any]) -> Classifier:
        """Build from the results of `arrays` and `describe`."""
        own, spec = under(arrays, _PREFIX), StackSpec.parse(int(text["channels"]), text["net"])
        return cls(
            labels=tuple(text["labels"]),
            tree=_tree(own, spec, text["forks"]),
            mean=tuple(map(float, text["mean"])),
            std=tuple(map(float, text["std"])),
            context=float(text["context"]),
            shares=own["shares"].astype(np.float32),
            tiles={int(node): tiles for node, tiles in under(own, "tiles.").items()},
        )


def _tree(arrays: Mapping[str, NDArray[Any]], spec: StackSpec, forks: Sequence[Mapping[str, Any]]) -> ForkTree:
    """The tree of a file, from the descriptions of its nodes."""
    if not 0 < len(forks) <= _MOST_FORKS:
        raise ValueError(f"expected 1 to {_MOST_FORKS} nodes, got {len(forks)}")
    found: list[Fork] = []
    children = Counter(int(each["parent"]) for each in forks)
    for number, each in enumerate(forks):
        parent, stage, split = (int(each[key]) for key in ("parent", "stage", "split"))
        below = children[number]
        above = NO_NODE < parent < number and found[parent].split == stage >= found[parent].stage
        inner = stage <= split < len(spec.stages) if below else True
        routed = under(arrays, f"router.{number}.")
        if not (above if number else parent == NO_NODE and stage == 0) or not inner or bool(routed) != bool(below):
            raise ValueError(f"node {number} does not fit the nodes before it: {dict(each)!r:.100}")
        classes = _known(each["classes"], spec.stages[-1].channels if number else 0)
        outputs = spec.stages[-1].channels if classes is None else len(classes) + 1
        layers = filled(partial(_layers, spec, stage, outputs), under(arrays, f"layers.{number}."))
        router = filled(partial(_router, spec, split, below), routed) if below else None
        found.append(Fork(parent, stage, layers, classes, split, router))
    return ForkTree.of(spec, found)


def _known(classes: Sequence[int] | None, count: int) -> Tensor | None:
    """Classes of a leaf that knows only some of `count`; a root must know all."""
    if classes is None:
        return None
    rows = np.array(classes, np.int64).reshape(-1)
    if not len(rows) or rows[0] < 0 or rows[-1] >= count or (np.diff(rows) <= 0).any():
        raise ValueError(f"expected classes of a leaf in order, from 0 to {count - 1}, got {classes!r:.100}")
    return torch.from_numpy(rows)


def _layers(spec: StackSpec, stage: int, outputs: int) -> Layers:
    """Untrained layers of a node from a stage on."""
    last = replace(spec.stages[-1], channels=outputs)
    return Layers.of(ConvStack(replace(spec, stages=(*spec.stages[:-1], last)))).later(stage)


def _router(spec: StackSpec, stage: int, children: int) -> BatchInvariantConv2d:
    """An untrained reader of the whole map that is the input of a stage."""
    side, channels = spec.input_size(1), spec.in_channels
    for each in spec.stages[:stage]:
        side, channels = (side - each.kernel) // each.stride + 1, each.channels
    return BatchInvariantConv2d(channels, children, side)
