"""A single image in this process: its results lie in the folder itself."""

from __future__ import annotations

from pathlib import Path

from coarse2fine.batch.inputs import Item
from coarse2fine.batch.job import Opening
from coarse2fine.batch.lock import SINGLE, exclusive_lock
from coarse2fine.batch.run import Workers, make_jobs
from coarse2fine.batch.store import commit, reuse_result
from coarse2fine.batch.worker import analyze_opened, was_cut
from coarse2fine.config import Config
from coarse2fine.paths import PathLike
from coarse2fine.progress import Progress
from coarse2fine.results.analysis import Analysis


def analyze_single(
    item: Item,
    out: Path,
    model: PathLike,
    config: Config,
    opening: Opening,
    *,
    overwrite: bool = False,
    report: bool = True,
    progress: bool = False,
) -> Analysis | None:
    """Analyse one image and write its results, unless they are there already; then there is no analysis.

    Its failures are those of `analyze`. After Ctrl-C what was refined by then is written, and the next run goes on.

    Parameters
    ----------
    item : Item
    out : Path
        Folder of the results.
    model : path or str
    config : Config
    opening : Opening
    overwrite : bool
        Do it again.
    report : bool
        Whether to write ``report.html`` too.
    progress : bool

    Raises
    ------
    ImageError, ModelError, OSError, ValueError
        See `coarse2fine.analyze`.
    """
    (job,) = make_jobs([item], out, model, config, Workers(workers=0), opening, flat=True, report=report)
    if not overwrite and reuse_result(job) is not None:
        return None
    image = job.open()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(out, SINGLE):
            with Progress(progress) as bars:
                analysis = analyze_opened(job, image, bars)
            commit(job, analysis, whole=not was_cut(job, analysis))
    except BaseException:
        image.close()
        raise
    return analysis
