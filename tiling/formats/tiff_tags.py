"""Tags of a TIFF: colours, no-data value, georeference, OME-XML."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import GeoReference
from ..samples import Alpha, number_in, sample_range

_APERIO_YCBCR = 33003
# tifffile returns these as RGB whatever the photometric tag says.
_RGB_CODECS = {6, 7, 22610, 33007, 34892, 34934, 50001, 50002, 52546}
_GEO_UNITS = {
    9001: "meter",
    9002: "foot",
    9003: "US survey foot",
    9036: "kilometer",
    9093: "mile",
    9096: "yard",
    9101: "radian",
    9102: "degree",
    9103: "arc-minute",
    9104: "arc-second",
    9105: "grad",
}
_OWN_CRS = 32767
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]*>")
_ATTRIBUTE = re.compile(r"""(\w+)\s*=\s*["']([^"']*)["']""")
_PIXEL_IS_POINT = 2


@dataclass(frozen=True)
class Colours:
    """Meaning of the samples of a pixel."""

    alpha: Alpha = "none"
    palette: NDArray[np.uint8] | None = None
    ycbcr: bool = False
    notes: tuple[str, ...] = ()


def colours_of(page: Any, samples: int) -> Colours:
    """Meaning of the samples of a pixel, which are known to be grey, RGB, indices or YCbCr."""
    photometric = int(page.photometric)
    if photometric == 3 and page.colormap is not None:
        colours = np.asarray(page.colormap).T
        # Writers widen 8 bits by 257 or by 256; the upper byte is the colour in both.
        shift = 8 if colours.max() > 255 else 0
        return Colours(palette=(colours >> shift).astype(np.uint8), notes=("palette applied",))
    last = int(page.extrasamples[-1]) if page.extrasamples else 0
    alpha: Alpha = "none"
    if last in (1, 2) and samples in (2, 4) and samples == page.samplesperpixel:
        alpha = "premultiplied" if last == 1 else "straight"
    # Aperio's first JPEG 2000 codec holds YCbCr even if the photometric tag says RGB.
    codec = int(page.compression)
    ycbcr = samples == 3 and (codec == _APERIO_YCBCR or (photometric == 6 and codec not in _RGB_CODECS))
    own = ycbcr and codec != _APERIO_YCBCR and _has_own_ycbcr(page)
    return Colours(alpha, None, ycbcr, ("coefficients or limits of its YCbCr are not applied",) if own else ())


def _has_own_ycbcr(page: Any) -> bool:
    """Whether YCbCr has other coefficients or limits than JPEG's."""
    for tag, usual in ((529, (0.299, 0.587, 0.114)), (532, (0, 255, 128, 255, 128, 255))):
        stated = np.ravel(page.tags.valueof(tag, default=()))
        pairs = stated.reshape(-1, 2) if stated.size == 2 * len(usual) else np.zeros((0, 2))
        if len(pairs) and (not pairs[:, 1].all() or not np.allclose(pairs[:, 0] / pairs[:, 1], usual, atol=0.01)):
            return True
    return False


def nodata_of(page: Any) -> float | None:
    """Value of pixels without data, in the samples' type; None if the file states none that they can have."""
    value = number_in(page.tags.valueof(42113, default=None))
    if value is None or not math.isfinite(value):  # real samples that are not finite never have data
        return None
    if page.dtype.kind == "f":
        # The text may have other digits than the sample: cut off, or written from a wider type.
        limits = np.finfo(page.dtype)
        return float(np.clip(value, float(limits.min), float(limits.max)).astype(page.dtype))
    low, high = sample_range(page.dtype)
    whole = round(value)
    return float(whole) if math.isclose(value, whole, rel_tol=1e-6) and low <= whole <= high else None


def geo_reference_of(page: Any) -> GeoReference | None:
    """Georeference by the tags of GeoTIFF; None without them."""
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
    if int(tags.get("GTRasterTypeGeoKey", 1)) == _PIXEL_IS_POINT:  # then integer coordinates are pixel centres
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return float(a), float(b), float(c), float(d), float(e), float(f)


def ome_pixels(xml: str, page: Any) -> dict[str, str]:
    """Attributes of "Pixels" in OME-XML, of the image that has the page's size, else of the first; empty if none."""
    images = [{name: html.unescape(value) for name, value in _ATTRIBUTE.findall(each)} for each in _PIXELS.findall(xml)]
    wanted = {"SizeY": str(page.imagelength), "SizeX": str(page.imagewidth)}
    return next((image for image in images if wanted.items() <= image.items()), images[0] if images else {})
