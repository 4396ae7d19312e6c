"""Record of how the images of a fit were read: a model reads other images alike, or notes what differs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from coarse2fine.model import Model
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import ImageSource, Mpp, open_image
from coarse2fine.tiling.value_range import check_range

KEY = "read_as"
"""Key of the record in a model's provenance; older models have none."""

FACTOR = "pixel_size_factor"
"""Key in a model's provenance if its planes were changed for an image: pixels of the image along one of the fit."""

MPP_FACTOR = 1.25
"""Pixel sizes that differ from the model's by more than this factor are noted."""

Range = tuple[float, float]

_RULES = {
    "type": "all of their type",
    "given": "as asked for",
    "file": "as the file says",
    "depth": "bits in use",
    "unit": "0..1",
    "percentiles": "percentiles",
    "empty": "assumed without pixels",
}


@dataclass(frozen=True)
class Remembered:
    """Record of how the images of a fit were read; a value that differed among them is None.

    Parameters
    ----------
    channels : tuple of int or None
        Stored channels.
    picked : bool
        Whether the user selected these channels.
    value_range : tuple of float or None
        Stored values mapped to black and white, the lower first.
    rule : str or None
        Source of the range; see `coarse2fine.tiling.value_range`.
    samples : str or None
        Type of the stored samples.
    mpp : float or None
        Microns per pixel: the median over the images that state them.
    """

    channels: tuple[int, ...] | None
    picked: bool
    value_range: Range | None
    rule: str | None
    samples: str | None
    mpp: float | None

    @classmethod
    def of(cls, images: Sequence[Image]) -> Remembered:
        """Record of the images of a fit."""
        rules = {image.scale.rule for image in images}
        value_range = _one({_ends(image) for image in images})
        if value_range is not None and rules == {"depth", "given"}:  # see `open_alike`
            rules = {"depth"}
        known = [pixel_size(image) for image in images]
        return cls(
            channels=_one({image.used for image in images}),
            picked=all(image.picked is not None for image in images),
            value_range=value_range,
            rule=_one(rules),
            samples=_one({image.scale.dtype for image in images}),
            mpp=median(sizes) if (sizes := [size for size in known if size is not None]) else None,
        )

    @classmethod
    def by(cls, model: Model) -> Remembered | None:
        """Record in a model; None if it is missing or not valid."""
        record = model.provenance.get(KEY)
        if not isinstance(record, dict):
            return None
        try:
            channels, ends, mpp = record["channels"], record["value_range"], record["mpp"]
            known = cls(
                channels=None if channels is None else tuple(map(int, channels)),
                picked=bool(record["picked"]),
                value_range=None if ends is None else check_range(ends),
                rule=record["rule"],
                samples=record["samples"],
                mpp=None if mpp is None else float(mpp),
            )
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return None
        sound = known.rule in (None, *_RULES) and (known.mpp is None or 0 < known.mpp < math.inf)
        return known if sound else None

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, for a model's provenance."""
        pairs = {"channels": self.channels, "value_range": self.value_range}
        lists = {name: None if value is None else list(value) for name, value in pairs.items()}
        return {**lists, "picked": self.picked, "rule": self.rule, "samples": self.samples, "mpp": self.mpp}

    def holds(self, image: Image) -> bool:
        """Whether an image of the same sample type uses fewer bits than the fit's: the fit's range then applies."""
        if self.value_range is None or self.rule != "depth":
            return False
        scale = image.scale
        return scale.rule == "depth" and scale.dtype == self.samples and _ends(image)[1] < self.value_range[1]


def open_alike(
    sources: Sequence[ImageSource], channels: int | Sequence[int] | None, value_range: Range | None
) -> list[Image]:
    """Open the images of a fit; if all are of one type and only their bits in use differ, with the widest range."""
    images = [open_image(source, channels=channels, value_range=value_range) for source in sources]
    if value_range is None and {image.scale.rule for image in images} == {"depth"}:
        widest = max(map(_ends, images))
        if len({image.scale.dtype for image in images}) == 1:
            for index, source in enumerate(sources):
                if _ends(images[index]) != widest and not isinstance(source, Image):
                    images[index] = _again(images[index], source, None, channels, widest)
    return images


def open_for(
    model: Model,
    source: ImageSource,
    *,
    mpp: Mpp | None = None,
    channels: int | Sequence[int] | None = None,
    value_range: Range | None = None,
) -> Image:
    """Open an image with the channels and value range of the model's images, unless others are given.

    Parameters
    ----------
    model : Model
    source : path, address, array or Image
        An open image is returned as it is.
    mpp, channels, value_range
        Explicit settings, which take precedence; see `open_image`.

    Raises
    ------
    ImageError, TypeError, ValueError
        See `open_image`.
    """
    known = None if isinstance(source, Image) else Remembered.by(model)
    if value_range is None and known is not None and known.rule == "given":
        value_range = known.value_range
    image = open_image(source, mpp=mpp, channels=channels, value_range=value_range)
    if known is None:
        return image
    try:
        if channels is None and known.picked and known.channels not in (None, image.used):
            image = _again(image, source, mpp, known.channels, value_range)
        if value_range is None and known.holds(image):
            image = _again(image, source, mpp, image.picked, known.value_range)
    except BaseException:
        image.close()
        raise
    return image


