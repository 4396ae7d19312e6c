"""Addresses on the network, read by ranges through fsspec."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import ImageError
from .stats import ReadStats

ATTEMPTS = 3
FIRST_PAUSE = 0.2
"""Seconds before the second attempt; each later pause is four times longer."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection is given up."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # of two letters at least: C:// is a drive
T = TypeVar("T")


class NoRangesError(OSError):
    """A server sends whole files where parts are asked for."""


_FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, NoRangesError)
"""Answers that another attempt would not change."""


def is_url(source: object) -> bool:
    """Whether an image is named by an address such as ``https://...`` or ``s3://...``."""
    return isinstance(source, str) and _SCHEME.match(source) is not None


class Remote:
    """An address and what lies under it.

    Parameters
    ----------
    url : str
        Of any protocol that fsspec knows; its settings (credentials, endpoints) come from fsspec's own
        configuration and environment variables. The query of an http(s) address is sent with every request.
    stats : ReadStats
        Told of every request.

    Raises
    ------
    ImageError
        If fsspec, or its part for this protocol, is not installed, or the protocol is unknown.
    """

    def __init__(self, url: str, stats: ReadStats) -> None:
        self._stats = stats
        try:
            import fsspec  # noqa: PLC0415 (an extra)

            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ImageError(
                f'{url}: cannot be read ({error}); install the remote extra: pip install "coarse2fine[remote]"'
            ) from error
        except ValueError as error:
            raise ImageError(f"{url}: cannot be read ({error}); check the address") from error
        self._http = url.startswith(("http://", "https://"))
        root, mark, query = root.partition("?") if self._http else (root, "", "")
        self._root, self._query = root.rstrip("/"), mark + query

    def size(self) -> int:
        """Size of the object at the address in bytes.

        Raises
        ------
        OSError
            If it cannot be reached, its size is not told, or (of http) the server does not honour ranges.
        """
        if self._http:
            # Not by HEAD: signed addresses may permit GET alone, and this shows whether ranges are honoured.
            data, size = self._get(self._address(""), 0, 1)
            self._stats.fetch(len(data))
        else:
            size = _again(lambda: self._files.info(self._root))["size"]
        if size is None:
            raise NoRangesError("the server ignores ranges, or does not tell the size; download the file")
        return int(size)

    def fetch(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Read bytes ``[start, stop)`` of the object at ``address/key``; a negative start counts from its end.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        PermissionError
            If the server refuses it.
        OSError
            If the server fails repeatedly, or does not honour ranges.
        """
        if stop is not None and stop <= (start or 0):
            return b""  # no range of http says so
        address = self._address(key)
        if self._http:
            data, _ = self._get(address, start, stop)
        else:
            data = _again(lambda: self._files.cat_file(address, start=start, end=stop))
        self._stats.fetch(len(data))
        wanted = stop - (start or 0) if stop is not None else -start if start is not None and start < 0 else None
        if wanted is not None and len(data) > wanted:
            raise NoRangesError(f"{wanted} bytes were asked for and {len(data)} came: the server ignores ranges")
        return data

    def _address(self, key: str) -> str:
        return (f"{self._root}/{key}" if key else self._root) + self._query

    def _get(self, url: str, start: int | None, stop: int | None) -> tuple[bytes, str | None]:
        """Body that an http server sends, and the size of the whole where that is a part."""
        from fsspec.asyn import sync  # noqa: PLC0415 (an extra)

        found: tuple[bytes, str | None] = _again(
            lambda: sync(self._files.loop, _request, self._files, url, start, stop)
        )
        return found


async def _request(files: Any, url: str, start: int | None, stop: int | None) -> tuple[bytes, str | None]:
    """See `Remote._get`; fsspec's own request takes a whole file from a server that ignores ranges."""
    import aiohttp  # noqa: PLC0415 (an extra)

    timeout = aiohttp.ClientTimeout(sock_connect=TIMEOUT, sock_read=TIMEOUT)
    headers = {**files.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start is not None:
        last = "" if stop is None else stop - 1
        headers["Range"] = f"bytes={start}" if start < 0 else f"bytes={start}-{last}"
    session = await files.set_session()
    async with session.get(files.encode_url(url), **{"timeout": timeout, **files.kwargs, "headers": headers}) as answer:
        if answer.status in (404, 410):
            raise FileNotFoundError(url)
        if answer.status in (401, 403):
            raise PermissionError(f"the server answers {answer.status} {answer.reason}")
        if answer.status == 416 and start is not None:
            return b"", _total(answer)
        answer.raise_for_status()
        if start is None or answer.status == 206:
            return await answer.read(), _total(answer)
        if start != 0 or stop is None:
            raise NoRangesError("the server ignores ranges; download the file")
        try:
            return await answer.content.readexactly(stop), None
        except asyncio.IncompleteReadError as short:
            return short.partial, None


def _total(answer: Any) -> str | None:
    total: str = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return total if total.isdigit() else None


def _again(request: Callable[[], T]) -> T:
    """Repeat a request that fails for a reason that may pass."""
    pause = FIRST_PAUSE
    for _ in range(ATTEMPTS - 1):
        try:
            return request()
        except _FINAL:
            raise
        except Exception:  # noqa: BLE001 (every protocol has errors of its own)
            time.sleep(pause)
            pause *= 4
    try:
        return request()
    except Exception as error:
        if isinstance(error, OSError) and str(error):
            raise
        raise OSError(f"{type(error).__name__} {error}".rstrip()) from error
