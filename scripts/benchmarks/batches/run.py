"""The benchmark of batches: what breaks them, and what more workers bring."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.batches.parts import broken_files, full_disk, kills, out_of_memory, scaling
from benchmarks.report import IoReport, Section
from coarse2fine.progress import Progress

_EXPLAINED = (
    "kills: after each the same command is run again; compared are all files but timing.json, which holds seconds, "
    "and the batch's page, which names the folder. "
    "A run that ends well before there were kills enough is compared too, and begun anew.",
    "scaling: wall time of a batch by a scheduler that is there already, in turn with one worker and with two. "
    "overhead: wall time of one worker less the time of its images, per image. Where "
    "other programs run, processor time tells what more workers would bring.",
)
_PACKAGES = ("torch", "numpy", "dask", "distributed", "zarr", "tifffile", "imagecodecs")


@dataclass(frozen=True)
class BatchScale:
    """How much is measured.

    Parameters
    ----------
    images : int
        Of which one in ten is broken.
    kills : int
    killed_images : int
        That are analysed while workers and drivers are killed.
    scaled_images : int
        By one worker and by two.
    scaled_side : int
        Their side in pixels.
    rounds : int
    """

    images: int
    kills: int
    killed_images: int
    scaled_images: int
    scaled_side: int
    rounds: int


FULL = BatchScale(200, 20, 24, 24, 2048, 5)
QUICK = BatchScale(120, 4, 8, 8, 2048, 3)
_OTHERS = 8


def benchmark_batch(out: Path, *, scale: BatchScale = FULL, seed: int = 0, progress: bool = True) -> IoReport:
    """Measure batches on images made on the spot.

    Parameters
    ----------
    out : Path
        Existing folder; the images are made in a folder in it, which is removed at the end.
    scale : BatchScale
    seed : int
        Of the moments and victims of kills.
    progress : bool

    Returns
    -------
    IoReport

    Raises
    ------
    OSError
        If the images cannot be written.
    ValueError
        If results are not what they have to be.
    """
    sections: list[Section] = []
    with Progress(progress) as bars, tempfile.TemporaryDirectory(prefix="scratch-", dir=out) as scratch:
        place = Path(scratch).absolute()
        sections.append(broken_files(place / "broken", scale.images, bars.task("broken files")))
        sections.append(kills(place / "kills", scale.killed_images, scale.kills, seed, bars.task("kills")))
        task = bars.task("scaling")
        sections.append(scaling(place / "scaling", scale.scaled_images, scale.scaled_side, scale.rounds, task))
        sections.append(out_of_memory(place / "memory", _OTHERS, bars.task("out of memory")))
        sections.append(full_disk(place / "disk", _OTHERS, bars.task("full disk")))
    return IoReport(tuple(sections), seed, asdict(scale), _EXPLAINED, benchmark="batch", packages=_PACKAGES)
