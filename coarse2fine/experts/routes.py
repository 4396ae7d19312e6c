"""Alternatives to an expert, each for the tiles of some clusters of the scan's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bundle import under
from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.running import RunningExpert
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.feature_tree import FeatureTree
from coarse2fine.refiners.protocol import RunningRefiner

_PREFIX = "refiner.routes."
# What alternatives must have in common, so that each can answer for any tile.
_ALIKE = ("kind", "tile", "downsample", "cell", "confidence", "labels")


@dataclass(frozen=True, eq=False)
class Routes:
    """Alternatives to an expert, and the clusters of tiles that each of them answers for.

    Parameters
    ----------
    alternatives : tuple of Expert
    tree : FeatureTree
        Clusters of tiles by the base's high-level features.
    choice : ndarray, int64, (nodes,)
        For each leaf: 0 for the expert itself, i for ``alternatives[i - 1]``.

    Raises
    ------
    ValueError
        If the arrays do not belong together.
    """

    alternatives: tuple[Expert, ...]
    tree: FeatureTree
    choice: NDArray[np.int64]

    def __post_init__(self) -> None:
        choice = self.choice
        if choice.shape != (len(self.tree),) or not ((choice >= 0) & (choice <= len(self.alternatives))).all():
            raise ValueError(
                f"expected one of {1 + len(self.alternatives)} experts for each of {len(self.tree)} nodes, got {choice}"
            )

    def leaf(self, high: NDArray[np.float32]) -> NDArray[np.int32]:
        """Leaf of each tile by its high-level features, (n, channels)."""
        return self.tree.leaf(high)

    def names(self, expert: Expert) -> dict[str, str]:
        """Name of the expert that answers for each leaf, by its number."""
        experts = (expert, *self.alternatives)
        return {str(leaf): experts[self.choice[leaf]].name for leaf in self.tree.leaves.tolist()}

    def notes(self, expert: Expert, leaves: NDArray[np.int32] | None) -> list[str]:
        """Notes on which expert answered for how many tiles; see `Refiner.routing_notes`."""
        names = " and ".join(each.name for each in self.alternatives)
        if leaves is None:
            return [f"{expert.name} ran alone, without its alternatives ({names}): every statement is of its own finds"]
        count = int((self.choice[leaves] > 0).sum())
        return [
            f"{names} answered for {count:,} of {len(leaves):,} tiles, by clusters of the scan's features; what that "
            "misses is not audited: audit= or recall= run the expert alone"
        ]

    def lines(self) -> list[str]:
        """The clusters of each alternative in words."""
        leaves = self.tree.leaves
        sizes = self.tree.sizes[leaves]
        said = []
        for number, each in enumerate(self.alternatives, 1):
            mine = self.choice[leaves] == number
            share = sizes[mine].sum() / max(1, sizes.sum())
            said.append(
                f"alternative {each.name}: {each.tile_macs / 1e9:,.2f} GMAC a tile, in {mine.sum()} of {len(leaves)} "
                f"clusters of the scan's features ({share:.0%} of the chosen tiles that were watched)"
            )
        return said

    def describe(self) -> dict[str, Any]:
        """JSON values for a model file."""
        return {"alternatives": [each.describe() for each in self.alternatives]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for a model file."""
        own = self.tree.arrays() | {"choice": self.choice}
        return {f"{_PREFIX}{name}": array for name, array in own.items()}

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any], channels: int) -> Routes:
        """Build from the results of `arrays` and `describe`, for features of so many channels."""
        own = under(arrays, _PREFIX)
        tree = FeatureTree.from_arrays(own)
        if any(len(each) and each.shape[1] != channels for each in tree.centres):
            raise ValueError(f"expected centres of {channels} features, got {[c.shape for c in tree.centres]}")
        return cls(tuple(Expert.described(each) for each in text["alternatives"]), tree, own["choice"])


def check_alike(expert: Expert, alternatives: Sequence[Expert]) -> None:
    """Raise an ExpertError if an alternative cannot answer for the same tiles as an expert, with the same labels."""
    for other in alternatives:
        for name in _ALIKE:
            mine, theirs = getattr(expert, name), getattr(other, name)
            if mine != theirs:
                shown = [[each.name for each in v] if name == "labels" else v for v in (mine, theirs)]
                raise ExpertError(
                    f"alternatives must have the same {', '.join(_ALIKE)}: {name} is {shown[0]!r} for {expert.name}, "
                    f"and {shown[1]!r} for {other.name}; their context may differ"
                )


class RunningRoutes(RunningRefiner):
    """An expert and its alternatives at work on one image, each on the tiles that are routed to it.

    Parameters
    ----------
    experts : sequence of RunningExpert
        The expert, then its alternatives.
    contexts : sequence of int
        Pixels of context that each reads; tiles come with the largest.
    choice : ndarray, int64, (nodes,)
        See `Routes`.
    leaves : ndarray, int32, (tile rows, tile columns), optional
        Leaf of each tile; without it, the expert answers for all.
    cells : int
        Fine cells along a side of a tile.
    """

    def __init__(
        self,
        experts: Sequence[RunningExpert],
        contexts: Sequence[int],
        choice: NDArray[np.int64],
        leaves: NDArray[np.int32] | None,
        cells: int,
    ) -> None:
        self._experts, self._choice, self._leaves, self._cells = experts, choice, leaves, cells
        self._surplus = [max(contexts) - context for context in contexts]
        self._failed: NDArray[np.bool_] = np.zeros(0, bool)

    @property
    def macs_spent(self) -> int:
        return sum(each.macs_spent for each in self._experts)

    def failures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(failure for each in self._experts for failure in each.failures()))

    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for each in self._experts for note in each.notes()))

    def failed(self, count: int) -> NDArray[np.bool_]:
        return self._failed if len(self._failed) == count else np.zeros(count, bool)

    def __call__(
        self,
        pixels: NDArray[np.uint8],
        corners: NDArray[np.int64],
        rations: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> Candidates:
        """Run each expert on its tiles; see `RunningRefiner`. A candidate's node is the leaf of its tile."""
        leaf = np.zeros(len(corners), np.int32) if self._leaves is None else self._leaf_at(corners)
        number = np.zeros(len(corners), np.int64) if self._leaves is None else self._choice[leaf]
        self._failed = np.zeros(len(corners), bool)
        parts = []
        for which in np.unique(number).tolist():
            rows = np.flatnonzero(number == which)
            running, cut = self._experts[which], self._surplus[which]
            own = pixels[rows, cut : pixels.shape[1] - cut, cut : pixels.shape[2] - cut]
            parts.append(running(own, corners[rows]))
            self._failed[rows] = running.failed(len(rows))
        found = Candidates.concatenate(parts)
        return found if self._leaves is None else replace(found, nodes=self._leaf_at(found.cells))

    def _leaf_at(self, cells: NDArray[Any]) -> NDArray[np.int32]:
        """Leaf of the tiles in which fine cells lie."""
        assert self._leaves is not None
        y, x = (cells // self._cells).T
        found: NDArray[np.int32] = self._leaves[y, x]
        return found
