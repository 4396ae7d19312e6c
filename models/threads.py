"""Thread pools for nets: batches run in parallel, each on few threads.

A convolution over a few hundred cells takes less time than waking the threads that would share it, and what is done
with its output in numpy uses one thread anyway.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

_MOST, _MOST_BATCHES, _LEAST_USED = 4, 8, 0.8
_LOCK = threading.Lock()
Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadPool:
    """Threads in which torch uses few further threads.

    Parameters
    ----------
    count : int
        Number of threads; if 0, calls run at once in the caller's thread.
    each : int
        Threads that torch uses in each of them, itself included.
    """

    def __init__(self, count: int, each: int = 1) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "lane") if count else None
        self._threads: list[threading.Thread] = []
        if self._pool is not None:
            threads, meeting = torch.get_num_threads(), threading.Barrier(count)
            try:
                starting = [self._pool.submit(_settled, meeting, each) for _ in range(count)]
                self._threads = [thread.result() for thread in starting]
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
        return cls._shared(min(torch.get_num_threads(), _MOST) if tensor.device.type == "cpu" else 0)

    @classmethod
    def for_batches(cls, device: torch.device, batches: int) -> ThreadPool:
        """The shared pool for so many whole batches of windows on a device.

        It has at most 8 threads, and no more than batches, which share torch's and leave at most a fifth of these idle.
        None if torch has only one, if there is only one batch, or if the device is not the CPU.
        """
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        counts = range(min(threads, batches, _MOST_BATCHES), 1, -1)
        count = next((n for n in counts if n * (threads // n) >= _LEAST_USED * threads), 1)
        return cls._shared(count, threads // count)

    @classmethod
    def _shared(cls, count: int, each: int = 1) -> ThreadPool:
        key = (count, each) if count > 1 else (0, 1)
        with _LOCK:
            if key not in _KNOWN or not _KNOWN[key].alive:
                _KNOWN[key] = cls(*key)
            return _KNOWN[key]

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

    def in_order(self, call: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
        """Results of a call for each item, without gradients, in the order of the items.

        One call more than there are threads is under way or done ahead of the consumer; all have ended when the
        iterator ends or is closed.
        """
        running: deque[Future[Result]] = deque()
        try:
            for item in items:
                running.append(self.start(partial(call, item)))
                if len(running) > self.count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for each in running:
                each.cancel()
            wait(running)


_KNOWN: dict[tuple[int, int], ThreadPool] = {}


def _inferred(call: Callable[[], Result]) -> Result:
    with torch.inference_mode():
        return call()


def _settled(meeting: threading.Barrier, threads: int) -> threading.Thread:
    meeting.wait()  # so that each thread runs this once
    # The first `get_num_threads` in a thread resets its count to that of the process, so call it before setting.
    torch.get_num_threads()
    torch.set_num_threads(threads)
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
