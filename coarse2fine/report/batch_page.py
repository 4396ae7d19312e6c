"""One HTML page about a folder of results: the outcome of each image, and finds and cost of all."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from coarse2fine.audit.result import Audit
from coarse2fine.report.image_page import css_colours, recall_text, write_report
from coarse2fine.report.templates import render_page
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.folder import ANALYSIS, REPORT, THUMBNAIL, facts_of, pooled_audit, read_record, state_of
from coarse2fine.results.overlays import data_uri, encoded
from coarse2fine.terminal import printable
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.writing.atomic import replacing_stream

_BATCH = "batch.json"
_SHARDS = "batch-*-of-*.json"
_THUMBNAIL_SIDE = 144
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One image of a batch.

    Parameters
    ----------
    facts : mapping
        Its entry in ``batch.json``.
    link : str or None
        Relative address of its own page, or else of its folder.
    picture : str or None
        A data URI.
    recall : str
        Empty if unknown.
    """

    facts: Mapping[str, Any]
    link: str | None
    picture: str | None
    recall: str

    @property
    def labels(self) -> list[tuple[str, int]]:
        """Name and number of each class, the most frequent first."""
        return sorted(self.facts.get("labels", {}).items(), key=lambda item: (-item[1], item[0]))

    @property
    def failure(self) -> str:
        """The error; empty if there was none."""
        return str(self.facts.get("error", "")).removeprefix(f"{self.facts['source']}: ")


def write_folder_report(folder: str | os.PathLike[str], image: str | None = None) -> Path:
    """Write ``report.html`` for one result, or for a batch and each of its images.

    Parameters
    ----------
    folder : path-like
        Folder written by `Analysis.save`, or by ``coarse2fine analyze`` of many images.
    image : str, optional
        The image of a single result, if it was moved.

    Returns
    -------
    Path
        The page; for a batch, the one with links to the others.

    Raises
    ------
    FileNotFoundError
        If the folder holds no results.
    ImageError
        If `image` cannot be opened, or its shape is not that of the result.
    ValueError
        If an image is given for several results, or the record of a batch or a single result is damaged.
    """
    source = Path(folder)
    if (source / ANALYSIS).is_file():
        return _report(source, image)
    if image is not None:
        raise ValueError(f"{source} is no single result, but an image ({image}) was given; name the result's folder")
    for result in _results(source):
        try:
            _report(result)
        except (OSError, ValueError) as error:  # go on with the others
            _LOG.warning("%s has no page: %s", printable(result), printable(error))
    return write_batch_report(source)


def write_batch_report(folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into the folder of a batch; the images themselves are not read.

    Parameters
    ----------
    folder : path-like
        Holds ``batch.json``, or the records of a batch's shards, or at least folders of results.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileNotFoundError
        If the folder holds no results.
    """
    source = Path(folder)
    every = _facts(source)
    if not every:
        raise FileNotFoundError(f"{source} holds no results: expected {_BATCH}, or folders with {ANALYSIS} in them")
    rows = [_row(source, facts) for facts in every]
    done = [row.facts for row in rows if "macs" in row.facts]
    exhaustive = sum(facts["exhaustive_macs"] for facts in done)
    labels: Counter[str] = Counter()
    for facts in done:
        labels.update(facts["labels"])
    pooled = pooled_audit(done)
    page = render_page(
        "batch.html.j2",
        name=source.absolute().name,
        rows=rows,
        done=done,
        failed=[row for row in rows if row.failure],
        share=sum(facts["macs"] for facts in done) / max(exhaustive, 1),
        labels=labels.most_common(),
        colours=css_colours(labels),
        audit=None if pooled is None else pooled[0],
        recall=None if pooled is None else recall_text(pooled[0]),
        known=0 if pooled is None else pooled[1],
    )
    target = source / REPORT
    with replacing_stream(target) as stream:
        stream.write(page.encode("utf-8", "replace"))
    return target


def _results(folder: Path) -> Iterator[Path]:
    """Folders of results below a folder; hidden ones hold unfinished work."""
    for place, inner, names in os.walk(folder):
        inner[:] = [] if ANALYSIS in names else sorted(name for name in inner if not name.startswith("."))
        if ANALYSIS in names:
            yield Path(place)


def _report(folder: Path, image: str | None = None) -> Path:
    with Analysis.load(folder, image) as analysis:
        try:
            analysis.image.array()
        except ImageError as error:
            _LOG.warning("the page of %s has no pictures: %s", printable(folder), printable(error))
        return write_report(analysis, folder / REPORT)


def remove_shards(folder: Path) -> None:
    """Remove the records of a batch's shards, after a run of the whole batch."""
    for path in folder.glob(_SHARDS):
        path.with_suffix(".csv").unlink(missing_ok=True)
        path.unlink()


def _facts(folder: Path) -> list[Mapping[str, Any]]:
    """The most recent record of each image."""
    whole, shards = folder / _BATCH, sorted(folder.glob(_SHARDS), key=lambda path: path.stat().st_mtime_ns)
    if not (shards or whole.is_file()):
        found = sorted(path.parent for path in folder.glob(f"*/{ANALYSIS}"))
        return [_stored_facts(path) for path in found]
    # A run of the whole batch removes records of shards, so the shards there are more recent.
    said = {facts["name"]: facts for path in ([whole] if whole.is_file() else []) + shards for facts in _said(path)}
    return [said[name] for name in (sorted(said) if shards else said)]


def _said(path: Path) -> list[Mapping[str, Any]]:
    """The records of a batch or a shard."""
    try:
        results = json.loads(path.read_text("utf-8"))["results"]
        if all({"name", "source", "status"} <= facts.keys() for facts in results):
            return list(results)
    except (AttributeError, LookupError, TypeError, ValueError):
        pass
    raise ValueError(f"{path} is damaged, or was not written by coarse2fine; remove it, or run the same command again")


def _stored_facts(folder: Path) -> dict[str, Any]:
    try:
        record = read_record(folder)
        facts = facts_of(record)
        status, failure = state_of(facts)
        place = record["image"]["path"] or record["image"]["name"]
        return {"name": folder.name, "source": place, "status": status, "error": failure, **facts}
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:  # the page shows the others
        reason = f"the result cannot be read ({type(error).__name__}: {error}); analyse the image again"
        return {"name": folder.name, "source": str(folder), "status": "failed", "error": reason}


def _row(folder: Path, facts: Mapping[str, Any]) -> Row:
    result = folder / facts["name"]
    link = None
    if result.is_dir():
        link = quote(os.fsencode(facts["name"])) + (f"/{REPORT}" if (result / REPORT).is_file() else "/")
    recall = recall_text(Audit.from_json(facts["audit"])) if facts.get("audit") else ""
    return Row(facts, link, _thumbnail(result / THUMBNAIL), recall)


def _thumbnail(path: Path) -> str | None:
    """The thumbnail, at most 144 pixels wide and high, as a data URI."""
    if not path.is_file():
        return None
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
    if pixels is None:
        return None
    shrink = min(1.0, _THUMBNAIL_SIDE / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[1] * shrink)), max(1, round(pixels.shape[0] * shrink))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return data_uri(encoded(small, ".jpg", 80), ".jpg")
