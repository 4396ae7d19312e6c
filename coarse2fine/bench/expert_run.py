"""Benchmark of a user's own model behind the scan: tiles, multiply-adds and seconds beside simple choices of tiles."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench.expert_answers import TileAnswers, all_answers, metered, run_tiles
from coarse2fine.bench.expert_routes import measure_routes, without_routes
from coarse2fine.bench.methods import filled
from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.engine import analyze
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.fitting.fit import fit
from coarse2fine.model import Model
from coarse2fine.paths import expand_paths
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.progress import Progress, Tick
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import ImageSource, open_image

GOALS = (0.9, 0.95, 0.99)
"""Shares of the expert's own finds at which costs are measured."""
EXPLAINED = (
    "tiles, share: tiles on which the expert ran, of all tiles. recall: share of the finds of the expert's own "
    "exhaustive pass that these tiles own, counted before suppression between tiles. tmac: 10^12 multiply-adds, the "
    "scan included. expert_seconds, seconds: wall-clock time of the expert's calls, and of everything. "
    "saving_macs, saving_seconds: exhaustive pass divided by this row. forecast, forecast_low, forecast_high, "
    "forecast_share: what fitting said beforehand of the saving, with its interval, and of the share of tiles.",
    "ours@r: a run of analyze with the threshold that fitting set for a share r of the finds, without audit. oracle@r: "
    "the fewest tiles that own this share. random@r: tiles in random order until they own it. mask: tiles that are not "
    "empty (Otsu's threshold on local contrast). with_find: all tiles with a find. Their seconds are the exhaustive "
    "pass's for each tile, and the choice itself is free.",
    "With alternatives, at the recall of the fit. routed: by clusters of the scan's features. random clusters: the "
    "same experts, dealt to the chosen tiles at random. always N: one expert for all (0 is the reference, whose finds "
    "recall is of), on the tiles that are chosen for the reference alone. extra: finds that the reference does not "
    "have, as a share of its finds.",
    "exhaustive: the plain loop over the grid. Its seconds are measured right after each run of ours, on random tiles, "
    "and scaled to all, so that both meet the same load. fit: tiles that fitting watched, its seconds, the expert's, "
    "and beyond_processor_seconds, its processor time without the expert's.",
)
_TIMED_TILES, _TIMED_SECONDS = 64, 10.0


@dataclass(frozen=True)
class FittedExpert:
    """A model fitted by watching an expert, and what that cost: figures by name."""

    model: Model
    figures: Mapping[str, float]


def fit_by_watching(
    images: Sequence[ImageSource],
    expert: Expert,
    *,
    watch: float,
    seed: int,
    steps: int | None = None,
    alternatives: Sequence[Expert] = (),
) -> FittedExpert:
    """Fit a model to what an expert finds in images, and measure the cost.

    Parameters
    ----------
    images : sequence of path, ndarray or Image
    expert : Expert
    watch : float
        Share of their tiles that the expert sees.
    seed : int
    steps : int, optional
        Optimisation steps; by default those of `fit`.
    alternatives : sequence of Expert
        Alternatives to the expert; their time counts as the fit's own.
    """
    start, spent = time.perf_counter(), time.process_time()
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    with metered(expert) as (timed, meter):
        model = fit(list(images), expert=[timed, *alternatives], watch=watch, seed=seed, progress=False, **options)
    assert isinstance(model.refiner, ExpertRefiner)
    figures = {
        "fit/tiles": meter.tiles,
        "fit/expert_seconds": meter.seconds,
        "fit/seconds": time.perf_counter() - start,
        "fit/beyond_processor_seconds": time.process_time() - spent - meter.processor_seconds,
    }
    own = replace(model.refiner.expert, call=expert.call)
    return FittedExpert(replace(model, refiner=replace(model.refiner, expert=own)), figures)


def measure_expert(
    model: Model, source: ImageSource, *, seed: int, folder: Path | None = None, tick: Tick | None = None
) -> dict[str, float]:
    """Compare the model's choice of tiles with others on one image.

    Parameters
    ----------
    model : Model
        Fitted with an expert, which is present.
    source : path, ndarray or Image
    seed : int
        For random choices.
    folder : Path, optional
        Folder of the expert's answers, which are stored there and not asked for again.
    tick : callable, optional
        Called with tiles done and all tiles, while the expert answers all.

    Returns
    -------
    dict of str to float
        Figures by "row/column", as `EXPLAINED` describes them.

    Raises
    ------
    ValueError
        If the model has no expert.
    """
    if model.expert is None:
        raise ValueError(f"this benchmark is of experts: expected a model fitted with one, got {model.name}")
    with open_image(source) as image:
        model = at_pixel_size(model, image)
        expert = model.expert
        assert expert is not None
        answers = all_answers(expert, image, folder, identity_of(source), tick)
        ours, each = {}, []
        for goal, adapted in _by_recall(model).items():
            row, seconds_per_tile = _ours(adapted, source, image, answers, seed)
            ours[f"ours@{goal}"] = row
            each.append(seconds_per_tile)
        mask = _by_tile(filled(image, model), model, expert.grid(image))
        if model.refiner.routed:
            plain = _at(model, f"{model.provenance['recall_target']:g}")
            ours |= measure_routes(model, plain, image, answers.counts, seed=seed, tick=tick)
    seconds, expert_seconds = np.mean(each, axis=0) if each else _own_seconds(answers)
    rows = {"exhaustive": np.ones(answers.counts.shape, bool)} | _others(answers, mask, seed)
    figures: dict[str, float] = {}
    for name, tiles in rows.items():
        count = int(tiles.sum())
        figures |= _row(name, answers.recall(tiles), count, count * max(1, expert.tile_macs))
        figures |= {f"{name}/expert_seconds": count * expert_seconds, f"{name}/seconds": count * seconds}
    for name, row in ours.items():
        figures |= {f"{name}/{column}": value for column, value in row.items()}
    return _with_savings(figures, answers.counts.size, model)


