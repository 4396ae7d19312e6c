"""What the benchmark of reading says: a table a section, and a flat mapping of figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.bench.report import machine, versions
from coarse2fine.results.json_file import write_json

PACKAGES = ("numpy", "imagecodecs", "tifffile", "zarr", "dask", "openslide-python", "openslide-bin", "tensorstore")
_WIDTH = 118


@dataclass(frozen=True)
class Section:
    """One part of the benchmark.

    Parameters
    ----------
    title : str
    lines : tuple of str
        Its table.
    figures : mapping
        Numbers by name.
    notes : tuple of str
        What was left out or is out of the ordinary.
    """

    title: str
    lines: tuple[str, ...]
    figures: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class IoReport:
    """All sections, and what is needed to repeat them.

    Parameters
    ----------
    sections : tuple of Section
    seed : int
    parameters : mapping
        JSON values.
    explained : tuple of str
        What was measured, and how.
    notes : tuple of str
    benchmark : str
        Its name.
    packages : tuple of str
        Of which the versions are told.
    """

    sections: tuple[Section, ...]
    seed: int
    parameters: Mapping[str, Any]
    explained: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    benchmark: str = "io"
    packages: tuple[str, ...] = PACKAGES

    def figures(self) -> dict[str, float]:
        """Numbers of all sections by name."""
        return {name: value for section in self.sections for name, value in section.figures.items()}

    def all_notes(self) -> tuple[str, ...]:
        """The notes of all sections, each once."""
        return tuple(dict.fromkeys([*self.notes, *(note for section in self.sections for note in section.notes)]))

    def __str__(self) -> str:
        lines: list[str] = []
        for section in self.sections:
            lines += [section.title, *(f"  {line}".rstrip() for line in section.lines), ""]
        for text in (*self.explained, *(f"note: {note}" for note in self.all_notes())):
            lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
        return "\n".join(lines)

    def save(self, json: Path) -> list[Path]:
        """Write the figures to `json`, whose folder must exist."""
        return [write_json(json, self.summary())]

    def summary(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "benchmark": self.benchmark,
            "figures": self.figures(),
            "seeds": [self.seed],
            "parameters": dict(self.parameters),
            "machine": machine(),
            "versions": versions(self.packages),
            "explained": list(self.explained),
            "notes": list(self.all_notes()),
        }


@dataclass(frozen=True)
class Ratio:
    """How two interleaved series compare.

    Parameters
    ----------
    value : float
        Ratio of the medians.
    low, high : float
        Quartiles of the ratios of the single rounds.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, these: Sequence[float], those: Sequence[float]) -> Ratio:
        """Compare series of one length, round by round."""
        a, b = np.asarray(these, dtype=np.float64), np.asarray(those, dtype=np.float64)
        low, high = np.percentile(a / b, (25, 75))
        return cls(float(np.median(a) / np.median(b)), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:5.2f} [{self.low:.2f}, {self.high:.2f}]"

    def figures(self, name: str) -> dict[str, float]:
        """By name, and its quartiles by "..._q1" and "..._q3"."""
        return {name: self.value, f"{name}_q1": self.low, f"{name}_q3": self.high}
