"""Colours of classes."""

from __future__ import annotations

import colorsys
import functools
import hashlib
import math
import re

_LIGHTNESS = (0.36, 0.46, 0.56)  # readable on white paper as well as on a dark scene
_GOLDEN = (math.sqrt(5) - 1) / 2  # hues this share of the circle apart never come close to an earlier one
_NUMBER = re.compile(r"[0-9]{1,9}\Z")


@functools.lru_cache(maxsize=4096)
def label_colour(label: str) -> tuple[int, int, int]:
    """Colour of a label; it depends on nothing but the label.

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
