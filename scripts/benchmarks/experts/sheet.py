"""Sheets of text of any size: sparse paragraphs, captions and stamps among drawings, on paper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from coarse2fine.demo.texture import Ground
from coarse2fine.tiling.geometry import Box, ceil_div

# Pixels of the sheet for each mark.
_PIXELS_FOR = {"paragraph": 12e6, "caption": 6e6, "stamp": 30e6, "drawing": 1.5e6}
_MOST_FONTS, _APART, _TRIES = 12, 24, 40
_SYLLABLES = [
    "ka",
    "to",
    "ri",
    "ne",
    "sul",
    "mer",
    "an",
    "der",
    "vo",
    "li",
    "ta",
    "sen",
    "pra",
    "chi",
    "est",
    "um",
    "gal",
    "or",
    "fe",
    "wy",
]


@dataclass(frozen=True)
class Mark:
    """A mark on the sheet: its kind, its place, and how much ink covers each pixel."""

    kind: str
    full_box: Box
    ink: NDArray[np.uint8]
    level: int


class Sheet:
    """A square sheet, rendered block by block as a pure function of position.

    Parameters
    ----------
    side : int
        In pixels.
    seed : int
        The same seed, side and installed fonts give the same pixels.

    Attributes
    ----------
    marks : tuple of Mark
    """

    def __init__(self, side: int, seed: int) -> None:
        self.side = side
        self._ground = Ground(np.random.default_rng([seed, 0]))
        rng = np.random.default_rng([seed, 1])
        marks: list[Mark] = []
        corners = np.zeros((0, 4), np.int64)
        for kind, pixels in _PIXELS_FOR.items():
            for _ in range(max(1, round(side**2 / pixels))):
                ink = _DRAWN[kind](rng)
                place = _free(rng, side, ink.shape[:2], corners)
                if place is not None:
                    corners = np.concatenate([corners, [(place.y0, place.x0, place.y1, place.x1)]])
                    marks.append(Mark(kind, place, ink, int(rng.integers(30, 110))))
        self.marks, self._corners = tuple(marks), corners

    def block(self, full_box: Box) -> NDArray[np.uint8]:
        """Grey pixels (height, width, 1) of a box inside the sheet."""
        paper = 205 + (self._ground.paint(full_box).astype(np.int32) - 128) // 3
        pixels = paper.clip(0, 255).astype(np.uint8)
        y0, x0, y1, x1 = self._corners.T
        near = (y0 < full_box.y1) & (y1 > full_box.y0) & (x0 < full_box.x1) & (x1 > full_box.x0)
        for index in np.flatnonzero(near).tolist():
            mark = self.marks[index]
            common = mark.full_box.intersect(full_box)
            assert common is not None
            to, of = (common.shift(-b.y0, -b.x0) for b in (full_box, mark.full_box))
            view = pixels[to.y0 : to.y1, to.x0 : to.x1]
            ink = mark.ink[of.y0 : of.y1, of.x0 : of.x1].astype(np.int32)
            view[:] = (view * (255 - ink) + mark.level * ink + 127) // 255
        return pixels[:, :, None]


def _free(rng: np.random.Generator, side: int, shape: tuple[int, ...], corners: NDArray[np.int64]) -> Box | None:
    """A place for a mark apart from all others; None if none was found."""
    height, width = shape[:2]
    if max(height, width) >= side:
        return None
    for _ in range(_TRIES):
        y, x = int(rng.integers(side - height)), int(rng.integers(side - width))
        y0, x0, y1, x1 = corners.T
        hit = (y0 < y + height + _APART) & (y1 > y - _APART) & (x0 < x + width + _APART) & (x1 > x - _APART)
        if not hit.any():
            return Box(y, x, y + height, x + width)
    return None


@lru_cache(maxsize=1)
def fonts() -> tuple[str, ...]:
    """Files of some system fonts with Latin letters, at least the one that matplotlib brings."""
    every = sorted(font_manager.findSystemFonts(), key=lambda path: (Path(path).name, path))
    found = [path for path in every if path.lower().endswith((".ttf", ".otf")) and _latin(path)]
    usual: str = font_manager.findfont("DejaVu Sans")
    found = found or [usual]
    step = ceil_div(len(found), _MOST_FONTS)
    return tuple(found[::step])


def _latin(path: str) -> bool:
    try:
        known = FT2Font(path).get_charmap()
    except RuntimeError:
        return False
    return all(ord(letter) in known for letter in "abcxyzABC019.,")


def _line(font: str, text: str, size: int) -> NDArray[np.uint8]:
    """One line of text, as coverage."""
    drawn = FT2Font(font)
    drawn.set_size(size, 72)
    drawn.set_text(text, 0.0)
    drawn.draw_glyphs_to_bitmap(antialiased=True)
    return np.array(drawn.get_image(), np.uint8)


def _words(rng: np.random.Generator, letters: int) -> str:
    text = ""
    while len(text) < letters:
        word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.integers(1, 4)))
        text += (word.capitalize() if rng.random() < 0.15 else word) + (", " if rng.random() < 0.1 else " ")
    return text.strip(", ") + "."


def _lines(rng: np.random.Generator, count: int, letters: int, size: int) -> NDArray[np.uint8]:
    """Lines of text below each other in one font."""
    font = str(rng.choice(fonts()))
    drawn = [_line(font, _words(rng, letters), size) for _ in range(count)]
    ink = np.zeros((count * (size * 3 // 2) + size, max(line.shape[1] for line in drawn)), np.uint8)
    for number, line in enumerate(drawn):
        y = number * (size * 3 // 2)
        view = ink[y : y + line.shape[0], : line.shape[1]]
        np.maximum(view, line[: view.shape[0]], out=view)
    return ink


def _paragraph(rng: np.random.Generator) -> NDArray[np.uint8]:
    return _lines(rng, int(rng.integers(4, 13)), int(rng.integers(24, 56)), int(rng.integers(15, 25)))


def _caption(rng: np.random.Generator) -> NDArray[np.uint8]:
    return _lines(rng, int(rng.integers(1, 3)), int(rng.integers(8, 28)), int(rng.integers(18, 38)))


def _stamp(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A framed word, turned and worn."""
    text = _lines(rng, 1, int(rng.integers(6, 12)), int(rng.integers(28, 48)))
    framed = np.pad(text, 24)
    cv2.rectangle(framed, (6, 6), (framed.shape[1] - 7, framed.shape[0] - 7), 255, 4)
    height, width = framed.shape
    angle = float(rng.uniform(-25, 25))
    side = int(np.hypot(height, width)) + 2
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    turn[:, 2] += (side - width) / 2, (side - height) / 2
    worn = cv2.resize(rng.random((side // 8 + 1, side // 8 + 1)).astype(np.float32), (side, side))
    turned = cv2.warpAffine(framed, turn, (side, side)) * (0.55 + 0.45 * worn)
    rows, columns = (np.flatnonzero(turned.max(axis=axis) > 8) for axis in (1, 0))
    ink: NDArray[np.uint8] = turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    return ink


def _drawing(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Lines that are no text: rules, hatching, circles or a curve."""
    height, width = (int(n) for n in rng.integers(60, 420, 2))
    ink = np.zeros((height, width), np.uint8)
    thick, kind = int(rng.integers(1, 4)), int(rng.integers(4))
    if kind == 0:
        for y in range(4, height - 4, int(rng.integers(24, 60))):
            cv2.line(ink, (4, y), (width - 5, y), 255, thick, cv2.LINE_AA)
    elif kind == 1:
        for x in range(-height, width, int(rng.integers(10, 24))):
            cv2.line(ink, (x, height), (x + height, 0), 255, 1, cv2.LINE_AA)
        cv2.rectangle(ink, (1, 1), (width - 2, height - 2), 255, thick)
    elif kind == 2:
        for radius in range(10, min(height, width) // 2 - 2, int(rng.integers(8, 30))):
            cv2.circle(ink, (width // 2, height // 2), radius, 255, thick, cv2.LINE_AA)
    else:
        across = np.linspace(3, width - 4, 64)
        down = height / 2 * (1 + 0.9 * np.sin(across / rng.uniform(20, 90) + rng.uniform(0, 6)))
        curve = np.stack([across, down.clip(3, height - 4)], axis=1).round().astype(np.int32)
        cv2.polylines(ink, [curve], False, 255, thick, cv2.LINE_AA)
    return ink


_DRAWN = {"paragraph": _paragraph, "caption": _caption, "stamp": _stamp, "drawing": _drawing}
