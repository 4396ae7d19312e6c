"""Tiles of the scenes of a fit: which were tried, with what probability, and what the expert found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.image import Image

FOLDS = 3
"""Parts of the tiles; each calibrates a scan that was trained on the others."""
# Least number of blocks that tiles are divided into.
_BLOCKS = 24
_ENOUGH_IMAGES = 6


@dataclass(frozen=True, eq=False)
class WatchedScene:
    """An image with the expert's answers on some of its tiles.

    Parameters
    ----------
    image : Image
    block : ndarray, int64, (h, w)
        Number of the block of neighbouring tiles that each tile belongs to, over all scenes.
    fold : ndarray, int64, (h, w)
        Fold of each tile, from 0 to `FOLDS` - 1; the tiles of a block are in one fold.
    tried : ndarray, bool, (h, w)
        Tiles on which the expert ran.
    missed : ndarray, float64, (h, w)
        Probability that a tile was not drawn in any round.
    found : Candidates
        Finds in the tried tiles.
    others : tuple of Candidates
        Finds of each alternative to the expert in them.
    """

    image: Image
    block: NDArray[np.int64]
    fold: NDArray[np.int64]
    tried: NDArray[np.bool_]
    missed: NDArray[np.float64]
    found: Candidates
    others: tuple[Candidates, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles of the image, (height, width)."""
        return self.tried.shape[0], self.tried.shape[1]

    @property
    def weight(self) -> NDArray[np.float64]:
        """Inverse of the probability that a tile was drawn, (h, w); 0 for tiles that were not tried."""
        return np.where(self.tried, 1 / np.maximum(1 - self.missed, 1e-6), 0.0)

    def counts(self, cells: int) -> NDArray[np.int64]:
        """Finds in each tile, (h, w); `cells` fine cells along its side."""
        y, x = self.found.cells.T // cells
        counts = np.zeros(self.shape, np.int64)
        np.add.at(counts, (y, x), 1)
        return counts

    def with_answers(
        self,
        found: Candidates,
        tried: NDArray[np.bool_],
        chance: NDArray[np.float64],
        others: Sequence[Candidates] = (),
    ) -> WatchedScene:
        """Copy after a round.

        Parameters
        ----------
        found : Candidates
            The round's finds.
        tried : ndarray, bool, (h, w)
            Its tiles.
        chance : ndarray, float64, (h, w)
            Probability with which each tile was drawn.
        others : sequence of Candidates
            The alternatives' finds.
        """
        before = self.others or (Candidates.empty(),) * len(others)
        return replace(
            self,
            found=Candidates.concatenate([self.found, found]),
            others=tuple(Candidates.concatenate(list(pair)) for pair in zip(before, others, strict=True)),
            tried=self.tried | tried,
            missed=self.missed * (1 - chance),
        )


def unwatched(images: Sequence[Image], model: Model, seed: int) -> list[WatchedScene]:
    """The scenes before any tile was tried, their blocks of tiles (whole images if there are enough) in folds.

    Parameters
    ----------
    images : sequence of Image
    model : Model
        Gives the tiles, its cells.
    seed : int
    """
    rng = np.random.default_rng(seed)
    shapes = [model.cell_shape(image.shape[:2]) for image in images]
    side = _block_side(shapes) if len(images) < _ENOUGH_IMAGES else None
    scenes, number = [], 0
    for image, (height, width) in zip(images, shapes, strict=True):
        if side is None:
            block = np.full((height, width), number, np.int64)
        else:
            rows, columns = np.arange(height) // side, np.arange(width) // side
            block = number + rows[:, None] * (int(columns[-1]) + 1) + columns[None]
        number = int(block.max()) + 1
        none = np.zeros((height, width), bool)
        scenes.append(WatchedScene(image, block, block, none, np.ones((height, width)), Candidates.empty()))
    fold = rng.permutation(number) % FOLDS
    return [replace(scene, fold=fold[scene.block]) for scene in scenes]


def _block_side(shapes: Sequence[tuple[int, int]]) -> int:
    """Largest side of blocks, in tiles, of which there are enough."""
    side = 32
    while side > 1 and sum(ceil_div(h, side) * ceil_div(w, side) for h, w in shapes) < _BLOCKS:
        side //= 2
    return side
