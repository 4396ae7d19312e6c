"""What an analysis may spend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Limits of an analysis; those that are given all hold.

    Parameters
    ----------
    share : float, optional
        Of the exhaustive pass's multiply-adds, scan and halos included.
    cells : int, optional
        Cells that may be refined.
    seconds : float, optional
        Time after which no further window is refined.

    Raises
    ------
    ValueError
        If one is not positive.
    """

    share: float | None = None
    cells: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not self.share > 0:
            raise ValueError(
                f"budget must be a positive share of the exhaustive pass's cost, such as 0.1; got {self.share}"
            )
        if self.cells is not None and self.cells < 1:
            raise ValueError(f"cells must be a number of cells, at least 1; got {self.cells}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be positive; got {self.seconds}")

    @property
    def exhaustive(self) -> bool:
        """Whether every cell is to be refined, so that nothing has to be chosen."""
        return self.share is not None and self.share >= 1 and self.cells is None and self.seconds is None

    def parameters(self) -> dict[str, float | int | None]:
        """As JSON values."""
        return {"budget": self.share, "cells": self.cells, "seconds": self.seconds}