def _by_recall(model: Model) -> dict[str, Model]:
    """The model at the recalls of `GOALS` for which fitting set thresholds."""
    goals = (f"{goal:g}" for goal in GOALS)
    return {goal: _at(model, goal) for goal in goals if goal in model.provenance.get("taus", {})}


def _at(model: Model, goal: str) -> Model:
    """The model with the thresholds that fitting set for a recall, and its expert alone."""
    first, known = (model.provenance.get(name, {}) for name in ("first_taus", "taus"))
    cascade = tuple(replace(stage, tau=float(first.get(goal, stage.tau))) for stage in model.cascade)
    return replace(model, tau=float(known[goal]), cascade=cascade, refiner=without_routes(model))


def _ours(
    model: Model, source: ImageSource, image: Image, answers: TileAnswers, seed: int
) -> tuple[dict[str, float], tuple[float, float]]:
    """Figures of a run; seconds of a tile in the plain loop right after it, and the expert's part."""
    assert isinstance(model.refiner, ExpertRefiner)
    expert = model.refiner.expert
    with metered(expert) as (timed, meter):
        adapted = replace(model, refiner=replace(model.refiner, expert=timed))
        start = time.perf_counter()
        with analyze(source, adapted, audit=0.0) as analysis:
            seconds = time.perf_counter() - start
            tiles = _by_tile(analysis.refined, model, answers.counts.shape)
    row = _row("", answers.recall(tiles), meter.tiles, analysis.cost.macs)
    row |= {"/expert_seconds": meter.seconds, "/seconds": seconds}
    return {name.removeprefix("/"): value for name, value in row.items()}, _tile_seconds(expert, image, seed)


def _tile_seconds(expert: Expert, image: Image, seed: int) -> tuple[float, float]:
    """Seconds of a tile in the plain loop, and the expert's part, on random tiles."""
    rows, columns = expert.grid(image)
    order = np.random.default_rng([seed, 2]).permutation(rows * columns)[:_TIMED_TILES]
    start, count = time.perf_counter(), 0
    with metered(expert) as (timed, meter):
        for tiles, _ in run_tiles(timed, image, order):
            count += len(tiles)
            if time.perf_counter() - start > _TIMED_SECONDS:
                break
    return (time.perf_counter() - start) / count, meter.seconds / count


def _own_seconds(answers: TileAnswers) -> tuple[float, float]:
    return answers.seconds / answers.counts.size, answers.expert_seconds / answers.counts.size


def _others(answers: TileAnswers, mask: NDArray[np.bool_], seed: int) -> dict[str, NDArray[np.bool_]]:
    """Tiles that other choices take."""
    chosen = {"with_find": answers.counts > 0, "mask": mask}
    orders = {"oracle": answers.best_first(), "random": answers.random_first(seed)}
    for name, order in orders.items():
        for goal in GOALS:
            tiles = np.zeros(answers.counts.size, bool)
            tiles[order[: answers.least(order, goal)]] = True
            chosen[f"{name}@{goal:g}"] = tiles.reshape(answers.counts.shape)
    return chosen


def _row(name: str, recall: float, tiles: int, macs: int) -> dict[str, float]:
    found = {f"{name}/tiles": float(tiles), f"{name}/tmac": macs / 1e12}
    return found if np.isnan(recall) else found | {f"{name}/recall": recall}


