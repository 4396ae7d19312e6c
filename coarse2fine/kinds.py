"""Kinds of places without labels: a tree whose columns paint what the encoder alone cannot, each for its own kind.

The encoder's code paints each cell; the cell's features lead it down the tree, and the columns on its way paint what
was wrong. How well a cell could be painted, at first and in the end, is usual or unusual for cells of its kind: a
scratch is painted worse than its neighbours, a blurred patch better.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from coarse2fine.model import Model
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.specialists import Answered
from coarse2fine.models.twin import cropped
from coarse2fine.specialists.tree import SpecialistTree

MEASURES = 2
_LEAST_ERROR = 1e-4


def cell_pixels(x: Tensor, spec: StackSpec) -> Tensor:
    """The pixels of each cell, without the halo.

    Parameters
    ----------
    x : Tensor, float, (n, c, h, w)
        Input of the encoder.
    spec : StackSpec
        Of the encoder.

    Returns
    -------
    Tensor, float, (n, c * stride * stride, cell height, cell width)
    """
    return functional.pixel_unshuffle(cropped(x, spec.margin), spec.stride)


def painted(code: Tensor, painter: NDArray[np.float32]) -> Tensor:
    """What the code alone paints.

    Parameters
    ----------
    code : Tensor, float, (n, d, h, w)
    painter : ndarray, float32, (d + 1, p)
        A linear map and, in its last row, an offset.

    Returns
    -------
    Tensor, float, (n, p, h, w)
    """
    weights = torch.from_numpy(painter).to(code.device, code.dtype)
    return functional.conv2d(code, weights[:-1].T[:, :, None, None], weights[-1])


class KindReader:
    """Measures of every cell, and its kind.

    Parameters
    ----------
    tree : SpecialistTree
        Its columns paint.
    painter : ndarray, float32, (d + 1, p)
        See `painted`.
    spec : StackSpec
        Of the encoder.
    runtime : Runtime
    """

    def __init__(self, tree: SpecialistTree, painter: NDArray[np.float32], spec: StackSpec, runtime: Runtime) -> None:
        self._tree, self._painter, self._spec = tree, painter, spec
        self._queue = tree.runner(runtime, self._settle)
        self._ended: list[Answered] = []
        leaves = tree.clusters.leaves
        self._kind = np.full(len(tree.clusters), -1, np.int64)
        self._kind[leaves] = np.arange(len(leaves))
        self._cells = 0

    @property
    def macs_spent(self) -> int:
        """Multiply-adds of painting, columns and routing up to now."""
        return self._queue.macs_spent + self._cells * self._painter[:-1].size

    @torch.inference_mode()
    def __call__(self, x: Tensor, features: list[Tensor], code: Tensor) -> Tensor:
        """Measure all cells of a batch.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
        features : list of Tensor
            The encoder's.
        code : Tensor, float, (n, d, cell height, cell width)

        Returns
        -------
        Tensor, float32, (n, 3, cell height, cell width)
            Logarithms of the error of what the code alone paints, and of what the columns make of it; and the number
            of the kind, a leaf of the tree.
        """
        n, _, height, width = code.shape
        first = _rows(painted(code, self._painter))
        places = torch.meshgrid(*(torch.arange(k, device=x.device) for k in (n, height, width)), indexing="ij")
        image, top, left = (place.flatten() for place in places)
        layout = self._tree.layout
        sources, rows = layout.items(layout.read(x, features), (1, 1), (image, top, left))
        self._queue.put(np.arange(len(first)), sources, rows, first)
        self._queue.flush()
        self._cells += len(first)
        keys = torch.from_numpy(np.concatenate([each.keys for each in self._ended])).to(x.device)
        last, kind = torch.empty_like(first), torch.empty(len(first), device=x.device)
        last[keys] = torch.cat([each.answers for each in self._ended])
        nodes = np.concatenate([each.nodes for each in self._ended])
        kind[keys] = torch.from_numpy(self._kind[nodes]).to(x.device, torch.float32)
        self._ended = []
        true = _rows(cell_pixels(x, self._spec))
        errors = ((each.float() - true.float()).square().mean(dim=1) for each in (first, last))
        found = torch.stack([*(torch.log(error + _LEAST_ERROR) for error in errors), kind], dim=1)
        return found.view(n, height, width, -1).permute(0, 3, 1, 2)

    def _settle(self, done: Answered) -> None:
        self._ended.append(done)


def kind_reader(model: Model, runtime: Runtime) -> KindReader | None:
    """The tree of kinds of an "explore" model at work, if it has one."""
    if model.tree is None or model.painter is None:
        return None
    return KindReader(model.tree, model.painter, model.refiner.spec, runtime)


def _rows(planes: Tensor) -> Tensor:
    """Planes (n, d, h, w) as a row for each cell."""
    return planes.permute(0, 2, 3, 1).reshape(-1, planes.shape[1])
