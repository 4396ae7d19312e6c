"""The result of an analysis."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.account import Cost
from coarse2fine.audit import Audit
from coarse2fine.export import write_geojson, write_json
from coarse2fine.models.firing import NO_FEATURE
from coarse2fine.regions import Region
from coarse2fine.report import Picture
from coarse2fine.scan import feature_name
from coarse2fine.select import Plan
from coarse2fine.tiling.image import Image

_NAMED = 4


@dataclass(frozen=True)
class Analysis:
    """What was found in an image, where it was sought, and what that cost.

    Parameters
    ----------
    image : Image
        The image, open; close it when done (or use the analysis as a context manager).
    regions : tuple of Region
        The finds in full-resolution pixels, the surest first.
    interest : ndarray, float32, (cell height, cell width)
        What the scan expected of each cell; empty (0, 0) after a fitted model's exhaustive pass, which needs no
        scan.
    plan : Plan
        The windows chosen, best first.
    refined : ndarray, bool, (cell height, cell width)
        Cells that were refined.
    cell : int
        Side of a cell in full-resolution pixels.
    cost : Cost
        The account.
    audit : Audit or None
        What is known of recall against the exhaustive pass; None where that was not asked for.
    complete : bool
        False where the work was interrupted (then the windows refined are the best of the plan) or something could
        not be read.
    failures : tuple of str
        Why parts of the image could not be read, each reason once.
    provenance : mapping
        Model, parameters, versions; JSON values.
    """

    image: Image
    regions: tuple[Region, ...]
    interest: NDArray[np.float32]
    plan: Plan
    refined: NDArray[np.bool_]
    cell: int
    cost: Cost
    audit: Audit | None
    complete: bool
    failures: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Analysis:
        return self

    def __exit__(self, *_: object) -> None:
        self.image.close()

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for region in self.regions:
            counts[region.label] = counts.get(region.label, 0) + 1
        by_label = ", ".join(f"{n} {label}" for label, n in sorted(counts.items())) or "nothing"
        height, width = self.image.height, self.image.width
        lines = [
            f"{self.image.name}: {width:,} x {height:,} px ({self.image.format})",
            f"found  {len(self.regions):,}: {by_label}",
            f"cost   {self.cost}",
        ]
        if chosen := self._chosen_by():
            lead = ", ".join(f"{name} {share:.0%}" for name, share in list(chosen.items())[:_NAMED])
            lines.append(f"chosen {len(self.plan):,} windows, by {lead}")
        if self.audit is not None:
            lines.append(f"audit  {self.audit}")
        if not self.complete:
            done = f"{self.cost.cells_refined:,} cells of {int(self.plan.covered().sum()):,} planned were refined"
            lines.append(f"incomplete: {done}")
        lines += [f"failed {failure}" for failure in self.failures]
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw where it was sought, what was found, and the busiest place at full resolution.

        Parameters
        ----------
        path : path
            A PNG, PDF or SVG file.
        """
        picture = Picture(self.image, self.interest, self.plan, self.cell, self.regions, self._title())
        return picture.save(Path(path))

    def to_geojson(self, path: str | os.PathLike[str]) -> Path:
        """Write the regions as GeoJSON that QuPath opens; gzipped where the name ends in ``.gz``."""
        return write_geojson(path, self.regions)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``analysis.json``, ``regions.geojson`` and ``overview.png`` into a folder, made where needed."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.to_geojson(target / "regions.geojson")
        write_json(target / "analysis.json", self.summary())
        self.plot(target / "overview.png")
        return target

    def summary(self) -> dict[str, Any]:
        """All but maps and pixels, as JSON values."""
        cost = self.cost
        return {
            "image": {
                "name": self.image.name,
                "path": self.image.location,
                "format": self.image.format,
                "shape": list(self.image.shape),
                "mpp": self.image.mpp,
                "value_range": self.image.value_range,
                "notes": list(self.image.notes),
            },
            "regions": len(self.regions),
            "windows": len(self.plan),
            "chosen_by": self._chosen_by(),
            "audit": None if self.audit is None else self.audit.to_json(),
            "complete": self.complete,
            "failures": list(self.failures),
            "cost": {
                **{name: getattr(cost, name) for name in cost.__dataclass_fields__},
                "macs": cost.macs,
                "share": cost.share,
                "saved": cost.saved,
                "speedup": cost.speedup,
                "seconds": cost.seconds,
            },
            **self.provenance,
        }

    def _chosen_by(self) -> dict[str, float]:
        """Share of the windows in which each feature fired strongest, the largest first."""
        if self.plan.fired is None or not len(self.plan):
            return {}
        features, counts = np.unique(self.plan.fired[:, 0], return_counts=True)
        shares = sorted(zip(counts.tolist(), features.tolist(), strict=True), reverse=True)
        return {feature_name(f): count / len(self.plan) for count, f in shares if f != NO_FEATURE}

    def _title(self) -> str:
        return (
            f"{self.image.name}: {len(self.regions):,} found, {self.cost.cells_refined / self.cost.cells:.2%} of the "
            f"cells refined, {self.cost.speedup:.1f}x less compute"
        )
