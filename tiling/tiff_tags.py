"""What the tags of a TIFF say: colours, pixel size, place on a planet."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import GeoReference, PixelSize
from .samples import Alpha, sample_range

_APERIO_YCBCR = 33003
# tifffile returns these as RGB whatever the photometric tag says.
_RGB_CODECS = {6, 7, 22610, 33007, 34892, 34934, 50001, 50002, 52546}
_OME_UNITS = {
    "Å": "angstrom",
    "nm": "nanometer",
    "µm": "micrometer",  # U+00B5 and U+03BC are both in use
    "μm": "micrometer",
    "um": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
}
_ATTRIBUTE = re.compile(r"""(\w+)\s*=\s*["']([^"']*)["']""")
_PRINTER_DPI = {72, 96, 100, 150, 200, 300, 600, 1200}
"""Dots per inch that programs write when they know nothing of the specimen."""
_GEO_UNITS = {9001: "meter", 9002: "foot", 9003: "US survey foot", 9101: "radian", 9102: "degree"}
_OWN_CRS = 32767
_PIXEL_IS_POINT = 2


@dataclass(frozen=True)
class Colours:
    """What the samples of a pixel mean."""

    alpha: Alpha = "none"
    palette: NDArray[np.uint8] | None = None
    ycbcr: bool = False
    notes: tuple[str, ...] = ()


def colours_of(label: str, page: Any, samples: int) -> Colours:
    """Find what the samples of a pixel mean.

    Raises
    ------
    ImageError
        If they are neither grey, RGB, indices nor YCbCr.
    """
    photometric = int(page.photometric)
    if photometric == 3 and page.colormap is not None:
        colours = np.asarray(page.colormap).T
        # Writers widen 8 bits by 257 or by 256; the upper byte is the colour in both.
        shift = 8 if colours.max() > 255 else 0
        return Colours(palette=(colours >> shift).astype(np.uint8), notes=("palette applied",))
    if photometric in (5, 8, 9, 10):
        raise ImageError(
            f"{label}: expected grey, RGB, palette or YCbCr pixels, got {page.photometric.name}; convert it to RGB"
        )
    last = int(page.extrasamples[-1]) if page.extrasamples else 0
    alpha: Alpha = "none"
    if last in (1, 2) and samples in (2, 4) and samples == page.samplesperpixel:
        alpha = "premultiplied" if last == 1 else "straight"
    # Aperio's first JPEG 2000 kind holds YCbCr even where the photometric tag says RGB.
    codec = int(page.compression)
    ycbcr = samples == 3 and (codec == _APERIO_YCBCR or (photometric == 6 and codec not in _RGB_CODECS))
    return Colours(alpha, None, ycbcr)


def nodata_of(page: Any) -> float | None:
    """Value of pixels that were not measured, where the file names one that its samples can have."""
    value = _number(page.tags.valueof(42113, default=None))
    if value is None or not math.isfinite(value):
        return None
    if page.dtype.kind == "f":
        low, high = float(np.finfo(page.dtype).min), float(np.finfo(page.dtype).max)
    else:
        low, high = sample_range(page.dtype)
    return value if low <= value <= high and (page.dtype.kind == "f" or value.is_integer()) else None


def _number(text: Any) -> float | None:
    """Return what a text says, with a point or a comma; None when it is no number."""
    try:
        return float(text.replace(",", ".")) if isinstance(text, str) else None
    except ValueError:
        return None


def pixel_size_of(file: Any, page: Any) -> tuple[PixelSize | None, tuple[str, ...]]:
    """Size of a pixel by the vendor's text, OME-XML, or the resolution tags, with a note where it is not believed."""
    found = re.search(r"\bMPP\s*=\s*([0-9.,eE+-]+)", page.description or "") if file.is_svs else None
    size = _number(found[1]) if found else None
    if size is not None:
        return PixelSize(size, size, "micrometer"), ()
    if file.is_ome:
        return _ome_size(file.ome_metadata or "", page), ()
    unit = {2: "inch", 3: "centimeter"}.get(int(page.tags.valueof(296, default=1)))
    x, y = (_ratio(page.tags.valueof(tag, default=None)) for tag in (282, 283))
    if unit is None or not x or not y:
        return None, ()
    if unit == "inch" and x == y and x in _PRINTER_DPI:
        return None, (f"resolution of {x:g} dots per inch ignored: it is a printer's",)
    return PixelSize(1 / y, 1 / x, unit), ()


def _ratio(value: Any) -> float:
    """Return a rational tag as a number; 0 when it is missing or broken."""
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return 0.0
    return float(value[0]) / float(value[1])


def _ome_size(xml: str, page: Any) -> PixelSize | None:
    """Physical pixel size in OME-XML of the image that has a page's size, else of the first."""
    images = [
        {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(pixels)}
        for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    ]
    wanted = {"SizeY": str(page.imagelength), "SizeX": str(page.imagewidth)}
    pixels = next((image for image in images if wanted.items() <= image.items()), images[0] if images else {})
    y, x = (_number(pixels.get(f"PhysicalSize{axis}")) for axis in "YX")
    if y is None or x is None:
        return None
    units = [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "YX"]
    unit_y, unit_x = (_OME_UNITS.get(unit, unit) for unit in units)
    if unit_y == unit_x:
        return PixelSize(y, x, unit_y)
    sizes = PixelSize(y, y, unit_y).mpp, PixelSize(x, x, unit_x).mpp
    return PixelSize(sizes[0][0], sizes[1][1], "micrometer") if sizes[0] and sizes[1] else None


def geo_reference_of(page: Any) -> GeoReference | None:
    """Place on a planet by the tags of GeoTIFF; None without them."""
    tags = page.geotiff_tags
    transform = None if tags is None else _geo_transform(tags)
    if tags is None or transform is None or not all(map(math.isfinite, transform)):
        return None
    projected = int(tags.get("ProjectedCSTypeGeoKey", 0))
    code = projected or int(tags.get("GeographicTypeGeoKey", 0))
    unit = tags.get("ProjLinearUnitsGeoKey") if projected else tags.get("GeogAngularUnitsGeoKey")
    if unit is None and code:
        unit = 9001 if projected else 9102
    crs = f"EPSG:{code}" if code not in (0, _OWN_CRS) else None
    return GeoReference(transform, crs, _GEO_UNITS.get(int(unit)) if unit is not None else None)


def _geo_transform(tags: dict[str, Any]) -> tuple[float, float, float, float, float, float] | None:
    if "ModelTransformation" in tags:
        (a, b, _, c), (d, e, _, f) = tags["ModelTransformation"][:2]
    elif "ModelPixelScale" in tags and "ModelTiepoint" in tags:
        tie = np.reshape(tags["ModelTiepoint"], (-1, 6))[0].tolist()
        scale_x, scale_y = tags["ModelPixelScale"][:2]
        a, b, c = scale_x, 0.0, tie[3] - tie[0] * scale_x
        d, e, f = 0.0, -scale_y, tie[4] + tie[1] * scale_y
    else:
        return None
    if int(tags.get("GTRasterTypeGeoKey", 1)) == _PIXEL_IS_POINT:  # then whole numbers are centres
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return float(a), float(b), float(c), float(d), float(e), float(f)
