"""Annotations of one image as values, independent of files.

Geometries hold (x, y) in full-resolution pixels, y down; all else is (y, x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Point, Polygon

from coarse2fine.tiling.geometry import GeoReference

IGNORE = "Ignore*"
REGION = "Region*"
_LONGEST_LABEL = 200
_NAMED = 3


class AnnotationError(ValueError):
    """Annotations cannot be read or paired; the message names the file, the cause and the remedy."""


class StrayError(ValueError):
    """One annotation of a file cannot be used; the text goes on from its name, such as "feature 3"."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated object.

    Parameters
    ----------
    label : str
        Name of the class.
    geometry : Point, Polygon or MultiPolygon
        Outline or position, (x, y) in full-resolution pixels.
    measurements : dict of str to float
        Measurements stored with it, by name.
    own_label : str
        Name of its own class, if `label` is one for several classes that are found as one; otherwise empty.
    """

    label: str
    geometry: Point | Polygon | MultiPolygon
    measurements: dict[str, float] = field(default_factory=dict, hash=False)
    own_label: str = ""

    @property
    def full_bounds(self) -> tuple[float, float, float, float]:
        """Bounds (y0, x0, y1, x1) in full-resolution pixels; those of a point have no extent."""
        x0, y0, x1, y1 = self.geometry.bounds
        return y0, x0, y1, x1

    @property
    def is_point(self) -> bool:
        """Whether the object is a single point."""
        return bool(self.geometry.geom_type == "Point")

    @property
    def is_box(self) -> bool:
        """Whether the object is an axis-aligned rectangle."""
        y0, x0, y1, x1 = self.full_bounds
        # Only a rectangle fills its bounds.
        return not self.is_point and math.isclose(self.geometry.area, (y1 - y0) * (x1 - x0), rel_tol=1e-9)


@dataclass(frozen=True, slots=True)
class Annotations:
    """Annotations of one image.

    Parameters
    ----------
    path : Path or None
        The file read; None if a JSON value was given.
    objects : tuple of Annotation
        The classified annotations, in the file's order.
    ignored : tuple of Polygon or MultiPolygon
        Areas of class ``Ignore*``, to be left out of training; (x, y) full-resolution pixels.
    regions : tuple of Polygon or MultiPolygon
        Areas of class ``Region*``: only inside them has the image been annotated. Empty means everywhere.
    labels : tuple of str
        The classes of `objects`, sorted.
    notes : tuple of str
        Annotations left out, and assumptions made; each names the file.
    """

    path: Path | None
    objects: tuple[Annotation, ...]
    ignored: tuple[Polygon | MultiPolygon, ...]
    regions: tuple[Polygon | MultiPolygon, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()


class AnnotatedArea:
    """The annotated part of an image: inside its regions, if it has any, and outside its ignored areas.

    Parameters
    ----------
    annotations : Annotations
    """

    def __init__(self, annotations: Annotations) -> None:
        kinds = ((annotations.regions, True), (annotations.ignored, False))
        self._rules = [(shapely.union_all(list(areas)), sense) for areas, sense in kinds if areas]
        for geometry, _ in self._rules:
            shapely.prepare(geometry)

    def contains(self, full_y: NDArray[np.float64], full_x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Mask (n,) of the points, in full-resolution pixels, that lie in it."""
        there = np.ones(len(full_y), bool)
        for geometry, sense in self._rules:
            there &= shapely.contains_xy(geometry, full_x, full_y) == sense
        return there


@dataclass(frozen=True, slots=True)
class Subject:
    """The annotated image, as far as it is known.

    Parameters
    ----------
    name : str, optional
        Path, address or name; selects the image in a file of several.
    full_shape : tuple of int, optional
        Height and width in full-resolution pixels.
    geo : GeoReference, optional
        Its coordinate reference system and transform.
    """

    name: str | None = None
    full_shape: tuple[int, int] | None = None
    geo: GeoReference | None = None


class Draft(NamedTuple):
    """An annotation as parsed from a file, not checked yet."""

    place: str  # "feature 3"; counted from 1
    label: str | None
    geometry: Any
    measurements: dict[str, float]
    kind: str = ""  # QuPath's objectType; empty if there is none


class Stray(NamedTuple):
    """An annotation that is left out."""

    place: str
    reason: str


class Parsed(NamedTuple):
    """Annotations of one image as parsed from a file."""

    drafts: list[Draft]
    strays: list[Stray]
    stated_shape: tuple[int, int] | None = None  # height and width of the image that coordinates refer to
    crs: str | None = None  # the coordinate reference system it names
    notes: tuple[str, ...] = ()


