"""Read-only stores for zarr-python: over `Keys`, and over the pixels of any image."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

Fetch = Callable[[str, int | None, int | None], bytes | None]


class FetchStore(Store):
    """A store that answers from one function; it can neither be written nor listed.

    Parameters
    ----------
    fetch : callable
        Same as `Keys.get`; called from threads.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, fetch: Fetch) -> None:
        super().__init__(read_only=True)
        self._fetch = fetch
        # Own threads avoid a deadlock: zarr-python's may all wait for chunks that need these threads for decoding.
        self._threads = ThreadPoolExecutor(thread_name_prefix="zarr-store")

    def __eq__(self, value: object) -> bool:
        return isinstance(value, FetchStore) and value._fetch == self._fetch

    def __hash__(self) -> int:
        return hash(self._fetch)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        start: int | None = None
        stop: int | None = None
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, byte_range.end
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = -byte_range.suffix
        data = await self._fetched(key, start, stop)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await self._fetched(key, 0, 1) is not None

    async def _fetched(self, key: str, start: int | None, stop: int | None) -> bytes | None:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._fetch, key, start, stop)

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002 (the store's signature)
        raise PermissionError(f"{key}: images are read, not written")

    async def delete(self, key: str) -> None:
        raise PermissionError(f"{key}: images are read, not written")

    async def _nothing(self) -> AsyncIterator[str]:
        nothing: tuple[str, ...] = ()
        for key in nothing:
            yield key

    def list(self) -> AsyncIterator[str]:
        return self._nothing()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # noqa: ARG002 (the store's signature)
        return self._nothing()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:  # noqa: ARG002 (the store's signature)
        return self._nothing()
