"""The story: look at everything cheaply, look closely at a little, give one answer in full-resolution pixels."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from coarse2fine._version import __version__
from coarse2fine.account import Cost
from coarse2fine.analysis import Analysis
from coarse2fine.conclude import conclude
from coarse2fine.explore import explore, read_oddities
from coarse2fine.model import Model, load_model
from coarse2fine.models.heads import read_detections
from coarse2fine.models.runtime import Precision, Runtime
from coarse2fine.progress import Progress
from coarse2fine.refine import Read, refine
from coarse2fine.scan import Scan, Tick, look
from coarse2fine.select import Plan, choose, dense_plan
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import ImageSource, open_image

EXPLORE_BUDGET = 0.2


def analyze(
    image: ImageSource,
    model: str | os.PathLike[str] | Model = "generic",
    *,
    budget: float | None = None,
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
    threshold : float, optional
        Probability from which a find is reported; by default the model's own.
    seed : int
        Of what the generic model samples; fitted models draw nothing at random.
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
        If the budget does not pay for the scan, or another parameter is out of range.
    """
    known = load_model(model)
    runtime = Runtime.choose(device, precision)
    limit = known.threshold if threshold is None else threshold
    _check(budget, limit)
    opened = open_image(image)
    clock, before = _Clock(), opened.stats.snapshot()
    shape = known.cell_shape((opened.height, opened.width))
    with Progress(progress) as bars, _closed_on_failure(opened, mine=opened is not image):
        with clock("scan"):
            scan, read = _look(opened, known, runtime, budget, limit, seed, bars.task("scan"))
        with clock("choose"):
            plan = _plan(known, scan, shape, budget)
        with clock("refine"):
            fine = refine(opened, plan, known, read, runtime, bars.task("refine"))
    with clock("conclude"):
        regions = conclude(fine.candidates, known, scan, opened, limit)
    refined = plan.take(fine.done).covered()
    after = opened.stats.snapshot()
    cost = Cost(
        scan_macs=scan.macs,
        refine_macs=fine.macs,
        exhaustive_macs=known.exhaustive_macs(shape),
        cells=shape[0] * shape[1],
        cells_refined=int(refined.sum()),
        chunks=after.chunks - before.chunks,
        bytes=after.bytes - before.bytes,
        fetched=after.fetched - before.fetched,
        **clock.seconds,
    )
    return Analysis(
        image=opened,
        regions=regions,
        interest=scan.interest,
        plan=plan,
        refined=refined,
        cell=known.geometry.cell,
        cost=cost,
        complete=len(fine.done) == len(plan) and not scan.failures,
        failures=tuple(dict.fromkeys(scan.failures + fine.failures)),
        provenance=_provenance(known, runtime, budget, limit, seed),
    )


def _check(budget: float | None, threshold: float) -> None:
    if budget is not None and not budget > 0:
        raise ValueError(f"budget must be a positive share of the exhaustive pass's cost, such as 0.1; got {budget}")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be a probability between 0 and 1, got {threshold}")


def _look(
    image: Image, model: Model, runtime: Runtime, budget: float | None, limit: float, seed: int, tick: Tick
) -> tuple[Scan, Read]:
    """The scan, and how the refine net's output is to be read."""
    if model.task == "explore":
        most = None if budget is None else int(budget * model.exhaustive_macs(model.cell_shape(image.shape[:2])))
        scan, odd = explore(image, model, runtime, seed, tick, most)
        return scan, partial(read_oddities, odd=odd, floor=limit)
    read = partial(read_detections, floor=limit)
    if budget is not None and budget >= 1:
        # Every cell is refined anyway: a scan would only cost.
        return Scan.none(), read
    return look(image, model, runtime, tick), read


def _plan(model: Model, scan: Scan, cell_shape: tuple[int, int], budget: float | None) -> Plan:
    if budget is not None and budget >= 1:
        return dense_plan(cell_shape)
    if budget is None and model.task == "detect":
        return choose(scan.interest, model.window, window_macs=model.window_macs, tau=model.tau)
    exhaustive = model.exhaustive_macs(cell_shape)
    left = int((budget or EXPLORE_BUDGET) * exhaustive) - scan.macs
    if budget is None:
        # In a small image the scan and its sample may cost all that; half of it is for a closer look all the same.
        left = max(left, int(EXPLORE_BUDGET / 2 * exhaustive))
    elif left < 0:
        raise ValueError(
            f"a budget of {budget:g} does not pay for the scan, which alone costs {scan.macs / exhaustive:.3f} of the "
            "exhaustive pass; allow more, or give no budget"
        )
    return choose(scan.interest, model.window, window_macs=model.window_macs, budget_macs=left)


def _provenance(model: Model, runtime: Runtime, budget: float | None, threshold: float, seed: int) -> dict[str, Any]:
    return {
        "model": {
            "name": model.name,
            "task": model.task,
            "geometry": asdict(model.geometry),
            **model.provenance,
        },
        "parameters": {"budget": budget, "threshold": threshold, "seed": seed, "runtime": runtime.name},
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
