"""The result of an analysis."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.audit.result import Audit
from coarse2fine.models.firing import NO_FEATURE, feature_name
from coarse2fine.results.cost import Cost
from coarse2fine.results.exportable import Exportable
from coarse2fine.results.folder import (
    ANALYSIS,
    MAPS,
    OVERVIEW,
    REGIONS,
    THUMBNAIL,
    TILES,
    TILES_CSV,
    TIMING,
    WORLD_REGIONS,
    cost_json,
    read_result,
    timing_json,
)
from coarse2fine.results.json_file import write_json
from coarse2fine.results.notebook import notebook_html
from coarse2fine.results.overlays import encoded, read_overview, thumbnail
from coarse2fine.results.recorded_image import record_of
from coarse2fine.results.tables import write_csv, write_parquet
from coarse2fine.results.timeline import Timeline
from coarse2fine.terminal import printable
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.opening import ImageSource
from coarse2fine.tiling.writing.atomic import replacing

# Most labels that are printed, the commonest ones.
_LABELS = 16
_NAMED = 4
_PACKED_FROM = 50_000


@dataclass(frozen=True)
class Analysis(Exportable):
    """Result of an analysis: the finds in an image, the windows that were refined, and the cost.

    Parameters
    ----------
    image : Image
        The image, open; close it when done (or use the analysis as a context manager).
    regions : tuple of Region
        The finds in full-resolution pixels, the highest score first.
    interest : ndarray, float32, (cell height, cell width)
        Interest of each cell according to the scan, 0 to 1; empty (0, 0) after a fitted model's exhaustive pass,
        which needs no scan.
    plan : Plan
        The windows chosen, best first.
    refined : ndarray, bool, (cell height, cell width)
        Cells that were refined.
    cell : int
        Side of a cell in full-resolution pixels.
    cost : Cost
    audit : Audit or None
        Estimate of recall against the exhaustive pass; None if none was requested.
    complete : bool
        False if the work was interrupted (then the windows refined are the best of the plan) or something could
        not be read.
    failures : tuple of str
        Reasons why parts of the image could not be read, each once.
    provenance : mapping
        Model, parameters, versions; JSON values.
    timeline : Timeline or None
        When it did what, of ``analyze(..., profile=True)``; not saved.
    """

    cost: Cost
    audit: Audit | None
    complete: bool
    failures: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    timeline: Timeline | None = field(default=None, compare=False)

    def __enter__(self) -> Analysis:
        return self

    def __exit__(self, *_: object) -> None:
        self.image.close()

    def __repr__(self) -> str:
        state = "" if self.complete else ", incomplete"
        windows = f"{len(self.regions):,} found, {len(self.plan):,} windows{state}"
        return f"<Analysis {self.image.name!r}: {windows}, {self.cost.share:.1%} of the exhaustive pass>"

    def __str__(self) -> str:
        by_label = ", ".join(f"{n} {label}" for label, n in self._commonest) or "nothing"
        if (rest := len(self.labels) - _LABELS) > 0:
            by_label += f", and {rest} classes more"
        lines = [
            f"{self.image.name}: {self.image.width:,} x {self.image.height:,} px ({self.image.format})",
            f"found  {len(self.regions):,}: {by_label}",
            f"cost   {self.cost}",
        ]
        if self.kinds:
            lines += [f"       {self.named(label)}" for label in sorted(self.kinds)]
            lines.append(f"chosen {len(self.plan):,} windows, by rarity in this image")
        elif chosen := self.chosen_by:
            lead = ", ".join(f"{name} {share:.0%}" for name, share in list(chosen.items())[:_NAMED])
            lines.append(f"chosen {len(self.plan):,} windows; what fired most there in the scan: {lead}")
        if not self.kinds and (leaves := Counter(region.route[-1] for region in self.regions if region.route)):
            most = ", ".join(f"{count:,} by {leaf}" for leaf, count in leaves.most_common(_NAMED))
            others = ", ..." if len(leaves) > _NAMED else ""
            lines.append(f"read   {leaves.total():,} finds by {len(leaves)} specialists: {most}{others}")
        if self.audit is not None:
            lines.append(f"audit  {self.audit}")
        if not self.complete:
            planned = self.plan.covered()
            done = f"{int((planned & self.refined).sum()):,} cells of {int(planned.sum()):,} planned were refined"
            lines.append(f"incomplete: {done}")
        lines += [f"note   {note}" for note in self.notes]
        lines += [f"failed {failure}" for failure in self.failures]
        return "\n".join(map(printable, lines))

    @property
    def _commonest(self) -> list[tuple[str, int]]:
        """The commonest labels with their numbers, in alphabetical order."""
        order = sorted(self.labels.items(), key=lambda each: (-each[1], each[0]))
        return sorted(order[:_LABELS])

    def _repr_html_(self) -> str:
        """A small picture and the text, for notebooks."""
        try:
            picture = encoded(self._thumbnail(), ".jpg")
        except ImageError:  # the image is closed or missing
            picture = None
        return notebook_html(str(self).splitlines(), picture)

    @property
    def notes(self) -> tuple[str, ...]:
        """Differences from the model's images in how this one was read, and repairs of its pixels.

        Assumptions made on opening it are in `image.notes`.
        """
        return tuple(self.provenance.get("notes", ()))

    @cached_property
    def overview(self) -> tuple[NDArray[np.uint8], int]:
        """The whole image at a size fit for a page, and its downsample; read once."""
        return read_overview(self.image)

    @property
    def kinds(self) -> dict[str, dict[str, Any]]:
        """Traits and an example of each label that is an unnamed kind; see `coarse2fine.steps.traits`."""
        return dict(self.provenance.get("kinds", {}))

    def named(self, label: str) -> str:
        """A label, with its traits if it is an unnamed kind, such as ``"kind 6 (darker, smoother)"``."""
        traits = self.kinds.get(label, {}).get("traits")
        return f"{label} ({traits})" if traits else label

    @property
    def chosen_by(self) -> dict[str, float]:
        """Share of the windows in which each feature fired strongest, the largest first."""
        if self.plan.fired is None or not len(self.plan):
            return {}
        features, counts = np.unique(self.plan.fired[:, 0], return_counts=True)
        shares = sorted(zip(counts.tolist(), features.tolist(), strict=True), reverse=True)
        return {feature_name(f): count / len(self.plan) for count, f in shares if f != NO_FEATURE}

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the chosen windows, the finds, and the place with the most finds at full resolution.

        Parameters
        ----------
        path : path
            A PNG, PDF or SVG file, by its suffix.
        """
        from coarse2fine.results.figure import Picture  # noqa: PLC0415 (matplotlib is slow to import)

        target = Path(path)
        kinds = {label: (each["traits"], each["example"]) for label, each in self.kinds.items()}
        parts = (self.image, self.overview, self.interest, self.plan, self.cell, self.regions, self._title(), kinds)
        picture = Picture(*parts)
        with replacing(target) as temporary:
            picture.save(temporary, target.suffix.lstrip(".").lower())
        return target

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write everything into a folder, which is created if it is missing.

        ``analysis.json`` (provenance, parameters, cost), ``tiles.parquet`` and ``tiles.csv`` (the windows),
        ``regions.geojson`` (the finds, for QuPath), ``regions_world.geojson`` (in world coordinates, for a
        georeferenced image), ``maps.ome.zarr`` (maps and labels), ``overview.png``, ``thumbnail.jpg`` and
        ``timing.json``. With more than 50,000 regions the GeoJSON is gzipped (``.geojson.gz``). Equal analyses write
        equal files, except ``timing.json``. Each file is written completely or not at all, ``analysis.json`` last;
        files of other names are not touched.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / ANALYSIS).unlink(missing_ok=True)  # without it the folder is not a complete result
        table = self.tiles_table
        write_parquet(target / TILES, table)
        write_csv(target / TILES_CSV, table)
        self._save_regions(target)
        self.to_ome_zarr(target / MAPS)
        self.plot(target / OVERVIEW)
        with replacing(target / THUMBNAIL) as temporary:
            temporary.write_bytes(encoded(self._thumbnail(), ".jpg"))
        write_json(target / TIMING, timing_json(self.cost))
        write_json(target / ANALYSIS, self.summary())
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str], image: ImageSource | None = None) -> Analysis:
        """Read a saved analysis back.

        Parameters
        ----------
        folder : path
        image : path, ndarray or Image, optional
            The image, if it was moved or was an array. By default it is opened at its recorded place, and only when
            pixels are needed, so a result can be loaded without its image.

        Raises
        ------
        FileNotFoundError
            If the folder holds no complete result.
        ImageError
            If `image` cannot be opened, or its shape is not that of the result.
        ValueError
            If files of the result are damaged, missing or from another program.
        """
        return cls(**read_result(Path(folder), image))

    def summary(self) -> dict[str, Any]:
        """Everything except maps, pixels and what differs from run to run, as JSON values."""
        return {
            "image": record_of(self.image),
            "regions": len(self.regions),
            "labels": self.labels,
            "windows": len(self.plan),
            "chosen_by": self.chosen_by,
            "cells": {"side": self.cell, "shape": list(self.refined.shape), "scanned": bool(self.interest.size)},
            "audit": None if self.audit is None else self.audit.to_json(),
            "complete": self.complete,
            "failures": list(self.failures),
            "cost": cost_json(self.cost),
            **self.provenance,
        }

    def _thumbnail(self) -> NDArray[np.uint8]:
        return thumbnail(*self.overview, self.interest, self.cell, self.regions)

    def _save_regions(self, folder: Path) -> None:
        packed = ".gz" if len(self.regions) > _PACKED_FROM else ""
        names = [REGIONS] if self.image.geo is None else [REGIONS, WORLD_REGIONS]
        for name in names:
            self.to_geojson(folder / f"{name}{packed}", world=name == WORLD_REGIONS)
        for name in (REGIONS, WORLD_REGIONS):
            for ending in ("", ".gz"):
                if name not in names or ending != packed:  # from an earlier result
                    (folder / f"{name}{ending}").unlink(missing_ok=True)

    def _title(self) -> str:
        name = self.image.name.encode("utf-8", "replace").decode()  # a file's name need not be Unicode
        return (
            f"{name}: {len(self.regions):,} found, {self.cost.cells_refined / self.cost.cells:.2%} of the "
            f"cells refined, compute: {self.cost.saved_text}"
        )
