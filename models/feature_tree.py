"""Tree of feature clusters, by which items are routed to specialists.

The root stands for the base. Its items are clustered by their features; each cluster is a node below it and may have a
column. The items of a node are clustered again, by features that its column adds, and so on. Nodes keep their numbers
when the tree grows, so trained columns remain valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .clustering import kmeans, merged, nearest

ROOT = 0
NO_NODE = -1
# Added to a feature's variance, as a share of the mean variance of all.
_LEAST_VARIANCE = 0.01


@dataclass(frozen=True)
class FeatureTree:
    """Nodes, each with the centre of its cluster; node 0 is the root.

    Parameters
    ----------
    parent : ndarray, int32, (n,)
        Parent of each node; -1 for the root.
    sizes : ndarray, int64, (n,)
        Number of training items that reached each node.
    kept : ndarray, bool, (n,)
        Whether the node's column is run; if not, its parent's answer stands and no column below it is run.
    centres : tuple of ndarray, float32, (children, d)
        For each node, the centres of its children in the order of their numbers; none for a leaf.
    scales : tuple of ndarray, float32, (d,)
        For each node, the factor on each feature before distances to the centres; features with a factor of 0 are not
        read. None for a leaf.
    """

    parent: NDArray[np.int32]
    sizes: NDArray[np.int64]
    kept: NDArray[np.bool_]
    centres: tuple[NDArray[np.float32], ...]
    scales: tuple[NDArray[np.float32], ...]

    @classmethod
    def root(cls, items: int) -> Self:
        """A tree of the root alone."""
        return cls(np.array([NO_NODE], np.int32), np.array([items]), np.ones(1, bool), (_no_centres(),), (_no_scale(),))

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def depths(self) -> NDArray[np.int64]:
        """Number of steps from the root to each node."""
        depths = np.zeros(len(self), np.int64)
        for node in range(1, len(self)):  # a child's number is larger than its parent's
            depths[node] = depths[self.parent[node]] + 1
        return depths

    @property
    def leaves(self) -> NDArray[np.intp]:
        """Nodes without children."""
        return np.setdiff1d(np.arange(len(self)), self.parent)

    def children(self, node: int) -> NDArray[np.intp]:
        """Nodes directly below a node."""
        return np.flatnonzero(self.parent == node)

    def split(
        self,
        node: int,
        vectors: NDArray[np.float32],
        count: int,
        *,
        smallest: int,
        seed: int,
        unread: int = 0,
        scaled: bool = False,
    ) -> tuple[FeatureTree, NDArray[np.int32]]:
        """Cluster the items of a leaf; each cluster becomes a leaf below it.

        Parameters
        ----------
        node : int
            A leaf.
        vectors : ndarray, float32, (n, d)
            Features of its items.
        count : int
            Largest number of clusters.
        smallest : int
            Fewest items of a cluster; smaller ones are dissolved and their items go to the nearest that remain.
        seed : int
        unread : int
            Features that are not read, counted from the first.
        scaled : bool
            Whether features are scaled to a variance of about 1.

        Returns
        -------
        FeatureTree
            The same tree if there is only one cluster.
        ndarray, int32, (n,)
            Node of each item: a new leaf, or `node` itself.

        Raises
        ------
        ValueError
            If the node has children already.
        """
        if len(self.centres[node]):
            raise ValueError(f"node {node} has children already; split a leaf, one of {self.leaves.tolist()}")
        read = vectors[:, unread:]
        scale = np.concatenate([np.zeros(unread), _scale(read) if scaled else np.ones(read.shape[1])]).astype(
            np.float32
        )
        vectors = vectors * scale
        centres = merged(vectors, kmeans(vectors, count, seed=seed), smallest)
        if len(centres) < 2:
            return self, np.full(len(vectors), node, np.int32)
        index, _ = nearest(vectors, centres)
        count = len(centres)
        grown = replace(
            self,
            parent=np.append(self.parent, np.full(count, node, np.int32)),
            sizes=np.append(self.sizes, np.bincount(index, minlength=count)),
            kept=np.append(self.kept, np.ones(count, bool)),
            centres=(*self.centres[:node], centres, *self.centres[node + 1 :], *[_no_centres()] * count),
            scales=(*self.scales[:node], scale, *self.scales[node + 1 :], *[_no_scale()] * count),
        )
        return grown, (len(self) + index).astype(np.int32)

    def step(self, node: int, vectors: NDArray[np.float32]) -> NDArray[np.int32]:
        """Route each item to the child with the nearest centre; -1 at a leaf.

        Parameters
        ----------
        node : int
        vectors : ndarray, float32, (n, d)
        """
        if not len(self.centres[node]):
            return np.full(len(vectors), NO_NODE, np.int32)
        read = self.scales[node] > 0
        near, centres = vectors[:, read] * self.scales[node][read], self.centres[node][:, read]
        # No matrix product: its rounding, and so the routing of some items, would depend on the number of items.
        distance = [((near - centre) ** 2).sum(axis=1) for centre in centres]
        index: NDArray[np.intp] = np.argmin(distance, axis=0)
        return self.children(node)[index].astype(np.int32)

    def step_macs(self, node: int) -> int:
        """Multiply-adds of `step` for an item: one for each feature that is read, and centre."""
        return len(self.centres[node]) * int(np.count_nonzero(self.scales[node]))

    def leaf(self, vectors: NDArray[np.float32]) -> NDArray[np.int32]:
        """Leaf of each item, if the same features route it at every node.

        Parameters
        ----------
        vectors : ndarray, float32, (n, d)
        """
        nodes = np.zeros(len(vectors), np.int32)
        for node in range(len(self)):  # parents come before their children
            rows = np.flatnonzero(nodes == node)
            if len(rows) and len(self.centres[node]):
                nodes[rows] = self.step(node, vectors[rows])
        return nodes

    def path(self, node: int) -> tuple[int, ...]:
        """Nodes on the path from the root, which is left out, to `node`, which is included."""
        way: list[int] = []
        while node != ROOT:
            way.insert(0, node)
            node = int(self.parent[node])
        return tuple(way)

    def pruned(self, own_loss: NDArray[np.float64], parent_loss: NDArray[np.float64]) -> FeatureTree:
        """The tree with only those columns that do not hurt.

        A node is kept if the loss of its items, with the nodes kept below it, is no larger than by its parent's answer.

        Parameters
        ----------
        own_loss, parent_loss : ndarray, float64, (n,)
            Loss on validation items, summed over those that reach each node: of the node's own answer, and of its
            parent's answer. The root's entries are not read.
        """
        kept = np.ones(len(self), bool)
        loss = np.array(own_loss, np.float64)
        for node in range(len(self) - 1, ROOT, -1):  # children come before their parent
            below = self.children(node)
            # If a child is switched off, the node's answer stands for its items.
            loss[node] += float(np.sum(np.minimum(loss[below] - parent_loss[below], 0.0)))
            kept[node] = loss[node] <= parent_loss[node]
        for node in range(1, len(self)):
            kept[node] &= kept[self.parent[node]]
        return replace(self, kept=kept)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays of the tree by name, for a model file."""
        found: dict[str, NDArray[Any]] = {"parent": self.parent, "sizes": self.sizes, "kept": self.kept}
        found |= {f"centres.{n}": c for n, c in enumerate(self.centres) if len(c)}
        return found | {f"scales.{n}": s for n, s in enumerate(self.scales) if len(s)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Build from the arrays that `arrays` returned.

        Raises
        ------
        ValueError
            If they do not describe a tree.
        """
        parent, kept = arrays["parent"], arrays["kept"]
        if parent.ndim != 1 or parent.dtype.kind != "i" or kept.shape != parent.shape or kept.dtype != bool:
            raise ValueError(f"expected a parent of each node and whether it is kept, got {parent.shape}, {kept.shape}")
        centres = tuple(arrays.get(f"centres.{n}", _no_centres()) for n in range(len(parent)))
        counts = [len(c) for c in centres]
        whole = len(parent) and parent[0] == NO_NODE and bool((parent[1:] < np.arange(1, len(parent))).all())
        if (
            not whole
            or bool((parent[1:] < 0).any())
            or counts != np.bincount(parent[1:], minlength=len(parent)).tolist()
        ):
            raise ValueError(
                f"expected parents before their children and a centre for each child, got {parent.tolist()}"
            )
        if arrays["sizes"].shape != parent.shape or any(c.ndim != 2 or c.dtype != np.float32 for c in centres):
            raise ValueError(f"expected sizes of {len(parent)} nodes, and centres as rows")
        # Older trees are of features as they are.
        scales = tuple(arrays.get(f"scales.{n}", np.ones(c.shape[1], np.float32)) for n, c in enumerate(centres))
        if any(s.dtype != np.float32 or s.shape != c.shape[1:] for s, c in zip(scales, centres, strict=True)):
            raise ValueError(f"expected a scale for each feature, got {[s.shape for s in scales]}")
        return cls(parent, arrays["sizes"], kept, centres, scales)


def pooled(*maps: Tensor) -> NDArray[np.float32]:
    """Features of each item: the mean of every channel of every map, (n, channels in all).

    Parameters
    ----------
    *maps : Tensor, float, (n, c, h, w)
    """
    return torch.cat([m.float().mean(dim=(2, 3)) for m in maps], dim=1).cpu().numpy()


def _scale(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Factor on each feature by which its variance is about 1; features that hardly vary stay small."""
    variance = np.asarray(vectors.var(axis=0, dtype=np.float64))
    least = _LEAST_VARIANCE * max(float(variance.mean()), 1e-30)
    return np.asarray(1 / np.sqrt(variance + least))


def _no_scale() -> NDArray[np.float32]:
    return np.zeros(0, np.float32)


def _no_centres() -> NDArray[np.float32]:
    return np.zeros((0, 0), np.float32)
