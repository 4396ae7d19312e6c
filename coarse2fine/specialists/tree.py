"""The tree of specialists as part of a model: running, printing, plotting and saving."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bundle import under
from coarse2fine.model_file import filled
from coarse2fine.models.column import Column
from coarse2fine.models.feature_maps import ColumnInputs, ColumnSpec, FeatureMaps
from coarse2fine.models.feature_tree import ROOT, FeatureTree
from coarse2fine.models.gate import Gate
from coarse2fine.models.routing import Answered, Specialists
from coarse2fine.models.runtime import Runtime
from coarse2fine.specialists.pictures import draw_examples

_PREFIX = "tree."
_NAMED, _LEAST_SHARE = 3, 0.05


@dataclass(frozen=True)
class SpecialistTree:
    """Tree of clusters (kinds) of unsure cells, with a column for each kept node.

    Parameters
    ----------
    clusters : FeatureTree
        Routes cells by their features, and says which nodes are kept.
    specs : tuple of ColumnSpec
        Shape of the columns at each depth.
    columns : mapping of int to Column
        Column of each kept node but the root, in evaluation mode.
    gate : Gate
        If the refine net's answer passes it, the tree is run.
    macs_per_cell : float
        Expected multiply-adds for a refined cell, measured on held-out cells.
    names : tuple of str
        Names of the classes; empty if the columns' answers are numbers.
    shares : ndarray, float32, (nodes, classes)
        Share of each class among the items of each node.
    tiles : mapping of int to ndarray, uint8, (n, h, w, c)
        Example pixels of each leaf.
    """

    clusters: FeatureTree
    specs: tuple[ColumnSpec, ...]
    columns: Mapping[int, Column]
    gate: Gate
    macs_per_cell: float
    names: tuple[str, ...]
    shares: NDArray[np.float32]
    tiles: Mapping[int, NDArray[np.uint8]]

    def __str__(self) -> str:
        first = f"{len(self.columns)} of {len(self.clusters) - 1} specialists"
        if self.names:
            first += f", run where a class has a probability of {self.gate.low:g} to {self.gate.high:g}"
        return "\n".join([first, *(self._line(node) for node in self._in_order(ROOT))])

    @property
    def layout(self) -> ColumnInputs:
        """Parts of the refine net's maps that the columns read."""
        return next(iter(self.columns.values())).layout

    def route(self, node: int) -> tuple[int, ...]:
        """Nodes on the path from the root, which is left out, to `node`, which is included."""
        return self.clusters.path(node)

    def runner(self, runtime: Runtime, deliver: Callable[[Answered], None]) -> Specialists:
        """A runner of the tree's columns; see `Specialists`."""
        columns = {node: runtime.place(column) for node, column in self.columns.items()}
        return Specialists(self.clusters, columns, deliver, gate=self.gate)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw example tiles of each leaf, one row a leaf.

        Parameters
        ----------
        path : path
            A PNG, PDF or SVG file.
        """
        rows = [node for node in self._in_order(ROOT) if node in self.tiles]
        return draw_examples([(self._line(n).strip().replace(", ", "\n"), self.tiles[n]) for n in rows], path)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, for a model file."""
        found: dict[str, NDArray[Any]] = {f"{_PREFIX}{name}": a for name, a in self.clusters.arrays().items()}
        found[f"{_PREFIX}shares"] = self.shares
        for node, tiles in self.tiles.items():
            found[f"{_PREFIX}tiles.{node}"] = tiles
        return found | column_arrays(self.columns, f"{_PREFIX}column.")

    def describe(self) -> dict[str, Any]:
        """All other fields as JSON values."""
        return {
            "specs": [str(spec) for spec in self.specs],
            "gate": asdict(self.gate),
            "macs_per_cell": self.macs_per_cell,
            "names": list(self.names),
        }

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any], twins: FeatureMaps) -> SpecialistTree:
        """Build from the results of `arrays` and `describe`.

        Parameters
        ----------
        arrays : mapping of str to ndarray
        text : mapping
        twins : FeatureMaps
            Maps of the refine net.
        """
        own = under(arrays, _PREFIX)
        clusters = FeatureTree.from_arrays(own)
        specs = tuple(ColumnSpec.parse(each) for each in text["specs"])
        shares, names = own["shares"], tuple(text["names"])
        if clusters.depths.max() > len(specs) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected a column's shape for each depth, and names; got {len(specs)}, {names!r:.100}")
        if shares.ndim != 2 or len(shares) != len(clusters) or shares.shape[1] < len(names):
            raise ValueError(f"expected shares of {len(names)} classes in {len(clusters)} nodes, got {shares.shape}")
        outputs = [len(value) for key, value in own.items() if key.endswith(".reader.bias")]

        def empty(node: int) -> Column:
            depth = int(clusters.depths[node]) - 1
            parent = specs[depth - 1] if depth and specs[depth - 1].stages else None
            return Column(specs[depth], twins, outputs[0], parent=parent)

        columns = load_columns(own, "column.", empty)
        kept = (np.flatnonzero(clusters.kept[1:]) + 1).tolist()
        if not kept or sorted(columns) != kept:
            raise ValueError(f"expected columns for the nodes {kept} of {len(clusters)}, got {sorted(columns)}")
        return cls(
            clusters,
            specs,
            columns,
            Gate(**text["gate"]),
            macs_of(text),
            names,
            shares,
            {int(node): tiles for node, tiles in under(own, "tiles.").items()},
        )

    def _in_order(self, node: int) -> list[int]:
        """All nodes below a node, each before its children."""
        found = []
        for child in self.clusters.children(node).tolist():
            found += [child, *self._in_order(child)]
        return found

    def _line(self, node: int) -> str:
        order = np.argsort(-self.shares[node], kind="stable")[:_NAMED]
        held = [f"{self.names[k]} {self.shares[node, k]:.0%}" for k in order if self.shares[node, k] >= _LEAST_SHARE]
        parts = [f"{self.clusters.sizes[node]:,} cells", *(held or ["nothing"] * bool(self.names))]
        parts += [] if node in self.columns else ["not run"]
        return f"{'  ' * int(self.clusters.depths[node])}{node}: {', '.join(parts)}"


def column_arrays(columns: Mapping[int, Column], prefix: str) -> dict[str, NDArray[Any]]:
    """Weights of columns by name, in half precision."""
    return {
        f"{prefix}{n}.{key}": t.detach().cpu().half().numpy()
        for n, column in columns.items()
        for key, t in column.state_dict().items()
    }


def load_columns(arrays: Mapping[str, NDArray[Any]], prefix: str, empty: Callable[[int], Column]) -> dict[int, Column]:
    """Load columns from the arrays of `column_arrays`, in evaluation mode.

    Parameters
    ----------
    arrays : mapping of str to ndarray
    prefix : str
    empty : callable
        From a column's number to an untrained column of its shape.
    """
    states: dict[int, dict[str, NDArray[Any]]] = {}
    for key, value in under(arrays, prefix).items():
        number, _, name = key.partition(".")
        states.setdefault(int(number), {})[name] = value
    columns = {}
    for which, state in sorted(states.items()):
        columns[which] = filled(partial(empty, which), state)
    return columns


def macs_of(text: Mapping[str, Any]) -> float:
    """Read the multiply-adds for a cell from a description."""
    macs = text["macs_per_cell"]
    if not isinstance(macs, int | float) or not macs >= 0:
        raise ValueError(f"expected multiply-adds of a cell, got {macs!r:.60}")
    return float(macs)
