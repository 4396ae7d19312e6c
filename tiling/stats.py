"""Counters of the cost of reading."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Span:
    """Time that a thread spent on reading.

    Parameters
    ----------
    kind : {"decode", "wait"}
        Fetching and decoding of a chunk, or waiting for pixels that other threads read.
    thread : int
    start, end : float
        Seconds, by `time.perf_counter`.
    """

    kind: Literal["decode", "wait"]
    thread: int
    start: float
    end: float


@dataclass
class ReadStats:
    """Cost of reading so far; safe to update from several threads.

    Parameters
    ----------
    chunks : int
        Units decoded, repeats included.
    bytes : int
        Decoded bytes, after conversion to 8 bits.
    seconds : float
        Time spent fetching and decoding, summed over threads.
    fetched : int
        Stored bytes that came from the file or crossed the network, headers included. Formats that other
        libraries read (OpenSlide, tensorstore) are not counted.
    requests : int
        Separate reads of the file, or requests to the server.
    waited : float
        Time for which whoever needed pixels waited for them, in seconds.
    spans : list of Span, optional
        Takes each time of decoding and of waiting, while `recording`.
    """

    chunks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    fetched: int = 0
    requests: int = 0
    waited: float = 0.0
    spans: list[Span] | None = field(default=None, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, size: int, start: float) -> None:
        """Count a chunk that was decoded from `start`, by `time.perf_counter`, until now."""
        with self._lock:
            self.chunks += 1
            self.bytes += size
            self.seconds += self._spent("decode", start)

    def wait(self, start: float) -> None:
        """Count a wait for pixels from `start` until now."""
        with self._lock:
            self.waited += self._spent("wait", start)

    def _spent(self, kind: Literal["decode", "wait"], start: float) -> float:
        end = time.perf_counter()
        if self.spans is not None:
            self.spans.append(Span(kind, threading.get_ident(), start, end))
        return end - start

    @contextmanager
    def recording(self, wanted: bool) -> Iterator[list[Span] | None]:
        """A list that takes all spans until the context is left, if wanted."""
        self.spans = [] if wanted else None
        try:
            yield self.spans
        finally:
            self.spans = None

    def fetch(self, size: int) -> None:
        """Count one read of stored bytes."""
        with self._lock:
            self.fetched += size
            self.requests += 1

    def snapshot(self) -> ReadStats:
        """Copy the counters as they are now."""
        with self._lock:
            return ReadStats(self.chunks, self.bytes, self.seconds, self.fetched, self.requests, self.waited)

    def since(self, before: ReadStats) -> ReadStats:
        """Difference from an earlier copy."""
        now = self.snapshot()
        return ReadStats(
            now.chunks - before.chunks,
            now.bytes - before.bytes,
            now.seconds - before.seconds,
            now.fetched - before.fetched,
            now.requests - before.requests,
            now.waited - before.waited,
        )
