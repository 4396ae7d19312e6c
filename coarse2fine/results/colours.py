"""Colours of classes.

Colours that are shown together differ for people with red-green colour blindness, too: how these see them is computed
by the model of Machado, Oliveira and Fernandes (2009), and the distance of two colours is that in Oklab.
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import math
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_LIGHTNESS = (0.36, 0.46, 0.56)  # readable on white paper as well as on a dark scene
_GOLDEN = (math.sqrt(5) - 1) / 2  # hues this share of the circle apart never come close to an earlier one
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
WINDOWS = (0, 200, 240)
"""Colour of windows in pictures."""
_APART = (
    *((204, 102, 136), (204, 204, 0), (102, 0, 255), (170, 0, 153), (187, 17, 17)),
    *((102, 136, 238), (238, 102, 0), (238, 153, 153), (187, 17, 102), (238, 51, 204)),
)
"""Colours far from each other and from that of windows, for all eyes; found by a search over all of them."""
_FAR = 0.13
# So many colours cannot be far apart, and to search takes long.
_MOST_APART = 32
# Vision of most people, of deuteranopes and of protanopes, in linear RGB.
_VISIONS = (
    np.eye(3),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
)
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@functools.lru_cache(maxsize=4096)
def label_colour(label: str) -> Colour:
    """Colour of a label that is shown alone or among unknown others; it depends on nothing but the label.

    Labels that differ by a number at their end, such as "kind 4" and "kind 5", get distant colours.

    Parameters
    ----------
    label : str
        Name of the class.

    Returns
    -------
    tuple of int
        Red, green and blue, 0 to 255.
    """
    number = _NUMBER.search(label)
    stem, step = (label[: number.start()], int(number[0]) % 1000) if number else (label, 0)
    digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).digest()
    hue = (int.from_bytes(digest[:4], "big") / 2**32 + step * _GOLDEN) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, _LIGHTNESS[(digest[4] + step) % len(_LIGHTNESS)], 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def label_colours(labels: Iterable[str]) -> dict[str, Colour]:
    """Colours of labels that are shown together.

    A label has its `label_colour`, unless that is hard to tell from the colour of a label before it or from that of
    windows; then it has the colour that is farthest from all of these. Beyond some ten labels, colours come nearer to
    each other; more than 32 labels have their `label_colour`.

    Parameters
    ----------
    labels : iterable of str
        They are taken in alphabetical order, so that the same labels have the same colours.
    """
    every = sorted(set(labels))
    if len(every) > _MOST_APART:
        return {label: label_colour(label) for label in every}
    chosen: dict[str, Colour] = {}
    for label in every:
        taken = [WINDOWS, *chosen.values()]
        own = label_colour(label)
        chosen[label] = own if _distance(own, taken) >= _FAR else max(_APART, key=lambda each: _distance(each, taken))
    return chosen


def _distance(colour: Colour, others: Iterable[Colour]) -> float:
    """Least distance from other colours, for the eyes that see it smallest."""
    ours = _seen(colour)
    return min(float(np.linalg.norm(ours - _seen(other), axis=1).min()) for other in others)


@functools.lru_cache(maxsize=4096)
def _seen(colour: Colour) -> NDArray[np.float64]:
    """Oklab (3 visions, 3) of a colour."""
    values = np.array(colour) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    cones = [_TO_CONES @ np.clip(vision @ linear, 0, 1) for vision in _VISIONS]
    return np.stack([_TO_OKLAB @ np.cbrt(each) for each in cones])
