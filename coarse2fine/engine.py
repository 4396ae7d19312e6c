"""The story: look at everything cheaply, look closely at a little, give one answer in full-resolution pixels."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from coarse2fine._version import __version__
from coarse2fine.account import Cost
from coarse2fine.analysis import Analysis
from coarse2fine.audit import Audited, survey
from coarse2fine.blocks import Standing
from coarse2fine.budget import Assurance, Budget
from coarse2fine.certify import certify
from coarse2fine.conclude import conclude
from coarse2fine.explore import explore, read_oddities
from coarse2fine.model import Model, load_model
from coarse2fine.models.heads import read_detections
from coarse2fine.models.runtime import Precision, Runtime
from coarse2fine.progress import Progress
from coarse2fine.refine import Read, refine
from coarse2fine.scan import Scan, Tick, look, scan_macs
from coarse2fine.select import Plan, choose, dense_plan
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import ImageSource, open_image
from coarse2fine.tiling.stats import ReadStats

EXPLORE_BUDGET = 0.2


def analyze(
    image: ImageSource,
    model: str | os.PathLike[str] | Model = "generic",
    *,
    budget: float | None = None,
    cells: int | None = None,
    seconds: float | None = None,
    recall: float | None = None,
    confidence: float = 0.95,
    audit: float | None = None,
    threshold: float | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "auto",
    progress: bool = False,
) -> Analysis:
    """Analyse an image of any size at a small share of the exhaustive pass's cost.

    Parameters
    ----------
    image : path, ndarray or Image
        Any image that `open_image` opens.
    model : path, str or Model
        A fitted model, its file, or the name of an embedded one ("generic", "digits", "craters").
    budget : float, optional
        Most that may be spent, as a share of the exhaustive pass's multiply-adds; all of it is spent, on the best
        windows first. 1.0 or more is the exhaustive pass itself. By default a fitted model refines what its
        calibrated threshold chooses, and the generic one spends 0.2, or more on a small image, whose sample costs more.
    cells : int, optional
        Most cells that may be refined, the best first.
    seconds : float, optional
        Time after which no further window is refined; the scan is not cut short.
    recall : float, optional
        Share of what the exhaustive pass would find in this image that is to be found for certain: more is refined
        until a bound that holds with `confidence` allows an end, or nothing is left, or a limit is reached. The
        fewer the finds, the more of the image that takes.
    confidence : float
        Probability, over random choices, with which what the result says of its recall is true.
    audit : float, optional
        Share of the exhaustive pass's multiply-adds for a random sample of what was skipped, from which recall is
        estimated; a part of `budget`. By default 0.01 for a fitted model where neither a limit nor `recall` is given
        and finds are enough for so small a sample to tell anything.
    threshold : float, optional
        Probability from which a find is reported; by default the model's own.
    seed : int
        Of what is chosen at random: the generic model's sample, and audits.
    device : str, optional
        A torch device; by default the best there is.
    precision : {"auto", "fp32", "bf16"}
        Number format; "auto" takes bfloat16 where the hardware has it.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Analysis

    Raises
    ------
    ImageError
        If the image cannot be opened or scanned.
    ModelError
        If the model cannot be loaded.
    ValueError
        If the budget does not pay for the scan, or parameters are out of range or contradict each other.
    """
    known = load_model(model)
    runtime = Runtime.choose(device, precision)
    limit = known.threshold if threshold is None else threshold
    if not 0 < limit < 1:
        raise ValueError(f"threshold must be a probability between 0 and 1, got {limit}")
    limits, sure = Budget(budget, cells, seconds), Assurance(recall, confidence, audit)
    sample = _sample(known, limits, sure)
    opened = open_image(image)
    clock, before = _Clock(), opened.stats.snapshot()
    deadline = None if seconds is None else time.perf_counter() + seconds
    shape = known.cell_shape((opened.height, opened.width))
    with Progress(progress) as bars, _closed_on_failure(opened, mine=opened is not image):
        with clock("scan"):
            scan, read = _look(opened, known, runtime, limits, limit, seed, bars.task("scan"))
        with clock("choose"):
            plan = _plan(known, scan, shape, limits, sample, to_threshold=recall is not None)
        closely = partial(refine, opened, model=known, read=read, runtime=runtime, deadline=deadline)
        with clock("refine"):
            fine = closely(plan, tick=bars.task("refine"))
        with clock("audit"):
            interest = scan.interest if scan.interest.size else np.zeros(shape, np.float32)
            again = partial(closely, tick=bars.task("audit") if sample or recall else None)
            standing = Standing(known, interest, plan.take(fine.done).covered(), fine.candidates, limit, again)
            cut = fine.interrupted or (len(fine.done) < len(plan) and not fine.failures)
            audited = _audit(standing, limits, sure, scan.macs + fine.macs, seed, cut=cut)
    with clock("conclude"):
        regions = conclude(audited.candidates, known, scan, opened, limit)
    return Analysis(
        image=opened,
        regions=regions,
        interest=scan.interest,
        plan=plan.joined(audited.plan).explained(scan.interest, scan.fired),
        refined=audited.refined,
        cell=known.geometry.cell,
        cost=_cost(known, shape, scan.macs, fine.macs, audited, opened.stats.since(before), clock.seconds),
        audit=audited.audit if sample or recall else None,
        complete=len(fine.done) == len(plan) and not (scan.failures or audited.interrupted),
        failures=tuple(dict.fromkeys(scan.failures + fine.failures + audited.failures)),
        provenance=_provenance(
            known, runtime, {**limits.parameters(), **sure.parameters(), "threshold": limit, "seed": seed}
        ),
    )


def _sample(model: Model, limits: Budget, sure: Assurance) -> float:
    """Share of the exhaustive pass's multiply-adds for a random sample."""
    if model.task == "detect":
        return sure.sample(limits)
    if sure.recall or sure.audit:
        raise ValueError(
            f"{model.name} was not fitted to anything, so there is no recall to speak of: leave out recall and audit, "
            "or fit a model"
        )
    return 0.0


