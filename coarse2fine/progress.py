"""Progress of long work: bars on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich import progress
from rich.console import Console

from coarse2fine.terminal import printable, say

_PLAIN_EVERY = 10.0


class Steps(Protocol):
    """Who is told how far each step of a piece of work is."""

    def task(self, name: str) -> Callable[[int, int], None]:
        """Start a step; call what is returned with the work done and the work in all."""


class _Shown:
    """Bars while a context lasts, if there are any."""

    _bars: progress.Progress | None = None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()


def _bars(name: progress.TextColumn) -> progress.Progress:
    """Bars with the name, how far it is, and how long it took and will take."""
    return progress.Progress(
        name,
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class Progress(_Shown):
    """Bars for the steps of one piece of work; a context manager.

    Parameters
    ----------
    shown : bool
        Whether to show anything at all.
    """

    def __init__(self, shown: bool) -> None:
        self._plain = shown and not sys.stderr.isatty()
        if shown and not self._plain:
            self._bars = _bars(progress.TextColumn("{task.description:>20}"))

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
            say(f"{name}: {done:,} of {total:,}", file=sys.stderr)

    return tick


class BatchProgress(_Shown):
    """A bar for a batch and one for each image that is being worked on; a context manager.

    Elsewhere than on a terminal, a line for each image that is done.

    Parameters
    ----------
    shown : bool
        Whether to show anything at all.
    total : int
        Images of the batch.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        self._shown, self._total, self._done = shown, total, 0
        self._images: dict[str, progress.TaskID] = {}
        self._lock = threading.Lock()
        if shown and sys.stderr.isatty():
            self._bars = _bars(progress.TextColumn("{task.description:>28}", markup=False))
            self._batch = self._bars.add_task("images", total=total)

    def running(self, image: str, step: str, done: int, total: int) -> None:
        """Tell how far a step of an image is; from any thread."""
        if self._bars is None:
            return
        text = printable(f"{image if len(image) <= 20 else image[:19] + '…'} {step}")
        with self._lock:
            if image not in self._images:
                self._images[image] = self._bars.add_task(text, total=total)
            self._bars.update(self._images[image], description=text, completed=done, total=total)

    def finished(self, image: str, line: str) -> None:
        """Tell that an image is done, and what became of it."""
        self._done += 1
        if self._bars is None:
            if self._shown:
                say(f"[{self._done:,}/{self._total:,}] {line}", file=sys.stderr)
            return
        with self._lock:
            if image in self._images:
                self._bars.remove_task(self._images.pop(image))
            self._bars.update(self._batch, completed=self._done)
            self._bars.console.print(printable(line), markup=False, highlight=False)

    def image(self, name: str) -> Steps:
        """Steps of one image that this process works on itself."""
        return _ImageSteps(self, name)


class _ImageSteps:
    def __init__(self, batch: BatchProgress, image: str) -> None:
        self._batch, self._image = batch, image

    def task(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self._batch.running(self._image, name, done, total)
