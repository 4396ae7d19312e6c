"""The refiner that runs an expert on the chosen tiles."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.answer_store import AnswerStore
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.finds import notes_on_finds
from coarse2fine.experts.forecast import Forecast
from coarse2fine.experts.routes import Routes, RunningRoutes, check_alike
from coarse2fine.experts.running import RunningExpert
from coarse2fine.experts.suppress import suppress_across
from coarse2fine.models.base import Base
from coarse2fine.models.candidates import Candidates
from coarse2fine.refiners.protocol import TIMED_SECONDS, ImageContext, Label, Refiner, RunningRefiner
from coarse2fine.refiners.registry import register_refiner
from coarse2fine.tiling.geometry import ceil_div


@dataclass(frozen=True)
class ExpertRefiner(Refiner):
    """An expert on tiles of a fixed grid.

    Parameters
    ----------
    expert : Expert
    forecast : Forecast, optional
        What a scan before it is expected to save; None before it is known.
    cache : Path, optional
        Folder of answers that are known, and are not asked for again; not part of a model file.
    routes : Routes, optional
        Alternatives to the expert, and the tiles that they answer for.
    """

    expert: Expert
    forecast: Forecast | None = None
    cache: Path | None = None
    routes: Routes | None = None
    kind: ClassVar[str] = "expert"
    counts_once: ClassVar[bool] = True
    channels: ClassVar[int] = 3  # type: ignore[misc]

    @property
    def labels(self) -> tuple[Label, ...]:  # type: ignore[override]
        """Classes of finds."""
        return self.expert.labels

    @property
    def downsample(self) -> int:  # type: ignore[override]
        """Full-resolution pixels per pixel of the expert's plane."""
        return self.expert.downsample

    @property
    def stride(self) -> int:  # type: ignore[override]
        """Side of a fine cell in pixels of the plane: a tile, or a cell of the map."""
        return self.expert.cell

    @property
    def margin(self) -> int:  # type: ignore[override]
        """Pixels of context around a tile: the most that an expert reads."""
        return max(each.context for each in self.experts)

    @property
    def experts(self) -> tuple[Expert, ...]:
        """The expert, and its alternatives."""
        return (self.expert, *(self.routes.alternatives if self.routes else ()))

    @property
    def routed(self) -> bool:  # type: ignore[override]
        """Whether tiles are routed to alternatives."""
        return self.routes is not None

    def leaves(self, high: NDArray[np.float32]) -> NDArray[np.int32]:
        """Leaf of each tile by its high-level features."""
        assert self.routes is not None
        return self.routes.leaf(high)

    def route(self, node: int) -> tuple[int, ...]:
        """Path through the tree of clusters to a find's leaf."""
        return () if self.routes is None else self.routes.tree.path(node)

    def routing_notes(self, leaves: NDArray[np.int32] | None) -> list[str]:
        """Notes on which expert answered for how many tiles."""
        return [] if self.routes is None else self.routes.notes(self.expert, leaves)

    def with_experts(self, experts: Sequence[Expert]) -> ExpertRefiner:
        """A copy with other copies of its experts, in their order."""
        expert, *others = experts
        routes = None if self.routes is None else replace(self.routes, alternatives=tuple(others))
        return replace(self, expert=expert, routes=routes)

    def coarser(self, factor: Fraction) -> ExpertRefiner:
        """The refiner with experts that read a plane that is coarser by a factor."""
        return self.with_experts([replace(each, downsample=int(each.downsample * factor)) for each in self.experts])

    @property
    def cells(self) -> int:
        """Fine cells along a side of a tile."""
        return self.expert.tile // self.expert.cell

    @property
    def longest(self) -> int:  # type: ignore[override]
        """A window is one tile."""
        return self.cells

    @property
    def most_in_cell(self) -> int:  # type: ignore[override]
        """Most finds in a fine cell: those of a tile, unless it holds several cells."""
        return self.expert.most if self.expert.finds_objects else 1

    @property
    def batch_windows(self) -> int:  # type: ignore[override]
        """Tiles that are read at once: a call's, for each expert."""
        return self.expert.batch * len(self.experts)

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of the tiles that cover a window of fine cells."""
        return ceil_div(height, self.cells) * ceil_div(width, self.cells) * max(1, self.expert.tile_macs)

    def start(self, context: ImageContext) -> RunningRefiner:
        folder, known = self.cache, self.experts
        stores = [None if folder is None else AnswerStore.of(each, folder) for each in known]
        running = [RunningExpert(each, context, store) for each, store in zip(known, stores, strict=True)]
        if self.routes is None:
            return running[0]
        return RunningRoutes(running, [each.context for each in known], self.routes.choice, context.learned, self.cells)

    def outcome(self, share: float) -> list[str]:
        """The forecast beside the cost of an analysis by default, as a share of the expert's everywhere."""
        return [] if self.forecast is None or not share else [self.forecast.beside(share)]

    def describe(self) -> dict[str, Any]:
        forecast = None if self.forecast is None else self.forecast.to_json()
        routes = {} if self.routes is None else self.routes.describe()
        return {"expert": self.expert.describe(), "forecast": forecast, **routes}

    def arrays(self, base: Base) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        return {} if self.routes is None else self.routes.arrays()

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any], base: Base) -> ExpertRefiner:
        """The refiner of a model file; nothing that the file names is imported."""
        forecast, expert = text["forecast"], Expert.described(text["expert"])
        routes = Routes.load(arrays, text, base.high_channels) if "alternatives" in text else None
        if routes is not None:
            check_alike(expert, routes.alternatives)
        return cls(expert, None if forecast is None else Forecast.from_json(forecast), routes=routes)

    @property
    def screened(self) -> bool:  # type: ignore[override]
        """Whether the forecast says that a scan before the expert pays."""
        return self.forecast is None or self.forecast.pays

    @property
    def macs_per_cell(self) -> float:
        """Multiply-adds per fine cell."""
        return max(1, self.expert.tile_macs) / self.cells**2

    def macs_per_second(self, context: ImageContext) -> float:  # noqa: ARG002
        """Speed, measured on this machine with grey tiles."""
        side = self.expert.read_side
        pixels = np.full((min(4, self.expert.batch), side, side, 3), 128, np.uint8)
        self.expert(pixels)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < TIMED_SECONDS:
            self.expert(pixels)
            count += len(pixels)
        return count * max(1, self.expert.tile_macs) / (time.perf_counter() - start)

    def suppress(self, candidates: Candidates) -> Candidates:
        """Of boxes of one class in different tiles that are one object only the best."""
        return suppress_across(candidates, self.expert.overlap)

    def notes(self, candidates: Candidates, fine_shape: tuple[float, float]) -> list[str]:
        """Notes on finds that may be cut, and on tiles that may hold more of them."""
        return notes_on_finds(self.expert, candidates, fine_shape)

    def details(self) -> list[str]:
        e = self.expert
        macs = f"{e.tile_macs / 1e9:,.2f} GMAC a tile" + (" (estimated from time)" if e.estimated else "")
        lines = [f"expert {e.name}: tiles of {e.tile} px with {e.context} px of context at 1/{e.downsample}, {macs}"]
        lines += [] if self.routes is None else self.routes.lines()
        return lines + ([] if self.forecast is None else self.forecast.lines())


register_refiner(ExpertRefiner.kind, ExpertRefiner.load)
