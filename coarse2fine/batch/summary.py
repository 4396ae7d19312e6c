"""Outcome of a batch, as text, record and table."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from coarse2fine._version import __version__
from coarse2fine.audit.result import Audit
from coarse2fine.batch.job import Record
from coarse2fine.results.coco import write_results_coco
from coarse2fine.results.cost import saved_in_words
from coarse2fine.results.folder import ANALYSIS, pooled_audit
from coarse2fine.results.json_file import NOT_UNICODE, csv_cell, write_json
from coarse2fine.terminal import printable
from coarse2fine.tiling.writing.atomic import replacing_stream

_COLUMNS = ("name", "source", "status", "regions", "share", "complete", "error")

_NOTED = 5


@dataclass(frozen=True)
class BatchResult:
    """The outcome of each image of a batch.

    Parameters
    ----------
    records : tuple of Record
        In order of the input.
    out : Path
        Folder of the results.
    before : int
        Number of images finished by earlier runs.
    provenance : mapping
        Models, parameters, versions; JSON values.
    """

    records: tuple[Record, ...]
    out: Path
    before: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Record, ...]:
        """Images without complete results, and images with unreadable parts."""
        return tuple(record for record in self.records if record.status != "done")

    @property
    def ok(self) -> bool:
        """Whether every image is done, without unreadable parts."""
        return not self.failed

    @property
    def audit(self) -> Audit | None:
        """Recall over the images that were sampled or completely refined; None if none was sampled."""
        return None if self._pooled is None else self._pooled[0]

    @cached_property
    def _pooled(self) -> tuple[Audit, int] | None:
        return pooled_audit(record.facts for record in self.records if record.has_result)

    @property
    def regions(self) -> int:
        """Number of regions in all images."""
        return self._sum("regions")

    @property
    def share(self) -> float:
        """Multiply-adds as a share of the exhaustive pass's, over the images with results."""
        return self._sum("macs") / max(self._sum("exhaustive_macs"), 1)

    def _sum(self, name: str) -> int:
        return sum(record.facts[name] for record in self.records if record.has_result)

    def __str__(self) -> str:
        counts = Counter(record.status for record in self.records)
        done = counts.pop("done", 0)
        parts = [f"{done:,} done" + (f" ({self.before:,} of them by earlier runs)" if self.before else "")]
        parts += [f"{number:,} {status}" for status, number in sorted(counts.items())]
        lines = [f"{len(self.records):,} image(s): {', '.join(parts)}"]
        if any(record.has_result for record in self.records):
            cheaper = f" ({saved_in_words(1 / self.share)})" if self.share else ""
            lines.append(f"found  {self.regions:,}")
            lines.append(
                f"cost   {self._sum('macs') / 1e9:,.1f} GMAC, {self.share:.1%} of the exhaustive pass{cheaper}"
            )
        if self._pooled is not None:
            audit, number = self._pooled
            lines.append(f"audit  {audit}, over {number:,} of {len(self.records):,} image(s)")
        notes = Counter(note for record in self.records for note in record.facts.get("notes", ()))
        lines += [f"note   {note}, {number:,} image(s)" for note, number in notes.most_common(_NOTED)]
        if len(notes) > _NOTED:
            lines.append(f"note   {len(notes) - _NOTED:,} more in {self.out / 'batch.json'}")
        lines += [
            printable(f"{record.status} {record.source}: {record.error.removeprefix(f'{record.source}: ')}")
            for record in self.failed
            if record.error
        ]
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """The outcome as JSON values; the same in every run."""
        return {
            "coarse2fine": __version__,
            **self.provenance,
            "images": len(self.records),
            "statuses": dict(sorted(Counter(record.status for record in self.records).items())),
            "regions": self.regions,
            "labels": dict(sorted(self._labels().items())),
            "macs": self._sum("macs"),
            "exhaustive_macs": self._sum("exhaustive_macs"),
            "share": self.share,
            "audit": None if self._pooled is None else {**self._pooled[0].to_json(), "images": self._pooled[1]},
            "results": [record.to_json() for record in self.records],
        }

    def _labels(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for record in self.records:
            counts.update(record.facts.get("labels", {}))
        return counts

    def to_coco(self, path: str | os.PathLike[str]) -> Path:
        """Write the finds of all images as one COCO data set; see `coarse2fine.results.coco.write_coco`."""
        flat = (self.out / ANALYSIS).is_file()  # a single image's results lie in the folder itself
        names = [record.name for record in self.records if record.has_result]
        return write_results_coco(path, [self.out if flat else self.out / name for name in names])

    def save(self, name: str = "batch") -> list[Path]:
        """Write the record and the table into the results' folder."""
        record, table = self.out / f"{name}.json", self.out / f"{name}.csv"
        write_json(record, self.summary())
        with replacing_stream(table) as stream:
            stream.write(_table(self.records).encode("utf-8", NOT_UNICODE))
        return [record, table]


def _table(records: Iterable[Record]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: csv_cell(value) for name, value in record.to_json().items()})
    return text.getvalue()
