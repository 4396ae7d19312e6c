"""What sets kinds of places apart that nobody named: words such as "darker" and "smoother", and an example of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.regions import Region
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image

_SIDE = 32
# Places looked at: the surest of each kind, and on an even grid over the image for what is usual there.
_OF_A_KIND, _USUAL = 12, 100
_WORDS = (
    ("brighter", "darker"),
    ("higher in contrast", "smoother"),
    ("finer", "coarser"),
    ("redder", "greener"),
    ("yellower", "bluer"),
)
# Least differences that an eye would see, in the units of `_traits`; and of them, how many usual spreads are told.
_VISIBLE = np.array([4.0, 0.25, 0.1, 2.0, 2.0])
_SPREADS, _TOLD = 1.0, 3


def describe_kinds(regions: Sequence[Region], image: Image, downsample: int) -> dict[str, dict[str, Any]]:
    """How each kind of region differs from the rest of the image, and where to see it.

    Parameters
    ----------
    regions : sequence of Region
        The surest first.
    image : Image
    downsample : int
        Full-resolution pixels per pixel of the plane that is looked at.

    Returns
    -------
    dict of str to dict
        By label, as JSON values: "traits", words such as "darker, smoother", those first that set the kind apart from
        the others too (empty if there is no plain difference); and "example", the box (y0, x0, y1, x1) of the surest
        region in full-resolution pixels.
    """
    by_label: dict[str, list[Region]] = {}
    for region in regions:
        by_label.setdefault(region.label, []).append(region)
    if not by_label:
        return {}
    usual = _measured(image, _grid(image), downsample)
    differences = {
        label: _difference(_measured(image, [r.full_centre for r in own[:_OF_A_KIND]], downsample), usual)
        for label, own in by_label.items()
    }
    common = np.median(list(differences.values()), axis=0)
    return {
        label: {"traits": _told(differences[label], common), "example": [round(v, 1) for v in own[0].full_box]}
        for label, own in sorted(by_label.items())
    }


def _grid(image: Image) -> list[tuple[float, float]]:
    """Centres (y, x) of even parts of the image."""
    share = image.height / image.width
    rows = min(_USUAL, max(1, round((_USUAL * share) ** 0.5)))
    columns = max(1, round(_USUAL / rows))
    return [
        ((row + 0.5) * image.height / rows, (column + 0.5) * image.width / columns)
        for row in range(rows)
        for column in range(columns)
    ]


def _measured(image: Image, centres: Sequence[tuple[float, float]], downsample: int) -> NDArray[np.float64]:
    """Traits of the places around some centres that can be read, (n, 5)."""
    found = []
    for y, x in centres:
        corner = int(y / downsample) - _SIDE // 2, int(x / downsample) - _SIDE // 2
        box = Box(*corner, corner[0] + _SIDE, corner[1] + _SIDE)
        try:
            found.append(_traits(image.read_scaled(box, downsample)))
        except ImageError:  # listed among the failures already
            continue
    return np.array(found, np.float64).reshape(-1, len(_WORDS))


def _traits(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Lightness, logarithm of its contrast, share of fine detail in it, and the two colour axes of CIELAB."""
    rgb = np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] != 3 else pixels
    light, green_red, blue_yellow = cv2.split(cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    fine = light - cv2.GaussianBlur(light, (0, 0), 2.0)
    contrast = float(light.std())
    return np.array(
        [light.mean(), np.log(contrast + 0.5), fine.std() / (contrast + 0.5), green_red.mean(), blue_yellow.mean()]
    )


def _difference(own: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.float64]:
    """From what is usual to what a kind is, in spreads of what is usual, or in what can be seen if that is more."""
    if not len(own) or not len(usual):
        return np.zeros(len(_WORDS))
    middle = np.median(usual, axis=0)
    spread = np.maximum(1.48 * np.median(np.abs(usual - middle), axis=0), _VISIBLE)
    return np.asarray((np.median(own, axis=0) - middle) / spread)


def _told(difference: NDArray[np.float64], common: NDArray[np.float64]) -> str:
    """The words for large differences; those first that not all kinds share."""
    own = np.abs(difference - common) + 0.1 * np.abs(difference)
    order = [i for i in np.argsort(-own, kind="stable").tolist() if abs(difference[i]) > _SPREADS]
    return ", ".join(_WORDS[i][int(difference[i] < 0)] for i in order[:_TOLD])
