"""Refinement in pieces: units of work that a checkpoint stores and that several processes can share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.progress import Tick
from coarse2fine.steps.checkpoint import Checkpoint
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import ROUND_PIXELS, Refinement, rounds, window_pixels

PIECE_PIXELS = 2**26
"""Pixels of a piece, halos included: some seconds of work."""
# Side in cells of the squares by which the windows of a round are grouped.
_NEARBY_CELLS = 256


def refine_in_pieces(
    plan: Plan, model: Model, checkpoint: Checkpoint, refine: Callable[..., Refinement], tick: Tick | None = None
) -> Refinement:
    """Refine a plan piece by piece, the best first; pieces in the checkpoint are not refined again.

    Parameters
    ----------
    plan : Plan
    model : Model
    checkpoint : Checkpoint
    refine : callable
        Refines a plan; also takes `tick`.
    tick : callable, optional
        Called with windows done and windows in all.
    """
    pieces = list(cut(plan, model))
    if len(pieces) == 1:
        return checkpoint.refine_or_load(plan, lambda whole: refine(whole, tick=tick))
    parts: list[Refinement] = []
    before = 0
    for rows in pieces:
        shown = _after(before, len(plan), tick)
        part = checkpoint.refine_or_load(plan.take(rows), partial(refine, tick=shown))
        parts.append(part)
        before += len(rows)
        if tick:
            tick(before, len(plan))
        if part.interrupted:
            break
    return _joined(parts, pieces, plan, model)


def cut(plan: Plan, model: Model) -> Iterator[NDArray[np.intp]]:
    """Rows of each piece of a plan, a function of plan and model alone; a small plan is one piece.

    The best windows are in the first pieces. Pieces of one round are compact, so that they share few chunks.
    """
    pixels = window_pixels(plan, model)
    if pixels.sum() <= PIECE_PIXELS:
        yield np.arange(len(plan))
        return
    for best in rounds(plan, model, ROUND_PIXELS):
        y, x = plan.cell_corners[best].T // _NEARBY_CELLS
        rows = best[np.lexsort((x, y))]
        number = (pixels[rows].cumsum() - 1) // PIECE_PIXELS
        yield from np.split(rows, np.flatnonzero(np.diff(number)) + 1)


def _after(before: int, total: int, tick: Tick | None) -> Tick | None:
    return (lambda done, _: tick(before + done, total)) if tick else None


def _joined(parts: list[Refinement], pieces: list[NDArray[np.intp]], plan: Plan, model: Model) -> Refinement:
    """The parts as one refinement: each fine cell once, in raster order, from the first piece that holds it."""
    every = Candidates.concatenate([part.candidates for part in parts])
    return Refinement(
        candidates=every.distinct(plan.cell_shape[1] * model.geometry.fine),
        done=np.concatenate([rows[part.done] for rows, part in zip(pieces, parts, strict=False)]),
        macs=sum(part.macs for part in parts),
        failures=tuple(dict.fromkeys(failure for part in parts for failure in part.failures)),
        interrupted=any(part.interrupted for part in parts),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        refused=sum(part.refused for part in parts),
    )
