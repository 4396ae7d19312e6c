"""Threads that compute alone, beside those that do not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from coarse2fine.models.threads import ThreadPool, threads_here


def in_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_only_this_thread_computes_alone() -> None:
    with threads_here(3):
        with threads_here(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(ArithmeticError), threads_here(1):
            raise ArithmeticError
        assert torch.get_num_threads() == in_a_new_thread() == 3


def test_lanes_that_cannot_be_started_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls, waiting = ThreadPoolExecutor.submit, Mock(), threading.Event()

    def interrupted(pool: ThreadPoolExecutor, *args: Any) -> Future[Any]:
        calls()
        if calls.call_count == 2:
            raise KeyboardInterrupt
        future = whole(pool, *args)
        future.add_done_callback(lambda _: waiting.set())
        return future

    with threads_here(3):
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ThreadPool(3)
        assert torch.get_num_threads() == in_a_new_thread() == 3
    # The thread that waited for the others has ended, or does so at once.
    waiting.wait(10)
    assert waiting.is_set()


def test_lanes_compute_alone_and_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def meet() -> tuple[int, int, bool]:
        meeting.wait()
        return threading.get_ident(), torch.get_num_threads(), torch.is_inference_mode_enabled()

    with threads_here(2):
        lanes = ThreadPool.beside(torch.empty(0))
        assert lanes.count == 2
        assert ThreadPool.beside(torch.empty(0)) is lanes
        found = [each.result() for each in [lanes.start(meet), lanes.start(meet)]]
        assert torch.get_num_threads() == in_a_new_thread() == 2
    names, threads, inferred = zip(*found, strict=True)
    assert len({*names, threading.get_ident()}) == 3
    assert threads == (1, 1)
    assert inferred == (True, True)


def test_one_thread_needs_no_lanes() -> None:
    with threads_here(1):
        lanes = ThreadPool.beside(torch.empty(0))
    assert lanes.count == 0
    assert lanes.start(threading.get_ident).result() == threading.get_ident()
    with threads_here(64):
        assert ThreadPool.beside(torch.empty(0)).count == 4


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_forked_process_has_lanes_of_its_own() -> None:
    with threads_here(2):
        assert ThreadPool.beside(torch.empty(0)).start(lambda: 1).result() == 1
        child = os.fork()
        if not child:
            # An alarm ends it, should it wait for threads that are not there.
            signal.alarm(20)
            code = 1
            try:
                code = ThreadPool.beside(torch.empty(0)).start(lambda: 7).result(10)
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_batches_come_in_order_and_share_the_threads() -> None:
    with threads_here(2):
        pool = ThreadPool.for_batches(torch.device("cpu"), 9)
        assert pool.count == 2
        assert list(pool.in_order(lambda n: n**2, iter(range(9)))) == [n**2 for n in range(9)]
        assert set(pool.in_order(lambda _: torch.get_num_threads(), range(5))) == {1}
    with threads_here(19):
        pool = ThreadPool.for_batches(torch.device("cpu"), 9)
        assert pool.count == 8
        assert set(pool.in_order(lambda _: torch.get_num_threads(), range(9))) == {2}
    for threads, batches, count in (
        (12, 99, 6),
        (15, 99, 7),
        (7, 99, 7),
        (11, 99, 5),
        (8, 3, 2),
        (8, 1, 0),
        (1, 9, 0),
        (4, 0, 0),
    ):
        with threads_here(threads):
            assert ThreadPool.for_batches(torch.device("cpu"), batches).count == count
    assert ThreadPool.for_batches(torch.device("meta"), 9).count == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_calls_have_ended_when_a_consumer_stops(threads: int) -> None:
    begun, ended = Mock(), Mock()

    def call(n: int) -> int:
        begun(n)
        ended(n)
        return n

    def items() -> Iterator[int]:
        yield from range(5)
        raise ArithmeticError

    with threads_here(threads):
        pool = ThreadPool.for_batches(torch.device("cpu"), 100)
        found = pool.in_order(call, range(100))
        assert next(found) == 0
        found.close()
        assert begun.call_count == ended.call_count <= threads + 2
        with pytest.raises(ArithmeticError):
            list(pool.in_order(call, items()))
        with pytest.raises(ZeroDivisionError):
            list(pool.in_order(lambda n: 1 // n, range(9)))
    assert begun.call_count == ended.call_count
