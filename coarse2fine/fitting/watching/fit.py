"""Fitting of a model around an expert, from its answers on some tiles of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.annotations.read import Annotations
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.forecast import Forecast
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.fitting.crops import normalisation
from coarse2fine.fitting.watching.accuracy import accuracy_of
from coarse2fine.fitting.watching.calibrate import (
    RECALLS,
    Screen,
    TriedTiles,
    activations,
    calibrated_stage,
    share_with_finds,
)
from coarse2fine.fitting.watching.recipe import WatchRecipe
from coarse2fine.fitting.watching.routing import Given, Routed, choose_routes
from coarse2fine.fitting.watching.samples import tile_samples
from coarse2fine.fitting.watching.scan import ScanPlan, plan_scan, train_scan
from coarse2fine.fitting.watching.tiles import FOLDS, unwatched
from coarse2fine.fitting.watching.watch import Watched, watch
from coarse2fine.model import CascadeStage, Geometry, Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.pooled import PooledStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.steps.scan import survey_level
from coarse2fine.tiling.image import Image

# Shares of the watched tiles by round: after each the scan is trained again and says where to look next.
_ROUNDS = (0.4, 0.3, 0.3)
# Steps of an intermediate training, as a share of the last one's.
_SHORT = 0.3
# Most that scans may cost, as shares of the expert: the first, and a closer one where the first fires.
_SCAN_COST, _CLOSE_COST = 0.02, 0.15
# Pixels of the scan along a small find; and scan pixels along a tile if finds have no place in it.
_FIND_PIXELS, _TILE_PIXELS = 7.0, 64.0
# A closer scan is kept if it lowers the cost by this factor.
_GAIN = 0.93
# Usual seconds of a step of training a scan.
_STEP_SECONDS = 0.015
_QUICKLY = "scan so far"


def expected_steps(watching: float, steps: int) -> list[tuple[str, float]]:
    """Steps of a fit by watching after the trial of the experts, and their usual seconds.

    Parameters
    ----------
    watching : float
        Seconds that the expert will run while it is watched.
    steps : int
        Optimisation steps of a scan.
    """
    training = steps * _STEP_SECONDS
    rounds = [("watching", share * watching) for share in _ROUNDS]
    quickly = (_QUICKLY, _SHORT * training)
    names = [
        name for kind in ("scan", "closer scan") for name in (kind, *(_without(kind, fold) for fold in range(FOLDS)))
    ]
    return [rounds[0], quickly, rounds[1], quickly, rounds[2], *((name, training) for name in names)]


def _without(name: str, fold: int) -> str:
    return f"{name}, without part {fold + 1}"


def fit_watched(
    images: Sequence[Image],
    truths: Sequence[Annotations],
    experts: tuple[Expert, ...],
    seconds: float,
    recipe: WatchRecipe,
    runtime: Runtime,
    bars: Progress,
) -> Model:
    """Fit a scan that chooses the tiles on which an expert finds something.

    Parameters
    ----------
    images : sequence of Image
    truths : sequence of Annotations
        Of each image, if there are any: they say how accurate the expert is.
    experts : tuple of Expert
        The expert, and its alternatives, as `tried_experts` returns them.
    seconds : float
        Time that a tile takes with all of them.
    recipe : WatchRecipe
    runtime : Runtime
        Of the scan.
    bars : Progress

    Raises
    ------
    ExpertError
        If the expert cannot run.
    ValueError
        If it finds nothing in the watched tiles.
    """
    fitting = _Fitting(images, experts, recipe, runtime, bars)
    fitting.watch_rounds(seconds)
    return fitting.model(truths)


@dataclass(frozen=True, eq=False)
class _Trained:
    """A calibrated stage, its model, and the tried tiles with the probability of a find in each.

    `nets` are those that were each trained without one fold.
    """

    stage: CascadeStage
    model: Model
    tiles: TriedTiles
    interest: NDArray[np.float32]
    nets: tuple[PooledStack, ...]


class _Fitting:
    def __init__(
        self,
        images: Sequence[Image],
        experts: tuple[Expert, ...],
        recipe: WatchRecipe,
        runtime: Runtime,
        bars: Progress,
    ) -> None:
        self._expert, *self._others = experts
        self._recipe, self._runtime, self._bars = recipe, runtime, bars
        self._cache = None if recipe.cache is None else Path(recipe.cache)
        expert = self._expert
        self._channels = 1 if all(image.channels == 1 for image in images) else 3
        self._tile = expert.tile * expert.downsample
        first = self._scan_plan(self._tile / _TILE_PIXELS, expert.tile_macs * _SCAN_COST)
        self._mean, self._std = normalisation(images, self._channels, first.downsample)
        self._draft = self._model(first, PooledStack(first.spec).eval())
        self._scenes = unwatched(images, self._draft, recipe.seed)
        self._rng = np.random.default_rng([recipe.seed, 1])
        self._watched: list[Watched] = []

    @property
    def _total(self) -> int:
        return sum(scene.tried.size for scene in self._scenes)

    def _scan_plan(self, downsample: float, most: float, *, close: bool = False) -> ScanPlan:
        return plan_scan(self._tile, self._channels, max(1.0, downsample), most, close=close)

    def _model(self, plan: ScanPlan, net: PooledStack) -> Model:
        expert = self._expert
        geometry = Geometry(self._tile, plan.downsample, expert.downsample, expert.tile // expert.cell)
        return Model(
            name=self._recipe.name,
            geometry=geometry,
            mean=tuple(map(float, self._mean)),
            std=tuple(map(float, self._std)),
            base=net,
            refiner=ExpertRefiner(expert, cache=self._cache),
            output=self._recipe.output,
            threshold=expert.confidence,
            window=1,
        )

    def watch_rounds(self, seconds_each: float) -> None:
        """Watch the expert, round by round, and train the scan in between."""
        count = self._recipe.watch.tiles(self._total, seconds_each)
        interests, draft = None, self._draft
        others = [replace(draft, refiner=ExpertRefiner(each, cache=self._cache)) for each in self._others]
        for number, share in enumerate(_ROUNDS):
            if interests is not None or number == 0:
                tick = self._bars.task("watching")
                seen = watch(self._scenes, interests, share * count, draft, self._runtime, self._rng, tick, others)
                self._scenes = list(seen.scenes)
                self._watched.append(seen)
            if number + 1 < len(_ROUNDS) and self._found():
                interests = self._interests(int(self._recipe.steps * _SHORT))
        if not self._found():
            tried = sum(int(scene.tried.sum()) for scene in self._scenes)
            raise ValueError(
                f"the expert found nothing in {tried:,} of {self._total:,} tiles, so there is nothing to learn: watch "
                f"more tiles, lower confidence={self._expert.confidence:g}, or give images in which it finds something"
            )

    def _found(self) -> int:
        return sum(len(scene.found) for scene in self._scenes)

    def _interests(self, steps: int) -> list[NDArray[np.float32]] | None:
        """Probability of a find in each tile by a quickly trained scan; None if it cannot be trained yet."""
        trained = self._trained(self._first_plan(), steps, _QUICKLY, folds=0)
        if trained is None:
            return None
        return [
            survey_level(s.image, trained.model, self._runtime, trained.stage).interest[: s.shape[0], : s.shape[1]]
            for s in self._scenes
        ]

    def _first_plan(self) -> ScanPlan:
        return self._scan_plan(self._usual_downsample(), self._expert.tile_macs * _SCAN_COST)

    def _usual_downsample(self) -> float:
        """Plane on which a small find has enough pixels."""
        if self._expert.kind not in ("boxes", "map"):
            return self._tile / _TILE_PIXELS
        found = Candidates.concatenate([scene.found for scene in self._scenes])
        sides = np.sqrt((found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)) * self._draft.geometry.fine_cell
        small = float(np.quantile(sides, 0.1)) if len(sides) else self._tile / 8
        return max(
            1.0, max(small, self._draft.geometry.fine_cell if self._draft.geometry.fine > 1 else 1) / _FIND_PIXELS
        )

    def _trained(self, plan: ScanPlan, steps: int, name: str, *, folds: int = FOLDS) -> _Trained | None:
        """A scan trained on all tried tiles, calibrated by others that were each trained without one fold.

        None if a training would have no find.
        """
        net = self._net(plan, steps, name)
        nets = [self._net(plan, steps, _without(name, fold), without=fold) for fold in range(folds)]
        if net is None or None in nets:
            return None
        model = self._model(plan, net)
        tiles = TriedTiles.of(self._scenes, model.geometry.fine)
        stage = CascadeStage(net, model.geometry.cell, plan.downsample, None, 0.0)
        parts = tuple(each for each in nets if each is not None)
        stage, interest = calibrated_stage(self._scenes, tiles, model, stage, parts, self._runtime, self._recipe.seed)
        return _Trained(stage, replace(model, firing=stage.firing), tiles, interest, parts)

    def _net(self, plan: ScanPlan, steps: int, name: str, *, without: int | None = None) -> PooledStack | None:
        samples = tile_samples(self._scenes, self._draft, plan.spec, plan.downsample, self._rng, without=without)
        if not samples.positive.any():
            return None
        return train_scan(
            plan,
            samples,
            self._runtime,
            mean=self._mean,
            std=self._std,
            rotate=self._recipe.rotate,
            steps=max(10, steps),
            seed=self._recipe.seed,
            tick=self._bars.task(name),
        )

    def model(self, truths: Sequence[Annotations]) -> Model:
        """The model: one scan, or a closer one after it, whichever costs less in all.

        Annotations, of each scene if there are any, say how accurate the expert is.
        """
        trained = self._trained(self._first_plan(), self._recipe.steps, "scan")
        if trained is None:
            raise ValueError(
                f"the {self._found():,} finds in the watched tiles lie so near to each other that no part of the "
                "images can check the others: watch more tiles, or give more images"
            )
        single = Screen(trained.tiles, trained.interest, trained.interest, self._cost(trained.stage))
        best, last, screen = trained.model, trained, single
        closer = self._closer(trained)
        if closer is not None and self._at_target(closer[2]) < _GAIN * self._at_target(single):
            best, last, screen = closer
        model = self._finished(best, screen, self._routed(last, screen) if self._others else None)
        refiner = model.refiner
        if not truths or not isinstance(refiner, ExpertRefiner) or refiner.forecast is None:
            return model
        accuracy = accuracy_of(self._scenes, truths, self._expert)
        return replace(model, refiner=replace(refiner, forecast=replace(refiner.forecast, accuracy=accuracy)))

    def _routed(self, last: _Trained, screen: Screen) -> Routed:
        """The choice between the expert and its alternatives by the features of the last stage."""
        scenes, model, runtime = self._scenes, last.model, self._runtime
        given = Given.of(scenes, last.tiles, self._expert, self._others)
        stages = [replace(last.stage, net=net) for net in (*last.nets, last.stage.net)]
        *parts, whole = (activations(scenes, last.tiles, model, stage, runtime)[0] for stage in stages)
        folds = np.concatenate([scene.fold[scene.tried] for scene in scenes])
        recall, seed = self._recipe.recall, self._recipe.seed
        return choose_routes(screen, given, (parts, whole), folds, self._others, recall=recall, gain=_GAIN, seed=seed)

    def _at_target(self, screen: Screen) -> float:
        return screen.cautious(self._recipe.recall)[3]

    def _cost(self, stage: CascadeStage) -> float:
        """Cost of a stage for a tile of a large image, as a share of the expert's."""
        return stage.net.spec.macs_per_cell / self._expert.tile_macs

    def _closer(self, first: _Trained) -> tuple[Model, _Trained, Screen] | None:
        """The model with a closer scan of the tiles in which the first one fires; None if it would cost too much."""
        downsample = first.stage.downsample
        plan = self._scan_plan(downsample / 2, self._expert.tile_macs * _CLOSE_COST, close=True)
        if plan.downsample >= downsample or plan.tile_macs > _CLOSE_COST * self._expert.tile_macs:
            return None
        closer = self._trained(plan, self._recipe.steps, "closer scan")
        if closer is None:
            return None
        cost = closer.stage.net.spec.macs(1, 1) / self._expert.tile_macs
        model = replace(closer.model, cascade=(first.stage,))
        return model, closer, Screen(first.tiles, first.interest, closer.interest, self._cost(first.stage), cost)

    def _finished(self, model: Model, plain: Screen, routed: Routed | None) -> Model:
        """The model with its thresholds, its forecast, and its alternatives if they pay."""
        recipe, recalls = self._recipe, sorted({*RECALLS, self._recipe.recall})
        routes = None if routed is None else routed.routes
        # Alternatives are chosen for the default recall; at others the expert answers alone.
        screens = {r: routed.screen if routed and r == recipe.recall else plain for r in recalls}
        low, tau, _, _ = screens[recipe.recall].cautious(recipe.recall)
        taus = {f"{r:g}": plain.cautious(r)[:2] for r in recalls}
        figures = {f"{r:g}": each.forecast(r, recipe.seed) for r, each in screens.items()}
        forecast = Forecast(
            tiles=self._total,
            watched=sum(int(scene.tried.sum()) for scene in self._scenes),
            finds=self._found(),
            with_finds=share_with_finds(plain.tiles, recipe.seed),
            chosen={r: chosen for r, (chosen, _) in figures.items()},
            saving={r: saving for r, (_, saving) in figures.items()},
            scan_cost=plain.first_cost,
            recall=recipe.recall,
            half_tile=self._half_tile(),
            alternatives={} if routed is None else routed.figures,
        )
        cascade = tuple(replace(stage, tau=low) for stage in model.cascade)
        return replace(
            model,
            tau=tau,
            cascade=cascade,
            refiner=ExpertRefiner(self._expert, forecast, self._cache, routes),
            provenance=self._provenance(taus) | ({} if routes is None else {"leaves": routes.names(self._expert)}),
        )

    def _provenance(self, taus: dict[str, tuple[float, float]]) -> dict[str, Any]:
        return {
            "scenes": [scene.image.name for scene in self._scenes],
            "recall_target": self._recipe.recall,
            "first_taus": {r: low for r, (low, _) in taus.items()},
            "taus": {r: tau for r, (_, tau) in taus.items()},
            "steps": self._recipe.steps,
            "seed": self._recipe.seed,
            "rotate": self._recipe.rotate,
            "watched_seconds": round(sum(each.seconds for each in self._watched), 2),
            "runtime": self._runtime.name,
            "torch": str(torch.__version__),
        }

    def _half_tile(self) -> float | None:
        """Cost of an ideal choice of tiles of half the side, as a share of the expert's at the present side."""
        expert = self._expert
        if expert.kind not in ("boxes", "map") or expert.tile % 2:
            return None
        fine, seen, total = self._draft.geometry.fine, 0.0, 0.0
        for scene in self._scenes:
            middle = (scene.found.boxes[:, :2] + scene.found.boxes[:, 2:]) / 2 / fine
            tile = scene.found.cells // fine
            halves = np.unique(np.concatenate([tile, middle - tile >= 0.5], axis=1).astype(np.int64), axis=0)
            seen += float(scene.weight[halves[:, 0], halves[:, 1]].sum())
            total += float(scene.weight.sum())
        side = expert.tile // 2 + 2 * expert.context
        return seen / max(total, 1e-9) * (side / expert.read_side) ** 2
