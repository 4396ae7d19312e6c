"""Cache of decoded chunks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Key: TypeAlias = tuple[Hashable, ...]


class ChunkCache:
    """Least-recently-used cache of arrays, bounded in bytes and safe to share between threads.

    A chunk is decoded once: other threads wait for the one that is loading it. The chunk used last stays even if it
    alone exceeds the bound, so that an image stored as one chunk is decoded once.

    Parameters
    ----------
    limit : int
        Most bytes kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Drop everything, including loads in progress: their threads do not exist in a forked process."""
        self._bytes = 0
        self._lock = threading.RLock()  # garbage collection of an image may call `forget` while the lock is held
        self._kept: OrderedDict[Key, NDArray[np.uint8]] = OrderedDict()
        self._loading: dict[Key, Future[NDArray[np.uint8]]] = {}

    def get(self, key: Key, load: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the array of `key`, loaded if need be; it is shared and read-only."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
            future = self._loading.get(key)
            mine = future is None
            if future is None:
                future = self._loading[key] = Future()
        if not mine:
            return future.result()
        try:
            array = load()
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            future.set_exception(error)
            raise
        array.flags.writeable = False
        self._keep(key, array)
        future.set_result(array)
        return array

    def peek(self, key: Key) -> NDArray[np.uint8] | None:
        """Return the array of `key`, shared and read-only, if it is held."""
        with self._lock:
            return self._kept.get(key)

    def _keep(self, key: Key, array: NDArray[np.uint8]) -> None:
        with self._lock:
            del self._loading[key]
            self._kept[key] = array
            self._bytes += array.nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def forget(self, owner: Hashable) -> None:
        """Drop every array whose key begins with `owner`."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == owner]:
                self._bytes -= self._kept.pop(key).nbytes
