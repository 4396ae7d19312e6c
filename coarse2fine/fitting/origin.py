"""Provenance of a fitted model: data, settings and what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from coarse2fine.bases import TIMM, prefix_of
from coarse2fine.fitting.bands import SizeBand
from coarse2fine.fitting.calibrate import Calibrated
from coarse2fine.fitting.crops import Recipe
from coarse2fine.fitting.scene import Scene
from coarse2fine.fitting.timm_weights import Weights
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.remembered import KEY, Remembered


def tried(found: Sequence[Calibrated]) -> dict[str, Any]:
    """Provenance: the cost with each scan that was tried."""
    return {"cost_without_glances": {_scan_of(each.model): each.cost for each in found}}


def _scan_of(model: Model) -> str:
    g, spec = model.geometry, model.base.spec
    return f"scan 1/{g.scan_downsample}, cells of {g.cell} px, {spec.macs_per_cell / g.cell**2 / 1e3:.2f} kMAC a pixel"


def origin(recipe: Recipe, scenes: Sequence[Scene], band: SizeBand, runtime: Runtime) -> dict[str, Any]:
    """Provenance: data and settings of the fit."""
    return {
        "scenes": [scene.image.name for scene in scenes],
        "objects": int(sum(len(s.centre) for s in scenes)),
        "median_size": band.sizes.median,
        "point_size": band.sizes.nominal,
        "steps": int(recipe.steps),
        "seed": int(recipe.seed),
        "rotate": recipe.rotate,
        "runtime": runtime.name,
        "torch": str(torch.__version__),
        **({} if band.alone else {"band": [round(side, 1) for side in band.range]}),
        **({} if recipe.start is None else {"went_on_from": recipe.start.name}),
        KEY: Remembered.of([scene.image for scene in scenes]).to_json(),
    }


def origin_of_base(base: str | None, weights: Weights) -> dict[str, Any]:
    """Provenance of a base that is no built-in net."""
    if base is None or prefix_of(base) != TIMM:
        return {} if base is None else {"base": base}
    source = "timm's hub" if weights is None else Path(weights).name
    return {"base": base, "base_weights": source, "timm": version("timm")}
