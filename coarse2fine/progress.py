"""Progress of long work: bars on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console

_PLAIN_EVERY = 10.0


class Progress:
    """Bars for the steps of one piece of work; a context manager.

    Parameters
    ----------
    shown : bool
        Whether to show anything at all.
    """

    def __init__(self, shown: bool) -> None:
        self._plain = shown and not sys.stderr.isatty()
        self._bars: progress.Progress | None = None
        if shown and not self._plain:
            self._bars = progress.Progress(
                progress.TextColumn("{task.description:>20}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def task(self, name: str) -> Callable[[int, int], None]:
        """Start a step; call what is returned with the work done and the work in all."""
        if self._bars:
            bars, identity = self._bars, self._bars.add_task(name, total=None)
            return lambda done, total: bars.update(identity, completed=done, total=total)
        return _plain_lines(name) if self._plain else _silent


def _silent(done: int, total: int) -> None:
    """Show nothing."""


def _plain_lines(name: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def tick(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= _PLAIN_EVERY:
            last = now
            print(f"{name}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return tick
