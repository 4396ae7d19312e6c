"""Value range that a TIFF states for its samples."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..value_range import stated_range
from .tiff_tags import ome_pixels

_LIMITS = ((281, 280), (341, 340))
"""Tags of the highest and the lowest value: for integer samples, and for samples of any type."""


def stated_by(tiff: Any, page: Any, nodata: float | None) -> tuple[tuple[float, float], ...]:
    """Range that the tags or the OME-XML state: one for all samples, or none.

    Parameters
    ----------
    tiff : tifffile.TiffFile
    page : tifffile.TiffPage
    nodata : float or None
        Value of pixels without data; limits that include it are ignored.
    """
    dtype = np.dtype(page.dtype)
    bits = page.bitspersample
    if isinstance(bits, int) and dtype.kind == "u" and bits < 8 * dtype.itemsize:
        return ((0.0, 2.0**bits - 1),)
    if dtype.kind == "b" or dtype.itemsize == 1:
        return ()
    stated = ome_pixels(tiff.ome_metadata or "", page).get("SignificantBits", "") if tiff.is_ome else ""
    limits = [(0.0, 2.0 ** int(stated) - 1)] if dtype.kind in "ui" and re.fullmatch(r"\d{1,2}", stated) else []
    for highest, lowest in _LIMITS:
        high, low = _limit(page, highest, np.max), _limit(page, lowest, np.min)
        if high is not None and (low is not None or dtype.kind == "u"):
            limits.append((0.0 if low is None else low, high))
    for low, high in limits:
        found = stated_range(low, high, dtype)
        if found is not None and (nodata is None or not low <= nodata <= high):
            return (found,)
    return ()


def _limit(page: Any, tag: int, most: Any) -> float | None:
    """Value of a tag that has one for each sample; None if it has none, or no numbers."""
    value = page.tags.valueof(tag, default=None)
    try:
        return None if value is None else float(most(np.asarray(value, np.float64)))
    except (TypeError, ValueError):
        return None
