"""Open an image: its content decides the format, not its name."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .formats import ome_zarr, raster, slide, tiff
from .image import Image
from .source import Source
from .stats import ReadStats
from .storage.byte_files import LocalFile, LocalKeys, RemoteFile, RemoteKeys
from .storage.redact import redact
from .storage.remote import Remote, is_url
from .value_range import check_range

Mpp: TypeAlias = float | tuple[float, float]
ImageSource: TypeAlias = str | os.PathLike[str] | NDArray[Any] | Image
Reader: TypeAlias = Literal["tensorstore"]

HEAD_BYTES = 256
"""So much of a file tells its format."""

PICTURE_BYTES = 2**30
"""A picture behind an address, which is read whole, has no more bytes."""


def open_image(
    source: ImageSource,
    *,
    mpp: Mpp | None = None,
    channels: int | Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    reader: Reader | None = None,
) -> Image:
    """Open an image; its content decides the format, not its name.

    Parameters
    ----------
    source : path, address, array or Image
        A TIFF (tiled or stripped, BigTIFF, SVS, NDPI, SCN, QPTIFF, OME-TIFF, GeoTIFF), PNG, JPEG, WebP, BMP or
        JPEG 2000 file; an OME-Zarr or Zarr directory; a slide that OpenSlide reads (MRXS, DICOM, VMS; extra
        ``openslide``); the address of a TIFF or Zarr, such as ``https://...`` or ``s3://...`` (extra ``remote``),
        which is read by ranges; an array (h, w) or (h, w, c), which is not copied; or an `Image`, which is returned
        unchanged.
    mpp : float or (float, float), optional
        Microns per pixel (y, x) to use instead of what the file says.
    channels : int or sequence of int, optional
        The one or three stored channels, counted from 0, to read as grey or as red, green and blue; by default the
        first three, or the first where there are fewer.
    value_range : (float, float), optional
        Stored values that become black and white, the lower first. By default as the file says (bits or limits in TIFF
        tags, ``SignificantBits`` of OME-XML, windows of OME-Zarr's ``omero``), else by the pixels: the fewest bits that
        hold them, or for negative values, reals and what would fill little of its bits the 0.1 and 99.9 percentile.
        Samples of 8 bits are read as they are, whatever is given.
    reader : "tensorstore", optional
        Read the chunks of a Zarr on this machine by tensorstore (extra ``tensorstore``).

    Returns
    -------
    Image
        Nothing but its header has been read, except for formats that can only be decoded whole. Large ones of these
        are decoded once into a cache on disk. If the pixels have to tell the range of values, a bounded number of them
        is read when it is first needed.

    Raises
    ------
    ImageError
        If the file is missing, unreadable, damaged, or of no known format; if the array has no usable pixels; if an
        extra is not installed; or if there are no such channels.
    TypeError
        If the source is none of these.
    ValueError
        If `mpp` is not positive, `value_range` is no range, the reader is unknown, or options are given for an `Image`
        that is open already.
    """
    given = _given_mpp(mpp)
    value_range = None if value_range is None else check_range(value_range)
    channels = (channels,) if isinstance(channels, int) else channels
    if reader not in (None, "tensorstore"):
        raise ValueError(f"expected the reader 'tensorstore' or none, got {reader!r}")
    if isinstance(source, Image):
        if not (channels is None and value_range is None and reader is None) or (
            given is not None and given != source.mpp
        ):
            raise ValueError("options were given for an image that is open already; give them on opening")
        return source
    if not isinstance(source, str | os.PathLike | np.ndarray):
        raise TypeError(f"expected a path, an address, a NumPy array or an open image, got a {type(source).__name__}")
    stats = ReadStats()
    location = None if isinstance(source, np.ndarray) else _location(source)
    label = "array" if location is None else redact(location) if is_url(location) else location
    data = source if isinstance(source, np.ndarray) else _location(source)
    stored = _open(data, label, stats, channels, value_range, reader)
    reopen = functools.partial(open_image, source, mpp=mpp, channels=channels, value_range=value_range, reader=reader)
    return Image(stored, None if location is None else label, given, stats=stats, reopen=reopen)


def _location(source: str | os.PathLike[str]) -> str:
    """Path or address as text; ``file://`` addresses become paths."""
    text = os.fspath(source)
    if text.startswith("file://"):
        from urllib.request import url2pathname  # noqa: PLC0415 (rarely needed, slow to import)

        text = text.removeprefix("file://")
        text = url2pathname(text.removeprefix("localhost") if text.startswith("localhost/") else text)
    if not text:
        raise ImageError("expected the path or address of an image, got an empty text")
    return text


def _open(
    source: str | NDArray[Any],
    label: str,
    stats: ReadStats,
    channels: Sequence[int] | None,
    value_range: tuple[float, float] | None,
    reader: Reader | None,
) -> Source:
    try:
        if reader is not None and (not isinstance(source, str) or is_url(source) or Path(source).is_file()):
            raise ImageError(f"{label}: {reader} reads Zarr directories of this machine; leave 'reader' out")
        stored = dataclasses.replace(_stored(source, stats, value_range, reader), given=value_range)
        try:
            return stored if channels is None else stored.pick(tuple(channels), label)
        except BaseException:
            stored.close()
            raise
    except FileNotFoundError:
        raise ImageError(f"{label}: there is no such file or directory; check the path") from None
    except PermissionError as error:
        raise ImageError(
            f"{label}: reading is not permitted ({error.strerror or error}); check its permissions"
        ) from error
    except OSError as error:
        reason = str(error.strerror or error).replace(f"{label} is", "it is")
        raise ImageError(f"{label}: cannot be read ({reason}); check the path and the disk or the network") from error


def _stored(
    source: str | NDArray[Any], stats: ReadStats, value_range: tuple[float, float] | None, reader: Reader | None
) -> Source:
    if isinstance(source, np.ndarray):
        return raster.array_source(source)
    return _open_url(source, stats) if is_url(source) else _open_path(Path(source), stats, value_range, reader)


def _open_path(path: Path, stats: ReadStats, value_range: tuple[float, float] | None, reader: Reader | None) -> Source:
    if path.is_dir():
        folder = str(path) if reader is not None else None
        return _zarr(ome_zarr.open_zarr(LocalKeys(path, stats), str(path), folder=folder), str(path))
    file = LocalFile(path, stats)
    head = file.read_at(0, HEAD_BYTES)
    if tiff.is_tiff(head):
        return tiff.open_tiff(file, str(path))
    file.close()
    if slide.is_slide(path, head):
        return slide.open_slide(path)
    kind = _raster_kind(head, str(path))
    return raster.open_raster_file(path, kind, stats, value_range)


def _open_url(url: str, stats: ReadStats) -> Source:
    remote = Remote(url, stats)
    missing: OSError | None = None
    head = b""
    try:
        head = remote.fetch("", 0, HEAD_BYTES)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:  # as of a Zarr, which is no object
        missing = error
    label = redact(url)
    if tiff.is_tiff(head):
        return tiff.open_tiff(RemoteFile(remote), label)
    stored = ome_zarr.open_zarr(RemoteKeys(remote), label) if raster.kind_of(head) is None else None
    if stored is not None:
        return stored
    if missing is not None:
        raise missing
    kind = _raster_kind(head, label)
    return raster.open_raster(remote.fetch("", most=PICTURE_BYTES), kind, label)


def _zarr(stored: Source | None, label: str) -> Source:
    if stored is None:
        raise ImageError(
            f"{label}: expected a Zarr directory (with {', '.join(ome_zarr.MARKERS)}), but it has none of these; "
            "pass an image file or a Zarr"
        )
    return stored


def _raster_kind(head: bytes, label: str) -> str:
    if not head:
        raise ImageError(f"{label}: the file is empty; copy or export it again")
    kind = raster.kind_of(head)
    if kind is None:
        raise ImageError(
            f"{label}: expected a TIFF, PNG, JPEG, WebP, BMP or JPEG 2000 file, a slide, or a Zarr directory, "
            f"but it begins with {head[:8]!r}; convert it to one of these"
        )
    return kind


def _given_mpp(mpp: Mpp | None) -> tuple[float, float] | None:
    if mpp is None:
        return None
    given = (mpp, mpp) if isinstance(mpp, int | float) else tuple(mpp)
    if len(given) != 2:
        raise ValueError(f"expected microns per pixel as one number or as two (y, x), got {mpp}")
    pair = (float(given[0]), float(given[1]))
    if not all(math.isfinite(v) and v > 0 for v in pair):
        raise ValueError(f"expected positive microns per pixel (y, x), got {mpp}")
    return pair
