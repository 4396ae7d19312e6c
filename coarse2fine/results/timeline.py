"""When an analysis did what: its steps, its waiting for pixels, and the threads that decoded them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coarse2fine.tiling.stats import Span

# Apart for colour-blind people, too.
_STEPS = {"scan": "#0072b2", "choose": "#e69f00", "refine": "#009e73", "audit": "#cc79a7", "conclude": "#777777"}
_WAITING, _DECODING = "#d55e00", "#56b4e9"


@dataclass(frozen=True)
class Timeline:
    """Times of one analysis, in seconds from its start.

    Parameters
    ----------
    steps : tuple of (str, float, float)
        Names of the steps in order, with their start and end.
    spans : tuple of Span
        Times of decoding and of waiting for pixels.
    """

    steps: tuple[tuple[str, float, float], ...]
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, steps: Sequence[tuple[str, float, float]], spans: Sequence[Span]) -> Timeline:
        """From times by `time.perf_counter`; it begins with the first step."""
        first = steps[0][1]
        return cls(
            tuple((name, start - first, end - first) for name, start, end in steps),
            tuple(Span(s.kind, s.thread, s.start - first, s.end - first) for s in spans if s.start >= first),
        )

    def __str__(self) -> str:
        lines = [f"{'step':<9}{'seconds':>9}{'waited':>9}{'decoded':>9}  (decoding: sum over threads)"]
        for name, start, end in self.steps:
            waited, decoded = (self._within(kind, start, end) for kind in ("wait", "decode"))
            lines.append(f"{name:<9}{end - start:>9.2f}{waited:>9.2f}{decoded:>9.2f}")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the steps, the waiting and each decoding thread as lanes over time; returns the path.

        Parameters
        ----------
        path : path
            A PNG, SVG or PDF file.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (slow)
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.patches import Patch  # noqa: PLC0415

        threads = sorted({s.thread for s in self.spans if s.kind == "decode"})
        figure = Figure(figsize=(10, 1.6 + 0.3 * len(threads)), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, start, end in self.steps:
            axes.broken_barh([(start, end - start)], (-0.4, 0.8), color=_STEPS.get(name))
        waits = [(s.start, s.end - s.start) for s in self.spans if s.kind == "wait"]
        axes.broken_barh(waits, (0.6, 0.8), color=_WAITING)
        for lane, thread in enumerate(threads, 2):
            times = [(s.start, s.end - s.start) for s in self.spans if s.kind == "decode" and s.thread == thread]
            axes.broken_barh(times, (lane - 0.4, 0.8), color=_DECODING)
        names = ["steps", "waiting for pixels", *(f"decoding, thread {n + 1}" for n in range(len(threads)))]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.spines[["top", "right"]].set_visible(False)
        shown = [Patch(color=_STEPS.get(name), label=name) for name, _, _ in self.steps]
        figure.legend(handles=shown, loc="outside upper left", ncols=len(shown), frameon=False)
        target = Path(path)
        figure.savefig(target)
        return target

    def _within(self, kind: str, start: float, end: float) -> float:
        return sum(s.end - s.start for s in self.spans if s.kind == kind and start <= s.start < end)
