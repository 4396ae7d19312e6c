"""Counters of the cost of reading."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


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
    """

    chunks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    fetched: int = 0
    requests: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, chunks: int, size: int, seconds: float) -> None:
        """Count chunks that were decoded."""
        with self._lock:
            self.chunks += chunks
            self.bytes += size
            self.seconds += seconds

    def fetch(self, size: int) -> None:
        """Count one read of stored bytes."""
        with self._lock:
            self.fetched += size
            self.requests += 1

    def snapshot(self) -> ReadStats:
        """Copy the counters as they are now."""
        with self._lock:
            return ReadStats(self.chunks, self.bytes, self.seconds, self.fetched, self.requests)

    def since(self, before: ReadStats) -> ReadStats:
        """Difference from an earlier copy."""
        now = self.snapshot()
        return ReadStats(
            now.chunks - before.chunks,
            now.bytes - before.bytes,
            now.seconds - before.seconds,
            now.fetched - before.fetched,
            now.requests - before.requests,
        )
