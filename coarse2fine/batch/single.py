"""Analysis of a single image in this process; its results lie in the output folder itself."""

from __future__ import annotations

from coarse2fine.batch.lock import SINGLE, exclusive_lock
from coarse2fine.batch.request import BatchRequest
from coarse2fine.batch.store import commit, reuse_result
from coarse2fine.batch.worker import analyze_opened, was_cut
from coarse2fine.progress import Progress
from coarse2fine.results.analysis import Analysis


def analyze_single(request: BatchRequest, *, overwrite: bool = False, progress: bool = False) -> Analysis | None:
    """Analyse the only image of a flat request and write its results; None if they exist already.

    After Ctrl-C the windows refined so far are written, and the next run continues.

    Raises
    ------
    ImageError, ModelError, OSError, ValueError
        See `coarse2fine.analyze`.
    """
    (job,) = request.jobs()
    if not overwrite and reuse_result(job) is not None:
        return None
    image = job.open()
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(request.out, SINGLE):
            with Progress(progress) as bars:
                analysis = analyze_opened(job, image, bars)
            commit(job, analysis, whole=not was_cut(job, analysis))
    except BaseException:
        image.close()
        raise
    return analysis
