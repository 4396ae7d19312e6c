"""Progress of long work: bars on a terminal, otherwise a plain line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, Self

from rich import progress
from rich.console import Console

from coarse2fine.terminal import printable, say

Tick = Callable[[int, int], None]


_PLAIN_EVERY = 10.0
# The time left is estimated only after this share of the whole.
_TELLING = 0.02
# Share of the time for a step that was not expected: mostly cascade stages, tried only if the scan costs much.
_UNEXPECTED = 0.1


@dataclass(frozen=True)
class Moment:
    """How far a piece of work is.

    Parameters
    ----------
    step : str
        Name of the current step.
    done, total : int
        Work of that step.
    share : float or None
        Share of the whole that is done, in time, 0 to 1; None if the steps to come are unknown.
    seconds_left : float or None
        Estimate for the whole; None while unknown.
    """

    step: str
    done: int
    total: int
    share: float | None = None
    seconds_left: float | None = None


_LISTENER: ContextVar[Callable[[Moment], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[Moment], None]) -> Iterator[None]:
    """Call `listener` with every progress that a `Progress` made in this context has, shown or not."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class Steps(Protocol):
    """Receiver of the progress of each step of a piece of work."""

    def task(self, name: str) -> Callable[[int, int], None]:
        """Start a step; the callback takes the work done and the total work."""


class _Shown:
    """Context manager that shows bars, if there are any."""

    _bars: progress.Progress | None = None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()


def _bars(name: progress.TextColumn) -> progress.Progress:
    """Bars with name, count, time elapsed and time left."""
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
    expected : sequence of tuple of str and float
        Steps to come, in order, with their usual shares of the time: with them, the progress of the whole and the
        time left are shown too. A name may occur several times.
    """

    def __init__(self, shown: bool, expected: Sequence[tuple[str, float]] = ()) -> None:
        self._plain = shown and not sys.stderr.isatty()
        self._listener = _LISTENER.get()
        self._whole = _Whole(expected) if (shown or self._listener) and expected else None
        if shown and not self._plain:
            self._bars = _bars(progress.TextColumn("{task.description:>20}"))
            if self._whole:
                self._all = self._bars.add_task("in all", total=1.0)

    def task(self, name: str) -> Callable[[int, int], None]:
        """Start a step; the callback takes the work done and the total work."""
        step = self._whole.step(name) if self._whole else None
        tick = self._shown_tick(name, step)
        return tick if self._listener is None else _heard(self._listener, name, step, tick)

    def _shown_tick(self, name: str, step: _Step | None) -> Tick:
        if self._plain:
            return _plain_lines(name, step)
        if self._bars is None:
            return _silent if step is None else step
        bars, identity = self._bars, self._bars.add_task(name, total=None)

        def tick(done: int, total: int) -> None:
            bars.update(identity, completed=done, total=total)
            if step is not None:
                step(done, total)
                bars.update(self._all, description=f"in all{step.left_text}", completed=step.share_done)

        return tick


class _Whole:
    """Progress of several steps together."""

    def __init__(self, expected: Sequence[tuple[str, float]]) -> None:
        self._names = [name for name, _ in expected]
        self._shares = [share for _, share in expected]
        self._done = [0.0] * len(expected)
        self._begun = 0  # steps before this one have begun or were skipped
        self._start = time.monotonic()

    def step(self, name: str) -> _Step:
        """The next step of that name; one that was not expected is inserted with a small share."""
        if name in self._names[self._begun :]:
            number = self._names.index(name, self._begun)
            # Steps in between are skipped this time.
            self._done[self._begun : number] = [1.0] * (number - self._begun)
        else:
            number = self._begun
            self._names.insert(number, name)
            self._shares.insert(number, _UNEXPECTED * sum(self._shares))
            self._done.insert(number, 0.0)
        self._begun = number + 1
        return _Step(self, number)

    def update(self, number: int, share: float) -> None:
        """Set the share of a step that is done."""
        self._done[number] = share

    @property
    def share_done(self) -> float:
        """Share of the whole that is done, in time."""
        return sum(a * b for a, b in zip(self._shares, self._done, strict=True)) / sum(self._shares)

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the time taken so far; None while too little is done."""
        done = self.share_done
        return self.seconds * (1 - done) / done if done > _TELLING else None

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._start


class _Step:
    """One step of a whole."""

    def __init__(self, whole: _Whole, number: int) -> None:
        self._whole, self._number = whole, number

    def __call__(self, done: int, total: int) -> None:
        self._whole.update(self._number, done / total if total else 1.0)

    @property
    def share_done(self) -> float:
        return self._whole.share_done

    @property
    def seconds_left(self) -> float | None:
        return self._whole.seconds_left

    @property
    def left_text(self) -> str:
        """Time left of the whole, and all of it, in words; empty while unknown."""
        left = self._whole.seconds_left
        if left is None:
            return ""
        return f", about {duration(left)} left of {duration(left + self._whole.seconds)}"


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _silent(done: int, total: int) -> None:
    """Show nothing."""


def _heard(listener: Callable[[Moment], None], name: str, step: _Step | None, tick: Tick) -> Tick:
    def told(done: int, total: int) -> None:
        tick(done, total)
        whole = (None, None) if step is None else (step.share_done, step.seconds_left)
        listener(Moment(name, done, total, *whole))

    return told


def _plain_lines(name: str, step: _Step | None) -> Callable[[int, int], None]:
    last = time.monotonic()

    def tick(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if step is not None:
            step(done, total)
        if done == total or now - last >= _PLAIN_EVERY:
            last = now
            whole = "" if step is None else f" ({step.share_done:.0%} in all{step.left_text})"
            say(f"{name}: {done:,} of {total:,}{whole}", file=sys.stderr)

    return tick


class BatchProgress(_Shown):
    """A bar for a batch and one for each image in work; a context manager.

    If standard error is no terminal, a line for each finished image instead.

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
        """Set the progress of a step of an image; from any thread."""
        if self._bars is None:
            return
        text = printable(f"{image if len(image) <= 20 else image[:19] + '…'} {step}")
        with self._lock:
            if image not in self._images:
                self._images[image] = self._bars.add_task(text, total=total)
            self._bars.update(self._images[image], description=text, completed=done, total=total)

    def finished(self, image: str, line: str) -> None:
        """Count an image as done and show its line."""
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
        """Steps of one image that is analysed in this process."""
        return _ImageSteps(self, name)


class _ImageSteps:
    def __init__(self, batch: BatchProgress, image: str) -> None:
        self._batch, self._image = batch, image

    def task(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self._batch.running(self._image, name, done, total)