def _with_savings(figures: Mapping[str, float], count: int, model: Model) -> dict[str, float]:
    """The figures with shares of tiles, savings, and what was forecast of them."""
    found = dict(figures)
    for row in dict.fromkeys(name.rpartition("/")[0] for name in figures):
        found[f"{row}/share"] = figures[f"{row}/tiles"] / count
        for column, saving in (("tmac", "saving_macs"), ("seconds", "saving_seconds")):
            if figures.get(f"{row}/{column}", 0) > 0:
                found[f"{row}/{saving}"] = figures[f"exhaustive/{column}"] / figures[f"{row}/{column}"]
    forecast = model.refiner.forecast if isinstance(model.refiner, ExpertRefiner) else None
    if forecast is not None:
        found["with_find/forecast_share"] = forecast.with_finds[0]
        for goal in GOALS:
            row = f"ours@{goal:g}"
            if f"{row}/tiles" in figures and f"{goal:g}" in forecast.saving:
                found[f"{row}/forecast_share"] = forecast.chosen[f"{goal:g}"][0]
                named = zip(("forecast", "forecast_low", "forecast_high"), forecast.saving[f"{goal:g}"], strict=True)
                found |= {f"{row}/{name}": value for name, value in named}
        if "routed/tmac" in figures:
            found["routed/forecast"] = forecast.saving[f"{forecast.recall:g}"][0]
    return found


def _by_tile(cells: NDArray[np.bool_], model: Model, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Tiles that hold a true cell."""
    expert = model.expert
    assert expert is not None
    rows, columns = shape
    times = expert.tile * expert.downsample / model.geometry.cell
    if times < 1:  # a cell holds several tiles
        many = round(1 / times)
        return cells.repeat(many, axis=0).repeat(many, axis=1)[:rows, :columns]
    few = round(times)
    padded = np.zeros((rows * few, columns * few), bool)
    padded[: cells.shape[0], : cells.shape[1]] = cells[: rows * few, : columns * few]
    return np.asarray(padded.reshape(rows, few, columns, few).any(axis=(1, 3)))


def identity_of(source: ImageSource) -> str:
    """Text that stands for a file's pixels; empty for what is no file."""
    if not isinstance(source, str | Path) or not Path(source).exists():
        return ""
    path = Path(source).absolute()
    inside = path / "zarr.json" if path.is_dir() and (path / "zarr.json").is_file() else path
    return f"{path} {inside.stat().st_size} {inside.stat().st_mtime_ns}"


def mean_figures(runs: Iterable[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Means of figures by name over runs, and standard deviations, "..._sd", of those with two runs or more."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.items():
            values.setdefault(name, []).append(value)
    means = {name: float(np.mean(each)) for name, each in values.items()}
    return means, {f"{n}_sd": float(np.std(each, ddof=1)) for n, each in values.items() if len(each) > 1}


def sections_of(title: str, runs: Sequence[Mapping[str, float]]) -> list[Section]:
    """Sections of means: choices of tiles, other tools, fits; and one of standard deviations if there are any."""
    means, deviations = mean_figures(runs)
    parts = {title: "", f"{title}: other tools": "part", f"{title}: fits": "fit"}
    found = [
        Section(named, {name: value for name, value in means.items() if _part_of(name) == part})
        for named, part in parts.items()
    ]
    found = [section for section in found if section.figures]
    return [*found, Section(f"{title}: standard deviations", deviations)] if deviations else found


def _part_of(name: str) -> str:
    """The part of the benchmark that a figure is of: "part", "fit", or empty for choices of tiles."""
    return next((part for part in name.split("/") if part in {"part", "fit"}), "")


def benchmark_own_expert(
    expert: Expert,
    folder: Path,
    *,
    seeds: int = 3,
    watch: float = 0.1,
    steps: int | None = None,
    cache: Path | None = None,
) -> SectionReport:
    """Measure what a scan saves before a user's own model, on his images.

    For each seed, models are fitted on three quarters of the images and measured on the others.

    Parameters
    ----------
    expert : Expert
    folder : Path
        Folder of at least two images.
    seeds : int
    watch : float
        Share of the tiles of the images to fit on that the expert sees.
    steps : int, optional
        Optimisation steps; by default those of `fit`.
    cache : Path, optional
        Folder in which the expert's answers are stored.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it holds no image.
    ValueError
        If it holds fewer than two images, or `seeds` is below 1.
    """
    paths = expand_paths(folder)
    if len(paths) < 2:
        raise ValueError(f"expected at least two images in {folder}, to fit on and to measure, got {len(paths)}")
    if seeds < 1:
        raise ValueError(f"expected at least 1 seed, got {seeds}")
    expert = expert.check(paths[0]).expert
    runs: list[dict[str, float]] = []
    with Progress(True) as bars:
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(paths)).tolist()
            held = ceil_div(len(paths), 4)
            fitted = fit_by_watching(
                [paths[i] for i in sorted(order[held:])], expert, watch=watch, seed=seed, steps=steps
            )
            for i in sorted(order[:held]):
                tick = bars.task(f"seed {seed}: {paths[i].name}")
                found = measure_expert(fitted.model, paths[i], seed=seed, folder=cache, tick=tick)
                runs.append({**fitted.figures, **found})
    sections = sections_of(f"{expert.name}: {len(paths)} images, {seeds} seed(s)", runs)
    parameters = {"expert": expert.describe(), "images": [p.name for p in paths], "watch": watch, "steps": steps}
    return SectionReport("experts", sections, tuple(range(seeds)), parameters, EXPLAINED)
