"""Variants that the specialists benchmark compares, with the control that each must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.specialists.experiment import Errors, Experiment
from benchmarks.specialists.nets import TOP, stack, stack_of
from coarse2fine.models.feature_maps import ColumnSpec

JUDGED = "judged"
_NARROW = TOP // 4
Answer = Callable[[Experiment], Mapping[str, Errors]]
"""Errors by name; the first has no name of its own."""


class Variant(NamedTuple):
    """A variant: its description, the function that gets its errors, and the variant that it must beat."""

    text: str
    run: Answer
    control: str = "base"


def _as_dear(experiment: Experiment) -> Mapping[str, Errors]:
    macs = experiment.base().spec.macs(1, 1) + experiment.column_macs(experiment.design(_NARROW))
    return experiment.end_to_end(experiment.net(stack_of(experiment.tiles, macs)))


def _noise(experiment: Experiment) -> NDArray[np.float32]:
    """Random vectors, whose clusters are meaningless and about equal in size."""
    rng = np.random.default_rng(experiment.seed)
    return rng.standard_normal((len(experiment.tiles), 8)).astype(np.float32)


def _columns(top: int, clusters: int = 12, *, unsure: bool = False) -> Answer:
    return lambda experiment: experiment.tree([experiment.design(top)], clusters=clusters, unsure=unsure)


def _heads(clusters: int) -> Answer:
    return lambda experiment: experiment.tree([ColumnSpec.head(experiment.twins())], clusters=clusters)


def _shared(experiment: Experiment) -> Mapping[str, Errors]:
    """One column for all tiles, without cost of routing, trained for as many epochs as a shared and an own column."""
    options = experiment.options
    together = replace(options, epochs=options.epochs + options.own_epochs, own_epochs=0)
    specs, vectors = [experiment.design(_NARROW)], _noise(experiment)
    return experiment.tree(specs, clusters=2, options=together, vectors=vectors, routed=False)


def _random(experiment: Experiment) -> Mapping[str, Errors]:
    return experiment.tree([experiment.design(_NARROW)], vectors=_noise(experiment))


def _tree(experiment: Experiment) -> Mapping[str, Errors]:
    spec = experiment.design(_NARROW)
    return experiment.tree([spec, spec.narrowed(0.5)])


VARIANTS: Mapping[str, Variant] = {
    "base": Variant("the base at its plateau", lambda e: e.end_to_end(e.base())),
    "longer": Variant("the base, trained for twice as long", lambda e: e.end_to_end(e.net(stack(e.tiles), times=2))),
    "net_columns": Variant("a net with the cost of base and column", _as_dear),
    "heads_6": Variant("at most 6 cluster heads", _heads(6)),
    "heads_32": Variant("at most 32 cluster heads", _heads(32)),
    "shared": Variant("one column for all", _shared),
    "random": Variant("at most 12 columns, tiles assigned at random", _random, "shared"),
    "columns": Variant("at most 12 columns", _columns(_NARROW), "shared"),
    "columns_32": Variant("at most 32 columns", _columns(_NARROW, 32), "shared"),
    "unsure": Variant(
        "at most 12 columns, trained only on tiles of which the base is unsure",
        _columns(_NARROW, unsure=True),
        "shared",
    ),
    "tree": Variant("a tree of two steps, half as wide below", _tree, "columns"),
    "full": Variant("at most 12 full-size columns", _columns(TOP), "columns"),
}
FEW = ("base", "longer", "net_columns", "heads_6", "shared", "random", "columns", "tree")
