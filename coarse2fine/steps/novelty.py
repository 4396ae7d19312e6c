"""Unsupervised scan: interest is rarity in this image, or poor prediction of fine codes from coarse ones.

The encoder of an autoencoder scans the image. A mixture model groups its codes into kinds (clusters); a code far from
every kind is rare. A small random sample of cells is also read at full resolution. The refiner learns from it what is
usual there, and a regression predicts fine codes from coarse ones: if it predicts a cell badly, refining the cell is
likely to show something that the scan cannot resolve.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import Model
from coarse2fine.models.feature_maps import cell_rows
from coarse2fine.models.firing import FIRED
from coarse2fine.models.mixture import Mixture, ridge
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import normalised
from coarse2fine.progress import Tick
from coarse2fine.refiners.novelty import KINDS, Measuring, NoveltyModel, NoveltyRefiner
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.scan import Scan, features, scan_macs
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import WindowReader
from coarse2fine.tiling.window_table import Windows

# Cells read at full resolution: one in 32, within limits, so that the sample stays a small share of the cost.
_SAMPLED_SHARE, _LEAST_SAMPLED, _MOST_SAMPLED = 32, 32, 768
# Fewest cells if the budget is small: with a smaller sample no cell can rank among the rarest 0.5 %.
_LEAST_AFFORDED = 16
_SAMPLED_CODES = 50_000
# Interest is the noisy-or of the two ranks to this power, so the far tail of either measure suffices.
_TAIL = 16


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
    return scan_macs(model, full_shape) + _sampled(height * width, model, most_macs) * model.window_macs(1, 1)


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
    codes, macs = _codes(image, model, runtime, failures, tick)
    shape = codes.shape[:2]
    rng = np.random.default_rng(seed)
    flat = codes.reshape(-1, codes.shape[-1])
    chosen = np.sort(rng.permutation(len(flat))[: _sampled(len(flat), model, most_macs)])
    cells = np.stack(np.unravel_index(chosen, shape), axis=1)
    fine, measures, good, spent = _fine_codes(image, model, refiner, runtime, cells)
    chosen = chosen[good]
    macs += spent
    usual = flat[np.sort(rng.permutation(len(flat))[:_SAMPLED_CODES])].astype(np.float32)
    rarity, _ = Mixture.fit(usual, KINDS, seed).surprise(torch.from_numpy(flat))
    unexplained = _unexplained(flat[chosen].astype(np.float32), fine, flat)
    tails = [_rank(v) ** _TAIL for v in (rarity.numpy(), unexplained)]
    interest = (1 - (1 - tails[0]) * (1 - tails[1])).reshape(shape).astype(np.float32)
    scan = Scan(interest, _most_deviant(flat, usual).reshape(*shape, FIRED), macs, tuple(failures))
    return scan, refiner.learn(measures, seed)


def _codes(
    image: Image, model: Model, runtime: Runtime, failures: list[str], tick: Tick | None
) -> tuple[NDArray[np.float16], int]:
    """Codes of all cells (cell height, cell width, d), float16 to save memory, and their multiply-adds."""
    shape = model.cell_shape((image.height, image.width))
    codes = np.zeros((*shape, model.base.reader.out_channels), np.float16)
    macs = 0
    for box, _, code, cost in features(image, model, runtime, tick, failures):
        codes[box.slices] = code.float().permute(1, 2, 0).cpu().numpy()
        macs += cost
    return codes, macs


def _fine_codes(
    image: Image, model: Model, refiner: NoveltyRefiner, runtime: Runtime, cells: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp], int]:
    """Fine codes (m, f * f, d) and measures (m, f * f, k) of the readable cells, their rows, and the multiply-adds."""
    measuring = Measuring(refiner, runtime, partial(normalised, model=model, runtime=runtime))
    fine = model.geometry.fine
    windows = Windows.of_cells(cells, (1, 1), fine * refiner.stride, refiner.margin)
    codes, measures, index = list[NDArray[np.float32]](), list[NDArray[np.float32]](), list[NDArray[np.intp]]()
    with WindowReader(image, downsample=model.geometry.refine_downsample) as reader:
        for batch in reader.batches(windows, 64):
            if not batch.failed.all():
                code, measured = measuring(batch.pixels[~batch.failed])
                codes.append(_by_cell(code))
                measures.append(_by_cell(measured))
                index.append(batch.index[~batch.failed])
    if not index:
        raise ImageError(f"none of {len(windows)} sampled places of {image.name} can be read: {reader.failures[0]}")
    good = np.concatenate(index)
    order = np.argsort(good)
    return np.concatenate(codes)[order], np.concatenate(measures)[order], good[order], measuring.macs_spent


def _by_cell(planes: Tensor) -> NDArray[np.float32]:
    """Planes (n, d, h, w) as rows, (n, h * w, d)."""
    rows = cell_rows(planes.float()).view(len(planes), -1, planes.shape[1])
    return np.asarray(rows.cpu().numpy())


def _unexplained(
    coarse: NDArray[np.float32], fine: NDArray[np.float32], everywhere: NDArray[np.float16]
) -> NDArray[np.float32]:
    """Expected error, at every cell, of predicting its fine codes from its coarse one (two linear regressions)."""
    mean = fine.mean(axis=1)
    weights = ridge(coarse, mean)
    predicted = coarse @ weights[:-1] + weights[-1]
    error = np.square(fine - predicted[:, None]).mean(axis=(1, 2))
    log_error = np.log(error + 1e-6)[:, None].astype(np.float32)
    slope = ridge(coarse, log_error, strength=10.0)
    expected = np.full(len(everywhere), slope[-1, 0])
    for column, weight in zip(everywhere.T, slope[:-1, 0], strict=True):
        expected += column * weight  # not a matrix product: its rounding depends on the number of threads
    return expected


def _rank(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of all values that are smaller than each."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values) / len(values)).astype(np.float32)


def _most_deviant(codes: NDArray[np.float16], usual: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Entries of each cell's code with the largest absolute z-scores; (n, 3)."""
    mean, scale = usual.mean(axis=0), usual.std(axis=0) + 1e-6
    best = np.empty((len(codes), FIRED), np.uint8)
    for start in range(0, len(codes), 1 << 18):
        z = np.abs((codes[start : start + (1 << 18)].astype(np.float32) - mean) / scale)
        best[start : start + (1 << 18)] = np.argsort(-z, axis=1)[:, :FIRED]
    return best
