"""Physical pixel size of a TIFF, from the vendor's text, OME-XML, ImageJ's text, or the resolution tags."""

from __future__ import annotations

import re
from typing import Any

from ..geometry import PixelSize, ignored_dots, pixel_size, printer_dots
from ..samples import number_in
from .tiff_tags import ome_pixels

_RESOLUTION_UNITS = {2: "inch", 3: "centimeter", 4: "millimeter", 5: "micrometer"}
_SQUARE = "only the {} of a pixel is stated; it is taken as square"
Sized = tuple[PixelSize | None, tuple[str, ...]]
"""A size, and notes on one that is ignored."""


def pixel_size_of(file: Any, page: Any) -> Sized:
    """Size of a pixel, with a note if a stated size is ignored."""
    found = re.search(r"\bMPP\s*=\s*([0-9.,eE+-]+)", page.description or "") if file.is_svs else None
    size = number_in(found[1]) if found else None
    if size is not None:
        return PixelSize(size, size, "micrometer"), ()
    if file.is_ome:
        return _ome_size(file.ome_metadata or "", page)
    return _resolution(file, page)


def _resolution(file: Any, page: Any) -> Sized:
    """Size by the resolution tags, whose unit ImageJ writes elsewhere."""
    x, y = (_ratio(page.tags.valueof(tag, default=None)) for tag in (282, 283))
    if not x and not y:
        return None, ()
    notes: tuple[str, ...] = () if x and y else (_SQUARE.format("width" if x else "height"),)
    x, y = x or y, y or x
    imagej = _imagej_units(file)
    if imagej is not None:
        return pixel_size(1 / y, 1 / x, *imagej), notes
    # By the standard, the unit is the inch if none is stated.
    unit = _RESOLUTION_UNITS.get(int(page.tags.valueof(296, default=2)))
    if unit is None:
        return None, (f"resolution of {x:g} x {y:g} pixels without a unit ignored",) if (x, y) != (1, 1) else ()
    size = PixelSize(1 / y, 1 / x, unit)
    dots = printer_dots(size)
    return (size, notes) if dots is None else (None, (ignored_dots(dots),))


def _ratio(value: Any) -> float:
    """Rational tag as a number; 0 if it is missing or invalid."""
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return 0.0
    return float(value[0]) / float(value[1])


def _imagej_units(file: Any) -> tuple[str, str] | None:
    """Units along y and x in ImageJ's text, to which the resolution tags then refer."""
    text = file.imagej_metadata if file.is_imagej else None
    if not isinstance(text, dict) or not text.get("unit"):
        return None
    return str(text.get("yunit") or text["unit"]), str(text["unit"])


def _ome_size(xml: str, page: Any) -> Sized:
    """Physical pixel size in OME-XML, of the image that has the page's size, else of the first."""
    pixels = ome_pixels(xml, page)
    sizes = {axis: number_in(pixels.get(f"PhysicalSize{axis}")) for axis in "YX"}
    known = {
        axis: (size, pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis, size in sizes.items() if size is not None
    }
    if not known:
        return None, ()
    notes = () if len(known) == 2 else (_SQUARE.format("width" if "X" in known else "height"),)
    y, x = (known.get(axis) or next(iter(known.values())) for axis in "YX")
    return pixel_size(y[0], x[0], y[1], x[1]), notes
