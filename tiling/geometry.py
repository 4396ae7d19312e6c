"""Boxes, levels and pixel sizes; coordinates change plane only here.

Planes are named, and variables carry the name as a prefix: ``full_`` (level-0 pixels), ``level_`` (pixels of one
level, or of a virtual level at an integer downsample), ``cell_`` (index in a grid of cells). Order is (y, x); boxes
are half-open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .units import microns, unit_name

PRINTER_DPI = {72, 75, 90, 96, 100, 120, 144, 150, 180, 200, 220, 240, 300, 350, 360, 400, 600, 720, 1200, 2400}
"""Dots per inch of screens and printers, which programs write if they do not know the specimen's pixel size."""

MPP_RANGE = (0.01, 1000.0)
"""Microns per pixel outside this open interval are taken as placeholders, not measurements."""


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open rectangle ``[y0, y1) x [x0, x1)`` of whole pixels (or cells) in one plane.

    Parameters
    ----------
    y0, x0, y1, x1 : int
        Corners; may be negative or lie outside the image, but ``y1 > y0`` and ``x1 > x0``.

    Raises
    ------
    ValueError
        If the rectangle is empty.
    """

    y0: int
    x0: int
    y1: int
    x1: int

    def __post_init__(self) -> None:
        if self.y1 <= self.y0 or self.x1 <= self.x0:
            raise ValueError(f"a box must not be empty (y1 > y0 and x1 > x0), got {self}")

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of rows and columns, for a corner at or after the origin."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def expand(self, margin: int) -> Box:
        """Grow by `margin` pixels on every side."""
        return Box(self.y0 - margin, self.x0 - margin, self.y1 + margin, self.x1 + margin)

    def shift(self, dy: int, dx: int) -> Box:
        """Move by whole pixels."""
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def scale(self, factor: int) -> Box:
        """The same rectangle in a plane whose pixels are `factor` times smaller."""
        return Box(self.y0 * factor, self.x0 * factor, self.y1 * factor, self.x1 * factor)

    def intersect(self, other: Box) -> Box | None:
        """The common part, or None if there is none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1, x1 = min(self.y1, other.y1), min(self.x1, other.x1)
        return Box(y0, x0, y1, x1) if y1 > y0 and x1 > x0 else None


@dataclass(frozen=True, slots=True)
class Level:
    """One stored resolution of an image.

    Parameters
    ----------
    index : int
        0 is full resolution.
    height, width : int
        Size in pixels of this level.
    downsample_y, downsample_x : float
        Full-resolution pixels per pixel of this level.
    chunk : tuple of int
        Height and width of a stored chunk, in pixels of this level.
    """

    index: int
    height: int
    width: int
    downsample_y: float
    downsample_x: float
    chunk: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Physical size of a full-resolution pixel, in the file's own unit.

    Parameters
    ----------
    y, x : float
        Height and width.
    unit : str
        A unit of length by its English name ("micrometer", "inch", ...) or symbol, or the file's own text.
    """

    y: float
    x: float
    unit: str

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Microns per pixel (y, x); None if the unit is not one of length."""
        factor = microns(self.unit)
        return None if factor is None else (self.y * factor, self.x * factor)


def pixel_size(y: float, x: float, unit_y: str, unit_x: str) -> PixelSize:
    """Pixel size from each axis's size and unit (name or symbol); in micrometers if the units differ."""
    units = unit_name(unit_y), unit_name(unit_x)
    if units[0] == units[1]:
        return PixelSize(y, x, units[0])
    factors = [microns(unit) for unit in units]
    if factors[0] is None or factors[1] is None:
        return PixelSize(y, x, " x ".join(units))
    return PixelSize(y * factors[0], x * factors[1], "micrometer")


def printer_dots(size: PixelSize) -> int | None:
    """Dots per inch, if a size is among `PRINTER_DPI` and so no measurement; else None."""
    factor = microns(size.unit)
    if factor is None or not size.x > 0 or abs(size.x - size.y) > 1e-9 * size.x:
        return None
    dots = 25400 / (size.x * factor)
    # Rounding to whole pixels per meter or centimeter turns 72 into 71.9 or 72.1.
    slack = 1e-6 if size.unit == "inch" else 1.5e-3
    return next((printer for printer in PRINTER_DPI if abs(dots - printer) <= slack * printer), None)


def ignored_dots(dots: int) -> str:
    """Note on a size that `printer_dots` recognises and that is therefore ignored."""
    return f"resolution of {dots} dots per inch ignored: it is a screen's or a printer's"


def plausible_mpp(size: PixelSize | None) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Microns per pixel (y, x), and a note if the stated size is ignored."""
    low, high = MPP_RANGE
    if size is None:
        return None, ()
    if size.mpp is None:
        return None, (f"pixel size of {size.y:g} x {size.x:g} {size.unit} ignored: that is not a known unit of length",)
    if all(low < value < high for value in size.mpp):
        return size.mpp, ()
    return None, (f"implausible microns per pixel ignored: {size.mpp[0]:g} x {size.mpp[1]:g}",)


@dataclass(frozen=True, slots=True)
class GeoReference:
    """Georeference: world coordinates of full_ pixels.

    Parameters
    ----------
    transform : tuple of float
        (a, b, c, d, e, f): the world coordinates of the point (y, x), counted in full_ pixels from the upper left
        corner of the first pixel, are ``(a * x + b * y + c, d * x + e * y + f)``.
    crs : str, optional
        Coordinate reference system such as "EPSG:32618"; None if the file defines its own.
    unit : str, optional
        Unit of world coordinates, such as "meter" or "degree".
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str | None = None
    unit: str | None = None


def ceil_div(value: int, divisor: int) -> int:
    """Integer division, rounded up."""
    return -(-value // divisor)


def downsamples(full: tuple[int, int], level: tuple[int, int]) -> tuple[float, float]:
    """Downsamples (y, x) of a level: integers if full size / integer, rounded up or down, is the level's size.

    A level of 8228 pixels made from 32914 by a factor of 4 lost two pixels at its far edge; each of its pixels still
    covers 4. Small levels fit several integers, such as 18 of 301 pixels both 16 and 17: a power of two that fits
    both axes is preferred, then the integer next to the longer axis's ratio.
    """
    ratios = full[0] / level[0], full[1] / level[1]
    longer = ratios[0] if level[0] >= level[1] else ratios[1]
    for whole in (2 ** round(math.log2(longer)), max(1, round(longer))):
        if all(_fits(*sizes, whole) for sizes in zip(full, level, strict=True)):
            return float(whole), float(whole)
    y, x = (
        float(whole) if _fits(*sizes, whole := max(1, round(ratio))) else ratio
        for ratio, sizes in zip(ratios, zip(full, level, strict=True), strict=True)
    )
    return y, x


def _fits(full: int, level: int, factor: int) -> bool:
    return level in (full // factor, ceil_div(full, factor))
