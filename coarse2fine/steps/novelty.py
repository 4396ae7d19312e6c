"""Unsupervised scan: interest is rarity in this image, or poor prediction of fine codes from coarse ones.

The encoder of an autoencoder scans the image; its codes are grouped into kinds, and a code far from every kind is
rare. A small random sample of cells is read at full resolution too, and teaches the refiner what is usual there: where
the fine codes of like cells are badly predicted by their coarse code, a close look is likely to show something that the
scan could not see.
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
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import WindowReader

# Cells read at full resolution: one in so many, within limits, so that the sample stays a small share of the cost.
_SAMPLED_SHARE, _LEAST_SAMPLED, _MOST_SAMPLED = 32, 32, 768
# Where a budget is tight, fewer; but of fewer than these, no cell could ever be among the rarest 0.5 %.
_LEAST_AFFORDED = 16
_SAMPLED_CODES = 50_000
# A cell counts as interesting by the far tail of either measure: the noisy-or of the ranks to this power.
_TAIL = 16


def exploration_macs(model: Model, full_shape: tuple[int, int], dense: Plan) -> int:
    """Multiply-adds of the exhaustive pass with a refiner that learns: scan, sample, and every cell refined.

    A cell is rare or not by the image's own sample, so that nobody can do without. Columns count as what they took on
    the images that they were trained on.

    Parameters
    ----------
    model : Model
    full_shape : tuple of int
        Height and width of the image in pixels.
    dense : Plan
        Windows that together hold every cell to refine.
    """
    refining = dense.macs(model.window_macs)
    return least_exploration_macs(model, full_shape, refining) + refining


def least_exploration_macs(model: Model, full_shape: tuple[int, int], most_macs: int) -> int:
    """Multiply-adds of scan and sample, without which no cell can be said to be rare; parameters as in `explore`."""
    height, width = model.cell_shape(full_shape)
    return scan_macs(model, full_shape) + _sampled(height * width, model, most_macs) * model.window_macs(1, 1)


def _sampled(cells: int, model: Model, most_macs: int) -> int:
    """Cells to sample, of so many."""
    usual = max(_LEAST_SAMPLED, min(_MOST_SAMPLED, cells // _SAMPLED_SHARE))
    return min(cells, usual, max(_LEAST_AFFORDED, most_macs // 2 // model.window_macs(1, 1)))


def explore(
    image: Image, model: Model, runtime: Runtime, seed: int, tick: Tick | None = None, *, most_macs: int
) -> tuple[Scan, NoveltyModel]:
    """Scan an image and learn from it alone what is worth a closer look.

    Parameters
    ----------
    image : Image
    model : Model
        With a `NoveltyRefiner`.
    runtime : Runtime
    seed : int
        Of the random sample.
    tick : callable, optional
        Called with blocks done and blocks in all.
    most_macs : int
        Multiply-adds for the sample and all refining: the sample takes half of them at most.

    Returns
    -------
    Scan
        Its cost holds the full-resolution sample too.
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
    scan = Scan(interest, _loudest(flat, usual).reshape(*shape, FIRED), macs, tuple(failures))
    return scan, refiner.learn(measures, seed)


def _codes(
    image: Image, model: Model, runtime: Runtime, failures: list[str], tick: Tick | None
) -> tuple[NDArray[np.float16], int]:
    """Codes of all cells (cell height, cell width, d), in half precision to hold large images, and their cost."""
    shape = model.cell_shape((image.height, image.width))
    codes = np.zeros((*shape, model.base.reader.out_channels), np.float16)
    macs = 0
    for box, _, code, cost in features(image, model, runtime, tick, failures):
        codes[box.y0 : box.y1, box.x0 : box.x1] = code.float().permute(1, 2, 0).cpu().numpy()
        macs += cost
    return codes, macs


def _fine_codes(
    image: Image, model: Model, refiner: NoveltyRefiner, runtime: Runtime, cells: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp], int]:
    """Full-resolution codes (m, f * f, d) of cells that can be read, how they are measured, which, and the cost."""
    measuring = Measuring(refiner, runtime, partial(normalised, model=model, runtime=runtime))
    fine = model.geometry.fine
    boxes = [Box(y, x, y + 1, x + 1).scale(fine * refiner.stride).expand(refiner.margin) for y, x in cells.tolist()]
    codes, measures, index = list[NDArray[np.float32]](), list[NDArray[np.float32]](), list[NDArray[np.intp]]()
    with WindowReader(image, downsample=model.geometry.refine_downsample) as reader:
        for batch in reader.batches(boxes, 64):
            if not batch.failed.all():
                code, measured = measuring(batch.pixels[~batch.failed])
                codes.append(_by_cell(code))
                measures.append(_by_cell(measured))
                index.append(batch.index[~batch.failed])
    if not index:
        raise ImageError(f"none of {len(boxes)} sampled places of {image.name} can be read: {reader.failures[0]}")
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
        expected += column * weight  # a product of matrices is rounded by the number of threads
    return expected


def _rank(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of values that are smaller."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values) / len(values)).astype(np.float32)


def _loudest(codes: NDArray[np.float16], usual: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The code's entries that stray most from their mean, for each cell; (n, 3)."""
    mean, scale = usual.mean(axis=0), usual.std(axis=0) + 1e-6
    best = np.empty((len(codes), FIRED), np.uint8)
    for start in range(0, len(codes), 1 << 18):
        z = np.abs((codes[start : start + (1 << 18)].astype(np.float32) - mean) / scale)
        best[start : start + (1 << 18)] = np.argsort(-z, axis=1)[:, :FIRED]
    return best
