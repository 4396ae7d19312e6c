"""Addresses on the network, read by ranges through fsspec."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ImageError, install
from ..limits import UNIT_BYTES
from ..stats import ReadStats
from .redact import redact

ATTEMPTS = 4
FIRST_PAUSE = 0.2
"""Seconds before the second attempt; each later pause is four times longer. All vary by half, so that readers refused
together do not return together."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection is abandoned."""
SLOWEST = 2**14
"""Slowest rate in bytes per second: a request may take `TIMEOUT` plus the time for its bytes at this rate."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:// is a drive
T = TypeVar("T")


class NoRangesError(OSError):
    """A server sends the whole file, or another part, if a part is requested."""


class RefusedError(OSError):
    """A server refuses a request permanently."""


class TooMuchError(OSError):
    """A server holds or sends more bytes than allowed."""


_FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, NoRangesError, RefusedError, TooMuchError)
"""Errors that another attempt would not change."""
_KEPT = (*_FINAL, TimeoutError)
_PASSING = (408, 425, 429)
"""Status codes of 400 to 499 that are worth another attempt, as are all of 500 and more."""


def is_url(source: object) -> bool:
    """Whether an image is given by an address such as ``https://...`` or ``s3://...``."""
    return isinstance(source, str) and _SCHEME.match(source) is not None


def name_of(location: str) -> str:
    """File name of a path or an address, without its last suffix."""
    if location.startswith(("http://", "https://")):
        location = location.partition("?")[0]
    return Path(location.rstrip("/")).stem


class Remote:
    """An address and the objects below it.

    Parameters
    ----------
    url : str
        Address with any protocol that fsspec supports; settings (credentials, endpoints) come from fsspec's own
        configuration and environment variables. The query of an http(s) address is sent with every request.
    stats : ReadStats
        Counts every request.

    Raises
    ------
    ImageError
        If fsspec, or its package for this protocol, is not installed, or the protocol is unknown.
    """

    def __init__(self, url: str, stats: ReadStats) -> None:
        self._stats = stats
        try:
            import fsspec  # noqa: PLC0415 (an extra)

            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ImageError(f"{redact(url)}: cannot be read ({redact(str(error))}); {install('remote')}") from None
        except ValueError as error:
            raise ImageError(f"{redact(url)}: cannot be read ({redact(str(error))}); check the address") from None
        self._http = url.startswith(("http://", "https://"))
        root, mark, query = root.partition("?") if self._http else (root, "", "")
        self._root, self._query = root.rstrip("/"), mark + query

    def size(self) -> int:
        """Size of the object at the address in bytes.

        Raises
        ------
        OSError
            If it cannot be reached, its size is not stated, or (with http) the server does not honour ranges.
        """
        if self._http:
            # GET rather than HEAD: signed addresses may permit only GET, and this shows whether ranges are honoured.
            data, size = self._get(self._address(""), 0, 1, 1)
            self._stats.fetch(len(data))
        else:
            size = _again(lambda: self._files.info(self._root))["size"]
        if size is None:
            raise NoRangesError("the server ignores ranges, or does not tell the size; download the file")
        return int(size)

    def fetch(self, key: str, start: int | None = None, stop: int | None = None, most: int = UNIT_BYTES) -> bytes:
        """Read bytes ``[start, stop)`` of the object at ``address/key``; a negative start counts from its end.

        Parameters
        ----------
        key : str
        start, stop : int, optional
        most : int
            Most bytes that may be returned, if `start` and `stop` do not bound them.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        PermissionError
            If the server refuses it.
        TooMuchError
            If there are more bytes than `most`; the rest is not downloaded.
        OSError
            If the server fails repeatedly, or does not honour ranges. No message holds a password or a signature.
        """
        if stop is not None and stop <= (start or 0):
            return b""  # http has no empty range
        address = self._address(key)
        wanted = stop - (start or 0) if stop is not None else -start if start is not None and start < 0 else None
        limit = most if wanted is None else min(wanted, most)
        if wanted is not None and wanted > most:
            raise TooMuchError(f"{wanted:,} bytes would be read at once, expected at most {most:,}")
        if self._http:
            data, _ = self._get(address, start, stop, limit)
        else:
            # One byte beyond the limit is requested to detect larger objects without downloading them whole.
            begin, end = (start, stop) if wanted is not None else (start or 0, (start or 0) + limit + 1)
            data = _again(lambda: self._files.cat_file(address, start=begin, end=end))
        self._stats.fetch(len(data))
        if len(data) > limit:
            if wanted is None:
                raise TooMuchError(f"there are more than the {most:,} bytes that were expected at most")
            raise NoRangesError(f"{wanted} bytes were asked for and {len(data)} came: the server ignores ranges")
        return data

    def _address(self, key: str) -> str:
        return (f"{self._root}/{key}" if key else self._root) + self._query

    def _get(self, url: str, start: int | None, stop: int | None, limit: int) -> tuple[bytes, str | None]:
        """Body that an http server sends, and the size of the whole object if the body is a part."""
        from fsspec.asyn import sync  # noqa: PLC0415 (an extra)

        found: tuple[bytes, str | None] = _again(
            lambda: sync(self._files.loop, _request, self._files, url, start, stop, limit)
        )
        return found


