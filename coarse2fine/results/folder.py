"""The folder of a result: names of its files, and reading them back."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coarse2fine._version import __version__, versions
from coarse2fine.audit.result import Audit
from coarse2fine.model import Model
from coarse2fine.paths import image_suffixes
from coarse2fine.results.cost import Cost
from coarse2fine.results.geojson import read_regions
from coarse2fine.results.maps import read_maps
from coarse2fine.results.recorded_image import RecordedImage
from coarse2fine.results.tables import read_plan
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import ImageSource, open_image

ANALYSIS = "analysis.json"
"""Written last: a folder that holds it is a complete result."""
TIMING = "timing.json"
TILES, TILES_CSV = "tiles.parquet", "tiles.csv"
REGIONS, WORLD_REGIONS = "regions.geojson", "regions_world.geojson"
MAPS = "maps.ome.zarr"
OVERVIEW, THUMBNAIL = "overview.png", "thumbnail.jpg"
REPORT = "report.html"
NOT_ALWAYS = (REGIONS, f"{REGIONS}.gz", WORLD_REGIONS, f"{WORLD_REGIONS}.gz", REPORT)
"""Optional files of a result."""


# Seconds, and counts of reads, which depend on the cache, differ from run to run.
_SECONDS = tuple(f.name for f in dataclasses.fields(Cost) if f.type == "float")
_VARYING = (*_SECONDS, "chunks", "bytes", "fetched")
# Results of version 0.1 do not have these.
_LATER = ("decode_seconds", "wait_seconds", "classify_macs")
_KNOWN = {"image", "regions", "labels", "windows", "chosen_by", "cells", "audit", "complete", "failures", "cost"}


def read_result(folder: Path, image: ImageSource | None = None) -> dict[str, Any]:
    """Read a result back, by the names of an `Analysis`'s fields; see `Analysis.load`."""
    record = read_record(folder)
    try:
        return _stored(folder, record, image)
    except ImageError:
        raise
    except (ArithmeticError, EOFError, LookupError, OSError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(
            f"the result in {folder} cannot be read ({type(error).__name__}: {error}); analyse the image again"
        ) from error


def _stored(folder: Path, record: Mapping[str, Any], image: ImageSource | None) -> dict[str, Any]:
    interest, refined = read_maps(folder / MAPS)
    cell, scanned = record["cells"]["side"], record["cells"]["scanned"]
    return {
        "image": RecordedImage(record["image"]) if image is None else _given(image, record["image"]),
        "regions": read_regions(regions_file(folder)),
        "interest": interest if scanned else np.zeros((0, 0), np.float32),
        "plan": read_plan(folder / TILES, cell, refined.shape, scanned=scanned),
        "refined": refined,
        "cell": cell,
        "cost": _cost(record["cost"], folder / TIMING),
        "audit": None if record["audit"] is None else Audit.from_json(record["audit"]),
        "complete": record["complete"],
        "failures": tuple(record["failures"]),
        "provenance": {key: value for key, value in record.items() if key not in _KNOWN},
    }


def results_within(folder: Path) -> list[Path]:
    """Folders directly inside a folder that hold a result, as those of a batch."""
    return sorted(path.parent for path in folder.glob(f"*/{ANALYSIS}"))


def images_within(folder: Path) -> list[Path]:
    """The images directly in a folder, by their names' endings; none in what is left of a result."""
    if any((folder / name).exists() for name in (MAPS, OVERVIEW, THUMBNAIL)):
        return []
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(image_suffixes()))


def read_record(folder: Path) -> dict[str, Any]:
    """Content of a result's ``analysis.json``.

    Raises
    ------
    FileNotFoundError
        If the folder holds no complete result.
    ValueError
        If the file is damaged, or from another program.
    """
    path = folder / ANALYSIS
    if not path.is_file():
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}: expected the folder of a result")
        parts, remedy = results_within(folder), "analyse the image again"
        if parts:
            remedy = f"name one of the {len(parts):,} results in it, such as {parts[0]}"
        elif images := images_within(folder):
            remedy = f"it holds images: name one of them, such as {images[0]}"
        raise FileNotFoundError(f"{folder} holds no complete result ({ANALYSIS} is missing); {remedy}")
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); analyse the image again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} was not written by coarse2fine; analyse the image again")
    return record


