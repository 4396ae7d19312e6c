"""Trial of an expert: whether its answers are repeatable, and what a tile costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import nn

from coarse2fine.experts.answers import read_boxes
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.finds import check_normalised, read_answer
from coarse2fine.models.candidates import Candidates
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.opening import ImageSource, open_image
from coarse2fine.tiling.window_reader import WindowReader
from coarse2fine.tiling.window_table import Windows

_TILES = 16
_MOST_SECONDS = 20.0
# Batches that are timed; a larger one is taken only if it is this much faster for a tile.
_BATCHES, _GAIN = (1, 2, 4, 8, 16, 32, 64), 1.05
_SCORE, _BOX = 1e-2, 1e-2


@dataclass(frozen=True)
class ExpertCheck:
    """Result of the trial of an expert.

    Parameters
    ----------
    expert : Expert
        With the best batch, and its multiply-adds for a tile.
    tiles : int
        Tiles that were tried.
    finds : int
        Finds in them.
    repeatable : bool
        Whether the same call gives the same answer again.
    batchable : bool
        Whether a tile's answer is the same alone and in a batch.
    seconds : float
        Seconds for a tile with the best batch.
    seconds_alone : float
        Seconds for a tile in a batch of one.
    memory : int
        Bytes by which the process grew.
    """

    expert: Expert
    tiles: int
    finds: int
    repeatable: bool
    batchable: bool
    seconds: float
    seconds_alone: float
    memory: int

    def __str__(self) -> str:
        e = self.expert
        source = "estimated from time" if e.estimated else "counted, or as given"
        lines = [
            f"{e.name}: {e.kind} of {', '.join(label.name for label in e.labels[:8])}",
            f"tiles of {e.tile} px with {e.context} px of context: {self.tiles} tried, {self.finds:,} finds",
            f"{self.seconds * 1e3:,.1f} ms a tile in batches of {e.batch}, {self.seconds_alone * 1e3:,.1f} ms alone; "
            f"{e.tile_macs / 1e9:,.2f} GMAC a tile ({source}); {self.memory / 1e6:,.0f} MB more memory",
        ]
        if not self.repeatable:
            lines.append("WARNING: the same tile gets another answer each time; recall against it is not defined")
        if not self.batchable:
            lines.append("WARNING: a tile's answer depends on the others in its batch; give batch=1 to avoid that")
        return "\n".join(lines)


def check_expert(expert: Expert, image: ImageSource | None = None) -> ExpertCheck:
    """Run an expert on some tiles, alone and in batches.

    Parameters
    ----------
    expert : Expert
    image : path, ndarray or Image, optional
        Tiles are taken from its grid; by default they are noise.

    Returns
    -------
    ExpertCheck

    Raises
    ------
    ExpertError
        If an answer cannot be read.
    Exception
        Any error of the expert.
    """
    expert, pixels = (expert, _noise(expert)) if image is None else _sample(expert, image)
    before = psutil.Process().memory_info().rss
    alone, seconds_alone, repeatable = _alone(expert, pixels)
    tried = pixels[: len(alone)]
    best, seconds, batchable = _batches(expert, tried, alone, seconds_alone)
    memory = max(0, psutil.Process().memory_info().rss - before)
    if expert.kind == "boxes":
        names = [label.name for label in expert.labels]
        check_normalised(read_boxes(expert(tried[:best]), len(tried[:best]), names, expert.read_side), expert.read_side)
    return ExpertCheck(
        expert=measured(replace(expert, batch=best), tried[:1], seconds),
        tiles=len(tried),
        finds=sum(map(len, alone)),
        repeatable=repeatable,
        batchable=batchable,
        seconds=seconds,
        seconds_alone=seconds_alone,
        memory=memory,
    )


def measured(expert: Expert, pixels: NDArray[np.uint8], seconds: float) -> Expert:
    """The expert with its multiply-adds for a tile: as it says, counted by torch, or estimated from time.

    The estimate is what this machine does in the same time in a convolution, so that shares of multiply-adds are shares
    of time.

    Parameters
    ----------
    expert : Expert
    pixels : ndarray, uint8, (1, side, side, 3)
    seconds : float
        Seconds for a tile.
    """
    if expert.tile_macs and not expert.estimated:
        return expert
    macs = _counted(expert, pixels)
    return replace(expert, tile_macs=macs or max(1, int(seconds * _macs_per_second())), estimated=not macs)


def _counted(expert: Expert, pixels: NDArray[np.uint8]) -> int:
    """Multiply-adds of one call by torch's counter; 0 if the expert is no torch module."""
    if not isinstance(expert.module, nn.Module):
        return 0
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (slow to import)

    with FlopCounterMode(display=False) as counter:
        expert(pixels)
    return int(counter.get_total_flops()) // 2


