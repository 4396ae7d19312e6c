"""Small nets side by side: a thread for each batch, and none within.

A convolution over a few hundred cells takes less time than waking the threads that would share it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

_MOST = 4
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """What this thread computes, it computes alone; the other threads are as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Lanes:
    """Threads that each compute alone.

    Parameters
    ----------
    count : int
        How many; with none, what is started is done at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "lane", initializer=_alone) if count else None

    @classmethod
    def here(cls) -> Lanes:
        """As many as torch has threads here, within limits; shared by all who ask."""
        count = min(torch.get_num_threads(), _MOST)
        return _lanes(count if count > 1 else 0, os.getpid())

    def start(self, call: Callable[[], Result]) -> Future[Result]:
        """Have something computed, without gradients."""
        if self._pool is not None:
            return self._pool.submit(_inferred, call)
        done: Future[Result] = Future()
        done.set_result(_inferred(call))
        return done


@cache
def _lanes(count: int, process: int) -> Lanes:  # noqa: ARG001 (a forked process has none of its parent's threads)
    return Lanes(count)


def _inferred(call: Callable[[], Result]) -> Result:
    with torch.inference_mode():
        return call()


def _alone() -> None:
    # A thread's first question makes its number that of the process, whatever was set before.
    torch.get_num_threads()
    torch.set_num_threads(1)
