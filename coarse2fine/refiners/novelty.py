"""Novelty: the encoder of an autoencoder as a refiner that finds what is rare compared with a sample of the image.

Fine cells are measured by their codes. In a model with kinds of its own they are measured by how well columns
reconstruct them, by detail and by colour, and are rare within their kind; see `coarse2fine.specialists.kinds`. What is
rare is rarely alone: a cell is judged together with those around it, in the same cell of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.models.base import Base
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.mixture import Mixture
from coarse2fine.models.runtime import Runtime, in_double
from coarse2fine.refiners.net import NetRefiner
from coarse2fine.refiners.protocol import ImageContext, Label, RunningRefiner
from coarse2fine.specialists.kinds import DETAIL_MARGIN, KindReader, detail_macs

KINDS = 8
LABELS = tuple(Label(f"kind {k + 1}", "area") for k in range(KINDS))
"""Labels of a model whose kinds are learned from each image."""
_DECODER = "painter"  # name in model files
# Surprises are compared in steps of 1/1024: the last bits of a cell's surprise differ between windows of other shapes,
# and a sampled cell that is refined too must not rank above itself.
_STEPS = 1024
# Share of the sample from which a Pareto tail replaces it, and the tail's shape: surprises of real images have heavier
# tails than an exponential.
_TAIL_FROM, _SHAPE = 0.9, 0.25
_FOLDS = 8
_MOST_USUAL = -1e6


@dataclass(frozen=True)
class NoveltyModel:
    """Model of what is usual at one resolution in one image.

    Parameters
    ----------
    mixture : Mixture
        Kinds of codes; in a model with kinds of its own, of its measures.
    sample : Tensor, float32, (n,)
        Surprises of a random sample of cells, pooled in their blocks, increasing.
    block : int
        Side of the blocks, in cells.
    whole : tuple of int
        Cells wholly within the image, (height, width): beyond, the repeated edge is no texture of the image.
    """

    mixture: Mixture
    sample: Tensor
    block: int
    whole: tuple[int, int]

    @classmethod
    def of(cls, measures: NDArray[np.float32], kinds: int | None, whole: tuple[int, int], seed: int) -> NoveltyModel:
        """What is usual, from a sample of square blocks of cells.

        The surprises of each block are those by a mixture of the other blocks: by their own they would be too low, and
        too many other cells would seem rare.

        Parameters
        ----------
        measures : ndarray, float32, (m, b * b, k)
            From `Measuring`, the cells of each block in raster order.
        kinds : int or None
            Number of kinds, if the last measure is the kind.
        whole : tuple of int
            See the class.
        seed : int
        """
        count, size, width = measures.shape
        fold = np.arange(count) % min(_FOLDS, count)
        alone = torch.empty(count, size)
        for number in range(fold.max() + 1):
            mine = fold == number
            others = measures if mine.all() else measures[~mine]
            mixture = usual(others.reshape(-1, width), kinds, seed)
            rows = torch.from_numpy(measures[mine].reshape(-1, width))
            alone[torch.from_numpy(mine)] = surprise_by(mixture, rows)[0].view(-1, size)
        block = math.isqrt(size)
        sample = pooled(alone.view(count, block, block), block).flatten().sort().values
        return cls(usual(measures.reshape(-1, width), kinds, seed), sample, block, whole)

    def rank(self, surprise: Tensor) -> Tensor:
        """Share of usual cells with a lower pooled surprise.

        Up to nine tenths that of the sample. Its highest tenth may hold what is sought, so beyond that the tail of a
        generalised Pareto distribution goes on that fits the sample's median and its nine tenths; rare cells then have
        an order among themselves, too.

        Parameters
        ----------
        surprise : Tensor, float, any shape

        Returns
        -------
        Tensor, float32, same shape
        """
        sample = self.sample.to(surprise.device)
        count = len(sample)
        median, high = sample[count // 2], sample[int(_TAIL_FROM * count)]
        unit = (high - median).clamp(min=1 / _STEPS) / ((0.5 / (1 - _TAIL_FROM)) ** _SHAPE - 1)
        within = torch.searchsorted(sample, surprise) / (count + 1)
        beyond = 1 - 0.5 * (1 + (surprise - median).clamp(min=0) / unit) ** (-1 / _SHAPE)
        return torch.where(surprise > high, beyond, within)


@dataclass(frozen=True)
class NoveltyRefiner(NetRefiner):
    """An encoder whose codes are ranked by rarity.

    Parameters
    ----------
    decoder : ndarray, float32, (d + 1, p), optional
        Linear reconstruction from the code, which the tree improves; given with it.
    """

    decoder: NDArray[np.float32] | None = None

    kind: ClassVar[str] = "explore"
    # Novelty detections are fragmented: components at most one cell apart are joined.
    reach: ClassVar[int] = 2
    named: ClassVar[bool] = False
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.decoder is None) != (self.tree is None) or self.groups is not None:
            raise ValueError("expected a tree of columns and a decoder, or neither, and no groups")
        if self.decoder is not None and self.margin < DETAIL_MARGIN:
            raise ValueError(
                f"expected a net that reads at least {DETAIL_MARGIN} pixels around a cell, got {self.margin}"
            )

    @property
    def measuring_macs(self) -> float:
        """Multiply-adds for a cell beside the encoder's: columns, decoder and detail."""
        detail = 0 if self.decoder is None else detail_macs(self.net.spec)
        return detail + sum(each.macs_per_cell for each in self.specialists)

    def expected_macs(self, height: int, width: int) -> int:
        return self.macs(height, width) + round(self.measuring_macs * height * width)

    def start(self, context: ImageContext) -> RunningNovelty:
        return RunningNovelty(self, context)

    def arrays(self, base: Base) -> dict[str, NDArray[Any]]:
        return super().arrays(base) | ({} if self.decoder is None else {_DECODER: self.decoder})

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any], base: Base, **more: Any) -> Self:
        decoder = arrays.get(_DECODER)
        if decoder is not None and (decoder.ndim != 2 or decoder.dtype != np.float32):
            raise ValueError(f"expected a decoder with rows of numbers, got the shape {decoder.shape}")
        found = super().load(arrays, text, base, decoder=decoder, **more)
        if getattr(base, "spec", None) != found.net.spec:
            raise ValueError(f"expected a base of the same shape as the refine net, {found.net.spec}: it scans too")
        return found

    @property
    def kinds(self) -> int | None:
        """Number of kinds that belong to the model; None if they are learned from each image."""
        return None if self.decoder is None else len(self.labels)


