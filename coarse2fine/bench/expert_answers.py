"""Answers of an expert to all tiles of an image, stored, so that any choice of tiles is evaluated by look-up."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.expert import Expert
from coarse2fine.experts.finds import read_answer
from coarse2fine.models.candidates import Candidates
from coarse2fine.preprocess import as_channels
from coarse2fine.progress import Tick
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import WindowReader
from coarse2fine.tiling.window_table import Windows
from coarse2fine.tiling.writing.atomic import replacing_stream

# Grey level of unreadable pixels; the benchmark's images are whole.
_FILL = 128


@dataclass
class Meter:
    """Seconds, processor seconds and tiles of an expert's calls, while it is at work inside any other code."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    tiles: int = 0


@contextmanager
def metered(expert: Expert) -> Iterator[tuple[Expert, Meter]]:
    """The expert with a meter around its calls."""
    meter, call = Meter(), expert.__call__

    def measured(pixels: NDArray[np.uint8]) -> Any:
        start, spent = time.perf_counter(), time.process_time()
        try:
            return call(pixels)
        finally:
            meter.seconds += time.perf_counter() - start
            meter.processor_seconds += time.process_time() - spent
            meter.tiles += len(pixels)

    yield replace(expert, call=measured), meter


@dataclass(frozen=True)
class TileAnswers:
    """What an expert finds in each tile of an image's grid.

    Parameters
    ----------
    counts : ndarray, int64, (rows, columns)
        Finds that each tile owns, before suppression between tiles.
    seconds : float
        Wall-clock time of the pass, reading included.
    expert_seconds : float
        The expert's part of it.
    """

    counts: NDArray[np.int64]
    seconds: float
    expert_seconds: float
    total: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", int(self.counts.sum()))

    def recall(self, tiles: NDArray[np.bool_]) -> float:
        """Share of all finds that chosen tiles own; NaN without finds.

        Parameters
        ----------
        tiles : ndarray, bool, (rows, columns)
        """
        return float(self.counts[tiles].sum() / self.total) if self.total else float("nan")

    def least(self, order: NDArray[np.intp], recall: float) -> int:
        """Number of tiles, taken in `order` (flat indices), that own a share of all finds."""
        owned = self.counts.ravel()[order].cumsum()
        return int(np.searchsorted(owned, recall * self.total - 1e-9)) + 1 if self.total else 0

    def best_first(self) -> NDArray[np.intp]:
        """Flat indices of tiles, those with most finds first."""
        return np.argsort(-self.counts.ravel(), kind="stable")

    def random_first(self, seed: int) -> NDArray[np.intp]:
        """Flat indices of tiles in random order."""
        return np.random.default_rng(seed).permutation(self.counts.size)


def all_finds(expert: Expert, image: Image, tick: Tick | None = None) -> Candidates:
    """All finds of an expert in an image, before suppression; parameters and errors as of `run_tiles`."""
    every = np.arange(math.prod(expert.grid(image)))
    return Candidates.concatenate([found for _, found in run_tiles(expert, image, every, tick)])


def run_tiles(
    expert: Expert, image: Image, tiles: NDArray[np.intp], tick: Tick | None = None
) -> Iterator[tuple[NDArray[np.intp], Candidates]]:
    """Run the expert on tiles, the plain loop: read, call, keep what each tile owns.

    Parameters
    ----------
    expert : Expert
    image : Image
    tiles : ndarray, int64, (n,)
        Flat indices in the grid.
    tick : callable, optional
        Called with tiles done and tiles in all.

    Yields
    ------
    ndarray, int64, (b,)
        Flat indices of a batch.
    Candidates
        Their finds.

    Raises
    ------
    ImageError
        If a tile cannot be read.
    """
    columns, cells = expert.grid(image)[1], expert.tile // expert.cell
    places = np.stack(np.divmod(tiles, columns), axis=1)
    windows = Windows.of_cells(places, (1, 1), expert.tile, expert.context)
    done = 0
    with WindowReader(image, downsample=expert.downsample, fill=_FILL) as reader:
        for batch in reader.batches(windows, expert.batch):
            if reader.failures:
                raise ImageError(f"the benchmark needs whole images: {reader.failures[0]}")
            pixels = np.ascontiguousarray(as_channels(batch.pixels, 3))
            yield (
                tiles[batch.index],
                read_answer(expert, expert(pixels), places[batch.index] * cells, expert.confidence),
            )
            done += len(batch.index)
            if tick:
                tick(done, len(tiles))


def all_answers(
    expert: Expert, image: Image, folder: Path | None = None, identity: str = "", tick: Tick | None = None
) -> TileAnswers:
    """Run an expert on every tile of an image, or load what an earlier run stored.

    Parameters
    ----------
    expert : Expert
    image : Image
    folder : Path, optional
        Folder of stored answers; made if missing.
    identity : str
        Stands for the image's pixels. Without it, or if the expert's hash is unknown, nothing is stored.
    tick : callable, optional
        Called with tiles done and tiles in all.
    """
    path = None if folder is None or not (identity and expert.sha256) else folder / f"{_key(expert, identity)}.npz"
    if path is not None and path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            return TileAnswers(stored["counts"], *stored["seconds"].tolist())
    shape, cells = expert.grid(image), expert.tile // expert.cell
    counts = np.zeros(shape, np.int64)
    start = time.perf_counter()
    with metered(expert) as (timed, meter):
        for _, found in run_tiles(timed, image, np.arange(counts.size), tick):
            np.add.at(counts, tuple(found.cells.astype(np.int64).T // cells), 1)
    answers = TileAnswers(counts, time.perf_counter() - start, meter.seconds)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_stream(path) as file:
            np.savez(file, counts=counts, seconds=np.array([answers.seconds, answers.expert_seconds]))
    return answers


def _key(expert: Expert, identity: str) -> str:
    return hashlib.sha256(json.dumps([expert.decisive(), identity], sort_keys=True).encode()).hexdigest()[:32]