def _macs_per_second() -> float:
    """Multiply-adds of a 3 x 3 convolution of 64 channels in a second on this machine."""
    net, x = nn.Conv2d(64, 64, 3), torch.zeros(1, 64, 130, 130)
    with torch.inference_mode():
        net(x)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.3:
            net(x)
            count += 1
    return count * 64 * 64 * 9 * 128**2 / (time.perf_counter() - start)


def _noise(expert: Expert) -> NDArray[np.uint8]:
    side = expert.read_side
    return np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)


def _sample(expert: Expert, source: ImageSource) -> tuple[Expert, NDArray[np.uint8]]:
    """The expert on an image's plane, and tiles spread over its grid."""
    image = open_image(source)
    try:
        expert = expert.on(image)
        height, width = (ceil_div(n, expert.tile * expert.downsample) for n in image.shape[:2])
        numbers = np.unique(np.linspace(0, height * width - 1, _TILES).astype(int))
        tiles = np.stack(np.divmod(numbers, width), axis=1)
        windows = Windows.of_cells(tiles, (1, 1), expert.tile, expert.context)
        with WindowReader(image, downsample=expert.downsample, fill=128) as reader:
            found = [batch.pixels[~batch.failed] for batch in reader.batches(windows, 1)]
    finally:
        if image is not source:
            image.close()
    pixels = np.concatenate(found)
    return expert, np.ascontiguousarray(pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1))


def _read(expert: Expert, pixels: NDArray[np.uint8]) -> Candidates:
    corners = np.stack([np.zeros(len(pixels), np.int64), np.arange(len(pixels)) * (expert.tile // expert.cell)], axis=1)
    return read_answer(expert, expert(pixels), corners, expert.confidence)


def _alone(expert: Expert, pixels: NDArray[np.uint8]) -> tuple[list[Candidates], float, bool]:
    """Finds of each tile alone, as many as there is time for; seconds for a tile; whether the first repeats itself."""
    first = _read(expert, pixels[:1])
    start = time.perf_counter()
    found = [_read(expert, pixels[i : i + 1]) for i in _within(range(len(pixels)), _MOST_SECONDS)]
    return found, (time.perf_counter() - start) / len(found), alike(first, found[0])


def _within(items: range, seconds: float) -> Iterator[int]:
    start = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - start > seconds:
            return


def _batches(
    expert: Expert, pixels: NDArray[np.uint8], alone: list[Candidates], seconds: float
) -> tuple[int, float, bool]:
    """The fastest batch, its seconds for a tile, and whether answers agree with those of single tiles."""
    best, agree = 1, True
    cells = expert.tile // expert.cell
    whole = Candidates.concatenate([_shifted(each, i * cells) for i, each in enumerate(alone)])
    for batch in _BATCHES[1:]:
        if batch > min(len(pixels), expert.batch):
            break
        took, found = _timed(lambda size=batch: _read(expert, pixels[:size]))  # type: ignore[misc]
        agree &= alike(found, whole.take(whole.cells[:, 1] < batch * cells))
        if took / batch * _GAIN < seconds:
            best, seconds = batch, took / batch
    return best, seconds, agree


def _shifted(found: Candidates, x: int) -> Candidates:
    step = np.array([0, x], np.int32)
    return replace(found, cells=found.cells + step, boxes=found.boxes + np.tile(step, 2).astype(np.float32))


def _timed(call: Callable[[], Candidates]) -> tuple[float, Candidates]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def alike(a: Candidates, b: Candidates) -> bool:
    """Whether two sets of finds are the same up to rounding."""
    if len(a) != len(b):
        return False
    keys: list[Any] = [np.lexsort((each.boxes[:, 0].round(2), each.labels, *each.cells.T)) for each in (a, b)]
    p, q = a.take(keys[0]), b.take(keys[1])
    return bool(
        (p.cells == q.cells).all()
        and (p.labels == q.labels).all()
        and np.allclose(p.scores, q.scores, atol=_SCORE)
        and np.allclose(p.boxes, q.boxes, atol=_BOX)
    )
