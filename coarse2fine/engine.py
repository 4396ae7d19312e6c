"""Analysis of an image: scan at low resolution, refine the chosen windows, return regions in full-resolution pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Unpack

from coarse2fine.analysis_run import AnalysisRun
from coarse2fine.bundle import ModelSpec
from coarse2fine.config import AnalysisOptions, Config, config_of, takes_options
from coarse2fine.experts.again import GivenExperts
from coarse2fine.likeness import unlike
from coarse2fine.model import Model, load_model
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.progress import Progress, Steps
from coarse2fine.remembered import notes_on, open_for, warn_of
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.cost import Clock
from coarse2fine.results.folder import provenance
from coarse2fine.results.timeline import Timeline
from coarse2fine.steps.checkpoint import Checkpoint
from coarse2fine.steps.mask import MaskSource
from coarse2fine.steps.traits import describe_kinds
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import ImageSource, open_image


@takes_options
def analyze(
    image: ImageSource,
    model: str | os.PathLike[str] | Model = "generic",
    *,
    channels: int | Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    mask: MaskSource | None = None,
    expert: GivenExperts | None = None,
    cache: str | os.PathLike[str] | None = None,
    profile: bool = False,
    progress: bool = False,
    **options: Unpack[AnalysisOptions],
) -> Analysis:
    """Analyse an image of any size for a small share of the exhaustive pass's cost.

    Parameters
    ----------
    image : path, ndarray or Image
        Any image that `open_image` opens.
    model : path, str or Model
        A fitted model, its file, or the name of an embedded one ("generic", "digits", "craters", "glyphs").
    budget : float, optional
        Most that may be spent, as a share of the exhaustive pass's multiply-adds; all of it is spent, on the best
        windows first. 1.0 or more is the exhaustive pass itself (the generic model's includes its scan, its sample and
        its columns). By default a fitted model refines what its calibrated threshold chooses, and the generic one
        spends 0.2, or more on a small image, whose sample costs more.
    cells : int, optional
        Most cells that may be refined, the best first; fewer if refining them in scattered windows would cost more than
        refining all.
    seconds : float, optional
        Time after which no further window is refined; the scan is not cut short.
    recall : float, optional
        Recall to certify, relative to the exhaustive pass's finds in this image: more is refined until a lower bound
        that holds with `confidence` reaches it, or nothing is left, or a limit is reached. The fewer the finds, the
        more of the image must be refined. Windows leave half of a `budget` to the audit.
    confidence : float
        Probability, over random choices, that the stated bounds on recall hold.
    audit : float, optional
        Share of the exhaustive pass's multiply-adds for a random sample of skipped cells, from which recall is
        estimated; a part of `budget`. By default 0.01 for a fitted model if neither a limit nor `recall` is given and
        there are enough finds for a sample of this size to be informative.
    cap : {"seen", "certain"}
        Assumed maximum of finds in a block of skipped cells, on which `recall` and `audit` depend. "seen": as many as
        fit side by side with the sizes of the finds seen; the result states this assumption. "certain": one in every
        fine cell, which assumes nothing and costs more.
    threshold : float, optional
        Probability from which a find is reported; by default the model's own.
    seed : int
        For random choices: the generic model's sample, and audits.
    device : str, optional
        A torch device; by default the best available.
    precision : {"auto", "fp32", "bf16"}
        Number format; "auto" takes bfloat16 if the hardware supports it, and on x86 processors 8-bit integers for scans
        of large images, if fitting found that they choose as well.
    batch_size : int, optional
        Windows that are refined at once; by default by their size.
    channels, value_range : optional
        How to read the image, see `open_image`; by default like the images that the model was fitted on, if possible.
    mask : path or ndarray, bool, (h, w), optional
        Part to analyse: GeoJSON with polygons, or an image of the same extent at any resolution that is not black
        there. Costs and recall then refer to that part. A fitted model's scan leaves out blocks far from it; the
        generic one's learns from the whole image.
    expert : Expert, str, or sequence or mapping of these, optional
        Your own model that a model file of ``fit(..., expert=...)`` runs: a file may not start code, so name it again,
        see `coarse2fine.expert`; with alternatives all of them, in the order of the fit; with several outputs by their
        names.
    cache : path, optional
        Folder in which an expert's answers are stored, by its hash and the pixels of the tiles, and from which known
        ones are taken, those of ``fit(..., cache=...)`` too.
    profile : bool
        Whether to record when it did what: `Analysis.timeline`, which prints and draws it.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Analysis

    Warns
    -----
    UserWarning
        If the image is read otherwise than the images that the model was fitted on: see `Analysis.notes`.

    Raises
    ------
    ImageError
        If the image cannot be opened or scanned.
    ModelError
        If the model cannot be loaded.
    TypeError
        If a parameter's name is unknown; the message lists the known ones.
    ValueError
        If the budget does not pay for the scan, or parameters are out of range or contradict each other.
    """
    config = config_of(analyze, options)
    with Progress(progress) as bars:
        sha256 = None if isinstance(model, Model) else ModelSpec.of(model).sha256
        loaded = load_model(model)
        if expert is not None:
            loaded = loaded.with_expert(expert)
        if cache is not None:
            loaded = loaded.with_cache(cache)
        opened = open_for(loaded, image, channels=channels, value_range=value_range)
        with _closed_on_failure(opened, mine=opened is not image):
            fitting = at_pixel_size(loaded, opened)
            warn_of(fitting, opened)
            return run_analysis(opened, fitting, config, steps=bars, mask=mask, model_sha256=sha256, profile=profile)


def run_analysis(
    image: ImageSource,
    model: Model,
    config: Config,
    *,
    steps: Steps,
    checkpoint: Checkpoint | None = None,
    mask: MaskSource | None = None,
    model_sha256: str | None = None,
    profile: bool = False,
) -> Analysis:
    """Run an analysis; see `analyze`.

    Parameters
    ----------
    image : path, ndarray or Image
    model : Model
    config : Config
    steps : Steps
        Progress display.
    checkpoint : Checkpoint, optional
        Partial results, which are not computed again.
    mask : path or ndarray, bool, (h, w), optional
    model_sha256 : str, optional
        Hash of the model's file.
    profile : bool
    """
    opened = open_image(image)
    clock, before = Clock(), opened.stats.snapshot()
    with _closed_on_failure(opened, mine=opened is not image), opened.stats.recording(profile) as spans:
        run = AnalysisRun(opened, model, config, checkpoint or Checkpoint(), mask)
        with clock("scan"):
            scans, learned = zip(*run.look(steps.task("scan")), strict=True)
        with clock("choose"):
            plans = run.choose(scans)
        with clock("refine"):
            fines = run.refine(plans, learned, steps.task("refine"))
        with clock("audit"):
            audited = run.audit(scans, plans, fines, learned, steps.task("audit") if run.audits else None)
        with clock("conclude"):
            regions = run.conclude(scans, audited, steps.task("name") if run.names_finds else None)
            kinds = {} if model.refiner.named else describe_kinds(regions, opened, model.geometry.refine_downsample)
    notes = run.notes(audited, learned) + run.outcomes(scans, fines, audited) + unlike(model, opened)
    cost = run.cost(scans, fines, audited, opened.stats.since(before), clock.seconds)
    failures = run.failures(scans, fines, audited)
    cut = run.interrupted or any(fine.interrupted for fine in fines) or any(done.interrupted for done in audited)
    return Analysis(
        image=opened,
        regions=regions,
        interest=run.interest(scans),
        plan=run.plan(scans, plans, audited),
        refined=run.refined(audited),
        cell=model.cell,
        cost=cost,
        audit=run.reported_audit(audited),
        complete=sum(len(fine.done) for fine in fines) == sum(map(len, plans)) and not (failures or cut),
        failures=failures,
        provenance={
            **provenance(model, model_sha256, run.runtime_name, {**config.parameters(), "threshold": run.threshold}),
            **({"kinds": kinds} if kinds else {}),
            **notes_on(model, opened, notes),
        },
        timeline=None if spans is None else Timeline.of(clock.steps, spans),
    )


@contextmanager
def _closed_on_failure(image: Image, *, mine: bool) -> Iterator[None]:
    """Close an image that was opened here if the analysis fails, because no result then holds it."""
    try:
        yield
    except BaseException:
        if mine:
            image.close()
        raise
