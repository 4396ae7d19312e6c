"""Open an image: its content decides the format, not its name."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .formats.registry import Location, Reader, known_formats
from .image import Image
from .source import Source, array_source
from .stats import ReadStats
from .storage.redact import redact
from .storage.remote import is_url
from .value_range import check_range

Mpp: TypeAlias = float | tuple[float, float]
ImageSource: TypeAlias = str | os.PathLike[str] | NDArray[Any] | Image


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
        unchanged. Other formats are added by `register_format`.
    mpp : float or (float, float), optional
        Microns per pixel (y, x) to use instead of what the file says.
    channels : int or sequence of int, optional
        The one or three stored channels, counted from 0, to read as grey or as red, green and blue; by default the
        first three, or the first if there are fewer.
    value_range : (float, float), optional
        Stored values that become black and white, the lower first. By default as the file says (bits or limits in TIFF
        tags, ``SignificantBits`` of OME-XML, windows of OME-Zarr's ``omero``), else measured from the pixels: the
        fewest bits that hold them, or the 0.1 and 99.9 percentiles for negative values, reals, and integers that would
        fill little of their bits. 8-bit samples are always read unchanged.
    reader : "tensorstore", optional
        Read the chunks of a Zarr on this machine with tensorstore (extra ``tensorstore``).

    Returns
    -------
    Image
        Only its header has been read, except for formats that can only be decoded whole, large files of which are
        decoded once into a cache on disk. If the value range has to be measured, a bounded number of pixels is read
        on first use.

    Raises
    ------
    ImageError
        If the file is missing, unreadable, damaged, or of no known format; if the array has no usable pixels; if an
        extra is not installed; or if there are no such channels.
    TypeError
        If the source is none of these.
    ValueError
        If `mpp` is not positive, `value_range` is not a range, the reader is unknown, or options are given for an
        `Image`, which is open already.
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
    place: Location | NDArray[Any]
    if isinstance(source, np.ndarray):
        place, label = source, None
    else:
        text = _location(source)
        path, url, label = (None, text, redact(text)) if is_url(text) else (Path(text), None, text)
        place = Location(path, url, value_range, reader, stats)
    stored = _open(place, label or "array", channels, value_range, reader)
    reopen = functools.partial(open_image, source, mpp=mpp, channels=channels, value_range=value_range, reader=reader)
    return Image(stored, label, given, stats=stats, reopen=reopen)


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
    place: Location | NDArray[Any],
    label: str,
    channels: Sequence[int] | None,
    value_range: tuple[float, float] | None,
    reader: Reader | None,
) -> Source:
    try:
        if reader is not None and (isinstance(place, np.ndarray) or place.path is None or place.path.is_file()):
            raise ImageError(f"{label}: {reader} reads Zarr directories of this machine; leave 'reader' out")
        stored = array_source(place) if isinstance(place, np.ndarray) else _stored(place)
        stored = dataclasses.replace(stored, given=value_range)
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


def _stored(location: Location) -> Source:
    """Source from the first format that can open it."""
    head, missing = b"", None
    try:
        head = location.head
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        if location.url is None:
            raise
        missing = error  # a Zarr's own address is not an object
    for fmt in known_formats():
        if fmt.matches(head, location) and (source := fmt.open(location)) is not None:
            return source
    raise missing or _unknown(head, location)


def _unknown(head: bytes, location: Location) -> ImageError:
    if location.is_folder:
        from .formats.zarr_survey import MARKERS  # noqa: PLC0415

        return ImageError(
            f"{location.label}: expected a Zarr directory (with {', '.join(MARKERS)}), but it has none of these; "
            "pass an image file or a Zarr"
        )
    if not head:
        return ImageError(f"{location.label}: the file is empty; copy or export it again")
    return ImageError(
        f"{location.label}: expected a TIFF, PNG, JPEG, WebP, BMP or JPEG 2000 file, a slide, or a Zarr directory, "
        f"but it begins with {head[:8]!r}; convert it to one of these"
    )


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
