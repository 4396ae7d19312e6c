"""Unsupervised novelty measures of cells, to be compared within kinds (clusters) of cells.

A linear decoder reconstructs each cell's pixels from the encoder's code. Then the columns on the cell's path through a
tree of clusters reduce the error. The errors before and after are usual or unusual for cells of a kind: a scratch is
reconstructed worse than its neighbours, a blurred patch better. So are fine detail, which the code does not hold, and
colour, which kinds of texture share.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.models.feature_maps import cell_rows, cropped
from coarse2fine.models.gate import Gate
from coarse2fine.models.routing import Answered
from coarse2fine.models.runtime import Runtime, in_double
from coarse2fine.specialists.tree import SpecialistTree

_LEAST_ERROR = 1e-4
# A Gaussian of about one pixel; what it removes is detail.
_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
DETAIL_MARGIN = len(_BLUR) // 2
"""Pixels around a cell that its detail depends on."""


def cell_pixels(x: Tensor, spec: StackSpec) -> Tensor:
    """The pixels of each cell, without the halo.

    Parameters
    ----------
    x : Tensor, float, (n, c, h, w)
        Input of the encoder.
    spec : StackSpec
        Shape of the encoder.

    Returns
    -------
    Tensor, float, (n, c * stride * stride, cell height, cell width)
    """
    return functional.pixel_unshuffle(cropped(x, spec.margin), spec.stride)


def reconstructed(code: Tensor, decoder: NDArray[np.float32]) -> Tensor:
    """Reconstruction of cells' pixels from the code alone.

    Parameters
    ----------
    code : Tensor, float, (n, d, h, w)
    decoder : ndarray, float32, (d + 1, p)
        Linear map; its last row is the offset.

    Returns
    -------
    Tensor, float, (n, p, h, w)
    """
    weights = torch.from_numpy(decoder).to(code.device, code.dtype)
    return functional.conv2d(code, weights[:-1].T[:, :, None, None], weights[-1])


def detail_macs(spec: StackSpec) -> int:
    """Multiply-adds of a cell's detail, without halo."""
    return 2 * len(_BLUR) * spec.stride**2


def detail_and_colour(x: Tensor, spec: StackSpec) -> tuple[Tensor, Tensor]:
    """Mean square of what a slight blur removes from the grey image, and mean colour, of each cell.

    Sums are taken in the same order in windows of any shape.

    Parameters
    ----------
    x : Tensor, float, (n, c, h, w)
        Input of the encoder.
    spec : StackSpec
        Shape of the encoder; its margin is at least `DETAIL_MARGIN`.

    Returns
    -------
    detail : Tensor, float32, (n, cell height, cell width)
    colour : Tensor, float32, (n, c, cell height, cell width)
    """
    around = cropped(x, spec.margin - DETAIL_MARGIN).float()
    grey = around.mean(dim=1)
    blurred = grey
    for axis in (1, 2):
        length = blurred.shape[axis] - 2 * DETAIL_MARGIN
        blurred = sum(weight * blurred.narrow(axis, at, length) for at, weight in enumerate(_BLUR))  # type: ignore[assignment]
    inner = slice(DETAIL_MARGIN, -DETAIL_MARGIN)
    removed = (grey[:, inner, inner] - blurred).square()
    colour = functional.avg_pool2d(around[:, :, inner, inner], spec.stride)
    return functional.avg_pool2d(removed, spec.stride), colour


class _TreeReconstruction:
    """Reconstruction by the columns on each cell's path through a tree; its kind is the leaf."""

    def __init__(self, tree: SpecialistTree, runtime: Runtime) -> None:
        self._tree = tree
        self._ended: list[Answered] = []
        # Outputs are pixel values, not probabilities: run every column on the path.
        self._queue = replace(tree, gate=Gate.always()).runner(runtime, self._ended.append)
        leaves = tree.clusters.leaves
        self._kind = np.full(len(tree.clusters), -1, np.int64)
        self._kind[leaves] = np.arange(len(leaves))

    @property
    def macs_spent(self) -> int:
        """Multiply-adds of columns and routing up to now."""
        return self._queue.macs_spent

    def __call__(self, x: Tensor, features: list[Tensor], first: Tensor) -> tuple[Tensor, Tensor]:
        """Final reconstruction (n, p, h, w), and the kind of each cell (n, h, w)."""
        n, _, height, width = first.shape
        cells = torch.meshgrid(*(torch.arange(k, device=x.device) for k in (n, height, width)), indexing="ij")
        image, top, left = (place.flatten() for place in cells)
        layout = self._tree.layout
        sources, rows = layout.items(layout.read(x, features), (1, 1), (image, top, left))
        start = cell_rows(first)
        self._queue.put(np.arange(len(start)), sources, rows, start)
        self._queue.flush()
        keys = torch.from_numpy(np.concatenate([each.keys for each in self._ended])).to(x.device)
        last, kind = torch.empty_like(start), torch.empty(len(start), dtype=torch.int64, device=x.device)
        last[keys] = torch.cat([each.answers for each in self._ended]).to(last.dtype)
        nodes = np.concatenate([each.nodes for each in self._ended])
        kind[keys] = torch.from_numpy(self._kind[nodes]).to(x.device)
        self._ended.clear()
        return last.view(n, height, width, -1).permute(0, 3, 1, 2), kind.view(n, height, width)


class KindReader:
    """Computes the measures and the kind of every cell.

    Parameters
    ----------
    tree : SpecialistTree
        Columns that improve the reconstruction.
    decoder : ndarray, float32, (d + 1, p)
        See `reconstructed`.
    spec : StackSpec
        Shape of the encoder.
    runtime : Runtime
    """

    def __init__(
        self,
        tree: SpecialistTree,
        decoder: NDArray[np.float32],
        spec: StackSpec,
        runtime: Runtime,
    ) -> None:
        self._first, self._spec = decoder, spec
        self._improved = _TreeReconstruction(tree, runtime)
        self._cells = 0

    @property
    def macs_spent(self) -> int:
        """Multiply-adds of decoder, columns, routing and detail up to now."""
        return self._improved.macs_spent + self._cells * (self._first[:-1].size + detail_macs(self._spec))

    @torch.inference_mode()
    def __call__(self, x: Tensor, features: list[Tensor], code: Tensor) -> Tensor:
        """Measure all cells of a batch.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
        features : list of Tensor
            Features of the encoder.
        code : Tensor, float, (n, d, cell height, cell width)

        Returns
        -------
        Tensor, float32, (n, 4 + channels of x, cell height, cell width)
            Logarithms of the reconstruction error from the code alone, of the error after the columns, and of the
            detail; mean colour, in units of x; last the number of the kind, see `kind_names`.
        """
        first = reconstructed(code, self._first)
        last, kind = self._improved(x, features, first)
        self._cells += kind.numel()
        true = cell_pixels(x, self._spec).float()
        errors = [(each.float() - true).square().mean(dim=1) for each in (first, last)]
        detail, colour = detail_and_colour(x, self._spec)
        logs = [in_double(torch.log, each + _LEAST_ERROR) for each in (*errors, detail)]
        return torch.cat([torch.stack(logs, dim=1), colour, kind.float()[:, None]], dim=1)


def kind_names(tree: SpecialistTree) -> tuple[str, ...]:
    """Names of the kinds, the leaves of the tree, in the order of their numbers."""
    return tuple(f"kind {node}" for node in tree.clusters.leaves.tolist())
