"""What each specialist of a tree gains on held-out items, for a model's provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.models.feature_tree import ROOT

KEY = "earned"
"""Key of the record in a model's provenance."""


@dataclass(frozen=True)
class Earned:
    """Effect of the specialists on a node's path on the held-out items that pass it.

    Parameters
    ----------
    items : int
    before, after : float
        Mean over the items, without and with specialists.
    """

    items: int
    before: float
    after: float


def earned_by(nodes: NDArray[np.integer[Any]], before: NDArray[Any], after: NDArray[Any]) -> dict[int, Earned]:
    """What each node gains.

    Parameters
    ----------
    nodes : ndarray, int, (n, depth)
        Nodes that each item passes, without the root; -1 after the last.
    before, after : ndarray, (n,)
        What is measured of each item, less of which is better, without and with specialists.
    """
    found = {}
    for node in np.unique(nodes[nodes > ROOT]).tolist():
        rows = (nodes == node).any(axis=1)
        means = (round(float(each[rows].mean()), 5) for each in (before, after))
        found[node] = Earned(int(rows.sum()), *means)
    return found


def as_record(earned: Mapping[int, Earned], measure: str) -> dict[str, dict[str, Any]]:
    """As JSON values, by the node's number; `measure` is the word for what was measured."""
    return {str(node): {"measure": measure, **asdict(each)} for node, each in earned.items()}
