"""Thread pool for small nets: batches run in parallel, each on a single thread.

A convolution over a few hundred cells takes less time than waking the threads that would share it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

_MOST = 4
_LOCK = threading.Lock()
Result = TypeVar("Result")


class ThreadPool:
    """Threads in which torch uses no further threads.

    Parameters
    ----------
    count : int
        Number of threads; if 0, calls run at once in the caller's thread.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "lane") if count else None
        self._threads: list[threading.Thread] = []
        if self._pool is not None:
            threads, meeting = torch.get_num_threads(), threading.Barrier(count)
            try:
                self._threads = [each.result() for each in [self._pool.submit(_alone, meeting) for _ in range(count)]]
            except BaseException:
                # Ctrl-C, or a thread failed to start: release the others from the barrier.
                meeting.abort()
                self._pool.shutdown(wait=False)
                raise
            finally:
                # Restore the setting: new threads take over the last value set in any thread.
                torch.set_num_threads(threads)

    @classmethod
    def beside(cls, tensor: Tensor) -> ThreadPool:
        """The shared pool for computations on a tensor's device.

        It has as many threads as torch, at most 4; none if torch has only one, or if the device is not the CPU.
        """
        count = min(torch.get_num_threads(), _MOST) if tensor.device.type == "cpu" else 0
        count = count if count > 1 else 0
        with _LOCK:
            if count not in _KNOWN or not _KNOWN[count].alive:
                _KNOWN[count] = cls(count)
            return _KNOWN[count]

    @property
    def alive(self) -> bool:
        """Whether the threads exist; a forked process has none of its parent's."""
        return all(each.is_alive() for each in self._threads)

    def start(self, call: Callable[[], Result]) -> Future[Result]:
        """Start a call without gradients."""
        if self._pool is not None:
            return self._pool.submit(_inferred, call)
        done: Future[Result] = Future()
        done.set_result(_inferred(call))
        return done


_KNOWN: dict[int, ThreadPool] = {}


def _inferred(call: Callable[[], Result]) -> Result:
    with torch.inference_mode():
        return call()


def _alone(meeting: threading.Barrier) -> threading.Thread:
    meeting.wait()  # so that each thread runs this once
    # The first `get_num_threads` in a thread resets its count to that of the process, so call it before setting.
    torch.get_num_threads()
    torch.set_num_threads(1)
    return threading.current_thread()


@contextmanager
def threads_here(count: int) -> Iterator[None]:
    """Set the number of torch threads for this thread within the context."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
