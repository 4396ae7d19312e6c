"""Novelty without labels: coarse2fine's methods against exhaustive scoring with the same features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.specialists.pictures import SIZES, SORTS, Pictures, Planted, load_pictures, plant
from coarse2fine.bench.sections import Section
from coarse2fine.fitting.explorer import drawn_from
from coarse2fine.fitting.explorer_kinds import add_kinds
from coarse2fine.model import Model, load_model
from coarse2fine.models.mixture import Mixture
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import normalised
from coarse2fine.refiners.net import net_of
from coarse2fine.refiners.novelty import LABELS, Measuring, NoveltyRefiner, pooled, surprise_by, usual
from coarse2fine.steps.choose import choose
from coarse2fine.steps.novelty import exploration_macs, explore
from coarse2fine.steps.plan import dense_plan
from coarse2fine.steps.refine import refine
from coarse2fine.steps.strategy import EXPLORE_BUDGET
from coarse2fine.tiling.errors import MissingExtraError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image

# Share of all cells in a memory bank.
_BANKED = 0.1
_ENCODER, _PLAIN, _BANK = "generic", "k-means", "memory bank"
_DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of all cells, and multiply-adds relative to those of the encoder run everywhere."""

    scores: NDArray[np.float64]
    cost: float


class Ranking(NamedTuple):
    """Average precision, area under the ROC curve, cost, and the picture's number."""

    precision: float
    area: float
    cost: float
    picture: int


# From a picture and a seed to scores.
Method = Callable[[Planted, int], Scored]


def measure_novelty(data: Path | None, seeds: int) -> Section:
    """Plant novelties in pictures (see `load_pictures`), and rank all cells by each method.

    Each seed plants at other places, tests on other pictures of a folder, and trains new kinds.
    """
    runtime = Runtime.choose("cpu")
    model = _without_kinds(load_model(_ENCODER))
    cell, numbers = model.geometry.fine_cell, dict[bytes, int]()
    found: dict[str, list[Ranking]] = {}
    for seed in range(seeds):
        pictures = load_pictures(data, seed)
        methods = _methods(model, pictures, runtime, seed)
        for (number, pixels), (at, case) in product(enumerate(pictures.tested), enumerate(product(SORTS, SIZES))):
            picture = numbers.setdefault(pixels.tobytes(), len(numbers))
            planted = plant(pixels, *case, pictures.learned, cell, np.random.default_rng((seed, number, at)))
            for name, method in methods.items():
                found.setdefault(name, []).append(_ranked(method(planted, seed), planted, picture))
    return _section(found, len(pictures.tested), seeds)


def _without_kinds(model: Model) -> Model:
    """The encoder alone; kinds are learned again, from pictures without planted novelties."""
    return replace(model, refiner=NoveltyRefiner(net_of(model.refiner), LABELS, model.refiner.downsample))


def _ranked(scored: Scored, planted: Planted, picture: int) -> Ranking:
    """One method on one picture."""
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score  # noqa: PLC0415 - slow to import
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "scoring novelty", "demo") from error

    true, scores = planted.odd[planted.counts], scored.scores[planted.counts]
    area = float(roc_auc_score(true, scores))
    return Ranking(float(average_precision_score(true, scores)), area, scored.cost, picture)


def _methods(model: Model, pictures: Pictures, runtime: Runtime, seed: int) -> dict[str, Method]:
    """All of them, by name."""
    images = [open_image(p) for p in pictures.learned]
    models = {_PLAIN: model, "tree": add_kinds(model, drawn_from(images, net_of(model.refiner).spec), seed)}
    methods: dict[str, Method] = {
        "chance": _chance,
        _BANK: partial(_bank, model, runtime),
        "one Gaussian": partial(_gaussian, model, runtime),
    }
    if models["tree"].refiner.specialists:
        for what, columns, kinds in (("alone", False, False), ("kinds", False, True), ("columns", True, False)):
            name = "measures alone" if what == "alone" else f"measures, {what}"
            methods[name] = partial(_measured, models["tree"], runtime, columns, kinds)
    # Specialists that do not help significantly were removed, with a warning: there is nothing to measure.
    for name, each in ((name, each) for name, each in models.items() if name == _PLAIN or each.refiner.specialists):
        methods[f"{name}, everywhere"] = partial(_explored, each, runtime, None)
        methods[f"{name}, {EXPLORE_BUDGET:.0%}"] = partial(_explored, each, runtime, EXPLORE_BUDGET)
    return methods


def _input(model: Model, runtime: Runtime, planted: Planted) -> Tensor:
    """The encoder's input for all cells at once."""
    return normalised(_pixels(model, planted), model, runtime)


def _pixels(model: Model, planted: Planted) -> NDArray[np.uint8]:
    """All cells with their halo, (1, height, width, c)."""
    h, w = planted.odd.shape
    box = Box(0, 0, h, w).scale(model.refiner.stride).expand(model.refiner.margin)
    with open_image(planted.pixels) as image:
        return image.read_scaled(box, 1)[None]


def _features(model: Model, runtime: Runtime, planted: Planted) -> NDArray[np.float32]:
    """High-level features of all cells, each with those around it, (cell height, cell width, c)."""
    with torch.inference_mode():
        high = runtime.place(net_of(model.refiner)).features(_input(model, runtime, planted))[-1][0]
    return np.asarray(uniform_filter(high.float().permute(1, 2, 0).cpu().numpy(), (3, 3, 0)), np.float32)


def _chance(planted: Planted, seed: int) -> Scored:
    """Random scores."""
    return Scored(np.random.default_rng(seed).random(planted.odd.shape), 0.0)


