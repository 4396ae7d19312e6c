"""Watching: the expert on drawn tiles of the scenes."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coarse2fine.fitting.watching.draw import chances, draw
from coarse2fine.fitting.watching.tiles import WatchedScene
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import Refinement, refine

_LEAST_TILES = 48
_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class WatchLimit:
    """How many tiles the expert runs on while it is watched.

    Parameters
    ----------
    share : float or None
        Share of all tiles.
    seconds : float or None
        Time of the expert.

    Raises
    ------
    ValueError
        If it is neither a share nor a time.
    """

    share: float | None
    seconds: float | None

    @classmethod
    def parse(cls, watch: float | str) -> WatchLimit:
        """From a share such as 0.1, or a time such as ``"20min"``."""
        if isinstance(watch, str) and (found := re.fullmatch(r"\s*([\d.]+)\s*([a-z]+)\s*", watch)):
            number, unit = found.groups()
            if unit in _UNITS and float(number) > 0:
                return cls(None, float(number) * _UNITS[unit])
        if not isinstance(watch, str) and 0 < watch <= 1:
            return cls(float(watch), None)
        raise ValueError(f"watch must be a share of the tiles, such as 0.1, or a time, such as '20min'; got {watch!r}")

    def tiles(self, total: int, seconds_each: float) -> int:
        """Number of tiles, of `total` that take `seconds_each`."""
        wanted = self.share * total if self.share is not None else (self.seconds or 0) / max(seconds_each, 1e-9)
        return int(min(total, max(_LEAST_TILES, round(wanted))))


@dataclass(frozen=True)
class Watched:
    """The scenes after a round, and what it took.

    Parameters
    ----------
    scenes : tuple of WatchedScene
    tiles : int
        Tiles on which the expert ran.
    seconds : float
    failures : tuple of str
        Why tiles failed.
    """

    scenes: tuple[WatchedScene, ...]
    tiles: int
    seconds: float
    failures: tuple[str, ...]


def watch(
    scenes: Sequence[WatchedScene],
    interests: Sequence[NDArray[np.float32]] | None,
    count: float,
    model: Model,
    runtime: Runtime,
    rng: np.random.Generator,
    tick: Tick | None = None,
    others: Sequence[Model] = (),
) -> Watched:
    """Run the expert, and its alternatives, on one more round of tiles.

    Parameters
    ----------
    scenes : sequence of WatchedScene
    interests : sequence of ndarray, float32, (h, w), or None
        Probability of a find in each tile, by the scan so far; None in the first round.
    count : float
        Mean number of tiles to draw.
    model : Model
        With the expert.
    runtime : Runtime
    rng : Generator
    tick : callable, optional
        Called with tiles done and tiles in all.
    others : sequence of Model
        With the alternatives to the expert.

    Raises
    ------
    KeyboardInterrupt
        If it is interrupted.
    """
    drawn = chances(interests, [scene.shape for scene in scenes], count)
    new = [draw(chance, scene.tried, rng) for chance, scene in zip(drawn, scenes, strict=True)]
    total, before = sum(int(tiles.sum()) for tiles in new), 0
    seen: list[WatchedScene] = []
    failures: list[str] = []
    start = time.perf_counter()
    for scene, tiles, chance in zip(scenes, new, drawn, strict=True):
        corners = np.argwhere(tiles).astype(np.int64)
        plan = Plan(corners, np.ones_like(corners), np.ones(len(corners), np.float32), scene.shape)
        shown = (lambda done, _, offset=before: tick(offset + done, total)) if tick else None
        fine = _whole(scene, plan, model, runtime, shown)
        done = plan.take(fine.done)
        asked = [_whole(scene, done, other, runtime) for other in others]
        seen.append(scene.with_answers(fine.candidates, done.covered(), chance, [each.candidates for each in asked]))
        failures.extend(reason for each in (fine, *asked) for reason in each.failures)
        before += len(plan)
    return Watched(tuple(seen), before, time.perf_counter() - start, tuple(dict.fromkeys(failures)))


def _whole(scene: WatchedScene, plan: Plan, model: Model, runtime: Runtime, tick: Tick | None = None) -> Refinement:
    """The finds of a model's expert in the tiles of a plan; KeyboardInterrupt if it is interrupted."""
    fine = refine(scene.image, plan, model, runtime, tick, floor=model.threshold)
    if fine.interrupted:
        raise KeyboardInterrupt
    return fine
