"""Scan strategies: by a fitted firing rule, or by what is unusual in the image at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.steps.novelty import exploration_macs, explore, least_exploration_macs
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.scan import Scan, look
from coarse2fine.steps.scan_blocks import scan_macs
from coarse2fine.tiling.image import Image

EXPLORE_BUDGET = 0.2


class FittedScan:
    """The cascade of a model whose firing rules were fitted to annotations.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    default_share : float or None
        Share of the exhaustive pass's multiply-adds that is spent if no limit is given; None if a threshold decides.
    needed : bool
        Whether the refiner needs the scan even if every cell is refined.
    """

    default_share: float | None = None
    needed = False

    def __init__(self, model: Model) -> None:
        self._model = model

    def exhaustive_macs(self, full_shape: tuple[int, int], dense: Plan) -> int:  # noqa: ARG002
        """Multiply-adds of the exhaustive pass.

        Parameters
        ----------
        full_shape : tuple of int
            Height and width of the image in pixels.
        dense : Plan
            Windows that together cover every cell to refine.
        """
        return dense.macs(self._model.refiner_macs)

    def least_macs(self, full_shape: tuple[int, int], inside: NDArray[np.bool_], most_macs: int) -> int:  # noqa: ARG002
        """Least multiply-adds of the scan; parameters as in `scan`."""
        return scan_macs(self._model, full_shape, inside)

    def scan(
        self,
        image: Image,
        runtime: Runtime,
        inside: NDArray[np.bool_],
        seed: int,  # noqa: ARG002
        most_macs: int,  # noqa: ARG002
        tick: Tick | None = None,
        *,
        closer_macs: int = 0,
    ) -> tuple[Scan, Any]:
        """Scan the whole image.

        Parameters
        ----------
        image : Image
        runtime : Runtime
        inside : ndarray, bool, (cell height, cell width)
            Cells to analyse.
        seed : int
            For random choices.
        most_macs : int
            Multiply-adds left for everything after the scan of the plane.
        tick : callable, optional
            Called with blocks done and blocks in all.
        closer_macs : int
            Multiply-adds that the stages of a cascade after the first may take even if their thresholds ask for less.

        Returns
        -------
        Scan
        learned : object
            Context that the refiner needs from the image: where groups of features fire, if they choose specialists;
            None if it needs none.
        """
        scan = look(image, self._model, runtime, tick, inside=inside, closer_macs=closer_macs)
        return scan, scan.groups


class NoveltyScan(FittedScan):
    """Unsupervised scan, which learns from the image what is usual there; see `coarse2fine.steps.novelty`."""

    default_share = EXPLORE_BUDGET
    needed = True

    def exhaustive_macs(self, full_shape: tuple[int, int], dense: Plan) -> int:
        return exploration_macs(self._model, full_shape, dense)

    def least_macs(self, full_shape: tuple[int, int], inside: NDArray[np.bool_], most_macs: int) -> int:  # noqa: ARG002
        return least_exploration_macs(self._model, full_shape, most_macs)

    def scan(
        self,
        image: Image,
        runtime: Runtime,
        inside: NDArray[np.bool_],  # noqa: ARG002
        seed: int,
        most_macs: int,
        tick: Tick | None = None,
        *,
        closer_macs: int = 0,  # noqa: ARG002
    ) -> tuple[Scan, Any]:
        return explore(image, self._model, runtime, seed, tick, most_macs=most_macs)


def strategy_of(model: Model) -> FittedScan:
    """The scan strategy of a model."""
    return NoveltyScan(model) if model.refiner.learns else FittedScan(model)
