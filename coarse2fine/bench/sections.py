"""Report of a benchmark in sections: figures by name, one table per section."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.bench.report import summary
from coarse2fine.results.json_file import write_json

_WIDTH = 118
_PACKAGES = ("torch", "numpy", "scipy", "zarr", "dask", "distributed", "tifffile", "imagecodecs", "tensorstore")


@dataclass(frozen=True)
class Section:
    """Figures of one part of a benchmark.

    Parameters
    ----------
    title : str
    figures : mapping
        Numbers by "row/column"; a row's name may have slashes in it.
    notes : sequence of str
        Omissions and unusual conditions.
    """

    title: str
    figures: Mapping[str, float]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        places = [name.rpartition("/") for name in self.figures]
        columns, rows = (list(dict.fromkeys(place[i] for place in places)) for i in (2, 0))
        found = [["", *columns]]
        for row in rows:
            values = (self.figures.get(f"{row}/{column}") for column in columns)
            found.append([row, *("" if value is None else _shown(value) for value in values)])
        widths = [max(map(len, column)) for column in zip(*found, strict=True)]
        lines = ["  ".join(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True)) for row in found]
        named = (f"  {row[0]:<{widths[0]}}  {line}".rstrip() for row, line in zip(found, lines, strict=True))
        return "\n".join([self.title, *(named if rows else ())])


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


@dataclass(frozen=True)
class SectionReport:
    """All sections, with the parameters to repeat them.

    Parameters
    ----------
    benchmark : str
    sections : sequence of Section
    seeds : sequence of int
    parameters : mapping
        JSON values.
    explained : sequence of str
        Description of the measurements.
    notes : sequence of str
        Notes besides those of the sections.
    """

    benchmark: str
    sections: Sequence[Section]
    seeds: Sequence[int]
    parameters: Mapping[str, Any]
    explained: Sequence[str]
    notes: Sequence[str] = ()

    def figures(self) -> dict[str, float]:
        """Numbers of all sections by name."""
        return {name: float(value) for section in self.sections for name, value in section.figures.items()}

    def all_notes(self) -> list[str]:
        """The notes of all sections, each once."""
        return list(dict.fromkeys([*self.notes, *(note for section in self.sections for note in section.notes)]))

    def __str__(self) -> str:
        lines = [f"{section}\n" for section in self.sections]
        for text in (*self.explained, *(f"note: {note}" for note in self.all_notes())):
            lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
        return "\n".join(lines)

    def save(self, json: Path) -> Path:
        """Write the figures to `json`, whose folder must exist."""
        record = summary(self.benchmark, self.figures(), self.seeds, self.parameters, self.all_notes(), _PACKAGES)
        return write_json(json, record | {"explained": list(self.explained), "printed": str(self).splitlines()})


def compared(name: str, these: Sequence[float], those: Sequence[float]) -> dict[str, float]:
    """Ratio of the medians of two interleaved series, and the quartiles, "..._q1" and "..._q3", of rounds' ratios."""
    a, b = np.asarray(these, dtype=np.float64), np.asarray(those, dtype=np.float64)
    low, high = np.percentile(a / b, (25, 75)).tolist()
    return {name: float(np.median(a) / np.median(b)), f"{name}_q1": low, f"{name}_q3": high}
