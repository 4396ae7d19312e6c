"""Unsupervised scan: interest is rarity in this image.

The encoder of an autoencoder scans the image and measures its cells as the refiner measures fine ones: by codes, or, in
a model with kinds of its own, within kinds. Cells that are rare together with their neighbours are interesting. A small
random sample of cells is also read at full resolution; the refiner learns from it what is usual there.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from coarse2fine.model import Model
from coarse2fine.models.feature_maps import cell_rows
from coarse2fine.models.firing import FIRED
from coarse2fine.models.mixture import Mixture
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import normalised
from coarse2fine.progress import Tick
from coarse2fine.refiners.novelty import Measuring, NoveltyModel, NoveltyRefiner, surprise_by, usual
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.scan import Scan, features
from coarse2fine.steps.scan_blocks import scan_macs
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import WindowReader
from coarse2fine.tiling.window_table import Windows

# Cells read at full resolution: one in 32, within limits, so that the sample stays a small share of the cost.
_SAMPLED_SHARE, _LEAST_SAMPLED, _MOST_SAMPLED = 32, 32, 768
# Fewest cells if the budget is small: with a smaller sample no cell can rank among the rarest 0.5 %.
_LEAST_AFFORDED = 16
_SAMPLED_CODES = 50_000
# Interest is the rank of a cell's rarity to this power: sums over the cells of a window then depend on the far tail.
_TAIL = 16
# Standard deviation in cells of the blur of rarity.
_BLUR = 0.7


def exploration_macs(model: Model, full_shape: tuple[int, int], dense: Plan) -> int:
    """Multiply-adds of the exhaustive pass with a refiner that learns: scan, sample, and every cell refined.

    Scan and sample are included because rarity is relative to the image's own sample. Columns are counted at their
    cost on the training images.

    Parameters
    ----------
    model : Model
    full_shape : tuple of int
        Height and width of the image in pixels.
    dense : Plan
        Windows that together cover every cell to refine.
    """
    refining = dense.macs(model.window_macs)
    return least_exploration_macs(model, full_shape, refining) + refining


def least_exploration_macs(model: Model, full_shape: tuple[int, int], most_macs: int) -> int:
    """Multiply-adds of scan and sample, the least that rarity takes; parameters as in `explore`."""
    height, width = model.cell_shape(full_shape)
    assert isinstance(model.refiner, NoveltyRefiner)
    measuring = round(height * width * model.refiner.measuring_macs)
    sample = _sampled(_whole_cells(model, full_shape).size, model, most_macs) * model.window_macs(1, 1)
    return scan_macs(model, full_shape) + measuring + sample


def _sampled(cells: int, model: Model, most_macs: int) -> int:
    """Number of cells to sample."""
    usual = max(_LEAST_SAMPLED, min(_MOST_SAMPLED, cells // _SAMPLED_SHARE))
    return min(cells, usual, max(_LEAST_AFFORDED, most_macs // 2 // model.window_macs(1, 1)))


def explore(
    image: Image, model: Model, runtime: Runtime, seed: int, tick: Tick | None = None, *, most_macs: int
) -> tuple[Scan, NoveltyModel]:
    """Scan an image and learn from it alone which cells are worth refining.

    Parameters
    ----------
    image : Image
    model : Model
        With a `NoveltyRefiner`.
    runtime : Runtime
    seed : int
        For the random sample.
    tick : callable, optional
        Called with blocks done and blocks in all.
    most_macs : int
        Multiply-adds for the sample and all refining: the sample takes half of them at most.

    Returns
    -------
    Scan
        Its cost includes the full-resolution sample.
    NoveltyModel
    """
    refiner, failures = model.refiner, list[str]()
    assert isinstance(refiner, NoveltyRefiner)
    measuring = Measuring(refiner, runtime, partial(normalised, model=model, runtime=runtime))
    codes, measures, seen = _scanned(image, model, runtime, measuring, failures, tick)
    rng = np.random.default_rng(seed)
    whole = rng.permutation(_whole_cells(model, image.shape[:2]))
    chosen = np.sort(whole[: _sampled(whole.size, model, most_macs)])
    cells = np.stack(np.unravel_index(chosen, seen.shape), axis=1)
    within = image.height // model.geometry.fine_cell, image.width // model.geometry.fine_cell
    learned = NoveltyModel.of(_fine_measures(image, model, measuring, cells), refiner.kinds, within, seed)
    rows = np.flatnonzero(seen)
    some = np.sort(rng.permutation(rows)[:_SAMPLED_CODES])
    interest = _interest(
        measures, usual(measures[some], refiner.kinds, seed), seen, _partial_sides(model, image.shape[:2])
    )
    fired = _most_deviant(codes, codes[some].astype(np.float32)).reshape(*seen.shape, FIRED)
    return Scan(interest, fired, measuring.macs_spent, tuple(failures)), learned


def _scanned(
    image: Image, model: Model, runtime: Runtime, measuring: Measuring, failures: list[str], tick: Tick | None
) -> tuple[NDArray[np.float16], NDArray[np.float32], NDArray[np.bool_]]:
    """Codes (n, d) and measures (n, k) of all cells in raster order, and which could be read (cell height, width)."""
    seen = np.zeros(model.cell_shape((image.height, image.width)), bool)
    codes = measures = None
    # One block after the other: columns run in parallel within each.
    for box, *planes, _ in features(image, model, runtime, tick, failures, net=measuring, aside=False):
        code, measured = (each.float().permute(1, 2, 0).cpu().numpy() for each in planes)
        if codes is None or measures is None:
            codes = np.zeros((*seen.shape, code.shape[2]), np.float16)  # to save memory
            measures = np.zeros((*seen.shape, measured.shape[2]), np.float32)
        codes[box.slices], measures[box.slices], seen[box.slices] = code, measured, True
    assert codes is not None
    assert measures is not None
    return codes.reshape(seen.size, -1), measures.reshape(seen.size, -1), seen


def _fine_measures(image: Image, model: Model, measuring: Measuring, cells: NDArray[np.intp]) -> NDArray[np.float32]:
    """Measures (m, f * f, k) of the fine cells in those of the given cells that can be read."""
    refiner, fine = model.refiner, model.geometry.fine
    windows = Windows.of_cells(cells, (1, 1), fine * refiner.stride, refiner.margin)
    measures, index = list[NDArray[np.float32]](), list[NDArray[np.intp]]()
    with WindowReader(image, downsample=model.geometry.refine_downsample) as reader:
        for batch in reader.batches(windows, 64):
            if not batch.failed.all():
                planes = measuring(batch.pixels[~batch.failed])[1].float()
                measures.append(cell_rows(planes).view(len(planes), -1, planes.shape[1]).cpu().numpy())
                index.append(batch.index[~batch.failed])
    if not index:
        raise ImageError(f"none of {len(windows)} sampled places of {image.name} can be read: {reader.failures[0]}")
    return np.concatenate(measures)[np.argsort(np.concatenate(index))]


def _partial_sides(model: Model, full_shape: tuple[int, int]) -> tuple[bool, bool]:
    """Whether the last row and the last column of cells reach beyond an image."""
    return full_shape[0] % model.geometry.cell > 0, full_shape[1] % model.geometry.cell > 0


def _whole_cells(model: Model, full_shape: tuple[int, int]) -> NDArray[np.intp]:
    """Numbers of the cells within an image: beyond it edges are repeated. All cells if there are none."""
    (height, width), (below, beside) = model.cell_shape(full_shape), _partial_sides(model, full_shape)
    numbers = np.arange(height * width).reshape(height, width)
    whole = numbers[: height - below, : width - beside].ravel()
    return whole if whole.size else numbers.ravel()


def _interest(
    measures: NDArray[np.float32], mixture: Mixture, seen: NDArray[np.bool_], partial_sides: tuple[bool, bool]
) -> NDArray[np.float32]:
    """Rarity of each cell, from 0 to 1.

    Cells that could not be read are as usual as any, those that reach beyond the image as usual as their neighbours.
    """
    surprise, _ = surprise_by(mixture, torch.from_numpy(measures))
    alone = surprise.numpy().reshape(seen.shape)
    rarity = np.where(seen, alone, alone[seen].min())
    # A part of a cell beyond the image holds no texture of it.
    for axis, part in enumerate(partial_sides):
        if part and seen.shape[axis] > 1:
            last = np.moveaxis(rarity, axis, 0)
            last[-1] = last[-2]
    rarity = gaussian_filter(rarity, _BLUR)
    return _rank(rarity) ** _TAIL


def _rank(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of all values that are smaller than each."""
    ordered = np.sort(values, axis=None)
    return (np.searchsorted(ordered, values) / values.size).astype(np.float32)


def _most_deviant(codes: NDArray[np.float16], usual: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Entries of each cell's code with the largest absolute z-scores; (n, 3)."""
    mean, scale = usual.mean(axis=0), usual.std(axis=0) + 1e-6
    best = np.empty((len(codes), FIRED), np.uint8)
    for start in range(0, len(codes), 1 << 18):
        z = np.abs((codes[start : start + (1 << 18)].astype(np.float32) - mean) / scale)
        best[start : start + (1 << 18)] = np.argsort(-z, axis=1)[:, :FIRED]
    return best
