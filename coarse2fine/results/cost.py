"""Cost of an analysis, and of the exhaustive pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Saving below which nothing is said to be saved: a small image's scan may cost as much as it saves.
_LEAST_SAVED = 1.05


@dataclass(frozen=True)
class Cost:
    """Cost of one analysis; multiply-adds include the scan and every halo.

    Naming finds is counted apart, in `classify_macs`: it depends on the number of finds and not on how they were found,
    so that it is no part of shares and budgets.

    Parameters
    ----------
    scan_macs, refine_macs, audit_macs : int
        Multiply-adds of the base on the whole image (and, for a model without labels, of its sample), of the refine
        net on the chosen windows, and of the audit.
    exhaustive_macs : int
        Multiply-adds of the refine net on every cell, including the halos of the exhaustive pass's windows. A model
        without labels compares each cell with a sample of the image: scan, sample and columns are then included. If the
        analysis was the exhaustive pass, its own multiply-adds, with those of specialists.
    cells, cells_refined : int
        Number of cells of the image, and of those refined.
    scan_seconds, choose_seconds, refine_seconds, audit_seconds, conclude_seconds : float
        Wall-clock time of each step.
    chunks, bytes : int
        Stored chunks decoded, and their decoded size.
    fetched : int
        Stored bytes read from the file or the network, if the reader counts them.
    decode_seconds : float
        Time of fetching and decoding, summed over threads: mostly beside the nets.
    wait_seconds : float
        Part of the steps' time in which they waited for pixels.
    classify_macs : int
        Multiply-adds of the classifier on the finds.
    """

    scan_macs: int
    refine_macs: int
    audit_macs: int
    exhaustive_macs: int
    cells: int
    cells_refined: int
    scan_seconds: float
    choose_seconds: float
    refine_seconds: float
    audit_seconds: float
    conclude_seconds: float
    chunks: int
    bytes: int
    fetched: int
    decode_seconds: float = 0.0
    wait_seconds: float = 0.0
    classify_macs: int = 0

    @property
    def macs(self) -> int:
        """Multiply-adds of scan, refinement and audit."""
        return self.scan_macs + self.refine_macs + self.audit_macs

    @property
    def seconds(self) -> float:
        """Total wall-clock time."""
        looking = self.scan_seconds + self.choose_seconds + self.refine_seconds + self.audit_seconds
        return looking + self.conclude_seconds

    @property
    def share(self) -> float:
        """Cost as a share of the exhaustive pass's."""
        return self.macs / self.exhaustive_macs

    @property
    def saved(self) -> float:
        """Share of the exhaustive pass's multiply-adds that were saved; negative if more were spent."""
        return 1.0 - self.share

    @property
    def speedup(self) -> float:
        """Ratio of the exhaustive pass's multiply-adds to those spent."""
        return self.exhaustive_macs / max(self.macs, 1)  # nothing was spent if Ctrl-C came at once

    @property
    def saved_text(self) -> str:
        """How much less was spent than by the exhaustive pass, in words."""
        return saved_in_words(self.speedup)

    def __str__(self) -> str:
        names = f", and {self.classify_macs / 1e9:,.1f} GMAC for names" if self.classify_macs else ""
        return (
            f"{self.macs / 1e9:,.1f} GMAC{names}, {self.share:.1%} of the exhaustive pass ({self.saved_text}); "
            f"{self.cells_refined:,} of {self.cells:,} cells refined ({self.cells_refined / self.cells:.2%}); "
            f"{self.seconds:.1f} s; {self.chunks:,} chunks, {self.bytes / 1e6:,.0f} MB decoded"
        )


class Clock:
    """Stopwatch of the steps.

    Attributes
    ----------
    steps : list of (str, float, float)
        Names of the steps, with their start and end by `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[str, float, float]] = []

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.steps.append((step, start, time.perf_counter()))

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each step, by the names of `Cost`'s fields."""
        return {f"{step}_seconds": end - start for step, start, end in self.steps}


def saved_in_words(speedup: float) -> str:
    """How much less was spent than by an exhaustive pass, from the ratio of the two costs."""
    return f"{speedup:.1f}x less" if speedup >= _LEAST_SAVED else "nothing saved"