def _audit(standing: Standing, limits: Budget, sure: Assurance, spent: int, seed: int, *, cut: bool) -> Audited:
    """What is certified or sampled; neither where work was cut short before."""
    exhaustive = standing.model.exhaustive_macs(standing.cell_shape)
    if sure.recall is not None and not cut:
        left = None if limits.share is None else int(limits.share * exhaustive) - spent
        return certify(standing, sure.recall, confidence=sure.confidence, seed=seed, most_macs=left)
    macs = int(_sample(standing.model, limits, sure) * exhaustive)
    if cut or not macs:
        return Audited.none(standing, None if sure.recall is None and not macs else sure.confidence)
    return survey(standing, macs, confidence=sure.confidence, seed=seed, if_telling=sure.audit is None)


def _cost(
    model: Model,
    cell_shape: tuple[int, int],
    scan_macs: int,
    refine_macs: int,
    audited: Audited,
    read: ReadStats,
    seconds: dict[str, float],
) -> Cost:
    return Cost(
        scan_macs=scan_macs,
        refine_macs=refine_macs,
        audit_macs=audited.macs,
        exhaustive_macs=model.exhaustive_macs(cell_shape),
        cells=cell_shape[0] * cell_shape[1],
        cells_refined=int(audited.refined.sum()),
        chunks=read.chunks,
        bytes=read.bytes,
        fetched=read.fetched,
        **seconds,
    )


def _look(
    image: Image, model: Model, runtime: Runtime, limits: Budget, threshold: float, seed: int, tick: Tick
) -> tuple[Scan, Read]:
    """The scan, and how the refine net's output is to be read."""
    shape = model.cell_shape(image.shape[:2])
    if model.task == "explore":
        most = None if limits.share is None else int(limits.share * model.exhaustive_macs(shape))
        scan, odd = explore(image, model, runtime, seed, tick, most)
        return scan, partial(read_oddities, odd=odd, floor=threshold)
    read = partial(read_detections, floor=threshold)
    if limits.exhaustive:
        # Every cell is refined anyway: a scan would only cost.
        return Scan.none(), read
    _check_pays(limits, scan_macs(model, image.shape[:2]), model, shape)
    return look(image, model, runtime, tick), read


def _check_pays(limits: Budget, macs: int, model: Model, cell_shape: tuple[int, int], sample: float = 0.0) -> None:
    share = macs / model.exhaustive_macs(cell_shape) + sample
    if limits.share is not None and limits.share < share:
        audit = " and the audit" if sample else ""
        raise ValueError(
            f"a budget of {limits.share:g} does not pay for the scan{audit}, which alone costs {share:.3f} of the "
            "exhaustive pass; allow more, or give no budget"
        )


def _plan(
    model: Model, scan: Scan, cell_shape: tuple[int, int], limits: Budget, sample: float, *, to_threshold: bool
) -> Plan:
    if limits.exhaustive:
        return dense_plan(cell_shape)
    chosen = partial(choose, scan.interest, model.window, window_macs=model.window_macs, budget_cells=limits.cells)
    if limits.share is None and model.task == "detect":
        return chosen(tau=model.tau if limits.cells is None else 0.0)
    exhaustive = model.exhaustive_macs(cell_shape)
    left = int(((limits.share or EXPLORE_BUDGET) - sample) * exhaustive) - scan.macs
    if limits.share is None:
        # In a small image the scan and its sample may cost all that; half of it is for a closer look all the same.
        left = max(left, int(EXPLORE_BUDGET / 2 * exhaustive))
    _check_pays(limits, scan.macs, model, cell_shape, sample)
    return chosen(budget_macs=left, tau=model.tau if to_threshold else 0.0)


def _provenance(model: Model, runtime: Runtime, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {
            "name": model.name,
            "task": model.task,
            "geometry": asdict(model.geometry),
            **model.provenance,
        },
        "parameters": {**parameters, "runtime": runtime.name},
        "coarse2fine": __version__,
    }


@contextmanager
def _closed_on_failure(image: Image, *, mine: bool) -> Iterator[None]:
    """Whoever opened the image closes it when nobody else can: then no analysis holds it."""
    try:
        yield
    except BaseException:
        if mine:
            image.close()
        raise


class _Clock:
    """Seconds of each step, under the names of `Cost`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[f"{step}_seconds"] = time.perf_counter() - start