def collect(items: Iterable[Any], parse: Callable[[Any, str], Iterator[Draft]], word: str) -> Parsed:
    """Parse annotations one by one; those that cannot be used become strays."""
    found = Parsed([], [])
    for number, item in enumerate(items, 1):
        place = f"{word} {number}"
        try:
            drafts = list(parse(item, place))
            special = [draft for draft in drafts if draft.label in (IGNORE, REGION)]
            if any(draft.geometry.geom_type == "Point" for draft in special):
                raise StrayError(f"is a Point of class {special[0].label}: expected an area; draw it as a polygon")
        except StrayError as error:
            found.strays.append(Stray(place, str(error)))
        else:
            found.drafts.extend(drafts)
    return found


def left_out(strays: Iterable[Stray], total: int) -> list[str]:
    """One note for each reason to leave annotations out: how many, of how many, and the first of them."""
    reasons: dict[str, list[str]] = {}
    for stray in strays:
        reasons.setdefault(stray.reason, []).append(stray.place)
    return [
        f"left out {len(places):,} of {total:,}, {', '.join(places[:_NAMED])}"
        f"{' and more' if len(places) > _NAMED else ''}: {reason}"
        for reason, places in reasons.items()
    ]


def shown(value: Any) -> str:
    """A value from a file, shortened for a message."""
    if isinstance(value, str):
        return value if len(value) <= 60 else f"{value[:57]}..."
    if value is None or isinstance(value, bool | float):
        return str(value)
    return f"a JSON {type(value).__name__}"


def label_of(value: Any) -> str | None:
    """Class name from a text or number, cut at 200 characters; None for other types and empty texts.

    ``Ignore*`` and ``Region*`` are recognised in upper and lower case.
    """
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        text = str(value)
    except ValueError:  # an integer of thousands of digits
        return None
    # JSON can hold lone surrogates, which cannot be encoded when results are written.
    text = text.encode("utf-8", "replace").decode().strip()
    for special in (IGNORE, REGION):
        if text.casefold() == special.casefold():
            return special
    return (text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 3]}...") or None


def number_of(value: Any) -> float | None:
    """A finite number, or None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def numbers_of(values: Sequence[Any], what: str) -> list[float]:
    """Finite numbers; StrayError if one of them is something else."""
    found = [number_of(value) for value in values]
    if None in found:
        raise StrayError(f"has {what} that are not finite numbers")
    return [number for number in found if number is not None]


def shape_of(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width that a file states, if they are whole positive numbers."""
    sizes = number_of(height), number_of(width)
    if any(size is None or size < 1 or size > 2**40 or size % 1 for size in sizes):
        return None
    return int(sizes[0] or 0), int(sizes[1] or 0)


def entry_of(entries: Sequence[str], image: str | None, file: str) -> int | None:
    """Index of the entry that names an image; None if none does.

    Parameters
    ----------
    entries : sequence of str
        Names or paths as the file has them.
    image : str or None
        Path or name of the image; None if it is unknown: the file must then hold a single image.
    file : str
        Name of the file, for messages.

    Raises
    ------
    AnnotationError
        If several entries do.
    """
    if image is None:
        if len(entries) > 1:
            raise AnnotationError(f"{file} holds the annotations of {len(entries):,} images; say which one is meant")
        return 0 if entries else None
    wanted = PurePosixPath(image.replace("\\", "/"))
    likely = [(i, PurePosixPath(e.replace("\\", "/"))) for i, e in enumerate(entries) if wanted.stem in e]
    alike = [(i, path) for i, path in likely if path.name == wanted.name]
    alike = alike or [(i, path) for i, path in likely if path.stem == wanted.stem]
    if len(alike) > 1:  # the same name in several folders
        tails = [(i, path) for i, path in alike if wanted.parts[-len(path.parts) :] == path.parts]
        longest = max((len(path.parts) for _, path in tails), default=0)
        alike = [(i, path) for i, path in tails if len(path.parts) == longest] or alike
    found = [i for i, _ in alike]
    if len(found) > 1:
        names = ", ".join(shown(entries[i]) for i in found[:3])
        raise AnnotationError(f"{file} names the image {wanted.name} {len(found)} times ({names}); keep one")
    return found[0] if found else None


def of_another(stated: Any, image: str | None, file: str) -> tuple[str, ...]:
    """A note if the only image that a file names has another name; folder and suffix may differ.

    Parameters
    ----------
    stated : JSON value
        Name or path as the file has it.
    image : str or None
        Path or name of the image.
    file : str
        Name of the file, for the message.
    """
    if image is None or not isinstance(stated, str) or not stated.strip():
        return ()
    wanted, found = (PurePosixPath(each.replace("\\", "/")).name for each in (image, stated))
    if PurePosixPath(wanted).stem == PurePosixPath(found).stem or wanted.partition(".")[0] == found.partition(".")[0]:
        return ()
    return (f"{file}: made on the image {shown(found)}, taken for {shown(wanted)}; do they belong together?",)