def _measured(model: Model, runtime: Runtime, columns: bool, kinds: bool, planted: Planted, _: int) -> Scored:
    """Scores of a model with a tree of kinds, without its columns, its kinds, or both."""
    refiner = model.refiner
    assert isinstance(refiner, NoveltyRefiner)
    assert refiner.decoder is not None
    measuring = Measuring(refiner, runtime, partial(normalised, model=model, runtime=runtime))
    first, last, *others, kind = measuring(_pixels(model, planted))[1][0].float().cpu().numpy()
    planes = (first, *([last] if columns else []), *others, kind * kinds)
    rows = np.stack([each.ravel() for each in planes], axis=1)
    surprise = surprise_by(usual(rows, refiner.kinds, 0), torch.from_numpy(rows))[0]
    reconstructing = measuring.macs_spent - refiner.macs(*planted.odd.shape)
    macs = reconstructing if columns else refiner.decoder[:-1].size * planted.odd.size
    return _scored(_together(surprise, model, planted), macs, model, planted)


def _together(surprise: Tensor, model: Model, planted: Planted) -> NDArray[np.float32]:
    """Surprise as the refiner pools it; at the far edges cells are repeated up to a whole block."""
    (height, width), block = planted.odd.shape, model.geometry.fine
    alone = surprise.numpy().reshape(height, width)
    whole = np.pad(alone, ((0, -height % block), (0, -width % block)), mode="edge")
    return np.asarray(pooled(torch.from_numpy(whole)[None], block)[0, :height, :width].numpy())


def _bank(model: Model, runtime: Runtime, planted: Planted, seed: int) -> Scored:
    """Distance to the nearest other cell in a sample of the picture's cells.

    PatchCore (Roth et al. 2022, arXiv:2106.08265), with one mostly normal picture instead of many normal ones.
    """
    rows = _features(model, runtime, planted).reshape(planted.odd.size, -1)
    rng = np.random.default_rng(seed)
    banked = rng.permutation(len(rows))[: max(2, round(_BANKED * len(rows)))]
    distance, index = cKDTree(rows[banked]).query(rows, 2)
    itself = banked[index[:, 0]] == np.arange(len(rows))
    macs = len(rows) * len(banked) * rows.shape[1]
    return _scored(np.where(itself, distance[:, 1], distance[:, 0]), macs, model, planted)


def _gaussian(model: Model, runtime: Runtime, planted: Planted, seed: int) -> Scored:
    """Distance from the mean by the covariance: PaDiM (Defard et al. 2021, arXiv:2011.08785) without positions."""
    rows = _features(model, runtime, planted).reshape(planted.odd.size, -1)
    surprise, _ = Mixture.fit(rows, 1, seed).surprise(torch.from_numpy(rows))
    return _scored(surprise.numpy(), len(rows) * rows.shape[1] ** 2, model, planted)


def _scored(scores: NDArray[np.floating], macs: int, model: Model, planted: Planted) -> Scored:
    whole = dense_plan(model.cell_shape(planted.pixels.shape[:2])).macs(model.refiner_macs)
    return Scored(scores.reshape(planted.odd.shape).astype(np.float64), 1 + macs / whole)


def _explored(model: Model, runtime: Runtime, budget: float | None, planted: Planted, seed: int) -> Scored:
    """Scores of `analyze`, before any threshold; cells that are not refined come last."""
    with open_image(planted.pixels) as image:
        plan = dense_plan(model.cell_shape(image.shape[:2]))
        scan, odd = explore(image, model, runtime, seed, most_macs=plan.macs(model.window_macs))
        if budget is not None:
            # The budget of `analyze` by default.
            everything = exploration_macs(model, image.shape[:2], plan)
            left = max(int(budget * everything) - scan.macs, int(budget / 2 * everything))
            plan = choose(scan.interest, model.window, window_macs=model.window_macs, budget_macs=left)
        fine = refine(image, plan, model, runtime, floor=0.0, learned=odd)
    scores = np.full((scan.interest.shape[0] * model.geometry.fine, scan.interest.shape[1] * model.geometry.fine), -1.0)
    scores[tuple(fine.candidates.cells.T)] = fine.candidates.scores
    h, w = planted.odd.shape
    whole = dense_plan(model.cell_shape(planted.pixels.shape[:2])).macs(model.refiner_macs)
    return Scored(scores[:h, :w], (scan.macs + fine.macs) / whole)


def _section(found: Mapping[str, list[Ranking]], count: int, seeds: int) -> Section:
    figures: dict[str, float] = {}
    bank = np.array([one.precision for one in found[_BANK]])
    for name, rankings in found.items():
        precision, area, cost = np.mean([ranking[:3] for ranking in rankings], axis=0).tolist()
        less = np.array([ranking.precision for ranking in rankings]) - bank
        low, high = _interval(less, np.array([ranking.picture for ranking in rankings]))
        values = {"AP": precision, "AUROC": area, "cost": cost, "AP_less_bank": float(less.mean())}
        values |= {"AP_less_bank_low": low, "AP_less_bank_high": high}
        figures |= {f"novelty/{name}/{measure}": value for measure, value in values.items()}
    title = f"novelties planted in {count} pictures, {seeds} seeds, found without labels (cost: encoder = 1)"
    return Section(title, figures)


def _interval(values: NDArray[np.float64], pictures: NDArray[np.int64]) -> tuple[float, float]:
    """95 % bootstrap interval of a mean, over pictures."""
    _, index = np.unique(pictures, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(0).integers(0, len(sums), (_DRAWS, len(sums)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (2.5, 97.5)).tolist()
    return low, high
