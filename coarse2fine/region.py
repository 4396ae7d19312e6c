"""Regions of an image found by an analysis, in full-resolution pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """One find: class, score and position.

    Parameters
    ----------
    label : str
        Name of the class.
    score : float
        Confidence, from 0 to 1.
    full_box : tuple of float
        Bounds (y0, x0, y1, x1) in full-resolution pixels, half-open; ``y1 > y0`` and ``x1 > x0``.
    outline : tuple of (float, float), optional
        Corners (y, x) of a polygon in full-resolution pixels, without a repeated end point; None for the box.
    fired : tuple of str
        The base's features that fired there and chose its window, strongest first.
    route : tuple of int
        Nodes of the tree of specialists that its best cell was routed through, below the root; empty if the refine net
        was sure. If a classifier with forks named it, the forks that it passed.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    label: str
    score: float
    full_box: tuple[float, float, float, float]
    outline: tuple[tuple[float, float], ...] | None = None
    fired: tuple[str, ...] = ()
    route: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.label:
            raise ValueError("a region needs a label, got an empty text")
        if not 0.0 <= self.score <= 1.0:  # also refuses NaN
            raise ValueError(f"a region's score must lie between 0 and 1, got {self.score} for {self.label!r}")
        if not all(isinstance(node, int) and node >= 0 for node in self.route):
            raise ValueError(f"a region's route must be numbers of nodes, got {self.route!r:.60} for {self.label!r}")
        y0, x0, y1, x1 = self.full_box
        if not all(map(math.isfinite, self.full_box)) or y1 <= y0 or x1 <= x0:
            raise ValueError(
                "a region's full_box must be finite (y0, x0, y1, x1) with y1 > y0 and x1 > x0, "
                f"got {self.full_box} for {self.label!r}"
            )
        if self.outline is not None:
            self._check_outline(self.outline)

    def _check_outline(self, outline: tuple[tuple[float, float], ...]) -> None:
        if len(outline) < 3 or outline[0] == outline[-1]:
            raise ValueError(
                "a region's outline must be at least 3 corners (y, x) without a repeated end point, "
                f"got {len(outline)} corners for {self.label!r}"
            )
        if not all(math.isfinite(y) and math.isfinite(x) for y, x in outline):
            raise ValueError(f"a region's outline must be finite, got {outline} for {self.label!r}")

    @property
    def full_corners(self) -> tuple[tuple[float, float], ...]:
        """Corners (y, x) of the outline or, without one, of the box; in full-resolution pixels, not closed."""
        if self.outline is not None:
            return self.outline
        y0, x0, y1, x1 = self.full_box
        return (y0, x0), (y0, x1), (y1, x1), (y1, x0)

    @property
    def full_centre(self) -> tuple[float, float]:
        """Centre (y, x) of the box, in full-resolution pixels."""
        y0, x0, y1, x1 = self.full_box
        return (y0 + y1) / 2, (x0 + x1) / 2
