"""Descriptions of unnamed kinds of regions: words such as "darker" and "smoother", and an example of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.region import Region
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image

_SIDE = 32
# Places that are measured: the best of each kind, and on an even grid over the image for what is usual there.
_OF_A_KIND, _USUAL = 12, 100
_WORDS = (
    ("brighter", "darker"),
    ("higher in contrast", "smoother"),
    ("finer", "coarser"),
    ("redder", "greener"),
    ("yellower", "bluer"),
)
_NOUNS = ("lightness", "contrast", "fineness", "redness", "yellowness")
# Least visible differences, in the units of `_traits`.
_VISIBLE = np.array([4.0, 0.25, 0.1, 2.0, 2.0])
# Differences in spreads, or least visible differences, above which a word is plain, or "slightly"; most plain words.
_SPREADS, _WEAK, _SHOWN = 1.0, 0.25, 3


def describe_kinds(regions: Sequence[Region], image: Image, downsample: int) -> dict[str, dict[str, Any]]:
    """Words for how each kind of region differs from the rest of the image, with an example.

    Parameters
    ----------
    regions : sequence of Region
        Highest score first.
    image : Image
    downsample : int
        Full-resolution pixels per pixel of the plane that is measured.

    Returns
    -------
    dict of str to dict
        By label, as JSON values. "traits": words such as "darker, smoother", those first that other kinds do not share;
        empty without a plain difference. If kinds would share all words, weaker ones such as "slightly redder" follow,
        and then their rank. "example": the box (y0, x0, y1, x1) of the first region in full-resolution pixels.
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
    names = _distinct(dict(sorted(differences.items())))
    return {
        label: {"traits": names[label], "example": [round(v, 1) for v in own[0].full_box]}
        for label, own in sorted(by_label.items())
    }


def _grid(image: Image) -> list[tuple[float, float]]:
    """Centres (y, x) of about `_USUAL` equal parts of the image."""
    share = image.height / image.width
    rows = min(_USUAL, max(1, round((_USUAL * share) ** 0.5)))
    columns = max(1, round(_USUAL / rows))
    return [
        ((row + 0.5) * image.height / rows, (column + 0.5) * image.width / columns)
        for row in range(rows)
        for column in range(columns)
    ]


def _measured(image: Image, centres: Sequence[tuple[float, float]], downsample: int) -> NDArray[np.float64]:
    """Traits of the places around the centres, (n, 5), without those that cannot be read."""
    found = []
    for y, x in centres:
        corner = int(y / downsample) - _SIDE // 2, int(x / downsample) - _SIDE // 2
        box = Box(*corner, corner[0] + _SIDE, corner[1] + _SIDE)
        try:
            found.append(_traits(image.read_scaled(box, downsample)))
        except ImageError:  # already listed among the failures
            continue
    return np.array(found, np.float64).reshape(-1, len(_WORDS))


def _traits(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean lightness, logarithm of its contrast, share of fine detail in it, and the two colour axes of CIELAB."""
    rgb = np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] != 3 else pixels
    light, green_red, blue_yellow = cv2.split(cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    fine = light - cv2.GaussianBlur(light, (0, 0), 2.0)
    contrast = float(light.std())
    return np.array(
        [light.mean(), np.log(contrast + 0.5), fine.std() / (contrast + 0.5), green_red.mean(), blue_yellow.mean()]
    )


def _difference(own: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.float64]:
    """Difference of a kind's median traits from the usual, in usual spreads, or least visible differences if larger."""
    if not len(own) or not len(usual):
        return np.zeros(len(_WORDS))
    middle = np.median(usual, axis=0)
    spread = np.maximum(1.48 * np.median(np.abs(usual - middle), axis=0), _VISIBLE)
    return np.asarray((np.median(own, axis=0) - middle) / spread)


def _distinct(differences: dict[str, NDArray[np.float64]]) -> dict[str, str]:
    """Words for each kind: up to `_SHOWN` plain ones, and more for kinds that would share all of theirs."""
    common = np.median(list(differences.values()), axis=0)
    plain = {label: _words(each, common, _SPREADS, np.inf, "") for label, each in differences.items()}
    words = {
        label: plain[label] + _words(each, common, _WEAK, _SPREADS, "slightly ") for label, each in differences.items()
    }
    shown = {label: min(_SHOWN, len(plain[label])) for label in words}
    while growing := [
        label for alike in _alike(words, shown) if len(alike) > 1 for label in alike if shown[label] < len(words[label])
    ]:
        for label in growing:
            shown[label] += 1
    names = {label: ", ".join(each[: shown[label]]) for label, each in words.items()}
    for alike in _alike(words, shown):
        if len(alike) > 1 and names[alike[0]]:
            names |= {label: f"{names[label]}, {rank}" for label, rank in _ranks(alike, differences).items()}
    return names


def _ranks(alike: list[str], differences: dict[str, NDArray[np.float64]]) -> dict[str, str]:
    """Rank of each of several kinds that share all words, by the trait in which they differ most."""
    values = np.array([differences[label] for label in alike])
    trait = int(np.argmax(np.ptp(values, axis=0)))
    order = np.argsort(-values[:, trait], kind="stable").tolist()
    return {alike[i]: f"no. {number} of {len(alike)} by {_NOUNS[trait]}" for number, i in enumerate(order, 1)}


def _words(
    difference: NDArray[np.float64], common: NDArray[np.float64], least: float, most: float, adverb: str
) -> list[str]:
    """Words for differences of more than `least` and at most `most`; those first that differ most between kinds."""
    own = np.abs(difference - common) + 0.1 * np.abs(difference)
    order = [i for i in np.argsort(-own, kind="stable").tolist() if least < abs(difference[i]) <= most]
    return [adverb + _WORDS[i][int(difference[i] < 0)] for i in order]


def _alike(words: dict[str, list[str]], shown: dict[str, int]) -> list[list[str]]:
    """Groups of kinds that share all words shown, in any order."""
    groups: dict[frozenset[str], list[str]] = {}
    for label, each in words.items():
        groups.setdefault(frozenset(each[: shown[label]]), []).append(label)
    return list(groups.values())
