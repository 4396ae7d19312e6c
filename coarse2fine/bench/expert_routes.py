"""Figures of alternatives to an expert on an image: by clusters, always one of them, and by random clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench.expert_answers import all_finds
from coarse2fine.experts.agreement import counts_in_tiles
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.steps.scan import look
from coarse2fine.tiling.image import Image


def without_routes(model: Model) -> ExpertRefiner:
    """The refiner of a model without its alternatives."""
    assert isinstance(model.refiner, ExpertRefiner)
    return replace(model.refiner, routes=None)


def measure_routes(
    model: Model, alone: Model, image: Image, counts: NDArray[np.int64], *, seed: int, tick: Tick | None = None
) -> Mapping[str, dict[str, float]]:
    """Tiles, recall and multiply-adds of ways to choose between an expert and its alternatives.

    Parameters
    ----------
    model : Model
        With alternatives.
    alone : Model
        With the thresholds for its expert alone.
    image : Image
    counts : ndarray, int64, (rows, columns)
        Finds of the expert in each tile.
    seed : int
        For random clusters.
    tick : callable, optional
        Called with tiles done and all tiles, for each expert.

    Returns
    -------
    mapping of str to dict of str to float
        For each way, its figures by column. Recall is the share of the expert's finds that are given; extra is that of
        finds that it does not have.
    """
    refiner = model.refiner
    assert isinstance(refiner, ExpertRefiner)
    assert refiner.routes is not None
    runtime = Runtime.choose(None, "auto")
    scan, plain = look(image, model, runtime), look(image, alone, runtime)
    assert scan.leaves is not None
    first, *others = (all_finds(each, image, tick) for each in refiner.experts)
    cells, objects = refiner.cells, refiner.expert.finds_objects
    shared = [counts_in_tiles(first, o, objects=objects, cells=cells, shape=counts.shape) for o in others]
    given = np.stack([counts, *(each[0] for each in shared)])
    extra = np.stack([np.zeros_like(counts), *(each[1] for each in shared)])
    macs = np.array([max(1, each.tile_macs) for each in refiner.experts])
    routed, usual = scan.interest > model.tau, plain.interest > alone.tau
    number = refiner.routes.choice[scan.leaves]
    dealt = number.copy()
    dealt[routed] = np.random.default_rng([seed, 4]).permutation(number[routed])
    ways = {"routed": (number, routed), "random clusters": (dealt, routed)}
    ways |= {f"always {n}": (np.full(counts.shape, n), usual) for n in range(len(macs))}
    rows, columns = np.indices(counts.shape)
    found = {}
    for name, (who, sent) in ways.items():
        found[name] = {
            "tiles": float(sent.sum()),
            "recall": float(given[who, rows, columns][sent].sum() / max(1, counts.sum())),
            "extra": float(extra[who, rows, columns][sent].sum() / max(1, counts.sum())),
            "tmac": float(scan.macs + macs[who[sent]].sum()) / 1e12,
        }
    return found
