"""An expert at work on the chosen tiles of an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.answer_store import AnswerStore, moved
from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.finds import read_answer
from coarse2fine.models.candidates import Candidates
from coarse2fine.refiners.protocol import ImageContext, RunningRefiner

# Tiles that may fail, with none that succeeds, before the analysis ends: the expert is wrong, not the tiles. Fewer may
# be the empty corner of a slide.
_FAILURES = 256


class RunningExpert(RunningRefiner):
    """An expert at work on one image.

    Parameters
    ----------
    expert : Expert
    context : ImageContext
    answers : AnswerStore, optional
    """

    def __init__(self, expert: Expert, context: ImageContext, answers: AnswerStore | None = None) -> None:
        if expert.call is None:
            expert(np.zeros((0, 0, 0, 3), np.uint8))  # says that the expert must be named
        self._expert, self._context, self._answers = expert, context, answers
        self._batch = expert.batch
        self._tiles = self._good = 0
        self._failures: dict[str, None] = {}
        self._notes: dict[str, None] = {}
        self._failed: NDArray[np.bool_] = np.zeros(0, bool)

    @property
    def macs_spent(self) -> int:
        return self._tiles * max(1, self._expert.tile_macs)

    def failures(self) -> tuple[str, ...]:
        return tuple(self._failures)

    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def failed(self, count: int) -> NDArray[np.bool_]:
        return self._failed if len(self._failed) == count else np.zeros(count, bool)

    def __call__(
        self,
        pixels: NDArray[np.uint8],
        corners: NDArray[np.int64],
        rations: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> Candidates:
        """Run the expert on tiles; see `RunningRefiner`.

        A tile on which it raises an error, or whose answer cannot be read, has no finds and is named in `failures`.

        Raises
        ------
        ExpertError
            If the first 256 tiles fail.
        """
        if self._answers is None:
            found, self._failed = self._fresh(pixels, corners)
            return found
        cells, context = self._expert.tile // self._expert.cell, self._context
        keys = self._answers.keys(pixels, corners, context.fine_shape, cells, context.floor)
        known = self._answers.load(keys)
        rest = np.array([key not in known for key in keys], bool)
        found, failed = self._fresh(pixels[rest], corners[rest])
        home = found.cells // cells
        new = {
            keys[i]: moved(found.take((home == corners[i] // cells).all(axis=1)), -corners[i])
            for i in np.flatnonzero(rest)[~failed].tolist()
        }
        if new:
            self._answers.store(new)
        self._failed = np.zeros(len(pixels), bool)
        self._failed[rest] = failed
        old = [moved(known[keys[i]], corners[i]) for i in np.flatnonzero(~rest).tolist()]
        return Candidates.concatenate([found, *old])

    def _fresh(self, pixels: NDArray[np.uint8], corners: NDArray[np.int64]) -> tuple[Candidates, NDArray[np.bool_]]:
        """Candidates of tiles that the expert runs on, and which tiles failed."""
        all_failed = np.zeros(len(pixels), bool)
        found: list[Candidates] = []
        start = 0
        while start < len(pixels):
            rows = slice(start, min(start + self._batch, len(pixels)))
            answer = self._asked(np.ascontiguousarray(pixels[rows]), corners[rows])
            if answer is None:  # out of memory: half the batch
                continue
            candidates, failed = answer
            found.append(candidates)
            all_failed[rows] = failed
            start = rows.stop
        return Candidates.concatenate(found), all_failed

    def _asked(
        self, pixels: NDArray[np.uint8], corners: NDArray[np.int64]
    ) -> tuple[Candidates, NDArray[np.bool_]] | None:
        """Candidates, and which tiles failed; None if the batch was halved instead."""
        self._tiles += len(pixels)
        try:
            answer, context = self._expert(pixels), self._context
            found = read_answer(self._expert, answer, corners, context.floor, context.fine_shape)
        except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
            if len(pixels) == 1:
                return self._noted(corners[0], error)
            self._tiles -= len(pixels)
            if _out_of_memory(error):
                self._batch = max(1, len(pixels) // 2)
                self._notes[f"the expert ran out of memory: batches of {self._batch} tiles from there on"] = None
                return None
            return self._one_by_one(pixels, corners, error)
        self._good += len(pixels)
        return found, np.zeros(len(pixels), bool)

    def _one_by_one(
        self, pixels: NDArray[np.uint8], corners: NDArray[np.int64], error: Exception
    ) -> tuple[Candidates, NDArray[np.bool_]]:
        """The tiles of a batch that failed, each alone; if all of them succeed, later ones are run alone too."""
        parts = [self._asked(pixels[i : i + 1], corners[i : i + 1]) for i in range(len(pixels))]
        every = [part for part in parts if part is not None]
        failed = np.concatenate([part[1] for part in every])
        if not failed.any():
            self._batch = 1
            self._notes[
                f"the expert fails on batches but not on single tiles, so they are run alone: {_said(error)}"
            ] = None
        return Candidates.concatenate([part[0] for part in every]), failed

    def _noted(self, corner: NDArray[np.int64], error: Exception) -> tuple[Candidates, NDArray[np.bool_]]:
        """No finds: the tile failed."""
        e = self._expert
        y, x = (corner * e.cell * e.downsample).tolist()
        self._failures[f"the expert failed on the tile at y={y}, x={x}: {_said(error)}"] = None
        if not self._good and len(self._failures) >= _FAILURES:
            raise ExpertError(f"the expert {e.name} failed on each of the first {_FAILURES} tiles: {_said(error)}")
        return Candidates.empty(), np.ones(1, bool)


def _said(error: Exception) -> str:
    """The beginning of an error's text; its type too, unless it is one of ours."""
    text = str(error) if isinstance(error, ExpertError) else f"{type(error).__name__}: {error}"
    return f"{text:.300}"


def _out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "OutOfMemory" in type(error).__name__
    )