async def _request(files: Any, url: str, start: int | None, stop: int | None, limit: int) -> tuple[bytes, str | None]:
    """See `Remote._get`; fsspec's own request takes a whole file from a server that ignores ranges."""
    import aiohttp  # noqa: PLC0415 (an extra)

    timeout = aiohttp.ClientTimeout(total=TIMEOUT + limit / SLOWEST, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    headers = {**files.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start is not None:
        last = "" if stop is None else stop - 1
        headers["Range"] = f"bytes={start}" if start < 0 else f"bytes={start}-{last}"
    session = await files.set_session()
    async with session.get(files.encode_url(url), **{"timeout": timeout, **files.kwargs, "headers": headers}) as answer:
        if answer.status in (404, 410):
            raise FileNotFoundError("there is no such object")
        if answer.status in (401, 403):
            raise PermissionError(f"the server answers {answer.status} {answer.reason}")
        if answer.status == 416 and start is not None:
            return b"", _total(answer)
        if answer.status >= 400:
            passing = answer.status >= 500 or answer.status in _PASSING
            raise (ConnectionError if passing else RefusedError)(f"the server answers {answer.status} {answer.reason}")
        if start is None:
            return await _body(answer, limit, whole=True), None
        if answer.status == 206:
            _check_place(answer, start)
            return await _body(answer, limit, whole=True), _total(answer)
        if start != 0 or stop is None:
            raise NoRangesError("the server ignores ranges; download the file")
        return await _body(answer, limit, whole=False), None


async def _body(answer: Any, limit: int, *, whole: bool) -> bytes:
    """Body of an answer, up to a limit; more is an error if the whole is requested."""
    stated = answer.content_length
    if whole and stated is not None and stated > limit:
        raise TooMuchError(f"the server sends {stated:,} bytes, expected at most {limit:,}")
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        size += len(part)
        parts.append(part)
        if size > limit:
            if whole:
                raise TooMuchError(f"the server sends more than the {limit:,} bytes that were expected at most")
            break
        if size == limit and not whole:
            break
    return b"".join(parts)[:limit]


_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")


def _check_place(answer: Any, start: int) -> None:
    """Refuse a part that starts elsewhere than requested."""
    said = answer.headers.get("Content-Range", "")
    place = _RANGE.fullmatch(said.strip())
    total = _total(answer)
    if place is None:
        return
    expected = start if start >= 0 else max(int(total) + start, 0) if total is not None else int(place[1])
    if int(place[1]) != expected:
        raise NoRangesError(f"bytes from {start} on were asked for and the server sends '{said}'; download the file")
    stated = answer.content_length
    if stated is not None and stated != int(place[2]) + 1 - int(place[1]):
        raise ConnectionError(f"the server says '{said}' and sends {stated:,} bytes")


def _total(answer: Any) -> str | None:
    total: str = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return total if total.isdigit() else None


def _again(request: Callable[[], T]) -> T:
    """Repeat a request that fails for a temporary reason; raises errors without the secrets of addresses."""
    pause = FIRST_PAUSE
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except Exception as error:  # noqa: BLE001 (every protocol has errors of its own)
            found = _plain(error)
        if isinstance(found, _FINAL) or attempt == ATTEMPTS - 1:
            break
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
        pause *= 4
    raise found  # outside the handler: a chained original error may show the whole address


def _plain(error: Exception) -> OSError:
    """Error with a text that may be shown; of the same type if the type matters to callers, else OSError."""
    kind = next((kind for kind in _KEPT if isinstance(error, kind)), OSError)
    text = redact(str(error))
    if kind is OSError and not (isinstance(error, OSError) and text):
        text = f"{type(error).__name__} {text}".rstrip()
    return kind(text or type(error).__name__)
