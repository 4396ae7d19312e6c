"""Threads that compute alone, beside those that do not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from coarse2fine.models.lanes import Lanes, one_thread

ThreadsOf = Callable[[int], AbstractContextManager[None]]


def test_only_this_thread_computes_alone(threads_of: ThreadsOf) -> None:
    with threads_of(3):
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(ArithmeticError), one_thread():
            raise ArithmeticError
        assert torch.get_num_threads() == 3


def test_lanes_compute_alone_and_side_by_side(threads_of: ThreadsOf) -> None:
    meeting = threading.Barrier(2, timeout=10)

    def meet() -> tuple[int, int, bool]:
        meeting.wait()
        return threading.get_ident(), torch.get_num_threads(), torch.is_inference_mode_enabled()

    with threads_of(2):
        lanes = Lanes.here()
        assert lanes.count == 2
        assert Lanes.here() is lanes
        found = [each.result() for each in [lanes.start(meet), lanes.start(meet)]]
        assert torch.get_num_threads() == 2
    names, threads, inferred = zip(*found, strict=True)
    assert len({*names, threading.get_ident()}) == 3
    assert threads == (1, 1)
    assert inferred == (True, True)


def test_one_thread_needs_no_lanes(threads_of: ThreadsOf) -> None:
    with threads_of(1):
        lanes = Lanes.here()
    assert lanes.count == 0
    assert lanes.start(threading.get_ident).result() == threading.get_ident()
    with threads_of(64):
        assert Lanes.here().count <= 8