def regions_file(folder: Path) -> Path:
    """File of a result's regions, compressed or not."""
    packed = folder / f"{REGIONS}.gz"
    return packed if packed.is_file() else folder / REGIONS


def provenance(model: Model, sha256: str | None, runtime: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Provenance of an analysis, as JSON values."""
    return {
        "model": {
            "name": model.name,
            "task": model.refiner.kind,
            "sha256": sha256,
            "geometry": dataclasses.asdict(model.geometry),
            **_output(model),
            **model.provenance,
            **({"bands": [_band(band) for band in model.others]} if model.others else {}),
        },
        "parameters": {**parameters, "runtime": runtime},
        "coarse2fine": __version__,
        "versions": versions(),
    }


def _band(model: Model) -> dict[str, Any]:
    """Provenance of a further band, or a further expert, of a model."""
    geometry = dataclasses.asdict(model.geometry)
    return {"geometry": geometry, "threshold": model.threshold, **_output(model), **model.provenance}


def _output(model: Model) -> dict[str, Any]:
    """Name and labels of what an expert finds, if it has a name."""
    return {"output": model.output, "labels": [label.name for label in model.refiner.labels]} if model.output else {}


def cost_json(cost: Cost) -> dict[str, Any]:
    """The account as JSON values, without what differs from run to run."""
    kept = {f.name: getattr(cost, f.name) for f in dataclasses.fields(cost) if f.name not in _VARYING}
    return {**kept, "macs": cost.macs, "share": cost.share, "saved": cost.saved, "speedup": cost.speedup}


def timing_json(cost: Cost) -> dict[str, Any]:
    """The part of the cost that differs from run to run: seconds, and counts of reads."""
    return {"seconds": cost.seconds, **{name: getattr(cost, name) for name in _VARYING}}


def facts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a result that a batch adds up, without times.

    Parameters
    ----------
    record : mapping
        See `read_record`, or `Analysis.summary`.
    """
    return {
        "shape": record["image"]["shape"],
        "regions": record["regions"],
        "labels": dict(sorted(record["labels"].items())),
        **{name: record["cost"][name] for name in ("macs", "exhaustive_macs", "share", "cells", "cells_refined")},
        **{name: record[name] for name in ("complete", "failures")},
        **{name: record[name] for name in ("notes", "audit") if record.get(name)},
    }


def state_of(facts: Mapping[str, Any]) -> tuple[Literal["done", "damaged"], str]:
    """Whether an image with results could be read everywhere, and the error if not."""
    failures = facts["failures"]
    return ("damaged", f"parts cannot be read: {failures[0]}") if failures else ("done", "")


def _given(image: ImageSource, record: Mapping[str, Any]) -> Image:
    opened = open_image(image)
    if list(opened.shape) != record["shape"]:
        raise ImageError(
            f"{opened.name} is not the image of the result: expected {tuple(record['shape'])} "
            f"(height, width, channels), got {opened.shape}"
        )
    return opened


def _cost(record: Mapping[str, Any], timing: Path) -> Cost:
    varying = json.loads(timing.read_text("utf-8")) if timing.is_file() else dict.fromkeys(_VARYING, 0)
    names = (field.name for field in dataclasses.fields(Cost))
    known = dict.fromkeys(_LATER, 0) | dict(record) | {name: varying[name] for name in _VARYING if name in varying}
    return Cost(**{name: known[name] for name in names})


def pooled_audit(facts: Iterable[Mapping[str, Any]]) -> tuple[Audit, int] | None:
    """Recall over many images together, and the number of images it covers; None if nothing can be claimed.

    Images that were refined completely say nothing about images that were not sampled: if some are neither, and none
    was sampled, nothing is claimed.

    Parameters
    ----------
    facts : iterable of mapping
        One for each image that has results; "audit" as `Audit.to_json` writes it, or None, or missing.
    """
    every = [Audit.from_json(each["audit"]) if each.get("audit") else None for each in facts]
    audits = [audit for audit in every if audit is not None and audit.sampled]
    if not audits or (len(audits) < len(every) and not any(audit.blocks for audit in audits)):
        return None
    return Audit.pooled(audits, confidence=min(audit.confidence for audit in audits)), len(audits)
