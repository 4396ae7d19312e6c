"""Novelty: the encoder of an autoencoder as a refiner that finds what is rare compared with a sample of the image.

Fine cells are measured by their codes. In a model with kinds of its own they are measured by how well columns
reconstruct them, and are rare within their kind; see `coarse2fine.specialists.kinds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.models.base import Base
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.mixture import Mixture
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.net import NetRefiner
from coarse2fine.refiners.protocol import ImageContext, Label, RunningRefiner
from coarse2fine.specialists.kinds import MEASURES, KindReader

KINDS = 8
LABELS = tuple(Label(f"kind {k + 1}", "area") for k in range(KINDS))
"""Labels of a model whose kinds are learned from each image."""
_DECODER = "painter"  # name in model files
# Surprises are compared in steps of 1/1024: the last bits of a cell's surprise differ between windows of other shapes,
# and a sampled cell that is refined too must not rank above itself.
_STEPS = 1024


@dataclass(frozen=True)
class NoveltyModel:
    """Model of what is usual at full resolution in one image.

    Parameters
    ----------
    mixture : Mixture
        Kinds of fine codes; in a model with kinds of its own, of its measures.
    sample : Tensor, float32, (n,)
        Surprises of a random sample of fine codes, increasing.
    """

    mixture: Mixture
    sample: Tensor


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

    def start(self, context: ImageContext) -> RunningNovelty:
        return RunningNovelty(self, context)

    def arrays(self, base: Base) -> dict[str, NDArray[Any]]:
        return super().arrays(base) | ({} if self.decoder is None else {_DECODER: self.decoder})

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any], base: Base, **more: Any) -> Self:
        decoder = arrays.get(_DECODER)
        if decoder is not None and (decoder.ndim != 2 or decoder.dtype != np.float32):
            raise ValueError(f"expected a decoder with rows of numbers, got the shape {decoder.shape}")
        return super().load(arrays, text, base, decoder=decoder, **more)

    def learn(self, measures: NDArray[np.float32], seed: int) -> NoveltyModel:
        """Model of the usual fine cells, from a sample.

        Parameters
        ----------
        measures : ndarray, float32, (m, f * f, k)
            From `Measuring`.
        seed : int
        """
        rows = measures.reshape(-1, measures.shape[-1])
        if self.decoder is None:
            mixture = Mixture.fit(rows, KINDS, seed)
            surprise, _ = mixture.surprise(torch.from_numpy(rows))
        else:
            kind = rows[:, MEASURES].astype(np.int64)
            mixture = Mixture.of_kinds(rows[:, :MEASURES], kind, len(self.labels))
            surprise = mixture.within(torch.from_numpy(rows[:, :MEASURES]), torch.from_numpy(kind))
        return NoveltyModel(mixture, _stepped(surprise).sort().values)


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
            The codes; or the measures of columns, and last the number of the kind.
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
        found = read_novelties(measures, corners, self._context.learned, self._context.floor)
        if self._tree is None:
            return found
        return replace(found, nodes=self._tree.clusters.leaves[found.labels].astype(np.int32))


def _stepped(surprise: Tensor) -> Tensor:
    return torch.round(surprise * _STEPS) / _STEPS


def read_novelties(out: Tensor, corners: NDArray[np.int64], novelty: NoveltyModel, floor: float) -> Candidates:
    """Cells of a batch of windows that are rarer than the share `floor` of the image's own sample.

    Parameters
    ----------
    out : Tensor, float, (n, d, h, w)
        Fine codes; or the measures of columns, and last the number of the kind.
    corners : ndarray, int64, (n, 2)
        Fine-grid index of each window's first cell.
    novelty : NoveltyModel
    floor : float
        Least score, which is the share of the sample with a lower surprise.
    """
    n, d, h, w = out.shape
    cells_of = out.permute(0, 2, 3, 1).reshape(-1, d)
    if d == novelty.mixture.means.shape[1]:
        surprise, kind = novelty.mixture.surprise(cells_of)
    else:
        kind = cells_of[:, -1].long()
        surprise = novelty.mixture.within(cells_of[:, :-1], kind)
    rank = torch.searchsorted(novelty.sample.to(out.device), _stepped(surprise))
    scores = (rank / (len(novelty.sample) + 1)).reshape(n, h, w)
    row, y, x = torch.nonzero(scores >= floor, as_tuple=True)
    rows = row.cpu().numpy()
    cells = np.stack([corners[rows, 0] + y.cpu().numpy(), corners[rows, 1] + x.cpu().numpy()], axis=1).astype(np.int32)
    boxes = np.concatenate([cells, cells + 1], axis=1).astype(np.float32)
    labels = kind.reshape(n, h, w)[row, y, x].cpu().numpy().astype(np.int16)
    nodes = np.zeros(len(cells), np.int32)
    return Candidates(cells, scores[row, y, x].float().cpu().numpy(), labels, boxes, nodes)