def _again(
    image: Image, source: ImageSource, mpp: Mpp | None, channels: int | Sequence[int] | None, value_range: Range | None
) -> Image:
    """The image opened with other settings; unchanged if these do not apply to it."""
    try:
        other = open_image(source, mpp=mpp, channels=channels, value_range=value_range)
    except ImageError:
        return image
    if channels != image.picked or _ends(other) == value_range:
        image.close()
        return other
    other.close()  # samples of 8 bits are never rescaled
    return image


def notes_on(model: Model, image: Image, more: Sequence[str] = ()) -> dict[str, list[str]]:
    """Notes of an analysis on model, image and what `more` says, under the key "notes"; empty if there are none."""
    empty = ["no pixel with data could be read: check the file"] if image.scale.rule == "empty" else []
    notes = [*empty, *_likenesses(model, image), *differences(model, image), *image.damage.notes, *more]
    return {"notes": notes} if notes else {}


def warn_of(model: Model, image: Image) -> None:
    """Warn of how the image is read differently than the model's."""
    for text in differences(model, image):
        warnings.warn(f"{image.name}: {text}", stacklevel=3)


def _likenesses(model: Model, image: Image) -> list[str]:
    """Notes on settings taken over from the model's images."""
    said: list[str] = []
    if image.channels != model.channels and not model.refiner.learns:
        seen = "grey is repeated in each" if model.channels == 3 else "its colours are converted to grey"
        said.append(f"the model reads {model.channels} channel(s) and the image has {image.channels}: {seen}")
    known = Remembered.by(model)
    if known is not None and known.picked and known.channels == image.used:
        said.append(f"channels {_listed(image.used)} are read, as in the fit of the model")
    if known is not None and image.scale.rule == "given" and known.value_range == _ends(image):
        said.append(f"values {_ends(image)[0]:g}..{_ends(image)[1]:g} are scaled, as in the fit of the model")
    factor, size = model.provenance.get(FACTOR), pixel_size(image)
    if factor is not None and known is not None and known.mpp is not None and size is not None:
        how = f"it is read at 1/{factor:g} of its resolution" if factor > 1 else f"its planes are {1 / factor:g}x finer"
        said.append(f"a pixel is {size:.3g} microns, {known.mpp * factor:.3g} in the fit of the model: {how}")
    return said


def differences(model: Model, image: Image) -> list[str]:
    """Notes on how an image is read differently than the model's images, as far as these were alike."""
    known = Remembered.by(model)
    if known is None:
        return []
    said = []
    if known.channels not in (None, image.used) and len(known.channels or ()) == len(image.used):
        said.append(
            f"channels {_listed(image.used)} are read, but the model was fitted on channels "
            f"{_listed(known.channels or ())}"
        )
    return said + _range_differences(known, image) + _mpp_differences(known, image)


def _range_differences(known: Remembered, image: Image) -> list[str]:
    """Notes on a value range from another kind of rule; percentiles are compared by rule, as each image has its own."""
    rule, ends = image.scale.rule, _ends(image)
    if known.rule is None or rule == known.rule != "given" or ends == known.value_range:
        return []
    stretched = "percentiles" in (rule, known.rule) and rule != "given"
    if not (stretched or known.rule == "given"):
        return []
    theirs = "" if known.value_range is None else f" {known.value_range[0]:g}..{known.value_range[1]:g}"
    return [
        f"values {ends[0]:g}..{ends[1]:g} ({_RULES[rule]}) are scaled, but the model was fitted on{theirs} "
        f"({_RULES[known.rule]})"
    ]


def _mpp_differences(known: Remembered, image: Image) -> list[str]:
    size = pixel_size(image)
    if known.mpp is None or size is None or 1 / MPP_FACTOR <= size / known.mpp <= MPP_FACTOR:
        return []
    factor, look = (size / known.mpp, "smaller") if size > known.mpp else (known.mpp / size, "larger")
    return [
        f"a pixel is {size:.3g} microns, but the model was fitted at {known.mpp:.3g}: "
        f"objects look {factor:.3g} times {look} than in the fit"
    ]


def _one(values: set[Any]) -> Any:
    """The single value of a set, None if it has several."""
    return next(iter(values)) if len(values) == 1 else None


def _ends(image: Image) -> Range:
    low, high = image.value_range
    return min(low, high), max(low, high)


def pixel_size(image: Image) -> float | None:
    """Microns per pixel, the mean of both axes; None if unknown."""
    return None if image.mpp is None else sum(image.mpp) / 2


def _listed(channels: Sequence[int]) -> str:
    return ", ".join(map(str, channels))
