"""Small nets side by side: a thread for each batch, and none within.

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
    """Threads that each compute alone.

    Parameters
    ----------
    count : int
        How many; with none, what is started is done at once.
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
                # Ctrl-C, or a thread that could not be started: the others must not wait for it.
                meeting.abort()
                self._pool.shutdown(wait=False)
                raise
            finally:
                # Threads that are new to torch take over what was set last.
                torch.set_num_threads(threads)

    @classmethod
    def beside(cls, tensor: Tensor) -> ThreadPool:
        """Lanes for what is computed where a tensor lies, shared by all who ask.

        As many as torch has threads, within limits; none where it has but one, or where there is no processor.
        """
        count = min(torch.get_num_threads(), _MOST) if tensor.device.type == "cpu" else 0
        count = count if count > 1 else 0
        with _LOCK:
            if count not in _KNOWN or not _KNOWN[count].alive:
                _KNOWN[count] = cls(count)
            return _KNOWN[count]

    @property
    def alive(self) -> bool:
        """Whether the threads are there: a forked process has none of its parent's."""
        return all(each.is_alive() for each in self._threads)

    def start(self, call: Callable[[], Result]) -> Future[Result]:
        """Have something computed, without gradients."""
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
    meeting.wait()  # so that each thread does it once
    # A thread's first question makes its number that of the process, whatever was set before.
    torch.get_num_threads()
    torch.set_num_threads(1)
    return threading.current_thread()


@contextmanager
def threads_here(count: int) -> Iterator[None]:
    """So many threads for what this thread computes; with one, it computes alone."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