class Measuring:
    """The encoder, with the columns if there are any, ready to run.

    Parameters
    ----------
    refiner : NoveltyRefiner
    runtime : Runtime
    normalise : callable
        See `ImageContext`.
    """

    def __init__(
        self, refiner: NoveltyRefiner, runtime: Runtime, normalise: Callable[[NDArray[np.uint8]], Tensor]
    ) -> None:
        self._net, self._normalise = runtime.place(refiner.net), normalise
        self._kinds = None
        if refiner.tree is not None and refiner.decoder is not None:
            self._kinds = KindReader(refiner.tree, refiner.decoder, refiner.net.spec, runtime)
        self._macs = 0

    @property
    def macs_spent(self) -> int:
        """Multiply-adds up to now."""
        return self._macs + (0 if self._kinds is None else self._kinds.macs_spent)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Codes and measures of all fine cells of a batch.

        Parameters
        ----------
        pixels : ndarray, uint8, (n, h, w, c)

        Returns
        -------
        codes : Tensor, float, (n, d, height, width)
        measures : Tensor, float, (n, k, height, width)
            The codes; or the measures of `KindReader`, last the number of the kind.
        """
        x = self._normalise(pixels)
        if self._kinds is None:
            code = measures = self._net(x)
        else:
            features = self._net.features(x)
            code = self._net.head(features[-1])
            measures = self._kinds(x, features, code)
        self._macs += len(code) * self._net.spec.macs(*code.shape[2:])
        return code, measures


class RunningNovelty(RunningRefiner):
    """The encoder with the novelty model of the image, ready to run.

    Parameters
    ----------
    refiner : NoveltyRefiner
    context : ImageContext
        With a `NoveltyModel` as `learned`.
    """

    def __init__(self, refiner: NoveltyRefiner, context: ImageContext) -> None:
        self._context, self._tree = context, refiner.tree
        self._measuring = Measuring(refiner, context.runtime, context.normalise)

    @property
    def macs_spent(self) -> int:
        return self._measuring.macs_spent

    def __call__(
        self,
        pixels: NDArray[np.uint8],
        corners: NDArray[np.int64],
        rations: NDArray[np.int64] | None = None,  # noqa: ARG002
    ) -> Candidates:
        """Rank windows of one shape; see `RunningRefiner`. A candidate's node is the leaf of its kind."""
        _, measures = self._measuring(pixels)
        context = self._context
        found = read_novelties(measures, corners, context.learned, context.floor)
        if self._tree is None:
            return found
        return replace(found, nodes=self._tree.clusters.leaves[found.labels].astype(np.int32))


