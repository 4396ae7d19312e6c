"""All ways of answering that the specialists benchmark compares, with the control that each must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.specialists.nets import TOP, stack, stack_of
from benchmarks.specialists.runs import CLUSTERS, TEACHER, Outcome, Trial
from coarse2fine.fitting.specialists.train_columns import TrainingOptions
from coarse2fine.models.feature_maps import ColumnSpec
from coarse2fine.models.gate import Gate

JUDGED = "judged"
_NARROW, _HALF, _RANK = TOP // 4, 0.5, 2
# Columns that do most of the work are trained for so many times the epochs.
_LONGER = 2


@dataclass(frozen=True)
class Variant:
    """A way of answering.

    Parameters
    ----------
    text : str
        What it is.
    run : callable
        From a trial to outcomes; the first has no name of its own.
    control : str
        The variant that it must beat.
    also : tuple of str
        Others that it is compared with, in the figures only.
    """

    text: str
    run: Callable[[Trial], Mapping[str, Outcome]]
    control: str = "base"
    also: tuple[str, ...] = ()


def _net(trial: Trial, width: float) -> dict[str, Outcome]:
    return {"": trial.end_to_end(trial.base(width))}


def _longer(trial: Trial) -> dict[str, Outcome]:
    return {"": trial.end_to_end(trial.net(stack(trial.tiles, 1.0), times=2))}


def _as_dear(trial: Trial, top: int) -> dict[str, Outcome]:
    macs = trial.base().spec.macs(1, 1) + trial.column_macs(trial.design(top))
    return {"": trial.end_to_end(trial.net(stack_of(trial.tiles, macs)))}


def _noise(trial: Trial) -> NDArray[np.float32]:
    """What clusters mean nothing by, and are about equal."""
    rng = np.random.default_rng(trial.seed)
    return rng.standard_normal((len(trial.tiles), 8)).astype(np.float32)


def _columns(top: int, clusters: int = 12) -> Callable[[Trial], Mapping[str, Outcome]]:
    return lambda trial: trial.tree([trial.design(top)], clusters=clusters)


def _together(trial: Trial, times: int = 1) -> TrainingOptions:
    """One column is trained for as many epochs as one that is followed by its own."""
    epochs = trial.options.epochs + trial.options.own_epochs
    return replace(trial.options, epochs=times * epochs, own_epochs=0)


def _shared(top: int, depth: int = 1) -> Callable[[Trial], Mapping[str, Outcome]]:
    """One column for all, found for nothing."""

    def run(trial: Trial) -> Mapping[str, Outcome]:
        specs = [trial.design(top).narrowed(_HALF**n) for n in range(depth)]
        return trial.tree(specs, clusters=2, options=_together(trial), vectors=_noise(trial), routed=False)

    return run


def _refining(trial: Trial, *, shared: bool) -> Mapping[str, Outcome]:
    """Full-size columns over a base of half the channels: what is left of the refine net is to choose among them."""
    epochs, own = _LONGER * trial.options.epochs, _LONGER * trial.options.own_epochs
    each = replace(trial.options, epochs=epochs, own_epochs=own)
    options, clusters, vectors = (_together(trial, _LONGER), 2, _noise(trial)) if shared else (each, CLUSTERS, None)
    specs = [trial.design(TOP, width=_HALF)]
    return trial.tree(specs, clusters=clusters, options=options, vectors=vectors, width=_HALF, routed=not shared)


def _tree(top: int, depth: int, share: float) -> Callable[[Trial], Mapping[str, Outcome]]:
    return lambda trial: trial.tree([trial.design(top).narrowed(share**n) for n in range(depth)])


def _heads(clusters: int) -> Callable[[Trial], Mapping[str, Outcome]]:
    return lambda trial: trial.tree([ColumnSpec.head(trial.twins())], clusters=clusters)


def _random(trial: Trial) -> Mapping[str, Outcome]:
    return trial.tree([trial.design(_NARROW)], vectors=_noise(trial))


def _oracle(trial: Trial) -> Mapping[str, Outcome]:
    domains = trial.tiles.domains
    known: NDArray[np.int64] = domains if domains.any() else trial.tiles.labels
    count = int(known.max()) + 1
    vectors = np.eye(count, dtype=np.float32)[known]
    return trial.tree([trial.design(_NARROW)], vectors=vectors, clusters=count, routed=False)


def _ungated(trial: Trial) -> Mapping[str, Outcome]:
    return trial.tree([trial.design(_NARROW)], gate=Gate.open(exclusive=True))


def _low_rank(trial: Trial) -> Mapping[str, Outcome]:
    return trial.tree([trial.design(_NARROW)], options=replace(trial.options, rank=_RANK))


def _last_stage(trial: Trial) -> Mapping[str, Outcome]:
    return trial.tree([trial.design(_NARROW, first=len(trial.twins().maps) - 1)])


VARIANTS: Mapping[str, Variant] = {
    "base": Variant("the base at its plateau (depth 0)", lambda trial: _net(trial, 1.0)),
    "longer": Variant("the base, trained for twice as long", _longer),
    "net_half": Variant("a net of half its channels", lambda trial: _net(trial, _HALF)),
    "net_columns": Variant("a net as dear as base and column", lambda trial: _as_dear(trial, _NARROW)),
    "net_full": Variant("a net as dear as base and full-size column", lambda trial: _as_dear(trial, TOP)),
    "net_double": Variant("a net of twice its channels", lambda trial: _net(trial, TEACHER)),
    "shared": Variant("one column for all", _shared(_NARROW)),
    "shared_tree": Variant("one column for all, and one after it", _shared(_NARROW, 2)),
    "shared_full": Variant("one full-size column for all", _shared(TOP)),
    "random": Variant("at most 12 columns, dealt at random", _random, "shared"),
    "oracle": Variant("a column for each domain, or class where there is one domain, told", _oracle, "shared"),
    "heads_6": Variant("at most 6 cluster heads", _heads(6)),
    "heads": Variant("at most 12 cluster heads", _heads(12)),
    "heads_32": Variant("at most 32 cluster heads", _heads(32)),
    "columns_6": Variant("at most 6 columns", _columns(_NARROW, 6), "shared"),
    "columns": Variant("at most 12 columns", _columns(_NARROW), "shared", ("net_columns", "random", "heads")),
    "ungated": Variant("the same, asked of every tile", _ungated, "columns"),
    "unsure": Variant(
        "at most 12 columns, trained on tiles of which the base is unsure alone",
        lambda trial: trial.tree([trial.design(_NARROW)], lesson="unsure"),
        "columns",
    ),
    "columns_32": Variant("at most 32 columns", _columns(_NARROW, 32), "shared"),
    "low_rank": Variant(f"at most 12 columns that differ by rank {_RANK}", _low_rank, "columns"),
    "blind": Variant(
        "at most 12 columns without twins", lambda trial: trial.tree([trial.design(_NARROW)], lesson="blind"), "columns"
    ),
    "last_stage": Variant("at most 12 columns of the last stage alone", _last_stage, "heads"),
    "tree": Variant("depth 2, half as wide below", _tree(_NARROW, 2, _HALF), "shared_tree", ("net_columns", "columns")),
    "tree_even": Variant("depth 2, as wide below", _tree(_NARROW, 2, 1.0), "tree"),
    "tree_3": Variant("depth 3, half as wide below each", _tree(_NARROW, 3, _HALF), "tree"),
    "full": Variant("at most 12 full-size columns", _columns(TOP), "shared_full", ("net_full", "columns")),
    "full_tree": Variant("depth 2 over full-size columns", _tree(TOP, 2, _HALF), "full"),
    "taught": Variant(
        "at most 12 columns that imitate the net of twice the channels",
        lambda trial: trial.tree([trial.design(_NARROW)], lesson="taught"),
        "columns",
    ),
    "activity": Variant(
        "columns for features that fire together", lambda trial: trial.activity(trial.design(_NARROW)), "shared"
    ),
    "shared_medium": Variant(
        "half the base, one full-size column for all", lambda trial: _refining(trial, shared=True)
    ),
    "medium": Variant(
        "half the base, a full-size column for each of at most 12 kinds",
        lambda trial: _refining(trial, shared=False),
        "shared_medium",
        ("net_columns", "net_full"),
    ),
}
FEW = ("base", "longer", "net_columns", "net_double", "shared", "random", "heads", "columns", "tree", "activity")