def usual(rows: NDArray[np.float32], kinds: int | None, seed: int) -> Mixture:
    """Mixture of the measures (n, k) of cells; with a number of `kinds` the last measure is the kind."""
    if kinds is None:
        return Mixture.fit(rows, KINDS, seed)
    return Mixture.of_kinds(rows[:, :-1], rows[:, -1].astype(np.int64), kinds)


def surprise_by(mixture: Mixture, rows: Tensor) -> tuple[Tensor, Tensor]:
    """How improbable each cell's measures are, alone, and its kind.

    Parameters
    ----------
    mixture : Mixture
        From `usual`.
    rows : Tensor, float, (n, k)

    Returns
    -------
    surprise : Tensor, float32, (n,)
        Negative log-likelihood, up to a constant.
    kind : Tensor, int64, (n,)
    """
    if rows.shape[1] == mixture.means.shape[1]:
        return mixture.surprise(rows)
    kind = rows[:, -1].long()
    return mixture.within(rows[:, :-1], kind), kind


def pooled(surprise: Tensor, block: int, known: Tensor | None = None) -> Tensor:
    """Each cell's surprise with those around it: the mean of a blur of 3 x 3 cells and of its whole block.

    Neighbours in other blocks do not count (at its edges a block's own cells are repeated), so a window of whole blocks
    gets the same values as the image. Cells of one thing are then found together, and noise in single cells is not.

    Parameters
    ----------
    surprise : Tensor, float32, (n, h, w)
        Sides are multiples of `block`.
    block : int
    known : Tensor, bool, (n, h, w), optional
        Cells that count; others are taken for the mean of those of their block. By default all. A block without any
        is as usual as can be.

    Returns
    -------
    Tensor, float32, (n, h, w)
        In steps of 1/1024.
    """
    return torch.round(in_double(partial(_joined, block=block, known=known), surprise) * _STEPS) / _STEPS


def _joined(surprise: Tensor, block: int, known: Tensor | None) -> Tensor:
    n, height, width = surprise.shape

    def by_block(plane: Tensor) -> Tensor:
        return plane.reshape(n, height // block, block, width // block, block).transpose(2, 3)

    cells = by_block(surprise)
    if known is not None:
        weight = by_block(known).to(cells.dtype)
        total = weight.sum(dim=(3, 4), keepdim=True)
        mean = (cells * weight).sum(dim=(3, 4), keepdim=True) / total.clamp(min=1)
        cells = torch.where(weight > 0, cells, torch.where(total > 0, mean, _MOST_USUAL))
    blurred = cells
    for axis in (3, 4):
        first, last = blurred.narrow(axis, 0, 1), blurred.narrow(axis, block - 1, 1)
        before = torch.cat([first, blurred.narrow(axis, 0, block - 1)], dim=axis)
        after = torch.cat([blurred.narrow(axis, 1, block - 1), last], dim=axis)
        blurred = (before + 2 * blurred + after) / 4
    found = (blurred + cells.mean(dim=(3, 4), keepdim=True)) / 2
    return found.transpose(2, 3).reshape(n, height, width)


def read_novelties(out: Tensor, corners: NDArray[np.int64], novelty: NoveltyModel, floor: float) -> Candidates:
    """Cells of a batch of windows that are rarer than the share `floor` of the image's own sample.

    Parameters
    ----------
    out : Tensor, float, (n, d, h, w)
        Measures of fine cells; windows consist of whole cells of the scan.
    corners : ndarray, int64, (n, 2)
        Fine-grid index of each window's first cell.
    novelty : NoveltyModel
    floor : float
        Least score, see `NoveltyModel.rank`.
    """
    n, d, h, w = out.shape
    alone, kind = surprise_by(novelty.mixture, out.permute(0, 2, 3, 1).reshape(-1, d))
    below, beside = (torch.from_numpy(corners[:, i, None] + np.arange(side)) for i, side in enumerate((h, w)))
    known = ((below < novelty.whole[0])[:, :, None] & (beside < novelty.whole[1])[:, None]).to(out.device)
    surprise = pooled(alone.view(n, h, w), novelty.block, known)
    scores = novelty.rank(surprise)
    row, y, x = torch.nonzero(scores >= floor, as_tuple=True)
    rows = row.cpu().numpy()
    cells = np.stack([corners[rows, 0] + y.cpu().numpy(), corners[rows, 1] + x.cpu().numpy()], axis=1).astype(np.int32)
    boxes = np.concatenate([cells, cells + 1], axis=1).astype(np.float32)
    labels = kind.reshape(n, h, w)[row, y, x].cpu().numpy().astype(np.int16)
    nodes = np.zeros(len(cells), np.int32)
    return Candidates(cells, scores[row, y, x].float().cpu().numpy(), labels, boxes, nodes)
